//! The projection head (paper, section 3.1 and appendix C): Linear-GELU-…-Linear to the bottleneck, l2 normalization, then K
//! weight-normalized prototypes without bias. With batch norms (published `--use_bn_in_head`) one is in front of every GELU; its
//! statistics are over the rows of all crops, for the head takes them together. The logits are computed inside the loss ops, which stream over the prototypes.

use crate::backend::{Affine, Backward, BatchNorm, Forward, Mat, NormStats, Prototypes, Rows, Running};
use crate::crops::Ragged;
use crate::mem::{Act, Cursor, Layout, Pool, Span, Stat, State, Weight, max};
use crate::model::Statistics;
use crate::model::check::{Bounds, mul};
use crate::model::spans::pass_on;
use crate::params::{Buffer, Init, Name, ParamGroup, Part, Spec, buffer, spec};

/// Most layers a head may have.
pub const MAX_LAYERS: usize = 8;

/// Shape of a projection head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Width of the backbone's output.
    pub inp: usize,
    /// Linear layers before the l2 normalization, 1..=8; published 3.
    pub layers: usize,
    /// Width between them; published 2048.
    pub hidden: usize,
    /// Width of the normalized rows; published 256.
    pub bottleneck: usize,
    /// K; published 65536.
    pub prototypes: usize,
    /// Whether the gain g is trained. The published `norm_last_layer = True` freezes it at 1.
    pub train_gain: bool,
    /// Whether a batch norm is in front of every GELU; published false.
    pub batch_norm: bool,
}

/// Handles of the head's parameters.
#[derive(Clone, Copy, Debug)]
pub struct HeadWeights {
    mlp: [Affine; MAX_LAYERS],
    norms: [Affine; MAX_LAYERS],
    running: [Running; MAX_LAYERS],
    /// Gain of every prototype (K, 1).
    pub g: Weight,
    /// Directions (K, bottleneck).
    pub v: Weight,
}

impl HeadWeights {
    /// The same parameters, `by` elements further on, and the same buffers, `buffers_by` further on: the teacher's.
    pub const fn shift(mut self, by: usize, buffers_by: usize) -> HeadWeights {
        let mut i = 0;
        while i < MAX_LAYERS {
            self.mlp[i] = self.mlp[i].shift(by);
            self.norms[i] = self.norms[i].shift(by);
            let Running { mean, var } = self.running[i];
            self.running[i] = Running { mean: mean.shift(buffers_by), var: var.shift(buffers_by) };
            i += 1;
        }
        HeadWeights { g: self.g.shift(by), v: self.v.shift(by), ..self }
    }
}

/// What a pass over `rows` class rows writes. With `save`, everything a backward pass needs.
#[derive(Clone, Copy, Debug)]
pub struct HeadActs {
    /// Number of class rows.
    pub rows: usize,
    linear: [Act; MAX_LAYERS],
    /// With batch norms what they write; else empty.
    normed: [Act; MAX_LAYERS],
    gelu: [Act; MAX_LAYERS],
    stats: [NormStats; MAX_LAYERS],
    statistics: Statistics,
    bottleneck: Act,
    /// l2-normalized rows (rows, bottleneck): what the loss reads.
    pub z: Act,
    norm: Stat,
}

impl HeadActs {
    /// Rows before normalization (rows, bottleneck).
    pub const fn bottleneck(&self) -> Act {
        self.bottleneck
    }

    /// Calls `f` for every span of the pass, with its rows, its name beginning with `part`.
    pub fn visit(&self, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        let rows = Ragged::single(self.rows);
        for i in 0..MAX_LAYERS {
            // Where nothing is saved, later layers write where earlier ones did.
            let new = |all: &[Act; MAX_LAYERS]| if all[..i].contains(&all[i]) { Span::EMPTY } else { all[i].0 };
            let spans = [
                ("linear", Pool::Acts, new(&self.linear)),
                ("norm.y", Pool::Acts, new(&self.normed)),
                ("gelu", Pool::Acts, new(&self.gelu)),
                ("norm.mean", Pool::Stats, self.stats[i].mean.0),
                ("norm.rstd", Pool::Stats, self.stats[i].rstd.0),
            ];
            pass_on(f, part, "head.layer.", i, rows, spans);
        }
        let spans = [
            ("head.bottleneck", Pool::Acts, self.bottleneck.0),
            ("head.z", Pool::Acts, self.z.0),
            ("head.norm", Pool::Stats, self.norm.0),
        ];
        pass_on(f, part, "", 0, Ragged::single(self.rows), spans);
    }
}

impl HeadGrads {
    /// Calls `f` for every span of the scratch, with its rows, its name beginning with `part`.
    pub fn visit(&self, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        let spans = [
            ("head.dz", Pool::Acts, self.dz.0),
            ("head.d_bottleneck", Pool::Acts, self.d_bottleneck.0),
            ("head.d_gelu", Pool::Acts, self.d_gelu.0),
        ];
        pass_on(f, part, "", 0, Ragged::single(self.rows), spans);
    }
}

/// Scratch of a backward pass.
#[derive(Clone, Copy, Debug)]
pub struct HeadGrads {
    rows: usize,
    /// The gradient of the l2-normalized rows, set by the loss.
    pub dz: Act,
    d_bottleneck: Act,
    d_gelu: Act,
}

impl Head {
    /// How much memory a training step over `rows` rows needs at most.
    pub(crate) const fn bounds(&self, rows: u128) -> Bounds {
        let wide = max(self.bottleneck, max(self.hidden, self.inp));
        let layers = mul(mul(mul(1, wide), wide), self.layers);
        let prototypes = mul(mul(2, self.prototypes), self.bottleneck.saturating_add(1));
        Bounds {
            weights: layers.saturating_add(prototypes),
            acts: mul(mul(rows, wide), 8 * MAX_LAYERS),
            state: mul(mul(1, wide), 8 * MAX_LAYERS),
        }
    }

    const fn widths(&self, layer: usize) -> [usize; 2] {
        let inp = if layer == 0 { self.inp } else { self.hidden };
        let out = if layer + 1 == self.layers { self.bottleneck } else { self.hidden };
        [inp, out]
    }

    /// The published module list is Linear, GELU, Linear and so on, or Linear, BatchNorm1d, GELU, Linear: the place of layer i in it.
    const fn index(&self, i: usize) -> usize {
        if self.batch_norm { 3 * i } else { 2 * i }
    }

    const fn layer(&self, i: usize, c: &mut Cursor) -> [Spec; 2] {
        let ([inp, out], index) = (self.widths(i), self.index(i));
        const fn name(index: usize, leaf: &'static str) -> Name {
            Name { part: "head.", list: "mlp.", index, leaf }
        }
        [
            spec(name(index, "weight"), [out, inp], Init::Linear, ParamGroup::Decay, c).of(Part::Head),
            spec(name(index, "bias"), [out], Init::Zeros, ParamGroup::Plain, c).of(Part::Head),
        ]
    }

    /// Layers that a batch norm follows.
    const fn norms(&self) -> usize {
        if self.batch_norm { self.layers.saturating_sub(1) } else { 0 }
    }

    const fn norm(&self, i: usize, c: &mut Cursor) -> [Spec; 2] {
        let at = Name { part: "head.", list: "mlp.", index: self.index(i) + 1, leaf: "weight" };
        [
            spec(at, [self.hidden], Init::Ones, ParamGroup::Plain, c).of(Part::Head),
            spec(Name { leaf: "bias", ..at }, [self.hidden], Init::Zeros, ParamGroup::Plain, c).of(Part::Head),
        ]
    }

    const fn norm_buffers(&self, i: usize, c: &mut Cursor) -> [Buffer; 2] {
        let at = Name { part: "head.", list: "mlp.", index: self.index(i) + 1, leaf: "running_mean" };
        [buffer(at, self.hidden, 0.0, c), buffer(Name { leaf: "running_var", ..at }, self.hidden, 1.0, c)]
    }

    /// Calls `f` for every buffer, in the published order.
    pub(super) fn buffers(&self, c: &mut Cursor, f: &mut impl FnMut(Buffer)) {
        (0..self.norms()).for_each(|i| self.norm_buffers(i, c).into_iter().for_each(&mut *f));
    }

    /// Moves on by all buffers.
    pub(super) const fn skip_buffers(&self, c: &mut Cursor) {
        let mut i = 0;
        while i < self.norms() {
            self.norm_buffers(i, c);
            i += 1;
        }
    }

    /// The batch norms over so many rows.
    const fn batch_norm(&self, rows: usize, statistics: Statistics) -> BatchNorm {
        statistics.norm(Ragged::single(rows), self.hidden, false)
    }

    /// Partial sums of a batch norm over so many rows, in groups of so many images.
    pub(crate) const fn sums(&self, rows: usize, group: usize) -> usize {
        if self.norms() == 0 {
            return 0;
        }
        2 * self.batch_norm(rows, Statistics::Groups { images: group, group }).blocks() * self.hidden
    }

    const fn last_layer(&self, c: &mut Cursor) -> [Spec; 2] {
        let (k, b) = (self.prototypes, self.bottleneck);
        const fn name(leaf: &'static str) -> Name {
            Name { part: "head.", list: "", index: 0, leaf }
        }
        let g = spec(name("last_layer.weight_g"), [k, 1], Init::Ones, ParamGroup::LastDecay, c);
        // Created after the head's own initializer has run, so it keeps the linear layer's default.
        let v = spec(name("last_layer.weight_v"), [k, b], Init::FanIn(b), ParamGroup::LastDecay, c);
        [Spec { frozen: !self.train_gain, ..g }.of(Part::Head), v.of(Part::Head)]
    }

    pub(super) fn visit(&self, c: &mut Cursor, f: &mut impl FnMut(Spec)) {
        for i in 0..self.layers {
            self.layer(i, c).into_iter().for_each(&mut *f);
            if i < self.norms() {
                self.norm(i, c).into_iter().for_each(&mut *f);
            }
        }
        self.last_layer(c).into_iter().for_each(f);
    }

    /// Handles of the parameters, and of the buffers, which begin at `buffers` in the state pool.
    pub const fn weights(&self, c: &mut Cursor, buffers: usize) -> HeadWeights {
        let (mut mlp, mut i) = ([Affine { w: Weight::EMPTY, b: Weight::EMPTY }; MAX_LAYERS], 0);
        let (mut norms, mut running) = (mlp, [Running { mean: State::EMPTY, var: State::EMPTY }; MAX_LAYERS]);
        let mut state = Cursor { next: buffers };
        while i < self.layers {
            let [w, b] = self.layer(i, c);
            mlp[i] = Affine { w: w.at, b: b.at };
            if i < self.norms() {
                let ([w, b], [mean, var]) = (self.norm(i, c), self.norm_buffers(i, &mut state));
                norms[i] = Affine { w: w.at, b: b.at };
                running[i] = Running { mean: mean.at, var: var.at };
            }
            i += 1;
        }
        let [g, v] = self.last_layer(c);
        HeadWeights { mlp, norms, running, g: g.at, v: v.at }
    }

    /// Where a pass over `rows` rows writes; without `save` the outputs of the layers alternate between two spans.
    pub const fn acts(&self, rows: usize, save: bool, statistics: Statistics, l: &mut Layout) -> HeadActs {
        let (mut linear, mut gelu, mut i) = ([Act::EMPTY; MAX_LAYERS], [Act::EMPTY; MAX_LAYERS], 0);
        let (mut normed, mut stats) = (linear, [NormStats { mean: Stat::EMPTY, rstd: Stat::EMPTY }; MAX_LAYERS]);
        while i + 1 < self.layers {
            let reuse = !save && i >= 2;
            linear[i] = if !save && i > 0 { linear[0] } else { l.act(rows * self.hidden) };
            gelu[i] = if reuse { gelu[i - 2] } else { l.act(rows * self.hidden) };
            if i < self.norms() {
                let len = self.batch_norm(rows, statistics).groups() * self.hidden;
                normed[i] = if !save && i > 0 { normed[0] } else { l.act(rows * self.hidden) };
                stats[i] = NormStats { mean: l.stat(len), rstd: l.stat(len) };
            }
            i += 1;
        }
        let width = rows * self.bottleneck;
        let (bottleneck, z, norm) = (l.act(width), l.act(width), l.stat(rows));
        HeadActs { rows, linear, normed, gelu, stats, statistics, bottleneck, z, norm }
    }

    /// Scratch of a backward pass over `rows` rows.
    pub const fn grads(&self, rows: usize, l: &mut Layout) -> HeadGrads {
        let (width, hidden) = (rows * self.bottleneck, if self.layers > 1 { rows * self.hidden } else { 0 });
        HeadGrads { rows, dz: l.act(width), d_bottleneck: l.act(width), d_gelu: l.act(hidden) }
    }

    /// The prototypes as the loss ops take them.
    pub const fn prototypes(&self, w: &HeadWeights, scale: Stat) -> Prototypes {
        Prototypes { v: w.v, scale }
    }

    const fn mat(&self, layer: usize, rows: usize) -> Mat {
        let [inp, out] = self.widths(layer);
        Mat { rows, inp, out }
    }

    /// From x (rows, C) to the l2-normalized rows `a.z`.
    pub fn forward<O: Forward>(&self, o: &mut O, w: &HeadWeights, a: &HeadActs, x: Act) {
        let mut x = x;
        for i in 0..self.layers {
            let (layer, n) = (w.mlp[i], self.mat(i, a.rows));
            if i < self.norms() {
                let n_norm = self.batch_norm(a.rows, a.statistics);
                o.linear(a.linear[i], x, layer, n);
                o.batch_statistics(a.stats[i], w.running[i], a.linear[i], n_norm);
                o.batch_normalize(a.normed[i], a.linear[i], Act::EMPTY, a.stats[i], w.norms[i], n_norm);
                o.gelu(a.gelu[i], a.normed[i]);
                x = a.gelu[i];
            } else if i + 1 < self.layers {
                o.linear_gelu(a.gelu[i], a.linear[i], x, layer, n);
                x = a.gelu[i];
            } else {
                o.linear(a.bottleneck, x, layer, n);
            }
        }
        o.l2_normalize(a.z, a.norm, a.bottleneck, Rows { rows: a.rows, cols: self.bottleneck });
    }

    /// `g.dz` to dx (rows, C), parameters accumulating.
    pub fn backward<O: Backward>(&self, o: &mut O, w: &HeadWeights, a: &HeadActs, g: &HeadGrads, dx: Act, x: Act) {
        o.l2_normalize_backward(g.d_bottleneck, g.dz, a.z, a.norm, Rows { rows: a.rows, cols: self.bottleneck });
        let mut dy = g.d_bottleneck;
        for i in (0..self.layers).rev() {
            let (layer, n) = (w.mlp[i], self.mat(i, a.rows));
            if i == 0 {
                o.linear_backward(dx, dy, x, layer, n);
            } else {
                o.linear_backward(g.d_gelu, dy, a.gelu[i - 1], layer, n);
                // The GELU's output is not read again once the weight's gradient is formed: its span takes the next gradient.
                let before = if i <= self.norms() { a.normed[i - 1] } else { a.linear[i - 1] };
                o.gelu_backward(a.gelu[i - 1], g.d_gelu, before);
                dy = a.gelu[i - 1];
                if i <= self.norms() {
                    // Nor is what the norm wrote.
                    let (stats, n) = (a.stats[i - 1], self.batch_norm(a.rows, a.statistics));
                    o.batch_normalize_backward(before, dy, a.linear[i - 1], Act::EMPTY, stats, w.norms[i - 1], n);
                    dy = before;
                }
            }
        }
    }
}
