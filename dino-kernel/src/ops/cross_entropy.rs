//! Cross-entropy with soft targets, of logits over a few classes: loss = -sum_k t_k log p_k, p = softmax(x);
//! dL/dx_k = scale (p_k sum_j t_j - t_k).
//!
//! It is over slices, and no op of a backend: rows of classes are small, their targets are made on the host, and so the logits go there
//! ([`crate::finetune::step`]).

use super::loss::{LogSumExp, below};
use crate::dims::Rows;
use crate::real::Real;

/// loss (rows) and dx (rows, classes) are set, from x and targets t (rows, classes). `scale`: 1 / images of the full batch.
pub fn forward_backward<T: Real>(loss: &mut [T], dx: &mut [T], x: &[T], t: &[T], scale: f64, n: Rows) {
    for (row, loss) in loss.iter_mut().enumerate() {
        let at = row * n.cols..(row + 1) * n.cols;
        let (dx, x, t) = (&mut dx[at.clone()], &x[at.clone()], &t[at]);
        let mut sum = LogSumExp::new(T::ONE);
        x.iter().for_each(|&x| sum.push(x));
        let lse = sum.parts();
        let mass: f64 = t.iter().map(|t| t.to_f64()).sum();
        let mut total = 0.0;
        for ((dx, &x), &t) in dx.iter_mut().zip(x).zip(t) {
            let below = below(lse, x, T::ONE);
            total += (t * below).to_f64();
            *dx = T::of(scale * (mass * (-below).exp().to_f64() - t.to_f64()));
        }
        *loss = T::of(total);
    }
}
