//! Linear algebra that the CPU backend and the evaluations share: matmuls, kernels over rows, transposes, eigenvectors, the strongest direction.

pub mod columns;
pub mod eigen;
pub mod fast;
pub mod gemm;
pub mod leading;
mod packed;
mod portable;
pub mod rows;
pub(crate) mod simd;
pub mod small;
pub mod taps;
pub(crate) mod transpose;

use std::cell::RefCell;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `len` elements of this thread's scratch, which keeps its largest size, from a cache line's start on. One user at a time: `f` may
/// not ask for scratch again, as matmuls do.
pub(crate) fn with_scratch(len: usize, f: impl FnOnce(&mut [f32])) {
    SCRATCH.with_borrow_mut(|s| {
        if s.len() < len + 15 {
            // What our matmuls take at most, at once: grown step by step it would be twice what is used. The old one goes first.
            let least = if packed::isa().is_some() { packed::SCRATCH } else { 0 };
            *s = Vec::new();
            *s = vec![0.0; len.max(least) + 15];
        }
        let first = s.as_ptr().align_offset(64);
        f(&mut s[first..][..len])
    })
}
