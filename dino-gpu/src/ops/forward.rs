//! Forward ops.

use super::attention::scale;
use super::groups;
use crate::args;
use crate::gemm::Out;
use crate::gpu::Gpu;
use crate::kernels::Shape;
use dino_kernel::backend::*;
use dino_kernel::crops::Ragged;
use dino_kernel::mem::{Act, Stat, State, Weight};

impl Forward for Gpu {
    fn patchify(&mut self, y: Act, x: Act, n: Patches) {
        let (mut from, mut to) = (0, 0);
        for g in n.crops.groups() {
            let [rows, cols] = g.grid(n.patch);
            let len = g.count * rows * cols * n.channels * n.patch * n.patch;
            let (y, x) = (self.act_at(y, to), self.act_at(x, from));
            self.launch(
                &self.kernels.patchify,
                Shape::flat(len),
                args![
                    y,
                    x,
                    len as i64,
                    n.channels as i32,
                    g.height as i32,
                    g.width as i32,
                    n.patch as i32,
                    rows as i32,
                    cols as i32
                ],
            );
            from += g.count * n.channels * g.height * g.width;
            to += len;
        }
    }

    fn linear(&mut self, y: Act, x: Act, w: Affine, n: Mat) {
        let (y, x, w, b) = (self.act(y), self.act(x), self.factor(w.w), self.weight(w.b));
        self.matmul_nt(Out::Act(y), x, w, [n.rows, n.out, n.inp], b, 0);
    }

    fn gelu(&mut self, y: Act, x: Act) {
        let len = y.len();
        let (y, x) = (self.act(y), self.act(x));
        self.launch(&self.kernels.gelu, Shape::flat(len.div_ceil(4)), args![y, x, len as i64]);
    }

    fn copy(&mut self, y: Act, x: Act) {
        let (to, from) = (self.act(y), self.act(x));
        self.copy_bytes(to, from, self.act_bytes() * x.len());
    }

    fn relu(&mut self, y: Act, x: Act) {
        let len = y.len();
        let (y, x) = (self.act(y), self.act(x));
        self.launch(&self.kernels.relu, Shape::flat(len.div_ceil(4)), args![y, x, len as i64]);
    }

    fn linear_gelu(&mut self, y: Act, pre: Act, x: Act, w: Affine, n: Mat) {
        let (y, pre, x, w, b) = (self.act(y), self.act(pre), self.act(x), self.factor(w.w), self.weight(w.b));
        self.matmul_nt(Out::Act(pre), x, w, [n.rows, n.out, n.inp], b, y);
    }

    fn layernorm(&mut self, y: Act, stats: NormStats, x: Act, w: Affine, n: LayerNorm) {
        let (y, x) = (self.act(y), self.act(x));
        self.normalize([y, 0], stats, [x, 0], w, n);
    }

    fn add(&mut self, y: Act, x: Act, branch: Act) {
        let len = y.len();
        let (y, x, branch) = (self.act(y), self.act(x), self.act(branch));
        self.launch(&self.kernels.add, Shape::flat(len.div_ceil(4)), args![y, x, branch, len as i64]);
    }

    fn add_scaled(&mut self, y: Act, x: Act, branch: Act, scale: State, n: Ragged, cols: usize) {
        for [crop, count, row, tokens] in groups(n) {
            let (at, len) = (row * cols, tokens * cols);
            let (y, x, branch) = (self.act_at(y, at), self.act_at(x, at), self.act_at(branch, at));
            let scale = self.state(scale) + 4 * crop as u64;
            let kernel = &self.kernels.add_scaled;
            self.launch(kernel, Shape::crops(count, len), args![y, x, branch, scale, count as i32, len as i64]);
        }
    }

    fn add_layernorm(&mut self, y: Act, sum: Act, stats: NormStats, x: Act, branch: Act, w: Affine, n: LayerNorm) {
        let (y, sum, x, branch) = (self.act(y), self.act(sum), self.act(x), self.act(branch));
        self.normalize([y, sum], stats, [x, branch], w, n);
    }

    fn convolve(&mut self, y: Act, x: Act, w: Weight, n: Conv) {
        self.convolution(y, x, w, n);
    }

    fn batch_statistics(&mut self, stats: NormStats, running: Running, x: Act, n: BatchNorm) {
        self.group_statistics(stats, running, x, n);
    }

    fn running_statistics(&mut self, stats: NormStats, running: Running, eps: f64) {
        self.of_running(stats, running, eps);
    }

    fn batch_normalize(&mut self, y: Act, x: Act, residual: Act, stats: NormStats, w: Affine, n: BatchNorm) {
        self.normalize_columns(y, x, residual, stats, w, n);
    }

    fn max_pool(&mut self, y: Act, x: Act, n: MaxPool) {
        self.pool_largest(y, x, n);
    }

    fn average_pool(&mut self, y: Act, x: Act, n: Ragged, cols: usize) {
        self.pool_average(y, x, n, cols);
    }

    fn resize_positions(&mut self, y: Act, table: Weight, rows: State, cols: State, n: Grid) {
        let (y, table, rows, cols) = (self.act(y), self.weight(table), self.state(rows), self.state(cols));
        let [from, to] = [n.from, n.to].map(|g| g.map(|x| x as i32));
        let arguments = args![y, table, rows, cols, from[0], from[1], to[0], to[1], n.cols as i32];
        self.launch(&self.kernels.resize_positions, Shape::flat(n.to[0] * n.to[1] * n.cols), arguments);
    }

    fn embed(&mut self, y: Act, patches: Act, class: Weight, class_position: Weight, positions: Act, n: Embed) {
        let len = n.crops * (1 + n.patches) * n.cols;
        let (y, patches, positions) = (self.act(y), self.act(patches), self.act(positions));
        let (class, class_position) = (self.weight(class), self.weight(class_position));
        let arguments =
            args![y, patches, class, class_position, positions, len as i64, n.patches as i32, n.cols as i32];
        self.launch(&self.kernels.embed, Shape::flat(len), arguments);
    }

    fn attention(&mut self, out: Attention, qkv: Act, n: Heads) {
        let c = n.cols();
        for [_, crops, row, tokens] in groups(n.crops) {
            let (y, lse, p) =
                (self.act_at(out.y, row * c), self.stat_at(out.lse, row * n.heads), self.packed(qkv, row * 3 * c, c));
            self.attend(y, lse, p, [crops, tokens, tokens], n);
        }
    }

    fn attention_class(&mut self, out: Attention, x: ClassQkv, n: Heads) {
        let c = n.cols();
        for [crop, crops, row, tokens] in groups(n.crops) {
            let p = self.class_packed(x, crop * c, row * 2 * c, c);
            let (y, lse) = (self.act_at(out.y, crop * c), self.stat_at(out.lse, crop * n.heads));
            self.attend(y, lse, p, [crops, 1, tokens], n);
        }
    }

    fn attention_rows(&mut self, y: Act, lse: Stat, qkv: Act, queries: usize, n: Heads) {
        let (c, mut to) = (n.cols(), 0);
        for [_, crops, row, tokens] in groups(n.crops) {
            let queries = queries.min(tokens);
            let len = crops * n.heads * queries * tokens;
            let (y, lse, qkv) = (self.act_at(y, to), self.stat_at(lse, row * n.heads), self.act_at(qkv, row * 3 * c));
            self.launch(
                &self.kernels.attention_rows,
                Shape::flat(len),
                args![
                    y,
                    lse,
                    qkv,
                    len as i64,
                    queries as i32,
                    tokens as i32,
                    n.heads as i32,
                    n.head_dim as i32,
                    scale(n)
                ],
            );
            to += len;
        }
    }

    fn gather_class(&mut self, y: Act, x: Act, n: Ragged, cols: usize) {
        for [crop, count, row, tokens] in groups(n) {
            let (y, x, len) = (self.act_at(y, crop * cols), self.act_at(x, row * cols), count * cols);
            let kernel = &self.kernels.gather_class;
            self.launch(kernel, Shape::flat(len), args![y, x, len as i64, tokens as i32, cols as i32]);
        }
    }

    fn l2_normalize(&mut self, y: Act, norm: Stat, x: Act, n: Rows) {
        let (y, norm, x) = (self.act(y), self.stat(norm), self.act(x));
        let arguments = args![y, norm, x, n.rows as i32, n.cols as i32];
        self.launch(&self.kernels.l2_normalise, Shape::warps(n.rows), arguments);
    }

    fn prototype_scale(&mut self, scale: Stat, v: Weight, g: Weight, n: Rows) {
        let (scale, v, g) = (self.stat(scale), self.weight(v), if g.len() > 0 { self.weight(g) } else { 0 });
        let arguments = args![scale, v, g, n.rows as i32, n.cols as i32];
        self.launch(&self.kernels.prototype_scale, Shape::warps(n.rows), arguments);
    }

    fn logits(&mut self, y: Act, z: Act, p: Prototypes, n: Mat) {
        let block = (self.workspace_bytes() / (4 * n.out)).min(n.rows.max(1));
        if block == 0 {
            return self.too_small(4 * n.out);
        }
        let (scale, v, unscaled) = (self.stat(p.scale), self.factor(p.v), self.workspace_at());
        for first in (0..n.rows).step_by(block) {
            let rows = block.min(n.rows - first);
            let (y, z) = (self.act_at(y, first * n.out), self.act_at(z, first * n.inp));
            self.matmul_nt(Out::F32(unscaled), z, v, [rows, n.out, n.inp], 0, 0);
            let len = rows * n.out;
            let arguments = args![y, unscaled, scale, len as i64, n.out as i32];
            self.launch(&self.kernels.scale_columns, Shape::flat(len), arguments);
        }
    }
}

impl Gpu {
    /// y = layernorm(x), or of sum = x + branch where there is one (not 0).
    fn normalize(&mut self, [y, sum]: [u64; 2], stats: NormStats, [x, branch]: [u64; 2], w: Affine, n: LayerNorm) {
        let (mean, rstd, w, b) = (self.stat(stats.mean), self.stat(stats.rstd), self.weight(w.w), self.weight(w.b));
        let arguments = args![y, sum, mean, rstd, x, branch, w, b, n.rows as i32, n.cols as i32, n.eps as f32];
        self.launch(&self.kernels.layernorm, Shape::warps(n.rows), arguments);
    }
}
