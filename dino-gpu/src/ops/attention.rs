//! Attention: on the tensor cores where they take the heads, else a warp a row.

use crate::args;
use crate::gpu::Gpu;
use crate::kernels::Shape;
use crate::options::Precision;
use dino_kernel::backend::{ClassQkv, Heads};
use dino_kernel::mem::Act;

/// Queries, keys and values of one attention op: addresses and row strides, and the output's address.
#[derive(Clone, Copy)]
pub(super) struct Projections {
    q: (u64, usize),
    k: u64,
    v: u64,
    stride: usize,
}

/// 1 / sqrt(D).
pub(super) fn scale(n: Heads) -> f32 {
    (1.0 / (n.head_dim as f64).sqrt()) as f32
}

impl Gpu {
    /// [q | k | v] from element `at` of a packed matrix on.
    pub(super) fn packed(&self, qkv: Act, at: usize, c: usize) -> Projections {
        let part = |i: usize| self.act_at(qkv, at + i * c);
        Projections { q: (part(0), 3 * c), k: part(1), v: part(2), stride: 3 * c }
    }

    /// One query a crop from element `q_at` on, and [k | v] from element `kv_at` on.
    pub(super) fn class_packed(&self, x: ClassQkv, q_at: usize, kv_at: usize, c: usize) -> Projections {
        let part = |i: usize| self.act_at(x.kv, kv_at + i * c);
        Projections { q: (self.act_at(x.q, q_at), c), k: part(0), v: part(1), stride: 2 * c }
    }

    /// Whether the tensor cores take it: bf16, [q | k | v] in one row, rows on 16 bytes, and heads of at most 128.
    fn flashes(&self, p: Projections, n: Heads) -> bool {
        let one_row = p.q.1 == p.stride;
        self.precision == Precision::Bf16 && one_row && n.head_dim.is_multiple_of(8) && n.head_dim <= 128
    }

    /// One group of crops: y (crops * queries, C), lse (crops * queries, heads).
    pub(super) fn attend(&mut self, y: u64, lse: u64, p: Projections, [crops, queries, tokens]: [usize; 3], n: Heads) {
        if self.flashes(p, n) {
            let [kernel, ..] = self.kernels.flash(n.head_dim);
            let shape = Shape::new([crops * tokens.div_ceil(64), n.heads, 1], [128, 1]);
            let [tokens, heads, d] = [tokens, n.heads, n.head_dim].map(|x| x as i32);
            return self.launch(kernel, shape, args![y, lse, p.q.0, tokens, heads, d, scale(n)]);
        }
        let shape = Shape::warps(crops * queries * n.heads);
        let [q_stride, stride] = [p.q.1, p.stride].map(|x| x as i32);
        let [crops, queries, tokens, heads, d] = [crops, queries, tokens, n.heads, n.head_dim].map(|x| x as i32);
        let arguments = args![y, lse, p.q.0, q_stride, p.k, p.v, stride, crops, queries, tokens, heads, d, scale(n)];
        self.launch(&self.kernels.attend, shape, arguments);
    }

    /// `to` has dq, dk and dv where `p` has q, k and v; dy, y (crops * queries, C), lse (crops * queries, heads).
    pub(super) fn attend_backward(
        &mut self,
        to: Projections,
        [dy, y, lse]: [u64; 3],
        p: Projections,
        [crops, queries, tokens]: [usize; 3],
        n: Heads,
    ) {
        // As many crops at a time as the workspace holds deltas for.
        let fit = self.workspace_bytes() / (4 * tokens * n.heads);
        if self.flashes(p, n) && fit > 0 {
            let [_, dq, dkv] = self.kernels.flash(n.head_dim);
            for first in (0..crops).step_by(fit) {
                let (crops, row) = (fit.min(crops - first), first * tokens);
                let act = |at: u64, width: usize| at + (row * width * n.cols() * self.act_bytes()) as u64;
                let (dqkv, dy, y, qkv, lse) =
                    (act(to.q.0, 3), act(dy, 1), act(y, 1), act(p.q.0, 3), lse + 4 * (row * n.heads) as u64);
                let shape = Shape::new([crops * tokens.div_ceil(64), n.heads, 1], [128, 1]);
                let (delta, sums) = (self.workspace_at(), Shape::blocks((crops * tokens * n.heads).div_ceil(32)));
                let [rows, tokens, heads, d] = [crops * tokens, tokens, n.heads, n.head_dim].map(|x| x as i32);
                self.launch(&self.kernels.attention_delta_bf16, sums, args![delta, y, dy, rows, heads, d]);
                let arguments = args![dqkv, dy, qkv, lse, delta, tokens, heads, d, scale(n)];
                self.launch(dq, shape, arguments);
                self.launch(dkv, shape, arguments);
            }
            return;
        }
        let (by_query, by_key) = (Shape::warps(crops * queries * n.heads), Shape::warps(crops * tokens * n.heads));
        let [qs, ks] = [p.q.1, p.stride].map(|x| x as i32);
        let [crops, queries, tokens, heads, d] = [crops, queries, tokens, n.heads, n.head_dim].map(|x| x as i32);
        let arguments = args![to.q.0, dy, y, lse, p.q.0, qs, p.k, p.v, ks, crops, queries, tokens, heads, d, scale(n)];
        self.launch(&self.kernels.attend_dq, by_query, arguments);
        let arguments =
            args![to.k, to.v, dy, y, lse, p.q.0, qs, p.k, p.v, ks, crops, queries, tokens, heads, d, scale(n)];
        self.launch(&self.kernels.attend_dkv, by_key, arguments);
    }
}
