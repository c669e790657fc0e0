//! The mathematics of DINO v1 (self-distillation with no labels, arXiv 2104.14294), forward and backward, without `std`, without
//! allocation and without `unsafe`.
//!
//! Three storeys: [`ops`] (formulas over slices), [`model`] (the network, written once over the vocabulary of [`backend`]),
//! [`step`] (one optimization step). [`plan`] says where everything lies; the caller owns the memory; [`backend::reference`] runs
//! the vocabulary over caller slices, [`backend::wrap`] wraps any backend.
//!
//! Notation, used everywhere: `B` images, `V` views (crops) per image, `T` tokens, `C` channels (embedding width), `H` heads,
//! `D = C / H`, `K` prototypes. Row-major. Shapes are written `(B, T, C)`. Arguments: what is written, what is read, dimensions
//! last. Gradients are `d` + name; activation gradients are set, parameter gradients accumulate. "Published" is the official code at
//! commit 7c446df.
//!
//! Memory: sizes first ([`plan::Plan::new`] is `const`, so an arena may be a static), memory second (the caller's), work third
//! (ops cannot fail).
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "std")]
extern crate std;

pub mod backend;
pub mod crops;
pub mod dims;
pub mod flat;
pub mod init;
pub mod mem;
pub mod model;
pub mod ops;
pub mod params;
pub mod plan;
pub mod real;
pub mod rng;
pub mod scalars;
pub mod schedule;
pub mod step;
