//! y = x W^T + b,  W (out, inp).
//! dx = dy W;  dW += dy^T x;  db += sum over rows of dy.

use super::{axpy, dot};
use crate::dims::Mat;
use crate::real::Real;

/// y (rows, out), x (rows, inp), w (out, inp), b (out).
pub fn forward<T: Real>(y: &mut [T], x: &[T], w: &[T], b: &[T], n: Mat) {
    for r in 0..n.rows {
        let x = &x[r * n.inp..][..n.inp];
        for o in 0..n.out {
            y[r * n.out + o] = dot(x, &w[o * n.inp..][..n.inp]) + b[o];
        }
    }
}

/// dx (rows, inp) = dy w.
pub fn backward_input<T: Real>(dx: &mut [T], dy: &[T], w: &[T], n: Mat) {
    dx.fill(T::ZERO);
    for r in 0..n.rows {
        for o in 0..n.out {
            axpy(&mut dx[r * n.inp..][..n.inp], dy[r * n.out + o], &w[o * n.inp..][..n.inp]);
        }
    }
}

/// dw (out, inp) += dy^T x; db (out) += column sums of dy.
pub fn backward_params<T: Real>(dw: &mut [T], db: &mut [T], dy: &[T], x: &[T], n: Mat) {
    for r in 0..n.rows {
        for o in 0..n.out {
            let g = dy[r * n.out + o];
            db[o] += g;
            axpy(&mut dw[o * n.inp..][..n.inp], g, &x[r * n.inp..][..n.inp]);
        }
    }
}
