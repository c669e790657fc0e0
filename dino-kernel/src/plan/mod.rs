//! Where everything is stored: the memory plan of a training step and, in `plan/features.rs`, of a forward pass. Making a plan can
//! fail, ops cannot.

mod check;
mod features;
mod shards;
mod spans;

use crate::crops::{Crops, Group};
use crate::dims::{LossDims, Rows};
use crate::mem::{Act, Cursor, Span, Stat, State, max};
use crate::model::head::{HeadActs, HeadGrads, HeadWeights};
use crate::model::vit::drop_path::DropPath;
use crate::model::vit::{Output, PositionActs, Save, VitActs, VitGrads, VitWeights};
use crate::model::{Head, Table, Vit};
use crate::objective::{Objective, TargetSpans};
use crate::optim::{Optimizer, TeacherRule};
use crate::real::Real;
use crate::scalars::{hyper, monitor};
pub use check::PlanError;
use check::check;
pub use features::{BlocksPlan, FeaturePlan};
pub use shards::Sharding;

/// What a training plan is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    pub backbone: Vit,
    pub head: Head,
    pub objective: Objective,
    pub optimizer: Optimizer,
    pub teacher: TeacherRule,
    /// Crops of *one* image; the first group holds the teacher's (global) views.
    pub views: Crops,
    /// Images of an optimization step.
    pub batch: usize,
    /// Images that go through the model at once; divides `batch`.
    pub micro_batch: usize,
    /// Whether to reserve stochastic-depth scales.
    pub drop_path: bool,
    /// Whether the backward pass computes norms and GELU again instead of finding them kept ([`Save::Least`]).
    pub recompute: bool,
    /// Whether the student's crops go through it one after another, as many views at once as have no more tokens than the largest
    /// one ([`Plan::passes`]), instead of all together: activations of one global crop an image. The teacher's targets are then
    /// formed again for every pass.
    pub stream_crops: bool,
}

/// Elements of every pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pools {
    /// Student and teacher.
    pub weights: usize,
    pub grads: usize,
    /// The optimizer's arrays of state, each as large as the gradients.
    pub slots: usize,
    pub acts: usize,
    pub stats: usize,
    pub state: usize,
    /// What the host sends for a micro-batch: pixels and stochastic-depth scales. It is part of the pools above; a device that copies
    /// while it works keeps a second buffer of this size.
    pub input: usize,
    /// The loss over the most rows at once: what a backend's own scratch for it depends on.
    pub loss: LossDims,
    /// Tokens of the longest crop, and numbers a head: what a backend's own scratch for attention depends on.
    pub longest: usize,
    pub head_dim: usize,
    /// Columns of the widest operand of a linear layer, the prototypes aside: what a backend's own scratch for matmuls depends on.
    pub widest: usize,
}

impl Pools {
    /// Elements of all pools.
    pub const fn total(&self) -> usize {
        self.weights + self.grads + self.slots + self.acts + self.stats + self.state
    }
}

/// One network's parameters, and what a step makes of them alone.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    pub weights: VitWeights,
    pub head_weights: HeadWeights,
    pub positions: PositionActs,
    /// g / |v| of every prototype.
    pub scale: Stat,
}

/// The student's forward and backward pass over some views of a micro-batch. Passes run one after another in the same scratch; of
/// `patches`, `loss`, `lse` and the stochastic-depth scales each has its own part.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Which views, and what the loss makes of them: images * views rows.
    pub dims: LossDims,
    /// The crops' patches (patches, patch_len).
    pub patches: Act,
    pub acts: VitActs,
    pub head: HeadActs,
    pub grads: VitGrads,
    pub head_grads: HeadGrads,
    /// Cross-entropy of every row with its targets (rows).
    pub loss: Stat,
    /// (rows, 2), two numbers a row: the largest logit, and ln of the sum of exp((logit - largest) / temperature).
    pub lse: Stat,
}

/// Every handle of a training step.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub config: Config,
    pub sharding: Sharding,
    pub table: Table,
    pub pools: Pools,
    /// The micro-batch's crops, every group (count, channels, height, width), view-major within a group. Later ops write over them.
    pub pixels: Act,
    /// Their patches (im2col), a row each.
    pub patches: Act,
    /// Stochastic-depth scales of a micro-batch, pass by pass (depth, branches, crops); empty without.
    pub drop: State,
    pub student: Network,
    pub teacher: Network,
    /// The teacher's pass over the global crops.
    pub teacher_acts: VitActs,
    pub teacher_head: HeadActs,
    /// Where the scratch that the student's passes share begins.
    scratch: (Cursor, Cursor),
    /// One a row of the student, all passes.
    pub loss: Stat,
    /// As [`Pass::lse`], all passes.
    pub lse: Stat,
    /// The teacher's rows, and what the objective makes of them.
    pub targets: TargetSpans,
    /// Sums of shards that wait for those of the shards after them; empty with one shard ([`Sharding`]).
    pub shard_sums: State,
    pub hyper: State,
    pub monitor: State,
}

/// The same crops of `images` images.
const fn times(views: Crops, images: usize) -> Crops {
    let (mut all, mut i) = (Crops::EMPTY, 0);
    while i < views.len() {
        let g = views.group(i);
        all = all.with(Group { count: g.count * images, height: g.height, width: g.width });
        i += 1;
    }
    all
}

impl Plan {
    /// The plan of a process alone, whose batch is one shard.
    pub const fn new(config: Config) -> Result<Plan, PlanError> {
        Plan::sharded(config, Sharding::SOLO)
    }

    /// The plan of one process of `sharding.ranks`. The only door: after it every shape agrees.
    pub const fn sharded(config: Config, sharding: Sharding) -> Result<Plan, PlanError> {
        if let Err(e) = check(&config) {
            return Err(e);
        }
        if let Err(e) = sharding.check(config.batch / config.micro_batch) {
            return Err(e);
        }
        let Config { backbone: vit, head, views, micro_batch, drop_path, .. } = config;
        let table = Table { backbone: vit, head };
        let crops = times(views, micro_batch);
        let globals = Crops::one(crops.group(0));
        let (rows, rows_teacher) = (crops.count(), globals.count());
        let (mut w, mut a, mut s, mut t) = (Cursor::new(), Cursor::new(), Cursor::new(), Cursor::new());
        let (weights, head_weights) = (vit.weights(&mut w), head.weights(&mut w));

        // What outlives a pass comes first. The pixels, which are not read again once they are patches, the teacher's pass and the
        // student's passes share the rest, for they come one after another.
        let patches = a.act(crops.patches(vit.patch) * vit.patch_len());
        let positions = vit.positions(crops, &mut a, &mut t);
        let positions_teacher = vit.positions(globals, &mut a, &mut t);
        let teacher_head = head.acts(rows_teacher, false, &mut a, &mut s);
        let student = Network { weights, head_weights, positions, scale: s.stat(head.prototypes) };
        let teacher = Network {
            weights: weights.shift(table.len()),
            head_weights: head_weights.shift(table.len()),
            positions: positions_teacher,
            scale: s.stat(head.prototypes),
        };
        let (loss, lse) = (s.stat(rows), s.stat(2 * rows));
        let drop = t.state(if drop_path { vit.depth * 2 * rows } else { 0 });
        let prototypes = head.prototypes(&teacher.head_weights, teacher.scale);
        let n = Rows { rows: head.prototypes, cols: head.bottleneck };
        let targets = TargetSpans::new(teacher_head.z, rows_teacher, prototypes, n, &mut s, &mut t);
        let scratch = (a, s);
        let mut input = a;
        let pixels = input.act(crops.pixels() * vit.channels);
        let teacher_acts =
            vit.acts(globals, positions_teacher, Output::Class, Save::Nothing, State::EMPTY, &mut a, &mut s);

        let Some(kept) = sharding.kept_len(&table) else { return Err(PlanError::TooLarge) };
        let shard_sums = t.state(kept);
        let (hyper, monitor) = (t.state(hyper::LEN), t.state(monitor::LEN));
        let pools = Pools {
            weights: 2 * table.len(),
            grads: table.len(),
            slots: config.optimizer.slots().len() * table.len(),
            acts: max(a.next, input.next),
            stats: s.next,
            state: t.next,
            input: pixels.len() + drop.len(),
            loss: LossDims::NONE,
            longest: crops.tokens(vit.patch).longest(),
            head_dim: vit.dim / vit.heads,
            widest: max(vit.widest(), max(head.inp, max(head.hidden, head.bottleneck))),
        };
        let mut plan = Plan {
            config,
            sharding,
            table,
            pools,
            pixels,
            patches,
            drop,
            student,
            teacher,
            teacher_acts,
            teacher_head,
            scratch,
            loss,
            lse,
            targets,
            shard_sums,
            hyper,
            monitor,
        };
        let mut view = 0;
        while view < plan.views() {
            let (pass, end) = plan.pass(view);
            plan.pools.acts = max(plan.pools.acts, end.0.next);
            plan.pools.stats = max(plan.pools.stats, end.1.next);
            if pass.dims.rows() > plan.pools.loss.rows() {
                plan.pools.loss = pass.dims;
            }
            view += pass.dims.views;
        }
        Ok(plan)
    }

    /// The passes of the student over a micro-batch, together over all views in their order.
    pub fn passes(&self) -> impl Iterator<Item = Pass> + '_ {
        let mut view = 0;
        core::iter::from_fn(move || {
            let pass = (view < self.views()).then(|| self.pass(view).0)?;
            view += pass.dims.views;
            Some(pass)
        })
    }

    /// How many views from `first` on go through the student together.
    const fn views_at_once(&self, first: usize) -> usize {
        let (views, patch) = (&self.config.views, self.table.backbone.patch);
        if !self.config.stream_crops {
            return self.views() - first;
        }
        let most = views.tokens(patch).longest();
        let mut n = 1;
        while first + n < self.views() && views.part(first, n + 1).tokens(patch).rows() <= most {
            n += 1;
        }
        n
    }

    /// The pass that begins with view `first`, and where what it takes of activations and statistics ends.
    const fn pass(&self, first: usize) -> (Pass, (Cursor, Cursor)) {
        let Config { views, micro_batch, recompute, .. } = self.config;
        let (vit, head, (mut a, mut s)) = (&self.table.backbone, &self.table.head, self.scratch);
        let n = self.views_at_once(first);
        let (before, crops) = (times(views.part(0, first), micro_batch), times(views.part(first, n), micro_batch));
        let (row, rows) = (before.count(), crops.count());
        let positions = self.student.positions.part(views.group_of(first), crops);
        let scales = if self.drop.len() == 0 { 0 } else { 2 * vit.depth };
        let drop = self.drop.part(scales * row, scales * rows);
        let save = if recompute { Save::Least } else { Save::All };
        let acts = vit.acts(crops, positions, Output::Class, save, drop, &mut a, &mut s);
        let head_acts = head.acts(rows, true, &mut a, &mut s);
        let pass = Pass {
            dims: LossDims { first_view: first, views: n, ..self.loss_dims() },
            patches: self
                .patches
                .part(before.patches(vit.patch) * vit.patch_len(), crops.patches(vit.patch) * vit.patch_len()),
            acts,
            head: head_acts,
            grads: vit.grads(&acts, &mut a),
            head_grads: head.grads(rows, &mut a),
            loss: self.loss.part(row, rows),
            lse: self.lse.part(2 * row, 2 * rows),
        };
        (pass, (a, s))
    }

    /// Crops of one image.
    pub const fn views(&self) -> usize {
        self.config.views.count()
    }

    /// How many of them go through the teacher.
    pub const fn teachers(&self) -> usize {
        self.config.views.group(0).count
    }

    /// Micro-batches of a step of this process.
    pub const fn parts(&self) -> usize {
        self.config.batch / self.config.micro_batch / self.sharding.ranks
    }

    /// (K, bottleneck).
    pub const fn prototype_rows(&self) -> Rows {
        Rows { rows: self.table.head.prototypes, cols: self.table.head.bottleneck }
    }

    /// Crops of a micro-batch.
    pub const fn crops(&self) -> Crops {
        times(self.config.views, self.config.micro_batch)
    }

    /// The loss over all views at once.
    pub const fn loss_dims(&self) -> LossDims {
        LossDims {
            images: self.config.micro_batch,
            first_view: 0,
            views: self.views(),
            teachers: self.teachers(),
            bottleneck: self.table.head.bottleneck,
            prototypes: self.table.head.prototypes,
        }
    }

    /// The patches of the global crops.
    pub const fn teacher_patches(&self) -> Act {
        let patches = self.teacher_acts.crops().patches(self.table.backbone.patch);
        self.patches.part(0, patches * self.table.backbone.patch_len())
    }

    /// What the state pool holds before the first step: the position matrices; all else is zero.
    pub fn initial_state<T: Real>(&self, state: &mut [T]) {
        state.fill(T::ZERO);
        self.table.backbone.position_matrices(&self.student.positions, state);
        self.table.backbone.position_matrices(&self.teacher.positions, state);
    }

    /// The stochastic-depth scales of a micro-batch, in the layout of `self.drop`. `images` are the ids of the micro-batch's images.
    pub fn drop_path<T: Real>(&self, scales: &mut [T], seed: u64, epoch: u32, images: &[u32], rate: f64) {
        if scales.is_empty() {
            return;
        }
        let (vit, mut rest) = (&self.table.backbone, scales);
        for pass in self.passes() {
            let views = pass.dims.first_view..pass.dims.first_view + pass.dims.views;
            let part;
            (part, rest) = rest.split_at_mut(pass.acts.drop().len());
            vit.draw_drop_path(part, DropPath { seed, epoch, rate }, views, images);
        }
    }

    /// Which crop of the micro-batch element `index` of an activation span belongs to, that a pass over views from `first_view` on has
    /// written: (view, image of the micro-batch). Known are patches, rows of the token matrix, and rows of one a crop.
    pub fn locate(&self, acts: &VitActs, first_view: usize, span: Span, index: usize) -> Option<(usize, usize)> {
        let (vit, head) = (&self.table.backbone, &self.table.head);
        let widest = max(max(3 * vit.dim, vit.mlp), max(head.hidden, head.bottleneck));
        let crop = acts.crop_of(span, index, vit.dim, widest)?;
        Some((first_view + crop / self.config.micro_batch, crop % self.config.micro_batch))
    }
}
