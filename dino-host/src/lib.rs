//! DINO v1 on the CPU: data, augmentation, training, checkpoints, evaluation and the command line, all generic over a device.

pub mod attend;
pub mod augment;
pub mod check;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod cpu;
pub mod data;
pub mod device;
pub mod error;
pub mod eval;
pub mod export;
pub mod features;
pub mod inspect;
pub mod loader;
pub mod log;
pub mod memory;
pub mod monitor;
pub mod resize;
pub mod sheets;
pub mod train;
pub mod weights;
