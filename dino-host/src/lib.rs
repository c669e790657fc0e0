//! DINO v1 on the CPU: data, augmentation, training, checkpoints, evaluation and the command line, all generic over a device.

pub mod data;
pub mod error;
