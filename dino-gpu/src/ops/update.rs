//! Ops of an optimization step; the loss's own are in `loss.rs`.

use crate::args;
use crate::gpu::Gpu;
use crate::kernels::Shape;
use dino_kernel::backend::*;
use dino_kernel::mem::{Act, Stat, State, Weight};
use dino_kernel::optim::Optimizer;
use dino_kernel::params::ParamTable;

impl Gpu {
    /// What a shard sums, in the order it is kept in: address and elements.
    pub(super) fn shard_sums(&self, table: &dyn ParamTable, sums: Sums) -> [(u64, usize); 3] {
        let [teacher, losses] = [sums.teacher, sums.losses].map(|s| (self.state(s), s.len()));
        [(self.all_grads().0, table.len()), teacher, losses]
    }
}

impl Update for Gpu {
    fn zero_grads(&mut self) {
        let (at, bytes) = self.all_grads();
        self.clear_bytes(at, bytes);
    }

    fn zero(&mut self, x: State) {
        let at = self.state(x);
        self.clear_bytes(at, 4 * x.len());
    }

    fn teacher_lse(&mut self, entropy: Stat, targets: TargetRows, hyper: State, n: LossDims) {
        self.streamed_teacher_lse(entropy, targets, hyper, n);
    }

    fn dino_loss(&mut self, out: LossSpans, student: StudentRows, targets: TargetRows, hyper: State, n: LossDims) {
        self.streamed_loss(out, student, targets, hyper, n);
    }

    fn mse_loss(&mut self, out: LossSpans, student: StudentRows, targets: TargetRows, hyper: State, n: LossDims) {
        self.streamed_mse(out, student, targets, hyper, n);
    }

    fn column_lse(&mut self, offset: State, z: Act, lse: Stat, p: Prototypes, hyper: State, n: LossDims, block: usize) {
        self.streamed_column_lse(offset, z, lse, p, hyper, n, block);
    }

    fn sum_rows(&mut self, sum: State, x: Act, n: Rows) {
        let (sum, x) = (self.state(sum), self.act(x));
        self.launch(&self.kernels.sum_rows, Shape::flat(n.cols), args![sum, x, n.rows as i32, n.cols as i32]);
    }

    fn sum_stat(&mut self, sum: State, x: Stat) {
        let (sum, at) = (self.state(sum), self.stat(x));
        self.launch(&self.kernels.sum_stat, Shape::blocks(1), args![sum, at, x.len() as i32]);
    }

    fn keep_sums(&mut self, kept: State, table: &dyn ParamTable, sums: Sums) {
        let mut to = self.state(kept);
        for (from, len) in self.shard_sums(table, sums) {
            self.copy_bytes(to, from, 4 * len);
            to += 4 * len as u64;
        }
    }

    fn add_sums(&mut self, table: &dyn ParamTable, sums: Sums, kept: State) {
        let mut from = self.state(kept);
        for (to, len) in self.shard_sums(table, sums) {
            self.sum_parts(to, from, len, 1, 0);
            from += 4 * len as u64;
        }
    }

    fn weight_norm_backward(&mut self, p: Prototypes, g: Weight, train_gain: bool, n: Rows) {
        let (dv, dg) = (self.grad(p.v), if train_gain { self.grad(g) } else { 0 });
        let (v, scale) = (self.weight(p.v), self.stat(p.scale));
        let arguments = args![dv, dg, v, scale, n.rows as i32, n.cols as i32];
        self.launch(&self.kernels.weight_norm_backward, Shape::warps(n.rows), arguments);
    }

    fn clip(&mut self, monitor: State, table: &dyn ParamTable, hyper: State) {
        let Some(c) = self.chunks(table) else { return };
        let (monitor, hyper, grads) = (self.state(monitor), self.state(hyper), self.all_grads().0);
        let k = self.kernels;
        self.launch(&k.clip_squares, Shape::blocks(c.count), args![c.squares, c.chunks, grads]);
        let arguments = args![c.factors, c.tensor_squares, c.squares, c.first, hyper];
        self.launch(&k.clip_factors, Shape::blocks(c.tensors), arguments);
        self.launch(&k.clip_norm, Shape::blocks(1), args![monitor, c.tensor_squares, c.tensors as i32]);
        self.launch(&k.clip_apply, Shape::blocks(c.count), args![grads, c.chunks, c.factors]);
    }

    fn commit_center(&mut self, center: State, monitor: State, sum: State, teacher: Prototypes, hyper: State, n: Rows) {
        let (at, monitor, sum, hyper) = (self.state(center), self.state(monitor), self.state(sum), self.state(hyper));
        let (v, scale) = (self.weight(teacher.v), self.stat(teacher.scale));
        let arguments = args![at, sum, v, scale, monitor, hyper, n.rows as i32, n.cols as i32];
        self.launch(&self.kernels.commit_center, Shape::warps(n.rows), arguments);
        self.launch(&self.kernels.center_norm, Shape::blocks(1), args![monitor, at, center.len() as i32]);
    }

    fn optimize(&mut self, rule: Optimizer, table: &dyn ParamTable, monitor: State, hyper: State) {
        let Some(c) = self.chunks(table) else { return };
        let (monitor, hyper, grads) = (self.state(monitor), self.state(hyper), self.all_grads().0);
        let ([weights, shadow], slots) = (self.networks(0), self.slots(rule, table.len()));
        let (k, blocks) = (self.kernels, Shape::blocks(c.count));
        match (rule, slots) {
            (Optimizer::AdamW(_), [first, second]) => {
                let arguments = args![weights, shadow, first, second, grads, c.chunks, monitor, hyper];
                self.launch(&k.adamw, blocks, arguments);
            }
            (Optimizer::Sgd(_), [buffer, _]) => {
                self.launch(&k.sgd, blocks, args![weights, shadow, buffer, grads, c.chunks, monitor, hyper]);
            }
            (Optimizer::Lars(_), [buffer, _]) => {
                self.launch(&k.lars_squares, blocks, args![c.squares, weights, grads, c.chunks, monitor, hyper]);
                let arguments = args![c.factors, c.squares, c.first, c.chunks, monitor, hyper];
                self.launch(&k.lars_factors, Shape::blocks(c.tensors), arguments);
                let arguments = args![weights, shadow, buffer, grads, c.factors, c.chunks, monitor, hyper];
                self.launch(&k.lars, blocks, arguments);
            }
        }
    }

    fn copy_running(&mut self, y: State, x: State) {
        let (to, from) = (self.state(y), self.state(x));
        self.copy_bytes(to, from, 4 * x.len());
    }

    fn commit_running(&mut self, running: State, moved: State, monitor: State) {
        let arguments = args![self.state(running), self.state(moved), self.state(monitor), 0u64, moved.len() as i32];
        self.launch(&self.kernels.commit_running, Shape::flat(moved.len()), arguments);
    }

    fn follow_running(&mut self, teacher: State, student: State, monitor: State, hyper: State) {
        let (to, from, monitor, hyper) =
            (self.state(teacher), self.state(student), self.state(monitor), self.state(hyper));
        let arguments = args![to, from, monitor, hyper, student.len() as i32];
        self.launch(&self.kernels.commit_running, Shape::flat(student.len()), arguments);
    }

    fn ema(&mut self, monitor: State, table: &dyn ParamTable, hyper: State) {
        let len = table.teacher_len();
        let ([student, _], [teacher, weights_bf16]) = (self.networks(0), self.networks(table.len()));
        let (monitor, hyper) = (self.state(monitor), self.state(hyper));
        self.launch(
            &self.kernels.ema,
            Shape::flat(len),
            args![teacher, weights_bf16, student, monitor, hyper, len as i64],
        );
    }
}
