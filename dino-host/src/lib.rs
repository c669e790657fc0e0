//! DINO v1 on the CPU: data, augmentation, training, checkpoints, evaluation and the command line, all generic over a device.

#[macro_use]
pub mod output; // first: its macros are used everywhere below

pub mod animate;
pub mod attend;
pub mod augment;
pub mod check;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod cpu;
pub mod data;
pub mod device;
pub mod dist;
pub mod eigen;
pub mod error;
pub mod eval;
pub mod export;
pub mod features;
pub mod film;
pub mod gallery;
pub mod inspect;
pub mod loader;
pub mod log;
pub mod look;
pub mod masks;
pub mod memory;
pub mod monitor;
pub mod neighbours;
pub mod npy;
pub mod pca;
pub mod picture;
pub mod progress;
pub mod report;
pub mod resize;
pub mod sheets;
pub mod signals;
pub mod tensorboard;
pub mod text;
pub mod train;
pub mod weights;
