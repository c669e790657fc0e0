//! `eval`: what features can do.

mod attention;
mod copies;
mod knn;
mod linear;
mod logistic;
mod probe;
mod retrieval;
mod video;

pub(super) use probe::{one_class, unlabelled};

use crate::device::Device;
use crate::dist::Group;
use crate::error::Result;
use clap::{Args, Subcommand};

#[derive(Subcommand)]
pub enum Eval<O: Args> {
    /// Weighted k-nearest-neighbors vote
    Knn(knn::Knn<O>),
    /// Linear probe: one layer on frozen features, by SGD, for a grid of learning rates at once
    Linear(linear::Linear<O>),
    /// Low-shot: logistic regression on the frozen features of a few labeled images
    Logistic(logistic::Logistic<O>),
    /// How well the attention covers objects (Jaccard index with exact masks), of the built-in set or a folder
    Attention(attention::Attention<O>),
    /// Image retrieval by class tokens: mean average precision
    Retrieval(retrieval::Retrieval<O>),
    /// Copy detection: which original an image was made from (Copydays, or attacks on images of any set)
    Copies(copies::Copies<O>),
    /// Video object segmentation: the first frame's masks are propagated by the similarity of patches (DAVIS)
    Video(video::Video<O>),
}

impl<O: Args> Eval<O> {
    /// The device's flags, of an evaluation whose work several processes share; none of another.
    pub fn device(&self) -> Option<&O> {
        match self {
            Eval::Knn(args) => Some(&args.source.shared.device),
            Eval::Linear(args) => Some(&args.source.shared.device),
            Eval::Logistic(args) => Some(&args.source.shared.device),
            Eval::Retrieval(args) => Some(&args.source.shared.device),
            Eval::Attention(_) | Eval::Copies(_) | Eval::Video(_) => None,
        }
    }
}

/// Runs the command that `what` names; returns the exit code.
///
/// # Errors
/// As of the command.
pub fn run<D: Device>(what: Eval<D::Options>, group: &Group) -> Result<u8> {
    match what {
        Eval::Knn(args) => knn::run::<D>(args, group),
        Eval::Linear(args) => linear::run::<D>(args, group),
        Eval::Logistic(args) => logistic::run::<D>(args, group),
        Eval::Attention(args) => attention::run::<D>(args),
        Eval::Retrieval(args) => retrieval::run::<D>(args, group),
        Eval::Copies(args) => copies::run::<D>(args),
        Eval::Video(args) => video::run::<D>(args),
    }
}
