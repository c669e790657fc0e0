//! A shape as the numbers that are stored in the header of a flat blob, and back.

use super::{Block, MAX_STAGES, ResNet, Stage, Stem};
use crate::model::FlatShape;

impl ResNet {
    pub(in crate::model) const fn flat(&self) -> FlatShape {
        let Stem { width, kernel, stride, pool } = self.stem;
        let block = matches!(self.block, Block::Bottleneck) as usize;
        let sizes = [self.image, self.channels, width, kernel, stride, pool as usize, block, self.len];
        let (mut stages, mut i) = ([[0; 3]; MAX_STAGES], 0);
        while i < self.len {
            let Stage { width, blocks, stride } = self.stages[i];
            stages[i] = [width, blocks, stride];
            i += 1;
        }
        FlatShape::ResNet { sizes, stages }
    }

    /// `None` where there are too many stages, or where the number of a kind of blocks or of a pool is unknown.
    pub(in crate::model) fn from_flat(sizes: [usize; 8], stages: [[usize; 3]; MAX_STAGES]) -> Option<ResNet> {
        let [image, channels, width, kernel, stride, pool, block, len] = sizes;
        let pool = [false, true].get(pool).copied()?;
        let block = [Block::Basic, Block::Bottleneck].get(block).copied()?;
        let stem = Stem { width, kernel, stride, pool };
        let stages = stages.get(..len)?.iter().map(|&[width, blocks, stride]| Stage { width, blocks, stride });
        Some(stages.fold(ResNet::new(image, channels, stem, block), ResNet::with))
    }
}
