//! y = x^ w + b,  x^ = (x - mean) rstd,  rstd = 1 / sqrt(var + eps), biased variance, over the last axis (C).
//! dx = rstd (g - mean(g) - x^ mean(g x^)),  g = dy w;   dw = sum of dy x^;   db = sum of dy.
//!
//! Two passes for the variance: `E[x^2] - E[x]^2` loses everything in f32 when the mean is large.

use super::{dot, sum};
use crate::dims::{LayerNorm, Rows};
use crate::real::Real;

/// The published value. (The Hugging Face port has 1e-12: `norm-eps` of its weights.)
pub const EPS: f64 = 1e-6;

/// y (rows, cols), mean (rows), rstd (rows), x (rows, cols), w (cols), b (cols).
#[inline(always)]
pub fn forward<T: Real>(y: &mut [T], mean: &mut [T], rstd: &mut [T], x: &[T], w: &[T], b: &[T], n: LayerNorm) {
    let inverse = T::of(1.0 / n.cols as f64);
    let (w, b) = (&w[..n.cols], &b[..n.cols]);
    for r in 0..n.rows {
        let (x, y) = (&x[r * n.cols..][..n.cols], &mut y[r * n.cols..][..n.cols]);
        let mu = sum(x) * inverse;
        for c in 0..n.cols {
            y[c] = x[c] - mu;
        }
        let rs = T::ONE / (dot(y, y) * inverse + T::of(n.eps)).sqrt();
        for c in 0..n.cols {
            y[c] = y[c] * rs * w[c] + b[c];
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
        // One element: what it adds to dw, db, and to the sums of g and g x^.
        let visit = |x: T, dy: T, w: T, dw: &mut T, db: &mut T, g_sum: &mut T, gx_sum: &mut T| {
            let (xhat, g) = ((x - mu) * rs, dy * w);
            *dw += dy * xhat;
            *db += dy;
            *g_sum += g;
            *gx_sum += g * xhat;
        };
        let (mut g_lanes, mut gx_lanes) = ([T::ZERO; LANES], [T::ZERO; LANES]);
        let ((xs, x_tail), (dys, dy_tail)) = (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
        let (ws, w_tail) = w[..n.cols].as_chunks::<LANES>();
        let (dws, dw_tail) = dw[..n.cols].as_chunks_mut::<LANES>();
        let (dbs, db_tail) = db[..n.cols].as_chunks_mut::<LANES>();
        for k in 0..xs.len() {
            let (x, dy, w, dw, db) = (&xs[k], &dys[k], &ws[k], &mut dws[k], &mut dbs[k]);
            for i in 0..LANES {
                visit(x[i], dy[i], w[i], &mut dw[i], &mut db[i], &mut g_lanes[i], &mut gx_lanes[i]);
            }
        }
        let (mut g_sum, mut gx_sum) = (super::fold(g_lanes), super::fold(gx_lanes));
        for i in 0..x_tail.len() {
            visit(x_tail[i], dy_tail[i], w_tail[i], &mut dw_tail[i], &mut db_tail[i], &mut g_sum, &mut gx_sum);
        }
        let (g_mean, gx_mean) = (g_sum * inverse, gx_sum * inverse);
        for c in 0..n.cols {
            dx[c] += (dy[c] * w[c] - g_mean - (x[c] - mu) * rs * gx_mean) * rs;
        }
    }
}
