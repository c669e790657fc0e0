//! y = x + branch, and under stochastic depth `y = x + scale[crop] branch` with scale 0 or 1 / keep, drawn per crop and branch.

use crate::crops::Ragged;
use crate::real::Real;

/// y = x + branch, any one length.
#[inline(always)]
pub fn add<T: Real>(y: &mut [T], x: &[T], branch: &[T]) {
    for ((y, &x), &b) in y.iter_mut().zip(x).zip(branch) {
        *y = x + b;
    }
}

/// y, x, branch (rows, cols); scale (crops).
pub fn add_scaled<T: Real>(y: &mut [T], x: &[T], branch: &[T], scale: &[T], n: Ragged, cols: usize) {
    for ((first, tokens), &s) in n.each().zip(scale) {
        let part = first * cols..(first + tokens) * cols;
        for ((y, &x), &b) in y[part.clone()].iter_mut().zip(&x[part.clone()]).zip(&branch[part]) {
            *y = x + s * b;
        }
    }
}

/// `y = scale[crop] x`; y, x (rows, cols); scale (crops).
pub fn scale_crops<T: Real>(y: &mut [T], x: &[T], scale: &[T], n: Ragged, cols: usize) {
    for ((first, tokens), &s) in n.each().zip(scale) {
        let part = first * cols..(first + tokens) * cols;
        for (y, &x) in y[part.clone()].iter_mut().zip(&x[part]) {
            *y = s * x;
        }
    }
}
