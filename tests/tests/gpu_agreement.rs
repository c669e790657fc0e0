//! The GPU backend against the CPU: every op of full training steps, on random plans. On a card where there is one, else on the emulation.

use dino_kernel::backend::Op;
use dino_kernel::mem::Pool;
use dino_kernel::plan::Config;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use tests::backend::Factory;
use tests::gpu::{OnGpu, bf16_bound, f32_bound, step_beside_cpu};
use tests::plans::{configs, heads, resnet_configs, with_head};

/// Random plans through `F`, and how near its bound every op came.
fn ops<F: Factory>(
    test: &str,
    cases: u32,
    configs: impl Strategy<Value = Config>,
    temps: Range<f64>,
    bound: fn(Op, Pool, f64) -> f64,
) {
    if !F::ready(test) {
        return;
    }
    let worst = std::cell::RefCell::new(BTreeMap::new());
    let temps = &temps;
    proptest!(tests::plans::cases(cases), |(config in &configs, seed in 0..1u64 << 32, temp in temps.clone())| {
        for (op, part) in step_beside_cpu::<F>(config, seed, [temp, temp.max(0.1).min(10.0 * temp)], bound).1 {
            let mut worst = worst.borrow_mut();
            let known = worst.entry(op.name()).or_insert(part);
            *known = part.max(*known);
        }
    });
    println!("{test}: largest error of every op as a part of its bound: {:.2?}", worst.borrow());
}

#[test]
fn f32_agrees_op_by_op() {
    ops::<OnGpu<false, 256>>("f32_agrees_op_by_op", 12, configs(), 0.02..1.0, |_, _, k| f32_bound(k));
}

#[test]
fn bf16_agrees_op_by_op() {
    ops::<OnGpu<true, 256>>("bf16_agrees_op_by_op", 12, configs(), 0.02..1.0, bf16_bound);
}

/// Logits of a thousand and more: rows that are one-hot but for the last digit.
#[test]
fn extreme_logits_agree_op_by_op() {
    ops::<OnGpu<false, 256>>("extreme_logits_agree_op_by_op", 6, configs(), 0.0003..0.01, |_, _, k| f32_bound(k));
    ops::<OnGpu<true, 256>>("extreme_logits_agree_op_by_op", 6, configs(), 0.0003..0.01, bf16_bound);
}

/// Convolutions, batch norms and pools: small sizes, whose splits and strips are few; those of `op_agreement` are many.
#[test]
fn residual_networks_agree_op_by_op() {
    let test = "residual_networks_agree_op_by_op";
    ops::<OnGpu<false, 256>>(test, 12, resnet_configs(), 0.2..1.0, |_, _, k| f32_bound(k));
    ops::<OnGpu<true, 256>>(test, 12, resnet_configs(), 0.2..1.0, bf16_bound);
}

/// What heads differ in: a part of the combinations in which every choice meets every other one.
#[test]
fn heads_agree_op_by_op() {
    if !OnGpu::<false, 256>::ready("heads_agree_op_by_op") {
        return;
    }
    let some = heads([24, 40, 17, 33, 300]).into_iter().step_by(11);
    for (seed, head) in some.enumerate() {
        // Logits of rows that are not normalized are a few units apart, cosines less than one.
        let temps = [if head.l2_norm { 0.3 } else { 2.0 }; 2];
        let config = with_head(head, [4, 2]);
        step_beside_cpu::<OnGpu<false, 256>>(config, seed as u64, temps, |_, _, k| f32_bound(k));
        step_beside_cpu::<OnGpu<true, 256>>(config, seed as u64, temps, bf16_bound);
    }
}

/// What a kernel is given is compared with what it takes, so that a mistake in the host's code is an error and reads no wrong memory.
#[test]
fn a_wrong_argument_list_is_an_error() {
    use dino_gpu::cuda::{Card, Stream};
    use dino_gpu::kernels::{Argument, Kernels, Shape};
    if !OnGpu::<true, 256>::ready("a_wrong_argument_list_is_an_error") {
        return;
    }
    let kernels = Kernels::new(Card::get().unwrap(), "_bf16").unwrap();
    let stream = Stream::new().unwrap();
    let arguments = [Argument::from(0u64), Argument::from(1.0f32)];
    let error = kernels.ema.launch(&stream, Shape::flat(1), &arguments).unwrap_err().to_string();
    assert!(error.contains("ema takes arguments of") && error.contains("given [8, 4]"), "{error}");
    stream.wait().expect("nothing was launched");
}
