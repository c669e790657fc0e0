//! The model, written once: parameter tables, activation layouts, forward and backward, over the ops of [`crate::backend`].
//!
//! This is the only file of the core that names every backbone: [`Backbone`] (a shape) makes a [`Network`] (its weights, and what outlives
//! a pass), and that makes a [`Pass`] (the network over some crops: everything it reads and writes). Each is a closed enum, and each
//! method is one match with one arm for each family. A pass holds its network, so the weights of one family never meet the activations
//! of another. They are enums and not traits because a plan is `const`, and methods of traits cannot be.
//!
//! # Adding a backbone
//!
//! 1. `model/x/`: the shape, its `Network` and its `Pass`, with the methods that this file calls. Parameters carry their published names,
//!    shapes, initializers and roles ([`crate::params`]); what a forward pass writes beside activations (running statistics) belongs to
//!    the network and is stored in the state pool, because weights are only read during a pass.
//! 2. An arm in every match of this file: the compiler lists them.
//! 3. What its rows can be used for: [`Backbone::gives`]. Whoever needs more than one row a crop asks there.
//! 4. Where its statistics are taken over a batch (batch norm), a split of the batch or of its crops is another computation:
//!    [`Backbone::batch_statistics`] states so. `plan/check.rs` then refuses micro-batches that cut a group of images, and `stream_crops`
//!    goes by sizes. What its passes move is listed by [`Backbone::buffers`].
//! 5. In dino-host, a file for the family and an arm in each of `weights/{names, infer, init, onnx, write}`, its tensors that are no
//!    parameters in `weights/entries.rs` and in `stored` of `weights/checkpoint.rs`, and its presets in `config`.

pub(crate) mod check;
pub mod head;
pub mod resnet;
pub(crate) mod spans;
mod statistics;
mod table;
pub mod vit;

pub use check::{Bounds, Extents, PlanError};
pub use head::{Activation, Head};
pub use resnet::ResNet;
pub use statistics::Statistics;
pub use table::Table;
pub use vit::Vit;
pub use vit::drop_path::DropPath;

use crate::backend::{Backward, Forward, NormStats};
use crate::crops::{Crops, Group, Ragged};
use crate::mem::{Act, Cursor, Layout, Pool, Span, State};
use crate::params::{Buffer, Init, Name, Spec};
use crate::real::Real;
use core::ops::Range;
use spans::Lookup;

/// The shape of a backbone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Backbone {
    /// A vision transformer.
    Vit(Vit),
    /// A residual network.
    ResNet(ResNet),
}

/// A shape with weights, and what outlives a pass, over the crops of a micro-batch.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::large_enum_variant)] // a plan has one, and no heap to box it on
pub enum Network {
    /// A vision transformer's.
    Vit(vit::Network),
    /// A residual network's.
    ResNet(resnet::Network),
}

/// A network's forward pass over some of its crops and, if it has gradients, its backward pass: everything that they read and write.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::large_enum_variant)] // as above
pub enum Pass {
    /// A vision transformer's.
    Vit(vit::Pass),
    /// A residual network's.
    ResNet(resnet::Pass),
}

/// What a backbone gives beside one row a crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gives {
    /// A row for each patch ([`Output::Dense`]).
    pub tokens: bool,
    /// The attention that its last layer pays to each patch ([`Pass::attention`]).
    pub attention: bool,
}

/// What a pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// One normalized row of every crop (crops, C).
    Class,
    /// All normalized rows (rows, C), and the last layer's attention on request.
    Dense,
}

/// What a pass leaves for a backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Save {
    /// Nothing: all blocks write to the same spans.
    Nothing,
    /// All that backward reads.
    All,
    /// All but what is cheap to compute again (in a ViT the outputs of norms and GELUs: 10 widths a token instead of 16). The backward
    /// pass computes that again, with the same ops from the same numbers, into spans that all blocks share.
    Least,
}

/// A network with a single pass, which saves nothing: for features and maps of an image.
#[derive(Clone, Copy, Debug)]
pub struct Inference {
    /// The network over the crops.
    pub network: Network,
    /// The crops, every group (count, channels, height, width). The pass writes over them.
    pub pixels: Act,
    /// The pass over all of them.
    pub pass: Pass,
    /// Memory for as many rows of attention as were asked for.
    pub attention: Act,
}

/// The class rows of blocks before the last one, after the final norm (official `get_intermediate_layers`).
#[derive(Clone, Copy, Debug)]
pub struct Earlier {
    /// How many blocks before the last.
    pub blocks: usize,
    /// (blocks, crops, C), the earliest block first.
    pub classes: Act,
    /// Scratch: one block's class rows (crops, C), and the statistics of their norm.
    pub class: Act,
    /// Mean and 1 / standard deviation of those rows (crops).
    pub stats: NormStats,
}

impl Earlier {
    pub(crate) const fn take(blocks: usize, crops: usize, dim: usize, l: &mut Layout) -> Earlier {
        let (classes, class) = (l.act(blocks * crops * dim), l.act(crops * dim));
        Earlier { blocks, classes, class, stats: NormStats { mean: l.stat(crops), rstd: l.stat(crops) } }
    }
}

/// The numbers of a shape that are stored in the header of a flat blob ([`crate::flat`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FlatShape {
    /// A vision transformer's, and what its LayerNorms add to the variance.
    Vit { sizes: [usize; 8], eps: f64 },
    /// A residual network's, and width, blocks and stride of each stage.
    ResNet { sizes: [usize; 8], stages: [[usize; 3]; resnet::MAX_STAGES] },
}

/// Why the numbers of a blob's header are no shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum UnknownShape {
    /// No rule for positions has this number.
    Positions(usize),
    /// There are too many stages, or no kind of blocks or pool has its number.
    Kind,
}

impl Backbone {
    /// Refuses shapes and crops that make no sense.
    ///
    /// # Errors
    /// A size or a crop count is zero, C does not divide into the heads or makes them too wide, or an image or crop holds no patch.
    pub const fn check(&self, crops: &Crops) -> Result<(), PlanError> {
        match self {
            Backbone::Vit(v) => v.check(crops),
            Backbone::ResNet(r) => r.check(crops),
        }
    }

    /// How much memory a pass over the crops of `images` images needs at most, with `queries` rows of attention. Shape and crops have
    /// passed [`Backbone::check`].
    pub const fn bounds(&self, crops: &Crops, images: usize, queries: usize) -> Bounds {
        match self {
            Backbone::Vit(v) => v.bounds(crops, images, queries),
            Backbone::ResNet(r) => r.bounds(crops, images),
        }
    }

    /// What it gives beside one row a crop.
    pub const fn gives(&self) -> Gives {
        match self {
            Backbone::Vit(_) => Gives { tokens: true, attention: true },
            Backbone::ResNet(_) => Gives { tokens: false, attention: false },
        }
    }

    /// Side in pixels of the square image that it is made for.
    pub const fn image(&self) -> usize {
        match self {
            Backbone::Vit(v) => v.image,
            Backbone::ResNet(r) => r.image,
        }
    }

    /// Color channels of the image.
    pub const fn channels(&self) -> usize {
        match self {
            Backbone::Vit(v) => v.channels,
            Backbone::ResNet(r) => r.channels,
        }
    }

    /// C, the width of its output rows.
    pub const fn dim(&self) -> usize {
        match self {
            Backbone::Vit(v) => v.dim,
            Backbone::ResNet(r) => r.dim(),
        }
    }

    /// Blocks whose class rows can be asked for, the last one included ([`Earlier`]).
    pub const fn blocks(&self) -> usize {
        match self {
            Backbone::Vit(v) => v.depth,
            Backbone::ResNet(_) => 1,
        }
    }

    /// Pixels of a side of the square of the image that one cell of [`Backbone::grid`] stands for.
    pub const fn cell(&self) -> usize {
        match self {
            Backbone::Vit(v) => v.patch,
            Backbone::ResNet(r) => r.stride(),
        }
    }

    /// Rows and columns of the patch tokens of an image of such a group ([`Gives::tokens`]), or of the last map of a residual network.
    pub const fn grid(&self, image: Group) -> [usize; 2] {
        match self {
            Backbone::Vit(v) => image.grid(v.patch),
            Backbone::ResNet(r) => {
                let map = r.last_maps(Crops::one(image)).group(0);
                [map.height, map.width]
            }
        }
    }

    /// Residual blocks.
    pub const fn depth(&self) -> usize {
        match self {
            Backbone::Vit(v) => v.depth,
            Backbone::ResNet(r) => r.depth(),
        }
    }

    /// What weight and bias of a linear classifier behind it are called, and how they start: timm's and DeiT's, or torchvision's.
    pub(crate) const fn classifier(&self) -> ([&'static str; 2], [Init; 2]) {
        match self {
            Backbone::Vit(_) => (["head.weight", "head.bias"], [Init::TruncNormal(0.02), Init::Zeros]),
            Backbone::ResNet(r) => (["fc.weight", "fc.bias"], [Init::FanIn(r.dim()); 2]),
        }
    }

    /// Residual branches that stochastic depth may drop: so many scales a crop.
    pub const fn branches(&self) -> usize {
        match self {
            Backbone::Vit(v) => 2 * v.depth,
            Backbone::ResNet(_) => 0,
        }
    }

    /// What a pass over these crops costs, in units of its own (tokens): passes are split by it.
    pub const fn cost(&self, crops: &Crops) -> usize {
        match self {
            Backbone::Vit(v) => crops.tokens(v.patch).rows(),
            // As many pixels as a ViT/16 makes a token of.
            Backbone::ResNet(_) => crops.pixels().div_ceil(256),
        }
    }

    /// What a backend's own scratch for a pass over these crops depends on.
    /// `group`: images of a batch norm's group; none where it goes by running statistics.
    pub const fn extents(&self, crops: &Crops, group: Option<usize>) -> Extents {
        match self {
            Backbone::Vit(v) => Extents {
                longest: crops.tokens(v.patch).longest(),
                head_dim: v.dim / v.heads,
                widest: v.widest(),
                filters: 0,
                sums: 0,
            },
            Backbone::ResNet(r) => r.extents(*crops, group),
        }
    }

    /// Calls `f` for every parameter, in the published order.
    pub fn params(&self, l: &mut Layout, f: &mut impl FnMut(Spec)) {
        match self {
            Backbone::Vit(v) => v.visit(&mut l.weights, f),
            Backbone::ResNet(r) => r.visit(&mut l.weights, f),
        }
    }

    /// Elements of its parameters, alignment included.
    #[allow(clippy::len_without_is_empty)]
    pub const fn len(&self) -> usize {
        self.sizes().weights.next
    }

    /// Where its parameters and buffers end, from 0 on.
    const fn sizes(&self) -> Layout {
        let mut l = Layout::new();
        match self {
            Backbone::Vit(v) => {
                v.weights(&mut l.weights);
            }
            Backbone::ResNet(r) => r.skip(&mut l),
        }
        l
    }

    /// Whether what a pass makes of a crop depends on the other crops of the batch: then it takes groups of images as they are.
    pub const fn batch_statistics(&self) -> bool {
        match self {
            Backbone::Vit(_) => false,
            Backbone::ResNet(_) => true,
        }
    }

    /// Whether every group of so many images has a variance, whatever the size of its crops.
    pub(crate) const fn groups_vary(&self, views: &Crops, group: usize) -> bool {
        match self {
            Backbone::Vit(_) => true,
            Backbone::ResNet(r) => r.groups_vary(views, group),
        }
    }

    /// Calls `f` for every buffer, in the published order.
    pub fn buffers(&self, l: &mut Layout, f: &mut impl FnMut(Buffer)) {
        match self {
            Backbone::Vit(_) => {}
            Backbone::ResNet(r) => r.visit_buffers(&mut l.state, f),
        }
    }

    /// Elements of its buffers, alignment included.
    pub const fn buffers_len(&self) -> usize {
        self.sizes().state.next
    }

    /// The network over the crops of a micro-batch: the student's. Its buffers are at `running`.
    pub const fn network(&self, crops: Crops, statistics: Statistics, running: State, l: &mut Layout) -> Network {
        match self {
            Backbone::Vit(v) => Network::Vit(v.network(crops, l)),
            Backbone::ResNet(r) => Network::ResNet(r.network(crops, statistics, running, l)),
        }
    }

    /// A network with one pass over all `crops`, which saves nothing, and memory for `queries` rows of attention a crop.
    pub const fn inference(&self, crops: Crops, output: Output, queries: usize, l: &mut Layout) -> Inference {
        match self {
            Backbone::Vit(v) => {
                let (network, pixels, pass, attention) = v.inference(crops, output, queries, l);
                Inference { network: Network::Vit(network), pixels, pass: Pass::Vit(pass), attention }
            }
            Backbone::ResNet(r) => {
                let running = l.state(self.buffers_len());
                let network = r.network(crops, Statistics::Running, running, l);
                let (pixels, pass) = network.inference(output, l);
                let (network, pass) = (Network::ResNet(network), Pass::ResNet(pass));
                Inference { network, pixels, pass, attention: Act::EMPTY }
            }
        }
    }

    pub(crate) const fn flat(&self) -> FlatShape {
        match self {
            Backbone::Vit(v) => v.flat(),
            Backbone::ResNet(r) => r.flat(),
        }
    }

    /// The shape with these numbers.
    pub(crate) fn from_flat(shape: FlatShape) -> Result<Backbone, UnknownShape> {
        match shape {
            FlatShape::Vit { sizes, eps } => {
                Vit::from_flat(sizes, eps).map(Backbone::Vit).map_err(UnknownShape::Positions)
            }
            FlatShape::ResNet { sizes, stages } => {
                ResNet::from_flat(sizes, stages).map(Backbone::ResNet).ok_or(UnknownShape::Kind)
            }
        }
    }
}

impl Network {
    /// The teacher beside this student: its weights are `by` elements further on, its crops are the first of these, it reads the same
    /// input, and its buffers are at `running`.
    pub const fn teacher(&self, by: usize, crops: Crops, running: State, l: &mut Layout) -> Network {
        match self {
            Network::Vit(n) => Network::Vit(n.teacher(by, crops, l)),
            Network::ResNet(n) => Network::ResNet(n.teacher(by, crops, running)),
        }
    }

    /// Where the pixels of a micro-batch are written, every group (count, channels, height, width). `passes` is where the passes begin:
    /// pixels that nothing reads after [`Network::prepare`] are stored there, and overwritten.
    pub const fn pixels(&self, passes: &mut Layout) -> Act {
        match self {
            Network::Vit(n) => n.pixels(passes),
            Network::ResNet(n) => n.pixels(passes),
        }
    }

    /// What [`Network::prepare`] writes for the passes to read.
    pub const fn input(&self) -> Act {
        match self {
            Network::Vit(n) => n.patches,
            Network::ResNet(n) => n.input,
        }
    }

    /// A forward pass over `count` of its crops from crop `first` on. `drop`: the stochastic-depth scales (branches, crops), or empty.
    pub const fn pass(
        &self,
        [first, count]: [usize; 2],
        output: Output,
        save: Save,
        drop: State,
        l: &mut Layout,
    ) -> Pass {
        match self {
            Network::Vit(n) => Pass::Vit(n.pass([first, count], output, save, drop, l)),
            Network::ResNet(n) => Pass::ResNet(n.pass([first, count], output, save, l)),
        }
    }

    /// The buffers that its passes read or move; empty without any ([`Backbone::buffers`]).
    pub const fn running(&self) -> State {
        match self {
            Network::Vit(_) => State::EMPTY,
            Network::ResNet(n) => n.running,
        }
    }

    /// Writes what the state pool holds of it before the first step.
    pub fn initial_state<T: Real>(&self, state: &mut [T]) {
        match self {
            Network::Vit(n) => n.initial_state(state),
            Network::ResNet(n) => {
                n.resnet.visit_buffers(&mut Cursor::new(), &mut |b| {
                    state[n.running.part(b.at.0.at, b.at.len()).range()].fill(T::of(b.value));
                });
            }
        }
    }

    /// Once a step: what the weights alone determine.
    pub fn begin<O: Forward>(&self, o: &mut O) {
        match self {
            Network::Vit(n) => n.begin(o),
            Network::ResNet(_) => {}
        }
    }

    /// Once a micro-batch: what passes read, the teacher's too, made from the pixels.
    pub fn prepare<O: Forward>(&self, o: &mut O, pixels: Act) {
        match self {
            Network::Vit(n) => n.prepare(o, pixels),
            Network::ResNet(n) => n.prepare(o, pixels),
        }
    }

    /// Calls `f` for every span that outlives a pass, the input aside, its name beginning with `part`.
    pub fn spans(&self, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        match self {
            Network::Vit(n) => n.positions.visit(part, f),
            Network::ResNet(_) => {}
        }
    }
}

impl Pass {
    /// The same with scratch for a backward pass. It must save what that reads.
    pub const fn with_gradients(self, l: &mut Layout) -> Pass {
        match self {
            Pass::Vit(p) => Pass::Vit(p.with_gradients(l)),
            Pass::ResNet(p) => Pass::ResNet(p.with_gradients(l)),
        }
    }

    /// From the input to the output at [`Pass::y`].
    pub fn forward<O: Forward>(&self, o: &mut O) {
        match self {
            Pass::Vit(p) => p.forward(o),
            Pass::ResNet(p) => p.forward(o),
        }
    }

    /// The same; beside the output it leaves the class rows of earlier blocks.
    pub fn forward_keeping<O: Forward>(&self, o: &mut O, kept: &Earlier) {
        match self {
            Pass::Vit(p) => p.forward_keeping(o, kept),
            Pass::ResNet(p) => p.forward(o),
        }
    }

    /// From the gradient at [`Pass::dy`] to every parameter's.
    pub fn backward<O: Backward>(&self, o: &mut O) {
        match self {
            Pass::Vit(p) => p.backward(o),
            Pass::ResNet(p) => p.backward(o),
        }
    }

    /// The same for its last `blocks` residual blocks, and what follows them, alone: nothing in front of them gets a gradient.
    pub fn backward_last<O: Backward>(&self, o: &mut O, blocks: usize) {
        match self {
            Pass::Vit(p) => p.backward_last(o, blocks),
            Pass::ResNet(p) => {
                p.backward_last(o, blocks);
            }
        }
    }

    /// The output: (crops, C), or all rows of a dense pass.
    pub const fn y(&self) -> Act {
        match self {
            Pass::Vit(p) => p.acts.y(),
            Pass::ResNet(p) => p.y(),
        }
    }

    /// The gradient of the output (crops, C), which the head sets.
    pub const fn dy(&self) -> Act {
        match self {
            Pass::Vit(p) => p.grads.dy,
            Pass::ResNet(p) => p.grads.dy,
        }
    }

    /// After a dense pass: the last layer's attention of the first `queries` rows of every crop.
    pub fn attention<O: Forward>(&self, o: &mut O, y: Act, queries: usize) {
        match self {
            Pass::Vit(p) => p.attention(o, y, queries),
            Pass::ResNet(_) => {}
        }
    }

    /// Draws the stochastic-depth scales (branches, crops) of a pass over `views` of `images`, which are ids; crops are view-major.
    pub fn draw<T: Real>(&self, scales: &mut [T], key: DropPath, views: Range<usize>, images: &[u32]) {
        match self {
            Pass::Vit(p) => p.draw(scales, key, views, images),
            Pass::ResNet(_) => {}
        }
    }

    /// Calls `f` for every span that the forward pass writes, with the rows of a crop that it has, its name beginning with `part`.
    pub fn spans(&self, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        match self {
            Pass::Vit(p) => p.spans(part, f),
            Pass::ResNet(p) => p.spans(part, f),
        }
    }

    /// The same of the backward pass.
    pub fn gradient_spans(&self, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        match self {
            Pass::Vit(p) => p.gradient_spans(part, f),
            Pass::ResNet(p) => p.gradient_spans(part, f),
        }
    }

    /// Offers every matrix of the pass, parts of spans that some ops use with other rows included.
    pub(crate) fn find(&self, lookup: &mut Lookup) {
        // Parts first: one may be as long as its span, and only the part has rows then.
        match self {
            Pass::Vit(p) => p.reused(&mut |span, rows| lookup.offer(span, rows)),
            Pass::ResNet(p) => p.reused(&mut |span, rows| lookup.offer(span, rows)),
        }
        let mut offer = |_, pool, span, rows| {
            if pool == Pool::Acts {
                lookup.offer(span, rows);
            }
        };
        self.spans("", &mut offer);
        self.gradient_spans("", &mut offer);
    }
}
