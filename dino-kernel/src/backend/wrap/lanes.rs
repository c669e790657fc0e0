//! Issues every op to every lane of a process: shards that it works on side by side, for they exchange in the middle of a step.

use crate::backend::list::ops;
use crate::backend::*;
use crate::crops::Ragged;
use crate::mem::{Act, Stat, State, Weight};
use crate::optim::Optimizer;
use crate::params::ParamTable;

/// A backend whose ops are those of all lanes: each is issued once a lane, and once for all where the lanes exchange ([`Op::is_collective`]).
pub struct Lanes<'a, O> {
    /// The wrapped backend. Between two ops its first lane is entered.
    pub inner: &'a mut O,
    lanes: usize,
}

impl<'a, O> Lanes<'a, O> {
    /// Wraps `inner`, which has so many lanes and whose first is entered.
    pub fn new(inner: &'a mut O, lanes: usize) -> Self {
        Lanes { inner, lanes }
    }
}

impl<O: Collective> Lanes<'_, O> {
    /// Does the same in every lane, the first one last. A backend with one is not asked to enter it.
    pub fn each(&mut self, mut work: impl FnMut(&mut O, usize)) {
        for lane in (0..self.lanes).rev() {
            if self.lanes > 1 {
                self.inner.enter(Lane(lane));
            }
            work(self.inner, lane);
        }
    }
}

macro_rules! lanes {
    ($($tr:ident { $($op:ident($($use:ident $arg:ident: $ty:ty),*; $($dim:ident: $dty:ty),*);)* })*) => {
        $(impl<O: $tr + Collective> $tr for Lanes<'_, O> {
            $(fn $op(&mut self, $($arg: $ty,)* $($dim: $dty),*) {
                if Op::$op.is_collective() {
                    return self.inner.$op($($arg,)* $($dim),*);
                }
                self.each(|o, _| o.$op($($arg,)* $($dim),*));
            })*
        })*
    };
}
ops!(lanes);
