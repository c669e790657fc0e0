//! A network (a shape, its weights and what outlives a pass) and its passes, each with every handle that it needs.

use super::drop_path::DropPath;
use super::{Output, PositionActs, Save, Vit, VitActs, VitGrads, VitWeights};
use crate::backend::{Backward, Forward};
use crate::crops::Crops;
use crate::mem::{Act, Cursor, Layout, State, max};
use crate::model::Earlier;
use crate::real::Real;
use core::ops::Range;

/// A transformer over the crops of a micro-batch.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// The shape.
    pub vit: Vit,
    /// Handles of the parameters.
    pub weights: VitWeights,
    /// The resized positions of every group.
    pub positions: PositionActs,
    /// The crops' im2col patches (patches, patch_len).
    pub patches: Act,
    crops: Crops,
}

/// A forward pass over some of a network's crops and, with gradients, a backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// The shape.
    pub vit: Vit,
    /// Handles of the parameters.
    pub weights: VitWeights,
    /// What the forward pass writes.
    pub acts: VitActs,
    /// Empty without a backward pass.
    pub grads: VitGrads,
    /// The patches of the pass's crops.
    patches: Act,
}

impl Vit {
    pub(in crate::model) const fn network(&self, crops: Crops, l: &mut Layout) -> Network {
        let weights = self.weights(&mut l.weights);
        let patches = l.act(crops.patches(self.patch) * self.patch_len());
        Network { vit: *self, weights, positions: self.positions(crops, l), patches, crops }
    }

    /// A network, its pixels, its only pass, and a span for attention rows. Pixels are not read again once they are patches, and patches
    /// once they are embedded: later spans may overlap both.
    pub(in crate::model) const fn inference(
        &self,
        crops: Crops,
        output: Output,
        queries: usize,
        l: &mut Layout,
    ) -> (Network, Act, Pass, Act) {
        let (vit, weights) = (*self, self.weights(&mut l.weights));
        let positions = self.positions(crops, l);
        let mut early = *l;
        let pixels = early.act(crops.pixels() * self.channels);
        let acts = self.acts(crops, positions, output, Save::Nothing, State::EMPTY, l);
        early.acts.next = max(early.acts.next, acts.end_of_embedded().next_multiple_of(Cursor::ALIGN));
        let patches = early.act(crops.patches(self.patch) * self.patch_len());
        let (mut rows, mut i) = (0, 0);
        while i < crops.len() {
            let n = 1 + crops.group(i).patches(self.patch);
            rows += crops.group(i).count * n * if queries < n { queries } else { n };
            i += 1;
        }
        let attention = l.act(rows * self.heads);
        l.acts.next = max(l.acts.next, early.acts.next);
        let pass = Pass { vit, weights, acts, grads: VitGrads::EMPTY, patches };
        (Network { vit, weights, positions, patches, crops }, pixels, pass, attention)
    }
}

impl Network {
    pub(in crate::model) const fn teacher(&self, by: usize, crops: Crops, l: &mut Layout) -> Network {
        let patches = self.patches.part(0, crops.patches(self.vit.patch) * self.vit.patch_len());
        let positions = self.vit.positions(crops, l);
        Network { vit: self.vit, weights: self.weights.shift(by), positions, patches, crops }
    }

    pub(in crate::model) const fn pixels(&self, passes: &mut Layout) -> Act {
        passes.act(self.crops.pixels() * self.vit.channels)
    }

    pub(in crate::model) const fn pass(
        &self,
        [first, count]: [usize; 2],
        output: Output,
        save: Save,
        drop: State,
        l: &mut Layout,
    ) -> Pass {
        let (before, crops) = (self.crops.part(0, first), self.crops.part(first, count));
        let positions = self.positions.part(self.crops.group_of(first), crops);
        let (patch, len) = (self.vit.patch, self.vit.patch_len());
        Pass {
            vit: self.vit,
            weights: self.weights,
            acts: self.vit.acts(crops, positions, output, save, drop, l),
            grads: VitGrads::EMPTY,
            patches: self.patches.part(before.patches(patch) * len, crops.patches(patch) * len),
        }
    }

    pub(in crate::model) fn initial_state<T: Real>(&self, state: &mut [T]) {
        self.vit.position_matrices(&self.positions, state);
    }

    pub(in crate::model) fn begin<O: Forward>(&self, o: &mut O) {
        self.vit.resize_positions(o, &self.weights, &self.positions);
    }

    pub(in crate::model) fn prepare<O: Forward>(&self, o: &mut O, pixels: Act) {
        o.patchify(self.patches, pixels, self.vit.patches(self.crops));
    }
}

impl Pass {
    pub(in crate::model) const fn with_gradients(self, l: &mut Layout) -> Pass {
        Pass { grads: self.vit.grads(&self.acts, l), ..self }
    }

    pub(in crate::model) fn forward<O: Forward>(&self, o: &mut O) {
        self.vit.forward(o, &self.weights, &self.acts, self.patches);
    }

    pub(in crate::model) fn forward_keeping<O: Forward>(&self, o: &mut O, kept: &Earlier) {
        let (first, len) = (self.vit.depth - 1 - kept.blocks, kept.class.len());
        self.vit.forward_each(o, &self.weights, &self.acts, self.patches, |o, block, x| {
            if block >= first && block < first + kept.blocks {
                let y = kept.classes.part((block - first) * len, len);
                self.vit.norm_class(o, &self.weights, &self.acts, y, kept.class, kept.stats, x);
            }
        });
    }

    pub(in crate::model) fn backward<O: Backward>(&self, o: &mut O) {
        self.vit.backward(o, &self.weights, &self.acts, &self.grads, self.patches);
    }

    pub(in crate::model) fn backward_last<O: Backward>(&self, o: &mut O, blocks: usize) {
        self.vit.blocks_backward(o, &self.weights, &self.acts, &self.grads, blocks);
    }

    pub(in crate::model) fn attention<O: Forward>(&self, o: &mut O, y: Act, queries: usize) {
        self.vit.last_attention(o, y, &self.acts, queries);
    }

    pub(in crate::model) fn draw<T: Real>(&self, scales: &mut [T], key: DropPath, views: Range<usize>, images: &[u32]) {
        self.vit.draw_drop_path(scales, key, views, images);
    }
}
