//! What the lanes of a process, and processes with a GPU each, exchange.

use crate::gpu::Gpu;
use dino_kernel::backend::{Collective, Lane, Sums};
use dino_kernel::mem::{Act, State};
use dino_kernel::params::ParamTable;

impl Gpu {
    /// The number of a lane's shard.
    pub(super) fn shard(&self, lane: usize) -> usize {
        self.rank() * self.lanes() + lane
    }

    /// Does the same in every lane, the first one last.
    pub(super) fn in_lanes(&mut self, mut work: impl FnMut(&mut Gpu, usize)) {
        for lane in (0..self.lanes()).rev() {
            self.take_lane(lane);
            work(self, lane);
        }
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
        let (from, bytes) = (self.state(x), 4 * x.len());
        for lane in 1..self.lanes() {
            self.take_lane(lane);
            self.copy_bytes(self.state(x), from, bytes);
        }
        self.take_lane(0);
    }

    fn all_gather(&mut self, all: Act, own: Act) {
        let (to, bytes) = (self.act(all), own.len() * self.act_bytes());
        self.in_lanes(|gpu, lane| {
            let at = to + (gpu.shard(lane) * bytes) as u64;
            gpu.copy_bytes(at, gpu.act(own), bytes);
        });
        self.gather_over_ranks([to].into_iter(), self.lanes() * bytes);
        for lane in 1..self.lanes() {
            self.take_lane(lane);
            self.copy_bytes(self.act(all), to, all.len() * self.act_bytes());
        }
        self.take_lane(0);
    }

    fn all_reduce(&mut self, table: &dyn ParamTable, sums: Sums) {
        self.add_lanes(table, sums);
        let (grads, few) = (self.all_grads().0, [sums.teacher, sums.losses].map(|s| (self.state(s), s.len())));
        self.sum_over_ranks(grads, table.len(), few);
    }
}
