//! The mathematics of DINO v1 (self-distillation with no labels, arXiv 2104.14294), forward and backward, without `std`, without
//! allocation and without `unsafe`.
//!
//! # Layers
//!
//! [`ops`] -> [`backend`] -> [`optim`] and [`objective`] -> [`model`] -> [`plan`] -> [`step`]. What a backend is and what a plan lays out
//! are separate: a plan runs on every backend, and no backend knows the model.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`mem`], [`scalars`], [`dims`], [`params`], [`crops`], [`real`], [`rng`], [`group`] | spans and handles, the numbers of a step, the sizes of an operation, the rows of the parameter table, ragged batches, number types, random draws, processes that train together |
//! | [`ops`] | the formulas, forward and backward, over slices |
//! | [`backend`] | the same as traits over handles; [`backend::reference`] runs them over the caller's slices, [`backend::wrap`] checks, times or compares any backend |
//! | [`optim`] | the end of a step: the clip, the optimizer, how the student moves the teacher; it knows no op, backends call it chunk by chunk |
//! | [`objective`] | what the student learns: how its targets are formed, and how it is compared with them |
//! | [`model`] | the network, written once over those traits: backbones and the projection head |
//! | [`plan`] | where everything is stored: sizes and offsets, no memory |
//! | [`step`] | one optimization step: `begin`, then `micro_batch` and `end_part` for each, `reduce`, `commit` |
//! | [`schedule`], [`init`], [`flat`] | schedules, initial weights, a backbone as one blob for firmware |
//!
//! # Memory
//!
//! - The sizes come first ([`plan::Plan::new`] is `const`, so an arena may be a static), then the memory, which is the caller's, then
//!   the work, which cannot fail: making a plan is where a shape is refused.
//! - There are six pools ([`mem::Pool`]). The type of a handle fixes its pool ([`mem::Act`], [`mem::Weight`], [`mem::Stat`],
//!   [`mem::State`]) and with it the element type. Gradients are stored at their parameters' offsets.
//! - A span that an op writes overlaps none of its other operands ([`backend::wrap::Checked`]). A plan's spans begin at multiples of
//!   [`mem::Cursor::ALIGN`] elements.
//! - What is not needed at the same time shares memory: the passes one after another, and pixels with what follows them.
//!
//! # Notation
//!
//! `B` images, `V` views (crops) per image, `T` tokens, `C` channels (embedding width), `H` heads, `D = C / H`, `K` prototypes. Row-major.
//! Shapes are written `(B, T, C)`. Arguments: what is written, what is read, dimensions last. Gradients are `d` + name; activation
//! gradients are set, parameter gradients accumulate. "Published" is the official code at commit 7c446df.
//!
//! # Glossary
//!
//! | term | meaning |
//! | --- | --- |
//! | op | one operation that a backend implements, a method of [`backend::Forward`], [`backend::Backward`] or [`backend::Update`] |
//! | view, crop | one augmented part of an image; the first group of views is global, and only those go through the teacher |
//! | micro-batch | the images that go through the model at once; the gradients of a batch accumulate over its micro-batches |
//! | pass | a forward, and for the student a backward, run over some crops with everything that it reads and writes |
//! | class row | the output row of a crop's class token, which the head reads |
//! | bottleneck | the l2-normalized rows that the head makes and the prototypes are compared with |
//! | prototype | a row of the head's last layer, normalized to length 1; a logit is its dot product with a bottleneck row, times its gain |
//! | center | the running mean of the teacher's logits, which is subtracted before the targets are formed |
//! | shard | an equal part of a batch with a sum of its own, so that the bits of a step do not depend on the number of processes |
//! | slot | one of the optimizer's arrays of state, as long as a network; also one number of a span of [`scalars`] |
//! | stats, state | numbers of one step in full precision; numbers that outlive a step or come from the host |
//!
//! # A static arena
//!
//! ```
//! use dino_kernel::{crops::{Crops, Group}, model::{Backbone, Head, Vit}, objective::Objective, ops::layernorm::EPS};
//! use dino_kernel::{ops::position::Interpolation, optim::{AdamW, Optimizer, TeacherRule}, plan::{Config, Plan, Pools}};
//!
//! const POSITIONS: Interpolation = Interpolation::Published;
//! const VIT: Vit =
//!     Vit { image: 16, patch: 4, channels: 3, dim: 16, depth: 2, heads: 2, mlp: 32, positions: POSITIONS, eps: EPS };
//! const POOLS: Pools = match Plan::new(Config {
//!     backbone: Backbone::Vit(VIT),
//!     head: Head { inp: 16, layers: 2, hidden: 32, bottleneck: 16, prototypes: 64, ..Head::PUBLISHED },
//!     objective: Objective::PUBLISHED,
//!     optimizer: Optimizer::AdamW(AdamW::PUBLISHED),
//!     teacher: TeacherRule::Ema { start: 0.996, end: 1.0 },
//!     views: Crops::one(Group { count: 2, height: 16, width: 16 }).with(Group { count: 2, height: 8, width: 8 }),
//!     batch: 4, micro_batch: 4, drop_path: false, recompute: true, stream_crops: false, bn_group: None,
//! }) {
//!     Ok(plan) => plan.pools,
//!     Err(_) => panic!("the program does not compile"),
//! };
//! static ACTS: [f32; POOLS.acts] = [0.0; POOLS.acts]; // and so on, inside a lock: see examples/one_step.rs
//! println!("{POOLS:?}: {} numbers, {} of them activations", POOLS.total(), ACTS.len());
//! assert_eq!(POOLS.slots, 2 * POOLS.grads);
//! ```
#![no_std]
#![warn(missing_docs)]
#![forbid(unsafe_code)]

#[cfg(feature = "std")]
extern crate std;

pub mod backend;
pub mod crops;
pub mod dims;
pub mod finetune;
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
