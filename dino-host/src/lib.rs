//! DINO v1 on the CPU: data, augmentation, training, checkpoints, evaluation and the command line, all generic over a device.
//!
//! # Modules
//!
//! Outside its tests, a module uses [`error`], the modules named in its row, and nothing else of this crate.
//!
//! | module | what it is | what it uses |
//! | --- | --- | --- |
//! | [`cli`] | the command line: one file a command | all of them |
//! | [`config`] | every key of the recipe, with its published value, and the schedules | `device`, `image`, `io` |
//! | [`io`] | lines on the terminal, text and arrays in files | |
//! | [`image`] | decoding to 8 bits a channel, resizing, masks, augmentation | `io` |
//! | [`data`] | data sets of every format behind one trait, and the loader | `dist`, `image`, `io`, `weights` (pickles) |
//! | [`linalg`] | matrix multiplication, row kernels, eigenvectors | |
//! | [`cpu`] | the CPU backend, a [`device::Device`] | `device`, `dist`, `linalg` |
//! | [`dist`] | processes that share every batch, and their sums | `io` |
//! | [`device`] | the trait between the trainer and the hardware | `dist` |
//! | [`train`] | the training loop and its log | `config`, `data`, `device`, `dist`, `eval`, `image`, `inference`, `io`, `viz`, `weights` |
//! | [`finetune`] | supervised training of a backbone with a classifier | `config`, `data`, `device`, `eval`, `image`, `inference`, `io`, `train`, `weights` |
//! | [`inference`] | a trained backbone: features of a set, dense features of images | `config`, `data`, `device`, `dist`, `image`, `io` |
//! | [`eval`] | scores of features and attention | `config`, `data`, `device`, `dist`, `image`, `inference`, `io`, `linalg`, `weights` |
//! | [`viz`] | every figure | `config`, `data`, `device`, `eval`, `image`, `inference`, `io`, `linalg` |
//! | [`ablate`] | the paper's ablations: variants of a configuration side by side | `config`, `data`, `device`, `inference`, `io`, `report`, `train` |
//! | [`report`] | a run on one HTML page | `config`, `data`, `device`, `dist`, `eval`, `finetune`, `inference`, `io`, `train`, `viz`, `weights` |
//! | [`weights`] | checkpoints, and other programs' weights, read and written | `config`, `device`, `image`, `io` |
//! | [`planning`] | memory of a run, and gradient checks, before anything is trained | `config`, `cpu`, `device`, `dist`, `inference`, `io` |
//!
//! # Example
//!
//! [`config::Config::published`] with a few values changed, then resolved, is a run; [`data::open`] opens its images; [`train::run`]
//! trains on a device and writes a checkpoint. [`weights::read`] reads it, an extractor of [`inference::features`] computes the features
//! of both parts of the set, and [`eval::knn`] scores them by the vote of the nearest neighbors.

#![warn(missing_docs)]

#[macro_use]
pub mod io; // first: its macros are used everywhere below

pub mod ablate;
pub mod cli;
pub mod config;
pub mod cpu;
pub mod data;
pub mod device;
pub mod dist;
pub mod error;
pub mod eval;
pub mod finetune;
pub mod image;
pub mod inference;
pub mod linalg;
pub mod planning;
pub mod report;
pub mod train;
pub mod viz;
pub mod weights;
