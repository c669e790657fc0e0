//! Which shapes and crops a residual network takes, and how much memory they need at most.

use super::{MAX_BLOCKS, ResNet};
use crate::crops::Crops;
use crate::model::Statistics;
use crate::model::check::{Bounds, PlanError, mul};

impl ResNet {
    /// A window of odd side with half of it as padding fits everywhere: crops may have any size.
    pub(in crate::model) const fn check(&self, crops: &Crops) -> Result<(), PlanError> {
        let stem = self.stem;
        if self.image == 0
            || self.channels == 0
            || stem.width == 0
            || stem.kernel == 0
            || stem.stride == 0
            || self.len == 0
        {
            return Err(PlanError::Zero(
                "image, channels, width, kernel and stride of the stem and the number of stages",
            ));
        }
        if stem.kernel.is_multiple_of(2) {
            return Err(PlanError::EvenKernel { kernel: stem.kernel });
        }
        let mut i = 0;
        while i < self.len {
            if self.stages[i].width == 0 || self.stages[i].blocks == 0 || self.stages[i].stride == 0 {
                return Err(PlanError::Zero("width, blocks and stride of every stage"));
            }
            if self.stages[i].blocks > MAX_BLOCKS {
                return Err(PlanError::StageBlocks { blocks: self.stages[i].blocks, most: MAX_BLOCKS });
            }
            i += 1;
        }
        let mut i = 0;
        while i < crops.len() {
            let g = crops.group(i);
            if g.count == 0 || g.height == 0 || g.width == 0 {
                return Err(PlanError::Zero("the number of crops in a group, and their sides"));
            }
            i += 1;
        }
        Ok(())
    }

    /// Of a shape and crops that passed the check.
    pub(in crate::model) const fn bounds(&self, crops: &Crops, images: usize) -> Bounds {
        let (mut widest, mut i) = (self.channels as u128 + self.stem.width as u128, 0);
        while i < self.len {
            let out = mul(self.stages[i].width as u128, self.block.expansion());
            widest = if out > widest { out } else { widest };
            i += 1;
        }
        // A unit and what is rounded up to the alignment of spans.
        let units = mul(1, self.depth() + 2).saturating_mul(4);
        let wide = widest.saturating_add(64);
        let filter = mul(mul(16, self.stem.kernel), self.stem.kernel);
        let unit = wide.saturating_mul(wide).saturating_mul(filter);
        let (mut pixels, mut i) = (0u128, 0);
        while i < crops.len() {
            let g = crops.group(i);
            // The window's arithmetic adds its padding.
            let area = (g.height as u128 + self.stem.kernel as u128)
                .saturating_mul(g.width as u128 + self.stem.kernel as u128);
            pixels = pixels.saturating_add(mul(mul(area, g.count), images));
            i += 1;
        }
        let pixels = pixels.saturating_add(64);
        let acts = pixels.saturating_mul(wide).saturating_mul(units.saturating_add(8)).saturating_mul(4);
        Bounds { weights: units.saturating_mul(unit), acts, state: units.saturating_mul(wide).saturating_mul(8) }
    }

    /// Whether every group of so many images has more than one row in the last maps: one number alone has no variance.
    pub(in crate::model) const fn groups_vary(&self, views: &Crops, group: usize) -> bool {
        let maps = self.last_maps(*views);
        let norm = Statistics::Groups { images: 1, group: 1, shards: 1 }.norm(maps.maps(), 1, false);
        let mut i = 0;
        while i < maps.len() {
            if norm.group_rows(i).saturating_mul(group) < 2 {
                return false;
            }
            i += 1;
        }
        true
    }
}
