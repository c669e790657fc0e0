//! Weights that travel: formats other programs write and read.

pub mod flat;
pub mod onnx;
mod proto;
