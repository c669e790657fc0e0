//! Forward and backward, straight down and its mirror image.

use super::drop_path::Branch;
use super::layout::{MlpActs, Norm};
use super::weights::BlockWeights;
use super::{Output, PositionActs, Save, Vit, VitActs, VitGrads, VitWeights};
use crate::backend::{
    Affine, Backward, ClassQkv, Embed, Forward, Grid, Heads, LayerNorm, Mat, NormStats, Patches, Rows,
};
use crate::crops::{Crops, Group, Ragged};
use crate::mem::{Act, State};

/// What a branch is multiplied with before it is added (one number a crop, or empty: nothing), and the rows of every crop.
#[derive(Clone, Copy)]
struct BranchScale {
    scale: State,
    crops: Ragged,
}

impl Vit {
    const fn heads(&self, crops: Ragged) -> Heads {
        Heads { crops, heads: self.heads, head_dim: self.dim / self.heads }
    }

    const fn grid(&self, group: Group) -> Grid {
        Grid { from: [self.side(); 2], to: group.grid(self.patch), cols: self.dim }
    }

    /// Dimensions of these crops' patches.
    pub(super) const fn patches(&self, crops: Crops) -> Patches {
        Patches { crops, patch: self.patch, channels: self.channels }
    }

    /// The position table resized for every group: once a step, since the weights change once a step.
    pub(super) fn resize_positions<O: Forward>(&self, o: &mut O, w: &VitWeights, p: &PositionActs) {
        for (m, &group) in p.groups.iter().zip(p.crops.groups()) {
            o.resize_positions(m.y, w.positions.part(self.dim, self.table_len()), m.rows, m.cols, self.grid(group));
        }
    }

    /// Elements of the patch part of the position table.
    const fn table_len(&self) -> usize {
        self.side() * self.side() * self.dim
    }

    /// `patches`: those of the crops as rows (patches, patch_len). Leaves the output at [`VitActs::y`].
    pub(super) fn forward<O: Forward>(&self, o: &mut O, w: &VitWeights, v: &VitActs, patches: Act) {
        self.forward_each(o, w, v, patches, |_, _, _| ());
    }

    /// The same; `each` gets the index and the output (rows, C) of every block that goes over all rows, before the next one.
    pub(super) fn forward_each<O: Forward>(
        &self,
        o: &mut O,
        w: &VitWeights,
        v: &VitActs,
        patches: Act,
        mut each: impl FnMut(&mut O, usize, Act),
    ) {
        let c = self.dim;
        let n = Mat { rows: v.crops.patches(self.patch), inp: self.patch_len(), out: c };
        o.linear(v.embedded, patches, w.patch, n);
        let (mut row, mut patch) = (0, 0);
        for (i, group) in v.crops.groups().iter().enumerate() {
            let n = Embed { crops: group.count, patches: group.patches(self.patch), cols: c };
            let x = v.stream(0).part(row * c, n.crops * (1 + n.patches) * c);
            let embedded = v.embedded.part(patch * c, n.crops * n.patches * c);
            o.embed(x, embedded, w.class, w.positions.part(0, c), v.positions.groups[i].y, n);
            row += n.crops * (1 + n.patches);
            patch += n.crops * n.patches;
        }
        let full = match v.output {
            Output::Class => self.depth - 1,
            Output::Dense => self.depth,
        };
        for i in 0..full {
            self.block_forward(o, &w.block(i), v, i);
            each(o, i, v.stream(i + 1));
        }
        let (x, n) = match v.output {
            Output::Class => {
                self.class_block_forward(o, &w.block(full), v);
                (v.last.out, Rows { rows: v.crops.count(), cols: c })
            }
            Output::Dense => (v.stream(full), Rows { rows: v.tokens.rows(), cols: c }),
        };
        o.layernorm(v.norm.y, v.norm.stats, x, w.norm, self.norm(n.rows));
    }

    /// A norm of so many rows.
    const fn norm(&self, rows: usize) -> LayerNorm {
        LayerNorm { rows, cols: self.dim, eps: self.eps }
    }

    /// y = x + scale * branch, and what the next norm makes of it.
    fn add_branch_norm<O: Forward>(
        &self,
        o: &mut O,
        n: Norm,
        y: Act,
        [x, branch]: [Act; 2],
        w: Affine,
        BranchScale { scale, crops }: BranchScale,
    ) {
        let rows = self.norm(crops.rows());
        if scale.len() == 0 {
            o.add_layernorm(n.y, y, n.stats, x, branch, w, rows);
        } else {
            o.add_scaled(y, x, branch, scale, crops, self.dim);
            o.layernorm(n.y, n.stats, y, w, rows);
        }
    }

    /// y = x + scale * branch.
    fn add_branch<O: Forward>(&self, o: &mut O, y: Act, [x, branch]: [Act; 2], s: BranchScale) {
        if s.scale.len() == 0 {
            o.add(y, x, branch);
        } else {
            o.add_scaled(y, x, branch, s.scale, s.crops, self.dim);
        }
    }

    /// The stochastic-depth scales of a branch of a block, one a crop of `crops`.
    const fn drop(&self, v: &VitActs, block: usize, branch: Branch, crops: Ragged) -> BranchScale {
        let count = v.crops.count();
        let scale = if v.drop.len() == 0 { State::EMPTY } else { v.drop.part(branch.index(block) * count, count) };
        BranchScale { scale, crops }
    }

    const fn mlp_mats(&self, rows: usize) -> [Mat; 2] {
        [Mat { rows, inp: self.dim, out: self.mlp }, Mat { rows, inp: self.mlp, out: self.dim }]
    }

    fn block_forward<O: Forward>(&self, o: &mut O, w: &BlockWeights, v: &VitActs, i: usize) {
        let (b, x, c, rows) = (v.full(i), v.stream(i), self.dim, v.tokens.rows());
        o.layernorm(b.norm.y, b.norm.stats, x, w.norm1, self.norm(rows));
        o.linear(b.qkv, b.norm.y, w.qkv, Mat { rows, inp: c, out: 3 * c });
        o.attention(b.attn, b.qkv, self.heads(v.tokens));
        o.linear(v.branch, b.attn.y, w.proj, Mat { rows, inp: c, out: c });
        let scale = self.drop(v, i, Branch::Attention, v.tokens);
        self.add_branch_norm(o, b.mlp.norm, b.residual, [x, v.branch], w.norm2, scale);
        let [up, down] = self.mlp_mats(rows);
        o.linear_gelu(b.mlp.gelu, b.mlp.fc1, b.mlp.norm.y, w.fc1, up);
        o.linear(v.branch, b.mlp.gelu, w.fc2, down);
        self.add_branch(o, v.stream(i + 1), [b.residual, v.branch], self.drop(v, i, Branch::Mlp, v.tokens));
    }

    /// The query rows, and the key and value rows, of a packed projection.
    const fn split_qkv(&self, Affine { w, b }: Affine) -> [Affine; 2] {
        let c = self.dim;
        [Affine { w: w.part(0, c * c), b: b.part(0, c) }, Affine { w: w.part(c * c, 2 * c * c), b: b.part(c, 2 * c) }]
    }

    fn class_block_forward<O: Forward>(&self, o: &mut O, w: &BlockWeights, v: &VitActs) {
        let (b, x, c, i) = (&v.last, v.stream(self.depth - 1), self.dim, self.depth - 1);
        let (rows, crops) = (v.tokens.rows(), v.crops.count());
        let (one, branch) = (Ragged::single(crops), v.branch.part(0, crops * c));
        let [q, kv] = self.split_qkv(w.qkv);
        o.layernorm(b.norm.y, b.norm.stats, x, w.norm1, self.norm(rows));
        o.linear(b.qkv.kv, b.norm.y, kv, Mat { rows, inp: c, out: 2 * c });
        o.gather_class(b.norm_class, b.norm.y, v.tokens, c);
        o.linear(b.qkv.q, b.norm_class, q, Mat { rows: crops, inp: c, out: c });
        o.attention_class(b.attn, b.qkv, self.heads(v.tokens));
        o.linear(branch, b.attn.y, w.proj, Mat { rows: crops, inp: c, out: c });
        o.gather_class(b.x, x, v.tokens, c);
        let scale = self.drop(v, i, Branch::Attention, one);
        self.add_branch_norm(o, b.mlp.norm, b.residual, [b.x, branch], w.norm2, scale);
        let [up, down] = self.mlp_mats(crops);
        o.linear_gelu(b.mlp.gelu, b.mlp.fc1, b.mlp.norm.y, w.fc1, up);
        o.linear(branch, b.mlp.gelu, w.fc2, down);
        self.add_branch(o, b.out, [b.residual, branch], self.drop(v, i, Branch::Mlp, one));
    }

    /// y (crops, C): the final norm of the class rows of a block's output `x` (rows, C), as `get_intermediate_layers` gives them.
    /// `class` (crops, C) and `stats` are scratch.
    pub(super) fn norm_class<O: Forward>(
        &self,
        o: &mut O,
        w: &VitWeights,
        v: &VitActs,
        y: Act,
        class: Act,
        stats: NormStats,
        x: Act,
    ) {
        let n = Rows { rows: v.crops.count(), cols: self.dim };
        o.gather_class(class, x, v.tokens, self.dim);
        o.layernorm(y, stats, class, w.norm, self.norm(n.rows));
    }

    /// After a dense pass: the last block's attention probabilities of the first `queries` rows of every crop.
    pub(super) fn last_attention<O: Forward>(&self, o: &mut O, y: Act, v: &VitActs, queries: usize) {
        let b = v.full(self.depth - 1);
        o.attention_rows(y, b.attn.lse, b.qkv, queries, self.heads(v.tokens));
    }

    /// From `g.dy` (crops, C), the gradient of the class rows, to every parameter. Needs a saving class pass.
    pub(super) fn backward<O: Backward>(&self, o: &mut O, w: &VitWeights, v: &VitActs, g: &VitGrads, patches: Act) {
        let c = self.dim;
        self.blocks_backward(o, w, v, g, self.depth);
        // d_norm is free again: patch gradients need no more than all rows.
        let (mut row, mut patch) = (0, 0);
        for (i, group) in v.crops.groups().iter().enumerate() {
            let n = Embed { crops: group.count, patches: group.patches(self.patch), cols: c };
            let dx = g.dx.part(row * c, n.crops * (1 + n.patches) * c);
            let dpatches = g.d_norm.part(patch * c, n.crops * n.patches * c);
            let dpositions = g.d_attn.part(0, n.patches * c);
            o.embed_backward(dpatches, dpositions, dx, w.class, w.positions.part(0, c), n);
            let (m, table) = (v.positions.groups[i], w.positions.part(c, self.table_len()));
            o.resize_positions_backward(dpositions, table, m.rows, m.cols, self.grid(*group));
            row += n.crops * (1 + n.patches);
            patch += n.crops * n.patches;
        }
        let n = Mat { rows: patch, inp: self.patch_len(), out: c };
        o.linear_backward_params(g.d_norm.part(0, patch * c), patches, w.patch, n);
    }

    /// The final norm and the last `count` blocks, 1 to all. Leaves the gradient of the stream in front of them at `g.dx`.
    pub(super) fn blocks_backward<O: Backward>(
        &self,
        o: &mut O,
        w: &VitWeights,
        v: &VitActs,
        g: &VitGrads,
        count: usize,
    ) {
        let last = self.depth - 1;
        let crops = Rows { rows: v.crops.count(), cols: self.dim };
        // First the gradient of the class rows of the stream, then that of all rows.
        o.clear(g.d_class);
        o.layernorm_backward(g.d_class, g.dy, v.last.out, v.norm.stats, w.norm, crops);
        self.class_block_backward(o, &w.block(last), v, g);
        o.gradients_complete(w.block(last).first());
        for i in (self.depth - count..last).rev() {
            self.block_backward(o, &w.block(i), v, g, i);
            o.gradients_complete(w.block(i).first());
        }
    }

    /// The gradient of a branch: the stream's, scaled per crop under stochastic depth.
    fn branch_gradient<O: Backward>(&self, o: &mut O, scratch: Act, dx: Act, s: BranchScale) -> Act {
        if s.scale.len() == 0 {
            return dx;
        }
        let scratch = scratch.part(0, dx.len());
        o.scale_crops(scratch, dx, s.scale, s.crops, self.dim);
        scratch
    }

    /// The MLP half, shared by full and class blocks: dx (rows, C) holds the gradient of x + mlp(norm2 x) and leaves as that of x.
    /// `again`: the outputs of norm and GELU are to be computed again.
    fn mlp_backward<O: Backward>(
        &self,
        o: &mut O,
        w: &BlockWeights,
        m: &MlpActs,
        residual: Act,
        g: &VitGrads,
        dx: Act,
        s: BranchScale,
        again: bool,
    ) {
        let [up, down] = self.mlp_mats(m.rows);
        let (d_gelu, d_norm) = (g.d_gelu.part(0, m.rows * self.mlp), g.d_norm.part(0, m.rows * self.dim));
        let rows = Rows { rows: m.rows, cols: self.dim };
        let dy = self.branch_gradient(o, g.d_branch, dx, s);
        if again {
            o.gelu(m.gelu, m.fc1);
            o.layernorm(m.norm.y, m.norm.stats, residual, w.norm2, self.norm(m.rows));
        }
        o.linear_backward(d_gelu, dy, m.gelu, w.fc2, down);
        // The GELU's output is not read again once the weight's gradient is formed: its span takes the gradient of the GELU's input.
        o.gelu_backward(m.gelu, d_gelu, m.fc1);
        o.linear_backward(d_norm, m.gelu, m.norm.y, w.fc1, up);
        o.layernorm_backward(dx, d_norm, residual, m.norm.stats, w.norm2, rows);
    }

    fn block_backward<O: Backward>(&self, o: &mut O, w: &BlockWeights, v: &VitActs, g: &VitGrads, i: usize) {
        let (b, c, rows, again) = (v.full(i), self.dim, v.tokens.rows(), v.save == Save::Least);
        self.mlp_backward(o, w, &b.mlp, b.residual, g, g.dx, self.drop(v, i, Branch::Mlp, v.tokens), again);
        let dy = self.branch_gradient(o, g.d_branch, g.dx, self.drop(v, i, Branch::Attention, v.tokens));
        o.linear_backward(g.d_attn, dy, b.attn.y, w.proj, Mat { rows, inp: c, out: c });
        o.attention_backward(g.d_qkv, g.d_attn, b.attn, b.qkv, self.heads(v.tokens));
        let n = Rows { rows, cols: c };
        if again {
            o.layernorm(b.norm.y, b.norm.stats, v.stream(i), w.norm1, self.norm(rows));
        }
        o.linear_backward(g.d_norm, g.d_qkv, b.norm.y, w.qkv, Mat { rows, inp: c, out: 3 * c });
        o.layernorm_backward(g.dx, g.d_norm, v.stream(i), b.norm.stats, w.norm1, n);
    }

    fn class_block_backward<O: Backward>(&self, o: &mut O, w: &BlockWeights, v: &VitActs, g: &VitGrads) {
        let (b, c, i) = (&v.last, self.dim, self.depth - 1);
        let (rows, crops) = (v.tokens.rows(), v.crops.count());
        let one = Ragged::single(crops);
        let [q, kv] = self.split_qkv(w.qkv);
        let square = Mat { rows: crops, inp: c, out: c };
        self.mlp_backward(o, w, &b.mlp, b.residual, g, g.d_class, self.drop(v, i, Branch::Mlp, one), false);
        let dy = self.branch_gradient(o, g.d_branch, g.d_class, self.drop(v, i, Branch::Attention, one));
        let (d_attn, d_kv) = (g.d_attn.part(0, crops * c), g.d_qkv.part(0, rows * 2 * c));
        o.linear_backward(d_attn, dy, b.attn.y, w.proj, square);
        o.attention_class_backward(ClassQkv { q: g.d_q, kv: d_kv }, d_attn, b.attn, b.qkv, self.heads(v.tokens));
        o.linear_backward(g.d_norm, d_kv, b.norm.y, kv, Mat { rows, inp: c, out: 2 * c });
        o.linear_backward(g.d_norm_class, g.d_q, b.norm_class, q, square);
        o.scatter_class_acc(g.d_norm, g.d_norm_class, v.tokens, c);
        // From here on the stream has all its rows; beyond the class rows its gradient starts at zero.
        o.clear(g.dx);
        o.scatter_class_acc(g.dx, g.d_class, v.tokens, c);
        let n = Rows { rows, cols: c };
        o.layernorm_backward(g.dx, g.d_norm, v.stream(i), b.norm.stats, w.norm1, n);
    }
}
