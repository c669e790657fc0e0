//! LARS: d = g + wd p;  d *= eta |p| / |d|;  mu = momentum mu + d;  p -= lr mu. The norms are those of the full tensor, and the factor
//! is 1 if either is 0. As published, tensors of one axis are neither decayed nor scaled: they are the groups that do not decay.

use super::{At, Slots};
use crate::params::ParamGroup;
use crate::real::Real;
use crate::scalars::{NUMBERS, slots};

/// The rule's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lars {
    /// How much of itself the buffer keeps.
    pub momentum: f64,
    /// Length of a tensor's update over the tensor's, at a learning rate of 1 and without momentum.
    pub eta: f64,
}

slots! {
    /// Slots of a group's block.
    block {
        /// Learning rate.
        LR,
        /// Weight decay, or 0.
        DECAY,
        /// As in [`Lars`](super::Lars).
        MOMENTUM,
        /// As in [`Lars`](super::Lars), or 0 for tensors that are not scaled.
        ETA,
    }
}

const _: () = assert!(block::LEN <= NUMBERS);

impl Lars {
    /// The published constants.
    pub const PUBLISHED: Lars = Lars { momentum: 0.9, eta: 0.001 };

    pub(super) fn numbers(&self, at: At, group: ParamGroup) -> [f64; NUMBERS] {
        let mut n = [0.0; NUMBERS];
        n[block::LR] = at.lr;
        n[block::MOMENTUM] = self.momentum;
        if group.decays() {
            n[block::DECAY] = at.weight_decay;
            n[block::ETA] = self.eta;
        }
        n
    }
}

/// Sums of squares of p and of d = g + wd p, in f64. Lanes are added up apart, so that vector instructions can follow.
#[inline(always)]
pub(super) fn norms<T: Real>(p: &[T], g: &[T], h: &[T; NUMBERS]) -> [f64; 2] {
    const LANES: usize = 8;
    let (decay, mut squares, mut updates) = (h[block::DECAY], [0.0; LANES], [0.0; LANES]);
    for (p, g) in p.chunks(LANES).zip(g.chunks(LANES)) {
        for (((&p, &g), square), update) in p.iter().zip(g).zip(&mut squares).zip(&mut updates) {
            let (p, d) = (p.to_f64(), (g + decay * p).to_f64());
            *square += p * p;
            *update += d * d;
        }
    }
    [squares.iter().sum(), updates.iter().sum()]
}

/// eta |p| / |d| from their sums of squares. The greatest factor is that of f32, so that an update of almost nothing stays finite.
pub(super) fn trust<T: Real>([parameters, update]: [f64; 2], h: &[T; NUMBERS]) -> T {
    let eta = h[block::ETA].to_f64();
    if eta == 0.0 || parameters == 0.0 || update == 0.0 {
        return T::ONE;
    }
    T::of((eta * libm::sqrt(parameters) / libm::sqrt(update)).min(f32::MAX as f64))
}

/// p and its buffer, updated from g.
#[inline(always)]
pub(super) fn apply<T: Real>(p: &mut [T], [buffer, _]: Slots<T>, g: &[T], trust: T, h: &[T; NUMBERS]) {
    let [lr, decay, momentum] = [h[block::LR], h[block::DECAY], h[block::MOMENTUM]];
    for ((p, mu), &g) in p.iter_mut().zip(buffer).zip(g) {
        *mu = momentum * *mu + trust * (g + decay * *p);
        *p -= lr * *mu;
    }
}
