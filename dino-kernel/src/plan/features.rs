//! Forward passes for features, images and probes: a backbone alone.

use super::check::{check_backbone, check_size};
use super::{PlanError, Pools};
use crate::backend::{Forward, NormStats};
use crate::crops::Crops;
use crate::dims::LossDims;
use crate::mem::{Act, Cursor, State, max};
use crate::model::Vit;
use crate::model::vit::{Output, PositionActs, Save, VitActs, VitWeights};
use crate::real::Real;

/// A forward pass for features or maps of an image: the backbone alone, its weights the first `table.backbone_len()` of a network's.
#[derive(Clone, Copy, Debug)]
pub struct FeaturePlan {
    pub backbone: Vit,
    pub weights: VitWeights,
    /// The crops, every group (count, channels, height, width). A pass writes over them.
    pub pixels: Act,
    /// Their patches (im2col), until the first block.
    pub patches: Act,
    pub positions: PositionActs,
    pub acts: VitActs,
    /// Attention rows, on request.
    pub attention: Act,
    pub pools: Pools,
}

impl FeaturePlan {
    /// `queries`: how many rows of the last block's attention may be computed (dense output only), per crop.
    pub const fn new(backbone: Vit, crops: Crops, output: Output, queries: usize) -> Result<FeaturePlan, PlanError> {
        if crops.is_empty() {
            return Err(PlanError::Zero("the number of crops"));
        }
        if let Err(e) = check_backbone(&backbone, &crops) {
            return Err(e);
        }
        if let Err(e) = check_size(&backbone, None, &crops, 1, queries) {
            return Err(e);
        }
        let (mut w, mut a, mut s, mut t) = (Cursor::new(), Cursor::new(), Cursor::new(), Cursor::new());
        let weights = backbone.weights(&mut w);
        let positions = backbone.positions(crops, &mut a, &mut t);
        // Pixels are not read again once they are patches, and patches once they are embedded: later spans may overlap both.
        let mut early = a;
        let pixels = early.act(crops.pixels() * backbone.channels);
        let acts = backbone.acts(crops, positions, output, Save::Nothing, State::EMPTY, &mut a, &mut s);
        early.next = max(early.next, acts.end_of_embedded().next_multiple_of(Cursor::ALIGN));
        let patches = early.act(crops.patches(backbone.patch) * backbone.patch_len());
        let (mut rows, mut i) = (0, 0);
        while i < crops.len() {
            let n = 1 + crops.group(i).patches(backbone.patch);
            rows += crops.group(i).count * n * if queries < n { queries } else { n };
            i += 1;
        }
        let attention = a.act(rows * backbone.heads);
        a.next = max(a.next, early.next);
        let pools = Pools {
            weights: w.next,
            grads: 0,
            slots: 0,
            acts: a.next,
            stats: s.next,
            state: t.next,
            input: 0,
            loss: LossDims::NONE,
            longest: crops.tokens(backbone.patch).longest(),
            head_dim: backbone.dim / backbone.heads,
            widest: backbone.widest(),
        };
        Ok(FeaturePlan { backbone, weights, pixels, patches, positions, acts, attention, pools })
    }

    /// What the state pool holds.
    pub fn initial_state<T: Real>(&self, state: &mut [T]) {
        state.fill(T::ZERO);
        self.backbone.position_matrices(&self.positions, state);
    }

    /// Pixels at `self.pixels` to the output at `self.acts.y()`.
    pub fn forward<O: Forward>(&self, o: &mut O) {
        self.forward_each(o, |_, _, _| ());
    }

    /// The same; `each` as in [`Vit::forward_each`].
    fn forward_each<O: Forward>(&self, o: &mut O, each: impl FnMut(&mut O, usize, Act)) {
        self.backbone.resize_positions(o, &self.weights, &self.positions);
        o.patchify(self.patches, self.pixels, self.backbone.patches(self.acts.crops()));
        self.backbone.forward_each(o, &self.weights, &self.acts, self.patches, each);
    }
}

/// A [`FeaturePlan`] whose pass also keeps the class rows of blocks before the last one: what the published linear probe reads
/// (official `get_intermediate_layers`).
#[derive(Clone, Copy, Debug)]
pub struct BlocksPlan {
    pub plan: FeaturePlan,
    /// Blocks kept before the last.
    pub earlier: usize,
    /// Their class rows after the final norm (earlier, crops, C), the earliest block first. The last block's are the plan's output.
    pub classes: Act,
    class: Act,
    stats: NormStats,
    /// The plan's pools and these.
    pub pools: Pools,
}

impl BlocksPlan {
    /// The last `blocks`, 1 to all.
    pub const fn new(backbone: Vit, crops: Crops, output: Output, blocks: usize) -> Result<BlocksPlan, PlanError> {
        let plan = match FeaturePlan::new(backbone, crops, output, 0) {
            Ok(plan) => plan,
            Err(e) => return Err(e),
        };
        if blocks == 0 || blocks > backbone.depth {
            return Err(PlanError::Blocks { blocks, depth: backbone.depth });
        }
        let (mut a, mut s) = (Cursor { next: plan.pools.acts }, Cursor { next: plan.pools.stats });
        let crops = crops.count();
        let (class, earlier) = (crops * backbone.dim, blocks - 1);
        // The size check of the plan bounds depth * tokens * C, which is more.
        let (classes, class) = (a.act(earlier * class), a.act(class));
        let stats = NormStats { mean: s.stat(crops), rstd: s.stat(crops) };
        let pools = Pools { acts: a.next, stats: s.next, ..plan.pools };
        Ok(BlocksPlan { plan, earlier, classes, class, stats, pools })
    }

    /// As [`FeaturePlan::forward`].
    pub fn forward<O: Forward>(&self, o: &mut O) {
        let FeaturePlan { backbone, weights, acts, .. } = &self.plan;
        let (first, wide) = (backbone.depth - 1 - self.earlier, self.class.len());
        self.plan.forward_each(o, |o, block, x| {
            if block >= first && block < first + self.earlier {
                let y = self.classes.part((block - first) * wide, wide);
                backbone.norm_class(o, weights, acts, y, self.class, self.stats, x);
            }
        });
    }
}
