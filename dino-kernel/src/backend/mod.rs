//! The operations (ops): all that the model calls, and all that a backend implements.
//!
//! Arguments are handles into flat pools: what is written comes first, then what is read, then the dimensions. Operands that always
//! go together are one argument ([`Affine`], [`NormStats`], [`TargetRows`] and so on).
//! Activation gradients are set (`=`), parameter gradients accumulate (`+=`); where an activation gradient accumulates, its
//! name ends in `_acc`. A gradient is stored at its parameter's offset in the pool of gradients, so a backward op takes the
//! parameter itself. Every number that changes from step to step is read from a [`State`] span (see [`crate::scalars::hyper`]), so
//! that a step has fixed addresses and can be captured and replayed. An op cannot fail: the plan has checked every shape. An error of
//! a device is kept, and returned when the caller synchronizes.
//!
//! A fused op is a default method that spells out its parts; a backend overrides it where it can do better.

mod args;
mod list;
pub mod reference;
pub mod wrap;

use crate::crops::Ragged;
pub use crate::dims::*;
use crate::mem::{Act, Pool, Stat, State, Weight};
use crate::optim::Optimizer;
use crate::params::ParamTable;
pub use args::*;
pub use list::{Access, Accesses, Op, Use};

/// What the processes that share a batch exchange, and the lanes of a process.
///
/// Shards that exchange in the middle of a step go through it side by side, op by op: those of one process are its lanes
/// ([`wrap::Lanes`]). Each has gradients, activations, stats and state of its own; weights and the optimizer's state are common. What
/// reads or writes them outside of a step means the first lane. The defaults are those of a process alone with one lane.
pub trait Collective {
    /// The ops after this one work on this lane.
    fn enter(&mut self, lane: Lane) {
        assert!(lane.0 == 0, "this backend has one lane");
    }
    /// x of every lane = that of the first.
    fn spread(&mut self, _x: State) {}
    /// all = what every lane of every process has at `own`, in their order. Not called where there is one, which has it there. Where it
    /// cannot be brought, `all` becomes NaN, and with it the loss, as below.
    fn all_gather(&mut self, _all: Act, _own: Act) {}
    /// Each becomes its sum over all lanes and processes, added by halves ([`crate::group::add_by_halves`]), the same bits in each of
    /// them: the gradients (the prototypes' still the raw ones, which are linear in the images) and the sums. Where the sum cannot be
    /// formed, the loss becomes NaN, so that the step changes nothing, and the error surfaces when the caller synchronizes.
    fn all_reduce(&mut self, _table: &dyn ParamTable, _sums: Sums) {}
}

/// Ops of a forward pass. Enough for inference, with the weights in read-only memory.
pub trait Forward {
    /// y (patches, channels * patch * patch) = the images' patches, a row each (im2col), channel-major (channel, row, column). Surplus
    /// pixels are dropped.
    fn patchify(&mut self, y: Act, x: Act, n: Patches);
    /// y = x w^T + b.
    fn linear(&mut self, y: Act, x: Act, w: Affine, n: Mat);
    /// y = x Phi(x), Phi the normal distribution function (exact GELU).
    fn gelu(&mut self, y: Act, x: Act);
    /// pre = x w^T + b; y = gelu(pre).
    fn linear_gelu(&mut self, y: Act, pre: Act, x: Act, w: Affine, n: Mat) {
        self.linear(pre, x, w, n);
        self.gelu(y, pre);
    }
    /// y = x.
    fn copy(&mut self, y: Act, x: Act);
    /// y = max(x, 0); NaN stays NaN.
    fn relu(&mut self, y: Act, x: Act);
    /// y = (x - mean) * rstd * w + b over the last axis, biased variance.
    fn layernorm(&mut self, y: Act, stats: NormStats, x: Act, w: Affine, n: LayerNorm);
    /// y = x + branch.
    fn add(&mut self, y: Act, x: Act, branch: Act);
    /// `y = x + scale[crop] * branch`: the residual under stochastic depth.
    fn add_scaled(&mut self, y: Act, x: Act, branch: Act, scale: State, n: Ragged, cols: usize);
    /// sum = x + branch; y = layernorm(sum).
    fn add_layernorm(&mut self, y: Act, sum: Act, stats: NormStats, x: Act, branch: Act, w: Affine, n: LayerNorm) {
        self.add(sum, x, branch);
        self.layernorm(y, stats, sum, w, n);
    }
    /// y (output pixels, out) = the convolution of x (pixels, inp) with w (out, inp, kernel, kernel), pixels outside being 0.
    fn convolve(&mut self, y: Act, x: Act, w: Weight, n: Conv);
    /// Mean and 1 / standard deviation (groups, C) of the columns of x (rows, C) over every group of rows, biased variance; the running
    /// mean and unbiased variance move a tenth of the way, once for every group. Groups that several shards have a part of
    /// ([`BatchNorm::shards`]) have the statistics of all parts, the same bits in each. The running ones move as those of a process alone
    /// do, in the order of the batch, by the time that [`Collective::all_reduce`] is done.
    fn batch_statistics(&mut self, stats: NormStats, running: Running, x: Act, n: BatchNorm);
    /// The same numbers (C) from the running ones: what evaluation normalizes by.
    fn running_statistics(&mut self, stats: NormStats, running: Running, eps: f64);
    /// y = (x - mean) * rstd * w + b + residual, by column, with each group's statistics; its ReLU if `n` has one. The residual may be
    /// empty.
    fn batch_normalize(&mut self, y: Act, x: Act, residual: Act, stats: NormStats, w: Affine, n: BatchNorm);
    /// y (output pixels, C) = the largest of x (pixels, C) over each window.
    fn max_pool(&mut self, y: Act, x: Act, n: MaxPool);
    /// y (crops, C) = the mean of x (rows, C) over each crop's rows.
    fn average_pool(&mut self, y: Act, x: Act, n: Ragged, cols: usize);
    /// y (to, C) = the patch part of the table (from, C), resampled by the small matrices `rows (to[0], from[0])`
    /// and `cols (to[1], from[1])`.
    fn resize_positions(&mut self, y: Act, table: Weight, rows: State, cols: State, n: Grid);
    /// y = [class + its position, patches + positions] for one group.
    fn embed(&mut self, y: Act, patches: Act, class: Weight, class_position: Weight, positions: Act, n: Embed);
    /// y = softmax(q k^T / sqrt(head_dim)) v for every crop and head; lse (rows, heads).
    fn attention(&mut self, out: Attention, qkv: Act, n: Heads);
    /// The same for one query row a crop: y (crops, C), lse (crops, heads).
    fn attention_class(&mut self, out: Attention, x: ClassQkv, n: Heads);
    /// y = attention probabilities of the first `queries` rows of every crop: per crop (heads, queries, tokens), packed.
    fn attention_rows(&mut self, y: Act, lse: Stat, qkv: Act, queries: usize, n: Heads);
    /// y (crops, C) = the class rows of x.
    fn gather_class(&mut self, y: Act, x: Act, n: Ragged, cols: usize);
    /// y = x / norm, norm = max(|x|, 1e-12) by row.
    fn l2_normalize(&mut self, y: Act, norm: Stat, x: Act, n: Rows);
    /// `scale[k] = g[k] / |v[k]|`; without gains 1: the prototypes are v as it is.
    fn prototype_scale(&mut self, scale: Stat, v: Weight, g: Weight, n: Rows);
    /// y (rows, K) = z v^T * scale. For tests and small heads: training streams the logits instead.
    fn logits(&mut self, y: Act, z: Act, p: Prototypes, n: Mat);
}

/// Ops of a backward pass.
pub trait Backward: Forward {
    /// dx = dy w; dw += dy^T x; db += column sums of dy.
    fn linear_backward(&mut self, dx: Act, dy: Act, x: Act, w: Affine, n: Mat);
    /// dw += dy^T x; db += column sums of dy. For the patch embedding, whose input is data.
    fn linear_backward_params(&mut self, dy: Act, x: Act, w: Affine, n: Mat);
    /// dx = dy (Phi(x) + x phi(x)).
    fn gelu_backward(&mut self, dx: Act, dy: Act, x: Act);
    /// dx = dy where x > 0, else 0.
    fn relu_backward(&mut self, dx: Act, dy: Act, x: Act);
    /// dx_acc += layer norm's gradient: its input is a residual stream.
    fn layernorm_backward(&mut self, dx_acc: Act, dy: Act, x: Act, stats: NormStats, w: Affine, n: Rows);
    /// `y = scale[crop] * x`: the gradient of a branch under stochastic depth.
    fn scale_crops(&mut self, y: Act, x: Act, scale: State, n: Ragged, cols: usize);
    /// dqkv from dy, with the probabilities computed again from lse.
    fn attention_backward(&mut self, dqkv: Act, dy: Act, out: Attention, qkv: Act, n: Heads);
    /// dx from dy, of [`Forward::attention_class`].
    fn attention_class_backward(&mut self, dx: ClassQkv, dy: Act, out: Attention, x: ClassQkv, n: Heads);
    /// dpatches = the rows of dy that are patches; dpositions = their sum over crops; the class token and its position accumulate.
    fn embed_backward(
        &mut self,
        dpatches: Act,
        dpositions: Act,
        dy: Act,
        class: Weight,
        class_position: Weight,
        n: Embed,
    );
    /// The table accumulates the transpose of [`Forward::resize_positions`].
    fn resize_positions_backward(&mut self, dy: Act, table: Weight, rows: State, cols: State, n: Grid);
    /// dx = the transpose of [`Forward::convolve`] of dy; dw += its gradient.
    fn convolve_backward(&mut self, dx: Act, dy: Act, x: Act, w: Weight, n: Conv);
    /// The same where the input is a residual stream, whose gradient has other parts.
    fn convolve_backward_acc(&mut self, dx_acc: Act, dy: Act, x: Act, w: Weight, n: Conv);
    /// dw alone. For the first convolution, whose input is data.
    fn convolve_backward_params(&mut self, dy: Act, x: Act, w: Weight, n: Conv);
    /// dx from dy, of [`Forward::batch_statistics`] and [`Forward::batch_normalize`] together; dy leaves as the gradient in front of the
    /// ReLU, which is the residual's too (without one it stays); gain and bias accumulate over this shard's rows. `y` is read for the
    /// ReLU alone.
    fn batch_normalize_backward(&mut self, dx: Act, dy: Act, x: Act, y: Act, stats: NormStats, w: Affine, n: BatchNorm);
    /// dx = dy where x was the first largest of a window, row-major, summed over windows; elsewhere 0.
    fn max_pool_backward(&mut self, dx: Act, dy: Act, x: Act, n: MaxPool);
    /// dx (rows, C) = dy (crops, C) / rows of the crop.
    fn average_pool_backward(&mut self, dx: Act, dy: Act, n: Ragged, cols: usize);
    /// x = 0, where a gradient is about to accumulate.
    fn clear(&mut self, x: Act);
    /// dx_acc += dy in the class rows.
    fn scatter_class_acc(&mut self, dx_acc: Act, dy: Act, n: Ragged, cols: usize);
    /// dx = (dy - y (y . dy)) / norm; where |x| < 1e-12, dy / norm.
    fn l2_normalize_backward(&mut self, dx: Act, dy: Act, y: Act, norm: Stat, n: Rows);
    /// In the backward pass: the gradients of the parameters from element `from` of the table on are complete, as far as this pass
    /// goes. In the last pass of a step a device may begin to sum them over the processes, while it computes the others.
    fn gradients_complete(&mut self, _from: usize) {}
}

/// Ops of an optimization step.
pub trait Update: Backward + Collective {
    /// All gradients = 0.
    fn zero_grads(&mut self);
    /// x = 0.
    fn zero(&mut self, x: State);
    /// Per teacher row: log-sum-exp over prototypes of x / teacher_temp, x = logit - offset, kept as two numbers, `targets.lse`
    /// (rows, 2) = (max x, ln sum exp((x - max) / teacher_temp)); and the entropy of that softmax. Streams over K.
    fn teacher_lse(&mut self, entropy: Stat, targets: TargetRows, hyper: State, n: LossDims);
    /// The cross-entropy of student rows with their targets. Per student row: loss = sum over its teachers of -sum_k q_k log p_k (not
    /// yet divided); dz = the gradient of the mean; the raw gradient of the matmul dL/d(normalized prototype) accumulates at
    /// `student.prototypes.v` (see [`Update::weight_norm_backward`]). The targets are formed again from `targets.lse`. Streams over K.
    fn dino_loss(&mut self, out: LossSpans, student: StudentRows, targets: TargetRows, hyper: State, n: LossDims);
    /// The mean squared error of student rows with their targets in the place of the cross-entropy ([`Update::dino_loss`]): per student
    /// row, loss = sum over its teachers of sum_k (p_k - q_k)^2 (not yet divided). See [`crate::ops::mse`].
    fn mse_loss(&mut self, out: LossSpans, student: StudentRows, targets: TargetRows, hyper: State, n: LossDims);
    /// Per prototype: offset (K) = teacher_temp times the log-sum-exp over the teacher rows z of logit / teacher_temp - r, r the row's
    /// log-sum-exp in `lse` (rows, 2), 0 where `lse` is empty. `n` counts all images; `block` rows, a micro-batch's, are multiplied at
    /// once. See [`crate::ops::column_lse`].
    fn column_lse(&mut self, offset: State, z: Act, lse: Stat, p: Prototypes, hyper: State, n: LossDims, block: usize);
    /// sum (cols) += column sums of x: the teacher's l2-normalized bottleneck rows, from which the mean logits follow by linearity.
    fn sum_rows(&mut self, sum: State, x: Act, n: Rows);
    /// `sum[at] +=` sum of x, for the monitors.
    fn sum_stat(&mut self, sum: State, x: Stat);
    /// kept = the gradients, then the sums of the teacher's rows, then loss and entropy: what was summed over a shard.
    fn keep_sums(&mut self, kept: State, table: &dyn ParamTable, sums: Sums);
    /// Gradients and sums += what was kept.
    fn add_sums(&mut self, table: &dyn ParamTable, sums: Sums, kept: State);
    /// Once per step, before the clip: replaces the raw gradient dW at `p.v` by dv = scale (dW - v^ (v^ . dW)), and, if the gain is
    /// trained, dg += v^ . dW (with v^ = v / |v|).
    fn weight_norm_backward(&mut self, p: Prototypes, g: Weight, train_gain: bool, n: Rows);
    /// Per tensor g *= min(1, clip / (|g| + 1e-6)); monitor gets the global norm before clipping and whether the step is
    /// finite: loss and gradients are, and no step before has set HALTED. If they are not, HALTED is set.
    fn clip(&mut self, monitor: State, table: &dyn ParamTable, hyper: State);
    /// center += rate (mean teacher logit - center), the mean being (sum / rows) v^T * scale. Nothing if the step is not finite.
    fn commit_center(&mut self, center: State, monitor: State, sum: State, teacher: Prototypes, hyper: State, n: Rows);
    /// Every tensor that is neither frozen nor withheld moves by the rule, with its group's numbers. Nothing if the step is not finite.
    fn optimize(&mut self, rule: Optimizer, table: &dyn ParamTable, monitor: State, hyper: State);
    /// y = x. What the passes of a step move from is copied, and moves for good in [`Update::commit_running`].
    fn copy_running(&mut self, y: State, x: State);
    /// running = moved, what the passes of a step have made of it. Nothing if the step is not finite.
    fn commit_running(&mut self, running: State, moved: State, monitor: State);
    /// The teacher's running statistics become the student's in a step whose rate is 1, in which [`Update::ema`] copies; else they stay
    /// the teacher's own. Nothing if the step is not finite.
    fn follow_running(&mut self, teacher: State, student: State, monitor: State, hyper: State);
    /// teacher += rate (student - teacher), every parameter, as [`crate::optim::teacher::blend`] does it. Nothing if the step is not
    /// finite.
    fn ema(&mut self, monitor: State, table: &dyn ParamTable, hyper: State);
}

/// Reading and writing any pool, however the backend stores it. For wrappers and tests, not for steps.
pub trait Memory {
    /// Elements `at ..` of the pool to `out`, as many as it has.
    fn read(&mut self, pool: Pool, at: usize, out: &mut [f64]);
    /// Sets elements `at ..` of the pool to `values`.
    fn write(&mut self, pool: Pool, at: usize, values: &[f64]);
    /// Elements of the pool.
    #[allow(clippy::len_without_is_empty)]
    fn len(&mut self, pool: Pool) -> usize;
}

impl<O: Memory> Memory for &mut O {
    fn read(&mut self, pool: Pool, at: usize, out: &mut [f64]) {
        (**self).read(pool, at, out);
    }

    fn write(&mut self, pool: Pool, at: usize, values: &[f64]) {
        (**self).write(pool, at, values);
    }

    fn len(&mut self, pool: Pool) -> usize {
        (**self).len(pool)
    }
}
