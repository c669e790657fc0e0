//! The names and rows of everything that a pass writes, for printed plans and to find the crop that an element is of.

use super::layout::{BlockActs, ClassActs, MlpActs, Norm};
use super::{Output, Pass, PositionActs, Save, VitActs, VitGrads};
use crate::crops::Ragged;
use crate::mem::{Act, Pool, Span};
use crate::model::spans::{Named, pass_on};
use crate::params::Name;

impl Norm {
    fn spans(&self, [y, mean, rstd]: [&'static str; 3]) -> [Named; 3] {
        [(y, Pool::Acts, self.y.0), (mean, Pool::Stats, self.stats.mean.0), (rstd, Pool::Stats, self.stats.rstd.0)]
    }
}

const NORM1: [&str; 3] = ["norm1.y", "norm1.mean", "norm1.rstd"];
const NORM2: [&str; 3] = ["norm2.y", "norm2.mean", "norm2.rstd"];

impl MlpActs {
    fn spans(&self) -> [Named; 5] {
        let [y, mean, rstd] = self.norm.spans(NORM2);
        [y, mean, rstd, ("mlp.fc1", Pool::Acts, self.fc1.0), ("mlp.gelu", Pool::Acts, self.gelu.0)]
    }
}

impl BlockActs {
    fn spans(&self) -> [Named; 7] {
        let [y, mean, rstd] = self.norm.spans(NORM1);
        let (qkv, attn) = (("attn.qkv", Pool::Acts, self.qkv.0), ("attn.y", Pool::Acts, self.attn.y.0));
        [
            y,
            mean,
            rstd,
            qkv,
            attn,
            ("attn.lse", Pool::Stats, self.attn.lse.0),
            ("residual", Pool::Acts, self.residual.0),
        ]
    }
}

impl ClassActs {
    /// Over all rows.
    fn spans(&self) -> [Named; 4] {
        let [y, mean, rstd] = self.norm.spans(NORM1);
        [y, mean, rstd, ("attn.kv", Pool::Acts, self.qkv.kv.0)]
    }

    /// Over one row a crop.
    fn class_spans(&self) -> [Named; 7] {
        [
            ("norm1.class", Pool::Acts, self.norm_class.0),
            ("attn.q", Pool::Acts, self.qkv.q.0),
            ("attn.y", Pool::Acts, self.attn.y.0),
            ("attn.lse", Pool::Stats, self.attn.lse.0),
            ("class", Pool::Acts, self.x.0),
            ("residual", Pool::Acts, self.residual.0),
            ("out", Pool::Acts, self.out.0),
        ]
    }
}

impl PositionActs {
    /// Calls `f` for every span, its name beginning with `part`. A position is of no crop.
    pub(in crate::model) fn visit(&self, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        for i in 0..self.crops.len() {
            let (y, rows, cols) = self.group(i);
            let spans =
                [("y", Pool::Acts, y.0), ("row_matrix", Pool::State, rows.0), ("column_matrix", Pool::State, cols.0)];
            pass_on(f, part, "positions.", i, Ragged::EMPTY, spans);
        }
    }
}

impl VitActs {
    /// Calls `f` for every span of a pass through `depth` blocks, with its rows, its name beginning with `part`. Where nothing is saved, one
    /// block's spans serve all full blocks, and the residual stream alternates between two.
    fn visit(&self, depth: usize, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        let (tokens, one) = (self.tokens, Ragged::single(self.crops.count()));
        let full = if self.output == Output::Class { depth - 1 } else { depth };
        let blocks = if self.save == Save::Nothing { full.min(1) } else { full };
        pass_on(f, part, "", 0, tokens.patches(), [("embedded", Pool::Acts, self.embedded.0)]);
        for i in 0..=blocks {
            pass_on(f, part, "stream.", i, tokens, [("x", Pool::Acts, self.stream(i).0)]);
        }
        if self.save == Save::Least && blocks > 0 {
            let (norm, gelu) = (self.block.norm.y.0, self.block.mlp.gelu.0);
            pass_on(f, part, "", 0, tokens, [("norms.y", Pool::Acts, norm), ("mlps.gelu", Pool::Acts, gelu)]);
        }
        for i in 0..blocks {
            let mut b = self.full(i);
            if self.save == Save::Least {
                (b.norm.y, b.mlp.norm.y, b.mlp.gelu) = (Act::EMPTY, Act::EMPTY, Act::EMPTY);
            }
            pass_on(f, part, "blocks.", i, tokens, b.spans());
            pass_on(f, part, "blocks.", i, tokens, b.mlp.spans());
        }
        pass_on(f, part, "", 0, tokens, [("branch", Pool::Acts, self.branch.0)]);
        pass_on(f, part, "blocks.", depth - 1, tokens, self.last.spans());
        pass_on(f, part, "blocks.", depth - 1, one, self.last.class_spans());
        pass_on(f, part, "blocks.", depth - 1, one, self.last.mlp.spans());
        let rows = if self.output == Output::Class { one } else { tokens };
        pass_on(f, part, "", 0, rows, self.norm.spans(["norm.y", "norm.mean", "norm.rstd"]));
    }
}

impl VitGrads {
    /// Over all rows.
    fn spans(&self) -> [Named; 6] {
        let spans = [
            ("dx", self.dx),
            ("d_norm", self.d_norm),
            ("d_branch", self.d_branch),
            ("d_attn", self.d_attn),
            ("d_qkv", self.d_qkv),
            ("d_gelu", self.d_gelu),
        ];
        spans.map(|(leaf, a)| (leaf, Pool::Acts, a.0))
    }

    /// Over one row a crop.
    fn class_spans(&self) -> [Named; 3] {
        let spans = [("d_class", self.d_class), ("d_q", self.d_q), ("d_norm_class", self.d_norm_class)];
        spans.map(|(leaf, a)| (leaf, Pool::Acts, a.0))
    }
}

impl Pass {
    pub(in crate::model) fn spans(&self, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        self.acts.visit(self.vit.depth, part, f);
    }

    pub(in crate::model) fn gradient_spans(&self, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        let one = Ragged::single(self.acts.crops.count());
        pass_on(f, part, "", 0, one, [("dy", Pool::Acts, self.grads.dy.0)]);
        pass_on(f, part, "", 0, self.acts.tokens, self.grads.spans());
        pass_on(f, part, "", 0, one, self.grads.class_spans());
    }

    /// Calls `f` for the parts of those spans that some ops use with other rows: where the last block goes on with class rows alone, and
    /// where the gradients of patches and positions are.
    pub(in crate::model) fn reused(&self, f: &mut impl FnMut(Span, Ragged)) {
        let (v, acts, grads) = (&self.vit, &self.acts, &self.grads);
        let (count, rows) = (acts.crops.count(), acts.tokens.rows());
        let (one, empty) = (Ragged::single(count), grads.dx.len() == 0);
        if acts.output == Output::Class {
            f(acts.branch.part(0, count * v.dim).0, one);
        }
        if empty {
            return;
        }
        f(grads.d_norm.part(0, count * v.dim).0, one);
        f(grads.d_attn.part(0, count * v.dim).0, one);
        f(grads.d_gelu.part(0, count * v.mlp).0, one);
        f(grads.d_qkv.part(0, rows * 2 * v.dim).0, acts.tokens);
        if grads.d_branch.len() > 0 {
            f(grads.d_branch.part(0, count * v.dim).0, one);
        }
        f(grads.d_norm.part(0, acts.crops.patches(v.patch) * v.dim).0, acts.tokens.patches());
        for group in acts.crops.groups() {
            f(grads.d_attn.part(0, group.patches(v.patch) * v.dim).0, Ragged::EMPTY);
        }
    }
}
