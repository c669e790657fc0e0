//! Stochastic depth: a branch of a block is left out for some crops, and scaled up for the others.

use super::Vit;
use crate::real::Real;
use crate::rng::{Kind, Rng};
use core::ops::Range;

/// A residual branch of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// Norm, attention and projection.
    Attention,
    /// Norm and MLP.
    Mlp,
}

impl Branch {
    /// In the order of a forward pass.
    pub const ALL: [Branch; 2] = [Branch::Attention, Branch::Mlp];

    /// Its number among the branches of all blocks.
    pub(super) const fn index(self, block: usize) -> usize {
        Branch::ALL.len() * block + self as usize
    }
}

/// What the scales are drawn for: they depend on this, the image, the view, the block and the branch, and on nothing else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropPath {
    /// The run's seed.
    pub seed: u64,
    /// The epoch, from 0.
    pub epoch: u32,
    /// The rate of the last block, in [0, 1): rates rise linearly with depth, from 0 in the first block.
    pub rate: f64,
}

impl DropPath {
    /// The scale of one branch of one block of `depth` for one crop: 0 with the block's rate, else
    /// 1 / (1 - rate).
    pub fn scale(&self, image: u32, crop: u32, block: usize, branch: Branch, depth: usize) -> f64 {
        let rate = if depth > 1 { self.rate * block as f64 / (depth - 1) as f64 } else { self.rate };
        let stream = branch.index(block) as u32;
        let dropped = Rng::new(self.seed, self.epoch, image, crop, Kind::DropPath, stream).chance(rate);
        if dropped { 0.0 } else { 1.0 / (1.0 - rate) }
    }
}

impl Vit {
    /// The scales (depth, branches, crops) of a pass over `views` of `images`, which are ids; crops are view-major.
    pub(super) fn draw_drop_path<T: Real>(
        &self,
        scales: &mut [T],
        draw: DropPath,
        views: Range<usize>,
        images: &[u32],
    ) {
        let mut scales = scales.iter_mut();
        for (block, branch) in (0..self.depth).flat_map(|block| Branch::ALL.map(|branch| (block, branch))) {
            for view in views.clone() {
                for (&image, scale) in images.iter().zip(&mut scales) {
                    *scale = T::of(draw.scale(image, view as u32, block, branch, self.depth));
                }
            }
        }
    }
}
