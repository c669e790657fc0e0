//! A backbone as an ONNX model.

mod proto;
mod vit;

pub use vit::{Size, write};
