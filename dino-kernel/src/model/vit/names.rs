//! The names of everything a pass writes, for printed plans.

use super::layout::{BlockActs, ClassActs, MlpActs, Norm};
use super::{Output, PositionActs, Save, VitActs, VitGrads};
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
    fn spans(&self) -> [Named; 11] {
        let [y, mean, rstd] = self.norm.spans(NORM1);
        [
            y,
            mean,
            rstd,
            ("attn.kv", Pool::Acts, self.qkv.kv.0),
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
    /// Calls `f` for every span, its name beginning with `part`.
    pub fn visit(&self, part: &'static str, f: &mut impl FnMut(Name, Pool, Span)) {
        for i in 0..self.crops.len() {
            let (y, rows, cols) = self.group(i);
            let spans =
                [("y", Pool::Acts, y.0), ("row_matrix", Pool::State, rows.0), ("column_matrix", Pool::State, cols.0)];
            pass_on(f, part, "positions.", i, spans);
        }
    }
}

impl VitActs {
    /// Calls `f` for every span of a pass through `depth` blocks, its name beginning with `part`. Where nothing is saved, one
    /// block's spans serve all full blocks, and the residual stream alternates between two.
    pub fn visit(&self, depth: usize, part: &'static str, f: &mut impl FnMut(Name, Pool, Span)) {
        let full = if self.output == Output::Class { depth - 1 } else { depth };
        let blocks = if self.save == Save::Nothing { full.min(1) } else { full };
        pass_on(f, part, "", 0, [("embedded", Pool::Acts, self.embedded.0)]);
        for i in 0..=blocks {
            pass_on(f, part, "stream.", i, [("x", Pool::Acts, self.stream(i).0)]);
        }
        if self.save == Save::Least && blocks > 0 {
            let (norm, gelu) = (self.block.norm.y.0, self.block.mlp.gelu.0);
            pass_on(f, part, "", 0, [("norms.y", Pool::Acts, norm), ("mlps.gelu", Pool::Acts, gelu)]);
        }
        for i in 0..blocks {
            let mut b = self.full(i);
            if self.save == Save::Least {
                (b.norm.y, b.mlp.norm.y, b.mlp.gelu) = (Act::EMPTY, Act::EMPTY, Act::EMPTY);
            }
            pass_on(f, part, "blocks.", i, b.spans());
            pass_on(f, part, "blocks.", i, b.mlp.spans());
        }
        pass_on(f, part, "", 0, [("branch", Pool::Acts, self.branch.0)]);
        pass_on(f, part, "blocks.", depth - 1, self.last.spans());
        pass_on(f, part, "blocks.", depth - 1, self.last.mlp.spans());
        pass_on(f, part, "", 0, self.norm.spans(["norm.y", "norm.mean", "norm.rstd"]));
    }
}

impl VitGrads {
    /// Calls `f` for every span of the scratch, its name beginning with `part`.
    pub fn visit(&self, part: &'static str, f: &mut impl FnMut(Name, Pool, Span)) {
        let spans = [
            ("dy", self.dy),
            ("dx", self.dx),
            ("d_norm", self.d_norm),
            ("d_branch", self.d_branch),
            ("d_attn", self.d_attn),
            ("d_qkv", self.d_qkv),
            ("d_gelu", self.d_gelu),
            ("d_class", self.d_class),
            ("d_q", self.d_q),
            ("d_norm_class", self.d_norm_class),
        ];
        pass_on(f, part, "", 0, spans.map(|(leaf, a)| (leaf, Pool::Acts, a.0)));
    }
}
