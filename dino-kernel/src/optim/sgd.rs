//! SGD with momentum: b = momentum b + (g + wd p);  p -= lr b. The buffer starts from zero, so the first b is the gradient itself.

use super::{At, Slots};
use crate::params::ParamGroup;
use crate::real::Real;
use crate::scalars::{NUMBERS, slots};

/// The rule's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// How much of itself the buffer keeps.
    pub momentum: f64,
}

slots! {
    /// Slots of a group's block.
    block {
        /// Learning rate.
        LR,
        /// Weight decay, or 0.
        DECAY,
        /// As in [`Sgd`](super::Sgd).
        MOMENTUM,
    }
}

const _: () = assert!(block::LEN <= NUMBERS);

impl Sgd {
    /// The published constant.
    pub const PUBLISHED: Sgd = Sgd { momentum: 0.9 };

    pub(super) fn numbers(&self, at: At, group: ParamGroup) -> [f64; NUMBERS] {
        let mut n = [0.0; NUMBERS];
        n[block::LR] = at.lr;
        n[block::DECAY] = if group.decays() { at.weight_decay } else { 0.0 };
        n[block::MOMENTUM] = self.momentum;
        n
    }
}

/// p and its buffer, updated from g.
#[inline(always)]
pub(super) fn apply<T: Real>(p: &mut [T], [buffer, _]: Slots<T>, g: &[T], h: &[T; NUMBERS]) {
    let [lr, decay, momentum] = [h[block::LR], h[block::DECAY], h[block::MOMENTUM]];
    for ((p, b), &g) in p.iter_mut().zip(buffer).zip(g) {
        *b = momentum * *b + (g + decay * *p);
        *p -= lr * *b;
    }
}
