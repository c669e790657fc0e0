//! Initial weights, drawn from the parameter table.

use crate::params::{Init, ParamTable};
use crate::real::Real;
use crate::rng::{Kind, Rng};

/// The published standard deviation of linear weights. In a narrow network (0.02 is a tenth of 1 / sqrt(24)) it makes every
/// branch small beside the residual stream, and the first epochs go into growing the weights.
pub const LINEAR_STD: f64 = 0.02;

/// Fills one network's weights (`table.len()` elements; padding is zeroed). Every tensor has its own stream. `linear_std` is the
/// standard deviation of linear layers.
pub fn weights<T: Real>(w: &mut [T], table: &dyn ParamTable, seed: u64, linear_std: f64) {
    let normal = |rng: &mut Rng, std: f64| loop {
        let x = std * rng.normal();
        if (-2.0..=2.0).contains(&x) {
            break x;
        }
    };
    w.fill(T::ZERO);
    let mut ordinal = 0;
    table.visit(&mut |spec| {
        let mut rng = Rng::new(seed, 0, ordinal / 4096, 0, Kind::Init, ordinal % 4096);
        ordinal += 1;
        for x in &mut w[spec.at.range()] {
            *x = T::of(match spec.init {
                Init::Zeros => 0.0,
                Init::Ones => 1.0,
                Init::TruncNormal(std) => normal(&mut rng, std),
                Init::Linear => normal(&mut rng, linear_std),
                Init::FanOut(n) => libm::sqrt(2.0 / n as f64) * rng.normal(),
                Init::FanIn(n) => {
                    let bound = 1.0 / libm::sqrt(n as f64);
                    rng.range(-bound, bound)
                }
            });
        }
    });
}
