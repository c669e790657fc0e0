//! Features of a data set, by the backbone alone.

use crate::config::Config;
use crate::data::{Dataset, Unreadable};
use crate::device::Device;
use crate::dist::Group;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::augment::{EvalView, eval_view};
use crate::inference::require;
use clap::ValueEnum;
use dino_kernel::crops::{self, Crops};
use dino_kernel::mem::Pool;
use dino_kernel::model::{Gives, Output};
use dino_kernel::params::Part;
use dino_kernel::plan::{BlocksPlan, FeaturePlan, Pools};
use ndarray::{Array2, Axis};
use rayon::prelude::*;
use std::collections::HashMap;

/// Images that go through the backbone at once: at most this many, fewer where they are large.
pub(crate) fn batch(config: &Config) -> usize {
    let group = crops::Group { count: 1, height: config.global_size, width: config.global_size };
    (4096 / config.table().backbone.cost(&Crops::one(group))).clamp(1, 64)
}

/// Which rows of the last layer norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tokens {
    /// The class token: what k-NN is evaluated on
    Class,
    /// A token a patch, row by row
    Patches,
}

/// What [`Extractor`] takes to score a run's class tokens; `None` where there is no such plan.
pub(crate) fn scoring_pools(config: &Config) -> Option<Pools> {
    let group = crops::Group { count: batch(config), height: config.global_size, width: config.global_size };
    BlocksPlan::new(config.table().backbone, Crops::one(group), Output::Class, 1).ok().map(|plan| plan.pools)
}

/// A device that holds a backbone: its parameters, then its buffers, if it has any.
pub(super) fn start<D: Device>(options: &D::Options, plan: &FeaturePlan, weights: &[f32]) -> Result<D> {
    let mut device = D::new(options, plan.pools)?;
    let (parameters, buffers) = weights.split_at(plan.backbone.len().min(weights.len()));
    let mut state = vec![0.0; plan.pools.state];
    plan.initial_state(&mut state);
    state[plan.network.running().range()][..buffers.len()].copy_from_slice(buffers);
    device.upload(Pool::State, 0, &state);
    device.upload(Pool::Weights, 0, parameters);
    Ok(device)
}

/// The first `blocks` blocks of a backbone, with its final norm: what an earlier block gives, or attends to.
///
/// # Errors
/// There is no such block.
pub fn truncate(config: &Config, weights: &[f32], blocks: usize) -> Result<(Config, Vec<f32>)> {
    if blocks == 0 || blocks > config.depth {
        return Err(Error::new(format!("there is no block {blocks}"))
            .hint(format!("this network has {}: 1 is the first, {0} the last", config.depth)));
    }
    let short = Config { depth: blocks, ..config.clone() };
    let mut all = HashMap::new();
    config.table().visit(|spec| {
        all.insert(spec.name.to_string(), spec.at.0);
    });
    let mut kept = vec![0.0; short.table().backbone_len()];
    short.table().visit(|spec| {
        if spec.part == Part::Backbone {
            kept[spec.at.0.range()].copy_from_slice(&weights[all[&spec.name.to_string()].range()]);
        }
    });
    Ok((short, kept))
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

/// How the images of a set become evaluation views: as the configuration sets it, or, where it leaves that to the set (`auto`), entire if
/// the set's first image already has the size of the crops (then so do the others of a set made for such crops), else resized and cropped.
pub fn view_of(config: &Config, set: &dyn Dataset) -> EvalView {
    config.eval_view().unwrap_or_else(|| match first_readable(set) {
        Some(image) if (image.width, image.height) == (config.global_size, config.global_size) => EvalView::Whole,
        _ => EvalView::ResizeCrop,
    })
}

/// The image whose size is taken for a set's: the first of a hundred that can be read, so that a damaged one changes nothing. What is
/// wrong with the others is reported when they are used.
pub fn first_readable(set: &dyn Dataset) -> Option<Image> {
    (0..set.len().min(100)).find_map(|i| set.image(i).ok())
}

/// A backbone ready to make features of evaluation views.
pub struct Extractor<D> {
    device: D,
    plan: BlocksPlan,
    config: Config,
    /// None before the first set has been seen, where it is that which decides.
    view: Option<EvalView>,
    tokens: Tokens,
    /// Append the mean of the last block's patch tokens.
    mean_patch: bool,
    group: Group,
}

/// What a process has of an image: nothing, for it cannot be read, or a row.
const UNREAD: u8 = 0;
const ROW: u8 = 1;

impl<D: Device> Extractor<D> {
    /// Of the class token. `weights`: a backbone in the table's layout.
    ///
    /// # Errors
    /// The plan does not fit `config`, or the device has no memory for it.
    pub fn new(options: &D::Options, config: &Config, weights: &[f32]) -> Result<Extractor<D>> {
        Extractor::build(Tokens::Class, 1, false, options, config, weights)
    }

    /// Of other tokens.
    ///
    /// # Errors
    /// As [`Extractor::new`], or the network has no patch tokens.
    pub fn of(tokens: Tokens, options: &D::Options, config: &Config, weights: &[f32]) -> Result<Extractor<D>> {
        Extractor::build(tokens, 1, false, options, config, weights)
    }

    /// Of the class tokens of the last `blocks`, each after the final norm, the earliest first (official `get_intermediate_layers`),
    /// and behind them, on request, the mean of the last block's patch tokens.
    ///
    /// # Errors
    /// As [`Extractor::new`], or the network has fewer blocks or no patch tokens.
    pub fn last_blocks(
        blocks: usize,
        mean_patch: bool,
        options: &D::Options,
        config: &Config,
        weights: &[f32],
    ) -> Result<Extractor<D>> {
        Extractor::build(Tokens::Class, blocks, mean_patch, options, config, weights)
    }

    fn build(
        tokens: Tokens,
        blocks: usize,
        mean_patch: bool,
        options: &D::Options,
        config: &Config,
        weights: &[f32],
    ) -> Result<Extractor<D>> {
        let group = crops::Group { count: batch(config), height: config.global_size, width: config.global_size };
        let dense = tokens == Tokens::Patches || mean_patch;
        let output = if dense { Output::Dense } else { Output::Class };
        let backbone = config.table().backbone;
        require(&backbone, Gives { tokens: dense, attention: false })?;
        let plan =
            BlocksPlan::new(backbone, Crops::one(group), output, blocks).map_err(|e| Error::new(e.to_string()))?;
        let device = start::<D>(options, &FeaturePlan { pools: plan.pools, ..plan.plan }, weights)?;
        Ok(Extractor {
            device,
            plan,
            config: config.clone(),
            view: config.eval_view(),
            tokens,
            mean_patch,
            group: Group::default(),
        })
    }

    /// Numbers an image: C a block, and C for the mean patch; or, with patches, C a patch.
    pub fn width(&self) -> usize {
        match self.tokens {
            Tokens::Class => self.config.embed_dim * (self.plan.earlier.blocks + 1 + self.mean_patch as usize),
            Tokens::Patches => {
                let side = self.config.global_size;
                let [rows, cols] = self.plan.plan.backbone.grid(crops::Group { count: 1, height: side, width: side });
                self.config.embed_dim * rows * cols
            }
        }
    }

    /// Makes evaluation views by another rule from here on.
    pub fn set_view(&mut self, view: EvalView) {
        self.view = Some(view);
    }

    /// Shares the images of every set with these processes: each computes the features of some, and all of them have all, the same bits as
    /// alone.
    pub fn share(&mut self, group: &Group) {
        self.group = group.clone();
    }

    /// Features of a set, image by image in its order: `take` gets the index of an image that could be read and its numbers.
    ///
    /// # Errors
    /// The device fails, features are not finite, `take` fails, or, with `--strict`, an image is unreadable.
    pub fn each(
        &mut self,
        set: &dyn Dataset,
        unreadable: &Unreadable,
        mut take: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let (side, c) = (self.config.global_size, self.config.embed_dim);
        let view = *self.view.get_or_insert_with(|| view_of(&self.config, set));
        let FeaturePlan { pixels: input, pass, .. } = self.plan.plan;
        let wide = self.config.channels * side * side;
        let (count, classes, width) = (input.len() / wide, self.plan.earlier.classes, self.width());
        let mut pixels = vec![0.0; count * wide];
        let (mut rows, mut earlier) = (vec![0.0; pass.y().len()], vec![0.0; classes.len()]);
        let stride = rows.len() / count;
        // A batch of images a process at a time, so that their features come in order and need not all be there at once.
        let (rank, at_once) = (self.group.rank(), count * self.group.size());
        let (mut found, mut all) = (vec![UNREAD; at_once], vec![0.0f32; at_once * width]);
        for first in (0..set.len()).step_by(at_once) {
            let (own, slot) = (first + rank * count, rank * count);
            let here = count.min(set.len().saturating_sub(own));
            let images = views(&mut pixels[..here * wide], set, unreadable, own, &self.config, view);
            let images = self.group.all(images)?;
            self.device.upload(Pool::Acts, input.0.at, &pixels);
            self.device.run(|o| self.plan.forward(o));
            self.device.download(Pool::Acts, pass.y().0.at, &mut rows);
            self.device.download(Pool::Acts, classes.0.at, &mut earlier);
            self.device.sync()?;
            found[slot..][..count].fill(UNREAD);
            for i in images.into_iter().map(|i| i - own) {
                found[slot + i] = ROW;
                let tokens = &rows[i * stride..][..stride];
                let (mut row, mut rest) = (&mut all[(slot + i) * width..][..width], tokens);
                if self.tokens == Tokens::Patches {
                    rest = &tokens[c..];
                } else {
                    for block in earlier.chunks(count * c) {
                        row.split_off_mut(..c).expect("a row has a part a block").copy_from_slice(&block[i * c..][..c]);
                    }
                    rest = &rest[..c];
                }
                row.split_off_mut(..rest.len()).expect("a row has all tokens").copy_from_slice(rest);
                let patches = (stride / c - 1) as f32;
                for (k, mean) in row.iter_mut().enumerate() {
                    *mean = tokens[c..].iter().skip(k).step_by(c).sum::<f32>() / patches;
                }
            }
            self.group.gather_parts(&mut found)?;
            self.group.gather_parts(bytemuck::cast_slice_mut(&mut all))?;
            for i in (0..at_once).filter(|i| found[*i] == ROW) {
                let row = &all[i * width..][..width];
                if !row.iter().all(|x| x.is_finite()) {
                    self.group.end_together();
                    return Err(Error::new(format!("the features of {} are not finite", set.name(first + i)))
                        .hint("are the weights valid? --which random shows whether they are the cause"));
                }
                take(first + i, row)?;
            }
        }
        Ok(())
    }

    /// Features of a full set, in its order. `tick` gets the number of images done.
    ///
    /// # Errors
    /// As [`Extractor::each`].
    pub fn run(&mut self, set: &dyn Dataset, unreadable: &Unreadable, mut tick: impl FnMut(usize)) -> Result<Features> {
        let width = self.width();
        let (mut rows, mut images) = (Vec::with_capacity(set.len() * width), Vec::with_capacity(set.len()));
        self.each(set, unreadable, |i, row| {
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
fn views(
    pixels: &mut [f32],
    set: &dyn Dataset,
    unreadable: &Unreadable,
    first: usize,
    config: &Config,
    view: EvalView,
) -> Result<Vec<usize>> {
    let (side, augment) = (config.global_size, config.augment());
    let views = pixels.par_chunks_mut(config.channels * side * side).enumerate().map(|(i, out)| {
        Ok(unreadable.image(set, first + i)?.map(|image| {
            eval_view(&image, side, view, &augment.mean, &augment.std, out);
            first + i
        }))
    });
    let read: Result<Vec<Option<usize>>> = views.collect();
    Ok(read?.into_iter().flatten().collect())
}

/// Per-channel normalized pixels of the evaluation views (images, channels side^2): the baseline features must beat.
///
/// # Errors
/// With `--strict`, an image is unreadable.
pub fn pixels(set: &dyn Dataset, unreadable: &Unreadable, config: &Config) -> Result<Features> {
    let wide = config.channels * config.global_size * config.global_size;
    let mut all = Array2::zeros((set.len(), wide));
    let view = view_of(config, set);
    let images = views(all.as_slice_mut().expect("a new array is contiguous"), set, unreadable, 0, config, view)?;
    let rows = if images.len() == all.nrows() { all } else { all.select(Axis(0), &images) };
    Ok(Features { rows, images })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::cpu::NoOptions;
    use crate::data;
    use crate::inference::dense::Dense;
    use dino_kernel::init;

    /// All tokens of one image, whose class token is that of the class pass, and fewer blocks by leaving the last ones out.
    #[test]
    fn dense_tokens_hold_the_class_token_and_blocks_can_be_left_out() {
        let config = Config { depth: 3, ..Config::tiny() }.resolve().unwrap();
        let network = |config: &Config| {
            let table = config.table();
            let mut weights = vec![0.0; table.len()];
            init::weights(&mut weights, &table, 1, init::LINEAR_STD);
            weights.truncate(table.backbone_len());
            weights
        };
        let weights = network(&config);
        let (side, c) = (config.global_size, config.embed_dim);
        let pixels: Vec<f32> = (0..3 * side * side).map(|i| (i as f32 * 0.37).sin()).collect();
        let tokens = |config: &Config, weights: &[f32]| {
            let group = crops::Group { count: 1, height: side, width: side };
            Dense::<Cpu>::new(&NoOptions {}, config, weights, group).unwrap().tokens(&pixels).unwrap()
        };
        let all = tokens(&config, &weights);
        assert_eq!(all.len(), (1 + (side / config.patch_size).pow(2)) * c);
        assert!(truncate(&config, &weights, 0).is_err() && truncate(&config, &weights, 4).is_err());
        assert_eq!(truncate(&config, &weights, 3).unwrap().1, weights);
        let (short, kept) = truncate(&config, &weights, 2).unwrap();
        assert_eq!((short.depth, kept.len()), (2, short.table().backbone_len()));
        assert_ne!(tokens(&short, &kept), all);
        // The last two blocks and the mean patch, from the same.
        let set = data::builtin::Builtin::new(side, 3, data::builtin::Part::Test, 0);
        let unreadable = Unreadable::new(true);
        let mut blocks = Extractor::<Cpu>::last_blocks(2, true, &NoOptions {}, &config, &weights).unwrap();
        let found = blocks.run(&set, &unreadable, |_| ()).unwrap().rows;
        assert_eq!((found.dim(), blocks.width()), ((3, 3 * c), 3 * c));
        let mut view = vec![0.0; 3 * side * side];
        for (i, row) in found.rows().into_iter().enumerate() {
            let augment = config.augment();
            eval_view(&set.image(i).unwrap(), side, EvalView::Whole, &augment.mean, &augment.std, &mut view);
            let group = crops::Group { count: 1, height: side, width: side };
            let one = |config: &Config, weights: &[f32]| {
                Dense::<Cpu>::new(&NoOptions {}, config, weights, group).unwrap().tokens(&view).unwrap()
            };
            let (before, last) = (one(&short, &kept), one(&config, &weights));
            let patches = last.len() / c - 1;
            let mean = |k: usize| (1..=patches).map(|p| last[p * c + k]).sum::<f32>() / patches as f32;
            let expected: Vec<f32> = before[..c].iter().chain(&last[..c]).copied().chain((0..c).map(mean)).collect();
            let error = row.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 1e-5, "image {i}: {error}");
        }
        assert!(Extractor::<Cpu>::last_blocks(4, false, &NoOptions {}, &config, &weights).is_err());
        // Weights do not depend on the depth, so two blocks of three are the network of two.
        assert_eq!(kept, network(&short));
    }
}
