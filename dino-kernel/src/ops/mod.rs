//! The operations, one file each: formula, forward, backward, over plain slices and generic over f32 and f64.
//!
//! Reductions run in sixteen lanes that are added in a fixed order, so that they vectorize and still give the same bits
//! everywhere.

pub mod attention;
pub mod average_pool;
pub mod batchnorm;
pub mod column_lse;
pub mod conv;
pub mod cross_entropy;
pub mod embed;
pub mod gelu;
pub mod layernorm;
pub mod linear;
pub mod loss;
pub mod max_pool;
pub mod mse;
pub mod norm;
pub mod position;
pub mod relu;
pub mod residual;

use crate::real::Real;

const LANES: usize = 16;

/// Halves are added to halves. Spelled out: as a loop over the width it stayed scalar, 50 ns a row, and `array::from_fn` is a call
/// where crates are not optimized across their parts.
#[inline(always)]
fn fold<T: Real>(mut x: [T; LANES]) -> T {
    for i in 0..8 {
        x[i] += x[i + 8];
    }
    for i in 0..4 {
        x[i] += x[i + 4];
    }
    (x[0] + x[2]) + (x[1] + x[3])
}

/// Sum of a slice.
#[inline(always)]
pub fn sum<T: Real>(x: &[T]) -> T {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [T::ZERO; LANES];
    for c in chunks {
        for i in 0..LANES {
            lanes[i] += c[i];
        }
    }
    let mut s = fold(lanes);
    for &v in tail {
        s += v;
    }
    s
}

/// Inner product of two slices of the same length. (By index, as in the ops of a row: `zip` is a call, as `array::from_fn` is.)
#[inline(always)]
pub fn dot<T: Real>(x: &[T], y: &[T]) -> T {
    let y = &y[..x.len()];
    let ((xs, x_tail), (ys, y_tail)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut lanes = [T::ZERO; LANES];
    for k in 0..xs.len() {
        for i in 0..LANES {
            lanes[i] += xs[k][i] * ys[k][i];
        }
    }
    let mut s = fold(lanes);
    for i in 0..x_tail.len() {
        s += x_tail[i] * y_tail[i];
    }
    s
}

/// Sum of squares, blocks of a thousand in T and their total in f64: a tensor of 10^7 elements keeps its digits in f32.
#[inline(always)]
pub fn sum_squares<T: Real>(x: &[T]) -> f64 {
    let mut s = 0.0;
    for block in x.chunks(1024) {
        s += dot(block, block).to_f64();
    }
    s
}

/// y += a x.
#[inline(always)]
pub fn axpy<T: Real>(y: &mut [T], a: T, x: &[T]) {
    let x = &x[..y.len()];
    for i in 0..y.len() {
        y[i] += a * x[i];
    }
}
