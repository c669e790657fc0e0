//! The sum of gradients over the GPUs of several processes: NCCL moves them, a kernel of this program adds them.
//!
//! A sum is an exchange of parts, an addition by halves and a gathering, as [`dino_kernel::group::ProcessGroup::sum`] does it between
//! hosts: so its bits are those of any engine, and of one process with as many shards. Gradients that are complete
//! ([`dino_kernel::backend::Backward::gradients_complete`]) are summed on a stream beside the rest of the backward pass; how they are
//! cut into pieces changes no bit.

use super::Gpu;
use crate::args;
use crate::cuda::{Buffer, Event, Stream};
use crate::kernels::{Kernels, Shape};
use crate::nccl::library::{Comm, UniqueId};
use crate::options::Overlap;
use dino_host::dist::Group;
use dino_host::error::{Error, Result};
use dino_host::io::host;
use dino_kernel::plan::Plan;
use std::time::Duration;

/// Numbers that go through the scratch at once.
const PIECE: usize = 1 << 22;
/// Up to so many are summed by everyone from what everyone has: one exchange instead of two.
const FEW: usize = 1024;
/// Fewer complete gradients than this wait for more.
const WORTH_IT: usize = 1 << 16;
/// How much longer the host waits for its GPU than hosts do for each other: they can name who is missing.
const GRACE: Duration = Duration::from_secs(15);
/// How long the GPU may take to end its work when nobody asks for it any more.
const AT_THE_END: Duration = Duration::from_secs(5);

/// This process's place among those that share every batch.
pub struct Sharing {
    comm: Comm,
    /// Sums that begin before the backward pass has ended.
    beside: Stream,
    scratch: Buffer,
    /// In the step's stream: gradients are complete. Beside it: they are summed.
    complete: Event,
    summed: Event,
    /// What the host waits for, of the stream itself.
    end: Event,
    overlap: bool,
    /// In the last pass of a step: gradients from this element on are summed, or will be beside it.
    begun: Option<usize>,
    group: Group,
}

impl Sharing {
    /// Bytes of its scratch.
    pub const MEMORY: u64 = 4 * PIECE as u64;

    /// `len` numbers at `at` become their sums over all ranks.
    fn sum(&self, kernels: &Kernels, stream: &Stream, mut at: u64, mut len: usize) -> Result<()> {
        let (size, scratch) = (self.comm.size(), self.scratch.at);
        let add = |n: usize| {
            let arguments = args![scratch, size as i32, n as i64];
            kernels.add_by_halves.launch(stream, Shape::flat(n), arguments)
        };
        while len > 0 {
            let part = if len <= FEW.max(size) {
                self.comm.gather(stream, scratch, at, 4 * len)?;
                add(len)?;
                stream.copy(at, scratch, 4 * len)?;
                len
            } else {
                let own = PIECE.min(len) / size;
                self.comm.exchange(stream, scratch, at, 4 * own)?;
                add(own)?;
                self.comm.gather(stream, at, scratch, 4 * own)?;
                own * size
            };
            (at, len) = (at + 4 * part as u64, len - part);
        }
        Ok(())
    }

    /// Waits for an event that other ranks' work may be in front of.
    pub(super) fn wait(&self, event: &Event) -> Result<()> {
        let patience = self.group.patience() + GRACE;
        if self.comm.wait(event, patience)? {
            return Ok(());
        }
        Err(Error::new(format!("the sum of a step's gradients has not come for {} s", patience.as_secs()))
            .hint("another process hangs, or its GPU cannot be reached; --rank-timeout sets how long is waited"))
    }
}

impl Gpu {
    /// Joins the GPUs of the group's other processes.
    ///
    /// # Errors
    /// There is no NCCL, two processes have the same GPU, or there is no memory for the sum.
    pub(crate) fn share(&mut self, group: Group) -> Result<()> {
        let id = group.from_first(|| UniqueId::new().map(|id| id.bytes().to_vec()))?;
        let id = UniqueId::from_bytes(&id).ok_or_else(|| Error::new("the first process sent no NCCL id"))?;
        let cards: Vec<(String, [u8; 16])> = group.gather_each(&(host(), self.card.uuid))?;
        for (rank, card) in cards.iter().enumerate() {
            if let Some(other) = cards[..rank].iter().position(|other| other == card) {
                group.end_together();
                let message = format!("ranks {other} and {rank} on {} have the same GPU", card.0);
                return Err(
                    Error::new(message).hint("as many processes on a machine as GPUs, each of which sees one or all")
                );
            }
        }
        let comm = Comm::join(id, group.rank(), group.size(), group.patience())?;
        self.sharing = Some(Sharing {
            comm,
            beside: Stream::new()?,
            scratch: Buffer::new(4 * PIECE)?,
            complete: Event::new()?,
            summed: Event::new()?,
            end: Event::new()?,
            overlap: self.overlap == Overlap::On,
            begun: None,
            group,
        });
        Ok(())
    }

    /// Whether sums begin within a step's last micro-batch. With several shards a process adds up its own first. Where batch norms
    /// exchange their statistics in the step's stream, a sum beside it would hold them up, and a communicator works for one stream at a
    /// time.
    pub(super) fn overlaps(&self, plan: &Plan) -> bool {
        let overlap = self.sharing.as_ref().is_some_and(|sharing| sharing.overlap);
        overlap && plan.sharding.own() == 1 && !plan.shares_statistics()
    }

    /// The last pass of a step begins: from now on what is complete may be summed, of `len` gradients.
    pub(super) fn begin_overlap(&mut self, len: usize) {
        if let Some(sharing) = &mut self.sharing {
            sharing.begun = Some(len);
        }
    }

    /// Gradients from element `from` on are complete, as far as a pass goes.
    pub(crate) fn begin_sum(&mut self, from: usize) {
        let Some(sharing) = &mut self.sharing else { return };
        let Some(begun) = sharing.begun.filter(|begun| *begun >= from + WORTH_IT) else { return };
        let at = self.grads.at + 4 * from as u64; // there is one lane
        let queued = self.stream.record(&sharing.complete).and_then(|()| {
            sharing.beside.wait_for(&sharing.complete)?;
            sharing.sum(self.kernels, &sharing.beside, at, begun - from)?;
            sharing.beside.record(&sharing.summed)
        });
        sharing.begun = Some(from);
        self.note(queued);
    }

    /// The last pass has ended: what follows in the stream waits for the sums that were begun.
    pub(super) fn end_overlap(&mut self, len: usize) {
        let Some(sharing) = &self.sharing else { return };
        if sharing.begun.is_some_and(|begun| begun < len) {
            let queued = self.stream.wait_for(&sharing.summed);
            self.note(queued);
        }
    }

    /// All gradients, as far as that has not begun, and the few other numbers, become their sums over all ranks.
    pub(crate) fn sum_over_ranks(&mut self, grads: u64, len: usize, few: [(u64, usize); 2]) {
        let Some(sharing) = &mut self.sharing else { return };
        let left = sharing.begun.take().unwrap_or(len);
        let mut spans = [(grads, left)].into_iter().chain(few);
        let queued = spans.try_for_each(|(at, len)| sharing.sum(self.kernels, &self.stream, at, len));
        self.note(queued);
    }

    /// At each of these addresses is a part of so many bytes a rank, of which this one's is set: in one exchange the others come to theirs.
    pub(crate) fn gather_over_ranks(&mut self, all: impl Iterator<Item = u64>, bytes: usize) {
        let Some(sharing) = &self.sharing else { return };
        let own = (sharing.comm.rank() * bytes) as u64;
        let queued = sharing.comm.together(|comm| {
            let mut all = all;
            all.try_for_each(|at| comm.gather(&self.stream, at, at + own, bytes))
        });
        self.note(queued);
    }

    /// This process's number; 0 alone.
    pub(crate) fn rank(&self) -> usize {
        self.sharing.as_ref().map_or(0, |sharing| sharing.comm.rank())
    }

    /// The host waits for everything queued; in a group no longer than others may take to come.
    pub(super) fn drain(&self) -> Result<()> {
        match &self.sharing {
            None => self.stream.wait(),
            Some(sharing) => {
                self.stream.record(&sharing.end)?;
                sharing.wait(&sharing.end)
            }
        }
    }

    /// The host waits for an event of its own stream, or of one that waits for it.
    pub(super) fn wait_for(&self, event: &Event) -> Result<()> {
        match &self.sharing {
            None => event.wait(),
            Some(sharing) => sharing.wait(event),
        }
    }

    /// Leaves the group, if it is in one: with the others where all are on their way to the same end, else without waiting for ranks that
    /// may be gone. Graphs go first: the library waits for those that have its work.
    pub(super) fn leave(&mut self) {
        let Some(mut sharing) = self.sharing.take() else { return };
        let ended = self.stream.record(&sharing.end).and_then(|()| sharing.comm.wait(&sharing.end, AT_THE_END));
        self.graphs = None;
        if !matches!(ended, Ok(true)) || !sharing.group.ends_together() {
            sharing.comm.abort();
        }
    }
}
