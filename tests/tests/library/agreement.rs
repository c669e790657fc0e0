//! Two backends, the same model: every op of full training steps compared with the reference, on random plans and data. And what
//! every backend does when a step is not finite.

use dino_host::cpu::Cpu;
use dino_kernel::backend::wrap::Lockstep;
use dino_kernel::backend::{Memory, Update};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::mem::{Pool, Span};
use dino_kernel::model::{Backbone, Head, Vit};
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::optim::{Optimizer, TeacherRule};
use dino_kernel::plan::{Config, Plan};
use dino_kernel::scalars::monitor;
use dino_kernel::step::Hyper;
use proptest::prelude::*;
use tests::backend::{Factory, Reference, make_poisoned, read, read_span};
use tests::for_backends;
use tests::gpu::{OnGpu, f32_bound};
use tests::plans::{configs, ordinary};
use tests::training::{OPTIMIZERS, Run, TEACHERS, View, hyper_numbers, random_views};

// The reference agrees with itself, of course: the comparison is valid.
for_backends!([reference: Reference<f32>, cpu: Cpu] [agrees_with_the_reference_word_by_word]);

mod every_backend {
    use super::*;
    for_backends!([reference: Reference<f32>, cpu: Cpu, gpu: OnGpu<false, 256>, gpu_bf16: OnGpu<true, 256>] [
        a_step_that_is_not_finite_is_the_last,
    ]);
}

fn agrees_with_the_reference_word_by_word<F: Factory>(who: &str) {
    proptest!(tests::plans::cases(64), |(config in configs(), seed in 0..1u64 << 32, temp in 0.02f64..1.0)| {
        agree::<F>(who, config, seed, temp);
    });
}

fn agree<F: Factory>(who: &str, config: Config, seed: u64, teacher_temp: f64) {
    let plan = Plan::new(config).expect("a sound plan");
    let both = Lockstep::new(make_poisoned::<Reference<f32>>(plan.pools), make_poisoned::<F>(plan.pools));
    let mut run = Run::random(plan, both, seed);
    run.step(&Hyper { teacher_temp, student_temp: 0.1, ..hyper_numbers() }, &random_views(&plan, seed));
    // The longest sum: the tokens of a weight gradient, or the prototypes.
    let bound = f32_bound(plan.config.backbone.cost(&plan.crops()).max(config.head.prototypes) as f64);
    let worst = run.o.worst().expect("ops were called");
    assert!(worst.error <= bound, "{who}: {worst:?} exceeds {bound:e} under {config:?}");
    assert_eq!(run.monitor(monitor::FINITE), 1.0, "{who}");
}

/// Crops of more tokens than the CPU keeps scores of at once, and fewer crops than threads, which then share out a crop's queries.
#[test]
fn long_crops_agree_on_any_number_of_threads() {
    let backbone = Backbone::Vit(Vit {
        image: 68,
        patch: 4,
        channels: 1,
        dim: 12,
        depth: 2,
        heads: 2,
        mlp: 20,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let head =
        Head { inp: 12, layers: 2, hidden: 16, bottleneck: 8, prototypes: 40, train_gain: false, ..Head::PUBLISHED };
    let views = Crops::one(Group { count: 2, height: 68, width: 69 });
    let config = ordinary(backbone, head, views, [1, 1]);
    for threads in [1, 3, 16] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| agree::<Cpu>("cpu", config, 5, 0.04));
    }
}

/// What is not finite on the reference backend is not finite on the CPU: no fast op makes a number of it.
#[test]
fn the_cpu_makes_no_number_of_what_is_none() {
    let poisons = prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
    let spread = std::cell::Cell::new(0);
    proptest!(tests::plans::cases(64), |(config in configs(), seed in 0..1u64 << 32, poison in poisons,
        view in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), in_weights in any::<bool>())| {
        let plan = Plan::new(config).expect("a sound plan");
        let mut views = random_views(&plan, seed);
        if !in_weights {
            let pixels = &mut views[view.index(plan.views())].pixels;
            let at = at.index(pixels.len());
            pixels[at] = poison;
        }
        let weight = in_weights.then(|| at.index(plan.table.len()));
        let reference = after::<Reference<f32>>(plan, seed, &views, weight, poison);
        let cpu = after::<Cpu>(plan, seed, &views, weight, poison);
        for ((pool, reference), (_, cpu)) in reference.iter().zip(&cpu) {
            for (i, (r, c)) in reference.iter().zip(cpu).enumerate() {
                prop_assert!(r.is_finite() || !c.is_finite(), "{:?} {}: {} became {} under {:?}", pool, i, r, c, config);
            }
        }
        let grads = &reference[2].1;
        spread.set(spread.get() + grads.iter().filter(|g| !g.is_finite()).count());
    });
    assert!(spread.get() > 1000, "{} gradients that are not finite: too few to show anything", spread.get());
}

/// The pools after the forward and backward passes of a batch, of which one weight is perhaps `poison`.
fn after<F: Factory>(
    plan: Plan,
    seed: u64,
    views: &[View],
    weight: Option<usize>,
    poison: f64,
) -> Vec<(Pool, Vec<f64>)> {
    let mut run = Run::random(plan, make_poisoned::<F>(plan.pools), seed);
    if let Some(at) = weight {
        run.o.write(Pool::Weights, at, &[poison]);
    }
    run.accumulate(&hyper_numbers(), views);
    let n = plan.pools;
    let pools = [(Pool::Acts, n.acts), (Pool::Stats, n.stats), (Pool::Grads, n.grads), (Pool::State, n.state)];
    pools.map(|(pool, len)| (pool, read_span(&mut run.o, pool, Span { at: 0, len }))).into()
}

/// Everything a step may change for good.
fn kept<O: Update + Memory>(run: &mut Run<O>) -> Vec<f64> {
    let n = run.plan.pools;
    let mut all = read_span(&mut run.o, Pool::Weights, Span { at: 0, len: n.weights });
    all.extend(read_span(&mut run.o, Pool::Slots, Span { at: 0, len: n.slots }));
    all.extend(read(&mut run.o, run.plan.targets.rows.offset));
    all
}

/// A host that reads reports late has queued further steps by then: they change nothing, until the host clears HALTED.
fn a_step_that_is_not_finite_is_the_last<F: Factory>(who: &str) {
    for (optimizer, teacher) in OPTIMIZERS.into_iter().zip(TEACHERS.into_iter().cycle()) {
        a_step_that_is_not_finite_changes_nothing::<F>(who, optimizer, teacher);
    }
}

fn a_step_that_is_not_finite_changes_nothing<F: Factory>(who: &str, optimizer: Optimizer, teacher: TeacherRule) {
    let backbone = Backbone::Vit(Vit {
        image: 8,
        patch: 4,
        channels: 3,
        dim: 12,
        depth: 2,
        heads: 3,
        mlp: 24,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let head =
        Head { inp: 12, layers: 2, hidden: 16, bottleneck: 8, prototypes: 40, train_gain: true, ..Head::PUBLISHED };
    let views = Crops::one(Group { count: 2, height: 8, width: 8 });
    let config = Config { optimizer, teacher, drop_path: true, ..ordinary(backbone, head, views, [4, 2]) };
    let plan = Plan::new(config).expect("a sound plan");
    let mut run = Run::random(plan, make_poisoned::<F>(plan.pools), 1);
    let (h, good) = (hyper_numbers(), random_views(&plan, 2));
    let mut bad = good.clone();
    bad[1].pixels[5] = f64::INFINITY;

    run.step(&h, &good);
    assert_eq!((run.monitor(monitor::FINITE), run.monitor(monitor::HALTED)), (1.0, 0.0), "{who}");
    let before = kept(&mut run);
    for views in [&bad, &good, &good] {
        run.step(&h, views);
        assert_eq!((run.monitor(monitor::FINITE), run.monitor(monitor::HALTED)), (0.0, 1.0), "{who}");
        assert!(kept(&mut run) == before, "{who}: a halted step changed something");
    }
    run.o.write(Pool::State, plan.monitor.0.at + monitor::HALTED, &[0.0]);
    run.step(&h, &good);
    assert_eq!((run.monitor(monitor::FINITE), run.monitor(monitor::HALTED)), (1.0, 0.0), "{who}");
    assert!(kept(&mut run) != before, "{who}");
}
