//! What plans refuse, and why.

use super::Config;
use crate::crops::Crops;
use crate::model::head::MAX_LAYERS;
use crate::model::{Head, Vit};
use crate::ops::attention::MAX_HEAD_DIM;
use crate::scalars::MAX_TEACHERS;
use core::fmt;

/// Views and twice the blocks are 12 bits each of the generator's counter ([`crate::rng::Rng::new`]).
const MAX_VIEWS: usize = 4096;
const MAX_DEPTH: usize = 2048;

/// Why a plan was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The named size is zero.
    Zero(&'static str),
    /// C is not a multiple of the number of heads.
    Heads { dim: usize, heads: usize },
    /// A head is wider than the attention ops take.
    HeadDim { dim: usize, heads: usize, most: usize },
    /// The head's input is not the backbone's width.
    HeadInput { dim: usize, inp: usize },
    /// The number of head layers is not in 1..=8.
    HeadLayers { layers: usize },
    /// An image or crop is smaller than a patch.
    SmallCrop { side: usize, patch: usize },
    /// There must be a teacher view and at least two views in all.
    Views { teachers: usize, views: usize },
    /// More views, or with stochastic depth more blocks, than the generator's counter tells apart.
    Streams { views: usize, depth: usize },
    /// The batch is not a multiple of the micro-batch.
    MicroBatch { batch: usize, micro_batch: usize },
    /// The micro-batches of a step cannot be dealt to so many shards.
    Shards { micro_batches: usize, shards: usize },
    /// The shards cannot be dealt to so many processes.
    Ranks { shards: usize, ranks: usize },
    /// So many last blocks do not exist.
    Blocks { blocks: usize, depth: usize },
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
            PlanError::Views { teachers, views } => {
                write!(f, "{teachers} teacher views of {views} in all: needs 1 to {MAX_TEACHERS} of at least 2")
            }
            PlanError::Streams { views, depth } => {
                write!(f, "{views} views and {depth} blocks: less than {MAX_VIEWS} and {MAX_DEPTH} can be drawn for")
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

pub(super) const fn check_backbone(v: &Vit, crops: &Crops) -> Result<(), PlanError> {
    if v.patch == 0 || v.channels == 0 || v.dim == 0 || v.depth == 0 || v.heads == 0 || v.mlp == 0 {
        return Err(PlanError::Zero("patch, channels, width, depth, heads and MLP width"));
    }
    if !v.dim.is_multiple_of(v.heads) {
        return Err(PlanError::Heads { dim: v.dim, heads: v.heads });
    }
    if v.dim / v.heads > MAX_HEAD_DIM {
        return Err(PlanError::HeadDim { dim: v.dim, heads: v.heads, most: MAX_HEAD_DIM });
    }
    if v.image < v.patch {
        return Err(PlanError::SmallCrop { side: v.image, patch: v.patch });
    }
    let mut i = 0;
    while i < crops.len() {
        let g = crops.group(i);
        if g.count == 0 {
            return Err(PlanError::Zero("the number of crops in a group"));
        }
        let side = if g.height < g.width { g.height } else { g.width };
        if side < v.patch {
            return Err(PlanError::SmallCrop { side, patch: v.patch });
        }
        i += 1;
    }
    Ok(())
}

/// Refuses sizes whose products would overflow: upper bounds in u128 of the elements of the pools.
pub(super) const fn check_size(
    v: &Vit,
    head: Option<&Head>,
    crops: &Crops,
    images: usize,
    queries: usize,
) -> Result<(), PlanError> {
    const MOST: u128 = isize::MAX as u128 / 64;
    const fn mul(a: u128, b: usize) -> u128 {
        a.saturating_mul(b as u128)
    }
    let widest = if v.mlp > v.dim { v.mlp } else { v.dim };
    let block = mul(mul(12, widest), widest);
    let side = v.image / v.patch;
    let table = mul(mul(mul(1, side), side), v.dim);
    let patch = mul(mul(mul(mul(1, v.dim), v.channels), v.patch), v.patch);
    let mut weights = mul(block, v.depth).saturating_add(table).saturating_add(patch);
    let (mut tokens, mut pixels, mut count, mut i) = (0u128, 0u128, 0u128, 0);
    let (mut state, mut attention) = (0u128, 0u128);
    while i < crops.len() {
        let g = crops.group(i);
        let [rows, cols] = g.grid(v.patch);
        state = state.saturating_add(mul(rows as u128 + cols as u128, side));
        let crop = rows.saturating_mul(cols).saturating_add(1);
        let asked = if queries < crop { queries } else { crop };
        attention = attention.saturating_add(mul(mul(mul(mul(1, g.count), crop), asked), v.heads));
        let area = mul(mul(mul(1, g.count), g.height), g.width);
        pixels = pixels.saturating_add(mul(mul(area, v.channels), images));
        tokens = tokens.saturating_add(mul(mul(mul(1, g.count), crop), images));
        count = count.saturating_add(mul(mul(1, g.count), images));
        i += 1;
    }
    let mut acts =
        mul(mul(mul(tokens, widest), v.depth.saturating_add(4)), 20).saturating_add(pixels.saturating_mul(2));
    if let Some(h) = head {
        let wide = if h.hidden > h.inp { h.hidden } else { h.inp };
        let wide = if h.bottleneck > wide { h.bottleneck } else { wide };
        weights = weights.saturating_add(mul(mul(mul(1, wide), wide), h.layers));
        weights = weights.saturating_add(mul(mul(2, h.prototypes), h.bottleneck.saturating_add(1)));
        acts = acts.saturating_add(mul(mul(count, wide), 8 * MAX_LAYERS));
    }
    acts = acts.saturating_add(attention);
    if weights > MOST || acts > MOST || state > MOST { Err(PlanError::TooLarge) } else { Ok(()) }
}

/// Whether there is a plan for a training step of this configuration.
pub(super) const fn check(config: &Config) -> Result<(), PlanError> {
    let Config { backbone: vit, head, views, batch, micro_batch, drop_path, .. } = *config;
    if let Err(e) = check_backbone(&vit, &views) {
        return Err(e);
    }
    if head.hidden == 0 || head.bottleneck == 0 || head.prototypes == 0 || batch == 0 || micro_batch == 0 {
        return Err(PlanError::Zero("head width, bottleneck, prototypes, batch and micro-batch"));
    }
    if head.inp != vit.dim {
        return Err(PlanError::HeadInput { dim: vit.dim, inp: head.inp });
    }
    if head.layers == 0 || head.layers > MAX_LAYERS {
        return Err(PlanError::HeadLayers { layers: head.layers });
    }
    // From here on sums and products of sizes cannot overflow, those of a backend's scratch among them.
    if let Err(e) = check_size(&vit, Some(&head), &views, micro_batch, 0) {
        return Err(e);
    }
    let teachers = if views.is_empty() { 0 } else { views.group(0).count };
    if teachers == 0 || teachers > MAX_TEACHERS || views.count() < 2 {
        return Err(PlanError::Views { teachers, views: views.count() });
    }
    if views.count() >= MAX_VIEWS || (drop_path && vit.depth >= MAX_DEPTH) {
        return Err(PlanError::Streams { views: views.count(), depth: vit.depth });
    }
    if !batch.is_multiple_of(micro_batch) {
        return Err(PlanError::MicroBatch { batch, micro_batch });
    }
    Ok(())
}
