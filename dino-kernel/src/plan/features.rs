//! Forward passes for features, images and probes: a backbone alone.

use super::{PlanError, Pools};
use crate::backend::Forward;
use crate::crops::Crops;
use crate::dims::LossDims;
use crate::mem::{Act, Layout};
use crate::model::{Backbone, Earlier, Extents, Inference, Network, Output, Pass};
use crate::real::Real;

/// A forward pass for features or maps of an image: the backbone alone, its weights the first `table.backbone_len()` of a network's.
#[derive(Clone, Copy, Debug)]
pub struct FeaturePlan {
    /// The backbone's shape.
    pub backbone: Backbone,
    /// Its parameters and what outlives a pass.
    pub network: Network,
    /// The crops, every group (count, channels, height, width). A pass writes over them.
    pub pixels: Act,
    /// The pass, its output at [`Pass::y`].
    pub pass: Pass,
    /// Attention rows, on request ([`Pass::attention`]).
    pub attention: Act,
    /// How large every pool must be.
    pub pools: Pools,
}

impl FeaturePlan {
    /// `queries`: how many rows of the last layer's attention may be computed (dense output only), per crop.
    ///
    /// # Errors
    /// There are no crops, [`Backbone::check`] refuses shape or crops, or the pass needs more memory than can be addressed.
    pub const fn new(
        backbone: Backbone,
        crops: Crops,
        output: Output,
        queries: usize,
    ) -> Result<FeaturePlan, PlanError> {
        if crops.is_empty() {
            return Err(PlanError::Zero("the number of crops"));
        }
        if let Err(e) = backbone.check(&crops) {
            return Err(e);
        }
        if !backbone.bounds(&crops, 1, queries).fit() {
            return Err(PlanError::TooLarge);
        }
        let mut l = Layout::new();
        let Inference { network, pixels, pass, attention } = backbone.inference(crops, output, queries, &mut l);
        let Extents { longest, head_dim, widest, filters, sums } = backbone.extents(&crops, None);
        let pools = Pools {
            weights: l.weights.next,
            grads: 0,
            slots: 0,
            acts: l.acts.next,
            stats: l.stats.next,
            state: l.state.next,
            input: 0,
            loss: LossDims::NONE,
            longest,
            head_dim,
            widest,
            filters,
            sums,
            lanes: 1,
            exchanged: 0,
        };
        Ok(FeaturePlan { backbone, network, pixels, pass, attention, pools })
    }

    /// What the state pool holds.
    pub fn initial_state<T: Real>(&self, state: &mut [T]) {
        state.fill(T::ZERO);
        self.network.initial_state(state);
    }

    /// Pixels at `self.pixels` to the output at `self.pass.y()`.
    pub fn forward<O: Forward>(&self, o: &mut O) {
        self.prepare(o);
        self.pass.forward(o);
    }

    fn prepare<O: Forward>(&self, o: &mut O) {
        self.network.begin(o);
        self.network.prepare(o, self.pixels);
    }
}

/// A [`FeaturePlan`] whose pass also keeps the class rows of blocks before the last one: what the published linear probe reads
/// (official `get_intermediate_layers`).
#[derive(Clone, Copy, Debug)]
pub struct BlocksPlan {
    /// The plan of the pass.
    pub plan: FeaturePlan,
    /// The class rows of the blocks before the last. The last block's are the plan's output.
    pub earlier: Earlier,
    /// The plan's pools and these.
    pub pools: Pools,
}

impl BlocksPlan {
    /// The last `blocks`, 1 to all.
    ///
    /// # Errors
    /// Those of [`FeaturePlan::new`], and [`PlanError::Blocks`] where there are not so many blocks.
    pub const fn new(backbone: Backbone, crops: Crops, output: Output, blocks: usize) -> Result<BlocksPlan, PlanError> {
        let plan = match FeaturePlan::new(backbone, crops, output, 0) {
            Ok(plan) => plan,
            Err(e) => return Err(e),
        };
        if blocks == 0 || blocks > backbone.blocks() {
            return Err(PlanError::Blocks { blocks, depth: backbone.blocks() });
        }
        let mut l = Layout::new();
        (l.acts.next, l.stats.next) = (plan.pools.acts, plan.pools.stats);
        // The size check of the plan bounds depth * tokens * C, which is more.
        let earlier = Earlier::take(blocks - 1, crops.count(), backbone.dim(), &mut l);
        let pools = Pools { acts: l.acts.next, stats: l.stats.next, ..plan.pools };
        Ok(BlocksPlan { plan, earlier, pools })
    }

    /// As [`FeaturePlan::forward`].
    pub fn forward<O: Forward>(&self, o: &mut O) {
        self.plan.prepare(o);
        self.plan.pass.forward_keeping(o, &self.earlier);
    }
}
