//! Forward and backward, straight down and its mirror image.

use super::drop_path::Branch;
use super::layout::{MlpActs, Norm};
use super::weights::BlockWeights;
use super::{Output, PositionActs, Save, Vit, VitActs, VitGrads, VitWeights};
use crate::backend::{Backward, Embed, Forward, Grid, Heads, LayerNorm, Mat, Patches, Rows};
use crate::crops::{Crops, Group, Ragged};
use crate::mem::{Act, Stat, State, Weight};

impl Vit {
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

    /// `patches`: those of the crops as rows (patches, patch_len). Leaves the output at [`VitActs::y`].
    pub fn forward<O: Forward>(&self, o: &mut O, w: &VitWeights, v: &VitActs, patches: Act) {
        self.forward_each(o, w, v, patches, |_, _, _| ());
    }

    /// The same; `each` gets the index and the output (rows, C) of every block that goes over all rows, before the next one.
    pub fn forward_each<O: Forward>(
        &self,
        o: &mut O,
        w: &VitWeights,
        v: &VitActs,
        patches: Act,
        mut each: impl FnMut(&mut O, usize, Act),
    ) {
        let c = self.dim;
        let n = Mat { rows: v.crops.patches(self.patch), inp: self.patch_len(), out: c };
        o.linear(v.embedded, patches, w.patch[0], w.patch[1], n);
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
        o.layernorm(v.norm.y, v.norm.mean, v.norm.rstd, x, w.norm[0], w.norm[1], self.norm(n.rows));
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
        residual: Act,
        x: Act,
        b: Act,
        w: [Weight; 2],
        s: State,
        crops: Ragged,
    ) {
        let rows = self.norm(crops.rows());
        if s.len() == 0 {
            o.add_layernorm(n.y, residual, n.mean, n.rstd, x, b, w[0], w[1], rows);
        } else {
            o.add_scaled(residual, x, b, s, crops, self.dim);
            o.layernorm(n.y, n.mean, n.rstd, residual, w[0], w[1], rows);
        }
    }

    fn add_branch<O: Forward>(&self, o: &mut O, y: Act, x: Act, branch: Act, s: State, crops: Ragged) {
        if s.len() == 0 {
            o.add(y, x, branch);
        } else {
            o.add_scaled(y, x, branch, s, crops, self.dim);
        }
    }

    /// The stochastic-depth scales of a branch of a block, one a crop.
    const fn drop(&self, v: &VitActs, block: usize, branch: Branch) -> State {
        if v.drop.len() == 0 {
            return State::EMPTY;
        }
        let crops = v.crops.count();
        v.drop.part(branch.index(block) * crops, crops)
    }

    const fn mlp_mats(&self, rows: usize) -> [Mat; 2] {
        [Mat { rows, inp: self.dim, out: self.mlp }, Mat { rows, inp: self.mlp, out: self.dim }]
    }

    fn block_forward<O: Forward>(&self, o: &mut O, w: &BlockWeights, v: &VitActs, i: usize) {
        let (b, x, c, rows) = (v.full(i), v.stream(i), self.dim, v.tokens.rows());
        o.layernorm(b.norm.y, b.norm.mean, b.norm.rstd, x, w.norm1[0], w.norm1[1], self.norm(rows));
        o.linear(b.qkv, b.norm.y, w.qkv[0], w.qkv[1], Mat { rows, inp: c, out: 3 * c });
        o.attention(b.attn, b.lse, b.qkv, self.heads(v.tokens));
        o.linear(v.branch, b.attn, w.proj[0], w.proj[1], Mat { rows, inp: c, out: c });
        self.add_branch_norm(
            o,
            b.mlp.norm,
            b.residual,
            x,
            v.branch,
            w.norm2,
            self.drop(v, i, Branch::Attention),
            v.tokens,
        );
        let [up, down] = self.mlp_mats(rows);
        o.linear_gelu(b.mlp.gelu, b.mlp.fc1, b.mlp.norm.y, w.fc1[0], w.fc1[1], up);
        o.linear(v.branch, b.mlp.gelu, w.fc2[0], w.fc2[1], down);
        self.add_branch(o, v.stream(i + 1), b.residual, v.branch, self.drop(v, i, Branch::Mlp), v.tokens);
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
        o.layernorm(b.norm.y, b.norm.mean, b.norm.rstd, x, w.norm1[0], w.norm1[1], self.norm(rows));
        o.linear(b.kv, b.norm.y, kv[0], kv[1], Mat { rows, inp: c, out: 2 * c });
        o.gather_class(b.norm_class, b.norm.y, v.tokens, c);
        o.linear(b.q, b.norm_class, q[0], q[1], Mat { rows: crops, inp: c, out: c });
        o.attention_class(b.attn, b.lse, b.q, b.kv, self.heads(v.tokens));
        o.linear(branch, b.attn, w.proj[0], w.proj[1], Mat { rows: crops, inp: c, out: c });
        o.gather_class(b.x, x, v.tokens, c);
        self.add_branch_norm(o, b.mlp.norm, b.residual, b.x, branch, w.norm2, self.drop(v, i, Branch::Attention), one);
        let [up, down] = self.mlp_mats(crops);
        o.linear_gelu(b.mlp.gelu, b.mlp.fc1, b.mlp.norm.y, w.fc1[0], w.fc1[1], up);
        o.linear(branch, b.mlp.gelu, w.fc2[0], w.fc2[1], down);
        self.add_branch(o, b.out, b.residual, branch, self.drop(v, i, Branch::Mlp), one);
    }

    /// y (crops, C): the final norm of the class rows of a block's output `x` (rows, C), as `get_intermediate_layers` gives them.
    /// `class` (crops, C), mean and rstd (crops) are scratch.
    pub fn norm_class<O: Forward>(
        &self,
        o: &mut O,
        w: &VitWeights,
        v: &VitActs,
        y: Act,
        class: Act,
        [mean, rstd]: [Stat; 2],
        x: Act,
    ) {
        let n = Rows { rows: v.crops.count(), cols: self.dim };
        o.gather_class(class, x, v.tokens, self.dim);
        o.layernorm(y, mean, rstd, class, w.norm[0], w.norm[1], self.norm(n.rows));
    }

    /// After a dense pass: the last block's attention probabilities of the first `queries` rows of every crop.
    pub fn last_attention<O: Forward>(&self, o: &mut O, y: Act, v: &VitActs, queries: usize) {
        let b = v.full(self.depth - 1);
        o.attention_rows(y, b.lse, b.qkv, queries, self.heads(v.tokens));
    }

    /// From `g.dy` (crops, C), the gradient of the class rows, to every parameter. Needs a saving class pass.
    pub fn backward<O: Backward>(&self, o: &mut O, w: &VitWeights, v: &VitActs, g: &VitGrads, patches: Act) {
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
            let dpositions = g.d_attn.part(0, n.patches * c);
            o.embed_backward(dpatches, dpositions, dx, w.class, w.positions.part(0, c), n);
            let (m, table) = (v.positions.groups[i], w.positions.part(c, self.table_len()));
            o.resize_positions_backward(dpositions, table, m.rows, m.cols, self.grid(*group));
            row += n.crops * (1 + n.patches);
            patch += n.crops * n.patches;
        }
        let n = Mat { rows: patch, inp: self.patch_len(), out: c };
        o.linear_backward_params(g.d_norm.part(0, patch * c), patches, w.patch[0], w.patch[1], n);
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
    /// `again`: norm and hidden rows are to be computed again.
    fn mlp_backward<O: Backward>(
        &self,
        o: &mut O,
        w: &BlockWeights,
        m: &MlpActs,
        residual: Act,
        g: &VitGrads,
        dx: Act,
        s: State,
        crops: Ragged,
        again: bool,
    ) {
        let [up, down] = self.mlp_mats(m.rows);
        let (d_gelu, d_norm) = (g.d_gelu.part(0, m.rows * self.mlp), g.d_norm.part(0, m.rows * self.dim));
        let rows = Rows { rows: m.rows, cols: self.dim };
        let dy = self.branch_gradient(o, g.d_branch, dx, s, crops);
        if again {
            o.gelu(m.gelu, m.fc1);
            o.layernorm(m.norm.y, m.norm.mean, m.norm.rstd, residual, w.norm2[0], w.norm2[1], self.norm(m.rows));
        }
        o.linear_backward(d_gelu, dy, m.gelu, w.fc2[0], w.fc2[1], down);
        // The hidden row has met its weight's gradient and is dead: its place takes the gradient before the GELU.
        o.gelu_backward(m.gelu, d_gelu, m.fc1);
        o.linear_backward(d_norm, m.gelu, m.norm.y, w.fc1[0], w.fc1[1], up);
        o.layernorm_backward(dx, d_norm, residual, m.norm.mean, m.norm.rstd, w.norm2[0], w.norm2[1], rows);
    }

    fn block_backward<O: Backward>(&self, o: &mut O, w: &BlockWeights, v: &VitActs, g: &VitGrads, i: usize) {
        let (b, c, rows, again) = (v.full(i), self.dim, v.tokens.rows(), v.save == Save::Least);
        self.mlp_backward(o, w, &b.mlp, b.residual, g, g.dx, self.drop(v, i, Branch::Mlp), v.tokens, again);
        let dy = self.branch_gradient(o, g.d_branch, g.dx, self.drop(v, i, Branch::Attention), v.tokens);
        o.linear_backward(g.d_attn, dy, b.attn, w.proj[0], w.proj[1], Mat { rows, inp: c, out: c });
        o.attention_backward(g.d_qkv, g.d_attn, b.attn, b.lse, b.qkv, self.heads(v.tokens));
        let n = Rows { rows, cols: c };
        if again {
            o.layernorm(b.norm.y, b.norm.mean, b.norm.rstd, v.stream(i), w.norm1[0], w.norm1[1], self.norm(rows));
        }
        o.linear_backward(g.d_norm, g.d_qkv, b.norm.y, w.qkv[0], w.qkv[1], Mat { rows, inp: c, out: 3 * c });
        o.layernorm_backward(g.dx, g.d_norm, v.stream(i), b.norm.mean, b.norm.rstd, w.norm1[0], w.norm1[1], n);
    }

    fn class_block_backward<O: Backward>(&self, o: &mut O, w: &BlockWeights, v: &VitActs, g: &VitGrads) {
        let (b, c, i) = (&v.last, self.dim, self.depth - 1);
        let (rows, crops) = (v.tokens.rows(), v.crops.count());
        let one = Ragged::single(crops);
        let [q, kv] = self.split_qkv(w.qkv);
        let square = Mat { rows: crops, inp: c, out: c };
        self.mlp_backward(o, w, &b.mlp, b.residual, g, g.d_class, self.drop(v, i, Branch::Mlp), one, false);
        let dy = self.branch_gradient(o, g.d_branch, g.d_class, self.drop(v, i, Branch::Attention), one);
        let (d_attn, d_kv) = (g.d_attn.part(0, crops * c), g.d_qkv.part(0, rows * 2 * c));
        o.linear_backward(d_attn, dy, b.attn, w.proj[0], w.proj[1], square);
        o.attention_class_backward(g.d_q, d_kv, d_attn, b.attn, b.lse, b.q, b.kv, self.heads(v.tokens));
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
