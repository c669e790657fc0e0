//! The GPU backend against the CPU: every word of whole training steps, on random plans. On a card where there is one, else on the emulation.

use dino_host::cpu::Cpu;
use dino_kernel::mem::Span;
use dino_kernel::middleware::{Lockstep, Memory, Pool, Word};
use dino_kernel::plan::{Config, Plan};
use dino_kernel::step::{Hyper, monitor};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use tests::backend::{Factory, make_poisoned, read_span};
use tests::gpu::{OnGpu, bf16_bound, f32_bound};
use tests::plans::configs;
use tests::training::{Run, hyper_numbers, random_views};

fn agree<F: Factory>(
    config: Config,
    seed: u64,
    [teacher_temp, student_temp]: [f64; 2],
    bound: fn(Word, f64) -> f64,
) -> Vec<(Word, f64)> {
    let plan = Plan::new(config).expect("a sound plan");
    let both = Lockstep::new(make_poisoned::<Cpu>(plan.pools), make_poisoned::<F>(plan.pools));
    let mut run = Run::random(plan, both, seed);
    // Weights that bf16 holds, so that the products have the same factors.
    let mut weights = read_span(&mut run.o, Pool::Weights, Span { at: 0, len: plan.pools.weights });
    weights.iter_mut().for_each(|w| *w = f64::from(half::bf16::from_f64(*w)));
    run.o.write(Pool::Weights, 0, &weights);
    run.step(&Hyper { teacher_temp, student_temp, ..hyper_numbers() }, &random_views(&plan, seed));
    let k = plan.student.acts.tokens().rows().max(config.head.prototypes) as f64;
    // A cosine is 2 eps off (8 bits of it in bf16 are the same on both sides), a logit as much divided by the temperature, and a
    // probability that much of itself.
    let sharpness = 2.0 * f32::EPSILON as f64 / teacher_temp.min(student_temp);
    let bound = |word: Word| match word {
        Word::teacher_lse | Word::dino_loss | Word::sum_stat => bound(word, k) + sharpness,
        _ => bound(word, k),
    };
    for m in run.o.worst.iter().flatten() {
        let bound = bound(m.word);
        assert!(m.error <= bound, "{m:?} exceeds {bound:e} under {config:?}");
    }
    assert_eq!(run.monitor(monitor::FINITE), 1.0);
    run.o.worst.iter().flatten().map(|m| (m.word, m.error / bound(m.word))).collect()
}

/// Random plans through `F`, and how near its bound every word came.
fn words<F: Factory>(who: &str, cases: u32, temps: Range<f64>, bound: fn(Word, f64) -> f64) {
    if !F::ready(who) {
        return;
    }
    let worst = std::cell::RefCell::new(BTreeMap::new());
    let temps = &temps;
    proptest!(ProptestConfig::with_cases(cases), |(config in configs(), seed in 0..1u64 << 32, temp in temps.clone())| {
        for (word, part) in agree::<F>(config, seed, [temp, temp.max(0.1).min(10.0 * temp)], bound) {
            let mut worst = worst.borrow_mut();
            let known = worst.entry(word.name()).or_insert(part);
            *known = part.max(*known);
        }
    });
    println!("{who}: largest error of every word as a part of its bound: {:.2?}", worst.borrow());
}

#[test]
fn f32_agrees_word_by_word() {
    words::<OnGpu<false, 256>>("f32_agrees_word_by_word", 12, 0.02..1.0, |_, k| f32_bound(k));
}

#[test]
fn bf16_agrees_word_by_word() {
    words::<OnGpu<true, 256>>("bf16_agrees_word_by_word", 12, 0.02..1.0, bf16_bound);
}

/// Logits of a thousand and more: rows that are one-hot but for the last digit.
#[test]
fn extreme_logits_agree_word_by_word() {
    words::<OnGpu<false, 256>>("extreme_logits_agree_word_by_word", 6, 0.0003..0.01, |_, k| f32_bound(k));
    words::<OnGpu<true, 256>>("extreme_logits_agree_word_by_word", 6, 0.0003..0.01, bf16_bound);
}
