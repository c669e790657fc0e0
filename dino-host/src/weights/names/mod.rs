//! What tensors are called, by this program and by others.

mod vit;

pub use vit::{Naming, TensorPart, foreign, from_hf, harmless, to_hf};
