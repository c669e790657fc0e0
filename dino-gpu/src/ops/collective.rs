//! What the lanes of a process, and processes with a GPU each, exchange.

use crate::gpu::Gpu;
use dino_kernel::backend::wrap::Lanes;
use dino_kernel::backend::{Collective, Lane, Sums};
use dino_kernel::mem::{Act, State};
use dino_kernel::params::ParamTable;

impl Gpu {
    /// The number of a lane's shard.
    pub(super) fn shard(&self, lane: usize) -> usize {
        self.rank() * self.lanes() + lane
    }

    /// [`Lanes::each`] of them.
    pub(super) fn in_lanes(&mut self, work: impl FnMut(&mut Gpu, usize)) {
        let lanes = self.lanes();
        Lanes::new(self, lanes).each(work);
    }

    /// So many bytes of the first lane, where `at` finds them in each, become those of all.
    pub(super) fn spread_bytes(&mut self, bytes: usize, at: impl Fn(&Gpu) -> u64) {
        let from = at(self);
        for lane in 1..self.lanes() {
            self.take_lane(lane);
            self.copy_bytes(at(self), from, bytes);
        }
        self.take_lane(0);
    }

    /// The first lane's gradients and sums become those of all lanes, added by halves.
    fn add_lanes(&mut self, table: &dyn ParamTable, sums: Sums) {
        let (lanes, mut step) = (self.lanes(), 1);
        while step < lanes {
            for at in (0..lanes - step).step_by(2 * step) {
                self.take_lane(at + step);
                let further = self.shard_sums(table, sums);
                self.take_lane(at);
                for ((to, len), (from, _)) in self.shard_sums(table, sums).into_iter().zip(further) {
                    self.sum_parts(to, from, len, 1, 0);
                }
            }
            step *= 2;
        }
        self.take_lane(0);
    }
}

impl Collective for Gpu {
    fn enter(&mut self, lane: Lane) {
        self.take_lane(lane.0);
    }

    fn spread(&mut self, x: State) {
        self.spread_bytes(4 * x.len(), |gpu| gpu.state(x));
    }

    fn all_gather(&mut self, all: Act, own: Act) {
        let (to, bytes) = (self.act(all), own.len() * self.act_bytes());
        self.in_lanes(|gpu, lane| {
            let at = to + (gpu.shard(lane) * bytes) as u64;
            gpu.copy_bytes(at, gpu.act(own), bytes);
        });
        self.gather_over_ranks([to].into_iter(), self.lanes() * bytes);
        self.spread_bytes(all.len() * self.act_bytes(), |gpu| gpu.act(all));
    }

    fn all_reduce(&mut self, table: &dyn ParamTable, sums: Sums) {
        self.add_lanes(table, sums);
        let (grads, few) = (self.all_grads().0, [sums.teacher, sums.losses].map(|s| (self.state(s), s.len())));
        self.sum_over_ranks(grads, table.len(), few);
    }
}
