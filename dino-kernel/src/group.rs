//! Processes that train together: what their engine (MPI, NCCL, threads) must offer, and the order in which their sums are formed.
//!
//! An engine moves bytes. Sums are formed here, in an order that depends on nothing but the number of ranks, so that every engine, every
//! library and every size of message gives the same bits.

use crate::real::Real;
use core::fmt;

/// Why processes could not exchange what they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupError {
    /// This rank has left the group, or cannot be reached.
    Lost {
        /// The rank that is missing.
        rank: usize,
    },
    /// This rank brings so many bytes, and others bring so many.
    Disagree {
        /// The rank that differs.
        rank: usize,
        /// Bytes that it brings.
        len: usize,
        /// Bytes that the ranks before it bring.
        others: usize,
    },
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            GroupError::Lost { rank } => write!(f, "rank {rank} has left the group"),
            GroupError::Disagree { rank, len, others } => {
                write!(f, "rank {rank} brings {len} bytes, the ranks before it {others}")
            }
        }
    }
}

impl core::error::Error for GroupError {}

/// Up to so many numbers are summed by everyone from what everyone has: one exchange instead of two. At least a number a rank.
const fn few(size: usize) -> usize {
    if size > 1024 { size } else { 1024 }
}

/// One process's membership in a group of processes that share every batch. Each is a rank, numbered from 0.
///
/// All ranks make the same calls with the same lengths in the same order. An error is final: all ranks get one, now or at their next
/// call, and every later call is an error too.
pub trait ProcessGroup {
    /// This process's number.
    fn rank(&self) -> usize;
    /// How many processes there are.
    fn size(&self) -> usize;

    /// `all` has one part of equal length a rank; this rank's is set, and afterwards the others' are too.
    ///
    /// # Errors
    /// A rank has left the group or cannot be reached, or the ranks' lengths differ.
    fn gather(&mut self, all: &mut [u8]) -> Result<(), GroupError>;

    /// `to` and `from` have one part of equal length a rank. Part r of `from` goes to rank r, where it becomes the part of `to` that is
    /// numbered as this rank is.
    ///
    /// # Errors
    /// As [`ProcessGroup::gather`].
    fn exchange(&mut self, to: &mut [u8], from: &[u8]) -> Result<(), GroupError>;

    /// `x` becomes rank 0's.
    ///
    /// # Errors
    /// As [`ProcessGroup::gather`].
    fn broadcast(&mut self, x: &mut [u8]) -> Result<(), GroupError>;

    /// `x` becomes the sum of every rank's `x`, formed as [`add_by_halves`] does: the same bits on every rank. `scratch` has at least
    /// [`sum_scratch`] numbers; the more it has, the fewer and larger are the messages.
    ///
    /// # Errors
    /// As [`ProcessGroup::gather`].
    fn sum(&mut self, x: &mut [f32], scratch: &mut [f32]) -> Result<(), GroupError> {
        let (rank, size) = (self.rank(), self.size());
        if size == 1 {
            return Ok(());
        }
        let most = scratch.len() / size;
        let mut rest = x;
        while !rest.is_empty() {
            let few = rest.len() <= few(size);
            // What a rank adds up, and all ranks together.
            let own = if few { rest.len() } else { most.min(rest.len() / size) };
            let (part, tail) = rest.split_at_mut(if few { own } else { own * size });
            let scratch = &mut scratch[..own * size];
            if few {
                scratch[rank * own..][..own].copy_from_slice(part);
                self.gather(bytemuck::cast_slice_mut(scratch))?;
                add_by_halves(scratch, own);
                part.copy_from_slice(&scratch[..own]);
            } else {
                self.exchange(bytemuck::cast_slice_mut(scratch), bytemuck::cast_slice(part))?;
                add_by_halves(scratch, own);
                part[rank * own..][..own].copy_from_slice(&scratch[..own]);
                self.gather(bytemuck::cast_slice_mut(part))?;
            }
            rest = tail;
        }
        Ok(())
    }
}

/// The least scratch of [`ProcessGroup::sum`] for so many ranks, in numbers.
pub const fn sum_scratch(size: usize) -> usize {
    few(size) * size
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

    fn gather(&mut self, _all: &mut [u8]) -> Result<(), GroupError> {
        Ok(())
    }

    fn exchange(&mut self, to: &mut [u8], from: &[u8]) -> Result<(), GroupError> {
        to.copy_from_slice(from);
        Ok(())
    }

    fn broadcast(&mut self, _x: &mut [u8]) -> Result<(), GroupError> {
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
