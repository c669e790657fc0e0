//! Weights that travel: formats other programs write and read.

pub mod flat;
