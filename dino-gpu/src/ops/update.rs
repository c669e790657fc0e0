//! Ops of an optimization step; the loss's own are in `loss.rs`.

use crate::args;
use crate::gpu::Gpu;
use crate::kernels::Shape;
use dino_host::error::Error;
use dino_kernel::backend::*;
use dino_kernel::mem::{Act, Stat, State, Weight};
use dino_kernel::optim::Optimizer;
use dino_kernel::params::ParamTable;

/// Alone, so far.
impl Collective for Gpu {}

impl Gpu {
    /// Sums of shards are kept and added by no kernel yet.
    fn one_shard(&mut self) {
        self.fail(Error::new("a GPU sums a batch as one shard only"));
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

    fn keep_sums(&mut self, _kept: State, _table: &dyn ParamTable, _sums: Sums) {
        self.one_shard();
    }

    fn add_sums(&mut self, _table: &dyn ParamTable, _sums: Sums, _kept: State) {
        self.one_shard();
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

    fn copy_running(&mut self, _y: State, _x: State) {
        self.no_kernel("copy_running");
    }

    fn commit_running(&mut self, _running: State, _moved: State, _monitor: State) {
        self.no_kernel("commit_running");
    }

    fn follow_running(&mut self, _teacher: State, _student: State, _monitor: State, _hyper: State) {
        self.no_kernel("follow_running");
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
