//! Per-tensor clip, AdamW and EMA over flat slices as the official trainer does them.
//!
//! clip: g *= min(1, c / (|g| + 1e-6)), each tensor by its own norm.
//! AdamW: p -= lr wd p;  m += (1 - b1)(g - m);  v += (1 - b2)(g^2 - v);  p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps).
//! EMA: t += (1 - momentum)(s - t).

use crate::real::Real;
use crate::scalars::hyper;

/// The factor for a tensor of gradient norm `norm`; 1 where `limit` is 0 (off).
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    let factor = limit / (norm + 1e-6);
    if limit > 0.0 && factor < 1.0 { factor } else { 1.0 }
}

/// p, m, v updated from g, all of one length. `decay` = lr * wd or 0, `step` = lr / (1 - b1^t), `bias2` = 1 / sqrt(1 - b2^t); h: [`hyper`].
#[inline(always)]
pub fn adamw<T: Real>(p: &mut [T], m: &mut [T], v: &mut [T], g: &[T], decay: T, step: T, bias2: T, h: &[T]) {
    let (rate1, rate2, eps) = (h[hyper::RATE1], h[hyper::RATE2], h[hyper::EPS]);
    for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
        *p -= decay * *p;
        *m += rate1 * (g - *m);
        *v += rate2 * (g * g - *v);
        *p -= step * *m / ((*v).sqrt() * bias2 + eps);
    }
}

/// teacher += rate (student - teacher).
#[inline(always)]
pub fn ema<T: Real>(teacher: &mut [T], student: &[T], rate: T) {
    for (t, &s) in teacher.iter_mut().zip(student) {
        *t += rate * (s - *t);
    }
}
