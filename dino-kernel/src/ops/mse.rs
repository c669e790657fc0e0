//! The mean squared error between the softmax outputs (paper, table 7) in the place of the cross-entropy.
//!
//! With p = softmax(s / T_s) of a student row, q_i the targets of its image's teacher rows i other than itself, n how many those are and Q
//! their sum ([`super::loss`]):
//!   loss of a row = sum_i sum_k (p_k - q_ik)^2, divided by (B pairs) as the cross-entropy is: K times the mean over the outputs;
//!   dL/dp_k = 2 (n p_k - Q_k) / (B pairs);   dL/ds_k = 2 p_k (n p_k - Q_k - a) / (T_s B pairs),   a = sum_k p_k (n p_k - Q_k).
//! The softmax's gradient takes the row's inner product a, so prototypes are streamed once more than for the cross-entropy: for the
//! log-sum-exp, for a and the loss, for the gradient.

use super::axpy;
use super::loss::{LogSumExp, Logits, LossOut, Targets, below};
use crate::dims::LossDims;
use crate::real::Real;
use crate::scalars::hyper;

/// The loss and its gradient; see the formulas above.
pub fn forward_backward<T: Real>(out: LossOut<T>, student: Logits<T>, targets: Targets<T>, h: &[T], n: LossDims) {
    let (LossOut { loss, lse, dz, dw }, Logits { z, v, scale }) = (out, student);
    let (teacher, lse_teacher) = (targets.logits, targets.lse.as_chunks::<2>().0);
    let (c, two) = (n.bottleneck, T::of(2.0));
    let (soften, sharpen) = (h[hyper::INV_STUDENT_TEMP], h[hyper::INV_TEACHER_TEMP]);
    let gradient_scale = two * soften * h[hyper::LOSS_SCALE];
    dz.fill(T::ZERO);
    for row in 0..n.rows() {
        let (view, image) = (n.first_view + row / n.images, row % n.images);
        let others = T::of(n.pairs_of(view) as f64);
        let mut sum = LogSumExp::new(soften);
        for k in 0..n.prototypes {
            sum.push(student.at(row, k, c));
        }
        let parts = sum.parts();
        lse[2 * row..][..2].copy_from_slice(&parts);
        // p_k, Q_k and sum_i (p_k - q_ik)^2.
        let terms = |k: usize| {
            let p = (-below(parts, student.at(row, k, c), soften)).exp();
            let (mut target, mut error) = (T::ZERO, T::ZERO);
            for i in (0..n.teachers).filter(|&i| i != view) {
                let row = i * n.images + image;
                let q = (-below(lse_teacher[row], teacher.at(row, k, c) - targets.offset[k], sharpen)).exp();
                target += q;
                error += (p - q) * (p - q);
            }
            (p, target, error)
        };
        let (mut inner, mut total) = (0.0, 0.0);
        for k in 0..n.prototypes {
            let (p, target, error) = terms(k);
            inner += (p * (others * p - target)).to_f64();
            total += error.to_f64();
        }
        loss[row] = T::of(total);
        let inner = T::of(inner);
        for k in 0..n.prototypes {
            let (p, target, _) = terms(k);
            let ds = p * (others * p - target - inner) * gradient_scale;
            axpy(&mut dz[row * c..][..c], ds * scale[k], &v[k * c..][..c]);
            axpy(&mut dw[k * c..][..c], ds, &z[row * c..][..c]);
        }
    }
}
