//! A batch may be split into micro-batches, passes and shards in any way, and a pass may keep much or little.

use dino_host::cpu::Cpu;
use dino_kernel::crops::{Crops, Group};
use dino_kernel::model::{Backbone, Head, Vit};
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::plan::{Config, Plan, Sharding};
use dino_kernel::real::Real;
use dino_kernel::step::{self, Hyper};
use tests::backend::{Factory, Reference, make_poisoned, read};
use tests::for_backends;
use tests::plans::{objectives, ordinary};
use tests::training::{Run, hyper_numbers, random_views};

for_backends!([reference_f32: Reference<f32>, reference_f64: Reference<f64>, cpu: Cpu] [
    any_split_of_a_batch, any_split_with_every_objective, computing_again_changes_no_bit,
]);

/// How far two splits may differ, by what the backend computes in.
trait Tolerance {
    const GRADIENT: f64;
}

impl<T: Real> Tolerance for Reference<T> {
    const GRADIENT: f64 = if size_of::<T>() == 4 { 1e-6 } else { 1e-14 };
}

impl Tolerance for Cpu {
    const GRADIENT: f64 = 1e-6;
}

/// The gradients, the teacher's sum and the center do not depend on how a batch and its crops were split, with stochastic depth drawn by
/// image and view.
fn any_split_of_a_batch<F: Factory + Tolerance>(test: &str) {
    let backbone = Backbone::Vit(Vit {
        image: 12,
        patch: 4,
        channels: 3,
        dim: 24,
        depth: 3,
        heads: 3,
        mlp: 48,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let head =
        Head { inp: 24, layers: 3, hidden: 32, bottleneck: 16, prototypes: 200, train_gain: true, ..Head::PUBLISHED };
    let group = |count, height, width| Group { count, height, width };
    let views = Crops::one(group(2, 12, 12)).with(group(3, 8, 8)).with(group(2, 4, 8)).with(group(1, 8, 13));
    let batch = 8;
    let whole = Config { drop_path: true, recompute: false, ..ordinary(backbone, head, views, [batch, batch]) };
    // Passes of one shape and of two: 10 tokens, 10, 5 + 5, 5 + 3, 3 + 7.
    let passes = |stream_crops| {
        let plan = Plan::new(Config { stream_crops, ..whole }).expect("a valid plan");
        plan.passes().map(|pass| pass.dims.views).collect::<Vec<_>>()
    };
    assert_eq!((passes(false), passes(true)), (vec![8], vec![1, 1, 2, 2, 2]));
    let splits =
        [1, 2, 4, 8].into_iter().flat_map(|m| [(m, false, 1), (m, true, 1)]).filter(|s| *s != (batch, false, 1));
    let splits: Vec<_> = splits.chain([(2, false, 2), (1, true, 8)]).collect();
    splits_agree::<F>(test, whole, &splits);
}

/// The same for every other objective: those whose targets depend on the full batch form them of all its micro-batches.
fn any_split_with_every_objective<F: Factory + Tolerance>(test: &str) {
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
        Head { inp: 12, layers: 2, hidden: 16, bottleneck: 8, prototypes: 700, train_gain: true, ..Head::PUBLISHED };
    let group = |count, height, width| Group { count, height, width };
    let views = Crops::one(group(2, 8, 8)).with(group(2, 4, 4));
    for objective in objectives().into_iter().skip(1) {
        let ordinary = ordinary(backbone, head, views, [6, 6]);
        let whole = Config { drop_path: true, recompute: false, objective, ..ordinary };
        let splits = [(6, true, 1), (3, false, 1), (1, false, 1), (1, true, 3)];
        splits_agree::<F>(&format!("{test}, {objective:?}"), whole, &splits);
    }
}

/// A batch at once, and split in other ways (micro-batch, crops one after another, shards).
fn splits_agree<F: Factory + Tolerance>(test: &str, whole: Config, splits: &[(usize, bool, usize)]) {
    let (batch, once) = (whole.batch, split::<F>(whole, 1));
    for &(micro_batch, stream_crops, shards) in splits {
        let what =
            format!("micro-batch {micro_batch} of {batch}, {shards} shards, crops in several passes: {stream_crops}");
        let parts = split::<F>(Config { micro_batch, stream_crops, ..whole }, shards);
        let mut worst = (0.0, String::new());
        for ((name, want), (_, got)) in once.iter().zip(&parts) {
            let keys = if name.ends_with("qkv.bias") { want.len() / 3..want.len() / 3 * 2 } else { 0..0 };
            let (mut difference, mut size) = (0.0, 0.0);
            for i in 0..want.len() {
                if keys.contains(&i) {
                    assert!(
                        (got[i] - want[i]).abs() <= F::GRADIENT,
                        "{test}: {name}: key bias {} and {}",
                        got[i],
                        want[i]
                    );
                } else {
                    difference += (got[i] - want[i]).powi(2);
                    size += want[i].powi(2);
                }
            }
            // Without a center nothing is summed for it, and the offsets may all be zero.
            let error = if size == 0.0 { difference.sqrt() } else { (difference / size).sqrt() };
            assert!(error <= F::GRADIENT, "{test}: {what}: {name}: relative difference {error:.3e}");
            if error > worst.0 {
                worst = (error, name.clone());
            }
        }
        println!("{test}: {what}: worst relative difference {:.1e} ({})", worst.0, worst.1);
    }
}

/// A step that keeps little and computes it again, and one that keeps all.
fn computing_again_changes_no_bit<F: Factory>(test: &str) {
    let backbone = Backbone::Vit(Vit {
        image: 12,
        patch: 4,
        channels: 3,
        dim: 24,
        depth: 3,
        heads: 3,
        mlp: 44,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let head =
        Head { inp: 24, layers: 3, hidden: 32, bottleneck: 16, prototypes: 200, train_gain: true, ..Head::PUBLISHED };
    let group = |count, height, width| Group { count, height, width };
    let views = Crops::one(group(2, 12, 12)).with(group(3, 8, 8));
    for drop_path in [false, true] {
        let config = Config { drop_path, recompute: false, ..ordinary(backbone, head, views, [6, 3]) };
        let [kept, again] = [false, true].map(|recompute| split::<F>(Config { recompute, ..config }, 1));
        for ((name, kept), (_, again)) in kept.iter().zip(&again) {
            assert!(kept == again, "{test}: {name} with stochastic depth {drop_path}");
        }
        let [kept, again] = [false, true].map(|recompute| Plan::new(Config { recompute, ..config }).unwrap().pools);
        assert!(again.acts < kept.acts, "{test}: {} elements of activations, not fewer than {}", again.acts, kept.acts);
    }
}

/// Everything that contract 8 lists, named.
fn split<F: Factory>(config: Config, shards: usize) -> Vec<(String, Vec<f64>)> {
    let plan = Plan::sharded(config, Sharding { shards, ranks: 1 }).expect("a valid plan");
    let mut run = Run::random(plan, make_poisoned::<F>(plan.pools), 3);
    let views = random_views(&run.plan, 9);
    run.accumulate(&Hyper { clip_grad: 0.0, ..hyper_numbers() }, &views);
    let mut found = vec![
        ("loss".to_string(), vec![run.loss()]),
        ("teacher sum".to_string(), read(&mut run.o, run.plan.targets.sum)),
    ];
    step::commit(&mut run.o, &run.plan);
    found.push(("center".to_string(), read(&mut run.o, run.plan.targets.rows.offset)));
    found.extend(run.specs().iter().map(|spec| (spec.name.to_string(), run.grad(spec))));
    found
}
