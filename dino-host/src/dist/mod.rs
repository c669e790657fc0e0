//! Processes that share every batch: the engines by which they sum what a step must have from all of them.

pub mod threads;

use crate::error::Error;
use dino_kernel::group::{GroupError, ProcessGroup, Solo};

/// A process's membership in a group, by any engine.
#[derive(Debug)]
pub enum Group {
    /// One process, alone.
    Solo(Solo),
    /// A thread of this process, one of several.
    Threads(threads::Member),
}

impl Default for Group {
    /// Alone.
    fn default() -> Group {
        Group::Solo(Solo)
    }
}

impl Group {
    fn engine(&self) -> &dyn ProcessGroup {
        match self {
            Group::Solo(alone) => alone,
            Group::Threads(member) => member,
        }
    }

    /// What a user reads where the group has failed.
    pub fn explain(&self, e: GroupError) -> Error {
        let (rank, size) = (self.rank(), self.size());
        Error::new(format!("{e}; rank {rank} of {size} cannot go on without it"))
            .hint("what went wrong first is told by the rank that is named")
    }
}

impl ProcessGroup for Group {
    fn rank(&self) -> usize {
        self.engine().rank()
    }

    fn size(&self) -> usize {
        self.engine().size()
    }

    fn sum(&mut self, x: &mut [f32]) -> Result<(), GroupError> {
        match self {
            Group::Solo(alone) => alone.sum(x),
            Group::Threads(member) => member.sum(x),
        }
    }
}
