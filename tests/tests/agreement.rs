//! Two backends, the same model: every word of whole training steps compared, on random plans and data.

use dino_host::cpu::Cpu;
use dino_host::device::Device;
use dino_kernel::crops::{Crops, Group};
use dino_kernel::init;
use dino_kernel::middleware::{Lockstep, Memory, Pool};
use dino_kernel::model::{Head, Vit};
use dino_kernel::ops::position::Dialect;
use dino_kernel::plan::{Config, Plan};
use dino_kernel::reference::Train;
use dino_kernel::rng::{Kind, Rng};
use dino_kernel::step::{self, Hyper, monitor};
use proptest::prelude::*;

/// The schedules' values of a typical step.
fn hyper(teacher_temp: f64) -> Hyper {
    Hyper {
        lr: 1e-3,
        weight_decay: 0.1,
        momentum: 0.99,
        teacher_temp,
        student_temp: 0.1,
        center_momentum: 0.9,
        clip_grad: 1.0,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        step: 1,
        step_last: 1,
        freeze_last: false,
    }
}

/// Weights, state, pixels and this step's numbers, the same for any backend.
fn load(o: &mut impl Memory, p: &Plan, seed: u64, h: Hyper) {
    let mut rng = Rng::new(seed, 0, 0, 0, Kind::Test, 0);
    let len = p.table.len();
    let mut w = vec![0.0f64; 2 * len];
    init::weights(&mut w[..len], &p.table, seed, init::LINEAR_STD);
    init::weights(&mut w[len..], &p.table, seed + 1, init::LINEAR_STD);
    w.iter_mut().filter(|w| **w != 0.0).for_each(|w| *w += 0.1 * rng.normal());
    o.write(Pool::Weights, 0, &w);
    let mut state = vec![0.0; p.pools.state];
    p.initial_state(&mut state);
    let images: Vec<u32> = (0..p.config.micro_batch as u32).collect();
    p.drop_path(&mut state[p.student.acts.drop().range()], seed, 0, &images, 0.3);
    state[p.centre.range()].iter_mut().for_each(|c| *c = 0.1 * rng.normal());
    state[p.hyper.range()].copy_from_slice(&h.derive(p.config.batch, p.views(), p.teachers()));
    o.write(Pool::State, 0, &state);
    let pixels: Vec<f64> = (0..p.pixels.len()).map(|_| rng.normal()).collect();
    o.write(Pool::Acts, p.pixels.0.at, &pixels);
}

fn agree(config: Config, seed: u64, teacher_temp: f64) {
    let p = Plan::new(config).expect("a sound plan");
    let n = p.pools;
    let (mut weights, mut grads, mut moments) = (vec![0f32; n.weights], vec![0f32; n.grads], vec![0f32; n.moments]);
    let (mut acts, mut stats, mut state) = (vec![0f32; n.acts], vec![0f32; n.stats], vec![0f32; n.state]);
    let reference = Train {
        weights: &mut weights[..],
        grads: &mut grads,
        moments: &mut moments,
        acts: &mut acts,
        stats: &mut stats,
        state: &mut state,
    };
    let mut both = Lockstep::new(reference, Cpu::new(n).expect("memory"));
    load(&mut both, &p, seed, hyper(teacher_temp));
    step::begin(&mut both, &p);
    for _ in 0..p.parts() {
        step::micro_batch(&mut both, &p);
    }
    step::commit(&mut both, &p);
    // Both are f32 programs: each is within 8 eps sqrt(k) of the truth for a reduction of length k, and the longest here is the
    // tokens of a weight gradient.
    let k = p.student.acts.tokens().rows().max(config.head.prototypes) as f64;
    let bound = 16.0 * f32::EPSILON as f64 * k.sqrt();
    let worst = both.worst().expect("words were said");
    assert!(worst.error <= bound, "{worst:?} exceeds {bound:e} under {config:?}");
    let mut m = [0.0; monitor::LEN];
    both.read(Pool::State, p.monitor.0.at, &mut m);
    assert_eq!(m[monitor::FINITE], 1.0, "{m:?}");
}

prop_compose! {
    fn configs()(
        // Widths of a few channels leave gradients that are nothing but cancellation; those are compared in f64 elsewhere.
        (heads, head_dim, depth, patch) in (1usize..4, 8usize..40, 1usize..4, 1usize..6),
        mlp in 8usize..150,
        grid in 1usize..5,
        globals in (1usize..6, 1usize..6),
        locals in prop::option::of((1usize..4, 1usize..4, 1usize..4)),
        (layers, hidden, bottleneck, prototypes) in (1usize..5, 8usize..70, 4usize..40, 8usize..700),
        (images, parts, drop_path, train_gain) in (1usize..4, 1usize..3, any::<bool>(), any::<bool>()),
    ) -> Config {
        let backbone = Vit {
            image: grid * patch, patch, channels: 3, dim: heads * head_dim, depth, heads, mlp, positions: Dialect::Published,
        };
        let group = |count, rows: usize, cols: usize| Group { count, height: rows * patch, width: cols * patch + patch / 2 };
        let mut views = Crops::one(group(2, globals.0, globals.1));
        if let Some((count, rows, cols)) = locals {
            views = views.with(group(count, rows, cols));
        }
        let head = Head { inp: backbone.dim, layers, hidden, bottleneck, prototypes, train_gain };
        Config { backbone, head, views, batch: images * parts, micro_batch: images, drop_path }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn reference_and_cpu_agree_word_by_word(config in configs(), seed in any::<u64>(), temp in 0.02f64..1.0) {
        agree(config, seed, temp);
    }
}
