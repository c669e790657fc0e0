//! Row kernels: loops that vectorize, compiled for AVX-512, AVX2 and the baseline and chosen at run time. All lanes are added in
//! the fixed order of `dino_kernel::ops`, and multiply-adds are fused where the ops do so, so every choice gives the same bits.

use super::fast;
use dino_kernel::backend::{LayerNorm, MaxPool, Rows};
use dino_kernel::crops::Group;
use dino_kernel::ops;
use dino_kernel::optim::{Optimizer, Slots, teacher};
use dino_kernel::scalars::{NUMBERS, hyper};
use multiversion::multiversion;

/// y, x (rows, cols); mean, rstd (rows).
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn layernorm(y: &mut [f32], mean: &mut [f32], rstd: &mut [f32], x: &[f32], w: &[f32], b: &[f32], eps: f64) {
    let n = LayerNorm { rows: mean.len(), cols: w.len(), eps };
    ops::layernorm::forward(y, mean, rstd, x, w, b, n);
}

/// See [`ops::layernorm::backward`].
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn layernorm_backward(
    dx_acc: &mut [f32],
    dw: &mut [f32],
    db: &mut [f32],
    dy: &[f32],
    x: &[f32],
    mean: &[f32],
    rstd: &[f32],
    w: &[f32],
) {
    let n = Rows { rows: mean.len(), cols: w.len() };
    ops::layernorm::backward(dx_acc, dw, db, dy, x, mean, rstd, w, n);
}

/// Every row of y += b.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn add_bias(y: &mut [f32], b: &[f32]) {
    for row in y.chunks_mut(b.len()) {
        ops::axpy(row, 1.0, b);
    }
}

/// Every row of pre += b; y = gelu(pre).
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn bias_gelu(y: &mut [f32], pre: &mut [f32], b: &[f32]) {
    for (y, pre) in y.chunks_mut(b.len()).zip(pre.chunks_mut(b.len())) {
        for ((y, pre), &b) in y.iter_mut().zip(pre).zip(b) {
            *pre += b;
            *y = *pre * fast::normal_cdf(*pre);
        }
    }
}

/// y = x Phi(x).
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn gelu(y: &mut [f32], x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x * fast::normal_cdf(x);
    }
}

/// dx = dy (Phi(x) + x phi(x)).
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn gelu_backward(dx: &mut [f32], dy: &[f32], x: &[f32]) {
    for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
        let density = fast::exp(-0.5 * x * x) * ops::gelu::INV_SQRT_TAU as f32;
        *dx = dy * x.mul_add(density, fast::normal_cdf(x));
    }
}

/// See [`ops::relu::forward`].
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn relu(y: &mut [f32], x: &[f32]) {
    ops::relu::forward(y, x);
}

/// See [`ops::relu::backward`].
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn relu_backward(dx: &mut [f32], dy: &[f32], x: &[f32]) {
    ops::relu::backward(dx, dy, x);
}

/// y = a + b.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn add(y: &mut [f32], a: &[f32], b: &[f32]) {
    ops::residual::add(y, a, b);
}

/// y += x.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn add_assign(y: &mut [f32], x: &[f32]) {
    ops::axpy(y, 1.0, x);
}

/// y = x + s branch.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn add_scaled(y: &mut [f32], x: &[f32], branch: &[f32], s: f32) {
    for ((y, &x), &b) in y.iter_mut().zip(x).zip(branch) {
        *y = x + s * b;
    }
}

/// y = s x.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn scaled(y: &mut [f32], x: &[f32], s: f32) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = s * x;
    }
}

/// sums (cols) += the rows of x, `stride` apart.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn column_sums(sums: &mut [f32], x: &[f32], stride: usize) {
    let cols = sums.len();
    // Four rows a visit: each sum is read and written a quarter as often.
    for rows in x.chunks(4 * stride) {
        if rows.len() >= 3 * stride + cols {
            let (a, b) = (&rows[..cols], &rows[stride..][..cols]);
            let (c, d) = (&rows[2 * stride..][..cols], &rows[3 * stride..][..cols]);
            for j in 0..cols {
                sums[j] += (a[j] + b[j]) + (c[j] + d[j]);
            }
        } else {
            rows.chunks(stride).for_each(|row| ops::axpy(sums, 1.0, &row[..cols]));
        }
    }
}

/// Each row of s (rows `ld` apart, `cols` long) becomes softmax(scale * row); lse (rows, `stride` apart) its log-sum-exp.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn softmax(s: &mut [f32], ld: usize, cols: usize, scale: f32, lse: &mut [f32], stride: usize) {
    for (row, lse) in s.chunks_mut(ld).zip(lse.iter_mut().step_by(stride)) {
        let row = &mut row[..cols];
        let top = maximum(row);
        for x in row.iter_mut() {
            *x = fast::exp((*x - top) * scale);
        }
        let total = ops::sum(row);
        let inverse = 1.0 / total;
        for x in row.iter_mut() {
            *x *= inverse;
        }
        *lse = top * scale + libm::logf(total);
    }
}

/// Each row of s (rows `ld` apart, `cols` long) becomes exp(scale * row - lse): the probabilities again.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn softmax_again(s: &mut [f32], ld: usize, cols: usize, scale: f32, lse: &[f32], stride: usize) {
    for (row, &lse) in s.chunks_mut(ld).zip(lse.iter().step_by(stride)) {
        for x in row[..cols].iter_mut() {
            *x = fast::exp(*x * scale - lse);
        }
    }
}

/// dp (rows `ld` apart, `cols` long) becomes ds = p (dp - delta) scale, delta (rows) = y . dy of each row; dy and y rows have `d` columns, `stride` apart.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn softmax_backward(
    dp: &mut [f32],
    p: &[f32],
    ld: usize,
    cols: usize,
    scale: f32,
    dy: &[f32],
    y: &[f32],
    d: usize,
    stride: usize,
) {
    for (i, (dp, p)) in dp.chunks_mut(ld).zip(p.chunks(ld)).enumerate() {
        let delta = ops::dot(&dy[i * stride..][..d], &y[i * stride..][..d]);
        for (dp, &p) in dp[..cols].iter_mut().zip(&p[..cols]) {
            *dp = p * (*dp - delta) * scale;
        }
    }
}

/// The largest element that is a number: whoever takes differences from it meets a NaN again.
#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    let pick = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, tail) = x.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for c in chunks {
        for i in 0..16 {
            lanes[i] = pick(lanes[i], c[i]);
        }
    }
    let mut top = f32::NEG_INFINITY;
    for &x in &lanes {
        top = pick(top, x);
    }
    for &x in tail {
        top = pick(top, x);
    }
    top
}

/// Calls `found` with every element that is at least `least`, and its index.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn at_least(x: &[f32], least: f32, found: &mut dyn FnMut(usize, f32)) {
    for (i, part) in x.chunks(64).enumerate() {
        // Nearly every part has none: one test for all of it.
        if maximum(part) >= least {
            part.iter().enumerate().filter(|(_, s)| **s >= least).for_each(|(j, &s)| found(64 * i + j, s));
        }
    }
}

/// A running softmax of slope x over one row: `top` is its largest x, `rest` the sum of exp(slope (x - top)) without the top's own 1,
/// `spread` the sum of exp(slope (x - top)) slope (top - x). Kept apart from the 1, and with no negative term, a nearly one-hot row keeps its digits.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// The largest x.
    pub top: f32,
    /// The sum of exp(slope (x - top)) but for the top's 1.
    pub rest: f32,
    /// The sum of exp(slope (x - top)) slope (top - x).
    pub spread: f32,
}

impl Running {
    /// No terms yet: the total, 1 + rest, is zero.
    pub const START: Running = Running { top: f32::NEG_INFINITY, rest: -1.0, spread: 0.0 };

    /// Both rows' terms.
    pub fn merge(self, other: Running, slope: f32) -> Running {
        if self.rest == -1.0 {
            return other;
        }
        if other.rest == -1.0 {
            return self;
        }
        let (high, low) = if other.top > self.top || other.top.is_nan() { (other, self) } else { (self, other) };
        let fall = (high.top - low.top) * slope;
        let factor = fast::exp(-fall);
        let total = 1.0 + low.rest;
        // A row that has fallen to nothing adds nothing, however far it fell.
        let fallen = if factor > 0.0 || factor.is_nan() { factor * (low.spread + fall * total) } else { 0.0 };
        Running { top: high.top, rest: high.rest + factor * total, spread: high.spread + fallen }
    }

    /// The log-sum-exp as the two numbers the vocabulary keeps: slope times the first, plus the second.
    pub fn parts(self) -> [f32; 2] {
        [self.top, libm::log1pf(self.rest)]
    }

    /// Entropy of the softmax. The logarithm is that of an f64 total, as in the reference: below 1e-16 the rest does not show in it.
    pub fn entropy(self) -> f32 {
        self.spread / (1.0 + self.rest) + libm::log(1.0 + self.rest as f64) as f32
    }
}

/// The running softmax of one row of raw logits: `x[k] = s[k] scale[k] - offset[k]`; without an offset, the student's. Overwrites s.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn running(s: &mut [f32], scale: &[f32], offset: Option<&[f32]>, slope: f32) -> Running {
    logits(s, scale, offset);
    let top = maximum(s);
    let mut spread = [0.0f32; 16];
    let (chunks, tail) = s.as_chunks_mut::<16>();
    let term = |x: &mut f32, sum: &mut f32| {
        let below = (top - *x) * slope;
        *x = fast::exp(-below);
        // exp(-inf) * inf is no number, and a term that is exactly nothing adds nothing.
        *sum += if *x > 0.0 { *x * below } else { 0.0 };
    };
    for c in chunks {
        for (x, sum) in c.iter_mut().zip(&mut spread) {
            term(x, sum);
        }
    }
    for (x, sum) in tail.iter_mut().zip(&mut spread) {
        term(x, sum);
    }
    if let Some(own) = s.iter_mut().find(|x| **x == 1.0) {
        *own = 0.0;
    }
    let rest = ops::sum(s);
    Running { top: if rest.is_nan() { rest } else { top }, rest, spread: ops::sum(&spread) }
}

#[inline(always)]
fn logits(s: &mut [f32], scale: &[f32], offset: Option<&[f32]>) {
    match offset {
        Some(offset) => {
            for ((x, &scale), &c) in s.iter_mut().zip(scale).zip(offset) {
                *x = *x * scale - c;
            }
        }
        None => {
            for (x, &scale) in s.iter_mut().zip(scale) {
                *x *= scale;
            }
        }
    }
}

/// Raw teacher logits of one row become probabilities exp(slope x - lse), `x[k] = t[k] scale[k] - offset[k]`, lse in two parts.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn targets(t: &mut [f32], scale: &[f32], offset: &[f32], slope: f32, lse: [f32; 2]) {
    logits(t, scale, Some(offset));
    for x in t.iter_mut() {
        *x = fast::exp((*x - lse[0]) * slope - lse[1]);
    }
}

/// One student row over some prototypes: raw logits `s` become dL/ds = (pairs p - q) gradient_scale with q the summed targets;
/// returns the sum of q (lse - slope x), x the logits: the row's cross-entropy with its targets.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn student_row(
    s: &mut [f32],
    q: &[f32],
    scale: &[f32],
    slope: f32,
    lse: [f32; 2],
    pairs: f32,
    gradient_scale: f32,
) -> f32 {
    logits(s, scale, None);
    s.iter_mut().for_each(|x| *x = (lse[0] - *x) * slope + lse[1]);
    let met = ops::dot(s, q);
    for (below, &q) in s.iter_mut().zip(q) {
        *below = (pairs * fast::exp(-*below) - q) * gradient_scale;
    }
    met
}

/// One teacher row over some prototypes: raw logits `s` become the terms of their columns, `x[k] = s[k] scale[k] - top - ln`.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn column_terms(s: &mut [f32], scale: &[f32], top: f32, ln: f32) {
    for (x, &scale) in s.iter_mut().zip(scale) {
        *x = *x * scale - top - ln;
    }
}

/// The running log-sum-exp of every column over some rows x (rows, columns): its largest x, and the sum of exp(slope (x - top)).
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn column_totals(tops: &mut [f32], totals: &mut [f64], x: &[f32], slope: f32) {
    let mut before = [0.0; 256];
    let before = &mut before[..tops.len()];
    before.copy_from_slice(tops);
    for row in x.chunks(tops.len()) {
        for (top, &x) in tops.iter_mut().zip(row) {
            *top = if x > *top { x } else { *top };
        }
    }
    for ((total, &before), &top) in totals.iter_mut().zip(&*before).zip(&*tops) {
        *total *= fast::exp((before - top) * slope) as f64;
    }
    for row in x.chunks(tops.len()) {
        for ((total, &x), &top) in totals.iter_mut().zip(row).zip(&*tops) {
            *total += fast::exp((x - top) * slope) as f64;
        }
    }
}

/// Sum of (x - y)^2, in the lanes of `dino_kernel::ops`.
#[inline(always)]
fn squared_distance(x: &[f32], y: &[f32]) -> f32 {
    let ((xs, x_tail), (ys, y_tail)) = (x.as_chunks::<16>(), y.as_chunks::<16>());
    let mut lanes = [0.0f32; 16];
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..16 {
            lanes[i] += (x[i] - y[i]) * (x[i] - y[i]);
        }
    }
    x_tail.iter().zip(y_tail).fold(ops::sum(&lanes), |sum, (x, y)| sum + (x - y) * (x - y))
}

/// One student row over some prototypes, of the squared error: raw logits `s` become probabilities p; of targets q, one slice a teacher
/// row, `sum` takes their sum. Returns sum p (pairs p - sum) and the sum of (p - q)^2.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn squared_error(
    s: &mut [f32],
    sum: &mut [f32],
    targets: &[&[f32]],
    scale: &[f32],
    slope: f32,
    lse: [f32; 2],
) -> [f32; 2] {
    logits(s, scale, None);
    s.iter_mut().for_each(|x| *x = fast::exp((*x - lse[0]) * slope - lse[1]));
    sum.fill(0.0);
    let mut error = 0.0;
    for q in targets {
        sum.iter_mut().zip(*q).for_each(|(sum, q)| *sum += q);
        error += squared_distance(s, q);
    }
    let pairs = targets.len() as f32;
    // p (pairs p - sum), whose terms are of either sign.
    sum.iter_mut().zip(&*s).for_each(|(sum, p)| *sum = pairs * p - *sum);
    [ops::dot(s, sum), error]
}

/// Probabilities p and what [`squared_error`] leaves of the targets, d = pairs p - their sum, become dL/ds = p (d - inner) gradient_scale.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn squared_error_gradient(p: &mut [f32], d: &[f32], inner: f32, gradient_scale: f32) {
    for (p, &d) in p.iter_mut().zip(d) {
        *p = *p * (d - inner) * gradient_scale;
    }
}

/// `x[k] *= scale[k]`.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn scale_columns(x: &mut [f32], scale: &[f32]) {
    for (x, &s) in x.iter_mut().zip(scale) {
        *x *= s;
    }
}

/// x *= factor.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn scale(x: &mut [f32], factor: f32) {
    for x in x.iter_mut() {
        *x *= factor;
    }
}

/// Sum of squares.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn sum_squares(x: &[f32]) -> f64 {
    ops::sum_squares(x)
}

/// See [`Optimizer::norms`].
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn norms(rule: Optimizer, p: &[f32], g: &[f32], h: &[f32; NUMBERS]) -> [f64; 2] {
    rule.norms(p, g, h)
}

/// See [`Optimizer::apply`].
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn optimize(rule: Optimizer, p: &mut [f32], slots: Slots<f32>, g: &[f32], trust: f32, h: &[f32; NUMBERS]) {
    rule.apply(p, slots, g, trust, h);
}

/// See [`teacher::blend`].
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn ema(teacher: &mut [f32], student: &[f32], rate: f32) {
    teacher::blend(teacher, student, rate);
}

/// See [`ops::norm::prototype_scale`].
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn prototype_scale(scale: &mut [f32], v: &[f32], g: &[f32], cols: usize) {
    ops::norm::prototype_scale(scale, v, g, Rows { rows: scale.len(), cols });
}

/// See [`ops::norm::weight_norm_backward`].
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn weight_norm_backward(dv: &mut [f32], dg: Option<&mut [f32]>, v: &[f32], scale: &[f32], cols: usize) {
    ops::norm::weight_norm_backward(dv, dg, v, scale, Rows { rows: scale.len(), cols });
}

/// See [`ops::loss::commit_center`].
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn commit_center(center: &mut [f32], sum: &[f32], v: &[f32], scale: &[f32], h: &[f32; hyper::LEN]) {
    ops::loss::commit_center(center, sum, v, scale, h);
}

/// See [`ops::max_pool::forward_row`].
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn max_pool(y: &mut [f32], x: &[f32], row: usize, map: Group, n: MaxPool) {
    ops::max_pool::forward_row(y, x, row, map, n);
}

/// See [`ops::max_pool::backward_map`].
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn max_pool_backward(dx: &mut [f32], dy: &[f32], x: &[f32], map: Group, n: MaxPool) {
    ops::max_pool::backward_map(dx, dy, x, map, n);
}

/// See [`ops::average_pool::forward_crop`].
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn average_pool(y: &mut [f32], x: &[f32]) {
    ops::average_pool::forward_crop(y, x);
}
