//! What processes and lanes exchange on the CPU.

use super::{Cpu, split};
use crate::dist::Group;
use dino_kernel::backend::{Collective, Lane, Sums};
use dino_kernel::group::GroupError;
use dino_kernel::mem::{Act, State};
use dino_kernel::params::ParamTable;

impl Cpu {
    /// The number of a lane's shard.
    pub(super) fn shard(&self, lane: usize) -> usize {
        self.group.rank() * self.lanes() + lane
    }

    /// Numbers that every lane of every process has, shard by shard: `all` has those of this process's lanes, and afterwards those of the
    /// others. Where the group fails they become NaN.
    pub(super) fn gather(&mut self, all: &mut [f32]) {
        gather(&self.group, &mut self.failure, all);
    }
}

fn gather(group: &Group, failure: &mut Option<GroupError>, all: &mut [f32]) {
    if let Err(e) = group.gather(bytemuck::cast_slice_mut(all)) {
        all.fill(f32::NAN);
        *failure = Some(e);
    }
}

impl Collective for Cpu {
    fn enter(&mut self, lane: Lane) {
        self.take(lane.0);
    }

    fn spread(&mut self, x: State) {
        self.spread_state(x);
    }

    fn all_gather(&mut self, all: Act, own: Act) {
        let (first, len) = (self.shard(0), own.len());
        let [rows, own_rows] = split(&mut self.acts, [all.0, own.0]);
        rows[first * len..][..len].copy_from_slice(own_rows);
        for (lane, of) in self.lanes.iter().enumerate().skip(1) {
            rows[(first + lane) * len..][..len].copy_from_slice(of.acts(own));
        }
        gather(&self.group, &mut self.failure, rows);
        self.lanes.iter_mut().skip(1).for_each(|of| of.set_acts(all, rows));
    }

    fn all_reduce(&mut self, table: &dyn ParamTable, sums: Sums) {
        self.add_lanes(table.len(), sums);
        if self.group.size() == 1 {
            return;
        }
        self.move_running();
        let [teacher, losses] = split(&mut self.state, [sums.teacher.0, sums.losses.0]);
        // The few numbers go in one message.
        let mut few = [&*teacher, &*losses].concat();
        let summed = self.group.sum(&mut self.grads[..table.len()]).and_then(|()| self.group.sum(&mut few));
        let (first, rest) = few.split_at(teacher.len());
        teacher.copy_from_slice(first);
        losses.copy_from_slice(rest);
        if let Some(e) = summed.err().or(self.failure) {
            losses.fill(f32::NAN);
            self.failure = Some(e);
        }
    }
}
