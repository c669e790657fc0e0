//! Measures every op: a profile of a step.

use crate::backend::list::ops;
use crate::backend::*;
use crate::crops::Ragged;
use crate::mem::{Act, Stat, State, Weight};
use crate::optim::Optimizer;
use crate::params::ParamTable;

/// Calls, time and work of one op.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often it was called.
    pub calls: u64,
    /// Their time together.
    pub nanoseconds: u64,
    /// Floating-point operations of its matmuls, as its formula needs them, however often a backend computes them; 0 for an op without
    /// matmuls, and for `attention_rows`, which no step calls.
    pub operations: u64,
}

/// The work of an op, from its dimensions.
trait Work {
    fn operations(&self, _op: Op) -> u64 {
        0
    }
}

impl Work for Mat {
    fn operations(&self, op: Op) -> u64 {
        let matmul = 2 * (self.rows * self.inp * self.out) as u64;
        if op == Op::linear_backward { 2 * matmul } else { matmul }
    }
}

impl Work for Heads {
    fn operations(&self, op: Op) -> u64 {
        let square = self.crops.each().map(|(_, tokens)| (tokens * tokens) as u64).sum::<u64>();
        let (all, one) = (2 * self.cols() as u64 * square, 2 * (self.cols() * self.crops.rows()) as u64);
        match op {
            Op::attention => 2 * all,
            Op::attention_backward => 5 * all, // the scores again, and two matmuls for each of the two forward
            Op::attention_class => 2 * one,
            Op::attention_class_backward => 5 * one,
            _ => 0,
        }
    }
}

impl Work for LossDims {
    fn operations(&self, op: Op) -> u64 {
        let matmul = |rows: usize| 2 * (rows * self.bottleneck * self.prototypes) as u64;
        let teacher = matmul(self.teachers * self.images);
        match op {
            Op::teacher_lse | Op::column_lse => teacher,
            // The teacher's logits again: counted once a micro-batch, even where the student's crops are streamed in several passes.
            _ if self.first_view == 0 => 3 * matmul(self.rows()) + teacher,
            _ => 3 * matmul(self.rows()),
        }
    }
}

impl Work for Conv {
    fn operations(&self, op: Op) -> u64 {
        let matmul = 2 * (self.output().maps().rows() * self.filter() * self.out) as u64;
        if matches!(op, Op::convolve_backward | Op::convolve_backward_acc) { 2 * matmul } else { matmul }
    }
}

impl Work for Rows {}
impl Work for BatchNorm {}
impl Work for MaxPool {}
impl Work for LayerNorm {}
impl Work for Patches {}
impl Work for Grid {}
impl Work for Embed {}
impl Work for Ragged {}
impl Work for usize {}
impl Work for f64 {}
impl Work for bool {}

/// A profile by op. The clock is the caller's: the core has none.
pub struct Timed<O> {
    /// The wrapped backend.
    pub inner: O,
    /// One an op, in the order of [`Op::ALL`].
    pub tally: [Tally; Op::ALL.len()],
    clock: fn() -> u64,
}

impl<O> Timed<O> {
    /// `clock` returns nanoseconds since any fixed moment.
    pub fn new(inner: O, clock: fn() -> u64) -> Self {
        Timed { inner, tally: [Tally::default(); Op::ALL.len()], clock }
    }
}

macro_rules! timed {
    ($($tr:ident { $($op:ident($($use:ident $arg:ident: $ty:ty),*; $($dim:ident: $dty:ty),*);)* })*) => {
        $(impl<O: $tr> $tr for Timed<O> {
            $(fn $op(&mut self, $($arg: $ty,)* $($dim: $dty),*) {
                let start = (self.clock)();
                self.inner.$op($($arg,)* $($dim),*);
                let tally = &mut self.tally[Op::$op as usize];
                tally.calls += 1;
                tally.nanoseconds += (self.clock)() - start;
                tally.operations += 0 $(+ $dim.operations(Op::$op))*;
            })*
        })*
    };
}
ops!(timed);
