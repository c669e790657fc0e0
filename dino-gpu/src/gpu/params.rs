//! The parameter table on the device, for the launches over the flat pools.

use super::Gpu;
use crate::cuda::Buffer;
use dino_host::error::Result;
use dino_kernel::params::{ParamTable, Role, Spec};

/// The parameter table on the device, in pieces of equal work.
pub(super) struct Optimiser {
    pub(super) pieces: Pieces,
    _memory: [Buffer; 5],
}

/// Addresses and numbers for the launches over the flat pools.
#[derive(Clone, Copy)]
pub(crate) struct Pieces {
    pub pieces: u64,
    pub first: u64,
    pub squares: u64,
    pub tensor_squares: u64,
    pub factors: u64,
    pub count: usize,
    pub tensors: usize,
}

/// A piece as `optim.cu` has it.
#[repr(C)]
struct Piece {
    at: i64,
    len: i32,
    tensor: i32,
    flags: i32,
    pad: i32,
}

/// Elements of a piece: 64 a thread.
const PIECE: usize = 1 << 14;

impl Gpu {
    /// The table's pieces on the device. Made at its first use, which a captured step is never.
    pub(crate) fn pieces(&mut self, table: &dyn ParamTable) -> Option<Pieces> {
        let mut tensors = Vec::new();
        table.visit(&mut |spec| tensors.push(spec));
        if let Some((known, o)) = &self.optimiser
            && *known == tensors
        {
            return Some(o.pieces);
        }
        match self.lay_out(&tensors) {
            Ok(o) => {
                let pieces = o.pieces;
                self.optimiser = Some((tensors, o));
                Some(pieces)
            }
            Err(e) => {
                self.fail(e);
                None
            }
        }
    }

    fn lay_out(&self, tensors: &[Spec]) -> Result<Optimiser> {
        let (mut pieces, mut first) = (Vec::new(), vec![0i32]);
        for spec in tensors {
            let flags = match spec.role {
                Role::Decay => 1,
                Role::Plain => 0,
                Role::Frozen => 2,
            } + if spec.last_layer { 4 } else { 0 };
            for from in (0..spec.at.len()).step_by(PIECE) {
                let len = PIECE.min(spec.at.len() - from) as i32;
                pieces.push(Piece {
                    at: (spec.at.0.at + from) as i64,
                    len,
                    tensor: first.len() as i32 - 1,
                    flags,
                    pad: 0,
                });
            }
            first.push(pieces.len() as i32);
        }
        let tensors = first.len() - 1;
        let memory = [
            Buffer::new(size_of_val(&pieces[..]))?,
            Buffer::new(size_of_val(&first[..]))?,
            Buffer::new(8 * pieces.len())?,
            Buffer::new(8 * tensors)?,
            Buffer::new(4 * tensors)?,
        ];
        // SAFETY: the vectors have those bytes and outlive the wait.
        unsafe {
            self.stream.upload(memory[0].at, pieces.as_ptr().cast(), memory[0].bytes)?;
            self.stream.upload(memory[1].at, first.as_ptr().cast(), memory[1].bytes)?;
        }
        self.stream.wait()?;
        let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(|i| memory[i].at);
        let count = pieces.len();
        let pieces = Pieces { pieces: a, first: b, squares: c, tensor_squares: d, factors: e, count, tensors };
        Ok(Optimiser { pieces, _memory: memory })
    }
}
