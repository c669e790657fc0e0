//! The parameter table on the device, for the launches over the flat pools.

use super::Gpu;
use crate::cuda::Buffer;
use dino_host::error::Result;
use dino_kernel::params::{ParamTable, Role, Spec};

/// The parameter table on the device, in chunks of equal work.
pub(super) struct OptimizerTable {
    pub(super) chunks: Chunks,
    _memory: [Buffer; 5],
}

/// Addresses and numbers for the launches over the flat pools.
#[derive(Clone, Copy)]
pub(crate) struct Chunks {
    pub chunks: u64,
    pub first: u64,
    pub squares: u64,
    pub tensor_squares: u64,
    pub factors: u64,
    pub count: usize,
    pub tensors: usize,
}

/// A chunk as `optim.cu` has it (`Piece`).
#[repr(C)]
struct Chunk {
    at: i64,
    len: i32,
    tensor: i32,
    flags: i32,
    pad: i32,
}

/// Elements of a chunk: 64 a thread.
const CHUNK: usize = 1 << 14;

impl Gpu {
    /// The table's chunks on the device. Made at its first use, which a captured step is never.
    pub(crate) fn chunks(&mut self, table: &dyn ParamTable) -> Option<Chunks> {
        let mut tensors = Vec::new();
        table.visit(&mut |spec| tensors.push(spec));
        if let Some((known, o)) = &self.optimizer
            && *known == tensors
        {
            return Some(o.chunks);
        }
        match self.lay_out(&tensors) {
            Ok(o) => {
                let chunks = o.chunks;
                self.optimizer = Some((tensors, o));
                Some(chunks)
            }
            Err(e) => {
                self.fail(e);
                None
            }
        }
    }

    fn lay_out(&self, tensors: &[Spec]) -> Result<OptimizerTable> {
        let (mut chunks, mut first) = (Vec::new(), vec![0i32]);
        for spec in tensors {
            let flags = match spec.role {
                Role::Decay => 1,
                Role::Plain => 0,
                Role::Frozen => 2,
            } + if spec.last_layer { 4 } else { 0 };
            for from in (0..spec.at.len()).step_by(CHUNK) {
                let len = CHUNK.min(spec.at.len() - from) as i32;
                chunks.push(Chunk {
                    at: (spec.at.0.at + from) as i64,
                    len,
                    tensor: first.len() as i32 - 1,
                    flags,
                    pad: 0,
                });
            }
            first.push(chunks.len() as i32);
        }
        let tensors = first.len() - 1;
        let memory = [
            Buffer::new(size_of_val(&chunks[..]))?,
            Buffer::new(size_of_val(&first[..]))?,
            Buffer::new(8 * chunks.len())?,
            Buffer::new(8 * tensors)?,
            Buffer::new(4 * tensors)?,
        ];
        // SAFETY: the vectors have those bytes and outlive the wait.
        unsafe {
            self.stream.upload(memory[0].at, chunks.as_ptr().cast(), memory[0].bytes)?;
            self.stream.upload(memory[1].at, first.as_ptr().cast(), memory[1].bytes)?;
        }
        self.stream.wait()?;
        let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(|i| memory[i].at);
        let count = chunks.len();
        let chunks = Chunks { chunks: a, first: b, squares: c, tensor_squares: d, factors: e, count, tensors };
        Ok(OptimizerTable { chunks, _memory: memory })
    }
}
