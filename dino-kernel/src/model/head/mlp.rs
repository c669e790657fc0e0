//! Linear layers with an activation between them: the MLP of the head, and its predictor.

use crate::backend::{Affine, Backward, BatchNorm, Forward, Mat, NormStats, Running};
use crate::crops::Ragged;
use crate::mem::{Act, Cursor, Layout, Pool, Span, Stat, State, Weight, max};
use crate::model::Statistics;
use crate::model::spans::pass_on;
use crate::params::{Buffer, Init, Name, ParamGroup, Part, Spec, buffer, spec};

/// Most layers of a head.
pub const MAX_LAYERS: usize = 8;

/// What is between linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x Phi(x), Phi the normal distribution function; published.
    Gelu,
    /// max(x, 0).
    Relu,
}

impl Activation {
    /// y = its value at x.
    fn forward<O: Forward>(self, o: &mut O, y: Act, x: Act) {
        match self {
            Activation::Gelu => o.gelu(y, x),
            Activation::Relu => o.relu(y, x),
        }
    }

    /// dx from dy.
    fn backward<O: Backward>(self, o: &mut O, dx: Act, dy: Act, x: Act) {
        match self {
            Activation::Gelu => o.gelu_backward(dx, dy, x),
            Activation::Relu => o.relu_backward(dx, dy, x),
        }
    }
}

/// The shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mlp {
    /// What its names begin with, after `head.`: `mlp.` or `predictor.`.
    pub(super) list: &'static str,
    pub(super) inp: usize,
    /// Linear layers, 0..=8. Without any the output is the input.
    pub(super) layers: usize,
    /// Width between them.
    pub(super) hidden: usize,
    pub(super) out: usize,
    /// Whether an activation follows the last layer too; its width is then the hidden one.
    pub(super) activated: bool,
    pub(super) activation: Activation,
    /// Whether a batch norm is in front of every activation.
    pub(super) batch_norm: bool,
}

/// Handles of the parameters, and of the buffers.
#[derive(Clone, Copy, Debug)]
pub(super) struct MlpWeights {
    linear: [Affine; MAX_LAYERS],
    norms: [Affine; MAX_LAYERS],
    running: [Running; MAX_LAYERS],
}

impl MlpWeights {
    pub(super) const NONE: MlpWeights = MlpWeights {
        linear: [Affine { w: Weight::EMPTY, b: Weight::EMPTY }; MAX_LAYERS],
        norms: [Affine { w: Weight::EMPTY, b: Weight::EMPTY }; MAX_LAYERS],
        running: [Running { mean: State::EMPTY, var: State::EMPTY }; MAX_LAYERS],
    };

    /// The same parameters, `by` elements further on, and the same buffers, `buffers_by` further on.
    pub(super) const fn shift(mut self, by: usize, buffers_by: usize) -> MlpWeights {
        let mut i = 0;
        while i < MAX_LAYERS {
            self.linear[i] = self.linear[i].shift(by);
            self.norms[i] = self.norms[i].shift(by);
            let Running { mean, var } = self.running[i];
            self.running[i] = Running { mean: mean.shift(buffers_by), var: var.shift(buffers_by) };
            i += 1;
        }
        self
    }
}

/// What a pass over `rows` rows writes. With `save`, everything a backward pass needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct MlpActs {
    rows: usize,
    /// Outputs of the linear layers that an activation follows.
    linear: [Act; MAX_LAYERS],
    /// With batch norms what they write; else empty.
    normed: [Act; MAX_LAYERS],
    active: [Act; MAX_LAYERS],
    stats: [NormStats; MAX_LAYERS],
    statistics: Statistics,
    /// Output of the last linear layer, if no activation follows it.
    last: Act,
    /// The output (rows, out); empty without layers.
    pub(super) y: Act,
}

impl MlpActs {
    pub(super) const NONE: MlpActs = MlpActs {
        rows: 0,
        linear: [Act::EMPTY; MAX_LAYERS],
        normed: [Act::EMPTY; MAX_LAYERS],
        active: [Act::EMPTY; MAX_LAYERS],
        stats: [NormStats { mean: Stat::EMPTY, rstd: Stat::EMPTY }; MAX_LAYERS],
        statistics: Statistics::Running,
        last: Act::EMPTY,
        y: Act::EMPTY,
    };

    /// Calls `f` for every span, its name beginning with `part`, then `list` and the layer's number; that of the last layer, if no
    /// activation follows it, is called `last`.
    pub(super) fn visit(
        &self,
        activation: Activation,
        [part, list, last]: [&'static str; 3],
        f: &mut impl FnMut(Name, Pool, Span, Ragged),
    ) {
        let rows = Ragged::single(self.rows);
        let active = match activation {
            Activation::Gelu => "gelu",
            Activation::Relu => "relu",
        };
        for i in 0..MAX_LAYERS {
            // Where nothing is saved, later layers write where earlier ones did.
            let new = |all: &[Act; MAX_LAYERS]| if all[..i].contains(&all[i]) { Span::EMPTY } else { all[i].0 };
            let spans = [
                ("linear", Pool::Acts, new(&self.linear)),
                ("norm.y", Pool::Acts, new(&self.normed)),
                (active, Pool::Acts, new(&self.active)),
                ("norm.mean", Pool::Stats, self.stats[i].mean.0),
                ("norm.rstd", Pool::Stats, self.stats[i].rstd.0),
            ];
            pass_on(f, part, list, i, rows, spans);
        }
        pass_on(f, part, "", 0, rows, [(last, Pool::Acts, self.last.0)]);
    }
}

impl Mlp {
    const fn widths(&self, layer: usize) -> [usize; 2] {
        let inp = if layer == 0 { self.inp } else { self.hidden };
        let out = if layer + 1 == self.layers { self.out } else { self.hidden };
        [inp, out]
    }

    /// Layers that an activation follows.
    const fn active(&self) -> usize {
        if self.activated { self.layers } else { self.layers.saturating_sub(1) }
    }

    /// Layers that a batch norm follows.
    pub(super) const fn norms(&self) -> usize {
        if self.batch_norm { self.active() } else { 0 }
    }

    /// The published module list is Linear, GELU, Linear and so on, or Linear, BatchNorm1d, GELU, Linear: the place of layer i in it.
    const fn index(&self, i: usize) -> usize {
        if self.batch_norm { 3 * i } else { 2 * i }
    }

    const fn name(&self, index: usize, leaf: &'static str) -> Name {
        Name { part: "head.", list: self.list, index, leaf }
    }

    const fn layer(&self, i: usize, c: &mut Cursor) -> [Spec; 2] {
        let ([inp, out], index) = (self.widths(i), self.index(i));
        [
            spec(self.name(index, "weight"), [out, inp], Init::Linear, ParamGroup::Decay, c).of(Part::Head),
            spec(self.name(index, "bias"), [out], Init::Zeros, ParamGroup::Plain, c).of(Part::Head),
        ]
    }

    const fn norm(&self, i: usize, c: &mut Cursor) -> [Spec; 2] {
        let (index, n) = (self.index(i) + 1, [self.hidden]);
        [
            spec(self.name(index, "weight"), n, Init::Ones, ParamGroup::Plain, c).of(Part::Head),
            spec(self.name(index, "bias"), n, Init::Zeros, ParamGroup::Plain, c).of(Part::Head),
        ]
    }

    const fn norm_buffers(&self, i: usize, c: &mut Cursor) -> [Buffer; 2] {
        let index = self.index(i) + 1;
        [
            buffer(self.name(index, "running_mean"), self.hidden, 0.0, c),
            buffer(self.name(index, "running_var"), self.hidden, 1.0, c),
        ]
    }

    /// Calls `f` for every parameter, in the published order.
    pub(super) fn visit(&self, c: &mut Cursor, f: &mut impl FnMut(Spec)) {
        for i in 0..self.layers {
            self.layer(i, c).into_iter().for_each(&mut *f);
            if i < self.norms() {
                self.norm(i, c).into_iter().for_each(&mut *f);
            }
        }
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

    /// Handles of the parameters at `c`, and of the buffers at `state`.
    pub(super) const fn weights(&self, c: &mut Cursor, state: &mut Cursor) -> MlpWeights {
        let (mut all, mut i) = (MlpWeights::NONE, 0);
        while i < self.layers {
            let [w, b] = self.layer(i, c);
            all.linear[i] = Affine { w: w.at, b: b.at };
            if i < self.norms() {
                let ([w, b], [mean, var]) = (self.norm(i, c), self.norm_buffers(i, state));
                all.norms[i] = Affine { w: w.at, b: b.at };
                all.running[i] = Running { mean: mean.at, var: var.at };
            }
            i += 1;
        }
        all
    }

    /// The batch norms over so many rows.
    const fn norm_dims(&self, rows: usize, statistics: Statistics) -> BatchNorm {
        statistics.norm(Ragged::single(rows), self.hidden, false)
    }

    /// Partial sums of a batch norm over so many rows, in groups of so many images.
    pub(super) const fn sums(&self, rows: usize, group: usize) -> usize {
        if self.norms() == 0 {
            return 0;
        }
        2 * self.norm_dims(rows, Statistics::Groups { images: group, group, shards: 1 }).blocks() * self.hidden
    }

    /// Columns of the widest operand.
    pub(super) const fn widest(&self) -> usize {
        if self.layers == 0 { 0 } else { max(self.inp, max(self.hidden, self.out)) }
    }

    /// Where a pass over `rows` rows writes; without `save` the outputs of the layers alternate between two spans.
    pub(super) const fn acts(&self, rows: usize, save: bool, statistics: Statistics, l: &mut Layout) -> MlpActs {
        let (mut a, mut i) = (MlpActs { rows, statistics, ..MlpActs::NONE }, 0);
        while i < self.active() {
            let reuse = !save && i >= 2;
            a.linear[i] = if !save && i > 0 { a.linear[0] } else { l.act(rows * self.hidden) };
            a.active[i] = if reuse { a.active[i - 2] } else { l.act(rows * self.hidden) };
            if i < self.norms() {
                let len = self.norm_dims(rows, statistics).groups() * self.hidden;
                a.normed[i] = if !save && i > 0 { a.normed[0] } else { l.act(rows * self.hidden) };
                a.stats[i] = NormStats { mean: l.stat(len), rstd: l.stat(len) };
            }
            i += 1;
        }
        if self.active() < self.layers {
            a.last = l.act(rows * self.out);
            a.y = a.last;
        } else if self.layers > 0 {
            a.y = a.active[self.layers - 1];
        }
        a
    }

    /// Scratch of a backward pass over `rows` rows: the gradient of what an activation gives.
    pub(super) const fn grads(&self, rows: usize, l: &mut Layout) -> Act {
        l.act(if self.layers > 1 { rows * self.hidden } else { 0 })
    }

    const fn mat(&self, layer: usize, rows: usize) -> Mat {
        let [inp, out] = self.widths(layer);
        Mat { rows, inp, out }
    }

    /// From x (rows, inp) to (rows, out), which is returned.
    pub(super) fn forward<O: Forward>(&self, o: &mut O, w: &MlpWeights, a: &MlpActs, x: Act) -> Act {
        let mut x = x;
        for i in 0..self.layers {
            let (layer, n, norm) = (w.linear[i], self.mat(i, a.rows), self.norm_dims(a.rows, a.statistics));
            if i >= self.active() {
                o.linear(a.last, x, layer, n);
                x = a.last;
                continue;
            }
            if i < self.norms() {
                o.linear(a.linear[i], x, layer, n);
                o.batch_statistics(a.stats[i], w.running[i], a.linear[i], norm);
                o.batch_normalize(a.normed[i], a.linear[i], Act::EMPTY, a.stats[i], w.norms[i], norm);
                self.activation.forward(o, a.active[i], a.normed[i]);
            } else if self.activation == Activation::Gelu {
                o.linear_gelu(a.active[i], a.linear[i], x, layer, n);
            } else {
                o.linear(a.linear[i], x, layer, n);
                self.activation.forward(o, a.active[i], a.linear[i]);
            }
            x = a.active[i];
        }
        x
    }

    /// From dy (rows, out) to dx (rows, inp), parameters accumulating. `d_active`: scratch ([`Mlp::grads`]).
    pub(super) fn backward<O: Backward>(
        &self,
        o: &mut O,
        w: &MlpWeights,
        a: &MlpActs,
        d_active: Act,
        [dx, dy, x]: [Act; 3],
    ) {
        let mut dy = dy;
        for i in (0..self.layers).rev() {
            if i < self.active() {
                // The activation's output is not read again once the gradient of the weight after it is formed: its span takes the next
                // gradient.
                let before = if i < self.norms() { a.normed[i] } else { a.linear[i] };
                self.activation.backward(o, a.active[i], dy, before);
                dy = a.active[i];
                if i < self.norms() {
                    // Nor is what the norm wrote.
                    let n = self.norm_dims(a.rows, a.statistics);
                    o.batch_normalize_backward(before, dy, a.linear[i], Act::EMPTY, a.stats[i], w.norms[i], n);
                    dy = before;
                }
            }
            let (to, from) = if i == 0 { (dx, x) } else { (d_active, a.active[i - 1]) };
            o.linear_backward(to, dy, from, w.linear[i], self.mat(i, a.rows));
            dy = to;
        }
    }
}
