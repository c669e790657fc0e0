//! The vision transformer (paper, section 3.2; official `vision_transformer.py`): patches, class token, learned positions, pre-norm
//! blocks, final norm. The shape is here; a network and its passes, as [`crate::model`] hands them out, are in `vit/network.rs`, parameters
//! in `vit/weights.rs`, spans in `vit/layout.rs` and their names in `vit/names.rs`, forward and backward in `vit/pass.rs`, what is refused
//! in `vit/check.rs`, the header of a flat blob in `vit/flat.rs`.
//!
//! x += proj(attention(norm1 x));  x += fc2(gelu(fc1(norm2 x))), each branch scaled per crop under stochastic depth.
//!
//! Training needs the class token alone, so the last block computes keys and values for all tokens and everything else for one
//! row a crop, forward and backward ([`Output::Class`]); dense features and attention maps use the full form
//! ([`Output::Dense`]). Block i's handles are base + i * stride: depth is a number, not a type. A pass that saves nothing has
//! the spans of one block, and two that the residual stream alternates between ([`Save`]).

mod check;
pub mod drop_path;
mod flat;
mod layout;
mod names;
mod network;
mod pass;
mod weights;

pub use layout::{PositionActs, VitActs, VitGrads};
pub use network::{Network, Pass};
pub use weights::VitWeights;

use super::{Output, Save};
use crate::mem::max;
use crate::ops::layernorm::EPS;
use crate::ops::position::Interpolation;

/// Shape of a vision transformer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vit {
    /// Side in pixels of the square image whose grid the position table has.
    pub image: usize,
    /// Side of a patch.
    pub patch: usize,
    /// Color channels.
    pub channels: usize,
    /// C.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Hidden width of the MLP: C times the MLP ratio.
    pub mlp: usize,
    /// When and how the position table is resized.
    pub positions: Interpolation,
    /// What every LayerNorm adds to the variance.
    pub eps: f64,
}

impl Vit {
    const fn preset(dim: usize, heads: usize, patch: usize) -> Vit {
        let positions = Interpolation::Published;
        Vit { image: 224, patch, channels: 3, dim, depth: 12, heads, mlp: 4 * dim, positions, eps: EPS }
    }
    /// ViT-Ti/16: 192 wide, 3 heads.
    pub const TINY_16: Vit = Vit::preset(192, 3, 16);
    /// ViT-Ti/8.
    pub const TINY_8: Vit = Vit::preset(192, 3, 8);
    /// ViT-S/16: 384 wide, 6 heads.
    pub const SMALL_16: Vit = Vit::preset(384, 6, 16);
    /// ViT-S/8.
    pub const SMALL_8: Vit = Vit::preset(384, 6, 8);
    /// ViT-B/16: 768 wide, 12 heads.
    pub const BASE_16: Vit = Vit::preset(768, 12, 16);
    /// ViT-B/8.
    pub const BASE_8: Vit = Vit::preset(768, 12, 8);
}

impl Vit {
    /// Cells of a row or a column of the position table.
    pub const fn side(&self) -> usize {
        self.image / self.patch
    }

    /// Elements of one patch row.
    pub const fn patch_len(&self) -> usize {
        self.channels * self.patch * self.patch
    }

    /// Columns of the widest factor of a linear layer.
    pub(in crate::model) const fn widest(&self) -> usize {
        max(self.patch_len(), max(3 * self.dim, self.mlp))
    }
}
