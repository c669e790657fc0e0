//! l2 normalization of the bottleneck, and weight normalization of the prototypes.
//!
//! l2: y = x / max(|x|, 1e-12);  dx = (dy - y (y . dy)) / |x|.
//! Weight norm: `W[k] = g[k] v[k] / |v[k]|`, no epsilon. With v^ = v / |v|:
//! dv = g / |v| (dW - v^ (v^ . dW));  dg = v^ . dW.

use super::{axpy, dot};
use crate::dims::Rows;
use crate::real::Real;

/// The published guard of the l2 normalization.
pub const FLOOR: f64 = 1e-12;

/// The norm of a row whose squares may overflow or underflow in T: scaled by its largest element first.
#[inline(always)]
fn norm<T: Real>(x: &[T]) -> T {
    let mut largest = T::ZERO;
    for &v in x {
        largest = largest.larger(if v < T::ZERO { -v } else { v });
    }
    if largest == T::ZERO || !largest.is_finite() {
        return largest;
    }
    let inverse = T::ONE / largest;
    if !inverse.is_finite() {
        return dot(x, x).sqrt(); // a row of denormals: its norm is below the floor anyway
    }
    let mut s = T::ZERO;
    for &v in x {
        s += (v * inverse) * (v * inverse);
    }
    largest * s.sqrt()
}

/// y, x (rows, cols); norms (rows).
pub fn l2_forward<T: Real>(y: &mut [T], norms: &mut [T], x: &[T], n: Rows) {
    for r in 0..n.rows {
        let (x, y) = (&x[r * n.cols..][..n.cols], &mut y[r * n.cols..][..n.cols]);
        let length = norm(x).larger(T::of(FLOOR));
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x / length;
        }
        norms[r] = length;
    }
}

/// dx, dy, y (rows, cols); norms (rows).
pub fn l2_backward<T: Real>(dx: &mut [T], dy: &[T], y: &[T], norms: &[T], n: Rows) {
    for r in 0..n.rows {
        let (y, dy, dx) = (&y[r * n.cols..][..n.cols], &dy[r * n.cols..][..n.cols], &mut dx[r * n.cols..][..n.cols]);
        // At the floor the divisor is a constant, so nothing is projected out.
        let along = if norms[r] > T::of(FLOOR) { dot(y, dy) } else { T::ZERO };
        for ((dx, &dy), &y) in dx.iter_mut().zip(dy).zip(y) {
            *dx = (dy - y * along) / norms[r];
        }
    }
}

/// scale (rows) = g / |v|; v (rows, cols), g (rows), or empty: then 1.
#[inline(always)]
pub fn prototype_scale<T: Real>(scale: &mut [T], v: &[T], g: &[T], n: Rows) {
    if g.is_empty() {
        return scale.fill(T::ONE);
    }
    for k in 0..n.rows {
        let v = &v[k * n.cols..][..n.cols];
        scale[k] = g[k] / dot(v, v).sqrt();
    }
}

/// In place: `dv` (rows, cols) holds dW and leaves as dv. `dg` (rows) accumulates when the gain is trained.
#[inline(always)]
pub fn weight_norm_backward<T: Real>(dv: &mut [T], mut dg: Option<&mut [T]>, v: &[T], scale: &[T], n: Rows) {
    for k in 0..n.rows {
        let (v, dv) = (&v[k * n.cols..][..n.cols], &mut dv[k * n.cols..][..n.cols]);
        let square = dot(v, v);
        let along = dot(v, dv);
        if let Some(dg) = &mut dg {
            dg[k] += along / square.sqrt();
        }
        axpy(dv, -(along / square), v);
        for d in dv.iter_mut() {
            *d *= scale[k];
        }
    }
}
