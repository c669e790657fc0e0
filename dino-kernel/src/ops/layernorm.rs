//! y = x^ w + b,  x^ = (x - mean) rstd,  rstd = 1 / sqrt(var + eps), biased variance, over the last axis (C).
//! dx = rstd (g - mean(g) - x^ mean(g x^)),  g = dy w;   dw = sum of dy x^;   db = sum of dy.
//!
//! Two passes for the variance: `E[x^2] - E[x]^2` loses everything in f32 when the mean is large.

use super::{dot, sum};
use crate::backend::Rows;
use crate::real::Real;

/// The published value. (The Hugging Face port says 1e-12: a parity trap.)
pub const EPS: f64 = 1e-6;

/// y (rows, cols), mean (rows), rstd (rows), x (rows, cols), w (cols), b (cols).
#[inline(always)]
pub fn forward<T: Real>(y: &mut [T], mean: &mut [T], rstd: &mut [T], x: &[T], w: &[T], b: &[T], n: Rows) {
    let inverse = T::of(1.0 / n.cols as f64);
    for r in 0..n.rows {
        let (x, y) = (&x[r * n.cols..][..n.cols], &mut y[r * n.cols..][..n.cols]);
        let mu = sum(x) * inverse;
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x - mu;
        }
        let rs = T::ONE / (dot(y, y) * inverse + T::of(EPS)).sqrt();
        for ((y, &w), &b) in y.iter_mut().zip(w).zip(b) {
            *y = *y * rs * w + b;
        }
        mean[r] = mu;
        rstd[r] = rs;
    }
}

/// dx_acc (rows, cols), dw and db (cols) all accumulate.
#[inline(always)]
pub fn backward<T: Real>(
    dx_acc: &mut [T],
    dw: &mut [T],
    db: &mut [T],
    dy: &[T],
    x: &[T],
    mean: &[T],
    rstd: &[T],
    w: &[T],
    n: Rows,
) {
    let inverse = T::of(1.0 / n.cols as f64);
    const LANES: usize = super::LANES;
    for r in 0..n.rows {
        let (x, dy, dx) =
            (&x[r * n.cols..][..n.cols], &dy[r * n.cols..][..n.cols], &mut dx_acc[r * n.cols..][..n.cols]);
        let (mu, rs) = (mean[r], rstd[r]);
        let (mut g_lanes, mut gx_lanes) = ([T::ZERO; LANES], [T::ZERO; LANES]);
        let whole = n.cols / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            for i in 0..LANES {
                let xhat = (x[at + i] - mu) * rs;
                let g = dy[at + i] * w[at + i];
                dw[at + i] += dy[at + i] * xhat;
                db[at + i] += dy[at + i];
                g_lanes[i] += g;
                gx_lanes[i] += g * xhat;
            }
        }
        let (mut g_sum, mut gx_sum) = (super::fold(g_lanes), super::fold(gx_lanes));
        for i in whole..n.cols {
            let xhat = (x[i] - mu) * rs;
            let g = dy[i] * w[i];
            dw[i] += dy[i] * xhat;
            db[i] += dy[i];
            g_sum += g;
            gx_sum += g * xhat;
        }
        let (g_mean, gx_mean) = (g_sum * inverse, gx_sum * inverse);
        for i in 0..n.cols {
            dx[i] += (dy[i] * w[i] - g_mean - (x[i] - mu) * rs * gx_mean) * rs;
        }
    }
}
