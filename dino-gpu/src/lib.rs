//! DINO v1 on CUDA: a backend of own kernels for the vocabulary of `dino-kernel`, under the trainer and command line of `dino-host`.
//!
//! The driver is opened at run time ([`driver`]), the kernels come with the program ([`cuda`]), words are launches on one stream ([`ops`],
//! [`gemm`]), a step is captured once and replayed ([`gpu`]).

pub mod cuda;
mod device;
pub mod driver;
pub mod gemm;
pub mod gpu;
pub mod kernels;
mod ops;

pub use gpu::{Gpu, Launch, Options, Precision};
