//! y = max(x, 0);  dx = dy where x > 0, else 0 (at 0 as PyTorch has it).

use crate::real::Real;

/// y, x of one length. NaN stays NaN.
#[inline(always)]
pub fn forward<T: Real>(y: &mut [T], x: &[T]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = x.larger(T::ZERO));
}

/// dx, dy, x of one length.
#[inline(always)]
pub fn backward<T: Real>(dx: &mut [T], dy: &[T], x: &[T]) {
    for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
        // Where x is NaN the gradient is what arrives: NaN as well.
        *dx = if x <= T::ZERO { T::ZERO } else { dy };
    }
}
