//! What a run will take, and whether this machine computes correctly, before anything is trained.

pub mod agreement;
pub mod check;
pub mod exchange;
pub mod inspect;
pub mod memory;
