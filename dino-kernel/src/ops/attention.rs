//! y = P v,  P = softmax(s),  s = q k^T / sqrt(D), for every crop and head. Saved: y and lse = log-sum-exp of s by row; never P.
//! dv = P^T dy;  ds = P (dy v^T - delta) / sqrt(D),  delta = y . dy by row;  dq = ds k;  dk = ds^T q.
//!
//! The reference computes every score when it needs it (three times in all) and needs no scratch.

use super::{axpy, dot};
use crate::dims::Heads;
use crate::real::Real;

/// A matrix inside a wider one: row r is `data[r * stride + at ..][.. D]`.
#[derive(Clone, Copy)]
struct View<'a, T> {
    data: &'a [T],
    stride: usize,
    at: usize,
}

impl<'a, T> View<'a, T> {
    fn row(&self, r: usize, d: usize) -> &'a [T] {
        &self.data[r * self.stride + self.at..][..d]
    }
}

fn scale<T: Real>(n: Heads) -> T {
    T::of(1.0 / libm::sqrt(n.head_dim as f64))
}

/// One query: y (D) and the log-sum-exp of its scores.
fn attend<T: Real>(y: &mut [T], q: &[T], k: View<T>, v: View<T>, keys: usize, scale: T) -> T {
    let d = q.len();
    let (mut top, mut total) = (T::of(f64::NEG_INFINITY), T::ZERO);
    for j in 0..keys {
        let s = dot(q, k.row(j, d)) * scale;
        if s > top || s.is_nan() {
            total = total * (top - s).exp() + T::ONE;
            top = s;
        } else {
            total += (s - top).exp();
        }
    }
    let lse = top + total.ln();
    y.fill(T::ZERO);
    for j in 0..keys {
        axpy(y, (dot(q, k.row(j, d)) * scale - lse).exp(), v.row(j, d));
    }
    lse
}

/// What one query adds to dk and dv (rows of `stride`, at `dk_at` and `dv_at`) and its own dq (D).
fn attend_backward<T: Real>(
    dq: &mut [T],
    dkv: &mut [T],
    [stride, dk_at, dv_at]: [usize; 3],
    dy: &[T],
    y: &[T],
    lse: T,
    q: &[T],
    k: View<T>,
    v: View<T>,
    keys: usize,
    scale: T,
) {
    let d = q.len();
    let delta = dot(dy, y);
    dq.fill(T::ZERO);
    for j in 0..keys {
        let p = (dot(q, k.row(j, d)) * scale - lse).exp();
        let ds = p * (dot(dy, v.row(j, d)) - delta) * scale;
        axpy(dq, ds, k.row(j, d));
        axpy(&mut dkv[j * stride + dk_at..][..d], ds, q);
        axpy(&mut dkv[j * stride + dv_at..][..d], p, dy);
    }
}

/// y (rows, C); lse (rows, heads); qkv (rows, 3C).
pub fn forward<T: Real>(y: &mut [T], lse: &mut [T], qkv: &[T], n: Heads) {
    let (c, d) = (n.cols(), n.head_dim);
    for (first, tokens) in n.crops.each() {
        let data = &qkv[first * 3 * c..][..tokens * 3 * c];
        for h in 0..n.heads {
            let [q, k, v] = [0, 1, 2].map(|part| View { data, stride: 3 * c, at: part * c + h * d });
            for i in 0..tokens {
                let y = &mut y[(first + i) * c + h * d..][..d];
                lse[(first + i) * n.heads + h] = attend(y, q.row(i, d), k, v, tokens, scale(n));
            }
        }
    }
}

/// dqkv (rows, 3C) is set; dy, y (rows, C); lse (rows, heads); qkv (rows, 3C).
pub fn backward<T: Real>(dqkv: &mut [T], dy: &[T], y: &[T], lse: &[T], qkv: &[T], n: Heads) {
    let (c, d) = (n.cols(), n.head_dim);
    dqkv.fill(T::ZERO);
    for (first, tokens) in n.crops.each() {
        let data = &qkv[first * 3 * c..][..tokens * 3 * c];
        let dqkv = &mut dqkv[first * 3 * c..][..tokens * 3 * c];
        for h in 0..n.heads {
            let [q, k, v] = [0, 1, 2].map(|part| View { data, stride: 3 * c, at: part * c + h * d });
            for i in 0..tokens {
                let at = (first + i) * c + h * d;
                // dq of this row is part of the row being written, so it is formed apart: no head is wider than this.
                let mut dq = [T::ZERO; MAX_HEAD_DIM];
                let offsets = [3 * c, c + h * d, 2 * c + h * d];
                let lse = lse[(first + i) * n.heads + h];
                attend_backward(
                    &mut dq[..d],
                    dqkv,
                    offsets,
                    &dy[at..][..d],
                    &y[at..][..d],
                    lse,
                    q.row(i, d),
                    k,
                    v,
                    tokens,
                    scale(n),
                );
                dqkv[i * 3 * c + h * d..][..d].copy_from_slice(&dq[..d]);
            }
        }
    }
}

/// Widest head a plan accepts.
pub const MAX_HEAD_DIM: usize = 256;

/// y (crops, C); lse (crops, heads); q (crops, C); kv (rows, 2C).
pub fn class_forward<T: Real>(y: &mut [T], lse: &mut [T], q: &[T], kv: &[T], n: Heads) {
    let (c, d) = (n.cols(), n.head_dim);
    for (i, (first, tokens)) in n.crops.each().enumerate() {
        let data = &kv[first * 2 * c..][..tokens * 2 * c];
        for h in 0..n.heads {
            let [k, v] = [0, 1].map(|part| View { data, stride: 2 * c, at: part * c + h * d });
            let at = i * c + h * d;
            lse[i * n.heads + h] = attend(&mut y[at..][..d], &q[at..][..d], k, v, tokens, scale(n));
        }
    }
}

/// dq (crops, C) and dkv (rows, 2C) are set.
pub fn class_backward<T: Real>(dq: &mut [T], dkv: &mut [T], dy: &[T], y: &[T], lse: &[T], q: &[T], kv: &[T], n: Heads) {
    let (c, d) = (n.cols(), n.head_dim);
    dkv.fill(T::ZERO);
    for (i, (first, tokens)) in n.crops.each().enumerate() {
        let data = &kv[first * 2 * c..][..tokens * 2 * c];
        let dkv = &mut dkv[first * 2 * c..][..tokens * 2 * c];
        for h in 0..n.heads {
            let [k, v] = [0, 1].map(|part| View { data, stride: 2 * c, at: part * c + h * d });
            let at = i * c + h * d;
            let offsets = [2 * c, h * d, c + h * d];
            let lse = lse[i * n.heads + h];
            let (dq, dy, y, q) = (&mut dq[at..][..d], &dy[at..][..d], &y[at..][..d], &q[at..][..d]);
            attend_backward(dq, dkv, offsets, dy, y, lse, q, k, v, tokens, scale(n));
        }
    }
}

/// y = probabilities of the first `queries` rows of every crop, per crop (heads, queries, tokens), packed; lse (rows, heads);
/// qkv (rows, 3C).
pub fn rows<T: Real>(y: &mut [T], lse: &[T], qkv: &[T], queries: usize, n: Heads) {
    let (c, d) = (n.cols(), n.head_dim);
    let mut to = 0;
    for (first, tokens) in n.crops.each() {
        let data = &qkv[first * 3 * c..][..tokens * 3 * c];
        for h in 0..n.heads {
            let [q, k] = [0, 1].map(|part| View { data, stride: 3 * c, at: part * c + h * d });
            for i in 0..queries.min(tokens) {
                for j in 0..tokens {
                    let s = dot(q.row(i, d), k.row(j, d)) * scale(n);
                    y[to] = (s - lse[(first + i) * n.heads + h]).exp();
                    to += 1;
                }
            }
        }
    }
}

/// Length of what [`rows`] writes.
pub fn rows_len(queries: usize, n: Heads) -> usize {
    n.crops.groups().iter().map(|&[count, tokens]| count * n.heads * queries.min(tokens) * tokens).sum()
}
