//! The parameters: their table and their handles.

use super::Vit;
use crate::backend::Affine;
use crate::mem::{Cursor, Weight};
use crate::params::{Init, Name, ParamGroup, Spec, spec};

#[derive(Clone, Copy, Debug)]
pub(super) struct BlockWeights {
    pub(super) norm1: Affine,
    pub(super) qkv: Affine,
    pub(super) proj: Affine,
    pub(super) norm2: Affine,
    pub(super) fc1: Affine,
    pub(super) fc2: Affine,
}

impl BlockWeights {
    /// The element that the block's parameters begin with.
    pub(super) const fn first(&self) -> usize {
        self.norm1.w.0.at
    }

    const fn shift(&self, by: usize) -> BlockWeights {
        BlockWeights {
            norm1: self.norm1.shift(by),
            qkv: self.qkv.shift(by),
            proj: self.proj.shift(by),
            norm2: self.norm2.shift(by),
            fc1: self.fc1.shift(by),
            fc2: self.fc2.shift(by),
        }
    }
}

/// Handles of the parameters.
#[derive(Clone, Copy, Debug)]
pub struct VitWeights {
    pub(super) class: Weight,
    pub(super) positions: Weight,
    pub(super) patch: Affine,
    pub(super) block: BlockWeights,
    stride: usize,
    pub(super) norm: Affine,
}

impl VitWeights {
    /// The same parameters, `by` elements further on: the teacher's.
    pub(super) const fn shift(&self, by: usize) -> VitWeights {
        VitWeights {
            class: self.class.shift(by),
            positions: self.positions.shift(by),
            patch: self.patch.shift(by),
            block: self.block.shift(by),
            stride: self.stride,
            norm: self.norm.shift(by),
        }
    }

    pub(super) const fn block(&self, i: usize) -> BlockWeights {
        self.block.shift(i * self.stride)
    }
}

impl Vit {
    const fn embed_table(&self, c: &mut Cursor) -> [Spec; 4] {
        const fn name(leaf: &'static str) -> Name {
            Name { part: "", list: "", index: 0, leaf }
        }
        let (d, p, n) = (self.dim, self.patch, self.side() * self.side());
        let default = Init::FanIn(self.patch_len());
        [
            spec(name("cls_token"), [1, 1, d], Init::TruncNormal(0.02), ParamGroup::Decay, c),
            spec(name("pos_embed"), [1, 1 + n, d], Init::TruncNormal(0.02), ParamGroup::Decay, c),
            spec(name("patch_embed.proj.weight"), [d, self.channels, p, p], default, ParamGroup::Decay, c),
            spec(name("patch_embed.proj.bias"), [d], default, ParamGroup::Plain, c),
        ]
    }

    const fn block_table(&self, index: usize, c: &mut Cursor) -> [Spec; 12] {
        const fn name(index: usize, leaf: &'static str) -> Name {
            Name { part: "", list: "blocks.", index, leaf }
        }
        let (d, m, i) = (self.dim, self.mlp, index);
        [
            spec(name(i, "norm1.weight"), [d], Init::Ones, ParamGroup::Plain, c),
            spec(name(i, "norm1.bias"), [d], Init::Zeros, ParamGroup::Plain, c),
            spec(name(i, "attn.qkv.weight"), [3 * d, d], Init::Linear, ParamGroup::Decay, c),
            spec(name(i, "attn.qkv.bias"), [3 * d], Init::Zeros, ParamGroup::Plain, c),
            spec(name(i, "attn.proj.weight"), [d, d], Init::Linear, ParamGroup::Decay, c),
            spec(name(i, "attn.proj.bias"), [d], Init::Zeros, ParamGroup::Plain, c),
            spec(name(i, "norm2.weight"), [d], Init::Ones, ParamGroup::Plain, c),
            spec(name(i, "norm2.bias"), [d], Init::Zeros, ParamGroup::Plain, c),
            spec(name(i, "mlp.fc1.weight"), [m, d], Init::Linear, ParamGroup::Decay, c),
            spec(name(i, "mlp.fc1.bias"), [m], Init::Zeros, ParamGroup::Plain, c),
            spec(name(i, "mlp.fc2.weight"), [d, m], Init::Linear, ParamGroup::Decay, c),
            spec(name(i, "mlp.fc2.bias"), [d], Init::Zeros, ParamGroup::Plain, c),
        ]
    }

    const fn norm_table(&self, c: &mut Cursor) -> [Spec; 2] {
        const fn name(leaf: &'static str) -> Name {
            Name { part: "", list: "", index: 0, leaf }
        }
        [
            spec(name("norm.weight"), [self.dim], Init::Ones, ParamGroup::Plain, c),
            spec(name("norm.bias"), [self.dim], Init::Zeros, ParamGroup::Plain, c),
        ]
    }

    /// Calls `f` for every parameter, in the published order.
    pub(in crate::model) fn visit(&self, c: &mut Cursor, f: &mut impl FnMut(Spec)) {
        self.embed_table(c).into_iter().for_each(&mut *f);
        for i in 0..self.depth {
            self.block_table(i, c).into_iter().for_each(&mut *f);
        }
        self.norm_table(c).into_iter().for_each(f);
    }

    /// Handles of the parameters.
    pub(in crate::model) const fn weights(&self, c: &mut Cursor) -> VitWeights {
        let [class, positions, patch_w, patch_b] = self.embed_table(c);
        let first = c.next;
        let [n1w, n1b, qkv_w, qkv_b, proj_w, proj_b, n2w, n2b, fc1_w, fc1_b, fc2_w, fc2_b] = self.block_table(0, c);
        let stride = c.next - first;
        c.next = first + self.depth * stride;
        let [norm_w, norm_b] = self.norm_table(c);
        VitWeights {
            class: class.at,
            positions: positions.at,
            patch: Affine { w: patch_w.at, b: patch_b.at },
            block: BlockWeights {
                norm1: Affine { w: n1w.at, b: n1b.at },
                qkv: Affine { w: qkv_w.at, b: qkv_b.at },
                proj: Affine { w: proj_w.at, b: proj_b.at },
                norm2: Affine { w: n2w.at, b: n2b.at },
                fc1: Affine { w: fc1_w.at, b: fc1_b.at },
                fc2: Affine { w: fc2_w.at, b: fc2_b.at },
            },
            stride,
            norm: Affine { w: norm_w.at, b: norm_b.at },
        }
    }
}
