//! Where everything is stored: the memory plan of a training step and, in `plan/features.rs`, of a forward pass. Making a plan can
//! fail, ops cannot.

mod check;
mod features;
mod shards;
mod spans;

use crate::crops::{Crops, Group};
use crate::dims::{LossDims, Rows};
use crate::mem::{Act, Layout, Pool, Span, Stat, State, max};
pub use crate::model::PlanError;
use crate::model::check::{MOST, mul};
use crate::model::head::{HeadActs, HeadGrads, HeadWeights};
use crate::model::spans::Lookup;
use crate::model::{Backbone, DropPath, Extents, Head, Network, Output, Pass, Save, Statistics, Table};
use crate::objective::{Objective, TargetSpans};
use crate::optim::{Optimizer, TeacherRule};
use crate::params::Name;
use crate::real::Real;
use crate::scalars::{hyper, monitor};
use check::check;
pub use features::{BlocksPlan, FeaturePlan};
pub use shards::Sharding;

/// What a training plan is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// The backbone's shape.
    pub backbone: Backbone,
    /// The head's shape.
    pub head: Head,
    /// What the student learns.
    pub objective: Objective,
    /// How gradients move the student.
    pub optimizer: Optimizer,
    /// How the student moves the teacher.
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
    /// With a backbone of batch statistics the views of one size go together, since those are taken by size.
    pub stream_crops: bool,
    /// Images that batch norms take their statistics over: a divisor of the micro-batch. None is the full batch, as the published code
    /// does it by summing over its processes; a number is what each of several cards would see without that. Nothing else reads it.
    pub bn_group: Option<usize>,
}

impl Config {
    /// Images of a batch norm's group.
    pub const fn group(&self) -> usize {
        match self.bn_group {
            Some(group) => group,
            None => self.batch,
        }
    }
}

/// Elements of every pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pools {
    /// Student and teacher.
    pub weights: usize,
    /// The student's gradients.
    pub grads: usize,
    /// The optimizer's arrays of state, each as large as the gradients.
    pub slots: usize,
    /// Activations and their gradients.
    pub acts: usize,
    /// Numbers of one step in full precision.
    pub stats: usize,
    /// Numbers that outlive a step.
    pub state: usize,
    /// What the host sends for a micro-batch: pixels and stochastic-depth scales. It is part of the pools above; a device that copies
    /// while it works keeps a second buffer of this size.
    pub input: usize,
    /// The loss over the most rows at once: what a backend's own scratch for it depends on.
    pub loss: LossDims,
    /// Tokens of the longest crop, and numbers a head: what a backend's own scratch for attention depends on.
    pub longest: usize,
    /// Columns of an attention head.
    pub head_dim: usize,
    /// Columns of the widest operand of a linear layer, the prototypes aside: what a backend's own scratch for matmuls depends on.
    pub widest: usize,
    /// Elements of the largest weight of a convolution, or 0: what a backend's own scratch for convolutions depends on.
    pub filters: usize,
    /// Partial sums of the largest batch norm ([`crate::dims::BatchNorm::blocks`]), or 0: a backend's own scratch for it.
    pub sums: usize,
    /// Lanes of a step ([`crate::backend::Collective`]), each with gradients, activations, stats and state of its own.
    pub lanes: usize,
    /// Numbers that batch norms exchange at once, or 0: a backend's own scratch for it.
    pub exchanged: usize,
}

impl Pools {
    /// Elements of all pools, of all lanes.
    pub const fn total(&self) -> usize {
        self.weights + self.slots + self.lanes * (self.grads + self.acts + self.stats + self.state)
    }
}

/// The student or the teacher: a backbone, a head, and what a step makes of their parameters alone.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    /// The backbone and its parameters.
    pub backbone: Network,
    /// Handles of the head's parameters.
    pub head_weights: HeadWeights,
    /// g / |v| of every prototype.
    pub scale: Stat,
    /// The network's buffers as of the last step ([`Table::visit_buffers`]): what checkpoints and evaluation take. Empty without any.
    pub running: State,
    /// The same in the middle of a step: a copy that the passes move, and that becomes the buffers if the step is taken.
    pub moved: State,
}

/// The student's forward and backward pass over some views of a micro-batch. Passes run one after another in the same scratch; of
/// `loss`, `lse` and the stochastic-depth scales each has its own part.
#[derive(Clone, Copy, Debug)]
pub struct StudentPass {
    /// Which views, and what the loss makes of them: images * views rows.
    pub dims: LossDims,
    /// Forward and backward pass of the backbone.
    pub backbone: Pass,
    /// What the head's forward pass writes.
    pub head: HeadActs,
    /// Scratch of the head's backward pass.
    pub head_grads: HeadGrads,
    /// Cross-entropy of every row with its targets (rows).
    pub loss: Stat,
    /// (rows, 2), two numbers a row: the largest logit, and ln of the sum of exp((logit - largest) / temperature).
    pub lse: Stat,
}

/// Every handle of a training step.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What the plan was made for.
    pub config: Config,
    /// The shards of the batch, and the processes that share them.
    pub sharding: Sharding,
    /// The parameter table of one network.
    pub table: Table,
    /// How large every pool must be.
    pub pools: Pools,
    /// The micro-batch's crops, every group (count, channels, height, width), view-major within a group. Later ops write over them.
    pub pixels: Act,
    /// Stochastic-depth scales of a micro-batch, pass by pass (depth, branches, crops); empty without.
    pub drop: State,
    /// The student's network.
    pub student: Net,
    /// The teacher's network.
    pub teacher: Net,
    /// The teacher's pass over the global crops.
    pub teacher_pass: Pass,
    /// What the teacher's head writes over them.
    pub teacher_head: HeadActs,
    /// Where the memory that all passes share begins.
    passes: Layout,
    /// One a row of the student, all passes.
    pub loss: Stat,
    /// As [`StudentPass::lse`], all passes.
    pub lse: Stat,
    /// The teacher's rows, and what the objective makes of them.
    pub targets: TargetSpans,
    /// Sums of shards that wait for those of the shards after them; empty with one shard ([`Sharding`]).
    pub shard_sums: State,
    /// This step's numbers ([`crate::scalars::hyper`]), which the host writes.
    pub hyper: State,
    /// What the step reports ([`crate::scalars::monitor`]).
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
    ///
    /// # Errors
    /// Those of [`Plan::sharded`] that are not of shards or ranks.
    pub const fn new(config: Config) -> Result<Plan, PlanError> {
        Plan::sharded(config, Sharding::SOLO)
    }

    /// The plan of one process of `sharding.ranks`. The only door: after it every shape agrees.
    ///
    /// # Errors
    /// A size is zero or too large, sizes of backbone, head, views and batch do not fit each other, or the micro-batches cannot be dealt
    /// to these shards and ranks.
    pub const fn sharded(config: Config, sharding: Sharding) -> Result<Plan, PlanError> {
        if let Err(e) = check(&config, sharding) {
            return Err(e);
        }
        if let Err(e) = sharding.check(config.batch / config.micro_batch) {
            return Err(e);
        }
        let Config { backbone, head, views, micro_batch, drop_path, .. } = config;
        let table = Table { backbone, head };
        let crops = times(views, micro_batch);
        let globals = Crops::one(crops.group(0));
        let (rows, rows_teacher) = (crops.count(), globals.count());
        let mut l = Layout::new();

        // What outlives a pass comes first. The teacher's pass and the student's passes share the rest, for they come one after another;
        // so do pixels that are not read again once the passes' input is made of them.
        let (statistics, lanes) = (sharding.statistics(&config), sharding.lanes(&config));
        let (buffers, teacher_buffers) = (table.buffers_len(), table.of_teacher().buffers_len());
        let [running, moved] = [l.state(buffers + teacher_buffers), l.state(buffers + teacher_buffers)];
        let network = backbone.network(crops, statistics, moved.part(0, buffers), &mut l);
        let head_buffers = moved.0.at + backbone.buffers_len();
        let head_weights = head.weights(&mut l.weights, head_buffers);
        let network_teacher = network.teacher(table.len(), globals, moved.part(buffers, teacher_buffers), &mut l);
        let teacher_head = head.teacher().acts(rows_teacher, false, statistics, &mut l);
        let student = Net {
            backbone: network,
            head_weights,
            scale: l.stat(head.prototypes),
            running: running.part(0, buffers),
            moved: moved.part(0, buffers),
        };
        let teacher = Net {
            backbone: network_teacher,
            head_weights: head_weights.teacher(table.len(), buffers),
            scale: l.stat(head.prototypes),
            running: running.part(buffers, teacher_buffers),
            moved: moved.part(buffers, teacher_buffers),
        };
        let (loss, lse) = (l.stat(rows), l.stat(2 * rows));
        let drop = l.state(if drop_path { backbone.branches() * rows } else { 0 });
        let prototypes = head.prototypes(&teacher.head_weights, teacher.scale);
        let n = Rows { rows: head.prototypes, cols: head.cols() };
        let all_parts = config.batch / micro_batch;
        let parts = [all_parts / sharding.ranks / lanes, all_parts];
        let targets = TargetSpans::new(&config.objective, teacher_head.z, rows_teacher, parts, prototypes, n, &mut l);
        let Some(kept) = sharding.kept_len(&config, &table) else { return Err(PlanError::TooLarge) };
        let Some(exchanged) = sharding.exchanged(&config, &table) else { return Err(PlanError::TooLarge) };
        let shard_sums = l.state(kept);
        let (hyper, monitor) = (l.state(hyper::LEN), l.state(monitor::LEN));

        let passes = l;
        let mut early = passes;
        let pixels = network.pixels(&mut early);
        let teacher_pass = network_teacher.pass([0, rows_teacher], Output::Class, Save::Nothing, State::EMPTY, &mut l);
        let group = if let Statistics::Groups { group, .. } = statistics { group } else { micro_batch };
        let Extents { longest, head_dim, widest, filters, sums } = backbone.extents(&crops, Some(group));
        let pools = Pools {
            weights: table.len() + table.of_teacher().len(),
            grads: table.len(),
            slots: config.optimizer.slots().len() * table.len(),
            acts: max(l.acts.next, early.acts.next),
            stats: l.stats.next,
            state: l.state.next,
            input: pixels.len() + drop.len(),
            loss: LossDims::NONE,
            longest,
            head_dim,
            widest: max(widest, head.widest()),
            filters,
            sums: max(sums, head.sums(rows, group)),
            lanes,
            exchanged,
        };
        let mut plan = Plan {
            config,
            sharding,
            table,
            pools,
            pixels,
            drop,
            student,
            teacher,
            teacher_pass,
            teacher_head,
            passes,
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
            plan.pools.acts = max(plan.pools.acts, end.acts.next);
            plan.pools.stats = max(plan.pools.stats, end.stats.next);
            if pass.dims.rows() > plan.pools.loss.rows() {
                plan.pools.loss = pass.dims;
            }
            view += pass.dims.views;
        }
        let Pools { grads, acts, stats, state, .. } = plan.pools;
        if mul(mul(1, grads + acts + stats + state), lanes) > MOST {
            return Err(PlanError::TooLarge);
        }
        Ok(plan)
    }

    /// The passes of the student over a micro-batch, together over all views in their order.
    pub fn passes(&self) -> impl Iterator<Item = StudentPass> + '_ {
        let mut view = 0;
        core::iter::from_fn(move || {
            let pass = (view < self.views()).then(|| self.pass(view).0)?;
            view += pass.dims.views;
            Some(pass)
        })
    }

    /// How many views from `first` on go through the student together.
    const fn views_at_once(&self, first: usize) -> usize {
        let (views, backbone) = (&self.config.views, &self.table.backbone);
        if !self.config.stream_crops {
            return self.views() - first;
        }
        if backbone.batch_statistics() {
            return views.part(first, self.views() - first).group(0).count;
        }
        let (mut most, mut i) = (0, 0);
        while i < views.len() {
            most = max(most, backbone.cost(&Crops::one(Group { count: 1, ..views.group(i) })));
            i += 1;
        }
        let mut n = 1;
        while first + n < self.views() && backbone.cost(&views.part(first, n + 1)) <= most {
            n += 1;
        }
        n
    }

    /// The pass that begins with view `first`, and where what it takes of activations and statistics ends.
    const fn pass(&self, first: usize) -> (StudentPass, Layout) {
        let Config { micro_batch, recompute, .. } = self.config;
        let (head, mut l) = (&self.table.head, self.passes);
        let n = self.views_at_once(first);
        let (row, rows) = (first * micro_batch, n * micro_batch);
        let scales = if self.drop.len() == 0 { 0 } else { self.table.backbone.branches() };
        let drop = self.drop.part(scales * row, scales * rows);
        let save = if recompute { Save::Least } else { Save::All };
        let backbone = self.student.backbone.pass([row, rows], Output::Class, save, drop, &mut l);
        let statistics = self.sharding.statistics(&self.config);
        let head_acts = head.acts(rows, true, statistics, &mut l);
        let pass = StudentPass {
            dims: LossDims { first_view: first, views: n, ..self.loss_dims() },
            backbone: backbone.with_gradients(&mut l),
            head: head_acts,
            head_grads: head.grads(rows, &mut l),
            loss: self.loss.part(row, rows),
            lse: self.lse.part(2 * row, 2 * rows),
        };
        (pass, l)
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

    /// (K, [`Head::cols`]).
    pub const fn prototype_rows(&self) -> Rows {
        Rows { rows: self.table.head.prototypes, cols: self.table.head.cols() }
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
            bottleneck: self.table.head.cols(),
            prototypes: self.table.head.prototypes,
        }
    }

    /// What the state pool holds before the first step: what the networks keep there; all else is zero.
    pub fn initial_state<T: Real>(&self, state: &mut [T]) {
        state.fill(T::ZERO);
        for (net, table) in [(&self.student, self.table), (&self.teacher, self.table.of_teacher())] {
            net.backbone.initial_state(state);
            table.visit_buffers(|b| {
                for pool in [net.running, net.moved] {
                    state[pool.part(b.at.0.at, b.at.len()).range()].fill(T::of(b.value));
                }
            });
        }
    }

    /// The stochastic-depth scales of a micro-batch, in the layout of `self.drop`. `images` are the ids of the micro-batch's images.
    pub fn drop_path<T: Real>(&self, scales: &mut [T], seed: u64, epoch: u32, images: &[u32], rate: f64) {
        if scales.is_empty() {
            return;
        }
        let (branches, mut rest) = (self.table.backbone.branches(), scales);
        for pass in self.passes() {
            let views = pass.dims.first_view..pass.dims.first_view + pass.dims.views;
            let part;
            (part, rest) = rest.split_at_mut(branches * pass.dims.rows());
            pass.backbone.draw(part, DropPath { seed, epoch, rate }, views, images);
        }
    }

    /// Which crop of the micro-batch element `index` of a span of activations belongs to, that a pass has written: (view, image of the
    /// micro-batch). `pass` is the number of one of the student's passes, or none for the teacher's.
    pub fn locate(&self, pass: Option<usize>, span: Span, index: usize) -> Option<(usize, usize)> {
        let mut lookup = Lookup::of(span);
        let mut offer = |_: Name, pool, span, rows| {
            if pool == Pool::Acts {
                lookup.offer(span, rows);
            }
        };
        let first_view = match pass {
            None => {
                self.teacher_head.visit("", &mut offer);
                self.teacher_pass.find(&mut lookup);
                0
            }
            Some(i) => {
                let pass = self.passes().nth(i)?;
                pass.head.visit("", &mut offer);
                pass.head_grads.visit("", &mut offer);
                pass.backbone.find(&mut lookup);
                pass.dims.first_view
            }
        };
        let crop = lookup.crop(index)?;
        Some((first_view + crop / self.config.micro_batch, crop % self.config.micro_batch))
    }
}
