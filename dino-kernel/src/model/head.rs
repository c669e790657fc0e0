//! The projection head (paper, section 3.1 and appendix C): Linear-GELU-…-Linear to the bottleneck, l2 normalization, then K
//! weight-normalized prototypes without bias. The logits are computed inside the loss ops, which stream over the prototypes.

use crate::backend::{Affine, Backward, Forward, Mat, Prototypes, Rows};
use crate::crops::Ragged;
use crate::mem::{Act, Cursor, Layout, Pool, Span, Stat, Weight, max};
use crate::model::check::{Bounds, mul};
use crate::model::spans::pass_on;
use crate::params::{Init, Name, ParamGroup, Part, Spec, spec};

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
}

/// Handles of the head's parameters.
#[derive(Clone, Copy, Debug)]
pub struct HeadWeights {
    mlp: [Affine; MAX_LAYERS],
    /// Gain of every prototype (K, 1).
    pub g: Weight,
    /// Directions (K, bottleneck).
    pub v: Weight,
}

impl HeadWeights {
    /// The same parameters, `by` elements further on: the teacher's.
    pub const fn shift(mut self, by: usize) -> HeadWeights {
        let mut i = 0;
        while i < MAX_LAYERS {
            self.mlp[i] = self.mlp[i].shift(by);
            i += 1;
        }
        HeadWeights { mlp: self.mlp, g: self.g.shift(by), v: self.v.shift(by) }
    }
}

/// What a pass over `rows` class rows writes. With `save`, everything a backward pass needs.
#[derive(Clone, Copy, Debug)]
pub struct HeadActs {
    /// Number of class rows.
    pub rows: usize,
    linear: [Act; MAX_LAYERS],
    gelu: [Act; MAX_LAYERS],
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
            let spans = [("linear", Pool::Acts, new(&self.linear)), ("gelu", Pool::Acts, new(&self.gelu))];
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
        Bounds { weights: layers.saturating_add(prototypes), acts: mul(mul(rows, wide), 8 * MAX_LAYERS), state: 0 }
    }

    const fn widths(&self, layer: usize) -> [usize; 2] {
        let inp = if layer == 0 { self.inp } else { self.hidden };
        let out = if layer + 1 == self.layers { self.bottleneck } else { self.hidden };
        [inp, out]
    }

    const fn layer(&self, i: usize, c: &mut Cursor) -> [Spec; 2] {
        let [inp, out] = self.widths(i);
        // The published module list alternates Linear and GELU, so layer i has index 2 i.
        const fn name(i: usize, leaf: &'static str) -> Name {
            Name { part: "head.", list: "mlp.", index: 2 * i, leaf }
        }
        [
            spec(name(i, "weight"), [out, inp], Init::Linear, ParamGroup::Decay, c).of(Part::Head),
            spec(name(i, "bias"), [out], Init::Zeros, ParamGroup::Plain, c).of(Part::Head),
        ]
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
        }
        self.last_layer(c).into_iter().for_each(f);
    }

    /// Handles of the parameters.
    pub const fn weights(&self, c: &mut Cursor) -> HeadWeights {
        let (mut mlp, mut i) = ([Affine { w: Weight::EMPTY, b: Weight::EMPTY }; MAX_LAYERS], 0);
        while i < self.layers {
            let [w, b] = self.layer(i, c);
            mlp[i] = Affine { w: w.at, b: b.at };
            i += 1;
        }
        let [g, v] = self.last_layer(c);
        HeadWeights { mlp, g: g.at, v: v.at }
    }

    /// Where a pass over `rows` rows writes; without `save` the outputs of the layers alternate between two spans.
    pub const fn acts(&self, rows: usize, save: bool, l: &mut Layout) -> HeadActs {
        let (mut linear, mut gelu, mut i) = ([Act::EMPTY; MAX_LAYERS], [Act::EMPTY; MAX_LAYERS], 0);
        while i + 1 < self.layers {
            let reuse = !save && i >= 2;
            linear[i] = if !save && i > 0 { linear[0] } else { l.act(rows * self.hidden) };
            gelu[i] = if reuse { gelu[i - 2] } else { l.act(rows * self.hidden) };
            i += 1;
        }
        let width = rows * self.bottleneck;
        HeadActs { rows, linear, gelu, bottleneck: l.act(width), z: l.act(width), norm: l.stat(rows) }
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
            if i + 1 < self.layers {
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
                o.gelu_backward(a.gelu[i - 1], g.d_gelu, a.linear[i - 1]);
                dy = a.gelu[i - 1];
            }
        }
    }
}
