//! The mathematics of DINO v1 (self-distillation with no labels, arXiv 2104.14294), forward and backward, without `std`, without
//! allocation and without `unsafe`.
//!
//! The layers, each of which uses only those before it:
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`mem`], [`scalars`], [`dims`], [`params`], [`crops`], [`real`], [`rng`], [`group`] | spans and handles, the numbers of a step, the sizes of an operation, the rows of the parameter table, ragged batches, number types, random draws, processes that train together |
//! | [`ops`] | the formulas, forward and backward, over slices |
//! | [`backend`] | the operations as traits over handles; [`backend::reference`] runs them over the caller's slices, [`backend::wrap`] checks, times or compares any backend |
//! | [`objective`] | what the student learns: how its targets are formed, and how it is compared with them |
//! | [`model`] | the network, written once over those traits |
//! | [`plan`] | where everything is stored: sizes and offsets, no memory |
//! | [`step`] | one optimization step |
//! | [`schedule`], [`init`], [`flat`] | schedules, initial weights, a backbone as one blob for firmware |
//!
//! Notation, used everywhere: `B` images, `V` views (crops) per image, `T` tokens, `C` channels (embedding width), `H` heads,
//! `D = C / H`, `K` prototypes. Row-major. Shapes are written `(B, T, C)`. Arguments: what is written, what is read, dimensions
//! last. Gradients are `d` + name; activation gradients are set, parameter gradients accumulate. "Published" is the official code at
//! commit 7c446df.
//!
//! Memory: the sizes come first ([`plan::Plan::new`] is `const`, so an arena may be a static), then the memory, which is the caller's,
//! then the work, which cannot fail.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "std")]
extern crate std;

pub mod backend;
pub mod crops;
pub mod dims;
pub mod flat;
pub mod group;
pub mod init;
pub mod mem;
pub mod model;
pub mod objective;
pub mod ops;
pub mod optim;
pub mod params;
pub mod plan;
pub mod real;
pub mod rng;
pub mod scalars;
pub mod schedule;
pub mod step;
