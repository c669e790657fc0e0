//! Backward passes on the CPU.

use super::{CHUNK, Cpu, attention, conv, crops, crops_of, pool, room, split};
use crate::linalg::{gemm, rows};
use dino_kernel::backend::*;
use dino_kernel::crops::Ragged;
use dino_kernel::mem::{Act, Stat, State, Weight};
use rayon::prelude::*;

impl Cpu {
    fn convolve_input_gradient(&mut self, dx: Act, dy: Act, w: Weight, n: Conv, accumulate: bool) {
        let [dx, dy] = split(&mut self.acts, [dx.0, dy.0]);
        conv::input_gradient(dx, dy, &self.weights[w.range()], n, accumulate, &mut self.scratch);
    }
}

impl Backward for Cpu {
    fn linear_backward(&mut self, dx: Act, dy: Act, x: Act, w: Affine, n: Mat) {
        {
            let [dx, dy] = split(&mut self.acts, [dx.0, dy.0]);
            gemm::input_gradient(dx, dy, &self.weights[w.w.range()], n.inp, n.out);
        }
        self.linear_backward_params(dy, x, w, n);
    }

    fn linear_backward_params(&mut self, dy: Act, x: Act, w: Affine, n: Mat) {
        let [dw, db] = split(&mut self.grads, [w.w.0, w.b.0]);
        gemm::weight_gradient(dw, db, &self.acts[dy.range()], &self.acts[x.range()], n.inp);
    }

    fn gelu_backward(&mut self, dx: Act, dy: Act, x: Act) {
        let [dx, dy, x] = split(&mut self.acts, [dx.0, dy.0, x.0]);
        dx.par_chunks_mut(CHUNK)
            .zip(dy.par_chunks(CHUNK))
            .zip(x.par_chunks(CHUNK))
            .for_each(|((dx, dy), x)| rows::gelu_backward(dx, dy, x));
    }

    fn relu_backward(&mut self, dx: Act, dy: Act, x: Act) {
        let [dx, dy, x] = split(&mut self.acts, [dx.0, dy.0, x.0]);
        dx.par_chunks_mut(CHUNK)
            .zip(dy.par_chunks(CHUNK))
            .zip(x.par_chunks(CHUNK))
            .for_each(|((dx, dy), x)| rows::relu_backward(dx, dy, x));
    }

    fn layernorm_backward(&mut self, dx_acc: Act, dy: Act, x: Act, stats: NormStats, w: Affine, n: Rows) {
        let [dx, dy, x] = split(&mut self.acts, [dx_acc.0, dy.0, x.0]);
        let [mean, rstd] = split(&mut self.stats, [stats.mean.0, stats.rstd.0]);
        let (mean, rstd, weight) = (&*mean, &*rstd, &self.weights[w.w.range()]);
        let block = gemm::row_block(n.rows);
        let wide = block * n.cols;
        let scratch = room(&mut self.scratch, n.rows.div_ceil(block) * 2 * n.cols);
        let read = dy.par_chunks(wide).zip(x.par_chunks(wide)).zip(mean.par_chunks(block).zip(rstd.par_chunks(block)));
        dx.par_chunks_mut(wide).zip(scratch.par_chunks_mut(2 * n.cols)).zip(read).for_each(
            |((dx, sums), ((dy, x), (mean, rstd)))| {
                sums.fill(0.0);
                let (dw, db) = sums.split_at_mut(n.cols);
                rows::layernorm_backward(dx, dw, db, dy, x, mean, rstd, weight);
            },
        );
        let [dw, db] = split(&mut self.grads, [w.w.0, w.b.0]);
        for sums in scratch.chunks(2 * n.cols) {
            rows::add_assign(dw, &sums[..n.cols]);
            rows::add_assign(db, &sums[n.cols..]);
        }
    }

    fn scale_crops(&mut self, y: Act, x: Act, scale: State, n: Ragged, cols: usize) {
        let [y, x] = split(&mut self.acts, [y.0, x.0]);
        let read = crops_of(x, n, cols).into_par_iter().zip(&self.state[scale.range()]);
        crops(y, n, cols).into_par_iter().zip(read).for_each(|(y, (x, &s))| rows::scaled(y, x, s));
    }

    fn attention_backward(&mut self, dqkv: Act, dy: Act, out: Attention, qkv: Act, n: Heads) {
        let [dqkv, dy, y, qkv] = split(&mut self.acts, [dqkv.0, dy.0, out.y.0, qkv.0]);
        attention::backward(dqkv, dy, y, &self.stats[out.lse.range()], qkv, n);
    }

    fn attention_class_backward(&mut self, dx: ClassQkv, dy: Act, out: Attention, x: ClassQkv, n: Heads) {
        let [dq, dkv, dy, y, q, kv] = split(&mut self.acts, [dx.q.0, dx.kv.0, dy.0, out.y.0, x.q.0, x.kv.0]);
        attention::class_backward(dq, dkv, dy, y, &self.stats[out.lse.range()], q, kv, n);
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
        self.reference().embed_backward(dpatches, dpositions, dy, class, class_position, n);
    }

    fn resize_positions_backward(&mut self, dy: Act, table: Weight, rows: State, cols: State, n: Grid) {
        self.reference().resize_positions_backward(dy, table, rows, cols, n);
    }

    fn convolve_backward(&mut self, dx: Act, dy: Act, x: Act, w: Weight, n: Conv) {
        self.convolve_input_gradient(dx, dy, w, n, false);
        self.convolve_backward_params(dy, x, w, n);
    }

    fn convolve_backward_acc(&mut self, dx_acc: Act, dy: Act, x: Act, w: Weight, n: Conv) {
        self.convolve_input_gradient(dx_acc, dy, w, n, true);
        self.convolve_backward_params(dy, x, w, n);
    }

    fn convolve_backward_params(&mut self, dy: Act, x: Act, w: Weight, n: Conv) {
        let (dw, dy, x) = (&mut self.grads[w.range()], &self.acts[dy.range()], &self.acts[x.range()]);
        conv::weight_gradient(dw, dy, x, n, &mut self.scratch);
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
        self.normalize_backward([dx, dy], [x, y], stats, w, n);
    }

    fn max_pool_backward(&mut self, dx: Act, dy: Act, x: Act, n: MaxPool) {
        let [dx, dy, x] = split(&mut self.acts, [dx.0, dy.0, x.0]);
        pool::max_backward(dx, dy, x, n);
    }

    fn average_pool_backward(&mut self, dx: Act, dy: Act, n: Ragged, cols: usize) {
        self.reference().average_pool_backward(dx, dy, n, cols);
    }

    fn clear(&mut self, x: Act) {
        self.acts[x.range()].fill(0.0);
    }

    fn scatter_class_acc(&mut self, dx_acc: Act, dy: Act, n: Ragged, cols: usize) {
        self.reference().scatter_class_acc(dx_acc, dy, n, cols);
    }

    fn l2_normalize_backward(&mut self, dx: Act, dy: Act, y: Act, norm: Stat, n: Rows) {
        self.reference().l2_normalize_backward(dx, dy, y, norm, n);
    }
}
