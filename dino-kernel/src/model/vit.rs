//! The vision transformer (paper, section 3.2; official `vision_transformer.py`): patches, class token, learned positions, pre-norm
//! blocks, final norm. Here: shape, parameters, where everything lies; the passes are in `vit/pass.rs`.
//!
//! x += proj(attention(norm1 x));  x += fc2(gelu(fc1(norm2 x))), each branch scaled per crop under stochastic depth.
//!
//! Training needs the class token alone, so the last block computes keys and values for all tokens and everything else for one
//! row a crop, forward and backward ([`Output::Class`]); dense features and attention maps use the full form
//! ([`Output::Dense`]). Block i's handles are base + i * stride: depth is a number, not a type. A pass that saves nothing has
//! one block's place and two streams that take turns ([`Save`]).

mod pass;
pub(crate) mod spans;

use crate::crops::{Crops, MAX_GROUPS, Ragged};
use crate::mem::{Act, Cursor, Span, Stat, State, Weight};
use crate::ops::layernorm::EPS;
use crate::ops::position::{self, Dialect};
use crate::plan::max;
use crate::real::Real;
use crate::spec::{Init, Name, Role, Spec, spec};

/// Shape of a vision transformer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vit {
    /// Side in pixels of the square image whose grid the position table has.
    pub image: usize,
    /// Side of a patch.
    pub patch: usize,
    /// Colour channels.
    pub channels: usize,
    /// C.
    pub dim: usize,
    pub depth: usize,
    pub heads: usize,
    /// Hidden width of the MLP: C times the MLP ratio.
    pub mlp: usize,
    pub positions: Dialect,
    /// What every LayerNorm adds to the variance.
    pub eps: f64,
}

impl Vit {
    const fn preset(dim: usize, heads: usize, patch: usize) -> Vit {
        let positions = Dialect::Published;
        Vit { image: 224, patch, channels: 3, dim, depth: 12, heads, mlp: 4 * dim, positions, eps: EPS }
    }
    pub const TINY_16: Vit = Vit::preset(192, 3, 16);
    pub const TINY_8: Vit = Vit::preset(192, 3, 8);
    pub const SMALL_16: Vit = Vit::preset(384, 6, 16);
    pub const SMALL_8: Vit = Vit::preset(384, 6, 8);
    pub const BASE_16: Vit = Vit::preset(768, 12, 16);
    pub const BASE_8: Vit = Vit::preset(768, 12, 8);
}

/// What a pass leaves for a backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Save {
    /// Nothing: blocks take turns in one place.
    Nothing,
    /// All that backward reads.
    All,
    /// All but the norms' outputs and the hidden rows: 10 widths a token instead of 16. Backward computes those again, with the
    /// same words from the same numbers, into one place for all blocks.
    Least,
}

/// What a pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The normalised class row of every crop (crops, C).
    Class,
    /// All normalised rows (rows, C), and the last block's attention on request.
    Dense,
}

#[derive(Clone, Copy, Debug)]
struct BlockWeights {
    norm1: [Weight; 2],
    qkv: [Weight; 2],
    proj: [Weight; 2],
    norm2: [Weight; 2],
    fc1: [Weight; 2],
    fc2: [Weight; 2],
}

const fn shift2(w: [Weight; 2], by: usize) -> [Weight; 2] {
    [w[0].shift(by), w[1].shift(by)]
}

impl BlockWeights {
    const fn shift(&self, by: usize) -> BlockWeights {
        BlockWeights {
            norm1: shift2(self.norm1, by),
            qkv: shift2(self.qkv, by),
            proj: shift2(self.proj, by),
            norm2: shift2(self.norm2, by),
            fc1: shift2(self.fc1, by),
            fc2: shift2(self.fc2, by),
        }
    }
}

/// Handles of the parameters.
#[derive(Clone, Copy, Debug)]
pub struct VitWeights {
    class: Weight,
    positions: Weight,
    patch: [Weight; 2],
    block: BlockWeights,
    stride: usize,
    norm: [Weight; 2],
}

impl VitWeights {
    /// The same parameters, `by` elements further on: the teacher's.
    pub const fn shift(&self, by: usize) -> VitWeights {
        VitWeights {
            class: self.class.shift(by),
            positions: self.positions.shift(by),
            patch: shift2(self.patch, by),
            block: self.block.shift(by),
            stride: self.stride,
            norm: shift2(self.norm, by),
        }
    }

    const fn block(&self, i: usize) -> BlockWeights {
        self.block.shift(i * self.stride)
    }
}

/// A layer norm's output and what its backward needs.
#[derive(Clone, Copy, Debug)]
struct Norm {
    y: Act,
    mean: Stat,
    rstd: Stat,
}

impl Norm {
    const fn take(rows: usize, cols: usize, a: &mut Cursor, s: &mut Cursor) -> Norm {
        Norm::at(a.act(rows * cols), rows, s)
    }

    /// The output at a place of the caller's.
    const fn at(y: Act, rows: usize, s: &mut Cursor) -> Norm {
        Norm { y, mean: s.stat(rows), rstd: s.stat(rows) }
    }

    const fn shift(&self, acts: usize, stats: usize) -> Norm {
        Norm { y: self.y.shift(acts), mean: self.mean.shift(stats), rstd: self.rstd.shift(stats) }
    }
}

/// The MLP half of a block over some rows.
#[derive(Clone, Copy, Debug)]
struct MlpActs {
    rows: usize,
    norm: Norm,
    pre: Act,
    hid: Act,
}

impl MlpActs {
    const fn take(rows: usize, v: &Vit, a: &mut Cursor, s: &mut Cursor) -> MlpActs {
        MlpActs { rows, norm: Norm::take(rows, v.dim, a, s), pre: a.act(rows * v.mlp), hid: a.act(rows * v.mlp) }
    }

    const fn shift(&self, acts: usize, stats: usize) -> MlpActs {
        MlpActs {
            rows: self.rows,
            norm: self.norm.shift(acts, stats),
            pre: self.pre.shift(acts),
            hid: self.hid.shift(acts),
        }
    }
}

/// A full block over all rows.
#[derive(Clone, Copy, Debug)]
struct BlockActs {
    norm: Norm,
    qkv: Act,
    att: Act,
    lse: Stat,
    mid: Act,
    mlp: MlpActs,
}

impl BlockActs {
    const fn take(rows: usize, v: &Vit, a: &mut Cursor, s: &mut Cursor) -> BlockActs {
        let (norm, mlp_norm) = (a.act(rows * v.dim), a.act(rows * v.dim));
        let hid = a.act(rows * v.mlp);
        BlockActs::around([norm, mlp_norm, hid], rows, v, a, s)
    }

    /// With places of the caller's for both norms' outputs and the hidden rows.
    const fn around(
        [norm, mlp_norm, hid]: [Act; 3],
        rows: usize,
        v: &Vit,
        a: &mut Cursor,
        s: &mut Cursor,
    ) -> BlockActs {
        BlockActs {
            norm: Norm::at(norm, rows, s),
            qkv: a.act(rows * 3 * v.dim),
            att: a.act(rows * v.dim),
            lse: s.stat(rows * v.heads),
            mid: a.act(rows * v.dim),
            mlp: MlpActs { rows, norm: Norm::at(mlp_norm, rows, s), pre: a.act(rows * v.mlp), hid },
        }
    }

    /// What can be computed again, at the places where `other` has it.
    const fn sharing(self, other: &BlockActs) -> BlockActs {
        let norm = Norm { y: other.norm.y, ..self.norm };
        let mlp_norm = Norm { y: other.mlp.norm.y, ..self.mlp.norm };
        BlockActs { norm, mlp: MlpActs { norm: mlp_norm, hid: other.mlp.hid, ..self.mlp }, ..self }
    }

    const fn shift(&self, acts: usize, stats: usize) -> BlockActs {
        BlockActs {
            norm: self.norm.shift(acts, stats),
            qkv: self.qkv.shift(acts),
            att: self.att.shift(acts),
            lse: self.lse.shift(stats),
            mid: self.mid.shift(acts),
            mlp: self.mlp.shift(acts, stats),
        }
    }
}

/// The last block where only class rows go on: `norm` and `kv` over all rows, the rest over one row a crop.
#[derive(Clone, Copy, Debug)]
struct ClassActs {
    norm: Norm,
    kv: Act,
    norm_class: Act,
    q: Act,
    att: Act,
    lse: Stat,
    x: Act,
    mid: Act,
    mlp: MlpActs,
    out: Act,
}

impl ClassActs {
    const fn take(rows: usize, crops: usize, v: &Vit, a: &mut Cursor, s: &mut Cursor) -> ClassActs {
        let wide = crops * v.dim;
        ClassActs {
            norm: Norm::take(rows, v.dim, a, s),
            kv: a.act(rows * 2 * v.dim),
            norm_class: a.act(wide),
            q: a.act(wide),
            att: a.act(wide),
            lse: s.stat(crops * v.heads),
            x: a.act(wide),
            mid: a.act(wide),
            mlp: MlpActs::take(crops, v, a, s),
            out: a.act(wide),
        }
    }
}

/// One group's resized positions: the table (patches, C) and the two small matrices that make it.
#[derive(Clone, Copy, Debug)]
struct Positions {
    y: Act,
    rows: State,
    cols: State,
}

/// The resized position tables of some crops: made once a step, read by every micro-batch of it.
#[derive(Clone, Copy, Debug)]
pub struct PositionActs {
    crops: Crops,
    groups: [Positions; MAX_GROUPS],
}

impl PositionActs {
    /// The table of group `i` (patches, C), and its two matrices.
    pub const fn group(&self, i: usize) -> (Act, State, State) {
        let p = self.groups[i];
        (p.y, p.rows, p.cols)
    }

    /// Those of `crops` alone, whose groups have the sizes of these from group `first` on.
    pub const fn part(&self, first: usize, crops: Crops) -> PositionActs {
        let (mut groups, mut i) = (self.groups, 0);
        while i < crops.len() {
            groups[i] = self.groups[first + i];
            i += 1;
        }
        PositionActs { crops, groups }
    }
}

/// Everything a pass over some crops writes.
#[derive(Clone, Copy, Debug)]
pub struct VitActs {
    crops: Crops,
    tokens: Ragged,
    output: Output,
    patches: Act,
    positions: PositionActs,
    /// The residual stream: between blocks i - 1 and i it lies at base + i * stride, or takes turns between two places.
    x: Act,
    save: Save,
    block: BlockActs,
    stride: [usize; 2],
    branch: Act,
    last: ClassActs,
    norm: Norm,
    /// Stochastic-depth scales (depth, 2 branches, crops); empty without.
    drop: State,
}

/// Scratch of a backward pass.
#[derive(Clone, Copy, Debug)]
pub struct VitGrads {
    /// The gradient of the class rows (crops, C), set by the head.
    pub dy: Act,
    dx: Act,
    d_norm: Act,
    d_branch: Act,
    d_att: Act,
    d_qkv: Act,
    d_hid: Act,
    d_class: Act,
    d_q: Act,
    d_norm_class: Act,
}

impl VitActs {
    /// The output: (crops, C) or (rows, C), normalised.
    pub const fn y(&self) -> Act {
        self.norm.y
    }

    pub const fn tokens(&self) -> Ragged {
        self.tokens
    }

    /// Where the embedded patches end, which are the first thing that a pass writes.
    pub(crate) const fn embedded(&self) -> usize {
        self.patches.0.at + self.patches.len()
    }

    pub const fn crops(&self) -> Crops {
        self.crops
    }

    /// The residual stream in front of block `i`; `depth` for the last block's output (dense form).
    pub const fn stream(&self, i: usize) -> Act {
        let len = self.x.len().next_multiple_of(Cursor::ALIGN);
        let step = if matches!(self.save, Save::Nothing) { i % 2 } else { i };
        self.x.shift(step * len)
    }

    /// The crop that element `index` of `span` is of: of the embedded patches or the first stream, of a matrix of a row a token, or of a
    /// row a crop, no wider than `widest`. C is `dim`.
    pub(crate) fn crop_of(&self, span: Span, index: usize, dim: usize, widest: usize) -> Option<usize> {
        let inside = |of: Act| {
            let whole = of.0.at <= span.at && span.at + span.len <= of.0.at + of.len();
            whole.then(|| (span.at + index - of.0.at) / dim)
        };
        if let Some(row) = inside(self.patches) {
            return self.tokens.patches().crop_of(row);
        }
        if let Some(row) = inside(self.stream(0)) {
            return self.tokens.crop_of(row);
        }
        let rows = [self.tokens, Ragged::single(self.crops.count())];
        let fits = |r: &&Ragged| span.len.is_multiple_of(r.rows()) && (1..=widest).contains(&(span.len / r.rows()));
        let rows = rows.iter().find(fits)?;
        rows.crop_of(index / (span.len / rows.rows()))
    }

    const fn full(&self, i: usize) -> BlockActs {
        let own = self.block.shift(i * self.stride[0], i * self.stride[1]);
        match self.save {
            Save::Nothing => self.block,
            Save::All => own,
            Save::Least => own.sharing(&self.block),
        }
    }
}

impl Vit {
    /// Cells of a row or a column of the position table.
    pub const fn side(&self) -> usize {
        self.image / self.patch
    }

    /// Elements of one patch row.
    pub const fn patch_len(&self) -> usize {
        self.channels * self.patch * self.patch
    }

    /// Columns of the widest factor of a linear layer.
    pub(crate) const fn widest(&self) -> usize {
        max(self.patch_len(), max(3 * self.dim, self.mlp))
    }

    const fn embed_table(&self, c: &mut Cursor) -> [Spec; 4] {
        const fn name(leaf: &'static str) -> Name {
            Name { part: "", list: "", index: 0, leaf }
        }
        let (d, p, n) = (self.dim, self.patch, self.side() * self.side());
        let default = Init::FanIn(self.patch_len());
        [
            spec(name("cls_token"), [1, 1, d], Init::TruncNormal(0.02), Role::Decay, c),
            spec(name("pos_embed"), [1, 1 + n, d], Init::TruncNormal(0.02), Role::Decay, c),
            spec(name("patch_embed.proj.weight"), [d, self.channels, p, p], default, Role::Decay, c),
            spec(name("patch_embed.proj.bias"), [d], default, Role::Plain, c),
        ]
    }

    const fn block_table(&self, index: usize, c: &mut Cursor) -> [Spec; 12] {
        const fn name(index: usize, leaf: &'static str) -> Name {
            Name { part: "", list: "blocks.", index, leaf }
        }
        let (d, m, i) = (self.dim, self.mlp, index);
        [
            spec(name(i, "norm1.weight"), [d], Init::Ones, Role::Plain, c),
            spec(name(i, "norm1.bias"), [d], Init::Zeros, Role::Plain, c),
            spec(name(i, "attn.qkv.weight"), [3 * d, d], Init::Linear, Role::Decay, c),
            spec(name(i, "attn.qkv.bias"), [3 * d], Init::Zeros, Role::Plain, c),
            spec(name(i, "attn.proj.weight"), [d, d], Init::Linear, Role::Decay, c),
            spec(name(i, "attn.proj.bias"), [d], Init::Zeros, Role::Plain, c),
            spec(name(i, "norm2.weight"), [d], Init::Ones, Role::Plain, c),
            spec(name(i, "norm2.bias"), [d], Init::Zeros, Role::Plain, c),
            spec(name(i, "mlp.fc1.weight"), [m, d], Init::Linear, Role::Decay, c),
            spec(name(i, "mlp.fc1.bias"), [m], Init::Zeros, Role::Plain, c),
            spec(name(i, "mlp.fc2.weight"), [d, m], Init::Linear, Role::Decay, c),
            spec(name(i, "mlp.fc2.bias"), [d], Init::Zeros, Role::Plain, c),
        ]
    }

    const fn norm_table(&self, c: &mut Cursor) -> [Spec; 2] {
        const fn name(leaf: &'static str) -> Name {
            Name { part: "", list: "", index: 0, leaf }
        }
        [
            spec(name("norm.weight"), [self.dim], Init::Ones, Role::Plain, c),
            spec(name("norm.bias"), [self.dim], Init::Zeros, Role::Plain, c),
        ]
    }

    /// Calls `f` for every parameter, in the published order.
    pub fn visit(&self, c: &mut Cursor, f: &mut impl FnMut(Spec)) {
        self.embed_table(c).into_iter().for_each(&mut *f);
        for i in 0..self.depth {
            self.block_table(i, c).into_iter().for_each(&mut *f);
        }
        self.norm_table(c).into_iter().for_each(f);
    }

    /// Where the parameters lie.
    pub const fn weights(&self, c: &mut Cursor) -> VitWeights {
        let [class, positions, patch_w, patch_b] = self.embed_table(c);
        let first = c.next;
        let [n1w, n1b, qkv_w, qkv_b, proj_w, proj_b, n2w, n2b, fc1_w, fc1_b, fc2_w, fc2_b] = self.block_table(0, c);
        let stride = c.next - first;
        c.next = first + self.depth * stride;
        let [norm_w, norm_b] = self.norm_table(c);
        VitWeights {
            class: class.at,
            positions: positions.at,
            patch: [patch_w.at, patch_b.at],
            block: BlockWeights {
                norm1: [n1w.at, n1b.at],
                qkv: [qkv_w.at, qkv_b.at],
                proj: [proj_w.at, proj_b.at],
                norm2: [n2w.at, n2b.at],
                fc1: [fc1_w.at, fc1_b.at],
                fc2: [fc2_w.at, fc2_b.at],
            },
            stride,
            norm: [norm_w.at, norm_b.at],
        }
    }

    /// Where the resized position tables of `crops` lie. They outlive a pass; counts do not matter, only sizes.
    pub const fn positions(&self, crops: Crops, a: &mut Cursor, t: &mut Cursor) -> PositionActs {
        let mut groups = [Positions { y: Act::EMPTY, rows: State::EMPTY, cols: State::EMPTY }; MAX_GROUPS];
        let (mut i, side) = (0, self.side());
        while i < crops.len() {
            let [r, c] = crops.group(i).grid(self.patch);
            groups[i] = Positions { y: a.act(r * c * self.dim), rows: t.state(r * side), cols: t.state(c * side) };
            i += 1;
        }
        PositionActs { crops, groups }
    }

    /// Where a pass writes. `drop`: its stochastic-depth scales (depth, 2 branches, crops), or empty.
    pub const fn acts(
        &self,
        crops: Crops,
        positions: PositionActs,
        output: Output,
        save: Save,
        drop: State,
        a: &mut Cursor,
        s: &mut Cursor,
    ) -> VitActs {
        let tokens = crops.tokens(self.patch);
        let (rows, count) = (tokens.rows(), crops.count());
        let full = match output {
            Output::Class => self.depth - 1,
            Output::Dense => self.depth,
        };
        let blocks = if matches!(save, Save::Nothing) && full > 0 { 1 } else { full };
        let patches = a.act(crops.patches(self.patch) * self.dim);
        let x = a.act(rows * self.dim);
        a.next += blocks * (a.next - x.0.at);
        let shared = match save {
            Save::Least if full > 0 => {
                let norm = a.act(rows * self.dim);
                Some([norm, norm, a.act(rows * self.mlp)])
            }
            _ => None,
        };
        let (a0, s0) = (a.next, s.next);
        let block = match shared {
            Some(places) => BlockActs::around(places, rows, self, a, s),
            None => BlockActs::take(rows, self, a, s),
        };
        let stride = [a.next - a0, s.next - s0];
        a.next = a0 + blocks * stride[0];
        s.next = s0 + blocks * stride[1];
        let branch = a.act(rows * self.dim);
        let (last, norm_rows) = match output {
            Output::Class => (ClassActs::take(rows, count, self, a, s), count),
            Output::Dense => (ClassActs::take(0, 0, self, a, s), rows),
        };
        VitActs {
            crops,
            tokens,
            output,
            patches,
            positions,
            x,
            save,
            block,
            stride,
            branch,
            last,
            norm: Norm::take(norm_rows, self.dim, a, s),
            drop,
        }
    }

    /// Scratch of a backward pass over `v`'s crops.
    pub const fn grads(&self, v: &VitActs, a: &mut Cursor) -> VitGrads {
        let (rows, crops) = (v.tokens.rows(), v.crops.count());
        let (wide, class) = (rows * self.dim, crops * self.dim);
        VitGrads {
            dy: a.act(class),
            dx: a.act(wide),
            d_norm: a.act(wide),
            d_branch: a.act(if v.drop.len() > 0 { wide } else { 0 }),
            d_att: a.act(wide),
            d_qkv: a.act(3 * wide),
            d_hid: a.act(rows * self.mlp),
            d_class: a.act(class),
            d_q: a.act(class),
            d_norm_class: a.act(class),
        }
    }

    /// Fills the small matrices of `p` in a copy of the state pool.
    pub fn position_matrices<T: Real>(&self, p: &PositionActs, state: &mut [T]) {
        for (m, &group) in p.groups.iter().zip(p.crops.groups()) {
            let [r, c] = group.grid(self.patch);
            let dialect = (!position::is_native(group, self.patch, self.side())).then_some(self.positions);
            position::matrix(&mut state[m.rows.range()], self.side(), r, dialect);
            position::matrix(&mut state[m.cols.range()], self.side(), c, dialect);
        }
    }
}
