//! One optimization step, reading like the paper's algorithm 1, and the numbers that change from step to step.
//!
//! A step is: [`begin`], then [`accumulate`], then [`reduce`] and [`commit`]. To accumulate is per micro-batch [`micro_batch`] (forward,
//! backward, accumulate) and [`end_part`]. Where the targets depend on the full batch ([`Objective::whole_batch`]), every micro-batch comes twice:
//! first all of them through [`teacher_rows`] and [`keep_rows`], after which [`offsets`] forms what the targets need of them, then each
//! between [`take_rows`] and [`end_part`] as above. A device that captures the parts of a step calls them one by one.
//!
//! Shards that exchange in the middle of a step go through it side by side: `begin` and what is accumulated are those of all lanes
//! ([`crate::backend::Collective`]), `commit` is that of the first, which has the sums of all by then.
//!
//! Given the center, or the offsets, the loss is separable per image and per crop, so any split of a batch, and of its crops, gives the
//! same gradients, teacher sum and center. In a process alone with one shard, `end_part` and `reduce` do nothing. Nothing in a step
//! reads the device or depends on anything but the pools.

use crate::backend::wrap::Lanes;
use crate::backend::{Forward, LossSpans, StudentRows, Update};
use crate::mem::{Span, State};
use crate::objective::Objective;
use crate::optim::{At, Optimizer};
use crate::params::ParamGroup;
use crate::plan::{Plan, StudentPass};
use crate::scalars::{BLOCK, NUMBERS, WITHHELD, hyper, monitor};

/// What the schedules give for a step, and the constants of the recipe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay, of groups that decay.
    pub weight_decay: f64,
    /// Teacher momentum.
    pub momentum: f64,
    /// Temperature of the targets.
    pub teacher_temp: f64,
    /// Temperature of the student's distributions.
    pub student_temp: f64,
    /// 0 = off.
    pub clip_grad: f64,
    /// Optimizer steps including this one.
    pub step: u64,
    /// The same, counting only steps in which the last layer was not frozen.
    pub step_last: u64,
    /// Whether the head's last layer is withheld from the optimizer in this step.
    pub freeze_last: bool,
}

impl Hyper {
    /// The derived numbers of a step of a plan.
    pub fn numbers(&self, p: &Plan) -> [f64; hyper::LEN] {
        self.derive(p.config.optimizer, p.config.objective, p.config.batch, p.views(), p.teachers())
    }

    /// The derived numbers for a batch of `images` with `views` crops each, `teachers` of them global.
    pub fn derive(
        &self,
        rule: Optimizer,
        objective: Objective,
        images: usize,
        views: usize,
        teachers: usize,
    ) -> [f64; hyper::LEN] {
        let mut h = [0.0; hyper::LEN];
        h[hyper::TEACHER_RATE] = 1.0 - self.momentum;
        h[hyper::CENTER_RATE] = objective.center_rate();
        h[hyper::INV_TEACHER_ROWS] = 1.0 / (images as f64 * teachers as f64);
        h[hyper::INV_STUDENT_TEMP] = 1.0 / self.student_temp;
        h[hyper::INV_TEACHER_TEMP] = 1.0 / self.teacher_temp;
        h[hyper::LOSS_SCALE] = 1.0 / (images as f64 * teachers as f64 * (views - 1) as f64);
        h[hyper::CLIP] = self.clip_grad;
        for group in ParamGroup::ALL {
            let last = group.is_last_layer();
            let step = if last { self.step_last } else { self.step };
            let block = &mut h[hyper::GROUPS + group as usize * BLOCK..][..BLOCK];
            let at = At { lr: self.lr, weight_decay: self.weight_decay, step };
            block[..NUMBERS].copy_from_slice(&rule.numbers(at, group));
            block[WITHHELD] = if last && self.freeze_last { 1.0 } else { 0.0 };
        }
        h
    }
}

/// Everything of a step between its beginning and its reduction. `put` brings the data of a micro-batch (from 0) to where the plan has them, each time that
/// it comes: pixels and stochastic-depth scales. Of lanes it is the micro-batch of the one that is entered.
pub fn accumulate<O: Update>(o: &mut O, p: &Plan, put: impl FnMut(&mut O, usize)) {
    accumulate_each(o, p, put, |_, _, _| ());
}

/// The same; `each` is called after a teacher's pass with the number of the micro-batch and none, and after every one of the student's
/// with that number and its own. With lanes the micro-batch is the first one's.
pub fn accumulate_each<O: Update>(
    o: &mut O,
    p: &Plan,
    mut put: impl FnMut(&mut O, usize),
    mut each: impl FnMut(&mut O, usize, Option<usize>),
) {
    let parts = p.parts() / p.pools.lanes;
    let o = &mut Lanes::new(o, p.pools.lanes);
    if p.config.objective.whole_batch() {
        for part in 0..parts {
            o.each(|o, lane| put(o, lane * parts + part));
            teacher_rows(o, p);
            keep_rows(o, p, part);
            each(o.inner, part, None);
        }
        offsets(o, p);
    }
    for part in 0..parts {
        o.each(|o, lane| put(o, lane * parts + part));
        take_rows(o, p, part);
        micro_batch_each(o, p, |o, pass| each(o.inner, part, pass));
        end_part(o.inner, p, part);
    }
}

/// Once per step: what the weights alone determine.
pub fn begin<O: Update>(o: &mut O, p: &Plan) {
    let n = p.prototype_rows();
    if p.pools.lanes > 1 {
        o.spread(State(Span { at: 0, len: p.pools.state }));
    }
    let o = &mut Lanes::new(o, p.pools.lanes);
    o.zero_grads();
    o.zero(p.monitor.part(0, monitor::HALTED));
    p.config.objective.begin(o, &p.targets);
    for net in [&p.student, &p.teacher] {
        net.backbone.begin(o);
        if net.running.len() > 0 {
            o.copy_running(net.moved, net.running);
        }
    }
    o.prototype_scale(p.student.scale, p.student.head_weights.v, p.student.head_weights.g, n);
    o.prototype_scale(p.teacher.scale, p.teacher.head_weights.v, p.teacher.head_weights.g, n);
}

/// With targets that depend on the full batch: the teacher's rows of the micro-batch whose pixels are at `p.pixels`.
pub fn teacher_rows<O: Update>(o: &mut O, p: &Plan) {
    let (backbone, head) = (&p.teacher_pass, &p.teacher_head);
    p.student.backbone.prepare(o, p.pixels);
    backbone.forward(o);
    p.table.head.teacher().forward(o, &p.teacher.head_weights, head, backbone.y());
}

/// Then: they are kept as those of micro-batch `part` (from 0).
pub fn keep_rows<O: Update>(o: &mut O, p: &Plan, part: usize) {
    o.copy(p.targets.kept(part), p.targets.rows.z);
}

/// With those of all micro-batches kept: the offsets of the targets, in every process those of the full batch.
pub fn offsets<O: Update>(o: &mut O, p: &Plan) {
    if p.targets.batch.own != p.targets.batch.z {
        o.all_gather(p.targets.batch.z, p.targets.batch.own);
    }
    p.config.objective.offsets(o, &p.targets, p.hyper, p.loss_dims());
}

/// Before [`micro_batch`] number `part`: where the teacher's rows were kept, they are put back, and its pass is not made again.
pub fn take_rows<O: Update>(o: &mut O, p: &Plan, part: usize) {
    if p.config.objective.whole_batch() {
        o.copy(p.targets.rows.z, p.targets.kept(part));
    }
}

/// Forward and backward of the micro-batch whose pixels are at `p.pixels`; gradients and the teacher's sum accumulate.
pub fn micro_batch<O: Update>(o: &mut O, p: &Plan) {
    micro_batch_each(o, p, |_, _| ());
}

/// The same; `each` is called after the teacher's pass with none, and after every one of the student's with its number.
pub fn micro_batch_each<O: Update>(o: &mut O, p: &Plan, mut each: impl FnMut(&mut O, Option<usize>)) {
    teacher(o, p);
    each(o, None);
    for (i, pass) in p.passes().enumerate() {
        student(o, p, &pass);
        each(o, Some(i));
    }
    o.sum_stat(p.monitor.part(monitor::LOSS, 1), p.loss);
}

/// The teacher's pass over the global crops, which come first, unless its rows are there; and the targets. The pass saves nothing but
/// its l2-normalized bottleneck rows.
fn teacher<O: Update>(o: &mut O, p: &Plan) {
    if p.config.objective.whole_batch() {
        p.student.backbone.prepare(o, p.pixels);
    } else {
        teacher_rows(o, p);
    }
    p.config.objective.targets(o, &p.targets, p.monitor, p.hyper, p.loss_dims());
}

/// The student's forward and backward pass over some views or all.
fn student<O: Update>(o: &mut O, p: &Plan, pass: &StudentPass) {
    let (head, s) = (&p.table.head, &p.student);
    let (backbone, head_acts, head_grads) = (&pass.backbone, &pass.head, &pass.head_grads);
    backbone.forward(o);
    head.forward(o, &s.head_weights, head_acts, backbone.y());
    let rows = StudentRows { z: head_acts.z, prototypes: head.prototypes(&s.head_weights, s.scale) };
    let out = LossSpans { loss: pass.loss, lse: pass.lse, dz: head_grads.dz };
    p.config.objective.loss(o, out, rows, &p.targets, p.hyper, pass.dims);
    if let Some(from) = head.complete_with_loss(&s.head_weights) {
        o.gradients_complete(from);
    }
    head.backward(o, &s.head_weights, head_acts, head_grads, backbone.dy(), backbone.y());
    o.gradients_complete(p.table.backbone_len());
    backbone.backward(o);
}

/// After micro-batch `part` (from 0) of this process. If it ends a shard, the shard's sums are added to those of the shards before it, by
/// halves, and the next shard's start from zero; see [`crate::plan::Sharding`]. Lanes are added by [`reduce`].
pub fn end_part<O: Update>(o: &mut O, p: &Plan, part: usize) {
    let (own, ended) = (p.sharding.own(), (part + 1) / p.shard_parts());
    if own == 1 || p.pools.lanes > 1 || !(part + 1).is_multiple_of(p.shard_parts()) {
        return;
    }
    // As a binary number counts up: of the shards before this one, one sum is kept for every bit that is set, the longest first.
    let before = ended - 1;
    let (mut kept, last) = (before.count_ones(), ended == own);
    let carried = if last { kept } else { before.trailing_ones() };
    for _ in 0..carried {
        kept -= 1;
        o.add_sums(&p.table, p.sums(), p.kept_sums(kept as usize));
    }
    if !last {
        o.keep_sums(p.kept_sums(kept as usize), &p.table, p.sums());
        o.zero_grads();
        p.config.objective.begin(o, &p.targets);
        o.zero(p.sums().losses);
    }
}

/// Once per step, after the last micro-batch: everything that is linear in the images becomes its sum over all lanes and processes.
pub fn reduce<O: Update>(o: &mut O, p: &Plan) {
    o.all_reduce(&p.table, p.sums());
}

/// The first of a commit: the raw gradient of weight-normalized prototypes becomes that of their directions and gains. That of others is
/// theirs already.
pub fn weight_norm_backward<O: Update>(o: &mut O, p: &Plan) {
    let (head, s) = (&p.table.head, &p.student);
    if head.weight_norm {
        let prototypes = head.prototypes(&s.head_weights, s.scale);
        o.weight_norm_backward(prototypes, s.head_weights.g, head.train_gain, p.prototype_rows());
    }
}

/// Once per step: clip, objective, optimizer, teacher. Every op is a no-op if anything was not finite, in this step or before.
pub fn commit<O: Update>(o: &mut O, p: &Plan) {
    let n = p.prototype_rows();
    weight_norm_backward(o, p);
    o.clip(p.monitor, &p.table, p.hyper);
    // The teacher's logits are those of this step's weights, so the center comes before the average moves them.
    p.config.objective.commit(o, &p.targets, p.monitor, p.hyper, n);
    for net in [&p.student, &p.teacher] {
        if net.running.len() > 0 {
            o.commit_running(net.running, net.moved, p.monitor);
        }
    }
    let followed = p.student.running.part(0, p.teacher.running.len());
    if followed.len() > 0 {
        o.follow_running(p.teacher.running, followed, p.monitor, p.hyper);
    }
    let rule = p.config.teacher;
    if rule.before_update() {
        o.ema(p.monitor, &p.table, p.hyper);
    }
    o.optimize(p.config.optimizer, &p.table, p.monitor, p.hyper);
    if !rule.before_update() {
        o.ema(p.monitor, &p.table, p.hyper);
    }
}
