//! Backward ops.

use super::groups;
use crate::args;
use crate::gemm::Out;
use crate::gpu::Gpu;
use crate::kernels::Shape;
use dino_kernel::backend::*;
use dino_kernel::crops::Ragged;
use dino_kernel::mem::{Act, Stat, State, Weight};

impl Gpu {
    /// dw and db += column sums over rows, in strips that are stored in the workspace: of dy x^ and dy, or of dy alone.
    fn column_sums(&mut self, dw: Option<(u64, [u64; 3])>, db: u64, dy: u64, n: Rows) {
        let kinds = if dw.is_some() { 2 } else { 1 };
        let most = self.workspace_bytes() / (4 * kinds * n.cols);
        if most == 0 {
            return self.too_small(4 * kinds * n.cols);
        }
        // More strips than this only lengthen the sum over them.
        let strips = n.rows.div_ceil(128).min(most).clamp(1, 128);
        let strip = n.rows.div_ceil(strips);
        let strips = n.rows.div_ceil(strip.max(1)).max(1);
        let parts = self.workspace_at();
        let [x, mean, rstd] = dw.map_or([0; 3], |(_, read)| read);
        self.launch(
            &self.kernels.column_sums,
            Shape::new([n.cols.div_ceil(128), strips, 1], [32, 8]),
            args![parts, dy, x, mean, rstd, n.rows as i32, n.cols as i32, strip as i32],
        );
        match dw {
            Some((dw, _)) => {
                self.sum_parts(dw, parts, n.cols, strips, 2 * n.cols);
                self.sum_parts(db, parts + 4 * n.cols as u64, n.cols, strips, 2 * n.cols);
            }
            None => self.sum_parts(db, parts, n.cols, strips, n.cols),
        }
    }
}

impl Backward for Gpu {
    fn linear_backward(&mut self, dx: Act, dy: Act, x: Act, w: Affine, n: Mat) {
        let (to, from, factor) = (self.act(dx), self.act(dy), self.factor(w.w));
        self.matmul_nn(Out::Act(to), from, factor, [n.rows, n.inp, n.out], false);
        self.linear_backward_params(dy, x, w, n);
    }

    fn linear_backward_params(&mut self, dy: Act, x: Act, w: Affine, n: Mat) {
        let (dy, x, dw, db) = (self.act(dy), self.act(x), self.grad(w.w), self.grad(w.b));
        self.matmul_tn(dw, dy, x, [n.out, n.inp, n.rows], self.workspace_bytes());
        self.column_sums(None, db, dy, Rows { rows: n.rows, cols: n.out });
    }

    fn gelu_backward(&mut self, dx: Act, dy: Act, x: Act) {
        let len = dx.len();
        let (dx, dy, x) = (self.act(dx), self.act(dy), self.act(x));
        self.launch(&self.kernels.gelu_backward, Shape::flat(len.div_ceil(4)), args![dx, dy, x, len as i64]);
    }

    fn relu_backward(&mut self, dx: Act, dy: Act, x: Act) {
        let len = dx.len();
        let (dx, dy, x) = (self.act(dx), self.act(dy), self.act(x));
        self.launch(&self.kernels.relu_backward, Shape::flat(len.div_ceil(4)), args![dx, dy, x, len as i64]);
    }

    fn layernorm_backward(&mut self, dx_acc: Act, dy: Act, x: Act, stats: NormStats, w: Affine, n: Rows) {
        let (dx, dy, x) = (self.act(dx_acc), self.act(dy), self.act(x));
        let (mean, rstd) = (self.stat(stats.mean), self.stat(stats.rstd));
        let arguments = args![dx, dy, x, mean, rstd, self.weight(w.w), n.rows as i32, n.cols as i32];
        self.launch(&self.kernels.layernorm_backward, Shape::warps(n.rows), arguments);
        let (dw, db) = (self.grad(w.w), self.grad(w.b));
        self.column_sums(Some((dw, [x, mean, rstd])), db, dy, n);
    }

    fn scale_crops(&mut self, y: Act, x: Act, scale: State, n: Ragged, cols: usize) {
        for [crop, count, row, tokens] in groups(n) {
            let (at, len) = (row * cols, tokens * cols);
            let (y, x, scale) = (self.act_at(y, at), self.act_at(x, at), self.state(scale) + 4 * crop as u64);
            let kernel = &self.kernels.add_scaled;
            self.launch(kernel, Shape::crops(count, len), args![y, 0u64, x, scale, count as i32, len as i64]);
        }
    }

    fn attention_backward(&mut self, dqkv: Act, dy: Act, out: Attention, qkv: Act, n: Heads) {
        let c = n.cols();
        for [_, crops, row, tokens] in groups(n.crops) {
            let (d, p) = (self.packed(dqkv, row * 3 * c, c), self.packed(qkv, row * 3 * c, c));
            let read = [self.act_at(dy, row * c), self.act_at(out.y, row * c), self.stat_at(out.lse, row * n.heads)];
            self.attend_backward(d, read, p, [crops, tokens, tokens], n);
        }
    }

    fn attention_class_backward(&mut self, dx: ClassQkv, dy: Act, out: Attention, x: ClassQkv, n: Heads) {
        let c = n.cols();
        for [crop, crops, row, tokens] in groups(n.crops) {
            let d = self.class_packed(dx, crop * c, row * 2 * c, c);
            let p = self.class_packed(x, crop * c, row * 2 * c, c);
            let read = [self.act_at(dy, crop * c), self.act_at(out.y, crop * c), self.stat_at(out.lse, crop * n.heads)];
            self.attend_backward(d, read, p, [crops, 1, tokens], n);
        }
    }

    fn embed_backward(
        &mut self,
        dpatches: Act,
        dpositions: Act,
        dy: Act,
        class: Weight,
        class_position: Weight,
        n: Embed,
    ) {
        let (dpatches, dpositions, dy) = (self.act(dpatches), self.act(dpositions), self.act(dy));
        let (class, class_position) = (self.grad(class), self.grad(class_position));
        let arguments =
            args![dpatches, dpositions, class, class_position, dy, n.crops as i32, n.patches as i32, n.cols as i32];
        self.launch(&self.kernels.embed_backward, Shape::flat((1 + n.patches) * n.cols), arguments);
    }

    fn resize_positions_backward(&mut self, dy: Act, table: Weight, rows: State, cols: State, n: Grid) {
        let (dy, table, rows, cols) = (self.act(dy), self.grad(table), self.state(rows), self.state(cols));
        let [from, to] = [n.from, n.to].map(|g| g.map(|x| x as i32));
        let arguments = args![table, dy, rows, cols, from[0], from[1], to[0], to[1], n.cols as i32];
        self.launch(&self.kernels.resize_positions_backward, Shape::flat(n.from[0] * n.from[1] * n.cols), arguments);
    }

    fn convolve_backward(&mut self, dx: Act, dy: Act, x: Act, w: Weight, n: Conv) {
        self.convolution_input(dx, dy, w, n, false);
        self.convolution_filter(dy, x, w, n);
    }

    fn convolve_backward_acc(&mut self, dx_acc: Act, dy: Act, x: Act, w: Weight, n: Conv) {
        self.convolution_input(dx_acc, dy, w, n, true);
        self.convolution_filter(dy, x, w, n);
    }

    fn convolve_backward_params(&mut self, dy: Act, x: Act, w: Weight, n: Conv) {
        self.convolution_filter(dy, x, w, n);
    }

    fn batch_normalize_backward(
        &mut self,
        dx: Act,
        dy: Act,
        x: Act,
        y: Act,
        stats: NormStats,
        w: Affine,
        n: BatchNorm,
    ) {
        self.normalize_columns_backward([dx, dy], [x, y], stats, w, n);
    }

    fn max_pool_backward(&mut self, dx: Act, dy: Act, x: Act, n: MaxPool) {
        self.pool_largest_backward(dx, dy, x, n);
    }

    fn average_pool_backward(&mut self, dx: Act, dy: Act, n: Ragged, cols: usize) {
        self.pool_average_backward(dx, dy, n, cols);
    }

    fn clear(&mut self, x: Act) {
        let (at, bytes) = (self.act(x), x.len() * self.act_bytes());
        self.clear_bytes(at, bytes);
    }

    fn scatter_class_acc(&mut self, dx_acc: Act, dy: Act, n: Ragged, cols: usize) {
        for [crop, count, row, tokens] in groups(n) {
            let (dx, dy, len) = (self.act_at(dx_acc, row * cols), self.act_at(dy, crop * cols), count * cols);
            let kernel = &self.kernels.scatter_class_acc;
            self.launch(kernel, Shape::flat(len), args![dx, dy, len as i64, tokens as i32, cols as i32]);
        }
    }

    fn l2_normalize_backward(&mut self, dx: Act, dy: Act, y: Act, norm: Stat, n: Rows) {
        let (dx, dy, y, norm) = (self.act(dx), self.act(dy), self.act(y), self.stat(norm));
        let arguments = args![dx, dy, y, norm, n.rows as i32, n.cols as i32];
        self.launch(&self.kernels.l2_normalise_backward, Shape::warps(n.rows), arguments);
    }

    fn gradients_complete(&mut self, from: usize) {
        self.begin_sum(from);
    }
}
