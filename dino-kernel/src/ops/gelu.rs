//! y = x Phi(x),  Phi(x) = (1 + erf(x / sqrt 2)) / 2: the exact form, not the tanh approximation.
//! dx = dy (Phi(x) + x phi(x)),  phi(x) = exp(-x^2 / 2) / sqrt(2 pi).

use crate::real::Real;
use core::f64::consts::FRAC_1_SQRT_2;

/// 1 / sqrt(2 pi).
pub const INV_SQRT_TAU: f64 = 0.398_942_280_401_432_7;

#[inline(always)]
fn distribution<T: Real>(x: T) -> T {
    T::of(0.5) * (T::ONE + (x * T::of(FRAC_1_SQRT_2)).erf())
}

/// y and x of any one length.
pub fn forward<T: Real>(y: &mut [T], x: &[T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x * distribution(x);
    }
}

/// dx, dy and x of any one length.
pub fn backward<T: Real>(dx: &mut [T], dy: &[T], x: &[T]) {
    for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
        let density = (x * x * T::of(-0.5)).exp() * T::of(INV_SQRT_TAU);
        *dx = dy * (distribution(x) + x * density);
    }
}
