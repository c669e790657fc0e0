//! Attention on the CPU: a task is a crop, or some of its queries, and takes head by head; scores stay in a thread's own scratch.
//!
//! The matmuls read the packed projection where it is stored, but for keys (and values, backward), which are transposed.

use super::{crops, crops_of};
use crate::linalg::gemm::View;
use crate::linalg::small::matmul;
use crate::linalg::transpose::row_of;
use crate::linalg::transpose::transpose;
use crate::linalg::{rows, with_scratch};
use dino_kernel::backend::Heads;
use dino_kernel::ops;
use dino_kernel::plan::Pools;
use rayon::prelude::*;

fn scale(n: Heads) -> f32 {
    (1.0 / libm::sqrt(n.head_dim as f64)) as f32
}

/// Most queries whose scores are kept at once: with 785 keys they still fit the second cache.
const QUERIES: usize = 256;

/// y (rows, C); lse (rows, heads); qkv (rows, 3C).
pub fn forward(y: &mut [f32], lse: &mut [f32], qkv: &[f32], n: Heads) {
    let c = n.cols();
    let count = n.crops.each().count();
    // A crop's queries are shared out only where there are fewer crops than threads.
    let shares = rayon::current_num_threads().div_ceil(count.max(1));
    let tasks =
        crops(y, n.crops, c).into_par_iter().zip(crops(lse, n.crops, n.heads)).zip(crops_of(qkv, n.crops, 3 * c));
    tasks.with_max_len(1).for_each(|((y, lse), qkv)| {
        let t = qkv.len() / (3 * c);
        let block = t.div_ceil(shares).min(QUERIES);
        let parts = y.par_chunks_mut(block * c).zip(lse.par_chunks_mut(block * n.heads)).enumerate();
        parts.for_each(|(i, (y, lse))| attend(y, lse, qkv, i * block, n));
    });
}

/// Keys of a crop to full registers, and how far apart rows of so many are.
fn padded(t: usize) -> [usize; 2] {
    [t.next_multiple_of(16), row_of(t)]
}

/// Elements of a thread's scratch that attention takes at most, that of [`backward`].
pub fn scratch_len(pools: Pools) -> usize {
    let [_, ld] = padded(pools.longest);
    2 * (pools.head_dim + pools.longest.min(QUERIES)) * ld
}

/// The queries of one crop from row `first` on, as many as `y` has rows.
fn attend(y: &mut [f32], lse: &mut [f32], qkv: &[f32], first: usize, n: Heads) {
    let (c, d) = (n.cols(), n.head_dim);
    let (t, rows) = (qkv.len() / (3 * c), y.len() / c);
    let [keys, ld] = padded(t);
    with_scratch((d + rows) * ld, |scratch| {
        let (transposed, p) = scratch.split_at_mut(d * ld);
        for h in 0..n.heads {
            let [q, k, v] = [0, 1, 2].map(|part| &qkv[part * c + h * d..]);
            let q = &q[first * 3 * c..];
            transpose(transposed, ld, k, 3 * c, [t, d]);
            matmul(p, ld, View::rows(q, 3 * c), transposed, ld, [rows, d, keys], false);
            // Beside the keys nothing is met.
            p.chunks_mut(ld).for_each(|p| p[t..keys].fill(f32::NEG_INFINITY));
            rows::softmax(p, ld, keys, scale(n), &mut lse[h..], n.heads);
            matmul(&mut y[h * d..], c, View::rows(p, ld), v, 3 * c, [rows, t, d], false);
        }
    });
}

/// dqkv (rows, 3C) is set; dy, y (rows, C); lse (rows, heads); qkv (rows, 3C).
pub fn backward(dqkv: &mut [f32], dy: &[f32], y: &[f32], lse: &[f32], qkv: &[f32], n: Heads) {
    let c = n.cols();
    let read = crops_of(dy, n.crops, c).into_par_iter().zip(crops_of(y, n.crops, c));
    let read = read.zip(crops_of(lse, n.crops, n.heads)).zip(crops_of(qkv, n.crops, 3 * c));
    crops(dqkv, n.crops, 3 * c).into_par_iter().zip(read).with_max_len(1).for_each(|(dqkv, (((dy, y), lse), qkv))| {
        attend_backward(dqkv, dy, y, lse, qkv, n);
    });
}

/// One crop. What is beside the keys in `p` and `ds` is of no meaning and not read.
fn attend_backward(dqkv: &mut [f32], dy: &[f32], y: &[f32], lse: &[f32], qkv: &[f32], n: Heads) {
    let (c, d) = (n.cols(), n.head_dim);
    let t = qkv.len() / (3 * c);
    let ([keys, ld], block) = (padded(t), t.min(QUERIES));
    with_scratch(2 * (d + block) * ld, |scratch| {
        let (transposed, scratch) = scratch.split_at_mut(2 * d * ld);
        let (transposed_k, transposed_v) = transposed.split_at_mut(d * ld);
        let (p, ds) = scratch.split_at_mut(block * ld);
        for h in 0..n.heads {
            let [q, k, v] = [0, 1, 2].map(|part| &qkv[part * c + h * d..]);
            transpose(transposed_k, ld, k, 3 * c, [t, d]);
            transpose(transposed_v, ld, v, 3 * c, [t, d]);
            for first in (0..t).step_by(block) {
                let rows = block.min(t - first);
                let q = &q[first * 3 * c..];
                let (dy, y) = (&dy[first * c + h * d..], &y[first * c + h * d..]);
                let (p, ds) = (&mut p[..rows * ld], &mut ds[..rows * ld]);
                matmul(p, ld, View::rows(q, 3 * c), transposed_k, ld, [rows, d, keys], false);
                rows::softmax_again(p, ld, keys, scale(n), &lse[first * n.heads + h..], n.heads);
                matmul(ds, ld, View::rows(dy, c), transposed_v, ld, [rows, d, keys], false);
                rows::softmax_backward(ds, p, ld, keys, scale(n), dy, y, d, c);
                // Keys and values sum over all queries.
                let mut write = |at: usize, a, b, ldb, [m, k]: [usize; 2], add| {
                    matmul(&mut dqkv[at + h * d..], 3 * c, a, b, ldb, [m, k, d], add);
                };
                write(first * 3 * c, View::rows(ds, ld), k, 3 * c, [rows, t], false);
                write(c, View::transposed(ds, ld), q, 3 * c, [t, rows], first > 0);
                write(2 * c, View::transposed(p, ld), dy, c, [t, rows], first > 0);
            }
        }
    });
}

/// One query a crop: y (crops, C); lse (crops, heads); q (crops, C); kv (rows, 2C).
pub fn class_forward(y: &mut [f32], lse: &mut [f32], q: &[f32], kv: &[f32], n: Heads) {
    let (c, d) = (n.cols(), n.head_dim);
    let written = y.par_chunks_mut(c).zip(lse.par_chunks_mut(n.heads));
    written.zip(q.par_chunks(c)).zip(crops_of(kv, n.crops, 2 * c)).for_each(|(((y, lse), q), kv)| {
        let t = kv.len() / (2 * c);
        with_scratch(t, |p| {
            for h in 0..n.heads {
                let (q, y) = (&q[h * d..][..d], &mut y[h * d..][..d]);
                for (p, kv) in p.iter_mut().zip(kv.chunks(2 * c)) {
                    *p = ops::dot(q, &kv[h * d..][..d]);
                }
                rows::softmax(p, t, t, scale(n), &mut lse[h..=h], 1);
                y.fill(0.0);
                for (&p, kv) in p.iter().zip(kv.chunks(2 * c)) {
                    ops::axpy(y, p, &kv[c + h * d..][..d]);
                }
            }
        });
    });
}

/// dq (crops, C) and dkv (rows, 2C) are set.
pub fn class_backward(
    dq: &mut [f32],
    dkv: &mut [f32],
    dy: &[f32],
    y: &[f32],
    lse: &[f32],
    q: &[f32],
    kv: &[f32],
    n: Heads,
) {
    let (c, d) = (n.cols(), n.head_dim);
    let read = dy.par_chunks(c).zip(y.par_chunks(c)).zip(lse.par_chunks(n.heads)).zip(q.par_chunks(c));
    let written = dq.par_chunks_mut(c).zip(crops(dkv, n.crops, 2 * c));
    written.zip(read).zip(crops_of(kv, n.crops, 2 * c)).for_each(|(((dq, dkv), (((dy, y), lse), q)), kv)| {
        let t = kv.len() / (2 * c);
        with_scratch(t, |p| {
            for h in 0..n.heads {
                let part = h * d..(h + 1) * d;
                let (dq, dy, y, q) = (&mut dq[part.clone()], &dy[part.clone()], &y[part.clone()], &q[part]);
                for (p, kv) in p.iter_mut().zip(kv.chunks(2 * c)) {
                    *p = ops::dot(q, &kv[h * d..][..d]);
                }
                rows::softmax_again(p, t, t, scale(n), &lse[h..=h], 1);
                let delta = ops::dot(dy, y);
                dq.fill(0.0);
                for ((&p, kv), dkv) in p.iter().zip(kv.chunks(2 * c)).zip(dkv.chunks_mut(2 * c)) {
                    let (k, v) = (&kv[h * d..][..d], &kv[c + h * d..][..d]);
                    let ds = p * (ops::dot(dy, v) - delta) * scale(n);
                    ops::axpy(dq, ds, k);
                    let (dk, dv) = dkv.split_at_mut(c);
                    dk[h * d..][..d].iter_mut().zip(q).for_each(|(dk, &q)| *dk = ds * q);
                    dv[h * d..][..d].iter_mut().zip(dy).for_each(|(dv, &dy)| *dv = p * dy);
                }
            }
        });
    });
}
