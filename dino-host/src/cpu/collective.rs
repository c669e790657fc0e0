//! Sums over processes on the CPU.

use super::{Cpu, split};
use dino_kernel::backend::{Collective, Sums};
use dino_kernel::group::ProcessGroup;
use dino_kernel::params::ParamTable;

impl Collective for Cpu {
    fn all_reduce(&mut self, table: &dyn ParamTable, sums: Sums) {
        let [teacher, losses] = split(&mut self.state, [sums.teacher.0, sums.losses.0]);
        let mut all = [&mut self.grads[..table.len()], teacher, losses];
        if let Err(e) = all.iter_mut().try_for_each(|x| self.group.sum(x)) {
            let [.., losses] = all;
            losses.fill(f32::NAN);
            self.failure = Some(e);
        }
    }
}
