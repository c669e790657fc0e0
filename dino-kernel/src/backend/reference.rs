//! The reference backend: the ops over the caller's slices, one line per op into `ops/`, generic over f32 and f64.
//!
//! A handle becomes a slice through `core`'s checked `get_disjoint_mut`, so there is no `unsafe`, and overlap is refused.

use crate::backend::*;
use crate::crops::Ragged;
use crate::mem::{Act, Pool, Span, Stat, State, Weight};
use crate::ops;
use crate::ops::loss::{Logits, LossOut, Targets};
use crate::ops::{column_lse, mse};
use crate::optim::{self, Optimizer, clip, teacher};
use crate::params::ParamTable;
use crate::real::Real;
use crate::scalars::{hyper, monitor};
use core::ops::{Deref, DerefMut};

/// The pools. For inference the weights may be a shared slice (in flash, for instance) and grads and slots empty.
pub struct Reference<'a, T, W> {
    /// The student's parameters, then the teacher's; for inference one network's.
    pub weights: W,
    /// Gradients of the student's parameters, at the same offsets.
    pub grads: &'a mut [T],
    /// The optimizer's arrays of state, one after the other.
    pub slots: &'a mut [T],
    /// Activations and their gradients.
    pub acts: &'a mut [T],
    /// Numbers of one step in full precision.
    pub stats: &'a mut [T],
    /// Numbers that outlive a step.
    pub state: &'a mut [T],
}

/// Forward only, weights in read-only memory.
pub type Infer<'a, T> = Reference<'a, T, &'a [T]>;
/// A full training step.
pub type Train<'a, T> = Reference<'a, T, &'a mut [T]>;

/// Distinct spans of one pool as slices.
fn split<T, const N: usize>(pool: &mut [T], spans: [Span; N]) -> [&mut [T]; N] {
    match pool.get_disjoint_mut(spans.map(Span::range)) {
        Ok(parts) => parts,
        Err(_) => panic!("the plan hands an op overlapping or out-of-pool spans: {spans:?}"),
    }
}

impl<T: Real, W: Deref<Target = [T]>> Forward for Reference<'_, T, W> {
    fn patchify(&mut self, y: Act, x: Act, n: Patches) {
        let [y, x] = split(self.acts, [y.0, x.0]);
        ops::embed::patchify(y, x, n);
    }

    fn linear(&mut self, y: Act, x: Act, w: Affine, n: Mat) {
        let [y, x] = split(self.acts, [y.0, x.0]);
        ops::linear::forward(y, x, &self.weights[w.w.range()], &self.weights[w.b.range()], n);
    }

    fn copy(&mut self, y: Act, x: Act) {
        let [y, x] = split(self.acts, [y.0, x.0]);
        y.copy_from_slice(x);
    }

    fn relu(&mut self, y: Act, x: Act) {
        let [y, x] = split(self.acts, [y.0, x.0]);
        ops::relu::forward(y, x);
    }

    fn gelu(&mut self, y: Act, x: Act) {
        let [y, x] = split(self.acts, [y.0, x.0]);
        ops::gelu::forward(y, x);
    }

    fn layernorm(&mut self, y: Act, stats: NormStats, x: Act, w: Affine, n: LayerNorm) {
        let [y, x] = split(self.acts, [y.0, x.0]);
        let [mean, rstd] = split(self.stats, [stats.mean.0, stats.rstd.0]);
        ops::layernorm::forward(y, mean, rstd, x, &self.weights[w.w.range()], &self.weights[w.b.range()], n);
    }

    fn add(&mut self, y: Act, x: Act, branch: Act) {
        let [y, x, branch] = split(self.acts, [y.0, x.0, branch.0]);
        ops::residual::add(y, x, branch);
    }

    fn add_scaled(&mut self, y: Act, x: Act, branch: Act, scale: State, n: Ragged, cols: usize) {
        let [y, x, branch] = split(self.acts, [y.0, x.0, branch.0]);
        ops::residual::add_scaled(y, x, branch, &self.state[scale.range()], n, cols);
    }

    fn convolve(&mut self, y: Act, x: Act, w: Weight, n: Conv) {
        let [y, x] = split(self.acts, [y.0, x.0]);
        ops::conv::forward(y, x, &self.weights[w.range()], n);
    }

    fn batch_statistics(&mut self, stats: NormStats, running: Running, x: Act, n: BatchNorm) {
        let [mean, rstd] = split(self.stats, [stats.mean.0, stats.rstd.0]);
        let running = split(self.state, [running.mean.0, running.var.0]);
        ops::batchnorm::statistics(mean, rstd, running, &self.acts[x.range()], n);
    }

    fn running_statistics(&mut self, stats: NormStats, running: Running, eps: f64) {
        let [mean, rstd] = split(self.stats, [stats.mean.0, stats.rstd.0]);
        let running = [&self.state[running.mean.range()], &self.state[running.var.range()]];
        ops::batchnorm::of_running(mean, rstd, running, eps);
    }

    fn batch_normalize(&mut self, y: Act, x: Act, residual: Act, stats: NormStats, w: Affine, n: BatchNorm) {
        let [y, x, residual] = split(self.acts, [y.0, x.0, residual.0]);
        let stats = [&self.stats[stats.mean.range()], &self.stats[stats.rstd.range()]];
        let affine = [&self.weights[w.w.range()], &self.weights[w.b.range()]];
        ops::batchnorm::normalize(y, x, residual, stats, affine, n);
    }

    fn max_pool(&mut self, y: Act, x: Act, n: MaxPool) {
        let [y, x] = split(self.acts, [y.0, x.0]);
        ops::max_pool::forward(y, x, n);
    }

    fn average_pool(&mut self, y: Act, x: Act, n: Ragged, cols: usize) {
        let [y, x] = split(self.acts, [y.0, x.0]);
        ops::average_pool::forward(y, x, n, cols);
    }

    fn resize_positions(&mut self, y: Act, table: Weight, rows: State, cols: State, n: Grid) {
        let (rows, cols) = (&self.state[rows.range()], &self.state[cols.range()]);
        ops::position::forward(&mut self.acts[y.range()], &self.weights[table.range()], rows, cols, n);
    }

    fn embed(&mut self, y: Act, patches: Act, class: Weight, class_position: Weight, positions: Act, n: Embed) {
        let [y, patches, positions] = split(self.acts, [y.0, patches.0, positions.0]);
        let (class, class_position) = (&self.weights[class.range()], &self.weights[class_position.range()]);
        ops::embed::forward(y, patches, class, class_position, positions, n);
    }

    fn attention(&mut self, out: Attention, qkv: Act, n: Heads) {
        let [y, qkv] = split(self.acts, [out.y.0, qkv.0]);
        ops::attention::forward(y, &mut self.stats[out.lse.range()], qkv, n);
    }

    fn attention_class(&mut self, out: Attention, x: ClassQkv, n: Heads) {
        let [y, q, kv] = split(self.acts, [out.y.0, x.q.0, x.kv.0]);
        ops::attention::class_forward(y, &mut self.stats[out.lse.range()], q, kv, n);
    }

    fn attention_rows(&mut self, y: Act, lse: Stat, qkv: Act, queries: usize, n: Heads) {
        let [y, qkv] = split(self.acts, [y.0, qkv.0]);
        ops::attention::rows(y, &self.stats[lse.range()], qkv, queries, n);
    }

    fn gather_class(&mut self, y: Act, x: Act, n: Ragged, cols: usize) {
        let [y, x] = split(self.acts, [y.0, x.0]);
        ops::embed::gather_class(y, x, n, cols);
    }

    fn l2_normalize(&mut self, y: Act, norm: Stat, x: Act, n: Rows) {
        let [y, x] = split(self.acts, [y.0, x.0]);
        ops::norm::l2_forward(y, &mut self.stats[norm.range()], x, n);
    }

    fn prototype_scale(&mut self, scale: Stat, v: Weight, g: Weight, n: Rows) {
        let (v, g) = (&self.weights[v.range()], &self.weights[g.range()]);
        ops::norm::prototype_scale(&mut self.stats[scale.range()], v, g, n);
    }

    fn logits(&mut self, y: Act, z: Act, p: Prototypes, n: Mat) {
        let [y, z] = split(self.acts, [y.0, z.0]);
        let (v, scale) = (&self.weights[p.v.range()], &self.stats[p.scale.range()]);
        for (row, z) in y.chunks_mut(n.out).zip(z.chunks(n.inp)) {
            for (k, y) in row.iter_mut().enumerate() {
                *y = ops::dot(z, &v[k * n.inp..][..n.inp]) * scale[k];
            }
        }
    }
}

impl<T: Real, W: DerefMut<Target = [T]>> Backward for Reference<'_, T, W> {
    fn linear_backward(&mut self, dx: Act, dy: Act, x: Act, w: Affine, n: Mat) {
        {
            let [dx, dy] = split(self.acts, [dx.0, dy.0]);
            ops::linear::backward_input(dx, dy, &self.weights[w.w.range()], n);
        }
        self.linear_backward_params(dy, x, w, n);
    }

    fn linear_backward_params(&mut self, dy: Act, x: Act, w: Affine, n: Mat) {
        let [dw, db] = split(self.grads, [w.w.0, w.b.0]);
        ops::linear::backward_params(dw, db, &self.acts[dy.range()], &self.acts[x.range()], n);
    }

    fn relu_backward(&mut self, dx: Act, dy: Act, x: Act) {
        let [dx, dy, x] = split(self.acts, [dx.0, dy.0, x.0]);
        ops::relu::backward(dx, dy, x);
    }

    fn gelu_backward(&mut self, dx: Act, dy: Act, x: Act) {
        let [dx, dy, x] = split(self.acts, [dx.0, dy.0, x.0]);
        ops::gelu::backward(dx, dy, x);
    }

    fn layernorm_backward(&mut self, dx_acc: Act, dy: Act, x: Act, stats: NormStats, w: Affine, n: Rows) {
        let [dx, dy, x] = split(self.acts, [dx_acc.0, dy.0, x.0]);
        let [dw, db] = split(self.grads, [w.w.0, w.b.0]);
        let (mean, rstd) = (&self.stats[stats.mean.range()], &self.stats[stats.rstd.range()]);
        ops::layernorm::backward(dx, dw, db, dy, x, mean, rstd, &self.weights[w.w.range()], n);
    }

    fn scale_crops(&mut self, y: Act, x: Act, scale: State, n: Ragged, cols: usize) {
        let [y, x] = split(self.acts, [y.0, x.0]);
        ops::residual::scale_crops(y, x, &self.state[scale.range()], n, cols);
    }

    fn attention_backward(&mut self, dqkv: Act, dy: Act, out: Attention, qkv: Act, n: Heads) {
        let [dqkv, dy, y, qkv] = split(self.acts, [dqkv.0, dy.0, out.y.0, qkv.0]);
        ops::attention::backward(dqkv, dy, y, &self.stats[out.lse.range()], qkv, n);
    }

    fn attention_class_backward(&mut self, dx: ClassQkv, dy: Act, out: Attention, x: ClassQkv, n: Heads) {
        let [dq, dkv, dy, y, q, kv] = split(self.acts, [dx.q.0, dx.kv.0, dy.0, out.y.0, x.q.0, x.kv.0]);
        ops::attention::class_backward(dq, dkv, dy, y, &self.stats[out.lse.range()], q, kv, n);
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
        let [dpatches, dpositions, dy] = split(self.acts, [dpatches.0, dpositions.0, dy.0]);
        let [class, class_position] = split(self.grads, [class.0, class_position.0]);
        ops::embed::backward(dpatches, dpositions, class, class_position, dy, n);
    }

    fn resize_positions_backward(&mut self, dy: Act, table: Weight, rows: State, cols: State, n: Grid) {
        let (rows, cols) = (&self.state[rows.range()], &self.state[cols.range()]);
        ops::position::backward(&mut self.grads[table.range()], &self.acts[dy.range()], rows, cols, n);
    }

    fn convolve_backward(&mut self, dx: Act, dy: Act, x: Act, w: Weight, n: Conv) {
        self.clear(dx);
        self.convolve_backward_acc(dx, dy, x, w, n);
    }

    fn convolve_backward_acc(&mut self, dx_acc: Act, dy: Act, x: Act, w: Weight, n: Conv) {
        {
            let [dx, dy] = split(self.acts, [dx_acc.0, dy.0]);
            ops::conv::backward_input(dx, dy, &self.weights[w.range()], n);
        }
        self.convolve_backward_params(dy, x, w, n);
    }

    fn convolve_backward_params(&mut self, dy: Act, x: Act, w: Weight, n: Conv) {
        ops::conv::backward_params(&mut self.grads[w.range()], &self.acts[dy.range()], &self.acts[x.range()], n);
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
        let [dx, dy, x, y] = split(self.acts, [dx.0, dy.0, x.0, y.0]);
        let grads = split(self.grads, [w.w.0, w.b.0]);
        let stats = [&self.stats[stats.mean.range()], &self.stats[stats.rstd.range()]];
        ops::batchnorm::backward(dx, dy, grads, [x, y], stats, &self.weights[w.w.range()], n);
    }

    fn max_pool_backward(&mut self, dx: Act, dy: Act, x: Act, n: MaxPool) {
        let [dx, dy, x] = split(self.acts, [dx.0, dy.0, x.0]);
        ops::max_pool::backward(dx, dy, x, n);
    }

    fn average_pool_backward(&mut self, dx: Act, dy: Act, n: Ragged, cols: usize) {
        let [dx, dy] = split(self.acts, [dx.0, dy.0]);
        ops::average_pool::backward(dx, dy, n, cols);
    }

    fn clear(&mut self, x: Act) {
        self.acts[x.range()].fill(T::ZERO);
    }

    fn scatter_class_acc(&mut self, dx_acc: Act, dy: Act, n: Ragged, cols: usize) {
        let [dx, dy] = split(self.acts, [dx_acc.0, dy.0]);
        ops::embed::scatter_class_acc(dx, dy, n, cols);
    }

    fn l2_normalize_backward(&mut self, dx: Act, dy: Act, y: Act, norm: Stat, n: Rows) {
        let [dx, dy, y] = split(self.acts, [dx.0, dy.0, y.0]);
        ops::norm::l2_backward(dx, dy, y, &self.stats[norm.range()], n);
    }
}

/// Alone.
impl<T, W> Collective for Reference<'_, T, W> {}

impl<T: Real, W: DerefMut<Target = [T]>> Update for Reference<'_, T, W> {
    fn zero_grads(&mut self) {
        self.grads.fill(T::ZERO);
    }

    fn zero(&mut self, x: State) {
        self.state[x.range()].fill(T::ZERO);
    }

    fn teacher_lse(&mut self, entropy: Stat, targets: TargetRows, hyper: State, n: LossDims) {
        let TargetRows { z, lse, prototypes, offset } = targets;
        let [lse, entropy, scale] = split(self.stats, [lse.0, entropy.0, prototypes.scale.0]);
        let rows = Logits { z: &self.acts[z.range()], v: &self.weights[prototypes.v.range()], scale };
        let (offset, h) = (&self.state[offset.range()], &self.state[hyper.range()]);
        ops::loss::teacher_lse(lse, entropy, rows, offset, h, n);
    }

    fn dino_loss(&mut self, out: LossSpans, student: StudentRows, targets: TargetRows, hyper: State, n: LossDims) {
        let (own, others) = (student.prototypes, targets.prototypes);
        let [dz, z, z_teacher] = split(self.acts, [out.dz.0, student.z.0, targets.z.0]);
        let [loss, lse, lse_teacher, scale, scale_teacher] =
            split(self.stats, [out.loss.0, out.lse.0, targets.lse.0, own.scale.0, others.scale.0]);
        let dw = &mut self.grads[own.v.range()];
        let student = Logits { z, v: &self.weights[own.v.range()], scale };
        let logits = Logits { z: z_teacher, v: &self.weights[others.v.range()], scale: scale_teacher };
        let targets = Targets { logits, lse: lse_teacher, offset: &self.state[targets.offset.range()] };
        let h = &self.state[hyper.range()];
        ops::loss::forward_backward(LossOut { loss, lse, dz, dw }, student, targets, h, n);
    }

    fn mse_loss(&mut self, out: LossSpans, student: StudentRows, targets: TargetRows, hyper: State, n: LossDims) {
        let (own, others) = (student.prototypes, targets.prototypes);
        let [dz, z, z_teacher] = split(self.acts, [out.dz.0, student.z.0, targets.z.0]);
        let [loss, lse, lse_teacher, scale, scale_teacher] =
            split(self.stats, [out.loss.0, out.lse.0, targets.lse.0, own.scale.0, others.scale.0]);
        let dw = &mut self.grads[own.v.range()];
        let student = Logits { z, v: &self.weights[own.v.range()], scale };
        let logits = Logits { z: z_teacher, v: &self.weights[others.v.range()], scale: scale_teacher };
        let targets = Targets { logits, lse: lse_teacher, offset: &self.state[targets.offset.range()] };
        let h = &self.state[hyper.range()];
        mse::forward_backward(LossOut { loss, lse, dz, dw }, student, targets, h, n);
    }

    fn column_lse(
        &mut self,
        offset: State,
        z: Act,
        lse: Stat,
        p: Prototypes,
        hyper: State,
        n: LossDims,
        _block: usize,
    ) {
        let [offset, h] = split(self.state, [offset.0, hyper.0]);
        let (v, scale) = (&self.weights[p.v.range()], &self.stats[p.scale.range()]);
        let rows = Logits { z: &self.acts[z.range()], v, scale };
        column_lse::forward(offset, rows, &self.stats[lse.range()], h, n);
    }

    fn sum_rows(&mut self, sum: State, x: Act, n: Rows) {
        let sum = &mut self.state[sum.range()];
        self.acts[x.range()].chunks(n.cols).for_each(|row| ops::axpy(sum, T::ONE, row));
    }

    fn sum_stat(&mut self, sum: State, x: Stat) {
        self.state[sum.0.at] += ops::sum(&self.stats[x.range()]);
    }

    fn keep_sums(&mut self, kept: State, table: &dyn ParamTable, sums: Sums) {
        let [kept, teacher, losses] = split(self.state, [kept.0, sums.teacher.0, sums.losses.0]);
        let (grads, rest) = kept.split_at_mut(table.len());
        grads.copy_from_slice(&self.grads[..table.len()]);
        rest[..teacher.len()].copy_from_slice(teacher);
        rest[teacher.len()..].copy_from_slice(losses);
    }

    fn add_sums(&mut self, table: &dyn ParamTable, sums: Sums, kept: State) {
        let [kept, teacher, losses] = split(self.state, [kept.0, sums.teacher.0, sums.losses.0]);
        let (grads, rest) = kept.split_at(table.len());
        ops::axpy(&mut self.grads[..table.len()], T::ONE, grads);
        ops::axpy(teacher, T::ONE, &rest[..teacher.len()]);
        ops::axpy(losses, T::ONE, &rest[teacher.len()..]);
    }

    fn weight_norm_backward(&mut self, p: Prototypes, g: Weight, train_gain: bool, n: Rows) {
        let [dv, dg] = split(self.grads, [p.v.0, g.0]);
        let (v, scale) = (&self.weights[p.v.range()], &self.stats[p.scale.range()]);
        ops::norm::weight_norm_backward(dv, train_gain.then_some(dg), v, scale, n);
    }

    fn clip(&mut self, m: State, table: &dyn ParamTable, hyper: State) {
        let limit = self.state[hyper.0.at + hyper::CLIP].to_f64();
        let mut total = 0.0;
        table.visit(&mut |spec| {
            let g = &mut self.grads[spec.at.range()];
            let square = ops::sum_squares(g);
            total += square;
            let factor = clip::factor(libm::sqrt(square), limit);
            if factor < 1.0 {
                g.iter_mut().for_each(|g| *g *= T::of(factor));
            }
        });
        clip::note(&mut self.state[m.range()], total);
    }

    fn commit_center(&mut self, center: State, m: State, sum: State, teacher: Prototypes, hyper: State, _n: Rows) {
        let [center, m, sum, h] = split(self.state, [center.0, m.0, sum.0, hyper.0]);
        if m[monitor::FINITE] == T::ONE {
            let (v, scale) = (&self.weights[teacher.v.range()], &self.stats[teacher.scale.range()]);
            ops::loss::commit_center(center, sum, v, scale, h);
            m[monitor::CENTER_NORM] = T::of(libm::sqrt(ops::sum_squares(center)));
        }
    }

    fn optimize(&mut self, rule: Optimizer, table: &dyn ParamTable, m: State, hyper: State) {
        if self.state[m.0.at + monitor::FINITE] != T::ONE {
            return;
        }
        let (hyper, mut slots) = (&self.state[hyper.range()], rule.arrays(self.slots, table.len()));
        table.visit(&mut |spec| {
            let Some(h) = optim::block_of(hyper, &spec) else { return };
            let (p, g) = (&mut self.weights[spec.at.range()], &self.grads[spec.at.range()]);
            let trust = if rule.needs_norms() { rule.trust(rule.norms(p, g, h), h) } else { T::ONE };
            rule.apply(p, optim::part(&mut slots, spec.at.range()), g, trust, h);
        });
    }

    fn copy_running(&mut self, y: State, x: State) {
        let [y, x] = split(self.state, [y.0, x.0]);
        y.copy_from_slice(x);
    }

    fn commit_running(&mut self, running: State, moved: State, m: State) {
        if self.state[m.0.at + monitor::FINITE] == T::ONE {
            self.copy_running(running, moved);
        }
    }

    fn follow_running(&mut self, teacher: State, student: State, m: State, hyper: State) {
        let rate = self.state[hyper.0.at + hyper::TEACHER_RATE];
        if self.state[m.0.at + monitor::FINITE] == T::ONE && rate == T::ONE {
            self.copy_running(teacher, student);
        }
    }

    fn ema(&mut self, m: State, table: &dyn ParamTable, hyper: State) {
        if self.state[m.0.at + monitor::FINITE] == T::ONE {
            let (student, teacher) = self.weights.split_at_mut(table.len());
            let len = table.teacher_len();
            teacher::blend(&mut teacher[..len], &student[..len], self.state[hyper.0.at + hyper::TEACHER_RATE]);
        }
    }
}

impl<T: Real, W: DerefMut<Target = [T]>> Reference<'_, T, W> {
    fn pool(&mut self, pool: Pool) -> &mut [T] {
        match pool {
            Pool::Weights => &mut self.weights,
            Pool::Grads => self.grads,
            Pool::Slots => self.slots,
            Pool::Acts => self.acts,
            Pool::Stats => self.stats,
            Pool::State => self.state,
        }
    }
}

impl<T: Real, W: DerefMut<Target = [T]>> Memory for Reference<'_, T, W> {
    fn read(&mut self, pool: Pool, at: usize, out: &mut [f64]) {
        let pool = &self.pool(pool)[at..][..out.len()];
        out.iter_mut().zip(pool).for_each(|(o, x)| *o = x.to_f64());
    }

    fn write(&mut self, pool: Pool, at: usize, values: &[f64]) {
        let pool = &mut self.pool(pool)[at..][..values.len()];
        pool.iter_mut().zip(values).for_each(|(x, v)| *x = T::of(*v));
    }

    fn len(&mut self, pool: Pool) -> usize {
        self.pool(pool).len()
    }
}
