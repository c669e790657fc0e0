//! Processes that train together: what their engine (MPI, NCCL, threads) must offer, and the order in which their sums are formed.

use crate::real::Real;
use core::fmt;

/// Why a sum over processes was not formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupError {
    /// This rank has left the group, or cannot be reached.
    Lost {
        /// The rank that is missing.
        rank: usize,
    },
    /// This rank asks for a sum of so many numbers, and others ask for so many.
    Disagree {
        /// The rank that differs.
        rank: usize,
        /// Numbers that it asks for.
        len: usize,
        /// Numbers that the ranks before it ask for.
        others: usize,
    },
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            GroupError::Lost { rank } => write!(f, "rank {rank} has left the group"),
            GroupError::Disagree { rank, len, others } => {
                write!(f, "rank {rank} sums {len} numbers, the ranks before it {others}")
            }
        }
    }
}

impl core::error::Error for GroupError {}

/// One process's membership in a group of processes that share every batch. Each is a rank, numbered from 0.
pub trait ProcessGroup {
    /// This process's number.
    fn rank(&self) -> usize;
    /// How many processes there are.
    fn size(&self) -> usize;
    /// `x` becomes the sum of every rank's `x`, formed as [`add_by_halves`] does: the same bits on every rank, whatever the engine is.
    /// All ranks ask for the same sums in the same order. An error is final: all ranks get one, now or at their next sum, and every
    /// later sum is an error too.
    ///
    /// # Errors
    /// A rank has left the group or cannot be reached, or ranks ask for sums of different lengths.
    fn sum(&mut self, x: &mut [f32]) -> Result<(), GroupError>;
}

/// A process alone: its sums are what it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Solo;

impl ProcessGroup for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&mut self, _x: &mut [f32]) -> Result<(), GroupError> {
        Ok(())
    }
}

/// The sum of the equal parts of `parts`, `len` elements each, left in the first of them: (0 + 1) + (2 + 3), and so on by halves. Whoever
/// has added 2^k consecutive parts in this order, from a multiple of 2^k on, has a part of the same sum.
pub fn add_by_halves<T: Real>(parts: &mut [T], len: usize) {
    let mut step = len;
    while len > 0 && step < parts.len() {
        let mut at = 0;
        while at + step < parts.len() {
            let (left, right) = parts.split_at_mut(at + step);
            for (x, &y) in left[at..at + len].iter_mut().zip(&right[..len]) {
                *x += y;
            }
            at += 2 * step;
        }
        step *= 2;
    }
}
