//! Class-token features of a data set, by the backbone alone.

use crate::augment::eval_view;
use crate::config::Config;
use crate::data::Dataset;
use crate::device::Device;
use crate::error::{Error, Result};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::middleware::Pool;
use dino_kernel::model::vit::Output;
use dino_kernel::plan::FeaturePlan;
use ndarray::Array2;
use rayon::prelude::*;

/// Images that go through the backbone at once: at most this many, fewer where they are large.
pub(crate) fn batch(config: &Config) -> usize {
    let tokens = (config.global_size / config.patch_size).pow(2) + 1;
    (4096 / tokens).clamp(1, 64)
}

/// A backbone ready to turn evaluation views into features.
pub struct Extractor<D> {
    device: D,
    plan: FeaturePlan,
    config: Config,
}

impl<D: Device> Extractor<D> {
    /// `weights`: a backbone in the table's layout.
    pub fn new(options: &D::Options, config: &Config, weights: &[f32]) -> Result<Extractor<D>> {
        let group = Group { count: batch(config), height: config.global_size, width: config.global_size };
        let plan = FeaturePlan::new(config.table().backbone, Crops::one(group), Output::Class, 0)
            .map_err(|e| Error::new(e.to_string()))?;
        let mut device = D::new(options, plan.pools)?;
        let mut state = vec![0.0; plan.pools.state];
        plan.initial_state(&mut state);
        device.upload(Pool::State, 0, &state);
        device.upload(Pool::Weights, 0, weights);
        Ok(Extractor { device, plan, config: config.clone() })
    }

    /// Features (images, C) of a whole set, in its order. `tick` hears how many images are done.
    pub fn run(&mut self, set: &dyn Dataset, mut tick: impl FnMut(usize)) -> Result<Array2<f32>> {
        let (dim, side) = (self.config.embed_dim, self.config.global_size);
        let (count, wide) = (self.plan.acts.crops().count(), 3 * side * side);
        let mut features = Array2::zeros((set.len(), dim));
        let mut pixels = vec![0.0; count * wide];
        for first in (0..set.len()).step_by(count) {
            let here = count.min(set.len() - first);
            views(&mut pixels[..here * wide], set, first, &self.config)?;
            self.device.upload(Pool::Acts, self.plan.pixels.0.at, &pixels);
            self.plan.forward(&mut self.device);
            let rows = features.as_slice_mut().expect("a new array is contiguous");
            let y = self.plan.acts.y();
            self.device.download(Pool::Acts, y.0.at, &mut rows[first * dim..][..here * dim]);
            tick(first + here);
        }
        self.device.sync()?;
        Ok(features)
    }
}

/// Evaluation views of images `first ..`, as many as `pixels` holds.
fn views(pixels: &mut [f32], set: &dyn Dataset, first: usize, config: &Config) -> Result<()> {
    let (side, augment) = (config.global_size, config.augment());
    pixels.par_chunks_mut(3 * side * side).enumerate().try_for_each(|(i, out)| {
        eval_view(&set.image(first + i)?, side, &augment.mean, &augment.std, out);
        Ok(())
    })
}

/// Per-channel normalised pixels of the evaluation views (images, 3 side^2): the baseline features must beat.
pub fn pixels(set: &dyn Dataset, config: &Config) -> Result<Array2<f32>> {
    let wide = 3 * config.global_size * config.global_size;
    let mut all = Array2::zeros((set.len(), wide));
    views(all.as_slice_mut().expect("a new array is contiguous"), set, 0, config)?;
    Ok(all)
}
