//! Initial weights from the table, and stochastic-depth scales: the draws that are not augmentation.

use crate::model::Table;
use crate::real::Real;
use crate::rng::{Kind, Rng};
use crate::spec::Init;

/// The published standard deviation of linear weights. In a narrow network (0.02 is a tenth of 1 / sqrt(24)) it makes every
/// branch a whisper beside the residual stream, and the first epochs go into growing the weights.
pub const LINEAR_STD: f64 = 0.02;

/// Fills one network's weights (`table.len()` elements; padding is zeroed). Every tensor has its own stream. `linear_std` is the
/// standard deviation of linear layers.
pub fn weights<T: Real>(w: &mut [T], table: &Table, seed: u64, linear_std: f64) {
    let normal = |rng: &mut Rng, std: f64| loop {
        let x = std * rng.normal();
        if (-2.0..=2.0).contains(&x) {
            break x;
        }
    };
    w.fill(T::ZERO);
    let mut ordinal = 0;
    table.visit(|spec| {
        let mut rng = Rng::new(seed, 0, ordinal / 4096, 0, Kind::Init, ordinal % 4096);
        ordinal += 1;
        for x in &mut w[spec.at.range()] {
            *x = T::of(match spec.init {
                Init::Zeros => 0.0,
                Init::Ones => 1.0,
                Init::TruncNormal(std) => normal(&mut rng, std),
                Init::Linear => normal(&mut rng, linear_std),
                Init::FanIn(n) => {
                    let bound = 1.0 / libm::sqrt(n as f64);
                    rng.range(-bound, bound)
                }
            });
        }
    });
}

/// The scale of one branch of one block for one crop: 0 with the block's rate, else 1 / (1 - rate). Rates rise linearly with
/// depth, from 0 in the first block to `rate` in the last. `branch` is 0 for attention, 1 for the MLP.
pub fn drop_path(seed: u64, epoch: u32, image: u32, crop: u32, rate: f64, block: u32, branch: u32, depth: u32) -> f64 {
    let rate = if depth > 1 { rate * block as f64 / (depth - 1) as f64 } else { rate };
    let dropped = Rng::new(seed, epoch, image, crop, Kind::DropPath, 2 * block + branch).chance(rate);
    if dropped { 0.0 } else { 1.0 / (1.0 - rate) }
}
