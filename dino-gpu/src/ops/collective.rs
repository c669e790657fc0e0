//! Sums over processes, each with a GPU.

use crate::gpu::Gpu;
use dino_kernel::backend::{Collective, Sums};
use dino_kernel::params::ParamTable;

impl Collective for Gpu {
    fn all_reduce(&mut self, table: &dyn ParamTable, sums: Sums) {
        let (grads, few) = (self.all_grads().0, [sums.teacher, sums.losses].map(|s| (self.state(s), s.len())));
        self.sum_over_ranks(grads, table.len(), few);
    }
}
