//! The parameter table on the device: its tensors in chunks of equal work, and scratch for their norms.

use super::Gpu;
use crate::cuda::Buffer;
use dino_host::error::Result;
use dino_kernel::params::{ParamTable, Spec};

/// Addresses and numbers for the launches over the flat pools.
#[derive(Clone, Copy)]
pub(crate) struct Chunks {
    pub chunks: u64,
    /// Where each tensor's chunks begin, and where the last one's end.
    pub first: u64,
    /// Sums of squares, of the chunks (room for two each) and of the tensors, and every tensor's factor.
    pub squares: u64,
    pub tensor_squares: u64,
    pub factors: u64,
    pub count: usize,
    pub tensors: usize,
}

/// The table that was seen last, with the memory that its chunks are in.
pub(super) struct DeviceTable {
    tensors: Vec<Spec>,
    chunks: Chunks,
    _memory: [Buffer; 5],
}

/// A chunk as `scalars.cuh` has it.
#[repr(C)]
struct Chunk {
    at: i64,
    len: i32,
    tensor: i32,
    group: i32,
    pad: i32,
}

/// Elements of a chunk: 64 a thread.
const CHUNK: usize = 1 << 14;

impl Gpu {
    /// The table's chunks on the device. Made at its first use, which a captured step is never.
    pub(crate) fn chunks(&mut self, table: &dyn ParamTable) -> Option<Chunks> {
        let mut tensors = Vec::new();
        table.visit(&mut |spec| tensors.push(spec));
        if let Some(known) = &self.table
            && known.tensors == tensors
        {
            return Some(known.chunks);
        }
        match self.lay_out(tensors) {
            Ok(table) => {
                let chunks = table.chunks;
                self.table = Some(table);
                Some(chunks)
            }
            Err(e) => {
                self.fail(e);
                None
            }
        }
    }

    fn lay_out(&self, tensors: Vec<Spec>) -> Result<DeviceTable> {
        let (mut chunks, mut first) = (Vec::new(), vec![0i32]);
        for (tensor, spec) in tensors.iter().enumerate() {
            let group = if spec.frozen { -1 } else { spec.group as i32 };
            for from in (0..spec.at.len()).step_by(CHUNK) {
                let len = CHUNK.min(spec.at.len() - from) as i32;
                chunks.push(Chunk { at: (spec.at.0.at + from) as i64, len, tensor: tensor as i32, group, pad: 0 });
            }
            first.push(chunks.len() as i32);
        }
        let memory = [
            Buffer::new(size_of_val(&chunks[..]))?,
            Buffer::new(size_of_val(&first[..]))?,
            Buffer::new(16 * chunks.len())?,
            Buffer::new(8 * tensors.len())?,
            Buffer::new(4 * tensors.len())?,
        ];
        // SAFETY: the vectors have those bytes and outlive the wait.
        unsafe {
            self.stream.upload(memory[0].at, chunks.as_ptr().cast(), memory[0].bytes)?;
            self.stream.upload(memory[1].at, first.as_ptr().cast(), memory[1].bytes)?;
        }
        self.stream.wait()?;
        let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(|i| memory[i].at);
        let (count, tensor_count) = (chunks.len(), tensors.len());
        let chunks =
            Chunks { chunks: a, first: b, squares: c, tensor_squares: d, factors: e, count, tensors: tensor_count };
        Ok(DeviceTable { tensors, chunks, _memory: memory })
    }
}
