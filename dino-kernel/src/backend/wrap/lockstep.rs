//! Runs two backends and compares them after every op.

use crate::backend::list::{accesses, ops};
use crate::backend::*;
use crate::crops::Ragged;
use crate::mem::{Act, Pool, Stat, State, Weight};
use crate::optim::Optimizer;
use crate::params::ParamTable;

/// Where two backends differ most: |a - b| / |a| over a written span.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mismatch {
    /// The op that was called.
    pub op: Op,
    /// The written span.
    pub access: Access,
    /// Relative L2 error, infinite where numbers that are not finite differ.
    pub error: f64,
}

/// Runs two backends op by op and compares everything written, norm-wise; then gives both A's result, as B can hold it (B may keep
/// activations in fewer digits), so that drift hides nothing.
pub struct Lockstep<A, B> {
    /// The backend that is compared with.
    pub a: A,
    /// The backend that is compared.
    pub b: B,
    /// The largest relative error of every op so far, pool by pool: what is kept in fewer digits hides nothing of what is not.
    pub worst: [[Option<Mismatch>; Pool::COUNT]; Op::ALL.len()],
    /// The norm that a written span counts as having at least, op by op and pool by pool: the size of the terms of a sum that may cancel.
    pub floor: [[f64; Pool::COUNT]; Op::ALL.len()],
}

impl<A: Memory, B: Memory> Lockstep<A, B> {
    /// Wraps both backends, which hold the same values; floors are 0.
    pub fn new(a: A, b: B) -> Self {
        Lockstep { a, b, worst: [[None; Pool::COUNT]; Op::ALL.len()], floor: [[0.0; Pool::COUNT]; Op::ALL.len()] }
    }

    /// The largest error of any op.
    pub fn worst(&self) -> Option<Mismatch> {
        let all = self.worst.iter().flatten().flatten().copied();
        all.reduce(|x, y| if y.error > x.error || y.error.is_nan() { y } else { x })
    }

    /// The same values on both sides.
    fn settle(&mut self, pool: Pool, at: usize, values: &mut [f64]) {
        self.b.write(pool, at, values);
        self.b.read(pool, at, values);
        self.a.write(pool, at, values);
    }

    fn after(&mut self, op: Op, t: &Accesses) {
        for &access in t.all().iter().filter(|x| x.written) {
            let (mut difference, mut size, mut alike) = (0.0, 0.0, true);
            let (mut a, mut b) = ([0.0; 256], [0.0; 256]);
            for at in (0..access.span.len).step_by(256) {
                let len = (access.span.len - at).min(256);
                self.a.read(access.pool, access.span.at + at, &mut a[..len]);
                self.b.read(access.pool, access.span.at + at, &mut b[..len]);
                for (x, y) in a[..len].iter().zip(&b[..len]) {
                    if x.is_finite() && y.is_finite() {
                        difference += (x - y) * (x - y);
                        size += x * x;
                    } else {
                        // Infinities must be the same infinity, NaN must be NaN.
                        alike &= x == y || (x.is_nan() && y.is_nan());
                    }
                }
                self.settle(access.pool, access.span.at + at, &mut a[..len]);
            }
            let error = match (alike, difference == 0.0) {
                (false, _) => f64::INFINITY,
                (true, true) => 0.0,
                (true, false) => {
                    libm::sqrt(difference) / libm::sqrt(size).max(self.floor[op as usize][access.pool as usize])
                }
            };
            let worst = &mut self.worst[op as usize][access.pool as usize];
            if worst.is_none_or(|w| error > w.error) {
                *worst = Some(Mismatch { op, access, error });
            }
        }
    }
}

impl<A: Memory, B: Memory> Memory for Lockstep<A, B> {
    fn read(&mut self, pool: Pool, at: usize, out: &mut [f64]) {
        self.a.read(pool, at, out);
    }

    fn write(&mut self, pool: Pool, at: usize, values: &[f64]) {
        for (i, part) in values.chunks(256).enumerate() {
            let mut copy = [0.0; 256];
            let copy = &mut copy[..part.len()];
            copy.copy_from_slice(part);
            self.settle(pool, at + 256 * i, copy);
        }
    }

    fn len(&mut self, pool: Pool) -> usize {
        self.a.len(pool)
    }
}

macro_rules! lockstep {
    ($($tr:ident { $($op:ident($($use:ident $arg:ident: $ty:ty),*; $($dim:ident: $dty:ty),*);)* })*) => {
        $(impl<A: $tr + Memory, B: $tr + Memory> $tr for Lockstep<A, B> {
            $(fn $op(&mut self, $($arg: $ty,)* $($dim: $dty),*) {
                self.a.$op($($arg,)* $($dim),*);
                self.b.$op($($arg,)* $($dim),*);
                self.after(Op::$op, &accesses!($($use $arg),*));
            })*
        })*
    };
}
ops!(lockstep);
