//! The projection head (paper, section 3.1 and appendix C): Linear-GELU-…-Linear to the bottleneck, l2 normalization, then K
//! weight-normalized prototypes without bias. The logits are computed inside the loss ops, which stream over the prototypes.
//!
//! What the paper's appendix D varies is a field each: the number of layers, ReLU for GELU, batch norms in front of the activations
//! (published `--use_bn_in_head`; their statistics are over the rows of all crops, for the head takes them together), no l2
//! normalization, no weight normalization. Without a bottleneck the last of the layers makes the logits: those before it, an activation
//! after each, are the MLP, and the prototypes are its rows. A predictor (table 7; BYOL's, Grill et al. 2020) is one more MLP of the
//! student's in front of the normalization, which the teacher does not have.

mod mlp;

use crate::backend::{Backward, Forward, Prototypes, Rows};
use crate::crops::Ragged;
use crate::mem::{Act, Cursor, Layout, Pool, Span, Stat, Weight, max};
use crate::model::Statistics;
use crate::model::check::{Bounds, mul};
use crate::model::spans::pass_on;
use crate::params::{Buffer, Init, Name, ParamGroup, Part, Spec, spec};
pub use mlp::{Activation, MAX_LAYERS};
use mlp::{Mlp, MlpActs, MlpWeights};

/// Shape of a projection head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Width of the backbone's output.
    pub inp: usize,
    /// Linear layers in front of the prototypes, 1..=8; published 3. Without a bottleneck the prototypes are the last of them.
    pub layers: usize,
    /// Width between them; published 2048.
    pub hidden: usize,
    /// Width of the rows that are compared with the prototypes; published 256. 0: there is no such layer.
    pub bottleneck: usize,
    /// K; published 65536.
    pub prototypes: usize,
    /// What is between the layers; published GELU.
    pub activation: Activation,
    /// Whether a batch norm is in front of every activation; published false.
    pub batch_norm: bool,
    /// Whether rows are l2-normalized in front of the prototypes; published true.
    pub l2_norm: bool,
    /// Whether prototypes are weight-normalized, w = g v / |v|; published true. Else their matrix is used as it is.
    pub weight_norm: bool,
    /// Whether the gain g is trained. The published `norm_last_layer = True` freezes it at 1.
    pub train_gain: bool,
    /// Width of the hidden layer of the student's predictor: Linear, activation, Linear, from the rows to rows of the same width. 0: none,
    /// as published.
    pub predictor: usize,
}

/// Handles of the head's parameters.
#[derive(Clone, Copy, Debug)]
pub struct HeadWeights {
    mlp: MlpWeights,
    predictor: MlpWeights,
    /// Gain of every prototype (K, 1); empty without weight normalization.
    pub g: Weight,
    /// Directions, or without weight normalization the prototypes themselves (K, [`Head::cols`]).
    pub v: Weight,
}

impl HeadWeights {
    /// The teacher's: the same parameters, `by` elements further on, and the same buffers, `buffers_by` further on. It has no predictor.
    pub const fn teacher(self, by: usize, buffers_by: usize) -> HeadWeights {
        let mlp = self.mlp.shift(by, buffers_by);
        HeadWeights { mlp, predictor: MlpWeights::NONE, g: self.g.shift(by), v: self.v.shift(by) }
    }
}

/// What a pass over `rows` class rows writes. With `save`, everything a backward pass needs.
#[derive(Clone, Copy, Debug)]
pub struct HeadActs {
    /// Number of class rows.
    pub rows: usize,
    activation: Activation,
    mlp: MlpActs,
    predictor: MlpActs,
    /// The rows that the loss reads (rows, [`Head::cols`]), l2-normalized unless the head leaves that out.
    pub z: Act,
    norm: Stat,
}

impl HeadActs {
    /// Rows before normalization (rows, [`Head::cols`]).
    pub const fn bottleneck(&self) -> Act {
        if self.predictor.y.len() > 0 { self.predictor.y } else { self.mlp.y }
    }

    /// Calls `f` for every span of the pass, with its rows, its name beginning with `part`.
    pub fn visit(&self, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        self.mlp.visit(self.activation, [part, "head.layer.", "head.bottleneck"], f);
        self.predictor.visit(self.activation, [part, "head.predictor.", "head.predicted"], f);
        // Rows that are not normalized are what the layers wrote.
        let z = if self.z == self.bottleneck() { Span::EMPTY } else { self.z.0 };
        let spans = [("head.z", Pool::Acts, z), ("head.norm", Pool::Stats, self.norm.0)];
        pass_on(f, part, "", 0, Ragged::single(self.rows), spans);
    }
}

/// Scratch of a backward pass.
#[derive(Clone, Copy, Debug)]
pub struct HeadGrads {
    rows: usize,
    /// The gradient of the rows that the loss reads, which sets it.
    pub dz: Act,
    /// That of the rows in front of the l2 normalization.
    d_bottleneck: Act,
    /// That of what an activation gives.
    d_active: Act,
    /// The same in the predictor, and that of what the predictor reads.
    d_predictor: [Act; 2],
}

impl HeadGrads {
    /// Calls `f` for every span of the scratch, with its rows, its name beginning with `part`.
    pub fn visit(&self, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        let spans = [
            ("head.dz", Pool::Acts, self.dz.0),
            ("head.d_bottleneck", Pool::Acts, self.d_bottleneck.0),
            ("head.d_active", Pool::Acts, self.d_active.0),
            ("head.predictor.d_active", Pool::Acts, self.d_predictor[0].0),
            ("head.predictor.dx", Pool::Acts, self.d_predictor[1].0),
        ];
        pass_on(f, part, "", 0, Ragged::single(self.rows), spans);
    }
}

impl Head {
    /// The published head of a ViT-S.
    pub const PUBLISHED: Head = Head {
        inp: 384,
        layers: 3,
        hidden: 2048,
        bottleneck: 256,
        prototypes: 65536,
        activation: Activation::Gelu,
        batch_norm: false,
        l2_norm: true,
        weight_norm: true,
        train_gain: false,
        predictor: 0,
    };

    /// The teacher's: without the predictor.
    pub const fn teacher(self) -> Head {
        Head { predictor: 0, ..self }
    }

    /// The linear layers that the prototypes come after.
    const fn mlp(&self) -> Mlp {
        let Head { inp, hidden, activation, batch_norm, .. } = *self;
        let whole = self.bottleneck > 0;
        let (layers, out) =
            if whole { (self.layers, self.bottleneck) } else { (self.layers.saturating_sub(1), hidden) };
        Mlp { list: "mlp.", inp, layers, hidden, out, activated: !whole, activation, batch_norm }
    }

    /// The student's predictor, without layers if there is none.
    const fn predictor_mlp(&self) -> Mlp {
        let Head { predictor: hidden, activation, batch_norm, .. } = *self;
        let (layers, cols) = (if hidden == 0 { 0 } else { 2 }, self.cols());
        Mlp { list: "predictor.", inp: cols, layers, hidden, out: cols, activated: false, activation, batch_norm }
    }

    /// Width of the rows that are compared with the prototypes.
    pub const fn cols(&self) -> usize {
        match (self.bottleneck, self.layers) {
            (0, 1) => self.inp,
            (0, _) => self.hidden,
            (cols, _) => cols,
        }
    }

    /// Whether it has batch norms, so that what it makes of a crop depends on the others.
    pub const fn batch_statistics(&self) -> bool {
        self.batch_norm && (self.mlp().norms() > 0 || self.predictor_mlp().norms() > 0)
    }

    /// Columns of the widest operand of its linear layers.
    pub(crate) const fn widest(&self) -> usize {
        max(self.cols(), max(self.mlp().widest(), self.predictor_mlp().widest()))
    }

    /// How much memory a training step over `rows` rows needs at most.
    pub(crate) const fn bounds(&self, rows: u128) -> Bounds {
        let wide = max(self.bottleneck, max(self.hidden, max(self.inp, self.predictor)));
        let layers = mul(mul(mul(1, wide), wide), self.layers + 2);
        let prototypes = mul(mul(2, self.prototypes), self.cols().saturating_add(1));
        Bounds {
            weights: layers.saturating_add(prototypes),
            acts: mul(mul(rows, wide), 8 * MAX_LAYERS),
            state: mul(mul(1, wide), 8 * MAX_LAYERS),
        }
    }

    /// Calls `f` for every buffer, in the published order.
    pub(super) fn buffers(&self, c: &mut Cursor, f: &mut impl FnMut(Buffer)) {
        self.mlp().buffers(c, f);
        self.predictor_mlp().buffers(c, f);
    }

    /// Moves on by all buffers.
    pub(super) const fn skip_buffers(&self, c: &mut Cursor) {
        self.mlp().skip_buffers(c);
        self.predictor_mlp().skip_buffers(c);
    }

    /// Partial sums of a batch norm over so many rows, in groups of so many images.
    pub(crate) const fn sums(&self, rows: usize, group: usize) -> usize {
        max(self.mlp().sums(rows, group), self.predictor_mlp().sums(rows, group))
    }

    /// The gain, which has no elements without weight normalization, and the directions or the prototypes themselves.
    const fn last_layer(&self, c: &mut Cursor) -> [Spec; 2] {
        let (k, cols) = (self.prototypes, self.cols());
        const fn name(leaf: &'static str) -> Name {
            Name { part: "head.", list: "", index: 0, leaf }
        }
        let gains = if self.weight_norm { k } else { 0 };
        let g = spec(name("last_layer.weight_g"), [gains, 1], Init::Ones, ParamGroup::LastDecay, c);
        let leaf = if self.weight_norm { "last_layer.weight_v" } else { "last_layer.weight" };
        // Behind a bottleneck it is created after the head's own initializer has run, so it keeps the linear layer's default. Without one
        // it is a layer of the MLP.
        let init = if self.bottleneck > 0 { Init::FanIn(cols) } else { Init::Linear };
        let v = spec(name(leaf), [k, cols], init, ParamGroup::LastDecay, c);
        [Spec { frozen: !self.train_gain, ..g }.of(Part::Head), v.of(Part::Head)]
    }

    /// Calls `f` for every parameter, in the published order; the predictor's, which the teacher does not have, are the last.
    pub(super) fn visit(&self, c: &mut Cursor, f: &mut impl FnMut(Spec)) {
        self.mlp().visit(c, f);
        self.last_layer(c).into_iter().filter(|spec| spec.at.len() > 0).for_each(&mut *f);
        self.predictor_mlp().visit(c, f);
    }

    /// Handles of the parameters, and of the buffers, which begin at `buffers` in the state pool.
    pub const fn weights(&self, c: &mut Cursor, buffers: usize) -> HeadWeights {
        let mut state = Cursor { next: buffers };
        let mlp = self.mlp().weights(c, &mut state);
        let [g, v] = self.last_layer(c);
        HeadWeights { mlp, predictor: self.predictor_mlp().weights(c, &mut state), g: g.at, v: v.at }
    }

    /// Where a pass over `rows` rows writes; without `save` the outputs of the layers alternate between two spans.
    pub const fn acts(&self, rows: usize, save: bool, statistics: Statistics, l: &mut Layout) -> HeadActs {
        let mlp = self.mlp().acts(rows, save, statistics, l);
        let predictor = self.predictor_mlp().acts(rows, save, statistics, l);
        let mut a = HeadActs { rows, activation: self.activation, mlp, predictor, z: Act::EMPTY, norm: Stat::EMPTY };
        // Rows that are not normalized are those that the last layer wrote, or a copy of the backbone's where there is no layer.
        a.z = if self.l2_norm || a.bottleneck().len() == 0 { l.act(rows * self.cols()) } else { a.bottleneck() };
        a.norm = l.stat(if self.l2_norm { rows } else { 0 });
        a
    }

    /// Scratch of a backward pass over `rows` rows.
    pub const fn grads(&self, rows: usize, l: &mut Layout) -> HeadGrads {
        let (mlp, predictor, width) = (self.mlp(), self.predictor_mlp(), rows * self.cols());
        let layers = mlp.layers + predictor.layers;
        HeadGrads {
            rows,
            dz: l.act(width),
            d_bottleneck: l.act(if self.l2_norm && layers > 0 { width } else { 0 }),
            d_active: mlp.grads(rows, l),
            d_predictor: [
                predictor.grads(rows, l),
                l.act(if mlp.layers > 0 && predictor.layers > 0 { width } else { 0 }),
            ],
        }
    }

    /// The prototypes as the loss ops take them.
    pub const fn prototypes(&self, w: &HeadWeights, scale: Stat) -> Prototypes {
        Prototypes { v: w.v, scale }
    }

    /// From x (rows, C) to the rows `a.z` that are compared with the prototypes.
    pub fn forward<O: Forward>(&self, o: &mut O, w: &HeadWeights, a: &HeadActs, x: Act) {
        let y = self.mlp().forward(o, &w.mlp, &a.mlp, x);
        let y = self.predictor_mlp().forward(o, &w.predictor, &a.predictor, y);
        if self.l2_norm {
            o.l2_normalize(a.z, a.norm, y, Rows { rows: a.rows, cols: self.cols() });
        } else if a.z != y {
            o.copy(a.z, y);
        }
    }

    /// The element from which on no gradient changes any more once the loss's are there: the first of the prototypes. None with a
    /// predictor, whose parameters come after them.
    pub fn complete_with_loss(&self, w: &HeadWeights) -> Option<usize> {
        let first = if self.weight_norm { w.g } else { w.v };
        (self.predictor_mlp().layers == 0).then_some(first.0.at)
    }

    /// `g.dz` to dx (rows, C), parameters accumulating.
    pub fn backward<O: Backward>(&self, o: &mut O, w: &HeadWeights, a: &HeadActs, g: &HeadGrads, dx: Act, x: Act) {
        let (mlp, predictor, mut dy) = (self.mlp(), self.predictor_mlp(), g.dz);
        if self.l2_norm {
            let to = if mlp.layers + predictor.layers > 0 { g.d_bottleneck } else { dx };
            o.l2_normalize_backward(to, dy, a.z, a.norm, Rows { rows: a.rows, cols: self.cols() });
            dy = to;
        }
        if predictor.layers > 0 {
            let [scratch, to] = g.d_predictor;
            let (to, from) = if mlp.layers > 0 { (to, a.mlp.y) } else { (dx, x) };
            predictor.backward(o, &w.predictor, &a.predictor, scratch, [to, dy, from]);
            dy = to;
        }
        if mlp.layers > 0 {
            mlp.backward(o, &w.mlp, &a.mlp, g.d_active, [dx, dy, x]);
        } else if dy != dx {
            o.copy(dx, dy);
        }
    }
}
