//! Kernels of batch norms over blocks of rows, compiled and chosen as those of [`super::rows`]. Rows are short, so they go by index over
//! slices of one length: `zip` would be a call for every row.

use dino_kernel::ops::batchnorm;
use multiversion::multiversion;

/// mean (cols) of the rows of x, and moment (cols), the sum of squared differences from it: the two numbers that two blocks' statistics
/// are merged from, without the cancellation of sums of squares.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn moments(mean: &mut [f32], moment: &mut [f32], x: &[f32]) {
    let cols = mean.len();
    let moment = &mut moment[..cols];
    let inverse = 1.0 / (x.len() / cols) as f32;
    mean.fill(0.0);
    for row in x.chunks(cols) {
        let row = &row[..cols];
        for c in 0..cols {
            mean[c] += row[c];
        }
    }
    for c in 0..cols {
        mean[c] *= inverse;
    }
    moment.fill(0.0);
    for row in x.chunks(cols) {
        let row = &row[..cols];
        for c in 0..cols {
            moment[c] += (row[c] - mean[c]) * (row[c] - mean[c]);
        }
    }
}

/// mean and moment (cols) of `rows` rows become those of these and `more` further ones (Chan, Golub and LeVeque 1979).
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn merge(mean: &mut [f32], moment: &mut [f32], rows: usize, further: [&[f32]; 2], more: usize) {
    let share = more as f32 / (rows + more) as f32;
    let between = rows as f32 * share;
    for (((mean, moment), &other), &others) in mean.iter_mut().zip(moment).zip(further[0]).zip(further[1]) {
        let apart = other - *mean;
        *mean += apart * share;
        *moment += others + apart * apart * between;
    }
}

/// See [`batchnorm::normalize_rows`].
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn normalize(y: &mut [f32], x: &[f32], residual: &[f32], stats: [&[f32]; 2], affine: [&[f32]; 2], relu: bool) {
    batchnorm::normalize_rows(y, x, residual, stats, affine, relu);
}

/// dy becomes the gradient g in front of the ReLU, if there is one; sums (cols) of g and of g x^ over the rows are set.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn gradient_sums(
    sum: &mut [f32],
    sum_normal: &mut [f32],
    dy: &mut [f32],
    x: &[f32],
    y: Option<&[f32]>,
    mean: &[f32],
    rstd: &[f32],
) {
    let cols = mean.len();
    if let Some(y) = y {
        batchnorm::mask(dy, y);
    }
    sum.fill(0.0);
    sum_normal.fill(0.0);
    let (sum, sum_normal, rstd) = (&mut sum[..cols], &mut sum_normal[..cols], &rstd[..cols]);
    for (r, dy) in dy.chunks(cols).enumerate() {
        let (dy, x) = (&dy[..cols], &x[r * cols..][..cols]);
        for c in 0..cols {
            sum[c] += dy[c];
            sum_normal[c] += dy[c] * ((x[c] - mean[c]) * rstd[c]);
        }
    }
}

/// dx = w rstd (g - sum / rows - x^ sum_normal / rows), `inverse` being 1 / rows of the group.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn gradient(dx: &mut [f32], dy: &[f32], x: &[f32], sums: [&[f32]; 2], stats: [&[f32]; 2], w: &[f32], inverse: f32) {
    let cols = w.len();
    let [sum, sum_normal, mean, rstd] = [&sums[0][..cols], &sums[1][..cols], &stats[0][..cols], &stats[1][..cols]];
    for (r, dx) in dx.chunks_mut(cols).enumerate() {
        let (dx, dy, x) = (&mut dx[..cols], &dy[r * cols..][..cols], &x[r * cols..][..cols]);
        for c in 0..cols {
            let normal = (x[c] - mean[c]) * rstd[c];
            dx[c] = w[c] * rstd[c] * (dy[c] - sum[c] * inverse - normal * (sum_normal[c] * inverse));
        }
    }
}
