//! DINO v1 on CUDA: a backend of own kernels for the vocabulary of `dino-kernel`, under the trainer and command line of `dino-host`.
//!
//! The driver is opened at run time ([`driver`]), the kernels come with the program ([`cuda`]), words are launches on one stream (`ops`,
//! [`gemm`], which takes products to [`cublaslt`] where that is there), a step is captured once and replayed ([`gpu`]).

pub mod cublaslt;
pub mod cuda;
mod device;
pub mod driver;
pub mod gemm;
pub mod gpu;
pub mod kernels;
mod ops;

pub use gpu::{Gemm, Gpu, Launch, Options, Precision};
