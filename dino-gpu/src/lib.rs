//! DINO v1 on CUDA: a backend of own kernels for the vocabulary of `dino-kernel`, under the trainer and command line of `dino-host`.
//!
//! The driver is opened at run time ([`cuda::driver`]), the kernels come with the program ([`cuda`]), ops are launches on one stream
//! (`ops`, [`gemm`], which takes matmuls to [`cuda::cublaslt`] where that is there), a step is captured once and replayed ([`gpu`]).
//! Several GPUs share a run by [`nccl`], a process each.

pub mod check;
pub mod cuda;
mod device;
pub mod gemm;
pub mod gpu;
pub mod kernels;
pub mod matmul;
pub mod nccl;
mod ops;
pub mod options;

pub use gpu::Gpu;
pub use options::{Gemm, Gpus, Launch, Options, Overlap, Precision};
