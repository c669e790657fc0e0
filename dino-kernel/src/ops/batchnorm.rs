//! y = x^ w + b [+ residual], then the ReLU of it if one follows;  x^ = (x - mean) rstd,  rstd = 1 / sqrt(var + eps): mean and biased
//! variance of every column over a group of rows ([`BatchNorm`]). A residual block ends with all of it, so the sum in front of the ReLU is
//! never stored.
//! dx = w rstd (g - mean(g) - x^ mean(g x^)),  g = dy where y > 0;   dw = sum of g x^;   db = sum of g;   the residual's gradient is g.
//!
//! Training keeps running statistics, running = 0.9 running + 0.1 (mean, unbiased variance), and evaluation normalizes by those.

use super::axpy;
use crate::dims::BatchNorm;
use crate::real::Real;

/// PyTorch's default, and that of every published ResNet.
pub const EPS: f64 = 1e-5;

/// The share of a group's statistics in the running ones that follow.
pub const MOMENTUM: f64 = 0.1;

/// running (cols) after a group of `rows` rows with these means and biased variances.
#[inline(always)]
pub fn update_running<T: Real>(running: [&mut [T]; 2], mean: &[T], var: &[T], rows: usize) {
    let [running_mean, running_var] = running;
    let (keep, take) = (T::of(1.0 - MOMENTUM), T::of(MOMENTUM));
    let unbiased = T::of(MOMENTUM * rows as f64 / rows.saturating_sub(1).max(1) as f64);
    for (((rm, rv), &mean), &var) in running_mean.iter_mut().zip(running_var).zip(mean).zip(var) {
        *rm = keep * *rm + take * mean;
        *rv = keep * *rv + unbiased * var;
    }
}

/// var (cols) becomes 1 / sqrt(var + eps).
#[inline(always)]
pub fn to_rstd<T: Real>(var: &mut [T], eps: f64) {
    var.iter_mut().for_each(|var| *var = T::ONE / (*var + T::of(eps)).sqrt());
}

/// mean and rstd (groups, cols) of x (rows, cols); the running mean and variance (cols) move once for every group, in their order.
pub fn statistics<T: Real>(mean: &mut [T], rstd: &mut [T], running: [&mut [T]; 2], x: &[T], n: BatchNorm) {
    let [running_mean, running_var] = running;
    for (i, (mean, var)) in mean.chunks_mut(n.cols).zip(rstd.chunks_mut(n.cols)).enumerate() {
        let rows = || n.segments(i).flat_map(|rows| x[rows.start * n.cols..rows.end * n.cols].chunks(n.cols));
        let inverse = T::of(1.0 / n.group_rows(i) as f64);
        mean.fill(T::ZERO);
        rows().for_each(|row| axpy(mean, inverse, row));
        var.fill(T::ZERO);
        for row in rows() {
            for ((var, &x), &mean) in var.iter_mut().zip(row).zip(&*mean) {
                *var += (x - mean) * (x - mean) * inverse;
            }
        }
        update_running([&mut *running_mean, &mut *running_var], mean, var, n.group_rows(i));
        to_rstd(var, n.eps);
    }
}

/// mean and rstd (cols) of the running mean and variance (cols).
pub fn of_running<T: Real>(mean: &mut [T], rstd: &mut [T], running: [&[T]; 2], eps: f64) {
    mean.copy_from_slice(running[0]);
    rstd.copy_from_slice(running[1]);
    to_rstd(rstd, eps);
}

/// Rows of one group: y, x (rows, cols), residual the same or empty; mean, rstd, w, b (cols).
#[inline(always)]
pub fn normalize_rows<T: Real>(
    y: &mut [T],
    x: &[T],
    residual: &[T],
    [mean, rstd]: [&[T]; 2],
    [w, b]: [&[T]; 2],
    relu: bool,
) {
    let cols = mean.len();
    let (rstd, w, b) = (&rstd[..cols], &w[..cols], &b[..cols]);
    for (r, y) in y.chunks_mut(cols).enumerate() {
        let (y, x) = (&mut y[..cols], &x[r * cols..][..cols]);
        for c in 0..cols {
            y[c] = (x[c] - mean[c]) * (rstd[c] * w[c]) + b[c];
        }
        if !residual.is_empty() {
            axpy(y, T::ONE, &residual[r * cols..][..cols]);
        }
        if relu {
            // A number that is none stays none.
            y.iter_mut().for_each(|y| *y = y.larger(T::ZERO));
        }
    }
}

/// y, x (rows, cols), residual the same or empty; mean, rstd (groups, cols); w, b (cols).
pub fn normalize<T: Real>(
    y: &mut [T],
    x: &[T],
    residual: &[T],
    [mean, rstd]: [&[T]; 2],
    affine: [&[T]; 2],
    n: BatchNorm,
) {
    for (i, (mean, rstd)) in mean.chunks(n.cols).zip(rstd.chunks(n.cols)).enumerate() {
        for rows in n.segments(i) {
            let part = rows.start * n.cols..rows.end * n.cols;
            let residual = if residual.is_empty() { residual } else { &residual[part.clone()] };
            normalize_rows(&mut y[part.clone()], &x[part], residual, [mean, rstd], affine, n.relu);
        }
    }
}

/// dy where y > 0, else 0: the gradient in front of a ReLU.
#[inline(always)]
pub fn mask<T: Real>(dy: &mut [T], y: &[T]) {
    for (dy, &y) in dy.iter_mut().zip(y) {
        *dy = if y == T::ZERO { T::ZERO } else { *dy };
    }
}

/// dx (rows, cols) is set; dy (rows, cols) leaves as the gradient in front of the ReLU; dw and db (cols) accumulate.
pub fn backward<T: Real>(
    dx: &mut [T],
    dy: &mut [T],
    [dw, db]: [&mut [T]; 2],
    [x, y]: [&[T]; 2],
    [mean, rstd]: [&[T]; 2],
    w: &[T],
    n: BatchNorm,
) {
    if n.relu {
        mask(dy, y);
    }
    for (i, (mean, rstd)) in mean.chunks(n.cols).zip(rstd.chunks(n.cols)).enumerate() {
        let inverse = T::of(1.0 / n.group_rows(i) as f64);
        for c in 0..n.cols {
            let column = || n.segments(i).flatten().map(|row| row * n.cols + c);
            let normal = |at: usize| (x[at] - mean[c]) * rstd[c];
            let (mut sum, mut sum_normal) = (T::ZERO, T::ZERO);
            for at in column() {
                sum += dy[at];
                sum_normal += dy[at] * normal(at);
            }
            db[c] += sum;
            dw[c] += sum_normal;
            for at in column() {
                dx[at] = w[c] * rstd[c] * (dy[at] - sum * inverse - normal(at) * (sum_normal * inverse));
            }
        }
    }
}
