//! The end of a step: per-tensor clip, the optimizer, the teacher, over flat slices as the official trainer does them.
//!
//! A backend knows no rule. It cuts tensors into chunks and hands them over: the numbers a rule reads are stored in the `hyper` span, a
//! block for every [`ParamGroup`] ([`block_of`]), the arrays it keeps in the pool of slots ([`Optimizer::slots`]). A further rule is a
//! file beside [`adamw`] and an arm of every match here, and on a GPU its kernel.

pub mod adamw;
pub mod clip;
pub mod lars;
pub mod sgd;
pub mod teacher;

use crate::params::{ParamGroup, Spec};
use crate::real::Real;
use crate::scalars::{BLOCK, NUMBERS, WITHHELD, hyper};
pub use adamw::AdamW;
use core::ops::Range;
pub use lars::Lars;
pub use sgd::Sgd;
pub use teacher::TeacherRule;

/// Most arrays of state that a rule keeps.
pub const SLOTS: usize = 2;

/// A rule's arrays of state, or the same part of each; empty are those that it does not keep.
pub type Slots<'a, T> = [&'a mut [T]; SLOTS];

/// How gradients move parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// Adam with decoupled weight decay.
    AdamW(AdamW),
    /// Stochastic gradient descent with momentum; weight decay is a part of the gradient.
    Sgd(Sgd),
    /// The same with updates scaled tensor by tensor, for large batches.
    Lars(Lars),
}

/// What a rule is told of a step, for a group of parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct At {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay, of groups that decay.
    pub weight_decay: f64,
    /// Steps that the group has been updated in, this one included.
    pub step: u64,
}

impl Optimizer {
    /// The published names of the arrays that the rule keeps, each as long as a network: at most [`SLOTS`].
    pub const fn slots(&self) -> &'static [&'static str] {
        match self {
            Optimizer::AdamW(_) => &["exp_avg", "exp_avg_sq"],
            Optimizer::Sgd(_) => &["momentum_buffer"],
            Optimizer::Lars(_) => &["mu"],
        }
    }

    /// The numbers of a step that a group's tensors are updated with, as [`Optimizer::apply`] reads them.
    pub fn numbers(&self, at: At, group: ParamGroup) -> [f64; NUMBERS] {
        match self {
            Optimizer::AdamW(rule) => rule.numbers(at, group),
            Optimizer::Sgd(rule) => rule.numbers(at, group),
            Optimizer::Lars(rule) => rule.numbers(at, group),
        }
    }

    /// Whether a tensor's update depends on norms of the full tensor ([`Optimizer::norms`], [`Optimizer::trust`]).
    pub const fn needs_norms(&self) -> bool {
        matches!(self, Optimizer::Lars(_))
    }

    /// What [`Optimizer::trust`] goes by, of a chunk of a tensor: two sums of squares, to be added up chunk by chunk.
    #[inline(always)]
    pub fn norms<T: Real>(&self, p: &[T], g: &[T], h: &[T; NUMBERS]) -> [f64; 2] {
        match self {
            Optimizer::AdamW(_) | Optimizer::Sgd(_) => [0.0; 2],
            Optimizer::Lars(_) => lars::norms(p, g, h),
        }
    }

    /// The factor of a full tensor's update, from its two sums; 1 for a rule that needs no norms.
    pub fn trust<T: Real>(&self, norms: [f64; 2], h: &[T; NUMBERS]) -> T {
        match self {
            Optimizer::AdamW(_) | Optimizer::Sgd(_) => T::ONE,
            Optimizer::Lars(_) => lars::trust(norms, h),
        }
    }

    /// Updates a chunk: parameters and slots from gradients, all of one length. The arm is that of the plan; its numbers are `h`.
    #[inline(always)]
    pub fn apply<T: Real>(&self, p: &mut [T], slots: Slots<T>, g: &[T], trust: T, h: &[T; NUMBERS]) {
        match self {
            Optimizer::AdamW(_) => adamw::apply(p, slots, g, h),
            Optimizer::Sgd(_) => sgd::apply(p, slots, g, h),
            Optimizer::Lars(_) => lars::apply(p, slots, g, trust, h),
        }
    }

    /// The arrays that the rule keeps, in a pool of them for networks of `len` elements.
    pub fn arrays<'a, T>(&self, pool: &'a mut [T], len: usize) -> Slots<'a, T> {
        let (mut pool, mut n) = (pool, 0);
        [(); SLOTS].map(|()| {
            n += 1;
            let array = if n > self.slots().len() { None } else { pool.split_off_mut(..len) };
            array.unwrap_or_default()
        })
    }
}

/// The same part of every array.
pub fn part<'a, T>(slots: &'a mut Slots<T>, at: Range<usize>) -> Slots<'a, T> {
    slots.each_mut().map(|array| array.get_mut(at.clone()).unwrap_or_default())
}

/// Splits the first `len` elements off every array.
pub fn split_off<'a, T>(slots: &mut Slots<'a, T>, len: usize) -> Slots<'a, T> {
    slots.each_mut().map(|array| array.split_off_mut(..len).unwrap_or_default())
}

/// The block of this step's numbers that a tensor reads; none if it is not to be updated, for good or in this step.
pub fn block_of<'a, T: Real>(hyper: &'a [T], spec: &Spec) -> Option<&'a [T; NUMBERS]> {
    let block = &hyper[hyper::GROUPS + spec.group as usize * BLOCK..][..BLOCK];
    if spec.frozen || block[WITHHELD] != T::ZERO { None } else { block.first_chunk() }
}
