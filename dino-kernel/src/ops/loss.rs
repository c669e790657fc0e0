//! The DINO loss (paper, eq. 3 and section 3.1): cross-entropy of every student crop with every other teacher crop.
//!
//! Logits of prototype k: s_k = (z . v_k) scale_k. Teacher: q = softmax((t - center) / T_t); student: p = softmax(s / T_s).
//! loss = 1 / (B pairs) sum over images b, teachers i, views v != i of -sum_k q_ik log p_vk, pairs = teachers (V - 1).
//! With Q_v = sum of q_i over i != v and n_v how many those are:
//!   loss of a row = sum_k Q_vk (lse_v - s_vk / T_s);   dL/ds_v = (n_v p_v - Q_v) / (T_s B pairs).
//! So each student row is compared once, with the sum of its targets: V passes instead of pairs.
//!
//! Everything streams over prototypes. The teacher is kept as its l2-normalized bottleneck rows and one log-sum-exp a row, and that as two
//! numbers: the largest x, before it is divided by the temperature T, and ln of the sum of exp((x - largest) / T). At low
//! temperatures scores reach thousands, where one f32 number would be off by 1e-4, and every probability of the row with it; so
//! differences are formed first and sharpened afterwards.

use super::{axpy, dot};
use crate::dims::LossDims;
use crate::real::Real;
use crate::scalars::{MAX_TEACHERS, hyper};

/// Prototypes whose targets are held at once, and whose part of a row's loss is summed before it is added to the row's.
const TILE: usize = 64;

/// A running log-sum-exp of terms times `slope` > 0: `top` is the largest term so far, `total` the sum of exp(slope (term - top)), in
/// f64 because one f32 sum of many thousand terms loses digits that every probability of the row would share.
#[derive(Clone, Copy, Debug)]
pub struct LogSumExp<T> {
    /// The factor of every term, 1 / temperature.
    pub slope: T,
    /// The largest term so far.
    pub top: T,
    /// The sum of exp(slope (term - top)).
    pub total: f64,
}

impl<T: Real> LogSumExp<T> {
    /// The sum of no terms.
    pub fn new(slope: T) -> Self {
        LogSumExp { slope, top: T::of(f64::NEG_INFINITY), total: 0.0 }
    }

    /// Adds a term.
    #[inline(always)]
    pub fn push(&mut self, x: T) {
        if x > self.top || x.is_nan() {
            self.total = self.total * ((self.top - x) * self.slope).exp().to_f64() + 1.0;
            self.top = x;
        } else {
            self.total += ((x - self.top) * self.slope).exp().to_f64();
        }
    }

    /// The value so far, as the two numbers that are kept: slope times the first, plus the second.
    pub fn parts(self) -> [T; 2] {
        [self.top, T::of(libm::log(self.total))]
    }
}

/// lse - slope x, differences first.
#[inline(always)]
pub(super) fn below<T: Real>(lse: [T; 2], x: T, slope: T) -> T {
    (lse[0] - x) * slope + lse[1]
}

/// Rows and prototypes whose dot products are logits: z (rows, bottleneck), v (K, bottleneck), scale (K).
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a, T> {
    /// l2-normalized bottleneck rows (rows, bottleneck).
    pub z: &'a [T],
    /// Directions of the prototypes (K, bottleneck).
    pub v: &'a [T],
    /// g / |v| (K).
    pub scale: &'a [T],
}

impl<T: Real> Logits<'_, T> {
    /// The logit of prototype `k` in row `row`, of rows of `c` columns.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, k: usize, c: usize) -> T {
        dot(&self.z[row * c..][..c], &self.v[k * c..][..c]) * self.scale[k]
    }
}

/// The teacher's side: logits, lse (rows, 2: see above), offset (K).
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a, T> {
    /// The teacher's rows and prototypes.
    pub logits: Logits<'a, T>,
    /// Log-sum-exp of every row (rows, 2).
    pub lse: &'a [T],
    /// What is subtracted from the logits (K).
    pub offset: &'a [T],
}

/// What the loss writes: loss (rows), lse (rows, 2) and dz (rows, bottleneck) are set; `dw` (K, bottleneck) accumulates the gradient of
/// the normalized prototypes.
#[derive(Debug)]
pub struct LossOut<'a, T> {
    /// Cross-entropy of every row with its targets (rows).
    pub loss: &'a mut [T],
    /// Log-sum-exp of every student row (rows, 2).
    pub lse: &'a mut [T],
    /// Gradient of the student's rows (rows, bottleneck).
    pub dz: &'a mut [T],
    /// Gradient of the normalized prototypes (K, bottleneck).
    pub dw: &'a mut [T],
}

/// lse (teachers * images, 2: see above), entropy (teachers * images); offset (K).
/// The entropy is a sum of non-negative terms q (lse - x), so that a nearly one-hot row keeps its digits.
pub fn teacher_lse<T: Real>(lse: &mut [T], entropy: &mut [T], teacher: Logits<T>, offset: &[T], h: &[T], n: LossDims) {
    let (c, sharpen) = (n.bottleneck, h[hyper::INV_TEACHER_TEMP]);
    let score = |row: usize, k: usize| teacher.at(row, k, c) - offset[k];
    for row in 0..n.teachers * n.images {
        let mut sum = LogSumExp::new(sharpen);
        for k in 0..n.prototypes {
            sum.push(score(row, k));
        }
        let parts = sum.parts();
        lse[2 * row..][..2].copy_from_slice(&parts);
        let term = |k| {
            let below = below(parts, score(row, k), sharpen);
            ((-below).exp() * below).to_f64()
        };
        entropy[row] = T::of((0..n.prototypes).map(term).sum());
    }
}

/// The loss and its gradient; see the formulas above.
pub fn forward_backward<T: Real>(out: LossOut<T>, student: Logits<T>, targets: Targets<T>, h: &[T], n: LossDims) {
    let (LossOut { loss, lse, dz, dw }, Logits { z, v, scale }) = (out, student);
    let (teacher, lse_teacher) = (targets.logits, targets.lse.as_chunks::<2>().0);
    let c = n.bottleneck;
    let (soften, sharpen) = (h[hyper::INV_STUDENT_TEMP], h[hyper::INV_TEACHER_TEMP]);
    let gradient_scale = soften * h[hyper::LOSS_SCALE];
    let score = |row: usize, k: usize| student.at(row, k, c);
    for row in 0..n.rows() {
        let mut sum = LogSumExp::new(soften);
        for k in 0..n.prototypes {
            sum.push(score(row, k));
        }
        lse[2 * row..][..2].copy_from_slice(&sum.parts());
    }
    let lse = lse.as_chunks::<2>().0;
    loss.fill(T::ZERO);
    dz.fill(T::ZERO);
    for first in (0..n.prototypes).step_by(TILE) {
        let tile = first..n.prototypes.min(first + TILE);
        for image in 0..n.images {
            let mut probabilities = [[T::ZERO; TILE]; MAX_TEACHERS];
            for (i, row_targets) in probabilities[..n.teachers].iter_mut().enumerate() {
                let row = i * n.images + image;
                for (k, target) in tile.clone().zip(row_targets) {
                    let t = teacher.at(row, k, c);
                    *target = (-below(lse_teacher[row], t - targets.offset[k], sharpen)).exp();
                }
            }
            for view in 0..n.views {
                let (row, v_all, mut sum) = (view * n.images + image, n.first_view + view, 0.0);
                let others = T::of(n.pairs_of(v_all) as f64);
                for k in tile.clone() {
                    let mut target = T::ZERO;
                    for (i, row_targets) in probabilities[..n.teachers].iter().enumerate() {
                        if i != v_all {
                            target += row_targets[k - first];
                        }
                    }
                    let below = below(lse[row], score(row, k), soften);
                    sum += (target * below).to_f64();
                    let ds = (others * (-below).exp() - target) * gradient_scale;
                    axpy(&mut dz[row * c..][..c], ds * scale[k], &v[k * c..][..c]);
                    axpy(&mut dw[k * c..][..c], ds, &z[row * c..][..c]);
                }
                loss[row] += T::of(sum);
            }
        }
    }
}

/// center += rate (mean - center), `mean[k] = (sum . v_k) scale_k / rows`: the mean teacher logit, by linearity.
#[inline(always)]
pub fn commit_center<T: Real>(center: &mut [T], sum: &[T], v: &[T], scale: &[T], h: &[T]) {
    let c = sum.len();
    for (k, (center, &scale)) in center.iter_mut().zip(scale).enumerate() {
        let mean = dot(sum, &v[k * c..][..c]) * scale * h[hyper::INV_TEACHER_ROWS];
        *center += h[hyper::CENTER_RATE] * (mean - *center);
    }
}
