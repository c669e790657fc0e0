//! Checks that the spans of every call are in range and disjoint, and finds the first number that is not finite.

use crate::backend::list::{accesses, ops};
use crate::backend::*;
use crate::crops::Ragged;
use crate::mem::{Act, Pool, Stat, State, Weight};
use crate::optim::Optimizer;
use crate::params::ParamTable;

/// The first thing a [`Checked`] backend found wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A span reaches past its pool.
    Range(Access),
    /// A written span overlaps another operand of the same call.
    Overlap(Access, Access),
    /// A written span holds a number that is not finite at this element.
    NonFinite(Access, usize),
}

/// Refuses calls whose spans overlap or leave their pools, and notes the first number that is not finite.
pub struct Checked<O> {
    /// The wrapped backend.
    pub inner: O,
    /// The first violation, its op, and how many ops had been called up to it.
    pub violation: Option<(Violation, Op, u64)>,
    /// The lane that it was found in; while there is none, the lane that is entered.
    pub lane: usize,
    calls: u64,
}

impl<O: Memory> Checked<O> {
    /// Wraps `inner`; nothing is found yet.
    pub fn new(inner: O) -> Self {
        Checked { inner, violation: None, lane: 0, calls: 0 }
    }

    /// Ops called so far.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    fn note(&mut self, violation: Violation, op: Op) {
        if self.violation.is_none() {
            self.violation = Some((violation, op, self.calls));
        }
    }

    fn before(&mut self, op: Op, t: &Accesses) {
        self.calls += 1;
        self.lane = t.lane.filter(|_| self.violation.is_none()).unwrap_or(self.lane);
        for (i, &x) in t.all().iter().enumerate() {
            if x.span.at + x.span.len > self.inner.len(x.pool) {
                self.note(Violation::Range(x), op);
            }
            for &y in &t.all()[..i] {
                let apart = x.span.at + x.span.len <= y.span.at || y.span.at + y.span.len <= x.span.at;
                if x.pool == y.pool && (x.written || y.written) && !apart {
                    self.note(Violation::Overlap(x, y), op);
                }
            }
        }
    }

    fn after(&mut self, op: Op, t: &Accesses) {
        if self.violation.is_some() {
            return;
        }
        for &x in t.all().iter().filter(|x| x.written) {
            let mut buffer = [0.0; 256];
            for at in (0..x.span.len).step_by(buffer.len()) {
                let part = &mut buffer[..(x.span.len - at).min(256)];
                self.inner.read(x.pool, x.span.at + at, part);
                if let Some(i) = part.iter().position(|v| !v.is_finite()) {
                    return self.note(Violation::NonFinite(x, at + i), op);
                }
            }
        }
    }
}

impl<O: Memory> Memory for Checked<O> {
    fn read(&mut self, pool: Pool, at: usize, out: &mut [f64]) {
        self.inner.read(pool, at, out);
    }

    fn write(&mut self, pool: Pool, at: usize, values: &[f64]) {
        self.inner.write(pool, at, values);
    }

    fn len(&mut self, pool: Pool) -> usize {
        self.inner.len(pool)
    }
}

macro_rules! checked {
    ($($tr:ident { $($op:ident($($use:ident $arg:ident: $ty:ty),*; $($dim:ident: $dty:ty),*);)* })*) => {
        $(impl<O: $tr + Memory> $tr for Checked<O> {
            $(fn $op(&mut self, $($arg: $ty,)* $($dim: $dty),*) {
                let t = accesses!($($use $arg),*);
                self.before(Op::$op, &t);
                self.inner.$op($($arg,)* $($dim),*);
                self.after(Op::$op, &t);
            })*
        })*
    };
}
ops!(checked);
