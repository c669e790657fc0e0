//! offset_k = T c_k, c_k = lse_i(t_ik / T - r_i): the log-sum-exp of every prototype over the teacher's rows, T the teacher's
//! temperature, and r_i a log-sum-exp of every row over the prototypes, in two numbers: r_i = top_i / T + ln_i ([`super::loss`]).
//!
//! The offset is subtracted from logits before they are divided by T, as a center is. So terms are formed in the unit of logits too:
//! x_i = t_ik - top_i - T ln_i, and offset_k = max_i x_i + T ln sum_i exp((x_i - max) / T), differences first.

use super::loss::{LogSumExp, Logits};
use crate::dims::LossDims;
use crate::real::Real;
use crate::scalars::hyper;

/// offset (K); lse (rows, 2), or empty for rows whose log-sum-exp is 0.
pub fn forward<T: Real>(offset: &mut [T], teacher: Logits<T>, lse: &[T], h: &[T], n: LossDims) {
    let (c, sharpen) = (n.bottleneck, h[hyper::INV_TEACHER_TEMP]);
    let lse = lse.as_chunks::<2>().0;
    for (k, offset) in offset.iter_mut().enumerate() {
        let mut sum = LogSumExp::new(sharpen);
        for row in 0..n.teachers * n.images {
            let [top, ln] = lse.get(row).copied().unwrap_or([T::ZERO; 2]);
            sum.push(teacher.at(row, k, c) - top - ln / sharpen);
        }
        let [top, ln] = sum.parts();
        *offset = top + ln / sharpen;
    }
}
