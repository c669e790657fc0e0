//! The DINO loss (paper, eq. 3 and section 3.1): cross-entropy of every student crop with every other teacher crop.
//!
//! Logits of prototype k: s_k = (z . v_k) scale_k. Teacher: q = softmax((t - centre) / T_t); student: p = softmax(s / T_s).
//! loss = 1 / (B pairs) sum over images b, teachers i, views v != i of -sum_k q_ik log p_vk, pairs = teachers (V - 1).
//! With Q_v = sum of q_i over i != v and n_v how many those are:
//!   loss of a row = n_v lse_v - sum_k Q_vk s_vk / T_s;   dL/ds_v = (n_v p_v - Q_v) / (T_s B pairs).
//! So the sum of the targets meets each student row once: V passes instead of pairs.
//!
//! Everything streams over prototypes. The teacher is kept as its unit bottleneck rows and one log-sum-exp a row.

use super::{axpy, dot};
use crate::backend::LossDims;
use crate::real::Real;
use crate::step::hyper;

/// Most teacher views a plan accepts.
pub const MAX_TEACHERS: usize = 8;

/// A running softmax: `top` is the largest term so far, `total` the sum of exp(term - top), `spread` the sum of
/// exp(term - top) (top - term). Measured from the top, every part is non-negative and a nearly one-hot row keeps its digits.
#[derive(Clone, Copy, Debug)]
pub struct LogSumExp<T> {
    pub top: T,
    pub total: T,
    pub spread: T,
}

impl<T: Real> LogSumExp<T> {
    pub fn new() -> Self {
        LogSumExp { top: T::of(f64::NEG_INFINITY), total: T::ZERO, spread: T::ZERO }
    }

    #[inline(always)]
    pub fn push(&mut self, x: T) {
        if x > self.top || x.is_nan() {
            if self.total > T::ZERO {
                let rise = x - self.top;
                let factor = (-rise).exp();
                self.spread = factor * (self.spread + rise * self.total);
                self.total *= factor;
            }
            self.total += T::ONE;
            self.top = x;
        } else {
            let term = (x - self.top).exp();
            self.total += term;
            // exp(-inf) * inf is no number, and a term that is exactly nothing adds nothing.
            if term > T::ZERO {
                self.spread += term * (self.top - x);
            }
        }
    }

    /// ln of the sum of exp(term).
    pub fn value(self) -> T {
        self.top + self.total.ln()
    }

    /// Entropy of the softmax of the terms.
    pub fn entropy(self) -> T {
        self.spread / self.total + self.total.ln()
    }
}

impl<T: Real> Default for LogSumExp<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// lse, entropy (teachers * images); z (teachers * images, bottleneck); v (K, bottleneck); scale, centre (K).
pub fn teacher_lse<T: Real>(
    lse: &mut [T],
    entropy: &mut [T],
    z: &[T],
    v: &[T],
    scale: &[T],
    centre: &[T],
    h: &[T],
    n: LossDims,
) {
    let (c, sharpen) = (n.bottleneck, h[hyper::INV_TEACHER_TEMP]);
    let score = |row: usize, k: usize| (dot(&z[row * c..][..c], &v[k * c..][..c]) * scale[k] - centre[k]) * sharpen;
    for row in 0..n.teachers * n.images {
        let mut sum = LogSumExp::new();
        for k in 0..n.prototypes {
            sum.push(score(row, k));
        }
        lse[row] = sum.value();
        entropy[row] = sum.entropy();
    }
}

/// loss, lse (rows) and dz (rows, bottleneck) are set; `dw` (K, bottleneck) accumulates the gradient of the normalised prototypes.
pub fn forward_backward<T: Real>(
    loss: &mut [T],
    lse: &mut [T],
    dz: &mut [T],
    dw: &mut [T],
    z: &[T],
    v: &[T],
    scale: &[T],
    z_teacher: &[T],
    lse_teacher: &[T],
    v_teacher: &[T],
    scale_teacher: &[T],
    centre: &[T],
    h: &[T],
    n: LossDims,
) {
    let c = n.bottleneck;
    let (soften, sharpen) = (h[hyper::INV_STUDENT_TEMP], h[hyper::INV_TEACHER_TEMP]);
    let gradient_scale = soften * h[hyper::LOSS_SCALE];
    let score = |row: usize, k: usize| dot(&z[row * c..][..c], &v[k * c..][..c]) * scale[k] * soften;
    for row in 0..n.rows() {
        let mut sum = LogSumExp::new();
        for k in 0..n.prototypes {
            sum.push(score(row, k));
        }
        lse[row] = sum.value();
        loss[row] = T::of(n.pairs_of(n.first_view + row / n.images) as f64) * lse[row];
    }
    dz.fill(T::ZERO);
    for k in 0..n.prototypes {
        for image in 0..n.images {
            let mut targets = [T::ZERO; MAX_TEACHERS];
            for (i, target) in targets[..n.teachers].iter_mut().enumerate() {
                let row = i * n.images + image;
                let t = dot(&z_teacher[row * c..][..c], &v_teacher[k * c..][..c]) * scale_teacher[k];
                *target = ((t - centre[k]) * sharpen - lse_teacher[row]).exp();
            }
            for view in 0..n.views {
                let (row, v_all) = (view * n.images + image, n.first_view + view);
                let mut target = T::ZERO;
                for (i, &q) in targets[..n.teachers].iter().enumerate() {
                    if i != v_all {
                        target += q;
                    }
                }
                let s = score(row, k);
                loss[row] -= target * s;
                let p = (s - lse[row]).exp();
                let ds = (T::of(n.pairs_of(v_all) as f64) * p - target) * gradient_scale;
                axpy(&mut dz[row * c..][..c], ds * scale[k], &v[k * c..][..c]);
                axpy(&mut dw[k * c..][..c], ds, &z[row * c..][..c]);
            }
        }
    }
}

/// centre += rate (mean - centre), mean[k] = (sum . v_k) scale_k / rows: the mean teacher logit, by linearity.
#[inline(always)]
pub fn commit_centre<T: Real>(centre: &mut [T], sum: &[T], v: &[T], scale: &[T], h: &[T]) {
    let c = sum.len();
    for (k, (centre, &scale)) in centre.iter_mut().zip(scale).enumerate() {
        let mean = dot(sum, &v[k * c..][..c]) * scale * h[hyper::INV_TEACHER_ROWS];
        *centre += h[hyper::CENTRE_RATE] * (mean - *centre);
    }
}
