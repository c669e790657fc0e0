#![no_std]
#![forbid(unsafe_code)]
//! The mathematics of DINO v1.

pub mod mem;
pub mod rng;
