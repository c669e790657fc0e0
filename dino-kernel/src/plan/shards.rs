//! How the images of a step are dealt to processes, and in which order the sums over them are formed.
//!
//! A batch is cut into equal shards of consecutive micro-batches. A shard's sums (the gradients, the teacher's rows, loss and entropy)
//! start from zero, its micro-batches add to them one after another; then shards are added by halves, (0 + 1) + (2 + 3) and so on
//! ([`crate::group::add_by_halves`]). A process that holds a power of two of consecutive shards forms a part of that very sum by
//! itself. So the bits of a step depend on the number of shards, not on how many processes share them. With one shard, which is
//! what a process alone has unless it is asked for more, all micro-batches add to one sum and nothing is kept aside.

use super::{Plan, PlanError};
use crate::backend::Sums;
use crate::mem::{Cursor, State};
use crate::model::Table;
use crate::scalars::monitor;
use core::ops::Range;

/// The shards of a batch, and the processes that share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharding {
    /// Equal parts of the batch, each an integer number of micro-batches. The bits of a step depend on it.
    pub shards: usize,
    /// Processes, each with equally many shards: a power of two, unless one process has them all.
    pub ranks: usize,
}

impl Sharding {
    /// One process, one shard.
    pub const SOLO: Sharding = Sharding { shards: 1, ranks: 1 };

    /// Shards of one process.
    pub const fn own(&self) -> usize {
        self.shards / self.ranks
    }

    /// Sums that a process keeps aside at most while it forms those of the next shard: one for every bit of a number below `own`.
    const fn kept(&self) -> usize {
        self.own().ilog2() as usize
    }

    pub(super) const fn check(&self, micro_batches: usize) -> Result<(), PlanError> {
        let Sharding { shards, ranks } = *self;
        if shards == 0 || ranks == 0 {
            return Err(PlanError::Zero("the number of shards and of processes"));
        }
        if !micro_batches.is_multiple_of(shards) {
            return Err(PlanError::Shards { micro_batches, shards });
        }
        if !shards.is_multiple_of(ranks) || (ranks > 1 && !self.own().is_power_of_two()) {
            return Err(PlanError::Ranks { shards, ranks });
        }
        Ok(())
    }

    /// Elements that the kept sums take; nothing where that is more than memory can have.
    pub(super) const fn kept_len(&self, table: &Table) -> Option<usize> {
        match stride(table).checked_mul(self.kept()) {
            Some(len) if len <= isize::MAX as usize / 64 => Some(len),
            _ => None,
        }
    }
}

/// Numbers of the monitor that are summed over rows: loss and entropy.
const LOSSES: usize = 2;

/// Elements of a shard's sums.
const fn sums_len(table: &Table) -> usize {
    table.len() + table.head.cols() + LOSSES
}

/// How far apart kept sums are stored.
const fn stride(table: &Table) -> usize {
    sums_len(table).next_multiple_of(Cursor::ALIGN)
}

impl Plan {
    /// Micro-batches of a shard.
    pub const fn shard_parts(&self) -> usize {
        self.parts() / self.sharding.own()
    }

    /// The images of the batch that process `rank` trains on.
    pub const fn images_of(&self, rank: usize) -> Range<usize> {
        let own = self.config.batch / self.sharding.ranks;
        rank * own..(rank + 1) * own
    }

    /// Whether processes exchange something in the middle of a step, not only its sums.
    pub const fn meets(&self) -> bool {
        self.sharding.ranks > 1 && self.config.objective.whole_batch()
    }

    /// What a step sums over images beside the gradients.
    pub const fn sums(&self) -> Sums {
        Sums { teacher: self.targets.sum, losses: self.monitor.part(monitor::LOSS, LOSSES) }
    }

    /// Where sum `i` of those that are kept aside is stored.
    pub(crate) const fn kept_sums(&self, i: usize) -> State {
        self.shard_sums.part(i * stride(&self.table), sums_len(&self.table))
    }
}
