//! Dense inference: a backbone over images one by one, each at a size of its own: full patches, square or not.

use super::features::{start, truncate};
use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::planes::{self, normalize};
use crate::image::resize::{Filter, Region, Resizer};
use crate::inference::{require, require_map};
use crate::linalg::leading;
use dino_kernel::crops::{Crops, Group};
use dino_kernel::mem::{Act, Pool};
use dino_kernel::model::{Gives, Output};
use dino_kernel::ops::average_pool;
use dino_kernel::plan::{FeaturePlan, Pools};
use ndarray::ArrayView2;
use std::borrow::Cow;

/// Most patches of an image: attention takes their square in time.
const PATCHES: usize = 1 << 16;
/// A cell of a map is drawn with at most so many pixels a side, whatever the strides of a network are.
const CELL: usize = 1 << 20;

/// A backbone ready for images of one size, square or not: all its tokens or the rows of its last map, or what its last class token
/// attends to.
pub struct Dense<D> {
    device: D,
    plan: FeaturePlan,
    grid: [usize; 2],
}

impl<D: Device> Dense<D> {
    /// For batches of `group`; `weights`: a backbone in the table's layout.
    ///
    /// # Errors
    /// The network's plan does not fit the group, or the device has no memory for it.
    pub fn new(options: &D::Options, config: &Config, weights: &[f32], group: Group) -> Result<Dense<D>> {
        let backbone = config.table().backbone;
        let queries = backbone.gives().attention as usize;
        let plan = FeaturePlan::new(backbone, Crops::one(group), Output::Dense, queries)
            .map_err(|e| Error::new(format!("images of {} x {} pixels: {e}", group.width, group.height)))?;
        let device = start::<D>(options, &plan, weights)?;
        Ok(Dense { device, plan, grid: backbone.grid(group) })
    }

    /// Patches in a column and in a row; of a residual network rows and columns of the last map.
    pub fn grid(&self) -> [usize; 2] {
        self.grid
    }

    /// Every row of the last layer norm (images, 1 + patches, C), the class token first, then the patches row by row, from normalized
    /// pixels (images, channels, height, width).
    ///
    /// # Errors
    /// The network gives no tokens, the device fails, or a value is not finite.
    pub fn tokens(&mut self, pixels: &[f32]) -> Result<Vec<f32>> {
        require(&self.plan.backbone, Gives { tokens: true, attention: false })?;
        self.output(pixels)
    }

    /// A row for every image and one for every cell of its grid, from normalized pixels (images, channels, height, width).
    ///
    /// # Errors
    /// The device fails, or a value is not finite.
    pub fn rows(&mut self, pixels: &[f32]) -> Result<Rows> {
        let (all, backbone) = (self.output(pixels)?, &self.plan.backbone);
        let (c, cells) = (backbone.dim(), self.grid[0] * self.grid[1]);
        if !backbone.gives().tokens {
            let images = all.chunks(cells * c).flat_map(|map| {
                let mut mean = vec![0.0; c];
                average_pool::forward_crop(&mut mean, map);
                mean
            });
            return Ok(Rows { images: images.collect(), cells: all });
        }
        let split = |image: &[f32], class: bool| if class { image[..c].to_vec() } else { image[c..].to_vec() };
        let all = || all.chunks((1 + cells) * c);
        Ok(Rows {
            images: all().flat_map(|image| split(image, true)).collect(),
            cells: all().flat_map(|image| split(image, false)).collect(),
        })
    }

    fn output(&mut self, pixels: &[f32]) -> Result<Vec<f32>> {
        self.device.upload(Pool::Acts, self.plan.pixels.0.at, pixels);
        self.device.run(|o| self.plan.forward(o));
        self.download(self.plan.pass.y(), "features of an image are")
    }

    /// Attention of the last block's class token on the patches, (images, heads, patches), from normalized pixels (images, channels,
    /// height, width). A row sums to 1 less what the class token keeps for itself.
    ///
    /// # Errors
    /// The network gives no attention, the device fails, or a value is not finite.
    pub fn attention(&mut self, pixels: &[f32]) -> Result<Vec<f32>> {
        require(&self.plan.backbone, Gives { tokens: true, attention: true })?;
        let (plan, o) = (&self.plan, &mut self.device);
        o.upload(Pool::Acts, plan.pixels.0.at, pixels);
        o.run(|o| plan.forward(o));
        plan.pass.attention(o, plan.attention, 1);
        let rows = self.download(self.plan.attention, "attention of an image is")?;
        let tokens = 1 + self.grid[0] * self.grid[1];
        Ok(rows.chunks(tokens).flat_map(|row| &row[1..]).copied().collect())
    }

    fn download(&mut self, from: Act, what: &str) -> Result<Vec<f32>> {
        let mut rows = vec![0.0; from.len()];
        self.device.download(Pool::Acts, from.0.at, &mut rows);
        self.device.sync()?;
        match rows.iter().all(|x| x.is_finite()) {
            true => Ok(rows),
            false => Err(Error::new(format!("the {what} not finite")).hint("are the weights valid?")),
        }
    }
}

/// What a dense pass gives, (images, ...) both.
pub struct Rows {
    /// The class token (C), or the average over a residual network's last map.
    pub images: Vec<f32>,
    /// The patch tokens (cells, C), or the last map.
    pub cells: Vec<f32>,
}

/// What [`Dense`] takes to draw the attention of a square image of a run's global crop.
pub(crate) fn drawing_pools(config: &Config) -> Option<Pools> {
    let group = Group { count: 1, height: config.global_size, width: config.global_size };
    FeaturePlan::new(config.table().backbone, Crops::one(group), Output::Dense, 1).ok().map(|plan| plan.pools)
}

/// A backbone ready for images of any size.
pub struct DenseExtractor<'a, D: Device> {
    options: &'a D::Options,
    /// Of the network that runs: as deep as the block that was asked for.
    pub config: Config,
    weights: Cow<'a, [f32]>,
    /// Shorter side, pixels.
    short: usize,
    /// For the size of the last image.
    network: Option<(Group, Dense<D>)>,
}

/// What the network saw, and its numbers for every patch, or cell of the last map.
pub struct DenseOutput {
    /// Full patches: `grid` times the patch's side. A last cell may reach beyond an image smaller than it.
    pub image: Image,
    /// Patches in a column and in a row.
    pub grid: [usize; 2],
    /// Attention: (heads, patches). Tokens: (patches, C). Activation: (1, cells).
    pub numbers: Vec<f32>,
}

impl<'a, D: Device> DenseExtractor<'a, D> {
    /// `weights`: a backbone in the table's layout. `block`: the one that attends or gives the tokens, the first is 1; `None` is the
    /// last. `size`: the shorter side that images are resized to; 0 is the run's global crop.
    ///
    /// # Errors
    /// There is no such block.
    pub fn new(
        options: &'a D::Options,
        config: &Config,
        weights: &'a [f32],
        block: Option<usize>,
        size: usize,
    ) -> Result<DenseExtractor<'a, D>> {
        let short = if size == 0 { config.global_size } else { size };
        let (config, weights) = match block {
            Some(block) if block != config.depth => {
                let (config, weights) = truncate(config, weights, block)?;
                (config, Cow::Owned(weights))
            }
            _ => (config.clone(), Cow::Borrowed(weights)),
        };
        Ok(DenseExtractor { options, config, weights, short, network: None })
    }

    /// What the block's class token attends to, for every head a number a patch. A head's numbers sum to 1 less what the class token
    /// keeps for itself.
    ///
    /// # Errors
    /// The input has no or too many patches, the network gives no attention, the device fails, or a value is not finite.
    pub fn attention(&mut self, image: &Image) -> Result<DenseOutput> {
        let image = self.input(image)?;
        self.infer(image, |network, pixels| network.attention(pixels))
    }

    /// The patches' tokens after the final layer norm.
    ///
    /// # Errors
    /// The input has no or too many patches, the device fails, or a value is not finite.
    pub fn tokens(&mut self, image: &Image) -> Result<DenseOutput> {
        let (image, width) = (self.input(image)?, self.config.embed_dim);
        // The class token comes first.
        self.infer(image, |network, pixels| Ok(network.tokens(pixels)?.split_off(width)))
    }

    /// The class activation of a residual network: how strongly every cell of the last map is active along the direction in which the
    /// map is longest, its first right singular vector (Eigen-CAM, Muhammad and Yeasin 2020, arXiv 2008.00299, equation 3). It needs no
    /// classifier. The map follows a ReLU, so no number is negative.
    ///
    /// # Errors
    /// The network has no map, the image has no pixels or too many, the device fails, or a value is not finite.
    pub fn activation(&mut self, image: &Image) -> Result<DenseOutput> {
        let backbone = self.config.table().backbone;
        require_map(&backbone)?;
        let image = self.input(image)?;
        self.infer(image, |network, pixels| {
            let map = network.rows(pixels)?.cells;
            let map = ArrayView2::from_shape((map.len() / backbone.dim(), backbone.dim()), &map).expect("rows of C");
            Ok(leading::projection(map).iter().map(|x| x.max(0.0)).collect())
        })
    }

    /// Pixels of a side of the square of the input that one of the numbers is of.
    pub fn cell(&self) -> usize {
        self.config.table().backbone.cell().min(CELL)
    }

    /// [`DenseExtractor::attention`] of an image scaled and cut around the center to exactly `size` = (height, width), full patches.
    ///
    /// # Errors
    /// As [`DenseExtractor::covering`] and [`DenseExtractor::attention`].
    pub fn attention_at(&mut self, image: &Image, size: [usize; 2]) -> Result<DenseOutput> {
        let image = self.covering(image, size)?;
        self.infer(image, |network, pixels| network.attention(pixels))
    }

    /// The input of [`DenseExtractor::attention_at`]. Where the size is the image's own, it is the input of [`DenseExtractor::attention`].
    ///
    /// # Errors
    /// The image has no pixels, or is too long and narrow for `size`.
    pub fn covering(&self, image: &Image, size: [usize; 2]) -> Result<Image> {
        match self.size(image) {
            Ok(own) if own == size => self.input(image),
            _ => cover(image, size),
        }
    }

    /// The input that is made of an image.
    ///
    /// # Errors
    /// The image has no pixels, or its input no or too many patches.
    pub fn input(&self, image: &Image) -> Result<Image> {
        fit(image, self.short, self.patch())
    }

    /// Height and width of the input that is made of an image.
    ///
    /// # Errors
    /// As [`DenseExtractor::input`].
    pub fn size(&self, image: &Image) -> Result<[usize; 2]> {
        fitted(image, self.short, self.patch()).map(|(_, cropped)| cropped)
    }

    /// What the sides of the input are multiples of.
    fn patch(&self) -> usize {
        patch(&self.config, self.short)
    }

    fn infer(
        &mut self,
        image: Image,
        numbers: impl FnOnce(&mut Dense<D>, &[f32]) -> Result<Vec<f32>>,
    ) -> Result<DenseOutput> {
        let (config, augment) = (&self.config, self.config.augment());
        let (height, width) = (image.height, image.width);
        let mut pixels = vec![0.0; config.channels * height * width];
        normalize(&mut pixels, &planes::planes(&image), &augment.mean, &augment.std);
        let group = Group { count: 1, height, width };
        let (_, network) = match &mut self.network {
            Some(ready) if (ready.0.height, ready.0.width) == (height, width) => ready,
            other => {
                // First away with the old one: two need not fit.
                *other = None;
                other.insert((group, Dense::new(self.options, config, &self.weights, group)?))
            }
        };
        let numbers = numbers(network, &pixels)?;
        Ok(DenseOutput { grid: network.grid(), image, numbers })
    }
}

/// What the sides of a network's input are multiples of: the side of a patch. A residual network takes any size, and only where it is large
/// enough full cells of its last map are cut out.
pub(crate) fn patch(config: &Config, short: usize) -> usize {
    let backbone = config.table().backbone;
    if backbone.gives().tokens { backbone.cell() } else { backbone.cell().min(short).max(1) }
}

/// The size of an image with its shorter side at `short`, and of its full patches, (height, width) both.
fn fitted(image: &Image, short: usize, patch: usize) -> Result<([usize; 2], [usize; 2])> {
    if short < patch {
        return Err(Error::new(format!("--size {short} holds no patch of {patch} pixels"))
            .hint(format!("--size {patch} or more; 0 takes the run's global crop")));
    }
    let (h, w) = (image.height, image.width);
    if h == 0 || w == 0 {
        return Err(Error::new(format!("an image of {w} x {h} pixels has nothing to see")).hint("remove it"));
    }
    // In 128 bits, so that no --size overflows; to the nearest, and the longer side is never the shorter one.
    let long = (short as u128 * h.max(w) as u128 + h.min(w) as u128 / 2) / h.min(w) as u128;
    let patches = (long / patch as u128) * (short / patch) as u128;
    if patches > PATCHES as u128 {
        return Err(Error::new(format!("--size {short} makes this image of {w} x {h} pixels {patches} patches"))
            .hint(format!("up to {PATCHES} are drawn: a smaller --size, or cut the image")));
    }
    let long = long as usize;
    let full = if h <= w { [short, long] } else { [long, short] };
    Ok((full, full.map(|n| n / patch * patch)))
}

/// The image with its shorter side at `short`, bicubic, cut around the center to full patches.
///
/// # Errors
/// The image has no pixels, or its input no or too many patches.
pub fn fit(image: &Image, short: usize, patch: usize) -> Result<Image> {
    let (full, cropped) = fitted(image, short, patch)?;
    Ok(cut(image, full, cropped))
}

/// The image as large as covers `cropped` = (height, width), what is too much of it cut off on both sides.
fn cover(image: &Image, cropped: [usize; 2]) -> Result<Image> {
    let sides = [image.height, image.width];
    if sides.contains(&0) {
        return Err(Error::new(format!("an image of {} x {} pixels has nothing to see", sides[1], sides[0])));
    }
    // The side that decides is the one that needs more enlarging.
    let by = if cropped[0] * sides[1] >= cropped[1] * sides[0] { 0 } else { 1 };
    let full = [0, 1].map(|i| ((sides[i] * cropped[by] + sides[by] / 2) / sides[by]).max(cropped[i]));
    if full.iter().any(|n| *n > PATCHES) {
        return Err(Error::new(format!("an image of {} x {} pixels is too long and narrow", sides[1], sides[0]))
            .hint(format!("it cannot become {} x {}: leave it out", cropped[1], cropped[0])));
    }
    Ok(cut(image, full, cropped))
}

/// The middle, `cropped` = (height, width), of the image at the size `full`.
fn cut(image: &Image, full: [usize; 2], cropped: [usize; 2]) -> Image {
    let [height, width] = cropped;
    let window = Region { top: (full[0] - height) / 2, left: (full[1] - width) / 2, height, width };
    let mut pixels = Vec::new();
    let source = Region::full(image.height, image.width);
    Resizer::default().run(&mut pixels, image, source, full.into(), window, Filter::Bicubic);
    Image { width, height, channels: image.channels, pixels: planes::interleaved(&pixels, image.channels) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Pixels that differ.
    pub fn plain(width: usize, height: usize) -> Image {
        let pixels = (0..3 * width * height).map(|i| (i * 7 % 251) as u8).collect();
        Image { width, height, channels: 3, pixels }
    }

    #[test]
    fn both_sides_are_multiples_of_the_patch_around_the_center() {
        let size = |w, h, short| fit(&plain(w, h), short, 8).map(|i| (i.width, i.height));
        assert_eq!(size(100, 50, 20).unwrap(), (40, 16));
        assert_eq!(size(50, 100, 20).unwrap(), (16, 40));
        assert_eq!(size(31, 31, 32).unwrap(), (32, 32));
        assert_eq!(size(1, 3, 8).unwrap(), (8, 24));
        assert!(size(50, 50, 7).unwrap_err().to_string().contains("--size 8"));
        assert!(size(50, 50, usize::MAX).unwrap_err().to_string().contains("smaller --size"));
        assert!(size(1, 30_000, 480).unwrap_err().to_string().contains("cut the image"));
        // An image that fits is taken as it is.
        assert_eq!(fit(&plain(24, 16), 16, 8).unwrap(), plain(24, 16));
    }

    #[test]
    fn a_frame_of_another_size_covers_the_first_ones() {
        let gray = |w: usize, h: usize| Image { width: w, height: h, channels: 1, pixels: vec![9; w * h] };
        for (w, h) in [(24, 16), (100, 16), (16, 100), (1, 1), (7, 300)] {
            assert_eq!(cover(&gray(w, h), [16, 24]).unwrap(), gray(24, 16), "{w} x {h}");
        }
        // Twice as large: halved, nothing cut. Wider: the middle.
        assert_eq!(cover(&plain(24, 16), [16, 24]).unwrap(), plain(24, 16));
        let wide = Image { width: 6, height: 1, channels: 1, pixels: vec![1, 2, 3, 4, 5, 6] };
        assert_eq!(cover(&wide, [1, 2]).unwrap().pixels, [3, 4]);
        assert!(cover(&gray(1, 30_000), [64, 64]).unwrap_err().to_string().contains("too long"));
    }
}
