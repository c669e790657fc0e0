//! The GPU backend against the CPU: every word of whole training steps, on random plans. On a card where there is one, else on the emulation.

use dino_host::cpu::Cpu;
use dino_kernel::middleware::{Lockstep, Word};
use dino_kernel::plan::{Config, Plan};
use dino_kernel::step::{Hyper, monitor};
use proptest::prelude::*;
use tests::backend::{Factory, make_poisoned};
use tests::gpu::{OnGpu, ready};
use tests::plans::configs;
use tests::training::{Run, hyper_numbers, random_views};

fn agree<F: Factory>(config: Config, seed: u64, teacher_temp: f64, bound: impl Fn(Word, f64) -> f64) {
    let plan = Plan::new(config).expect("a sound plan");
    let both = Lockstep::new(make_poisoned::<Cpu>(plan.pools), make_poisoned::<F>(plan.pools));
    let mut run = Run::random(plan, both, seed);
    run.step(&Hyper { teacher_temp, student_temp: 0.1, ..hyper_numbers() }, &random_views(&plan, seed));
    let k = plan.student.acts.tokens().rows().max(config.head.prototypes) as f64;
    for m in run.o.worst.iter().flatten() {
        let bound = bound(m.word, k);
        assert!(m.error <= bound, "{m:?} exceeds {bound:e} under {config:?}");
    }
    assert_eq!(run.monitor(monitor::FINITE), 1.0);
}

#[test]
fn f32_agrees_word_by_word() {
    if !ready("f32_agrees_word_by_word") {
        return;
    }
    proptest!(ProptestConfig::with_cases(16), |(config in configs(), seed in 0..1u64 << 32, temp in 0.02f64..1.0)| {
        agree::<OnGpu<false, 256>>(config, seed, temp, |_, k| 16.0 * f32::EPSILON as f64 * k.sqrt());
    });
}
