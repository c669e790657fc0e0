//! The shared harness of the integration tests: golden files and their pass rules ([`fixture`]), backends made to measure
//! ([`backend`]), the GPU or its emulation as one of them ([`gpu`]), the table of op cases ([`cases`]), random plans ([`plans`]), and
//! full training runs over any of them ([`training`]).

pub mod backend;
pub mod cases;
pub mod fixture;
pub mod gpu;
pub mod plans;
pub mod runs;
pub mod training;
