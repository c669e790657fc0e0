//! A shape as the numbers that are stored in the header of a flat blob, and back.

use super::Vit;
use crate::model::FlatShape;
use crate::ops::position::Interpolation;

impl Vit {
    pub(in crate::model) const fn flat(&self) -> FlatShape {
        let positions = matches!(self.positions, Interpolation::Size) as usize;
        let &Vit { image, patch, channels, dim, depth, heads, mlp, eps, .. } = self;
        FlatShape::Vit { sizes: [image, patch, channels, dim, depth, heads, mlp, positions], eps }
    }

    /// Refuses the number of an unknown rule for positions.
    pub(in crate::model) const fn from_flat(sizes: [usize; 8], eps: f64) -> Result<Vit, usize> {
        let [image, patch, channels, dim, depth, heads, mlp, positions] = sizes;
        let positions = match positions {
            0 => Interpolation::Published,
            1 => Interpolation::Size,
            unknown => return Err(unknown),
        };
        Ok(Vit { image, patch, channels, dim, depth, heads, mlp, positions, eps })
    }
}
