//! Which configurations have a plan.

use super::{Config, Sharding};
use crate::crops::Crops;
use crate::model::check::{MAX_BRANCHES, MAX_VIEWS, MOST, PlanError, mul};
use crate::model::head::MAX_LAYERS;
use crate::objective::Targets;
use crate::scalars::MAX_TEACHERS;

/// Crops of `images` images.
const fn count(views: &Crops, images: usize) -> u128 {
    let (mut count, mut i) = (0u128, 0);
    while i < views.len() {
        count = count.saturating_add(mul(mul(1, views.group(i).count), images));
        i += 1;
    }
    count
}

/// Whether there is a plan for a training step of this configuration.
pub(super) const fn check(config: &Config, sharding: Sharding) -> Result<(), PlanError> {
    let Config { backbone, head, objective, views, batch, micro_batch, drop_path, .. } = *config;
    let group = config.group();
    if let Err(e) = backbone.check(&views) {
        return Err(e);
    }
    if head.hidden == 0 || head.prototypes == 0 || batch == 0 || micro_batch == 0 {
        return Err(PlanError::Zero("head width, prototypes, batch and micro-batch"));
    }
    if head.inp != backbone.dim() {
        return Err(PlanError::HeadInput { dim: backbone.dim(), inp: head.inp });
    }
    if head.layers == 0 || head.layers > MAX_LAYERS {
        return Err(PlanError::HeadLayers { layers: head.layers });
    }
    // From here on sums and products of sizes cannot overflow, those of a backend's scratch among them.
    let bounds = backbone.bounds(&views, micro_batch, 0).plus(head.bounds(count(&views, micro_batch)));
    if !bounds.fit() {
        return Err(PlanError::TooLarge);
    }
    let teachers = if views.is_empty() { 0 } else { views.group(0).count };
    if teachers == 0 || teachers > MAX_TEACHERS || views.count() < 2 {
        return Err(PlanError::Views { teachers, views: views.count() });
    }
    if views.count() >= MAX_VIEWS || (drop_path && backbone.branches() >= MAX_BRANCHES) {
        return Err(PlanError::Streams { views: views.count(), depth: backbone.blocks() });
    }
    if !batch.is_multiple_of(micro_batch) {
        return Err(PlanError::MicroBatch { batch, micro_batch });
    }
    if let Targets::SinkhornKnopp { iterations: 0 } = objective.targets {
        return Err(PlanError::Zero("the number of Sinkhorn-Knopp iterations"));
    }
    // Of every teacher row of the batch the bottleneck row, and two numbers.
    if objective.whole_batch() && mul(mul(mul(1, batch), teachers), head.cols().saturating_add(2)) > MOST {
        return Err(PlanError::TooLarge);
    }
    if backbone.batch_statistics() || head.batch_statistics() {
        let Sharding { shards, .. } = sharding;
        if sharding.share_statistics(config) && batch.is_multiple_of(shards) {
            if batch / shards != micro_batch {
                return Err(PlanError::BatchShards { batch, micro_batch, shards });
            }
        } else if group == 0 || !batch.is_multiple_of(group) || !micro_batch.is_multiple_of(group) {
            return Err(PlanError::BatchGroup { batch, micro_batch, group });
        }
        let head_varies = !head.batch_statistics() || teachers.saturating_mul(group) > 1;
        if !head_varies || !backbone.groups_vary(&views, group) {
            return Err(PlanError::OneValue { group });
        }
        if head.batch_statistics() && config.stream_crops {
            return Err(PlanError::StreamedHead);
        }
    }
    Ok(())
}
