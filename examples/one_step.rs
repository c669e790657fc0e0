//! Optimization steps of DINO over a static arena, with nothing allocated: what firmware would do.
//!
//!     cargo run --release -p dino-kernel --example one_step
//!
//! The plan is a constant, so the size of every pool is one, and the memory can be a `static`. The core is `no_std` without
//! `alloc`: it cannot allocate. Expected output, on any machine:
//!
//!     7712 parameters a network, 493 KiB in all, known when this was compiled
//!     step  1: loss 1.566, teacher entropy 1.101
//!     step  5: loss 1.332, teacher entropy 1.109
//!     step 10: loss 1.139, teacher entropy 1.001
//!     step 15: loss 1.145, teacher entropy 1.051
//!     step 20: loss 1.052, teacher entropy 1.009

use dino_kernel::backend::reference::Train;
use dino_kernel::crops::{Crops, Group};
use dino_kernel::init;
use dino_kernel::model::{Backbone, Head, Vit};
use dino_kernel::objective::Objective;
use dino_kernel::ops::{layernorm::EPS, position::Interpolation};
use dino_kernel::optim::{AdamW, Optimizer, TeacherRule};
use dino_kernel::plan::{Config, Plan, Pools};
use dino_kernel::rng::{Kind, Rng};
use dino_kernel::scalars::monitor;
use dino_kernel::step::{self, Hyper};
use std::sync::Mutex;

/// Two crops of 16 x 16 pixels for teacher and student, two of 8 x 8 for the student alone.
const VIEWS: Crops =
    Crops::one(Group { count: 2, height: 16, width: 16 }).with(Group { count: 2, height: 8, width: 8 });
const VIT: Vit = Vit {
    image: 16,
    patch: 4,
    channels: 3,
    dim: 16,
    depth: 2,
    heads: 2,
    mlp: 32,
    positions: Interpolation::Published,
    eps: EPS,
};
const HEAD: Head =
    Head { inp: 16, layers: 2, hidden: 32, bottleneck: 16, prototypes: 64, train_gain: false, ..Head::PUBLISHED };
const IMAGES: usize = 4;
const PLAN: Plan = {
    let (batch, micro_batch) = (IMAGES, IMAGES);
    let config = Config {
        backbone: Backbone::Vit(VIT),
        head: HEAD,
        objective: Objective::PUBLISHED,
        optimizer: Optimizer::AdamW(AdamW::PUBLISHED),
        teacher: TeacherRule::Ema { start: 0.99, end: 1.0 },
        views: VIEWS,
        batch,
        micro_batch,
        drop_path: false,
        recompute: true,
        stream_crops: false,
        bn_group: None,
    };
    match Plan::new(config) {
        Ok(plan) => plan,
        Err(_) => panic!("this plan makes no sense: the program does not compile"),
    }
};
const POOLS: Pools = PLAN.pools;

struct Arena {
    weights: [f32; POOLS.weights],
    grads: [f32; POOLS.grads],
    slots: [f32; POOLS.slots],
    acts: [f32; POOLS.acts],
    stats: [f32; POOLS.stats],
    state: [f32; POOLS.state],
}

static ARENA: Mutex<Arena> = Mutex::new(Arena {
    weights: [0.0; POOLS.weights],
    grads: [0.0; POOLS.grads],
    slots: [0.0; POOLS.slots],
    acts: [0.0; POOLS.acts],
    stats: [0.0; POOLS.stats],
    state: [0.0; POOLS.state],
});

/// What the schedules would give for step `step`, from 1.
fn hyper(step: u64) -> Hyper {
    Hyper {
        lr: 0.003,
        weight_decay: 0.04,
        momentum: 0.99,
        teacher_temp: 0.04,
        student_temp: 0.1,
        clip_grad: 3.0,
        step,
        step_last: step,
        freeze_last: false,
    }
}

/// The crops of a step: every image has a color of its own, every crop its own noise.
fn draw(pixels: &mut [f32], step: u64) {
    let mut rng = Rng::new(0, step as u32, 0, 0, Kind::Test, 0);
    let mut rest = pixels;
    for group in VIEWS.groups() {
        for _ in 0..group.count {
            for image in 0..IMAGES {
                for channel in 0..3 {
                    let plane;
                    (plane, rest) = rest.split_at_mut(group.height * group.width);
                    let color = if image % 3 == channel { 1.0 } else { -1.0 } * (1 + image / 3) as f64;
                    plane.iter_mut().for_each(|x| *x = (color + 0.3 * rng.normal()) as f32);
                }
            }
        }
    }
}

fn main() {
    let bytes = size_of::<Arena>();
    println!(
        "{} parameters a network, {} KiB in all, known when this was compiled",
        PLAN.table.parameters(),
        bytes >> 10
    );
    let mut arena = ARENA.lock().unwrap();
    let Arena { weights, grads, slots, acts, stats, state } = &mut *arena;
    let (student, teacher) = weights.split_at_mut(PLAN.table.len());
    init::weights(student, &PLAN.table, 0, 0.25);
    teacher.copy_from_slice(student);
    PLAN.initial_state(state);
    let mut o = Train { weights: &mut weights[..], grads, slots, acts, stats, state };
    for n in 1..=20 {
        let numbers = hyper(n).numbers(&PLAN);
        o.state[PLAN.hyper.range()].iter_mut().zip(numbers).for_each(|(to, x)| *to = x as f32);
        step::begin(&mut o, &PLAN);
        step::accumulate(&mut o, &PLAN, |o, _| draw(&mut o.acts[PLAN.pixels.range()], n));
        step::commit(&mut o, &PLAN);
        let found = &o.state[PLAN.monitor.range()];
        let loss = found[monitor::LOSS] / (IMAGES * PLAN.teachers() * (PLAN.views() - 1)) as f32;
        let entropy = found[monitor::ENTROPY] / (IMAGES * PLAN.teachers()) as f32;
        if n == 1 || n % 5 == 0 {
            println!("step {n:2}: loss {loss:.3}, teacher entropy {entropy:.3}");
        }
    }
}
