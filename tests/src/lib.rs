//! The shared harness of the integration tests: golden files and their pass rules ([`fixture`]), backends made to measure
//! ([`backend`]), and whole training runs over any of them ([`training`]).

pub mod backend;
pub mod fixture;
pub mod training;
