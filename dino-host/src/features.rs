//! Features of a data set, by the backbone alone.

use crate::augment::eval_view;
use crate::config::Config;
use crate::data::{Dataset, Faults};
use crate::device::Device;
use crate::error::{Error, Result};
use clap::ValueEnum;
use dino_kernel::crops::{Crops, Group};
use dino_kernel::middleware::Pool;
use dino_kernel::model::vit::Output;
use dino_kernel::plan::FeaturePlan;
use ndarray::{Array2, Axis};
use rayon::prelude::*;

/// Images that go through the backbone at once: at most this many, fewer where they are large.
pub(crate) fn batch(config: &Config) -> usize {
    let tokens = (config.global_size / config.patch_size).pow(2) + 1;
    (4096 / tokens).clamp(1, 64)
}

/// Which rows of the last layer norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tokens {
    /// The class token: what k-NN is judged on
    Class,
    /// A token a patch, row by row
    Patches,
}

/// A row an image, for the images that could be read.
pub struct Features {
    /// (images, width)
    pub rows: Array2<f32>,
    /// Whose rows these are: indices into the set, ascending.
    pub images: Vec<usize>,
}

impl Features {
    /// Their labels, if every one of them has one.
    pub fn labels(&self, set: &dyn Dataset) -> Option<Vec<u32>> {
        self.images.iter().map(|&i| set.label(i)).collect()
    }
}

/// A backbone ready to turn evaluation views into features.
pub struct Extractor<D> {
    device: D,
    plan: FeaturePlan,
    config: Config,
    tokens: Tokens,
}

impl<D: Device> Extractor<D> {
    /// Of the class token. `weights`: a backbone in the table's layout.
    pub fn new(options: &D::Options, config: &Config, weights: &[f32]) -> Result<Extractor<D>> {
        Extractor::of(Tokens::Class, options, config, weights)
    }

    /// Of other tokens.
    pub fn of(tokens: Tokens, options: &D::Options, config: &Config, weights: &[f32]) -> Result<Extractor<D>> {
        let group = Group { count: batch(config), height: config.global_size, width: config.global_size };
        let output = if tokens == Tokens::Class { Output::Class } else { Output::Dense };
        let plan = FeaturePlan::new(config.table().backbone, Crops::one(group), output, 0)
            .map_err(|e| Error::new(e.to_string()))?;
        let mut device = D::new(options, plan.pools)?;
        let mut state = vec![0.0; plan.pools.state];
        plan.initial_state(&mut state);
        device.upload(Pool::State, 0, &state);
        device.upload(Pool::Weights, 0, weights);
        Ok(Extractor { device, plan, config: config.clone(), tokens })
    }

    /// Numbers an image: C, or, with patches, C a patch.
    pub fn width(&self) -> usize {
        match self.tokens {
            Tokens::Class => self.config.embed_dim,
            Tokens::Patches => self.config.embed_dim * (self.config.global_size / self.config.patch_size).pow(2),
        }
    }

    /// Features of a set, image by image in its order: `take` gets the index of an image that could be read and its numbers.
    pub fn each(
        &mut self,
        set: &dyn Dataset,
        faults: &Faults,
        mut take: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let side = self.config.global_size;
        let (count, wide) = (self.plan.acts.crops().count(), self.config.channels * side * side);
        let mut pixels = vec![0.0; count * wide];
        let mut rows = vec![0.0; self.plan.acts.y().0.len];
        // The class row comes first and is none of the patches.
        let (stride, width) = (rows.len() / count, self.width());
        for first in (0..set.len()).step_by(count) {
            let here = count.min(set.len() - first);
            let images = views(&mut pixels[..here * wide], set, faults, first, &self.config)?;
            self.device.upload(Pool::Acts, self.plan.pixels.0.at, &pixels);
            self.plan.forward(&mut self.device);
            self.device.download(Pool::Acts, self.plan.acts.y().0.at, &mut rows);
            self.device.sync()?;
            for i in images {
                take(i, &rows[(i - first + 1) * stride - width..][..width])?;
            }
        }
        Ok(())
    }

    /// Features of a whole set, in its order. `tick` hears how many images are done.
    pub fn run(&mut self, set: &dyn Dataset, faults: &Faults, mut tick: impl FnMut(usize)) -> Result<Features> {
        let width = self.width();
        let (mut rows, mut images) = (Vec::with_capacity(set.len() * width), Vec::with_capacity(set.len()));
        self.each(set, faults, |i, row| {
            rows.extend_from_slice(row);
            images.push(i);
            tick(i + 1);
            Ok(())
        })?;
        let rows = Array2::from_shape_vec((images.len(), width), rows).expect("a row an image");
        Ok(Features { rows, images })
    }
}

/// Evaluation views of images `first ..`, as many as `pixels` holds. Returns which of them could be read; the others' pixels stay.
fn views(pixels: &mut [f32], set: &dyn Dataset, faults: &Faults, first: usize, config: &Config) -> Result<Vec<usize>> {
    let (side, augment) = (config.global_size, config.augment());
    let views = pixels.par_chunks_mut(config.channels * side * side).enumerate().map(|(i, out)| {
        Ok(faults.image(set, first + i)?.map(|image| {
            eval_view(&image, side, &augment.mean, &augment.std, out);
            first + i
        }))
    });
    let read: Result<Vec<Option<usize>>> = views.collect();
    Ok(read?.into_iter().flatten().collect())
}

/// Per-channel normalised pixels of the evaluation views (images, channels side^2): the baseline features must beat.
pub fn pixels(set: &dyn Dataset, faults: &Faults, config: &Config) -> Result<Features> {
    let wide = config.channels * config.global_size * config.global_size;
    let mut all = Array2::zeros((set.len(), wide));
    let images = views(all.as_slice_mut().expect("a new array is contiguous"), set, faults, 0, config)?;
    let rows = if images.len() == all.nrows() { all } else { all.select(Axis(0), &images) };
    Ok(Features { rows, images })
}
