//! The vision transformer (paper, section 3.2; official `vision_transformer.py`): patches, class token, learned positions, pre-norm blocks, final norm.
//!
//! x += proj(attention(norm1 x));  x += fc2(gelu(fc1(norm2 x))), each branch scaled per crop under stochastic depth.
//!
//! Training needs the class token alone, so the last block computes keys and values for all tokens and everything else for one
//! row a crop, forward and backward ([`Output::Class`]); dense features and attention maps use the full form
//! ([`Output::Dense`]). Block i's handles are base + i * stride: depth is a number, not a type. A pass that saves nothing has
//! stride 0 and two streams that take turns.

pub(crate) mod spans;

use crate::backend::{Backward, Embed, Forward, Grid, Heads, Mat, Patches, Rows};
use crate::crops::{Crops, Group, MAX_GROUPS, Ragged};
use crate::mem::{Act, Cursor, Stat, State, Weight};
use crate::ops::position::{self, Dialect};
use crate::real::Real;
use crate::spec::{Init, Name, Role, Spec, spec};

/// Shape of a vision transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

impl Vit {
    const fn preset(dim: usize, heads: usize, patch: usize) -> Vit {
        Vit { image: 224, patch, channels: 3, dim, depth: 12, heads, mlp: 4 * dim, positions: Dialect::Published }
    }
    pub const TINY_16: Vit = Vit::preset(192, 3, 16);
    pub const TINY_8: Vit = Vit::preset(192, 3, 8);
    pub const SMALL_16: Vit = Vit::preset(384, 6, 16);
    pub const SMALL_8: Vit = Vit::preset(384, 6, 8);
    pub const BASE_16: Vit = Vit::preset(768, 12, 16);
    pub const BASE_8: Vit = Vit::preset(768, 12, 8);
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
        Norm { y: a.act(rows * cols), mean: s.stat(rows), rstd: s.stat(rows) }
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
        BlockActs {
            norm: Norm::take(rows, v.dim, a, s),
            qkv: a.act(rows * 3 * v.dim),
            att: a.act(rows * v.dim),
            lse: s.stat(rows * v.heads),
            mid: a.act(rows * v.dim),
            mlp: MlpActs::take(rows, v, a, s),
        }
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
    save: bool,
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

    pub const fn crops(&self) -> Crops {
        self.crops
    }

    /// The stochastic-depth scales, (depth, branches, crops); empty without.
    pub const fn drop(&self) -> State {
        self.drop
    }

    /// The residual stream in front of block `i`; `depth` for the last block's output (dense form).
    pub const fn stream(&self, i: usize) -> Act {
        let len = self.x.len().next_multiple_of(Cursor::ALIGN);
        let step = if self.save { i } else { i % 2 };
        self.x.shift(step * len)
    }

    const fn full(&self, i: usize) -> BlockActs {
        let i = if self.save { i } else { 0 };
        self.block.shift(i * self.stride[0], i * self.stride[1])
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

    /// Where a pass writes. With `save`, everything a backward pass needs stays; `drop` reserves stochastic-depth scales.
    pub const fn acts(
        &self,
        crops: Crops,
        positions: PositionActs,
        output: Output,
        save: bool,
        drop: bool,
        a: &mut Cursor,
        s: &mut Cursor,
        t: &mut Cursor,
    ) -> VitActs {
        let tokens = crops.tokens(self.patch);
        let (rows, count) = (tokens.rows(), crops.count());
        let full = match output {
            Output::Class => self.depth - 1,
            Output::Dense => self.depth,
        };
        let blocks = if save || full == 0 { full } else { 1 };
        let patches = a.act(crops.patches(self.patch) * self.dim);
        let x = a.act(rows * self.dim);
        a.next += blocks * (a.next - x.0.at);
        let (a0, s0) = (a.next, s.next);
        let block = BlockActs::take(rows, self, a, s);
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
            drop: if drop { t.state(self.depth * 2 * count) } else { State::EMPTY },
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

    const fn heads(&self, crops: Ragged) -> Heads {
        Heads { crops, heads: self.heads, head_dim: self.dim / self.heads }
    }

    const fn grid(&self, group: Group) -> Grid {
        Grid { from: [self.side(); 2], to: group.grid(self.patch), cols: self.dim }
    }

    /// Patches of these crops as rows.
    pub const fn patches(&self, crops: Crops) -> Patches {
        Patches { crops, patch: self.patch, channels: self.channels }
    }

    /// The position table resized for every group: once a step, since the weights change once a step.
    pub fn resize_positions<O: Forward>(&self, o: &mut O, w: &VitWeights, p: &PositionActs) {
        for (m, &group) in p.groups.iter().zip(p.crops.groups()) {
            o.resize_positions(m.y, w.positions.part(self.dim, self.table_len()), m.rows, m.cols, self.grid(group));
        }
    }

    /// Elements of the patch part of the position table.
    const fn table_len(&self) -> usize {
        self.side() * self.side() * self.dim
    }

    /// `cols`: the crops' patches as rows (patches, patch_len). Leaves the output at [`VitActs::y`].
    pub fn forward<O: Forward>(&self, o: &mut O, w: &VitWeights, v: &VitActs, cols: Act) {
        let c = self.dim;
        let n = Mat { rows: v.crops.patches(self.patch), inp: self.patch_len(), out: c };
        o.linear(v.patches, cols, w.patch[0], w.patch[1], n);
        let (mut row, mut patch) = (0, 0);
        for (i, group) in v.crops.groups().iter().enumerate() {
            let n = Embed { crops: group.count, patches: group.patches(self.patch), cols: c };
            let x = v.stream(0).part(row * c, n.crops * (1 + n.patches) * c);
            let patches = v.patches.part(patch * c, n.crops * n.patches * c);
            o.embed(x, patches, w.class, w.positions.part(0, c), v.positions.groups[i].y, n);
            row += n.crops * (1 + n.patches);
            patch += n.crops * n.patches;
        }
        let full = match v.output {
            Output::Class => self.depth - 1,
            Output::Dense => self.depth,
        };
        for i in 0..full {
            self.block_forward(o, &w.block(i), v, i);
        }
        let (x, n) = match v.output {
            Output::Class => {
                self.class_block_forward(o, &w.block(full), v);
                (v.last.out, Rows { rows: v.crops.count(), cols: c })
            }
            Output::Dense => (v.stream(full), Rows { rows: v.tokens.rows(), cols: c }),
        };
        o.layernorm(v.norm.y, v.norm.mean, v.norm.rstd, x, w.norm[0], w.norm[1], n);
    }

    /// y = x + scale * branch, and what the next norm makes of it.
    fn residual_norm<O: Forward>(
        &self,
        o: &mut O,
        n: Norm,
        mid: Act,
        x: Act,
        b: Act,
        w: [Weight; 2],
        s: State,
        crops: Ragged,
    ) {
        let rows = Rows { rows: crops.rows(), cols: self.dim };
        if s.len() == 0 {
            o.add_layernorm(n.y, mid, n.mean, n.rstd, x, b, w[0], w[1], rows);
        } else {
            o.add_scaled(mid, x, b, s, crops, self.dim);
            o.layernorm(n.y, n.mean, n.rstd, mid, w[0], w[1], rows);
        }
    }

    fn residual<O: Forward>(&self, o: &mut O, y: Act, x: Act, branch: Act, s: State, crops: Ragged) {
        if s.len() == 0 {
            o.add(y, x, branch);
        } else {
            o.add_scaled(y, x, branch, s, crops, self.dim);
        }
    }

    /// The drop-path scales of a block's branch (0 attention, 1 MLP), one a crop.
    const fn drop(&self, v: &VitActs, block: usize, branch: usize) -> State {
        if v.drop.len() == 0 {
            return State::EMPTY;
        }
        let crops = v.crops.count();
        v.drop.part((2 * block + branch) * crops, crops)
    }

    const fn mlp_mats(&self, rows: usize) -> [Mat; 2] {
        [Mat { rows, inp: self.dim, out: self.mlp }, Mat { rows, inp: self.mlp, out: self.dim }]
    }

    fn block_forward<O: Forward>(&self, o: &mut O, w: &BlockWeights, v: &VitActs, i: usize) {
        let (b, x, c, rows) = (v.full(i), v.stream(i), self.dim, v.tokens.rows());
        o.layernorm(b.norm.y, b.norm.mean, b.norm.rstd, x, w.norm1[0], w.norm1[1], Rows { rows, cols: c });
        o.linear(b.qkv, b.norm.y, w.qkv[0], w.qkv[1], Mat { rows, inp: c, out: 3 * c });
        o.attention(b.att, b.lse, b.qkv, self.heads(v.tokens));
        o.linear(v.branch, b.att, w.proj[0], w.proj[1], Mat { rows, inp: c, out: c });
        self.residual_norm(o, b.mlp.norm, b.mid, x, v.branch, w.norm2, self.drop(v, i, 0), v.tokens);
        let [up, down] = self.mlp_mats(rows);
        o.linear_gelu(b.mlp.hid, b.mlp.pre, b.mlp.norm.y, w.fc1[0], w.fc1[1], up);
        o.linear(v.branch, b.mlp.hid, w.fc2[0], w.fc2[1], down);
        self.residual(o, v.stream(i + 1), b.mid, v.branch, self.drop(v, i, 1), v.tokens);
    }

    /// The query rows, and the key and value rows, of a packed projection.
    const fn split_qkv(&self, w: [Weight; 2]) -> [[Weight; 2]; 2] {
        let c = self.dim;
        [[w[0].part(0, c * c), w[1].part(0, c)], [w[0].part(c * c, 2 * c * c), w[1].part(c, 2 * c)]]
    }

    fn class_block_forward<O: Forward>(&self, o: &mut O, w: &BlockWeights, v: &VitActs) {
        let (b, x, c, i) = (&v.last, v.stream(self.depth - 1), self.dim, self.depth - 1);
        let (rows, crops) = (v.tokens.rows(), v.crops.count());
        let (one, branch) = (Ragged::single(crops), v.branch.part(0, crops * c));
        let [q, kv] = self.split_qkv(w.qkv);
        o.layernorm(b.norm.y, b.norm.mean, b.norm.rstd, x, w.norm1[0], w.norm1[1], Rows { rows, cols: c });
        o.linear(b.kv, b.norm.y, kv[0], kv[1], Mat { rows, inp: c, out: 2 * c });
        o.gather_class(b.norm_class, b.norm.y, v.tokens, c);
        o.linear(b.q, b.norm_class, q[0], q[1], Mat { rows: crops, inp: c, out: c });
        o.attention_class(b.att, b.lse, b.q, b.kv, self.heads(v.tokens));
        o.linear(branch, b.att, w.proj[0], w.proj[1], Mat { rows: crops, inp: c, out: c });
        o.gather_class(b.x, x, v.tokens, c);
        self.residual_norm(o, b.mlp.norm, b.mid, b.x, branch, w.norm2, self.drop(v, i, 0), one);
        let [up, down] = self.mlp_mats(crops);
        o.linear_gelu(b.mlp.hid, b.mlp.pre, b.mlp.norm.y, w.fc1[0], w.fc1[1], up);
        o.linear(branch, b.mlp.hid, w.fc2[0], w.fc2[1], down);
        self.residual(o, b.out, b.mid, branch, self.drop(v, i, 1), one);
    }

    /// After a dense pass: the last block's attention probabilities of the first `queries` rows of every crop.
    pub fn last_attention<O: Forward>(&self, o: &mut O, y: Act, v: &VitActs, queries: usize) {
        let b = v.full(self.depth - 1);
        o.attention_rows(y, b.lse, b.qkv, queries, self.heads(v.tokens));
    }

    /// From `g.dy` (crops, C), the gradient of the class rows, to every parameter. Needs a saving class pass.
    pub fn backward<O: Backward>(&self, o: &mut O, w: &VitWeights, v: &VitActs, g: &VitGrads, cols: Act) {
        let (c, last) = (self.dim, self.depth - 1);
        let crops = Rows { rows: v.crops.count(), cols: c };
        // The class stream's gradient, then the whole stream's.
        o.clear(g.d_class);
        o.layernorm_backward(g.d_class, g.dy, v.last.out, v.norm.mean, v.norm.rstd, w.norm[0], w.norm[1], crops);
        self.class_block_backward(o, &w.block(last), v, g);
        for i in (0..last).rev() {
            self.block_backward(o, &w.block(i), v, g, i);
        }
        // d_norm is free again: patch gradients need no more than all rows.
        let (mut row, mut patch) = (0, 0);
        for (i, group) in v.crops.groups().iter().enumerate() {
            let n = Embed { crops: group.count, patches: group.patches(self.patch), cols: c };
            let dx = g.dx.part(row * c, n.crops * (1 + n.patches) * c);
            let dpatches = g.d_norm.part(patch * c, n.crops * n.patches * c);
            let dpositions = g.d_att.part(0, n.patches * c);
            o.embed_backward(dpatches, dpositions, dx, w.class, w.positions.part(0, c), n);
            let (m, table) = (v.positions.groups[i], w.positions.part(c, self.table_len()));
            o.resize_positions_backward(dpositions, table, m.rows, m.cols, self.grid(*group));
            row += n.crops * (1 + n.patches);
            patch += n.crops * n.patches;
        }
        let n = Mat { rows: patch, inp: self.patch_len(), out: c };
        o.linear_backward_params(g.d_norm.part(0, patch * c), cols, w.patch[0], w.patch[1], n);
    }

    /// The gradient of a branch: the stream's, scaled per crop under stochastic depth.
    fn branch_gradient<O: Backward>(&self, o: &mut O, scratch: Act, dx: Act, s: State, crops: Ragged) -> Act {
        if s.len() == 0 {
            return dx;
        }
        let scratch = scratch.part(0, dx.len());
        o.scale_crops(scratch, dx, s, crops, self.dim);
        scratch
    }

    /// The MLP half, shared by full and class blocks: dx (rows, C) holds the gradient of x + mlp(norm2 x) and leaves as that of x.
    fn mlp_backward<O: Backward>(
        &self,
        o: &mut O,
        w: &BlockWeights,
        m: &MlpActs,
        mid: Act,
        g: &VitGrads,
        dx: Act,
        s: State,
        crops: Ragged,
    ) {
        let [up, down] = self.mlp_mats(m.rows);
        let (d_hid, d_norm) = (g.d_hid.part(0, m.rows * self.mlp), g.d_norm.part(0, m.rows * self.dim));
        let dy = self.branch_gradient(o, g.d_branch, dx, s, crops);
        o.linear_backward(d_hid, dy, m.hid, w.fc2[0], w.fc2[1], down);
        // The hidden row has met its weight's gradient and is dead: its place takes the gradient before the GELU.
        o.gelu_backward(m.hid, d_hid, m.pre);
        o.linear_backward(d_norm, m.hid, m.norm.y, w.fc1[0], w.fc1[1], up);
        let rows = Rows { rows: m.rows, cols: self.dim };
        o.layernorm_backward(dx, d_norm, mid, m.norm.mean, m.norm.rstd, w.norm2[0], w.norm2[1], rows);
    }

    fn block_backward<O: Backward>(&self, o: &mut O, w: &BlockWeights, v: &VitActs, g: &VitGrads, i: usize) {
        let (b, c, rows) = (v.full(i), self.dim, v.tokens.rows());
        self.mlp_backward(o, w, &b.mlp, b.mid, g, g.dx, self.drop(v, i, 1), v.tokens);
        let dy = self.branch_gradient(o, g.d_branch, g.dx, self.drop(v, i, 0), v.tokens);
        o.linear_backward(g.d_att, dy, b.att, w.proj[0], w.proj[1], Mat { rows, inp: c, out: c });
        o.attention_backward(g.d_qkv, g.d_att, b.att, b.lse, b.qkv, self.heads(v.tokens));
        o.linear_backward(g.d_norm, g.d_qkv, b.norm.y, w.qkv[0], w.qkv[1], Mat { rows, inp: c, out: 3 * c });
        let n = Rows { rows, cols: c };
        o.layernorm_backward(g.dx, g.d_norm, v.stream(i), b.norm.mean, b.norm.rstd, w.norm1[0], w.norm1[1], n);
    }

    fn class_block_backward<O: Backward>(&self, o: &mut O, w: &BlockWeights, v: &VitActs, g: &VitGrads) {
        let (b, c, i) = (&v.last, self.dim, self.depth - 1);
        let (rows, crops) = (v.tokens.rows(), v.crops.count());
        let one = Ragged::single(crops);
        let [q, kv] = self.split_qkv(w.qkv);
        let square = Mat { rows: crops, inp: c, out: c };
        self.mlp_backward(o, w, &b.mlp, b.mid, g, g.d_class, self.drop(v, i, 1), one);
        let dy = self.branch_gradient(o, g.d_branch, g.d_class, self.drop(v, i, 0), one);
        let (d_att, d_kv) = (g.d_att.part(0, crops * c), g.d_qkv.part(0, rows * 2 * c));
        o.linear_backward(d_att, dy, b.att, w.proj[0], w.proj[1], square);
        o.attention_class_backward(g.d_q, d_kv, d_att, b.att, b.lse, b.q, b.kv, self.heads(v.tokens));
        o.linear_backward(g.d_norm, d_kv, b.norm.y, kv[0], kv[1], Mat { rows, inp: c, out: 2 * c });
        o.linear_backward(g.d_norm_class, g.d_q, b.norm_class, q[0], q[1], square);
        o.scatter_class_acc(g.d_norm, g.d_norm_class, v.tokens, c);
        // From here on the stream has all its rows; beyond the class rows its gradient starts at zero.
        o.clear(g.dx);
        o.scatter_class_acc(g.dx, g.d_class, v.tokens, c);
        let n = Rows { rows, cols: c };
        o.layernorm_backward(g.dx, g.d_norm, v.stream(i), b.norm.mean, b.norm.rstd, w.norm1[0], w.norm1[1], n);
    }
}
