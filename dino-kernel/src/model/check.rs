//! Why a shape or a plan is refused, and the bounds that keep sums and products of sizes from overflowing.

use super::head::MAX_LAYERS;
use crate::scalars::MAX_TEACHERS;
use core::fmt;

/// Views, and branches that stochastic depth drops, are 12 bits each of the generator's counter ([`crate::rng::Rng::new`]).
pub(crate) const MAX_VIEWS: usize = 4096;
pub(crate) const MAX_BRANCHES: usize = 4096;

/// Why a plan was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The named size is zero.
    Zero(&'static str),
    /// C is not a multiple of the number of heads.
    Heads {
        /// C.
        dim: usize,
        /// Number of heads.
        heads: usize,
    },
    /// A head is wider than the attention ops take.
    HeadDim {
        /// C.
        dim: usize,
        /// Number of heads.
        heads: usize,
        /// Most columns of a head.
        most: usize,
    },
    /// The head's input is not the backbone's width.
    HeadInput {
        /// Width of the backbone's rows.
        dim: usize,
        /// Width that the head takes.
        inp: usize,
    },
    /// The number of head layers is not in 1..=8.
    HeadLayers {
        /// Number of layers.
        layers: usize,
    },
    /// An image or crop is smaller than a patch.
    SmallCrop {
        /// Side of the image or crop, pixels.
        side: usize,
        /// Side of a patch, pixels.
        patch: usize,
    },
    /// The side of a filter must be odd, so that it has a middle.
    EvenKernel {
        /// Side of the filter, pixels.
        kernel: usize,
    },
    /// A stage has more blocks than a plan takes.
    StageBlocks {
        /// Blocks of the stage.
        blocks: usize,
        /// Most blocks.
        most: usize,
    },
    /// Batch norm takes statistics over groups of images, which do not divide the batch, or which the micro-batches would cut.
    BatchGroup {
        /// Images of a step.
        batch: usize,
        /// Images at once.
        micro_batch: usize,
        /// Images of a group.
        group: usize,
    },
    /// A group has one value a channel, which has no variance.
    OneValue {
        /// Images of a group.
        group: usize,
    },
    /// Batch norm in the head takes statistics over all crops, which `stream_crops` would send through it one after another.
    StreamedHead,
    /// Batch norm takes statistics over the full batch, whose shards do not go through at once.
    BatchShards {
        /// Images of a step.
        batch: usize,
        /// Images at once.
        micro_batch: usize,
        /// Number of shards.
        shards: usize,
    },
    /// There must be a teacher view and at least two views in all.
    Views {
        /// Views of the first group.
        teachers: usize,
        /// All views.
        views: usize,
    },
    /// More views, or with stochastic depth more blocks, than the generator's counter tells apart.
    Streams {
        /// Views of an image.
        views: usize,
        /// Blocks of the backbone.
        depth: usize,
    },
    /// The batch is not a multiple of the micro-batch.
    MicroBatch {
        /// Images of a step.
        batch: usize,
        /// Images at once.
        micro_batch: usize,
    },
    /// The micro-batches of a step cannot be dealt to so many shards.
    Shards {
        /// Micro-batches of a step.
        micro_batches: usize,
        /// Number of shards.
        shards: usize,
    },
    /// The shards cannot be dealt to so many processes.
    Ranks {
        /// Number of shards.
        shards: usize,
        /// Number of processes.
        ranks: usize,
    },
    /// So many last blocks do not exist.
    Blocks {
        /// Blocks that were asked for.
        blocks: usize,
        /// Blocks of the backbone.
        depth: usize,
    },
    /// The plan needs more elements than memory can have.
    TooLarge,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            PlanError::Zero(what) => write!(f, "{what} must be at least 1"),
            PlanError::Heads { dim, heads } => write!(f, "width {dim} is not a multiple of {heads} heads"),
            PlanError::HeadDim { dim, heads, most } => {
                write!(f, "width {dim} over {heads} heads is {} a head, more than {most}", dim / heads)
            }
            PlanError::HeadInput { dim, inp } => write!(f, "the head takes {inp} channels, the backbone gives {dim}"),
            PlanError::HeadLayers { layers } => write!(f, "the head has {layers} layers, not 1 to {MAX_LAYERS}"),
            PlanError::SmallCrop { side, patch } => write!(f, "a side of {side} pixels holds no patch of {patch}"),
            PlanError::EvenKernel { kernel } => {
                write!(f, "a filter of side {kernel} has no middle: an odd one, such as {}", kernel.saturating_sub(1))
            }
            PlanError::StageBlocks { blocks, most } => write!(f, "a stage of {blocks} blocks: at most {most}"),
            PlanError::BatchGroup { batch, micro_batch, group } => {
                if group == 0 || !batch.is_multiple_of(group) {
                    return write!(f, "a batch of {batch} is not a multiple of batch norm's groups of {group} images");
                }
                write!(f, "micro-batches of {micro_batch} images would cut batch norm's groups of {group}: these fit: ")?;
                // The few smallest, and the batch itself.
                let fits = |n: &usize| batch.is_multiple_of(group.saturating_mul(*n));
                for n in (1..batch / group).filter(fits).take(6) {
                    write!(f, "{}, ", n * group)?;
                }
                write!(f, "{batch}")
            }
            PlanError::OneValue { group } => write!(
                f,
                "batch norm over {group} images has one value a channel, which has no variance: more images or larger crops"
            ),
            PlanError::StreamedHead => {
                f.write_str("batch norm in the head takes all crops together: not with crops in turns, a smaller batch takes less memory")
            }
            PlanError::BatchShards { batch, micro_batch, shards } => write!(
                f,
                "batch norm over the full batch takes each of {shards} shards at once: {} images, not {micro_batch}",
                batch / shards
            ),
            PlanError::Views { teachers, views } => {
                write!(f, "{teachers} teacher views of {views} in all: needs 1 to {MAX_TEACHERS} of at least 2")
            }
            PlanError::Streams { views, depth } => {
                let blocks = MAX_BRANCHES / 2;
                write!(f, "{views} views and {depth} blocks: less than {MAX_VIEWS} and {blocks} can be drawn for")
            }
            PlanError::MicroBatch { batch, micro_batch } => {
                write!(f, "a batch of {batch} is not a multiple of the micro-batch {micro_batch}")
            }
            PlanError::Shards { micro_batches, shards } => {
                write!(f, "{micro_batches} micro-batches cannot be dealt to {shards} shards")
            }
            PlanError::Ranks { shards, ranks } => {
                write!(f, "{shards} shards cannot be dealt to {ranks} processes, the same power of two to each")
            }
            PlanError::Blocks { blocks, depth } => write!(f, "the last {blocks} blocks of {depth}: needs 1 to {depth}"),
            PlanError::TooLarge => f.write_str("the plan needs more memory than this machine can address"),
        }
    }
}

impl core::error::Error for PlanError {}

/// What a backend's own scratch depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extents {
    /// Tokens of the longest crop, and numbers a head: for attention.
    pub longest: usize,
    /// Columns of an attention head.
    pub head_dim: usize,
    /// Columns of the widest operand of a linear layer: for matmuls.
    pub widest: usize,
    /// Elements of the largest weight of a convolution; 0 without one.
    pub filters: usize,
    /// Partial sums of the largest batch norm ([`crate::dims::BatchNorm::blocks`]); 0 without one.
    pub sums: usize,
}

/// Upper bounds of the elements of some pools. Sums and products saturate: sizes may still be anything.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Elements of the parameters.
    pub weights: u128,
    /// Elements of the activations.
    pub acts: u128,
    /// Elements of the state.
    pub state: u128,
}

impl Bounds {
    /// Those of both together.
    pub(crate) const fn plus(self, other: Bounds) -> Bounds {
        Bounds {
            weights: self.weights.saturating_add(other.weights),
            acts: self.acts.saturating_add(other.acts),
            state: self.state.saturating_add(other.state),
        }
    }

    /// Whether such pools can be addressed, a backend's scratch beside them included.
    pub(crate) const fn fit(self) -> bool {
        self.weights <= MOST && self.acts <= MOST && self.state <= MOST
    }
}

/// Most elements of a pool: its bytes, and those of a backend's scratch, can be addressed.
pub(crate) const MOST: u128 = isize::MAX as u128 / 64;

/// A product that saturates.
pub(crate) const fn mul(a: u128, b: usize) -> u128 {
    a.saturating_mul(b as u128)
}
