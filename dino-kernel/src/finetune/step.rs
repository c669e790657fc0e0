//! One optimization step of fine-tuning: [`begin`]; for each micro-batch its pixels at `p.pixels`, [`forward`], from the logits the loss
//! and their gradient at `p.d_logits` ([`crate::ops::cross_entropy`]), and [`backward`]; the loss at `p.loss()`; [`commit`].
//!
//! The loss is the caller's, between the two passes: its targets are made of labels there, and a row of classes is small.

use super::Plan;
use crate::backend::{Forward, Update};
use crate::optim::At;
use crate::params::ParamGroup;
use crate::real::Real;
use crate::scalars::{BLOCK, NUMBERS, hyper, monitor};

/// What the schedules give for a step, and the constants of the recipe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate of the classifier.
    pub lr: f64,
    /// By which it falls from layer to layer, toward the input; 1: it does not. Read where the plan has numbers for every layer.
    pub layer_decay: f64,
    /// Weight decay, of groups that decay.
    pub weight_decay: f64,
    /// Largest gradient norm of a tensor; 0 = off.
    pub clip_grad: f64,
    /// Optimizer steps including this one.
    pub step: u64,
}

impl Hyper {
    /// The derived numbers of a step, in the layout of `p.hyper`.
    pub fn fill<T: Real>(&self, p: &Plan, out: &mut [T]) {
        out.fill(T::ZERO);
        for (layer, out) in out.chunks_mut(hyper::LEN).enumerate() {
            let scale = if p.config.by_layer { p.table.scale(self.layer_decay, layer) } else { 1.0 };
            let at = At { lr: self.lr * scale, weight_decay: self.weight_decay, step: self.step };
            out[hyper::CLIP] = T::of(self.clip_grad);
            for group in ParamGroup::ALL {
                let block = &mut out[hyper::GROUPS + group as usize * BLOCK..][..NUMBERS];
                let numbers = p.config.optimizer.numbers(at, group);
                block.iter_mut().zip(numbers).for_each(|(to, x)| *to = T::of(x));
            }
        }
    }
}

/// Once per step, with this step's numbers at `p.hyper`.
pub fn begin<O: Update>(o: &mut O, p: &Plan) {
    o.zero_grads();
    o.zero(p.monitor.part(0, monitor::HALTED));
    p.network.begin(o);
    if p.running.len() > 0 {
        o.copy_running(p.moved, p.running);
    }
}

/// From a micro-batch's pixels to its logits.
pub fn forward<O: Forward>(o: &mut O, p: &Plan) {
    p.network.prepare(o, p.pixels);
    p.pass.forward(o);
    o.linear(p.logits, p.pass.y(), p.classifier, p.mat());
}

/// From the gradient of the logits to that of every trained parameter: no further down than the first of them.
pub fn backward<O: Update>(o: &mut O, p: &Plan) {
    let (dy, y) = (p.d_logits, p.pass.y());
    if p.config.blocks == Some(0) {
        return o.linear_backward_params(dy, y, p.classifier, p.mat());
    }
    o.linear_backward(p.pass.dy(), dy, y, p.classifier, p.mat());
    match p.config.blocks {
        None => p.pass.backward(o),
        Some(blocks) => p.pass.backward_last(o, blocks),
    }
}

/// Once per step: clip, running statistics, optimizer. Every op is a no-op if anything was not finite, in this step or before.
pub fn commit<O: Update>(o: &mut O, p: &Plan) {
    let rule = p.config.optimizer;
    o.clip(p.monitor, &p.table, p.numbers_of(0));
    if p.running.len() > 0 {
        o.commit_running(p.running, p.moved, p.monitor);
    }
    if !p.config.by_layer {
        return o.optimize(rule, &p.table, p.monitor, p.hyper);
    }
    for layer in 0..p.table.layers() {
        o.optimize(rule, &p.table.layer(layer), p.monitor, p.numbers_of(layer));
    }
}
