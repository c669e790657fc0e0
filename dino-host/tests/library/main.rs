//! The library from outside, in one program: what is generic over a device is compiled once for all of these tests.

#[allow(dead_code)]
#[path = "../cli/common.rs"]
mod common;

mod containers;
mod crops;
mod dense;
mod flat;
mod image;
mod image_more;
mod onnx;
mod probes;
mod resnet;
mod weights;
