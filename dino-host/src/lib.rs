//! DINO v1 on the CPU: data, augmentation, training, checkpoints, evaluation and the command line, all generic over a device.

#[macro_use]
pub mod io; // first: its macros are used everywhere below

pub mod cli;
pub mod config;
pub mod cpu;
pub mod data;
pub mod device;
pub mod dist;
pub mod error;
pub mod eval;
pub mod image;
pub mod inference;
pub mod linalg;
pub mod planning;
pub mod report;
pub mod train;
pub mod viz;
pub mod weights;
