//! What processes exchange on the CPU.

use super::{Cpu, split};
use dino_kernel::backend::{Collective, Sums};
use dino_kernel::mem::Act;
use dino_kernel::params::ParamTable;

impl Collective for Cpu {
    fn all_gather(&mut self, all: Act, own: Act) {
        let [all, own] = split(&mut self.acts, [all.0, own.0]);
        all[self.group.rank() * own.len()..][..own.len()].copy_from_slice(own);
        if let Err(e) = self.group.gather(bytemuck::cast_slice_mut(all)) {
            all.fill(f32::NAN);
            self.failure = Some(e);
        }
    }

    fn all_reduce(&mut self, table: &dyn ParamTable, sums: Sums) {
        if self.group.size() == 1 {
            return;
        }
        let [teacher, losses] = split(&mut self.state, [sums.teacher.0, sums.losses.0]);
        // The few numbers go in one message.
        let mut few = [&*teacher, &*losses].concat();
        let summed = self.group.sum(&mut self.grads[..table.len()]).and_then(|()| self.group.sum(&mut few));
        let (first, rest) = few.split_at(teacher.len());
        teacher.copy_from_slice(first);
        losses.copy_from_slice(rest);
        if let Err(e) = summed {
            losses.fill(f32::NAN);
            self.failure = Some(e);
        }
    }
}
