//! Where everything of a fine-tuning step is stored.

use super::Table;
use crate::backend::Affine;
use crate::crops::{Crops, Group};
use crate::dims::{LossDims, Mat};
use crate::mem::{Act, Layout, State, max};
use crate::model::check::{Bounds, MAX_BRANCHES, PlanError, mul};
use crate::model::{Backbone, DropPath, Extents, Network, Output, Pass, Save, Statistics};
use crate::optim::Optimizer;
use crate::params::ParamTable;
use crate::plan::Pools;
use crate::real::Real;
use crate::scalars::{hyper, monitor};

/// What a plan of fine-tuning is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// The backbone's shape.
    pub backbone: Backbone,
    /// Number of classes.
    pub classes: usize,
    /// Height and width of an image, pixels.
    pub image: [usize; 2],
    /// Images of an optimization step.
    pub batch: usize,
    /// Images that go through the model at once; divides `batch`.
    pub micro_batch: usize,
    /// Whether to reserve stochastic-depth scales.
    pub drop_path: bool,
    /// As [`crate::plan::Config::recompute`].
    pub recompute: bool,
    /// How gradients move the parameters.
    pub optimizer: Optimizer,
    /// As [`Table::blocks`].
    pub blocks: Option<usize>,
    /// Whether every layer has a learning rate of its own.
    pub by_layer: bool,
    /// As [`crate::plan::Config::bn_group`]. With no block trained, batch norms go by their running statistics instead.
    pub bn_group: Option<usize>,
}

impl Config {
    /// Images of a batch norm's group.
    const fn group(&self) -> usize {
        match self.bn_group {
            Some(group) => group,
            None => self.batch,
        }
    }

    /// Crops of `images` images: themselves.
    const fn crops(&self, images: usize) -> Crops {
        Crops::one(Group { count: images, height: self.image[0], width: self.image[1] })
    }

    /// Whether a backward pass goes into the backbone.
    const fn trains_backbone(&self) -> bool {
        !matches!(self.blocks, Some(0))
    }
}

/// Every handle of a fine-tuning step.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What the plan was made for.
    pub config: Config,
    /// The parameters.
    pub table: Table,
    /// How large every pool must be.
    pub pools: Pools,
    /// The micro-batch's images (image, channel, height, width). Later ops write over them.
    pub pixels: Act,
    /// Stochastic-depth scales of a micro-batch (branches, images); empty without.
    pub drop: State,
    /// The backbone and its parameters.
    pub network: Network,
    /// Its buffers as of the last step: what checkpoints and evaluation take. Empty without any.
    pub running: State,
    /// The same in the middle of a step: a copy that the passes move.
    pub moved: State,
    /// The backbone's pass over a micro-batch.
    pub pass: Pass,
    /// The classifier.
    pub classifier: Affine,
    /// What it gives (images, classes).
    pub logits: Act,
    /// The gradient of that, which the caller sets.
    pub d_logits: Act,
    /// This step's numbers, of every layer or of all together ([`Plan::numbers_of`]), which the host writes.
    pub hyper: State,
    /// What the step reports ([`crate::scalars::monitor`]).
    pub monitor: State,
}

/// Whether there is a plan.
const fn check(c: &Config) -> Result<(), PlanError> {
    let one = c.crops(1);
    if let Err(e) = c.backbone.check(&one) {
        return Err(e);
    }
    if c.classes == 0 || c.batch == 0 || c.micro_batch == 0 {
        return Err(PlanError::Zero("classes, batch and micro-batch"));
    }
    let weights = mul(mul(2, c.classes), c.backbone.dim().saturating_add(1));
    let classifier = Bounds { weights, acts: mul(mul(4, c.micro_batch), c.classes), state: 0 };
    if !c.backbone.bounds(&one, c.micro_batch, 0).plus(classifier).fit() {
        return Err(PlanError::TooLarge);
    }
    if c.drop_path && c.backbone.branches() >= MAX_BRANCHES {
        return Err(PlanError::Streams { views: 1, depth: c.backbone.depth() });
    }
    if !c.batch.is_multiple_of(c.micro_batch) {
        return Err(PlanError::MicroBatch { batch: c.batch, micro_batch: c.micro_batch });
    }
    if let Some(blocks) = c.blocks
        && blocks > c.backbone.depth()
    {
        return Err(PlanError::Blocks { blocks, depth: c.backbone.depth() });
    }
    if c.backbone.batch_statistics() && c.trains_backbone() {
        let (batch, micro_batch, group) = (c.batch, c.micro_batch, c.group());
        if group == 0 || !batch.is_multiple_of(group) || !micro_batch.is_multiple_of(group) {
            return Err(PlanError::BatchGroup { batch, micro_batch, group });
        }
        if !c.backbone.groups_vary(&one, group) {
            return Err(PlanError::OneValue { group });
        }
    }
    Ok(())
}

impl Plan {
    /// The only door: after it every shape agrees.
    ///
    /// # Errors
    /// A size is zero or too large, sizes do not fit each other, there are not so many blocks, or a micro-batch would cut a batch norm's
    /// group.
    pub const fn new(config: Config) -> Result<Plan, PlanError> {
        if let Err(e) = check(&config) {
            return Err(e);
        }
        let Config { backbone, classes, micro_batch: images, .. } = config;
        let table = Table { backbone, classes, blocks: config.blocks };
        let (crops, buffers) = (config.crops(images), backbone.buffers_len());
        let statistics = match config.trains_backbone() {
            true => Statistics::Groups { images, group: config.group(), shards: 1 },
            false => Statistics::Running,
        };
        let mut l = Layout::new();
        let [running, moved] = [l.state(buffers), l.state(buffers)];
        let network = backbone.network(crops, statistics, moved, &mut l);
        let [w, b] = table.classifier(&mut l.weights);
        let drop = l.state(if config.drop_path { backbone.branches() * images } else { 0 });
        let blocks = if config.by_layer { table.layers() } else { 1 };
        let (hyper, monitor) = (l.state(blocks * hyper::LEN), l.state(monitor::LEN));
        let (logits, d_logits) = (l.act(images * classes), l.act(images * classes));

        let mut early = l;
        let pixels = network.pixels(&mut early);
        let save = match (config.trains_backbone(), config.recompute) {
            (false, _) => Save::Nothing,
            (true, true) => Save::Least,
            (true, false) => Save::All,
        };
        let mut pass = network.pass([0, images], Output::Class, save, drop, &mut l);
        if config.trains_backbone() {
            pass = pass.with_gradients(&mut l);
        }
        let group = match statistics {
            Statistics::Groups { group, .. } => Some(group),
            Statistics::Running => None,
        };
        let Extents { longest, head_dim, widest, filters, sums } = backbone.extents(&crops, group);
        let weights = l.weights.next;
        let pools = Pools {
            weights,
            grads: weights,
            slots: config.optimizer.slots().len() * weights,
            acts: max(l.acts.next, early.acts.next),
            stats: l.stats.next,
            state: l.state.next,
            input: pixels.len() + drop.len(),
            loss: LossDims::NONE,
            longest,
            head_dim,
            widest: max(widest, max(backbone.dim(), classes)),
            filters,
            sums,
            lanes: 1,
            exchanged: 0,
        };
        let classifier = Affine { w: w.at, b: b.at };
        Ok(Plan {
            config,
            table,
            pools,
            pixels,
            drop,
            network,
            running,
            moved,
            pass,
            classifier,
            logits,
            d_logits,
            hyper,
            monitor,
        })
    }

    /// Micro-batches of a step.
    pub const fn parts(&self) -> usize {
        self.config.batch / self.config.micro_batch
    }

    /// Dimensions of the classifier.
    pub const fn mat(&self) -> Mat {
        self.table.mat(self.config.micro_batch)
    }

    /// Where the numbers of a layer's optimizer are.
    pub const fn numbers_of(&self, layer: usize) -> State {
        self.hyper.part(if self.config.by_layer { layer * hyper::LEN } else { 0 }, hyper::LEN)
    }

    /// Where the sum over images of the loss is expected before [`super::step::commit`].
    pub const fn loss(&self) -> State {
        self.monitor.part(monitor::LOSS, 1)
    }

    /// What the state pool holds before the first step.
    pub fn initial_state<T: Real>(&self, state: &mut [T]) {
        state.fill(T::ZERO);
        self.network.initial_state(state);
        let (from, to) = (self.moved.0.range(), self.running.0.at);
        state.copy_within(from, to);
    }

    /// The stochastic-depth scales of a micro-batch, whose images have these ids, in the layout of `self.drop`.
    pub fn drop_path<T: Real>(&self, scales: &mut [T], key: DropPath, images: &[u32]) {
        if !scales.is_empty() {
            self.pass.draw(scales, key, 0..1, images);
        }
    }

    /// Which image of the micro-batch element `index` of a span of activations belongs to.
    pub fn locate(&self, span: crate::mem::Span, index: usize) -> Option<usize> {
        let mut lookup = crate::model::spans::Lookup::of(span);
        self.pass.find(&mut lookup);
        lookup.crop(index)
    }

    /// Elements of the parameters, alignment included.
    pub fn weights_len(&self) -> usize {
        self.table.len()
    }
}
