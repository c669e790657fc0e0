//! Which shapes and crops a vision transformer takes, and how much memory they need at most.

use super::Vit;
use crate::crops::Crops;
use crate::model::check::{Bounds, PlanError, mul};
use crate::ops::attention::MAX_HEAD_DIM;

impl Vit {
    pub(in crate::model) const fn check(&self, crops: &Crops) -> Result<(), PlanError> {
        let v = self;
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

    /// Of a shape and crops that passed the check.
    pub(in crate::model) const fn bounds(&self, crops: &Crops, images: usize, queries: usize) -> Bounds {
        let v = self;
        let widest = if v.mlp > v.dim { v.mlp } else { v.dim };
        let block = mul(mul(12, widest), widest);
        let side = v.image / v.patch;
        let table = mul(mul(mul(1, side), side), v.dim);
        let patch = mul(mul(mul(mul(1, v.dim), v.channels), v.patch), v.patch);
        let weights = mul(block, v.depth).saturating_add(table).saturating_add(patch);
        let (mut tokens, mut pixels, mut state, mut attention, mut i) = (0u128, 0u128, 0u128, 0u128, 0);
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
            i += 1;
        }
        let acts =
            mul(mul(mul(tokens, widest), v.depth.saturating_add(4)), 20).saturating_add(pixels.saturating_mul(2));
        Bounds { weights, acts: acts.saturating_add(attention), state }
    }
}
