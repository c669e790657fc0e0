//! `eval`: what features can do.

mod attention;
mod knn;
mod linear;
mod logistic;
mod probe;

use crate::device::Device;
use crate::error::Result;
use clap::{Args, Subcommand};

#[derive(Subcommand)]
pub enum Eval<O: Args> {
    /// Weighted k-nearest-neighbours vote
    Knn(knn::Knn<O>),
    /// Linear probe: one layer on frozen features, by SGD, for a grid of learning rates at once
    Linear(linear::Linear<O>),
    /// Low-shot: logistic regression on the frozen features of a few labelled images
    Logistic(logistic::Logistic<O>),
    /// How well the attention covers the objects of the built-in set (Jaccard index with the exact masks)
    Attention(attention::Attention<O>),
}

pub fn run<D: Device>(what: Eval<D::Options>) -> Result<u8> {
    match what {
        Eval::Knn(args) => knn::run::<D>(args),
        Eval::Linear(args) => linear::run::<D>(args),
        Eval::Logistic(args) => logistic::run::<D>(args),
        Eval::Attention(args) => attention::run::<D>(args),
    }
}
