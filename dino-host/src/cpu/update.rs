//! The loss, and what makes new weights of gradients, on the CPU.

use super::{CHUNK, Cpu, column_lse, loss, mse, split};
use crate::linalg::rows;
use dino_kernel::backend::*;
use dino_kernel::mem::{Act, Stat, State, Weight};
use dino_kernel::ops::loss::LossOut;
use dino_kernel::optim::{self, Optimizer, clip};
use dino_kernel::params::ParamTable;
use dino_kernel::scalars::{hyper, monitor};
use rayon::prelude::*;

/// A loss over slices.
type Loss = fn(LossOut<f32>, loss::Rows, loss::Targets, &[f32; hyper::LEN], LossDims, &mut Vec<f32>);

impl Cpu {
    /// Student rows against their targets.
    fn compare(
        &mut self,
        by: Loss,
        out: LossSpans,
        student: StudentRows,
        targets: TargetRows,
        hyper: State,
        n: LossDims,
    ) {
        let h = self.hyper(hyper);
        let (own, others) = (student.prototypes, targets.prototypes);
        let [dz, z, z_teacher] = split(&mut self.acts, [out.dz.0, student.z.0, targets.z.0]);
        let [loss, lse, lse_teacher, scale, scale_teacher] =
            split(&mut self.stats, [out.loss.0, out.lse.0, targets.lse.0, own.scale.0, others.scale.0]);
        let out = LossOut { loss, lse, dz, dw: &mut self.grads[own.v.range()] };
        let student = loss::Rows { z, v: &self.weights[own.v.range()], scale };
        let rows = loss::Rows { z: z_teacher, v: &self.weights[others.v.range()], scale: scale_teacher };
        let targets = loss::Targets { rows, lse: lse_teacher, offset: &self.state[targets.offset.range()] };
        by(out, student, targets, &h, n, &mut self.scratch);
    }
}

impl Update for Cpu {
    fn zero_grads(&mut self) {
        self.grads.par_chunks_mut(CHUNK).for_each(|g| g.fill(0.0));
    }

    fn zero(&mut self, x: State) {
        self.state[x.range()].fill(0.0);
    }

    fn teacher_lse(&mut self, entropy: Stat, targets: TargetRows, hyper: State, n: LossDims) {
        let h = self.hyper(hyper);
        let TargetRows { z, lse, prototypes, offset } = targets;
        let [lse, entropy, scale] = split(&mut self.stats, [lse.0, entropy.0, prototypes.scale.0]);
        let rows = loss::Rows { z: &self.acts[z.range()], v: &self.weights[prototypes.v.range()], scale };
        loss::teacher_lse(lse, entropy, rows, &self.state[offset.range()], &h, n, &mut self.scratch);
    }

    fn dino_loss(&mut self, out: LossSpans, student: StudentRows, targets: TargetRows, hyper: State, n: LossDims) {
        self.compare(loss::forward_backward, out, student, targets, hyper, n);
    }

    fn mse_loss(&mut self, out: LossSpans, student: StudentRows, targets: TargetRows, hyper: State, n: LossDims) {
        self.compare(mse::forward_backward, out, student, targets, hyper, n);
    }

    fn column_lse(&mut self, offset: State, z: Act, lse: Stat, p: Prototypes, hyper: State, n: LossDims, block: usize) {
        let h = self.hyper(hyper);
        let teacher =
            loss::Rows { z: &self.acts[z.range()], v: &self.weights[p.v.range()], scale: &self.stats[p.scale.range()] };
        let lse = &self.stats[lse.range()];
        column_lse::forward(&mut self.state[offset.range()], teacher, lse, &h, n, block, &mut self.scratch);
    }

    fn sum_rows(&mut self, sum: State, x: Act, n: Rows) {
        self.reference().sum_rows(sum, x, n);
    }

    fn sum_stat(&mut self, sum: State, x: Stat) {
        self.reference().sum_stat(sum, x);
    }

    fn keep_sums(&mut self, kept: State, table: &dyn ParamTable, sums: Sums) {
        let [kept, teacher, losses] = split(&mut self.state, [kept.0, sums.teacher.0, sums.losses.0]);
        let (grads, rest) = kept.split_at_mut(table.len());
        let read = self.grads[..table.len()].par_chunks(CHUNK);
        grads.par_chunks_mut(CHUNK).zip(read).for_each(|(kept, g)| kept.copy_from_slice(g));
        let (kept_teacher, kept_losses) = rest.split_at_mut(teacher.len());
        kept_teacher.copy_from_slice(teacher);
        kept_losses.copy_from_slice(losses);
    }

    fn add_sums(&mut self, table: &dyn ParamTable, sums: Sums, kept: State) {
        let [kept, teacher, losses] = split(&mut self.state, [kept.0, sums.teacher.0, sums.losses.0]);
        let (grads, rest) = kept.split_at(table.len());
        let written = self.grads[..table.len()].par_chunks_mut(CHUNK);
        written.zip(grads.par_chunks(CHUNK)).for_each(|(g, kept)| rows::add_assign(g, kept));
        let (kept_teacher, kept_losses) = rest.split_at(teacher.len());
        rows::add_assign(teacher, kept_teacher);
        rows::add_assign(losses, kept_losses);
    }

    fn weight_norm_backward(&mut self, p: Prototypes, g: Weight, train_gain: bool, n: Rows) {
        let (wide, cols) = (256 * n.cols, n.cols);
        let [dv, dg] = split(&mut self.grads, [p.v.0, g.0]);
        let (v, scale) = (&self.weights[p.v.range()], &self.stats[p.scale.range()]);
        let tiles = dv.par_chunks_mut(wide).zip(v.par_chunks(wide)).zip(scale.par_chunks(256));
        tiles.zip(dg.par_chunks_mut(256)).for_each(|(((dv, v), scale), dg)| {
            rows::weight_norm_backward(dv, train_gain.then_some(dg), v, scale, cols);
        });
    }

    fn clip(&mut self, m: State, table: &dyn ParamTable, hyper: State) {
        let limit = self.hyper(hyper)[hyper::CLIP] as f64;
        let mut total = 0.0;
        table.visit(&mut |spec| {
            let g = &mut self.grads[spec.at.range()];
            let parts: Vec<f64> = g.par_chunks(CHUNK).map(rows::sum_squares).collect();
            let square: f64 = parts.iter().sum();
            total += square;
            let factor = clip::factor(square.sqrt(), limit) as f32;
            if factor < 1.0 {
                g.par_chunks_mut(CHUNK).for_each(|g| rows::scale(g, factor));
            }
        });
        clip::note(&mut self.state[m.range()], total);
    }

    fn commit_center(&mut self, center: State, m: State, sum: State, teacher: Prototypes, hyper: State, n: Rows) {
        let h = self.hyper(hyper);
        if !self.finite(m) {
            return;
        }
        let [center, m, sum] = split(&mut self.state, [center.0, m.0, sum.0]);
        let (sum, v, scale) = (&*sum, &self.weights[teacher.v.range()], &self.stats[teacher.scale.range()]);
        center
            .par_chunks_mut(256)
            .zip(v.par_chunks(256 * n.cols))
            .zip(scale.par_chunks(256))
            .for_each(|((center, v), scale)| rows::commit_center(center, sum, v, scale, &h));
        m[monitor::CENTER_NORM] = rows::sum_squares(center).sqrt() as f32;
    }

    fn optimize(&mut self, rule: Optimizer, table: &dyn ParamTable, m: State, hyper: State) {
        let hyper = self.hyper(hyper);
        if !self.finite(m) {
            return;
        }
        let mut slots = rule.arrays(&mut self.slots, table.len());
        table.visit(&mut |spec| {
            let Some(h) = optim::block_of(&hyper, &spec) else { return };
            let (p, g) = (&mut self.weights[spec.at.range()], &self.grads[spec.at.range()]);
            let trust = if rule.needs_norms() {
                let chunks = p.par_chunks(CHUNK).zip(g.par_chunks(CHUNK));
                let parts: Vec<[f64; 2]> = chunks.map(|(p, g)| rows::norms(rule, p, g, h)).collect();
                rule.trust(parts.iter().fold([0.0; 2], |sum, part| [sum[0] + part[0], sum[1] + part[1]]), h)
            } else {
                1.0
            };
            let mut rest = optim::part(&mut slots, spec.at.range());
            let chunks = p.chunks_mut(CHUNK).zip(g.chunks(CHUNK));
            let chunks: Vec<_> = chunks.map(|(p, g)| (optim::split_off(&mut rest, p.len()), p, g)).collect();
            chunks.into_par_iter().for_each(|(slots, p, g)| rows::optimize(rule, p, slots, g, trust, h));
        });
    }

    fn copy_running(&mut self, y: State, x: State) {
        self.moves.clear();
        self.reference().copy_running(y, x);
    }

    fn commit_running(&mut self, running: State, moved: State, m: State) {
        self.reference().commit_running(running, moved, m);
    }

    fn follow_running(&mut self, teacher: State, student: State, m: State, hyper: State) {
        self.reference().follow_running(teacher, student, m, hyper);
    }

    fn ema(&mut self, m: State, table: &dyn ParamTable, hyper: State) {
        let rate = self.hyper(hyper)[hyper::TEACHER_RATE];
        if self.finite(m) {
            let (student, teacher) = self.weights.split_at_mut(table.len());
            let len = table.teacher_len();
            let student = student[..len].par_chunks(CHUNK);
            teacher[..len].par_chunks_mut(CHUNK).zip(student).for_each(|(t, s)| rows::ema(t, s, rate));
        }
    }
}
