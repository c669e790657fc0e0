//! y[crop, c] = the mean of x[row, c] over the rows of a crop (global average pool);   dx[row, c] = dy[crop, c] / rows of the crop.

use super::axpy;
use crate::crops::Ragged;
use crate::real::Real;

/// One crop: y (cols), x (rows, cols).
#[inline(always)]
pub fn forward_crop<T: Real>(y: &mut [T], x: &[T]) {
    let cols = y.len();
    y.fill(T::ZERO);
    x.chunks(cols).for_each(|row| axpy(y, T::ONE, row));
    let inverse = T::of(cols as f64 / x.len() as f64);
    y.iter_mut().for_each(|y| *y *= inverse);
}

/// y (crops, cols), x (rows, cols).
pub fn forward<T: Real>(y: &mut [T], x: &[T], n: Ragged, cols: usize) {
    for (y, (first, rows)) in y.chunks_mut(cols).zip(n.each()) {
        forward_crop(y, &x[first * cols..][..rows * cols]);
    }
}

/// dx (rows, cols) is set; dy (crops, cols).
pub fn backward<T: Real>(dx: &mut [T], dy: &[T], n: Ragged, cols: usize) {
    for (dy, (first, rows)) in dy.chunks(cols).zip(n.each()) {
        let inverse = T::of(1.0 / rows as f64);
        for row in dx[first * cols..][..rows * cols].chunks_mut(cols) {
            row.iter_mut().zip(dy).for_each(|(dx, &dy)| *dx = dy * inverse);
        }
    }
}
