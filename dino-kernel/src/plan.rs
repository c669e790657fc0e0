//! Where everything lies: the memory plan of a training step and, in `plan/features.rs`, of a forward pass. Plans can fail, words cannot.

use crate::backend::{LossDims, Rows};
use crate::crops::{Crops, Group};
use crate::init;
use crate::mem::{Act, Cursor, Span, Stat, State};
use crate::model::head::{HeadActs, HeadGrads, HeadWeights, MAX_LAYERS};
use crate::model::vit::{Output, PositionActs, Save, VitActs, VitGrads, VitWeights};
use crate::model::{Head, Table, Vit};
use crate::ops::attention::MAX_HEAD_DIM;
use crate::ops::loss::MAX_TEACHERS;
use crate::real::Real;
use crate::step::{hyper, monitor};
use core::fmt;

mod features;
mod spans;
pub use features::{BlocksPlan, FeaturePlan};

/// What a training plan is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    pub backbone: Vit,
    pub head: Head,
    /// Crops of *one* image; the first group holds the teacher's (global) views.
    pub views: Crops,
    /// Images of an optimisation step.
    pub batch: usize,
    /// Images that go through the model at once; divides `batch`.
    pub micro_batch: usize,
    /// Whether to reserve stochastic-depth scales.
    pub drop_path: bool,
    /// Whether the backward pass computes norms and GELU again instead of finding them kept ([`Save::Least`]).
    pub recompute: bool,
    /// Whether the student's crops go through it in turns, as many views at once as have no more tokens than the largest one
    /// ([`Plan::passes`]), instead of all together: activations of one global crop an image. The teacher's targets are then formed
    /// anew for every pass.
    pub stream_crops: bool,
}

/// Views and twice the blocks are 12 bits each of the generator's counter ([`crate::rng::Rng::new`]).
const MAX_VIEWS: usize = 4096;
const MAX_DEPTH: usize = 2048;

/// Why a plan was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The named size is zero.
    Zero(&'static str),
    /// C is not a multiple of the number of heads.
    Heads { dim: usize, heads: usize },
    /// A head is wider than the attention words take.
    HeadDim { dim: usize, heads: usize, most: usize },
    /// The head's input is not the backbone's width.
    HeadInput { dim: usize, inp: usize },
    /// The number of head layers is not in 1..=8.
    HeadLayers { layers: usize },
    /// An image or crop is smaller than a patch.
    SmallCrop { side: usize, patch: usize },
    /// There must be a teacher view and at least two views in all.
    Views { teachers: usize, views: usize },
    /// More views, or with stochastic depth more blocks, than the generator's counter tells apart.
    Streams { views: usize, depth: usize },
    /// The batch is not a multiple of the micro-batch.
    MicroBatch { batch: usize, micro_batch: usize },
    /// So many last blocks do not exist.
    Blocks { blocks: usize, depth: usize },
    /// The plan needs more elements than memory can have.
    TooLarge,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            PlanError::Zero(what) => write!(f, "{what} must be at least 1"),
            PlanError::Heads { dim, heads } => write!(f, "width {dim} is not a multiple of {heads} heads"),
            PlanError::HeadDim { dim, heads, most } => {
                write!(f, "width {dim} over {heads} heads is {} a head, more than {most}", dim / heads)
            }
            PlanError::HeadInput { dim, inp } => write!(f, "the head takes {inp} channels, the backbone gives {dim}"),
            PlanError::HeadLayers { layers } => write!(f, "the head has {layers} layers, not 1 to {MAX_LAYERS}"),
            PlanError::SmallCrop { side, patch } => write!(f, "a side of {side} pixels holds no patch of {patch}"),
            PlanError::Views { teachers, views } => {
                write!(f, "{teachers} teacher views of {views} in all: needs 1 to {MAX_TEACHERS} of at least 2")
            }
            PlanError::Streams { views, depth } => {
                write!(f, "{views} views and {depth} blocks: less than {MAX_VIEWS} and {MAX_DEPTH} can be drawn for")
            }
            PlanError::MicroBatch { batch, micro_batch } => {
                write!(f, "a batch of {batch} is not a multiple of the micro-batch {micro_batch}")
            }
            PlanError::Blocks { blocks, depth } => write!(f, "the last {blocks} blocks of {depth}: needs 1 to {depth}"),
            PlanError::TooLarge => f.write_str("the plan needs more memory than this machine can address"),
        }
    }
}

impl core::error::Error for PlanError {}

/// Elements of every pool. Adam's two moments are as large as the gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pools {
    /// Student and teacher.
    pub weights: usize,
    pub grads: usize,
    pub moments: usize,
    pub acts: usize,
    pub stats: usize,
    pub state: usize,
    /// What the host sends for a micro-batch: pixels and stochastic-depth scales. It lies in the pools above; a device that copies
    /// while it works keeps room for it beside them.
    pub input: usize,
    /// The loss over the most rows at once: what a backend's own scratch for it goes by.
    pub loss: LossDims,
    /// Tokens of the longest crop, and numbers a head: what a backend's own scratch for attention goes by.
    pub longest: usize,
    pub head_dim: usize,
    /// Columns of the widest factor of a linear layer, the prototypes aside: what a backend's own scratch for products goes by.
    pub widest: usize,
}

impl Pools {
    /// Elements of all pools.
    pub const fn total(&self) -> usize {
        self.weights + self.grads + self.moments + self.acts + self.stats + self.state
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

/// The student's way through some views of a micro-batch and back. Passes take turns in the same room; of `cols`, `loss`, `lse` and
/// the stochastic-depth scales each has its own part.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Which views, and what the loss makes of them: images * views rows.
    pub dims: LossDims,
    /// The crops' patches as rows (patches, patch_len).
    pub cols: Act,
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
    pub table: Table,
    pub pools: Pools,
    /// The micro-batch's crops, every group (count, channels, height, width), view-major within a group. Later words write over them.
    pub pixels: Act,
    /// The same as patch rows.
    pub cols: Act,
    /// Stochastic-depth scales of a micro-batch, pass by pass (depth, branches, crops); empty without.
    pub drop: State,
    pub student: Network,
    pub teacher: Network,
    /// The teacher's pass over the global crops.
    pub teacher_acts: VitActs,
    pub teacher_head: HeadActs,
    /// Where the room that the student's passes share begins.
    room: (Cursor, Cursor),
    /// One a row of the student, all passes.
    pub loss: Stat,
    /// As [`Pass::lse`], all passes.
    pub lse: Stat,
    pub lse_teacher: Stat,
    pub entropy: Stat,
    pub centre: State,
    /// Sum of the teacher's unit rows so far in this step.
    pub teacher_sum: State,
    pub hyper: State,
    pub monitor: State,
}

pub(crate) const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
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

const fn check_backbone(v: &Vit, crops: &Crops) -> Result<(), PlanError> {
    if v.patch == 0 || v.channels == 0 || v.dim == 0 || v.depth == 0 || v.heads == 0 || v.mlp == 0 {
        return Err(PlanError::Zero("patch, channels, width, depth, heads and MLP width"));
    }
    if !v.dim.is_multiple_of(v.heads) {
        return Err(PlanError::Heads { dim: v.dim, heads: v.heads });
    }
    if v.dim / v.heads > MAX_HEAD_DIM {
        return Err(PlanError::HeadDim { dim: v.dim, heads: v.heads, most: MAX_HEAD_DIM });
    }
    if v.image < v.patch {
        return Err(PlanError::SmallCrop { side: v.image, patch: v.patch });
    }
    let mut i = 0;
    while i < crops.len() {
        let g = crops.group(i);
        if g.count == 0 {
            return Err(PlanError::Zero("the number of crops in a group"));
        }
        let side = if g.height < g.width { g.height } else { g.width };
        if side < v.patch {
            return Err(PlanError::SmallCrop { side, patch: v.patch });
        }
        i += 1;
    }
    Ok(())
}

/// Refuses sizes whose products would overflow: upper bounds in u128 of the elements of the pools.
const fn check_size(
    v: &Vit,
    head: Option<&Head>,
    crops: &Crops,
    images: usize,
    queries: usize,
) -> Result<(), PlanError> {
    const MOST: u128 = isize::MAX as u128 / 64;
    const fn mul(a: u128, b: usize) -> u128 {
        a.saturating_mul(b as u128)
    }
    let widest = if v.mlp > v.dim { v.mlp } else { v.dim };
    let block = mul(mul(12, widest), widest);
    let side = v.image / v.patch;
    let table = mul(mul(mul(1, side), side), v.dim);
    let patch = mul(mul(mul(mul(1, v.dim), v.channels), v.patch), v.patch);
    let mut weights = mul(block, v.depth).saturating_add(table).saturating_add(patch);
    let (mut tokens, mut pixels, mut count, mut i) = (0u128, 0u128, 0u128, 0);
    let (mut state, mut attention) = (0u128, 0u128);
    while i < crops.len() {
        let g = crops.group(i);
        let [rows, cols] = g.grid(v.patch);
        state = state.saturating_add(mul(rows as u128 + cols as u128, side));
        let crop = rows.saturating_mul(cols).saturating_add(1);
        let asked = if queries < crop { queries } else { crop };
        attention = attention.saturating_add(mul(mul(mul(mul(1, g.count), crop), asked), v.heads));
        let area = mul(mul(mul(1, g.count), g.height), g.width);
        pixels = pixels.saturating_add(mul(mul(area, v.channels), images));
        tokens = tokens.saturating_add(mul(mul(mul(1, g.count), crop), images));
        count = count.saturating_add(mul(mul(1, g.count), images));
        i += 1;
    }
    let mut acts =
        mul(mul(mul(tokens, widest), v.depth.saturating_add(4)), 20).saturating_add(pixels.saturating_mul(2));
    if let Some(h) = head {
        let wide = if h.hidden > h.inp { h.hidden } else { h.inp };
        let wide = if h.bottleneck > wide { h.bottleneck } else { wide };
        weights = weights.saturating_add(mul(mul(mul(1, wide), wide), h.layers));
        weights = weights.saturating_add(mul(mul(2, h.prototypes), h.bottleneck.saturating_add(1)));
        acts = acts.saturating_add(mul(mul(count, wide), 8 * MAX_LAYERS));
    }
    acts = acts.saturating_add(attention);
    if weights > MOST || acts > MOST || state > MOST { Err(PlanError::TooLarge) } else { Ok(()) }
}

impl Plan {
    /// The only door: after it every shape agrees.
    pub const fn new(config: Config) -> Result<Plan, PlanError> {
        let Config { backbone: vit, head, views, batch, micro_batch, drop_path, .. } = config;
        if let Err(e) = check_backbone(&vit, &views) {
            return Err(e);
        }
        if head.hidden == 0 || head.bottleneck == 0 || head.prototypes == 0 || batch == 0 || micro_batch == 0 {
            return Err(PlanError::Zero("head width, bottleneck, prototypes, batch and micro-batch"));
        }
        if head.inp != vit.dim {
            return Err(PlanError::HeadInput { dim: vit.dim, inp: head.inp });
        }
        if head.layers == 0 || head.layers > MAX_LAYERS {
            return Err(PlanError::HeadLayers { layers: head.layers });
        }
        // From here on sums and products of sizes cannot overflow, those of a backend's scratch among them.
        if let Err(e) = check_size(&vit, Some(&head), &views, micro_batch, 0) {
            return Err(e);
        }
        let teachers = if views.is_empty() { 0 } else { views.group(0).count };
        if teachers == 0 || teachers > MAX_TEACHERS || views.count() < 2 {
            return Err(PlanError::Views { teachers, views: views.count() });
        }
        if views.count() >= MAX_VIEWS || (drop_path && vit.depth >= MAX_DEPTH) {
            return Err(PlanError::Streams { views: views.count(), depth: vit.depth });
        }
        if !batch.is_multiple_of(micro_batch) {
            return Err(PlanError::MicroBatch { batch, micro_batch });
        }

        let table = Table { backbone: vit, head };
        let crops = times(views, micro_batch);
        let globals = Crops::one(crops.group(0));
        let (rows, rows_teacher) = (crops.count(), globals.count());
        let (mut w, mut a, mut s, mut t) = (Cursor::new(), Cursor::new(), Cursor::new(), Cursor::new());
        let (weights, head_weights) = (vit.weights(&mut w), head.weights(&mut w));

        // What outlives a pass comes first; the pixels, which are dead once they are patch rows, the teacher's pass and the student's
        // then share the rest, for they take turns.
        let cols = a.act(crops.patches(vit.patch) * vit.patch_len());
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
        let (lse_teacher, entropy) = (s.stat(2 * rows_teacher), s.stat(rows_teacher));
        let room = (a, s);
        let mut input = a;
        let pixels = input.act(crops.pixels() * vit.channels);
        let teacher_acts =
            vit.acts(globals, positions_teacher, Output::Class, Save::Nothing, State::EMPTY, &mut a, &mut s);

        let drop = t.state(if drop_path { vit.depth * 2 * rows } else { 0 });
        let (centre, teacher_sum) = (t.state(head.prototypes), t.state(head.bottleneck));
        let (hyper, monitor) = (t.state(hyper::LEN), t.state(monitor::LEN));
        let pools = Pools {
            weights: 2 * table.len(),
            grads: table.len(),
            moments: 2 * table.len(),
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
            table,
            pools,
            pixels,
            cols,
            drop,
            student,
            teacher,
            teacher_acts,
            teacher_head,
            room,
            loss,
            lse,
            lse_teacher,
            entropy,
            centre,
            teacher_sum,
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
        let (vit, head, (mut a, mut s)) = (&self.table.backbone, &self.table.head, self.room);
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
            cols: self
                .cols
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

    /// How many of them the teacher sees.
    pub const fn teachers(&self) -> usize {
        self.config.views.group(0).count
    }

    /// Micro-batches of a step.
    pub const fn parts(&self) -> usize {
        self.config.batch / self.config.micro_batch
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

    /// The patch rows of the global crops.
    pub const fn teacher_cols(&self) -> Act {
        let patches = self.teacher_acts.crops().patches(self.table.backbone.patch);
        self.cols.part(0, patches * self.table.backbone.patch_len())
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
        let (depth, mut scales) = (self.table.backbone.depth, scales.iter_mut());
        for LossDims { first_view, views, .. } in self.passes().map(|pass| pass.dims) {
            for (block, branch) in (0..2 * depth).map(|i| (i / 2, i % 2)) {
                for view in first_view..first_view + views {
                    for (&image, scale) in images.iter().zip(&mut scales) {
                        *scale = T::of(init::drop_path(
                            seed,
                            epoch,
                            image,
                            view as u32,
                            rate,
                            block as u32,
                            branch as u32,
                            depth as u32,
                        ));
                    }
                }
            }
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
