//! What a configuration requests from the core: the parameter table and the memory plan.

use super::Config;
use crate::error::{Error, Result};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::model::head::MAX_LAYERS;
use dino_kernel::model::resnet::{Block, MAX_STAGES, ResNet, Stage, Stem};
use dino_kernel::model::{Activation, Backbone, Head, Table, Vit};
use dino_kernel::objective::{Divergence, Objective, Targets};
use dino_kernel::ops::position::Interpolation;
use dino_kernel::plan::{self, Plan, PlanError, Sharding};

impl Config {
    /// Hidden width of the MLPs.
    pub fn mlp(&self) -> usize {
        (self.embed_dim as f64 * self.mlp_ratio) as usize
    }

    /// The shape of the residual network that `arch` names, if it names one.
    pub fn resnet(&self) -> Option<ResNet> {
        self.arch.starts_with("resnet").then(|| {
            let block = if self.block_kind == "bottleneck" { Block::Bottleneck } else { Block::Basic };
            let width = self.widths.first().copied().unwrap_or(0);
            let stem = if self.stem == "3x3" { Stem::small(width) } else { Stem::published(width) };
            let stem = Stem { stride: self.stem_stride, ..stem };
            let stages = self.widths.iter().zip(&self.stage_blocks).take(MAX_STAGES).enumerate();
            stages.fold(ResNet::new(self.global_size, self.channels, stem, block), |resnet, (i, (&width, &blocks))| {
                resnet.with(Stage { width, blocks, stride: if i == 0 { 1 } else { 2 } })
            })
        })
    }

    /// The networks' parameters.
    pub fn table(&self) -> Table {
        let vit = Vit {
            image: self.global_size,
            patch: self.patch_size,
            channels: self.channels,
            dim: self.embed_dim,
            depth: self.depth,
            heads: self.heads,
            mlp: self.mlp(),
            positions: if self.position_resize == "size" { Interpolation::Size } else { Interpolation::Published },
            eps: self.norm_eps,
        };
        let backbone = self.resnet().map_or(Backbone::Vit(vit), Backbone::ResNet);
        let head = Head {
            inp: self.embed_dim,
            layers: self.head_layers,
            hidden: self.hidden,
            bottleneck: self.bottleneck,
            prototypes: self.out_dim,
            activation: if self.activation == "relu" { Activation::Relu } else { Activation::Gelu },
            batch_norm: self.use_bn_in_head,
            l2_norm: self.l2_norm.or(self.bottleneck > 0),
            weight_norm: self.weight_norm.or(self.bottleneck > 0),
            train_gain: !self.norm_last_layer,
            predictor: if self.predictor { self.predictor_hidden } else { 0 },
        };
        Table { backbone, head }
    }

    /// What the student learns.
    pub fn objective(&self) -> Objective {
        let targets = match self.targets.as_str() {
            "sinkhorn-knopp" => Targets::SinkhornKnopp { iterations: self.sinkhorn_iterations },
            "softmax-batch" => Targets::SinkhornKnopp { iterations: 1 },
            "none" => Targets::Plain,
            _ => Targets::Centered { momentum: self.center_momentum },
        };
        let divergence = if self.loss == "mse" { Divergence::SquaredError } else { Divergence::CrossEntropy };
        Objective { targets, divergence }
    }

    /// The memory plan of a training step, on a device that computes some things again in the backward pass
    /// (`Device::RECOMPUTE`) or does not.
    ///
    /// # Errors
    /// The sizes do not fit one another, or are too large; the hint names the flag.
    pub fn plan(&self, recompute: bool) -> Result<Plan> {
        self.plan_of(recompute, 1)
    }

    /// The same for each of `ranks` processes that share every batch.
    ///
    /// # Errors
    /// As [`Config::plan`], or the processes cannot share the shards equally.
    pub fn plan_of(&self, recompute: bool, ranks: usize) -> Result<Plan> {
        let Table { backbone, head } = self.table();
        let square = |count, side| Group { count, height: side, width: side };
        let mut views = Crops::one(square(2, self.global_size));
        if self.local_crops_number > 0 {
            views = views.with(square(self.local_crops_number, self.local_size));
        }
        let drop_path = self.drop_path_rate > 0.0;
        let (batch, micro_batch, stream_crops) = (self.batch, self.micro_batch, self.stream_crops);
        let (optimizer, teacher) = (self.optimizer(), self.teacher());
        let config = plan::Config {
            backbone,
            head,
            optimizer,
            teacher,
            objective: self.objective(),
            views,
            batch,
            micro_batch,
            drop_path,
            recompute,
            stream_crops,
            bn_group: (self.bn_group > 0).then_some(self.bn_group),
        };
        let sharding = Sharding { shards: self.shards, ranks };
        Plan::sharded(config, sharding).map_err(|e| Error::new(e.to_string()).hint(remedy(e)))
    }
}

/// The divisor of `n` nearest to `wish`, if one is near; else 1.
fn divisor(n: usize, wish: usize) -> usize {
    let near = |away: usize| [wish.saturating_sub(away), wish.saturating_add(away)];
    (0..10_000).flat_map(near).find(|&d| d > 0 && n.is_multiple_of(d) && d <= n).unwrap_or(1)
}

/// What to change when a plan is refused.
fn remedy(e: PlanError) -> String {
    match e {
        PlanError::Zero(_) => "sizes are at least 1".into(),
        PlanError::Heads { dim, heads } => {
            format!("--heads {} divides --embed-dim {dim}", divisor(dim, heads))
        }
        PlanError::HeadDim { dim, most, .. } => format!("--heads {} or more", dim.div_ceil(most)),
        PlanError::HeadInput { .. } => "the head follows --embed-dim".into(),
        PlanError::HeadLayers { .. } => format!("--head-layers 1 to {MAX_LAYERS}; 3 is the published depth"),
        PlanError::SmallCrop { side, .. } => format!("--patch-size {side} or smaller, or larger crops"),
        PlanError::Views { .. } => "there are two global crops; add --local-crops-number".into(),
        PlanError::Streams { .. } => "a smaller --local-crops-number or --depth".into(),
        PlanError::MicroBatch { batch, micro_batch } => {
            format!("--micro-batch {} divides --batch {batch}", divisor(batch, micro_batch))
        }
        PlanError::Shards { micro_batches, shards } => {
            format!(
                "--shards {}, or a --micro-batch that divides the images of a shard",
                divisor(micro_batches, shards)
            )
        }
        PlanError::Ranks { shards, ranks } => {
            format!(
                "{shards} shards suit {} processes; a new run with --shards {ranks} suits {ranks}",
                divisor(shards, ranks)
            )
        }
        PlanError::Blocks { depth, .. } => format!("--blocks 1 to {depth}"),
        PlanError::EvenKernel { .. } => "a filter of side 3, 5 or 7".into(),
        PlanError::StageBlocks { most, .. } => format!("up to {most} blocks a stage"),
        PlanError::BatchGroup { batch, group, .. } => match divisor(batch, group) {
            fits if fits == group => format!("--micro-batch {group} or a multiple of it, or a smaller --bn-group"),
            fits => format!("--bn-group {fits} divides --batch {batch}"),
        },
        PlanError::OneValue { .. } => "a larger --batch or --bn-group, or larger crops".into(),
        PlanError::StreamedHead => "without --stream-crops, or without --use-bn-in-head".into(),
        PlanError::BatchShards { batch, shards, .. } => {
            format!("--micro-batch {}, or --bn-group for statistics over the images of one shard", batch / shards)
        }
        PlanError::TooLarge => "a smaller --micro-batch, --stream-crops, smaller crops, width or --out-dim".into(),
    }
}
