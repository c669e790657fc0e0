//! AdamW: p -= lr wd p;  m += (1 - b1)(g - m);  v += (1 - b2)(g^2 - v);  p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps).

use super::{At, Slots};
use crate::params::ParamGroup;
use crate::real::Real;
use crate::scalars::{NUMBERS, slots};

/// The rule's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second.
    pub beta2: f64,
    /// What is added to the root of the second moment.
    pub eps: f64,
}

slots! {
    /// Slots of a group's block.
    block {
        /// lr * weight decay, or 0.
        DECAY,
        /// lr / (1 - b1^t).
        STEP,
        /// 1 / sqrt(1 - b2^t).
        BIAS2,
        /// 1 - b1.
        RATE1,
        /// 1 - b2.
        RATE2,
        /// As in [`AdamW`](super::AdamW).
        EPS,
    }
}

const _: () = assert!(block::LEN <= NUMBERS);

impl AdamW {
    /// PyTorch's constants, with which the published models were trained.
    pub const PUBLISHED: AdamW = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 };

    pub(super) fn numbers(&self, at: At, group: ParamGroup) -> [f64; NUMBERS] {
        let correct = |beta: f64| 1.0 - libm::pow(beta, at.step.max(1) as f64);
        let mut n = [0.0; NUMBERS];
        n[block::DECAY] = if group.decays() { at.lr * at.weight_decay } else { 0.0 };
        n[block::STEP] = at.lr / correct(self.beta1);
        n[block::BIAS2] = 1.0 / libm::sqrt(correct(self.beta2));
        n[block::RATE1] = 1.0 - self.beta1;
        n[block::RATE2] = 1.0 - self.beta2;
        n[block::EPS] = self.eps;
        n
    }
}

/// p and its two moments, updated from g.
#[inline(always)]
pub(super) fn apply<T: Real>(p: &mut [T], [m, v]: Slots<T>, g: &[T], h: &[T; NUMBERS]) {
    let [decay, step, bias2] = [h[block::DECAY], h[block::STEP], h[block::BIAS2]];
    let [rate1, rate2, eps] = [h[block::RATE1], h[block::RATE2], h[block::EPS]];
    for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
        *p -= decay * *p;
        *m += rate1 * (g - *m);
        *v += rate2 * (g * g - *v);
        *p -= step * *m / ((*v).sqrt() * bias2 + eps);
    }
}
