//! How the images of a step are dealt to processes, and in which order the sums over them are formed.
//!
//! A batch is cut into equal shards of consecutive micro-batches. A shard's sums (the gradients, the teacher's rows, loss and entropy)
//! start from zero, its micro-batches add to them one after another; then shards are added by halves, (0 + 1) + (2 + 3) and so on
//! ([`crate::group::add_by_halves`]). A process that holds a power of two of consecutive shards forms a part of that very sum by
//! itself. So the bits of a step depend on the number of shards, not on how many processes share them.
//!
//! Batch norms over the full batch take numbers of all shards in every layer. Then a shard is one micro-batch, all shards go through a step
//! side by side, and those of one process are its lanes ([`crate::backend::wrap::Lanes`]). With one shard, which is
//! what a process alone has unless it is asked for more, all micro-batches add to one sum and nothing is kept aside.

use super::{Config, Plan, PlanError};
use crate::backend::Sums;
use crate::mem::{Cursor, State};
use crate::model::check::{MOST, mul};
use crate::model::{Statistics, Table};
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

    /// Whether batch norms take their statistics over several shards: over the full batch, for other groups are within a micro-batch.
    pub(super) const fn share_statistics(&self, config: &Config) -> bool {
        let norms = config.backbone.batch_statistics() || config.head.batch_statistics();
        norms && self.shards > 1 && config.group() == config.batch
    }

    /// Shards that a process works on side by side: all of its own where they exchange in the middle of a step, else one after another.
    pub(super) const fn lanes(&self, config: &Config) -> usize {
        if self.share_statistics(config) { self.own() } else { 1 }
    }

    /// Where batch norms take their statistics from in a step.
    pub(super) const fn statistics(&self, config: &Config) -> Statistics {
        let images = config.micro_batch;
        match self.share_statistics(config) {
            true => Statistics::Groups { images, group: images, shards: self.shards },
            false => Statistics::Groups { images, group: config.group(), shards: 1 },
        }
    }

    /// Numbers that batch norms exchange at once, or a bound of it. Over the full batch those are the two of every column of a group in
    /// each shard, of one batch norm; of groups in one shard, those of all batch norms and groups of a step, in this process and then in
    /// all, from which the running statistics move. Nothing where that is more than memory can have.
    pub(super) const fn exchanged(&self, config: &Config, table: &Table) -> Option<usize> {
        let of_student = mul(mul(1, config.views.len()), table.buffers_len());
        let numbers = if self.share_statistics(config) {
            mul(of_student, self.shards)
        } else if self.ranks == 1 || !table.batch_statistics() {
            0
        } else {
            let groups = config.batch / config.group();
            let of_group = of_student.saturating_add(table.of_teacher().buffers_len() as u128);
            mul(of_group, groups).saturating_add(mul(of_group, groups / self.ranks))
        };
        if numbers <= MOST { Some(numbers as usize) } else { None }
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

    /// Elements that the kept sums take; nothing where that is more than memory can have. Lanes have theirs at once.
    pub(super) const fn kept_len(&self, config: &Config, table: &Table) -> Option<usize> {
        let kept = if self.lanes(config) > 1 { 0 } else { self.kept() };
        match stride(table).checked_mul(kept) {
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

    /// Whether batch norms take their statistics over several shards, so that these exchange in every one of them.
    pub const fn shares_statistics(&self) -> bool {
        self.sharding.share_statistics(&self.config)
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
