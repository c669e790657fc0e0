//! Processes with a GPU each, joined by NVIDIA's NCCL, which is opened at run time as the driver is.
//!
//! [`library`] is NCCL; [`engine`] moves what the host exchanges (what processes agree on, features) where no MPI does. Gradients never
//! leave the GPUs: see `gpu/sharing.rs`.

pub mod engine;
pub mod library;
