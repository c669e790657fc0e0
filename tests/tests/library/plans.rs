//! Plans: accepted exactly when they make sense, valid when accepted, never a panic.

use dino_host::cpu::{Cpu, NoOptions};
use dino_host::device::Device;
use dino_kernel::backend::wrap::{Checked, Violation};
use dino_kernel::backend::{Memory, Op};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::mem::{Cursor, Pool, Span};
use dino_kernel::model::{Backbone, Head, Output, Pass, Vit};
use dino_kernel::objective::{Objective, Targets};
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::optim::{adamw, lars, sgd};
use dino_kernel::params::ParamGroup;
use dino_kernel::plan::{Config, FeaturePlan, Plan, PlanError, Sharding};
use dino_kernel::scalars::{BLOCK, NUMBERS, WITHHELD, hyper, monitor};
use dino_kernel::step;
use proptest::prelude::*;
use std::cell::Cell;
use std::ops::Range;
use tests::backend::{Reference, make_poisoned, read, read_span};
use tests::plans::{cases, objectives, ordinary};
use tests::training::{Net, Run, hyper_numbers, normals, random_views};

/// Something sensible, now and then something that must be refused.
fn mostly(good: Range<usize>, bad: usize) -> impl Strategy<Value = usize> {
    prop_oneof![40 => good, 1 => Just(bad)]
}

/// Small configurations, most of them valid.
fn small() -> impl Strategy<Value = Config> {
    let interpolation = prop_oneof![Just(Interpolation::Published), Just(Interpolation::Size)];
    let width = (1usize..4, 1usize..4, mostly(0..1, 1));
    let vit =
        (mostly(0..6, usize::MAX), 1usize..4, mostly(1..3, 0), width, mostly(1..4, 0), mostly(1..7, 0), interpolation);
    let head = (prop_oneof![mostly(1..4, 0), mostly(4..9, 9)], 1usize..6, 2usize..6, 1usize..80, any::<bool>());
    let side = || mostly(0..7, usize::MAX);
    let groups = prop::collection::vec((mostly(1..3, 0), side(), side()), 1..4);
    let groups = prop_oneof![40 => groups, 1 => Just(Vec::new())];
    let none = Objective { targets: Targets::SinkhornKnopp { iterations: 0 }, ..Objective::PUBLISHED };
    let objective = prop_oneof![40 => prop::sample::select(objectives()), 1 => Just(none)];
    (vit, head, groups, (1usize..4, mostly(0..1, 1)), mostly(1..4, 0), any::<(bool, bool, bool)>(), objective).prop_map(
        |(
            (image, patch, channels, (heads, each, odd), depth, mlp, positions),
            (layers, hidden, bottleneck, prototypes, train_gain),
            groups,
            (parts, over),
            micro_batch,
            (drop_path, recompute, stream_crops),
            objective,
        )| {
            // Sides are patches and some surplus pixels; the sentinel becomes one pixel too few.
            let side = |over: usize| patch.wrapping_add(over);
            let (image, batch) = (side(image), (parts * micro_batch + over).max(1));
            let dim = heads * each + odd;
            let vit = Vit { image, patch, channels, dim, depth, heads, mlp, positions, eps: EPS };
            let backbone = Backbone::Vit(vit);
            let head = Head { inp: dim, layers, hidden, bottleneck, prototypes, train_gain, ..Head::PUBLISHED };
            let group = |(count, height, width)| Group { count, height: side(height), width: side(width) };
            let views = groups.into_iter().map(group).fold(Crops::EMPTY, Crops::with);
            let ordinary = ordinary(backbone, head, views, [batch, micro_batch]);
            Config { drop_path, recompute, stream_crops, objective, ..ordinary }
        },
    )
}

/// What `Plan::new` accepts, stated once more. (Sizes are small here.)
fn valid_backbone(backbone: &Backbone, crops: &Crops) -> bool {
    let Backbone::Vit(v) = backbone else { panic!("a ViT") };
    v.channels > 0
        && v.dim > 0
        && v.mlp > 0
        && v.depth > 0
        && v.dim.is_multiple_of(v.heads)
        && v.image >= v.patch
        && crops.groups().iter().all(|g| g.count > 0 && g.height.min(g.width) >= v.patch)
}

fn valid(c: &Config) -> bool {
    valid_backbone(&c.backbone, &c.views)
        && (1..=8).contains(&c.head.layers)
        && c.micro_batch > 0
        && c.batch.is_multiple_of(c.micro_batch)
        && c.objective.targets != Targets::SinkhornKnopp { iterations: 0 }
        && c.views.count() >= 2
}

/// Accepted or refused as it should be; where accepted, a step meets no violation, fills its pools to the last element, and its
/// gradient predicts the loss along a random direction, which it would not if two live ranges shared memory.
#[test]
fn a_plan_is_refused_or_valid() {
    let accepted = Cell::new(0);
    proptest!(cases(400), |(config in small(), seed in 0u64..1000)| {
            let plan = Plan::new(config);
            prop_assert_eq!(plan.is_ok(), valid(&config), "{:?}", plan.err());
            let Ok(plan) = plan else { return Ok(()) };
            accepted.set(accepted.get() + 1);
            let mut run = Run::random(plan, Checked::new(make_poisoned::<Reference<f64>>(plan.pools)), seed);
            let (views, h) = (random_views(&plan, seed + 20), hyper_numbers());

            run.accumulate(&h, &views);
            for (pool, len) in [(Pool::Acts, plan.pools.acts), (Pool::Stats, plan.pools.stats)] {
                let content = read_span(&mut run.o, pool, Span { at: 0, len });
                let used = content.iter().rposition(|x| !x.is_nan()).map_or(0, |i| i + 1);
                prop_assert_eq!(used.next_multiple_of(Cursor::ALIGN), len, "{:?} is as large as needed", pool);
            }
            let state = plan.monitor.0;
            prop_assert_eq!((state.at + state.len).next_multiple_of(Cursor::ALIGN), plan.pools.state);
            prop_assert_eq!(plan.pools.weights, 2 * plan.table.len());
            prop_assert_eq!((plan.pools.grads, plan.pools.slots), (plan.table.len(), 2 * plan.table.len()));

            run.finish_grads();
            let specs: Vec<_> = run.specs().into_iter().filter(|s| !s.frozen).collect();
            let mut slope = 0.0;
            let mut size = 0.0;
            let directions: Vec<Vec<f64>> = specs
                .iter()
                .enumerate()
                .map(|(i, spec)| normals(seed + 1000 + i as u64, spec.at.len()))
                .collect();
            for (spec, direction) in specs.iter().zip(&directions) {
                for (g, d) in run.grad(spec).iter().zip(direction) {
                    slope += g * d;
                    size += g * g;
                }
            }
            let start: Vec<Vec<f64>> = specs.iter().map(|spec| run.parameter(Net::Student, spec)).collect();
            let mut at = |by: f64| {
                for ((spec, start), direction) in specs.iter().zip(&start).zip(&directions) {
                    let moved: Vec<f64> = start.iter().zip(direction).map(|(x, d)| x + by * d).collect();
                    run.o.write(Pool::Weights, spec.at.0.at, &moved);
                }
                run.accumulate(&h, &views);
                run.loss()
            };
            // A row of few columns that are nearly equal bends sharply under its norm: there a shorter step sees the slope.
            let found = [1e-5, 1e-6, 1e-7].map(|h| (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h));
            at(0.0);
            let near = |found: &f64| (found - slope).abs() <= 1e-6 * size.sqrt() + 1e-9;
            prop_assert!(found.iter().any(near), "along a direction {found:?}, by the gradient {slope}");

            step::commit(&mut run.o, &plan);
            prop_assert_eq!(run.o.violation, None);
            prop_assert_eq!(run.monitor(monitor::FINITE), 1.0);
    });
    println!("{} plans accepted", accepted.get());
    assert!(accepted.get() >= 100, "{} accepted: too few to show anything", accepted.get());
}

/// A forward pass: the same, in both forms, and the forms agree.
#[test]
fn a_feature_plan_is_refused_or_valid() {
    let accepted = Cell::new(0);
    proptest!(cases(400), |(config in small(), queries in 0usize..5, seed in 0u64..1000)| {
            let (backbone, crops) = (config.backbone, config.views);
            let good = valid_backbone(&backbone, &crops) && !crops.is_empty();
            let Backbone::Vit(vit) = backbone else { panic!("a ViT") };
            let mut class = Vec::new();
            for output in [Output::Class, Output::Dense] {
                let queries = if output == Output::Dense { queries } else { 0 };
                let plan = FeaturePlan::new(backbone, crops, output, queries);
                prop_assert_eq!(plan.is_ok(), good, "{:?}", plan.err());
                let Ok(plan) = plan else { continue };
                accepted.set(accepted.get() + 1);
                let mut o = Checked::new(make_poisoned::<Reference<f64>>(plan.pools));
                let mut state = vec![0.0f64; plan.pools.state];
                plan.initial_state(&mut state);
                o.write(Pool::State, 0, &state);
                o.write(Pool::Weights, 0, &normals(seed, plan.pools.weights));
                o.write(Pool::Acts, plan.pixels.0.at, &normals(seed + 1, plan.pixels.len()));
                plan.forward(&mut o);
                if plan.attention.len() > 0 {
                    plan.pass.attention(&mut o, plan.attention, queries);
                    let rows: Vec<usize> = crops.tokens(vit.patch).each().map(|(_, n)| n).collect();
                    let attention = read(&mut o, plan.attention);
                    let mut at = 0;
                    for tokens in rows {
                        for _ in 0..queries.min(tokens) * vit.heads {
                            let sum: f64 = attention[at..][..tokens].iter().sum();
                            prop_assert!((sum - 1.0).abs() < 1e-12, "attention row sums to {}", sum);
                            at += tokens;
                        }
                    }
                    prop_assert_eq!(at, attention.len());
                }
                prop_assert_eq!(o.violation, None);
                let used = read_span(&mut o, Pool::Acts, Span { at: 0, len: plan.pools.acts });
                let used = used.iter().rposition(|x| !x.is_nan()).map_or(0, |i| i + 1);
                prop_assert_eq!(used.next_multiple_of(Cursor::ALIGN), plan.pools.acts, "acts are as many as needed");
                let y = read(&mut o, plan.pass.y());
                match output {
                    Output::Class => class = y,
                    Output::Dense => {
                        let Pass::Vit(pass) = plan.pass else { panic!("a ViT") };
                        let rows = pass.acts.tokens();
                        let dense: Vec<f64> =
                            rows.each().flat_map(|(first, _)| y[first * vit.dim..][..vit.dim].to_vec()).collect();
                        for (a, b) in class.iter().zip(&dense) {
                            prop_assert!((a - b).abs() <= 1e-9 * b.abs().max(1.0), "class form {}, dense form {}", a, b);
                        }
                    }
                }
            }
    });
    println!("{} plans accepted", accepted.get());
    assert!(accepted.get() >= 100, "{} accepted: too few to show anything", accepted.get());
}

fn hostile_size() -> impl Strategy<Value = usize> {
    let corner =
        prop::sample::select(vec![0, 1, 2, 3, 16, usize::MAX, usize::MAX - 1, usize::MAX / 2, isize::MAX as usize]);
    prop_oneof![3 => corner, 3 => (0u32..usize::BITS).prop_map(|b| 1usize << b), 2 => 0usize..100, 1 => any::<usize>()]
}

/// Whatever is asked for: an answer, without panic and at once. (What is accepted need not fit this machine.)
#[test]
fn hostile_sizes_are_answered() {
    let accepted = Cell::new(0);
    proptest!(cases(20_000), |(sizes in prop::array::uniform16(hostile_size()),
        groups in prop::collection::vec((hostile_size(), hostile_size(), hostile_size()), 0..9),
        // Only a few sizes are hostile at a time, or every plan would fail at its first check.
        tame in prop::array::uniform16(prop::bool::weighted(0.8)), (recompute, stream_crops) in any::<(bool, bool)>(),
        objective in prop::sample::select(objectives()))| {
            let usual = [8, 2, 3, 4, 2, 2, 8, 4, 3, 8, 4, 16, 4, 2, 3, 1];
            let n: [usize; 16] = std::array::from_fn(|i| if tame[i] { usual[i] } else { sizes[i] });
            let group = |(count, height, width)| Group { count, height, width };
            let views = if tame[15] {
                Crops::one(group((2, 8, 8))).with(group((n[13], n[15].max(2), 4)))
            } else {
                groups.into_iter().take(8).map(group).fold(Crops::EMPTY, Crops::with)
            };
            let [image, patch, channels, dim, depth, heads, mlp, inp, layers, hidden, bottleneck, prototypes, batch, micro_batch, ..] = n;
            let positions = Interpolation::Published;
            let backbone = Backbone::Vit(Vit { image, patch, channels, dim, depth, heads, mlp, positions, eps: EPS });
            let head = Head { inp, layers, hidden, bottleneck, prototypes, train_gain: true, ..Head::PUBLISHED };
            let ordinary = ordinary(backbone, head, views, [batch, micro_batch]);
            let config = Config { drop_path: true, recompute, stream_crops, objective, ..ordinary };
            if let Ok(plan) = Plan::new(config) {
                accepted.set(accepted.get() + 1);
                prop_assert!(plan.pools.total() > 0 && plan.parts() > 0);
                prop_assert!(plan.pools.weights >= 2 * prototypes * bottleneck, "memory for the prototypes");
                // What a backend keeps beside the pools goes by the same sizes.
                let bytes = Cpu::memory(&NoOptions {}, plan.pools).into_iter().map(|item| item.1);
                prop_assert!(bytes.into_iter().try_fold(0u64, u64::checked_add).is_some_and(|all| all < 1 << 63));
                let h = hyper_numbers().numbers(&plan);
                prop_assert!(h.iter().all(|x| x.is_finite()));
            }
            for output in [Output::Class, Output::Dense] {
                if let Ok(plan) = FeaturePlan::new(backbone, views, output, sizes[0]) {
                    prop_assert!(plan.pools.total() > 0);
                }
            }
    });
    println!("{} plans accepted", accepted.get());
    assert!(accepted.get() >= 1000, "{} accepted: too few to show anything", accepted.get());
}

/// Products that only overflow when two large sizes meet, each of them harmless alone.
#[test]
fn sizes_that_overflow_are_refused() {
    let vit = |image, depth| {
        Backbone::Vit(Vit {
            image,
            patch: 1,
            channels: 1,
            dim: 1,
            depth,
            heads: 1,
            mlp: 1,
            positions: Interpolation::Published,
            eps: EPS,
        })
    };
    let head =
        Head { inp: 1, layers: 1, hidden: 1, bottleneck: 1, prototypes: 1, train_gain: false, ..Head::PUBLISHED };
    let plan = |backbone, height| {
        let views = Crops::one(Group { count: 2, height, width: 1 });
        let config = Config { recompute: false, ..ordinary(backbone, head, views, [1, 1]) };
        Plan::new(config).map(|p| p.pools)
    };
    let (tall, wide) = (1 << 45, 1 << 27);
    assert!(plan(vit(wide, 1), 2).is_ok() && plan(vit(2, 1), tall).is_ok());
    assert_eq!(plan(vit(wide, 1), tall), Err(PlanError::TooLarge), "position matrices");
    let features = |height, queries| {
        let crops = Crops::one(Group { count: 2, height, width: 1 });
        FeaturePlan::new(vit(2, 1), crops, Output::Dense, queries).map(|p| p.pools)
    };
    assert!(features(tall, 1).is_ok());
    assert_eq!(features(tall, usize::MAX), Err(PlanError::TooLarge), "attention rows");
    // Depth is a number, not a loop.
    assert!(plan(vit(2, 1 << 48), 2).is_ok());
}

/// The generator's counter has 12 bits for the view and for twice the block: what it cannot tell apart is refused, not drawn twice.
#[test]
fn more_views_or_dropped_blocks_than_the_generator_tells_apart_are_refused() {
    let plan = |views: usize, depth, drop_path| {
        let backbone = Backbone::Vit(Vit {
            image: 1,
            patch: 1,
            channels: 1,
            dim: 1,
            depth,
            heads: 1,
            mlp: 1,
            positions: Interpolation::Published,
            eps: EPS,
        });
        let head =
            Head { inp: 1, layers: 1, hidden: 1, bottleneck: 1, prototypes: 1, train_gain: false, ..Head::PUBLISHED };
        let group = |count| Group { count, height: 1, width: 1 };
        let views = Crops::one(group(2)).with(group(views - 2));
        let config = Config { drop_path, recompute: false, ..ordinary(backbone, head, views, [1, 1]) };
        Plan::new(config).map(|plan| {
            if drop_path {
                let mut scales = vec![0.0; plan.drop.len()];
                plan.drop_path(&mut scales, 0, 0, &[0], 0.5);
            }
        })
    };
    assert_eq!((plan(4095, 1, false), plan(3, 2047, true), plan(3, 2048, false)), (Ok(()), Ok(()), Ok(())));
    assert_eq!(plan(4096, 1, false), Err(PlanError::Streams { views: 4096, depth: 1 }));
    assert_eq!(plan(3, 2048, true), Err(PlanError::Streams { views: 3, depth: 2048 }));
}

/// Shards and ranks that go into each other are accepted, all others are refused; ranks take the full batch, each image once.
#[test]
fn a_batch_is_dealt_to_ranks_in_equal_shares_or_refused() {
    let group = |count| Group { count, height: 4, width: 4 };
    let backbone = Backbone::Vit(Vit {
        image: 4,
        patch: 4,
        channels: 1,
        dim: 4,
        depth: 1,
        heads: 1,
        mlp: 4,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let head =
        Head { inp: 4, layers: 1, hidden: 4, bottleneck: 4, prototypes: 8, train_gain: false, ..Head::PUBLISHED };
    let mut accepted = 0;
    for micro_batches in [1, 2, 6, 12, 16] {
        let config = ordinary(backbone, head, Crops::one(group(2)), [3 * micro_batches, 3]);
        for (shards, ranks) in (0..=17).flat_map(|shards| (0..=17).map(move |ranks| (shards, ranks))) {
            let fits = |n: usize, into: usize| into > 0 && n.is_multiple_of(into);
            let want = match () {
                () if shards == 0 || ranks == 0 => Err(PlanError::Zero("the number of shards and of processes")),
                () if !fits(micro_batches, shards) => Err(PlanError::Shards { micro_batches, shards }),
                () if !fits(shards, ranks) || (ranks > 1 && !(shards / ranks).is_power_of_two()) => {
                    Err(PlanError::Ranks { shards, ranks })
                }
                () => Ok(()),
            };
            let plan = Plan::sharded(config, Sharding { shards, ranks });
            assert_eq!(plan.map(|_| ()), want, "{micro_batches} micro-batches, {shards} shards, {ranks} ranks");
            let Ok(plan) = plan else { continue };
            accepted += 1;
            assert_eq!(plan.parts() * ranks, micro_batches);
            assert_eq!(plan.shard_parts() * shards, micro_batches);
            let images: Vec<usize> = (0..ranks).flat_map(|rank| plan.images_of(rank)).collect();
            assert!(images.into_iter().eq(0..config.batch));
            // A rank with one shard keeps nothing aside: its plan is that of a process alone.
            let alone = Plan::new(config).expect("a valid plan").pools;
            assert_eq!(plan.pools == alone, shards == ranks);
        }
    }
    assert_eq!(accepted, 42);
    // Targets that depend on the full batch: every process has the rows of all, and alone they are its own.
    let whole = Objective { targets: Targets::SinkhornKnopp { iterations: 3 }, ..Objective::PUBLISHED };
    let config = Config { objective: whole, ..ordinary(backbone, head, Crops::one(group(2)), [12, 3]) };
    for ranks in [1, 2, 4] {
        let plan = Plan::sharded(config, Sharding { shards: 4, ranks }).expect("a valid plan");
        let rows = plan.targets.batch;
        assert_eq!((rows.z.len(), rows.own.len()), (12 * 2 * 4, 12 * 2 * 4 / ranks));
        assert_eq!(rows.z == rows.own, ranks == 1);
    }
    let large = Plan::new(Config { micro_batch: 1, batch: 1 << 62, ..config }).map(|_| ());
    assert_eq!(large, Err(PlanError::TooLarge), "the rows of the batch");
    // What memory cannot have is refused before it is added up.
    let config = ordinary(backbone, head, Crops::one(group(2)), [1 << 62, 1]);
    let sharded = |shards| Plan::sharded(config, Sharding { shards, ranks: 1 });
    assert!(sharded(1 << 62).is_ok_and(|plan| plan.pools.state > 62 * plan.table.len()));
    let head = Head { prototypes: 1 << 53, ..head };
    let config = Config { head, ..config };
    assert!(Plan::new(config).is_ok());
    assert_eq!(Plan::sharded(config, Sharding { shards: 1 << 62, ranks: 1 }).map(|_| ()), Err(PlanError::TooLarge));
}

// --------------------------------------------------------------------------------------------- where a non-finite value came from

/// One crop's stochastic-depth scale is not a number: the first op that meets it is in that crop's pass, and its row is that crop's.
#[test]
fn a_fault_is_traced_to_its_crop() {
    let backbone = Backbone::Vit(Vit {
        image: 8,
        patch: 4,
        channels: 3,
        dim: 12,
        depth: 2,
        heads: 3,
        mlp: 20,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let head =
        Head { inp: 12, layers: 2, hidden: 16, bottleneck: 8, prototypes: 40, train_gain: true, ..Head::PUBLISHED };
    let group = |count, height, width| Group { count, height, width };
    let views = Crops::one(group(2, 8, 8)).with(group(3, 4, 4)).with(group(2, 8, 4));
    let micro_batch = 3;
    for stream_crops in [false, true] {
        let ordinary = ordinary(backbone, head, views, [3, micro_batch]);
        let config = Config { drop_path: true, stream_crops, ..ordinary };
        let plan = Plan::new(config).expect("a valid plan");
        let mut before = 0;
        for rows in plan.passes().map(|pass| pass.dims.rows()) {
            for row in 0..rows {
                // Of the first block's first branch.
                let at = plan.drop.0.at + backbone.branches() * before + row;
                let found = first_violation(plan, Pool::State, at);
                let (view, image) = ((before + row) / micro_batch, (before + row) % micro_batch);
                assert_eq!(found, (Op::add_scaled, Some((view, image))), "in several passes: {stream_crops}");
            }
            before += rows;
        }
        // A class token that is no number is met by the teacher and the student of every crop, by the first crop first.
        let class = plan.table.len() + specs_at(&plan, "cls_token");
        assert_eq!(first_violation(plan, Pool::Weights, class), (Op::embed, Some((0, 0))), "the teacher's");
        assert_eq!(first_violation(plan, Pool::Weights, specs_at(&plan, "cls_token")), (Op::embed, Some((0, 0))));
        // Nor does a position have a crop, though its table's length may be a multiple of the crops.
        assert_eq!(first_violation(plan, Pool::Weights, specs_at(&plan, "pos_embed") + 12).1, None);
    }
}

/// Where a parameter of the student begins.
fn specs_at(plan: &Plan, name: &str) -> usize {
    let mut at = None;
    plan.table.visit(|spec| at = at.or((spec.name.to_string() == name).then_some(spec.at.0.at)));
    at.expect("a parameter of that name")
}

/// The first op that makes something that is no number of the NaN at `at`, and the crop it is located in.
fn first_violation(plan: Plan, pool: Pool, at: usize) -> (Op, Option<(usize, usize)>) {
    let mut run = Run::random(plan, Checked::new(make_poisoned::<Reference<f64>>(plan.pools)), 1);
    run.set_hyper(&hyper_numbers());
    run.put_part(&random_views(&plan, 2), 0);
    run.o.write(pool, at, &[f64::NAN]);
    step::begin(&mut run.o, &plan);
    let (mut during, before) = (None, run.o.violation.is_some());
    step::micro_batch_each(&mut run.o, &plan, |o, pass| {
        if o.violation.is_some() && during.is_none() {
            during = Some(pass);
        }
    });
    let Some((Violation::NonFinite(access, index), op, _)) = run.o.violation else { panic!("{:?}", run.o.violation) };
    let crop = during.filter(|_| !before).and_then(|pass| plan.locate(pass, access.span, index));
    (op, crop)
}

/// The key of a run reaches the plan's objective, and the objective the numbers of every step.
#[test]
fn the_center_has_the_momentum_of_its_key() {
    let config = dino_host::config::Config { center_momentum: 0.75, ..dino_host::config::Config::small() };
    let plan = config.resolve().and_then(|config| config.plan(true)).expect("a valid plan");
    assert_eq!(plan.config.objective.targets, Targets::Centered { momentum: 0.75 });
    assert_eq!(hyper_numbers().numbers(&plan)[hyper::CENTER_RATE], 0.25);
}

/// The lists of a CUDA source: names and values.
fn enums(source: &str) -> Vec<Vec<(&str, usize)>> {
    let lists = source.split("enum {").skip(1).map(|list| &list[..list.find('}').expect("an end of the list")]);
    lists
        .map(|list| {
            let mut found: Vec<(&str, usize)> = Vec::new();
            for item in list.split(',') {
                let (name, value) = item.split_once('=').unwrap_or((item, ""));
                let known = found.iter().find(|(name, _)| *name == value.trim()).map(|(_, value)| *value);
                let next = found.last().map_or(0, |(_, value)| value + 1);
                found.push((name.trim(), value.trim().parse().ok().or(known).unwrap_or(next)));
            }
            found
        })
        .collect()
}

/// The CUDA sources number the scalars of a step, and the numbers of an optimizer, by an `enum` each.
#[test]
fn kernels_read_scalars_from_the_same_slots() {
    let block = [("NUMBERS", NUMBERS), ("WITHHELD", WITHHELD), ("BLOCK", BLOCK)];
    let scalars = enums(include_str!("../../../dino-gpu/kernels/scalars.cuh"));
    assert_eq!(scalars, [hyper::SLOTS, &block, monitor::SLOTS]);
    assert_eq!(hyper::LEN, hyper::GROUPS + ParamGroup::ALL.len() * BLOCK);
    assert_eq!(enums(include_str!("../../../dino-gpu/kernels/adamw.cu")), [adamw::block::SLOTS]);
    assert_eq!(enums(include_str!("../../../dino-gpu/kernels/sgd.cu")), [sgd::block::SLOTS]);
    assert_eq!(enums(include_str!("../../../dino-gpu/kernels/lars.cu")), [lars::block::SLOTS]);
    assert!(ParamGroup::ALL.iter().enumerate().all(|(i, group)| *group as usize == i));
}
