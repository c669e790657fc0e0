//! The per-tensor clip, g *= min(1, c / (|g| + 1e-6)), each tensor by its own norm; and whether the step is taken.

use crate::real::Real;
use crate::scalars::monitor;

/// The factor for a tensor of gradient norm `norm`; 1 where `limit` is 0 (off).
pub fn factor(norm: f64, limit: f64) -> f64 {
    let factor = limit / (norm + 1e-6);
    if limit > 0.0 && factor < 1.0 { factor } else { 1.0 }
}

/// Notes the gradients' sum of squares before clipping in the monitor: their norm, and whether the step is finite.
pub fn note<T: Real>(m: &mut [T], squares: f64) {
    let finite = squares.is_finite() && m[monitor::LOSS].is_finite();
    m[monitor::FINITE] = if finite && m[monitor::HALTED] == T::ZERO { T::ONE } else { T::ZERO };
    if !finite {
        m[monitor::HALTED] = T::ONE;
    }
    m[monitor::GRAD_NORM] = T::of(libm::sqrt(squares));
}
