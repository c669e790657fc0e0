//! What leaves and enters the program besides images and weights: lines on the terminal, text and arrays in files, signals.

#[macro_use]
pub mod output; // first: its macros are used everywhere below

pub mod atomic;
mod host;
pub mod json;
pub mod npy;
pub mod progress;
mod read_error;
pub mod signals;
pub mod spool;
pub mod text;
pub mod tsv;

pub use host::host;
pub(crate) use read_error::read_error;
