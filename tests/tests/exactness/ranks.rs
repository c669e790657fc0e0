//! Same batches, same bits: however many ranks share them. Here ranks are threads; what they sum and in which order is any engine's.

use dino_host::cpu::{Cpu, NoOptions};
use dino_host::device::{Device, Part, Step};
use dino_host::dist::{Group, threads};
use dino_host::error::Result;
use dino_kernel::backend::wrap::{Checked, Violation};
use dino_kernel::backend::{Collective, Lane, Memory};
use dino_kernel::crops::Crops;
use dino_kernel::group::{ProcessGroup, add_by_halves, sum_scratch};
use dino_kernel::mem::{Pool, Span};
use dino_kernel::model::resnet::{Block, Stage, Stem};
use dino_kernel::model::{Backbone, Head, ResNet, Vit};
use dino_kernel::objective::{Divergence, Objective, Targets};
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::plan::{Config, Plan, Sharding};
use dino_kernel::scalars::monitor;
use dino_kernel::step::{self, Hyper};
use proptest::prelude::*;
use tests::backend::{Factory, Reference, make_poisoned, read, read_span};
use tests::for_backends;
use tests::plans::ordinary;
use tests::training::{Run, groups, hyper_numbers, normals, random_views};

const STEPS: usize = 3;
/// The step that goes wrong where one does.
const BAD: usize = 1;

/// Crops of three shapes, stochastic depth, a trained gain; micro-batches of two images.
fn config(micro_batches: usize, stream_crops: bool) -> Config {
    let backbone = Backbone::Vit(Vit {
        image: 16,
        patch: 4,
        channels: 3,
        dim: 24,
        depth: 2,
        heads: 2,
        mlp: 40,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let head =
        Head { inp: 24, layers: 3, hidden: 32, bottleneck: 12, prototypes: 300, train_gain: true, ..Head::PUBLISHED };
    let views: Crops = groups([(16, 16), (16, 16), (8, 8), (8, 8), (4, 13)].into_iter());
    Config { drop_path: true, stream_crops, ..ordinary(backbone, head, views, [2 * micro_batches, 2]) }
}

/// Batch norms: in the backbone, in the head, or in both. Micro-batches of `images` images, groups of so many.
fn normalized(which: usize, [micro_batches, images]: [usize; 2], bn_group: Option<usize>) -> Config {
    let stages =
        |r: ResNet| r.with(Stage { width: 6, blocks: 1, stride: 1 }).with(Stage { width: 10, blocks: 1, stride: 2 });
    let vit = config(micro_batches, false);
    let resnet = Backbone::ResNet(stages(ResNet::new(16, 3, Stem::small(6), Block::Basic)));
    let (backbone, drop_path) = if which == 1 { (vit.backbone, true) } else { (resnet, false) };
    let head = Head { inp: backbone.dim(), batch_norm: which > 0, ..vit.head };
    Config { drop_path, bn_group, ..ordinary(backbone, head, vit.views, [images * micro_batches, images]) }
}

fn plan(micro_batches: usize, stream_crops: bool, shards: usize, ranks: usize) -> Plan {
    Plan::sharded(config(micro_batches, stream_crops), Sharding { shards, ranks }).expect("a valid plan")
}

/// What a step leaves that the next one, or the host, reads: as bits.
#[derive(Clone, Debug, PartialEq)]
struct Left {
    /// Weights, optimizer state, gradients and center.
    pools: [Vec<u32>; 4],
    /// Running statistics of both networks.
    running: [Vec<u32>; 2],
    monitor: Vec<u32>,
}

fn left(cpu: &mut Cpu, plan: &Plan) -> Left {
    let n = plan.pools;
    let mut take = |pool, span: Span| {
        let mut values = vec![0.0; span.len];
        cpu.download(pool, span.at, &mut values);
        values.into_iter().map(f32::to_bits).collect()
    };
    let pools = [(Pool::Weights, n.weights), (Pool::Slots, n.slots), (Pool::Grads, n.grads)];
    let [weights, moments, grads] = pools.map(|(pool, len)| take(pool, Span { at: 0, len }));
    Left {
        pools: [weights, moments, grads, take(Pool::State, plan.targets.rows.offset.0)],
        running: [&plan.student, &plan.teacher].map(|net| take(Pool::State, net.running.0)),
        monitor: take(Pool::State, plan.monitor.0),
    }
}

/// One rank's device, filled as all others are.
fn device(plan: &Plan, group: Group) -> Cpu {
    let mut cpu = Run::random(*plan, Cpu::new(&NoOptions {}, plan.pools).expect("it fits the memory"), 5).o;
    cpu.join(group).expect("a CPU joins any group");
    cpu
}

/// The crops of these images in the order of the plan's pixels: the same for an image whatever the others are.
fn pixels(plan: &Plan, number: usize, ids: &[u32]) -> Vec<f32> {
    let (mut pixels, mut view) = (Vec::new(), 0);
    for group in plan.config.views.groups() {
        for _ in 0..group.count {
            for &id in ids {
                let seed = (1000 * number + 100 * view) as u64 + 10_000 * u64::from(id);
                pixels.extend(normals(seed, 3 * group.height * group.width).into_iter().map(|x| x as f32));
            }
            view += 1;
        }
    }
    pixels
}

/// Step `number` of rank `rank`, from the full batch's data; a pixel of image `poisoned` is infinite.
fn one_step(cpu: &mut Cpu, plan: &Plan, rank: usize, number: usize, poisoned: Option<usize>) -> Result<Left> {
    let images = plan.images_of(rank);
    let ids: Vec<u32> = images.clone().map(|image| image as u32).collect();
    let data: Vec<(Vec<f32>, Vec<f32>)> = ids
        .chunks(plan.config.micro_batch)
        .map(|ids| {
            let mut pixels = pixels(plan, number, ids);
            if let Some(at) = ids.iter().position(|&id| poisoned == Some(id as usize)) {
                pixels[at * 3 * 16 * 16] = f32::INFINITY;
            }
            let mut drop = vec![0.0; plan.drop.len()];
            plan.drop_path(&mut drop, 1, number as u32, ids, 0.3);
            (drop, pixels)
        })
        .collect();
    let h = Hyper { step: number as u64 + 1, step_last: number as u64 + 1, ..hyper_numbers() };
    let hyper = h.numbers(plan).map(|x| x as f32);
    let parts = data.iter().map(|(drop, pixels)| Part { drop: drop.clone(), pixels }).collect();
    cpu.step(plan, &Step { hyper, parts })?;
    let report = cpu.report(plan, 1, true)?.expect("a CPU has its report at once");
    let left = left(cpu, plan);
    assert_eq!(left.monitor, report.map(f32::to_bits));
    Ok(left)
}

/// All steps of all ranks: what each leaves, rank by rank, step by step.
fn run(plan: Plan, poisoned: Option<usize>) -> Vec<Vec<Left>> {
    let rank = |member| {
        let group = Group::from(member);
        let rank = group.rank();
        let mut cpu = device(&plan, group);
        let bad = |number| poisoned.filter(|_| number == BAD);
        (0..STEPS).map(|number| one_step(&mut cpu, &plan, rank, number, bad(number)).expect("all ranks live")).collect()
    };
    threads::run(plan.sharding.ranks, 2, rank).into_iter().map(|left| left.expect("no rank panics")).collect()
}

/// The same without any group.
fn alone(plan: Plan) -> Vec<Left> {
    let mut cpu = device(&plan, Group::default());
    (0..STEPS).map(|number| one_step(&mut cpu, &plan, 0, number, None).expect("a CPU does not fail")).collect()
}

fn number(left: &Left, which: usize) -> f32 {
    f32::from_bits(left.monitor[which])
}

#[test]
fn any_number_of_ranks_gives_the_same_bits() {
    for stream in [false, true] {
        // Micro-batches, shards, and ranks that share them: one or several micro-batches a shard, one or several shards a rank, and
        // shards that are no power of two.
        for (micro_batches, shards, ranks) in
            [(8, 8, &[1, 2, 4, 8][..]), (8, 4, &[1, 2, 4]), (8, 1, &[1]), (6, 3, &[1, 3]), (12, 6, &[1, 3])]
        {
            let one = alone(plan(micro_batches, stream, shards, 1));
            assert!(one.iter().all(|left| number(left, monitor::FINITE) == 1.0));
            assert!(one[0].pools[0] != one[1].pools[0], "the steps change something");
            for &ranks in ranks {
                for (rank, left) in run(plan(micro_batches, stream, shards, ranks), None).iter().enumerate() {
                    let what = format!("{shards} shards, rank {rank} of {ranks}, crops one after another: {stream}");
                    for (step, (one, left)) in one.iter().zip(left).enumerate() {
                        assert_eq!(one.monitor, left.monitor, "{what}: monitor of step {step}");
                        assert!(one == left, "{what}: step {step}");
                    }
                }
            }
        }
    }
}

prop_compose! {
    /// Ways to share a batch: micro-batches a shard, shards, and ranks with equally many of them, a power of two.
    fn sharings()(parts in 1usize..3, own in 0u32..3, ranks in 1usize..5) -> [usize; 3] {
        [parts, ranks << own, ranks]
    }
}

/// Every step of `config`, shared by ranks, leaves the bits that it leaves alone.
fn shared_as_alone(config: Config, shards: usize, ranks: usize) {
    let plan = |ranks| Plan::sharded(config, Sharding { shards, ranks }).expect("a valid plan");
    let one = alone(plan(1));
    assert!(one.iter().all(|left| number(left, monitor::FINITE) == 1.0), "{config:?}");
    for (rank, left) in run(plan(ranks), None).iter().enumerate() {
        for (step, (one, left)) in one.iter().zip(left).enumerate() {
            assert!(one == left, "{shards} shards, rank {rank} of {ranks}, step {step}: {config:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Targets that depend on the full batch: every rank's rows are in those of all others.
    #[test]
    fn targets_of_the_full_batch_are_shared(
        [parts, shards, ranks] in sharings(),
        (iterations, stream, mse) in (1u32..4, any::<bool>(), any::<bool>()),
    ) {
        let divergence = if mse { Divergence::SquaredError } else { Divergence::CrossEntropy };
        let objective = Objective { targets: Targets::SinkhornKnopp { iterations }, divergence };
        shared_as_alone(Config { objective, ..config(parts * shards, stream) }, shards, ranks);
    }

    /// Batch norms over the full batch, in micro-batches that are the shards, or over groups of images in a shard.
    #[test]
    fn batch_norms_are_shared(
        [parts, shards, ranks] in sharings(),
        (which, whole, sinkhorn, stream) in (0usize..3, any::<bool>(), any::<bool>(), any::<bool>()),
        (recompute, images) in (any::<bool>(), 1usize..3),
    ) {
        let (parts, bn_group) = if whole { (1, None) } else { (parts, Some(2)) };
        let targets = if sinkhorn { Targets::SinkhornKnopp { iterations: 2 } } else { Objective::PUBLISHED.targets };
        let config = normalized(which, [parts * shards, 2 * images], bn_group);
        let objective = Objective { targets, ..config.objective };
        shared_as_alone(Config { objective, recompute, stream_crops: stream && which == 0, ..config }, shards, ranks);
    }
}

/// Statistics over the full batch are that, however many shards it is cut into: the gradients and running statistics are those of one
/// micro-batch.
#[test]
fn shards_have_the_statistics_of_the_full_batch() {
    let numbers = |bits: &[u32]| bits.iter().copied().map(f32::from_bits).map(f64::from).collect::<Vec<_>>();
    let apart = |a: &[u32], b: &[u32]| {
        let (a, b) = (numbers(a), numbers(b));
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied())
    };
    for which in 0..3 {
        let first = |micro_batches, bn_group, shards| {
            let config = normalized(which, [micro_batches, 12 / micro_batches], bn_group);
            alone(Plan::sharded(config, Sharding { shards, ranks: 1 }).expect("a valid plan")).swap_remove(0)
        };
        let whole = first(1, None, 1);
        for shards in [2, 3, 6] {
            let found = first(shards, None, shards);
            let gradient = apart(&whole.pools[2], &found.pools[2]);
            assert!(gradient < 1e-5, "{which}, {shards} shards: the gradient is {gradient} away");
            for (net, (whole, found)) in whole.running.iter().zip(&found.running).enumerate() {
                let running = if whole.is_empty() { 0.0 } else { apart(whole, found) };
                assert!(running < 1e-6, "{which}, {shards} shards: running statistics {net} are {running} away");
            }
            // Those of a shard alone are others.
            let groups = first(shards, Some(12 / shards), shards);
            assert!(apart(&whole.pools[2], &groups.pools[2]) > 1e-2, "{which}, groups of {} images", 12 / shards);
        }
    }
}

/// What the number of shards does: the same step, rounded elsewhere.
#[test]
fn the_bits_depend_on_the_number_of_shards() {
    let [one, two, eight] = [1, 2, 8].map(|shards| alone(plan(8, false, shards, 1)).swap_remove(0));
    assert!(one.pools[2] != two.pools[2] && two.pools[2] != eight.pools[2]);
    for other in [two, eight] {
        for which in [monitor::LOSS, monitor::ENTROPY, monitor::GRAD_NORM, monitor::CENTER_NORM] {
            let (one, other) = (number(&one, which), number(&other, which));
            assert!((one - other).abs() <= 1e-5 * one.abs(), "{}: {one} and {other}", monitor::SLOTS[which].0);
        }
    }
}

for_backends!([reference: Reference<f32>, cpu: Cpu] [shards_are_added_by_halves]);

/// Any number of them; no op meets a span that is not its own.
fn shards_are_added_by_halves<F: Factory>(test: &str) {
    for shards in 1..=9 {
        let plan = plan(shards, false, shards, 1);
        assert_eq!(plan.shard_sums.len() > 0, shards > 1, "{test}: one shard keeps nothing aside");
        let (views, h) = (random_views(&plan, 9), hyper_numbers());
        let mut run = Run::random(plan, Checked::new(make_poisoned::<F>(plan.pools)), 3);
        let (span, sums) = (Span { at: 0, len: plan.table.len() }, plan.sums());
        let take = |run: &mut Run<_>| {
            let all: [Vec<f64>; 3] = [
                read_span(&mut run.o, Pool::Grads, span),
                read(&mut run.o, sums.teacher),
                read(&mut run.o, sums.losses),
            ];
            all.concat().into_iter().map(|x| x as f32).collect::<Vec<_>>()
        };
        let mut each = Vec::new();
        for part in 0..shards {
            run.set_hyper(&h);
            step::begin(&mut run.o, &plan);
            run.put_part(&views, part);
            step::micro_batch(&mut run.o, &plan);
            each.extend(take(&mut run));
        }
        let len = each.len() / shards;
        add_by_halves(&mut each, len);
        run.accumulate(&h, &views);
        let found = take(&mut run);
        assert!(found == each[..len], "{test}: {shards} shards");
        step::reduce(&mut run.o, &plan);
        assert!(found == take(&mut run), "{test}: alone, a sum over processes is what there is");
        step::commit(&mut run.o, &plan);
        assert_eq!(run.o.violation, None, "{test}: {shards} shards");
    }
}

/// No op of a lane accesses a span that is not its own, or a number that was not written.
#[test]
fn lanes_keep_to_themselves() {
    for which in 0..3 {
        let config = normalized(which, [4, 2], None);
        let objective = Objective { targets: Targets::SinkhornKnopp { iterations: 2 }, ..config.objective };
        let plan =
            Plan::sharded(Config { objective, ..config }, Sharding { shards: 4, ranks: 1 }).expect("a valid plan");
        let mut o = Checked::new(Cpu::new(&NoOptions {}, plan.pools).expect("it fits the memory"));
        for lane in (0..4).rev() {
            o.enter(Lane(lane));
            for (pool, len) in [(Pool::Acts, plan.pools.acts), (Pool::Stats, plan.pools.stats)] {
                o.write(pool, 0, &vec![f64::NAN; len]);
            }
        }
        let (views, mut run) = (random_views(&plan, 9), Run::random(plan, o, 3));
        for _ in 0..2 {
            run.step(&hyper_numbers(), &views);
            assert_eq!((run.o.violation, run.monitor(monitor::FINITE)), (None, 1.0));
        }
        // The image of the lane that has it is named.
        let mut views = views;
        let image = 5;
        views[0].pixels[image * 3 * 16 * 16] = f64::INFINITY;
        run.accumulate(&hyper_numbers(), &views);
        let (found, lane) = (run.o.violation.map(|(what, ..)| what), run.o.lane);
        let Some(Violation::NonFinite(access, index)) = found else { panic!("{found:?}") };
        let own = plan.locate(None, access.span, index).map(|(view, own)| (view, lane * plan.config.micro_batch + own));
        assert!(lane == image / 2 && own.is_none_or(|at| at == (0, image)), "{which}: lane {lane}, {own:?}");
    }
}

/// Numbers of a shard whose sum depends on the order.
fn numbers(shard: usize, len: usize) -> Vec<f32> {
    let number = |i: usize| ((shard * 7919 + i * 104_729) % 1009) as f32 * 10f32.powi((shard + i) as i32 % 7 - 3);
    (0..len).map(number).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However many shards and ranks there are, however long the sums and however large the messages: the bits of one process.
    #[test]
    fn sums_do_not_depend_on_who_forms_them(
        ranks in 1usize..8,
        own in 0u32..4,
        len in prop_oneof![0usize..40, 1000usize..1050, 2000usize..20_000],
        more in 0usize..5000,
    ) {
        let own = 1usize << own;
        let mut whole: Vec<f32> = (0..ranks * own).flat_map(|shard| numbers(shard, len)).collect();
        add_by_halves(&mut whole, len);
        let found = threads::run(ranks, 1, |mut member| {
            let first = member.rank() * own;
            let mut mine: Vec<f32> = (first..first + own).flat_map(|shard| numbers(shard, len)).collect();
            add_by_halves(&mut mine, len);
            mine.truncate(len);
            member.sum(&mut mine, &mut vec![f32::NAN; sum_scratch(ranks) + more]).expect("all ranks live");
            mine
        });
        for found in found {
            prop_assert!(found.expect("no rank panics") == whole[..len], "{} ranks of {} shards, {} numbers", ranks, own, len);
        }
    }
}

/// One rank's pixel spoils the step of all, and of all in the same way.
#[test]
fn what_is_not_finite_on_one_rank_halts_all() {
    let norms =
        |ranks| Plan::sharded(normalized(2, [8, 2], None), Sharding { shards: 8, ranks }).expect("a valid plan");
    let plans = [plan(8, false, 4, 4), norms(8), norms(4)];
    for (plan, poisoned) in plans.into_iter().flat_map(|plan| [0, 9, 15].map(|image| (plan, image))) {
        assert_eq!(plan.config.batch, 16);
        let ranks = run(plan, Some(poisoned));
        let good = alone(if plan.pools.grads == norms(1).pools.grads { norms(1) } else { self::plan(8, false, 4, 1) });
        for left in &ranks {
            assert!(left[..BAD] == good[..BAD], "the steps before");
            for halted in &left[BAD..] {
                assert_eq!((number(halted, monitor::FINITE), number(halted, monitor::HALTED)), (0.0, 1.0));
                let kept = |left: &Left| ([0, 1, 3].map(|pool| left.pools[pool].clone()), left.running.clone());
                assert!(kept(halted) == kept(&left[BAD - 1]), "a halted step changed something");
            }
        }
    }
}

/// A rank that leaves, by an error of its own or in a panic, is the end for all: an error that names it, now and ever after, and
/// nobody has taken half a step.
#[test]
fn a_rank_that_fails_fails_all() {
    let norms =
        |ranks| Plan::sharded(normalized(0, [8, 2], None), Sharding { shards: 8, ranks }).expect("a valid plan");
    for (plan, one, panics) in [
        (plan(8, true, 8, 4), self::plan(8, true, 8, 1), false),
        (plan(8, true, 8, 4), self::plan(8, true, 8, 1), true),
        (norms(4), norms(1), false),
    ] {
        let good = alone(one);
        let found = threads::run(4, 1, |member| {
            let group = Group::from(member);
            let rank = group.rank();
            let mut cpu = device(&plan, group);
            for number in 0..BAD {
                assert!(one_step(&mut cpu, &plan, rank, number, None).expect("all ranks live") == good[number]);
            }
            if rank == 1 {
                assert!(!panics, "as it should");
                return Vec::new();
            }
            let mut errors = Vec::new();
            for number in BAD..STEPS {
                errors.extend(one_step(&mut cpu, &plan, rank, number, None).err());
                let after = left(&mut cpu, &plan);
                for pool in [0, 1, 3] {
                    assert!(after.pools[pool] == good[BAD - 1].pools[pool], "a step that failed changed something");
                }
            }
            errors.extend(cpu.sync().err());
            errors
        });
        for (rank, found) in found.into_iter().enumerate() {
            match found {
                Err(_) => assert!(panics && rank == 1, "rank {rank} panicked"),
                Ok(errors) if rank == 1 => assert!(!panics && errors.is_empty()),
                Ok(errors) => {
                    assert_eq!(errors.len(), STEPS - BAD + 1, "rank {rank}");
                    for e in errors {
                        assert!(e.message.contains("rank 1 has left") && e.message.contains("of 4"), "{e}");
                    }
                }
            }
        }
    }
}
