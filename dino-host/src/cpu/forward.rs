//! Forward passes on the CPU.

use super::{CHUNK, Cpu, attention, batchnorm, conv, crops, crops_of, pool, split};
use crate::linalg::{gemm, rows};
use dino_kernel::backend::*;
use dino_kernel::crops::Ragged;
use dino_kernel::mem::{Act, Stat, State, Weight};
use rayon::prelude::*;

impl Forward for Cpu {
    fn patchify(&mut self, y: Act, x: Act, n: Patches) {
        self.reference().patchify(y, x, n);
    }

    fn linear(&mut self, y: Act, x: Act, w: Affine, n: Mat) {
        let [y, x] = split(&mut self.acts, [y.0, x.0]);
        gemm::linear(y, x, &self.weights[w.w.range()], &self.weights[w.b.range()], n.inp);
    }

    fn copy(&mut self, y: Act, x: Act) {
        self.reference().copy(y, x);
    }

    fn relu(&mut self, y: Act, x: Act) {
        let [y, x] = split(&mut self.acts, [y.0, x.0]);
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| rows::relu(y, x));
    }

    fn gelu(&mut self, y: Act, x: Act) {
        let [y, x] = split(&mut self.acts, [y.0, x.0]);
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| rows::gelu(y, x));
    }

    fn linear_gelu(&mut self, y: Act, pre: Act, x: Act, w: Affine, n: Mat) {
        let [y, pre, x] = split(&mut self.acts, [y.0, pre.0, x.0]);
        let (w, b) = (&self.weights[w.w.range()], &self.weights[w.b.range()]);
        gemm::linear_gelu(y, pre, x, w, b, n.inp);
    }

    fn layernorm(&mut self, y: Act, stats: NormStats, x: Act, w: Affine, n: LayerNorm) {
        let [y, x] = split(&mut self.acts, [y.0, x.0]);
        let [mean, rstd] = split(&mut self.stats, [stats.mean.0, stats.rstd.0]);
        let (w, b) = (&self.weights[w.w.range()], &self.weights[w.b.range()]);
        let block = gemm::row_block(n.rows);
        let kept = mean.par_chunks_mut(block).zip(rstd.par_chunks_mut(block));
        y.par_chunks_mut(block * n.cols)
            .zip(x.par_chunks(block * n.cols))
            .zip(kept)
            .for_each(|((y, x), (mean, rstd))| rows::layernorm(y, mean, rstd, x, w, b, n.eps));
    }

    fn add(&mut self, y: Act, x: Act, branch: Act) {
        let [y, x, b] = split(&mut self.acts, [y.0, x.0, branch.0]);
        y.par_chunks_mut(CHUNK)
            .zip(x.par_chunks(CHUNK))
            .zip(b.par_chunks(CHUNK))
            .for_each(|((y, x), b)| rows::add(y, x, b));
    }

    fn add_scaled(&mut self, y: Act, x: Act, branch: Act, scale: State, n: Ragged, cols: usize) {
        let [y, x, b] = split(&mut self.acts, [y.0, x.0, branch.0]);
        let read = crops_of(x, n, cols).into_par_iter().zip(crops_of(b, n, cols)).zip(&self.state[scale.range()]);
        crops(y, n, cols).into_par_iter().zip(read).for_each(|(y, ((x, b), &s))| rows::add_scaled(y, x, b, s));
    }

    fn add_layernorm(&mut self, y: Act, sum: Act, stats: NormStats, x: Act, branch: Act, w: Affine, n: LayerNorm) {
        let [y, sum, x, branch] = split(&mut self.acts, [y.0, sum.0, x.0, branch.0]);
        let [mean, rstd] = split(&mut self.stats, [stats.mean.0, stats.rstd.0]);
        let (w, b) = (&self.weights[w.w.range()], &self.weights[w.b.range()]);
        let block = gemm::row_block(n.rows);
        let wide = block * n.cols;
        let kept = mean.par_chunks_mut(block).zip(rstd.par_chunks_mut(block));
        let written = y.par_chunks_mut(wide).zip(sum.par_chunks_mut(wide)).zip(kept);
        written.zip(x.par_chunks(wide)).zip(branch.par_chunks(wide)).for_each(
            |((((y, sum), (mean, rstd)), x), branch)| {
                rows::add(sum, x, branch);
                rows::layernorm(y, mean, rstd, sum, w, b, n.eps);
            },
        );
    }

    fn convolve(&mut self, y: Act, x: Act, w: Weight, n: Conv) {
        let [y, x] = split(&mut self.acts, [y.0, x.0]);
        conv::forward(y, x, &self.weights[w.range()], n, &mut self.scratch);
    }

    fn batch_statistics(&mut self, stats: NormStats, running: Running, x: Act, n: BatchNorm) {
        self.take_statistics(stats, running, x, n);
    }

    fn running_statistics(&mut self, stats: NormStats, running: Running, eps: f64) {
        self.reference().running_statistics(stats, running, eps);
    }

    fn batch_normalize(&mut self, y: Act, x: Act, residual: Act, stats: NormStats, w: Affine, n: BatchNorm) {
        let [y, x, residual] = split(&mut self.acts, [y.0, x.0, residual.0]);
        let stats = [stats.mean, stats.rstd].map(|s| &self.stats[s.range()]);
        let affine = [w.w, w.b].map(|w| &self.weights[w.range()]);
        batchnorm::normalize(y, x, residual, stats, affine, n);
    }

    fn max_pool(&mut self, y: Act, x: Act, n: MaxPool) {
        let [y, x] = split(&mut self.acts, [y.0, x.0]);
        pool::max_forward(y, x, n);
    }

    fn average_pool(&mut self, y: Act, x: Act, n: Ragged, cols: usize) {
        let [y, x] = split(&mut self.acts, [y.0, x.0]);
        pool::average_forward(y, x, n, cols);
    }

    fn resize_positions(&mut self, y: Act, table: Weight, rows: State, cols: State, n: Grid) {
        self.reference().resize_positions(y, table, rows, cols, n);
    }

    fn embed(&mut self, y: Act, patches: Act, class: Weight, class_position: Weight, positions: Act, n: Embed) {
        self.reference().embed(y, patches, class, class_position, positions, n);
    }

    fn attention(&mut self, out: Attention, qkv: Act, n: Heads) {
        let [y, qkv] = split(&mut self.acts, [out.y.0, qkv.0]);
        attention::forward(y, &mut self.stats[out.lse.range()], qkv, n);
    }

    fn attention_class(&mut self, out: Attention, x: ClassQkv, n: Heads) {
        let [y, q, kv] = split(&mut self.acts, [out.y.0, x.q.0, x.kv.0]);
        attention::class_forward(y, &mut self.stats[out.lse.range()], q, kv, n);
    }

    fn attention_rows(&mut self, y: Act, lse: Stat, qkv: Act, queries: usize, n: Heads) {
        self.reference().attention_rows(y, lse, qkv, queries, n);
    }

    fn gather_class(&mut self, y: Act, x: Act, n: Ragged, cols: usize) {
        self.reference().gather_class(y, x, n, cols);
    }

    fn l2_normalize(&mut self, y: Act, norm: Stat, x: Act, n: Rows) {
        self.reference().l2_normalize(y, norm, x, n);
    }

    fn prototype_scale(&mut self, scale: Stat, v: Weight, g: Weight, n: Rows) {
        let (v, g) = (&self.weights[v.range()], &self.weights[g.range()]);
        let scale = &mut self.stats[scale.range()];
        if g.is_empty() {
            return scale.fill(1.0);
        }
        scale
            .par_chunks_mut(256)
            .zip(v.par_chunks(256 * n.cols))
            .zip(g.par_chunks(256))
            .for_each(|((scale, v), g)| rows::prototype_scale(scale, v, g, n.cols));
    }

    fn logits(&mut self, y: Act, z: Act, p: Prototypes, n: Mat) {
        let [y, z] = split(&mut self.acts, [y.0, z.0]);
        let (v, scale) = (&self.weights[p.v.range()], &self.stats[p.scale.range()]);
        gemm::scaled(y, z, v, scale, n.inp);
    }
}
