//! The multi-crop augmentation of the published recipe, on 8-bit pixels as Pillow and torchvision do it, and the view
//! for evaluation.
//!
//! crop, resize (bicubic) → flip → colour jitter → grey → blur → solarise (second global crop only) → normalise
//!
//! All randomness comes from the caller's generator, so that a crop depends on nothing but the image, the view and that
//! generator's key: any thread may make it, in any order, again after a resume.

pub mod blur;
pub mod color;
pub mod region;

use dino_kernel::rng::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::planes::{self, mirror, normalize};
use crate::image::resize::{Filter, Region, Resizer};

/// Every parameter of the recipe; [`Default`] is the published one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Augment {
    /// Values a pixel: 3 are R G B, 1 is grey; other numbers have no colour operations, see [`Augment::left_out`].
    pub channels: usize,
    /// Side of a global crop, pixels.
    pub global_size: usize,
    /// Side of a local crop, pixels.
    pub local_size: usize,
    /// Least and greatest part of the image's area that a global crop takes.
    pub global_crops_scale: [f64; 2],
    /// The same for a local crop.
    pub local_crops_scale: [f64; 2],
    /// Local crops an image; there are always two global ones.
    pub local_crops_number: usize,
    /// Least and greatest width / height of the part taken (log-uniform between).
    pub ratio: [f64; 2],
    /// Probability of a mirror image.
    pub flip: f64,
    /// Probability that colours are changed at all.
    pub jitter_prob: f64,
    /// Brightness factor within 1 ± this.
    pub brightness: f64,
    /// Contrast factor within 1 ± this.
    pub contrast: f64,
    /// Saturation factor within 1 ± this.
    pub saturation: f64,
    /// Hue shift within ± this part of a full turn; at most 0.5.
    pub hue: f64,
    /// Probability of a grey image.
    pub gray_prob: f64,
    /// Probability of a blur: first global, second global, local crops.
    pub blur_probs: [f64; 3],
    /// Least and greatest standard deviation of the blur, pixels.
    pub blur_radius: [f64; 2],
    /// Probability that the second global crop is solarised.
    pub solarize_prob: f64,
    /// Values from here on are inverted by it.
    pub solarize_threshold: u8,
    /// Subtracted from values in 0 ..= 1, per channel.
    pub mean: Vec<f64>,
    /// Then divided by, per channel.
    pub std: Vec<f64>,
}

impl Default for Augment {
    fn default() -> Augment {
        Augment {
            channels: 3,
            global_size: 224,
            local_size: 96,
            global_crops_scale: [0.4, 1.0],
            local_crops_scale: [0.05, 0.4],
            local_crops_number: 8,
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            flip: 0.5,
            jitter_prob: 0.8,
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.2,
            hue: 0.1,
            gray_prob: 0.2,
            blur_probs: [1.0, 0.1, 0.5],
            blur_radius: [0.1, 2.0],
            solarize_prob: 0.2,
            solarize_threshold: 128,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
        }
    }
}

/// The three kinds of crops, which differ in size, scale, blur and solarisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// View 0.
    Global1,
    /// View 1.
    Global2,
    /// Views from 2 on.
    Local,
}

impl View {
    /// The kind of the crop number `view`.
    pub fn of(view: usize) -> View {
        match view {
            0 => View::Global1,
            1 => View::Global2,
            _ => View::Local,
        }
    }
}

/// Buffers that can be used again; nothing is carried from one crop to the next.
#[derive(Default)]
pub struct Scratch {
    resizer: Resizer,
    pixels: Vec<u8>,
    blur: blur::Scratch,
}

impl Augment {
    /// Side and kind of every crop of an image: two global ones, then the local ones.
    pub fn crops_of(&self) -> Vec<(usize, View)> {
        (0..2 + self.local_crops_number).map(|v| (self.size(View::of(v)), View::of(v))).collect()
    }

    fn size(&self, view: View) -> usize {
        if view == View::Local { self.local_size } else { self.global_size }
    }

    /// Refuses values outside their meaning; the error names the key.
    pub fn check(&self) -> Result<()> {
        let fail = |key: &str, value: &dyn std::fmt::Debug, hint: &str| {
            Err(Error::new(format!("--{key} {value:?} makes no sense")).hint(hint.to_string()))
        };
        for (key, size) in [("global-size", self.global_size), ("local-size", self.local_size)] {
            if size == 0 {
                return fail(key, &size, "a side in pixels, at least 1");
            }
        }
        let ranges = [
            ("global-crops-scale", self.global_crops_scale, 1.0, "parts of the area, 0 < least <= greatest <= 1"),
            ("local-crops-scale", self.local_crops_scale, 1.0, "parts of the area, 0 < least <= greatest <= 1"),
            ("crop-ratio", self.ratio, f64::MAX, "width / height, 0 < least <= greatest"),
            ("blur-radius", self.blur_radius, 100.0, "pixels, 0 <= least <= greatest <= 100"),
        ];
        for (key, [low, high], most, hint) in ranges {
            let above_zero = low > 0.0 || (low == 0.0 && key == "blur-radius");
            if !(above_zero && low <= high && high <= most) {
                return fail(key, &[low, high], hint);
            }
        }
        let probabilities = [
            ("flip", self.flip),
            ("jitter", self.jitter_prob),
            ("gray", self.gray_prob),
            ("blur", self.blur_probs[0]),
            ("blur", self.blur_probs[1]),
            ("blur", self.blur_probs[2]),
            ("solarize", self.solarize_prob),
        ];
        for (key, p) in probabilities {
            if !(0.0..=1.0).contains(&p) {
                return fail(key, &p, "a probability, 0 to 1");
            }
        }
        for (key, x) in [("brightness", self.brightness), ("contrast", self.contrast), ("saturation", self.saturation)]
        {
            if !(0.0..=100.0).contains(&x) {
                return fail(key, &x, "the factor lies within 1 ± this; 0 turns it off");
            }
        }
        if !(0.0..=0.5).contains(&self.hue) {
            return fail("hue", &self.hue, "part of a full turn, 0 to 0.5");
        }
        if self.channels == 0 {
            return fail("channels", &self.channels, "3 for colours, 1 for grey, or the number of bands, at least 1");
        }
        for (key, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != self.channels {
                return fail(key, values, &format!("one number a channel: {}", self.channels));
            }
        }
        if !self.mean.iter().all(|m| m.is_finite()) {
            return fail("mean", &self.mean, "one number a channel, for values in 0 to 1");
        }
        if !self.std.iter().all(|s| s.is_finite() && *s > 0.0) {
            return fail("std", &self.std, "one positive number a channel, for values in 0 to 1");
        }
        Ok(())
    }

    /// Writes the crop number `view` of the image to `out`, normalised, `(channels, size, size)`.
    ///
    /// `out` is `channels * size * size` long, size as [`Augment::crops_of`] says; the image has these channels and is not
    /// empty. The random numbers are the same for any number of channels.
    pub fn crop(&self, image: &Image, view: usize, rng: &mut Rng, out: &mut [f32]) {
        self.crop_with(&mut Scratch::default(), image, view, rng, out);
    }

    /// [`Augment::crop`] with buffers from outside, for loops over many crops.
    pub fn crop_with(&self, scratch: &mut Scratch, image: &Image, view: usize, rng: &mut Rng, out: &mut [f32]) {
        let view = View::of(view);
        let size = self.size(view);
        assert_eq!(image.channels, self.channels, "channels of the image and of the recipe");
        assert_eq!(out.len(), self.channels * size * size, "a crop of side {size} has channels * side * side values");
        let (scale, blur_prob) = match view {
            View::Global1 => (self.global_crops_scale, self.blur_probs[0]),
            View::Global2 => (self.global_crops_scale, self.blur_probs[1]),
            View::Local => (self.local_crops_scale, self.blur_probs[2]),
        };
        let Scratch { resizer, pixels, blur } = scratch;

        let source = random_region(image.height, image.width, scale, self.ratio, rng);
        resizer.run(pixels, image, source, (size, size), Region::whole(size, size), Filter::Bicubic);
        if rng.chance(self.flip) {
            mirror(pixels, size);
        }
        if rng.chance(self.jitter_prob) {
            self.jitter(pixels, rng);
        }
        if rng.chance(self.gray_prob) {
            color::grayscale(pixels, self.channels);
        }
        if rng.chance(blur_prob) {
            let sigma = rng.range(self.blur_radius[0], self.blur_radius[1]);
            blur::gaussian_blur(pixels, size, size, sigma, blur);
        }
        if view == View::Global2 && rng.chance(self.solarize_prob) {
            color::solarize(pixels, self.solarize_threshold);
        }
        normalize(out, pixels, &self.mean, &self.std);
    }

    /// The operations of this recipe that cannot change an image of these channels, by their flags, to be said aloud.
    pub fn left_out(&self) -> Vec<&'static str> {
        let strengths = [self.brightness, self.contrast, self.saturation, self.hue];
        let flags = ["--brightness", "--contrast", "--saturation", "--hue"];
        let jitter =
            color::Op::ALL.into_iter().zip(strengths).zip(flags).filter(|((op, strength), _)| {
                self.jitter_prob > 0.0 && *strength > 0.0 && !op.applies_to(self.channels)
            });
        let gray = (self.gray_prob > 0.0 && self.channels != 3).then_some("--gray");
        jitter.map(|(_, flag)| flag).chain(gray).collect()
    }

    /// The four colour operations in random order. One of strength zero is left out, as torchvision does.
    fn jitter(&self, pixels: &mut [u8], rng: &mut Rng) {
        let mut ops = color::Op::ALL;
        for last in (1..ops.len()).rev() {
            ops.swap(last, rng.below(last as u32 + 1) as usize);
        }
        for op in ops {
            let (strength, middle) = match op {
                color::Op::Brightness => (self.brightness, 1.0),
                color::Op::Contrast => (self.contrast, 1.0),
                color::Op::Saturation => (self.saturation, 1.0),
                color::Op::Hue => (self.hue, 0.0),
            };
            if strength > 0.0 {
                // A factor is never below zero, whatever its strength.
                let low = if op == color::Op::Hue { -strength } else { (middle - strength).max(0.0) };
                op.apply(pixels, self.channels, rng.range(low, middle + strength));
            }
        }
    }
}

/// torchvision's RandomResizedCrop: area and aspect ratio drawn up to ten times; where none fits, the largest central
/// part whose ratio is allowed.
fn random_region(height: usize, width: usize, scale: [f64; 2], ratio: [f64; 2], rng: &mut Rng) -> Region {
    // libm, not std: the same bits on every platform.
    let log_ratio = ratio.map(libm::log);
    for _ in 0..10 {
        let part = rng.range(scale[0], scale[1]);
        let aspect = libm::exp(rng.range(log_ratio[0], log_ratio[1]));
        if let Some((h, w)) = region::sides(height, width, part, aspect) {
            let top = rng.below((height - h + 1) as u32) as usize;
            let left = rng.below((width - w + 1) as u32) as usize;
            return Region { top, left, height: h, width: w };
        }
    }
    region::central(height, width, ratio)
}

/// The training view of the linear probe (official `eval_linear.py`): torchvision's `RandomResizedCrop(size)` with its defaults (8 to
/// 100 % of the area, ratio 3/4 to 4/3, bilinear) and a mirror image every other time.
pub fn random_resized_crop(image: &Image, size: usize, rng: &mut Rng) -> Image {
    let source = random_region(image.height, image.width, [0.08, 1.0], [3.0 / 4.0, 4.0 / 3.0], rng);
    let mut pixels = Vec::new();
    Resizer::default().run(&mut pixels, image, source, (size, size), Region::whole(size, size), Filter::Bilinear);
    if rng.chance(0.5) {
        mirror(&mut pixels, size);
    }
    let pixels = planes::interleaved(&pixels, image.channels);
    Image { width: size, height: size, channels: image.channels, pixels }
}

/// How a picture becomes the square that is evaluated. It belongs to the configuration: all pictures of a set go the same way, whatever
/// their sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvalView {
    /// Shorter side to 8/7 of the square's (published: 256 for 224), bicubic, and the central square of that.
    ResizeCrop,
    /// Shorter side to the square's, bicubic, so that of a square picture nothing is cut; one that has the size is taken as it is.
    Whole,
}

impl EvalView {
    /// The word of the key `eval-view`.
    pub fn name(self) -> &'static str {
        match self {
            EvalView::ResizeCrop => "resize-crop",
            EvalView::Whole => "whole",
        }
    }

    /// Pixels of a picture's shorter side, of which the square of side `size` is cut.
    pub fn short(self, size: usize) -> usize {
        match self {
            EvalView::ResizeCrop => (size * 8 + 3) / 7, // to the nearest
            EvalView::Whole => size,
        }
    }
}

/// The square of side `size` that is evaluated of an image, normalised to `out` `(channels, size, size)`.
///
/// `out` is `channels * size * size` long, `mean` and `std` have a number a channel of the image, `size` is at least 1 and the image is not empty.
pub fn eval_view(image: &Image, size: usize, view: EvalView, mean: &[f64], std: &[f64], out: &mut [f32]) {
    assert_eq!(mean.len(), image.channels, "a mean a channel");
    assert_eq!(out.len(), mean.len() * size * size, "a view of side {size} has channels * side * side values");
    if view == EvalView::Whole && (image.height, image.width) == (size, size) {
        return normalize(out, &planes::planes(image), mean, std);
    }
    normalize(out, &centre(image, view.short(size), size), mean, std);
}

/// torchvision's `Resize(short)` and `CenterCrop(size)`: the shorter side becomes `short`, the longer one is cut to a
/// whole number, and the central square of side `size <= short` is kept (only its pixels are computed).
pub fn resize_and_center(image: &Image, short: usize, size: usize) -> Image {
    let pixels = planes::interleaved(&centre(image, short, size), image.channels);
    Image { width: size, height: size, channels: image.channels, pixels }
}

/// The planes of [`resize_and_center`].
fn centre(image: &Image, short: usize, size: usize) -> Vec<u8> {
    let (h, w) = (image.height, image.width);
    let (height, width) = if h <= w { (short, short * w / h) } else { (short * h / w, short) };
    // Python's round: a half goes to the even number.
    let offset = |n: usize| ((n - size) as f64 / 2.0).round_ties_even() as usize;
    let window = Region { top: offset(height), left: offset(width), height: size, width: size };
    let mut pixels = Vec::new();
    Resizer::default().run(&mut pixels, image, Region::whole(h, w), (height, width), window, Filter::Bicubic);
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;
    use dino_kernel::rng::Kind;

    fn rng(image: u32, crop: u32) -> Rng {
        Rng::new(5, 0, image, crop, Kind::Augment, 0)
    }

    /// Every pixel different from its neighbours, no symmetry.
    fn picture(height: usize, width: usize) -> Image {
        let mut r = Rng::new(1, 0, 0, 0, Kind::Test, 0);
        let pixels = (0..height * width * 3).map(|i| (i as u32 / 3 % 97 * 2 + r.below(60)) as u8).collect();
        Image { width, height, channels: 3, pixels }
    }

    /// Small crops, no normalisation, and nothing random but the cut-out.
    fn plain() -> Augment {
        Augment {
            global_size: 32,
            local_size: 16,
            local_crops_number: 2,
            flip: 0.0,
            jitter_prob: 0.0,
            gray_prob: 0.0,
            blur_probs: [0.0; 3],
            solarize_prob: 0.0,
            mean: vec![0.0; 3],
            std: vec![1.0; 3],
            ..Augment::default()
        }
    }

    fn crop(recipe: &Augment, image: &Image, view: usize, n: u32) -> Vec<f32> {
        let (size, _) = recipe.crops_of()[view];
        let mut out = vec![f32::NAN; 3 * size * size];
        recipe.crop(image, view, &mut rng(n, view as u32), &mut out);
        assert!(out.iter().all(|x| x.is_finite()));
        out
    }

    /// Part of `draws` for which `of` holds, and the bound of five standard deviations around `p`.
    fn expect_frequency(p: f64, draws: u32, of: impl Fn(u32) -> bool) {
        let seen = (0..draws).filter(|&n| of(n)).count() as f64 / draws as f64;
        let bound = 5.0 * (p * (1.0 - p) / draws as f64).sqrt();
        assert!((seen - p).abs() <= bound, "seen {seen}, expected {p} ± {bound}");
    }

    #[test]
    fn crops_are_two_global_and_the_local_ones() {
        let crops = Augment::default().crops_of();
        assert_eq!(crops.len(), 10);
        assert_eq!(crops[..3], [(224, View::Global1), (224, View::Global2), (96, View::Local)]);
        assert_eq!(Augment { local_crops_number: 0, ..Augment::default() }.crops_of().len(), 2);
    }

    #[test]
    fn a_crop_depends_on_its_key_alone() {
        let (recipe, image) = (Augment { global_size: 32, local_size: 16, ..Augment::default() }, picture(50, 70));
        let mut scratch = Scratch::default();
        let mut out = vec![0.0; 3 * 32 * 32];
        for n in 0..20 {
            for view in [1, 0, 2] {
                let out = &mut out[..3 * recipe.crops_of()[view].0.pow(2)];
                recipe.crop_with(&mut scratch, &image, view, &mut rng(n, view as u32), out);
                assert!(*out == crop(&recipe, &image, view, n), "used buffers changed crop {n}, view {view}");
            }
        }
        assert!(crop(&recipe, &image, 0, 0) != crop(&recipe, &image, 0, 1));
        assert!(crop(&recipe, &image, 2, 0) != crop(&recipe, &image, 3, 0));
    }

    #[test]
    fn areas_and_ratios_are_those_of_the_recipe() {
        let recipe = Augment::default();
        let draws = 4000;
        for scale in [recipe.global_crops_scale, recipe.local_crops_scale] {
            let (mut area, mut log_ratio, mut top, mut fitting) = (0.0, 0.0, 0.0, 0.0);
            for n in 0..draws {
                let r = random_region(1000, 1000, scale, recipe.ratio, &mut rng(n, 0));
                let (h, w) = (r.height as f64, r.width as f64);
                assert!(r.top + r.height <= 1000 && r.left + r.width <= 1000);
                // Sides are rounded to whole pixels.
                assert!((scale[0] * 0.99..=scale[1] * 1.01).contains(&(h * w / 1e6)));
                assert!((recipe.ratio[0] * 0.99..=recipe.ratio[1] * 1.01).contains(&(w / h)));
                area += h * w / 1e6 / draws as f64;
                log_ratio += (w / h).ln() / draws as f64;
                if r.height < 1000 {
                    top += r.top as f64 / (1000 - r.height) as f64;
                    fitting += 1.0;
                }
            }
            // In a square an area a fits only when the ratio is within a ..= 1/a; others are drawn again, and the mean
            // is that of the areas weighted with their chance to fit.
            let fit = |a: f64| (-a.ln() / recipe.ratio[1].ln()).min(1.0);
            let areas = (0..10_000).map(|i| scale[0] + (scale[1] - scale[0]) * (i as f64 + 0.5) / 1e4);
            let expected = areas.clone().map(|a| a * fit(a)).sum::<f64>() / areas.map(fit).sum::<f64>();
            assert!((area - expected).abs() < 0.01, "mean area {area}, expected {expected}");
            assert!(log_ratio.abs() < 0.02, "mean log ratio {log_ratio}");
            assert!((top / fitting - 0.5).abs() < 0.03, "mean place {}", top / fitting);
        }
    }

    #[test]
    fn where_nothing_fits_the_largest_central_part_is_taken() {
        let region = |h, w| random_region(h, w, [0.9, 1.0], [3.0 / 4.0, 4.0 / 3.0], &mut rng(0, 0));
        assert_eq!(region(30, 300), Region { top: 0, left: 130, height: 30, width: 40 });
        assert_eq!(region(300, 30), Region { top: 130, left: 0, height: 40, width: 30 });
        assert_eq!(region(1, 1), Region::whole(1, 1));
        assert_eq!((region(1, 500).height, region(500, 1).width), (1, 1));
    }

    #[test]
    fn frequencies_are_those_of_the_recipe() {
        let published = Augment::default();
        // The whole image, so that only the step in question can change it.
        let whole = Augment {
            global_size: 8,
            local_size: 8,
            global_crops_scale: [1.0; 2],
            local_crops_scale: [1.0; 2],
            ratio: [1.0; 2],
            ..plain()
        };
        let image = picture(8, 8);
        let changed = |recipe: &Augment, view| {
            let same = crop(&whole, &image, view, 0);
            let recipe = recipe.clone();
            move |n| crop(&recipe, &picture(8, 8), view, n) != same
        };
        let n = 2000;
        let flip = Augment { flip: published.flip, ..whole.clone() };
        let jitter = Augment { jitter_prob: published.jitter_prob, ..whole.clone() };
        let gray = Augment { gray_prob: published.gray_prob, ..whole.clone() };
        let solarize = Augment { solarize_prob: published.solarize_prob, ..whole.clone() };
        // A blur of the least radius leaves some images as they are.
        let blur = Augment { blur_probs: published.blur_probs, blur_radius: [1.0, 2.0], ..whole.clone() };
        for (view, blurred) in [(0, 1.0), (1, 0.1), (2, 0.5)] {
            expect_frequency(0.5, n, changed(&flip, view));
            expect_frequency(0.8, n, changed(&jitter, view));
            expect_frequency(0.2, n, changed(&gray, view));
            expect_frequency(blurred, n, changed(&blur, view));
            expect_frequency(if view == 1 { 0.2 } else { 0.0 }, n, changed(&solarize, view));
        }
        // All steps at once: grey is seen in equal channels.
        let all = Augment { mean: vec![0.0; 3], std: vec![1.0; 3], global_size: 8, local_size: 8, ..published };
        expect_frequency(0.2, n, |n| {
            let out = crop(&all, &image, 0, n);
            out[..64] == out[64..128] && out[..64] == out[128..]
        });
    }

    #[test]
    fn every_order_of_the_colour_operations_comes_up() {
        // Brightness and contrast by fixed factors: which went first shows in the result.
        let recipe = Augment { brightness: 0.4, contrast: 0.4, saturation: 0.2, hue: 0.1, ..plain() };
        let image = picture(16, 16);
        let mut seen = std::collections::HashSet::new();
        for n in 0..300 {
            let mut pixels = image.pixels.clone();
            let mut r = rng(n, 0);
            recipe.jitter(&mut pixels, &mut r);
            // The same draws, by hand.
            let mut again = rng(n, 0);
            let mut ops = color::Op::ALL;
            for last in [3, 2, 1] {
                ops.swap(last, again.below(last as u32 + 1) as usize);
            }
            let mut by_hand = image.pixels.clone();
            for op in ops {
                let (low, high) = match op {
                    color::Op::Saturation => (0.8, 1.2),
                    color::Op::Hue => (-0.1, 0.1),
                    _ => (0.6, 1.4),
                };
                op.apply(&mut by_hand, 3, again.range(low, high));
            }
            assert!(pixels == by_hand);
            seen.insert(ops.map(|op| op as u8));
        }
        assert_eq!(seen.len(), 24);
    }

    #[test]
    fn the_mean_and_deviation_are_applied_per_channel() {
        let mut out = [0.0; 6];
        normalize(&mut out, &[0, 255, 51, 102, 255, 0], &[0.5, 0.2, 0.0], &[0.5, 0.1, 2.0]);
        let want = [-1.0, 1.0, 0.0, 2.0, 0.5, 0.0];
        assert!(out.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{out:?}");
    }

    #[test]
    fn images_of_any_shape_are_cropped() {
        let recipe = Augment { global_size: 8, local_size: 4, ..Augment::default() };
        for (h, w) in [(1, 1), (1, 40), (40, 1), (2, 3), (300, 7)] {
            for view in 0..3 {
                (0..20).for_each(|n| drop(crop(&recipe, &picture(h, w), view, n)));
            }
        }
    }

    #[test]
    fn senseless_settings_are_named() {
        assert!(Augment::default().check().is_ok() && plain().check().is_ok());
        let d = Augment::default;
        for (bad, key) in [
            (Augment { local_size: 0, ..d() }, "--local-size"),
            (Augment { global_crops_scale: [0.0, 1.0], ..d() }, "--global-crops-scale"),
            (Augment { local_crops_scale: [0.5, 0.4], ..d() }, "--local-crops-scale"),
            (Augment { ratio: [f64::NAN, 1.0], ..d() }, "--crop-ratio"),
            (Augment { blur_radius: [1.0, f64::INFINITY], ..d() }, "--blur-radius"),
            (Augment { gray_prob: 1.5, ..d() }, "--gray"),
            (Augment { hue: 0.6, ..d() }, "--hue"),
            (Augment { contrast: -0.1, ..d() }, "--contrast"),
            (Augment { std: vec![0.2, 0.0, 0.2], ..d() }, "--std"),
            (Augment { mean: vec![0.5], ..d() }, "--mean"),
            (Augment { channels: 4, mean: vec![0.5; 4], ..d() }, "--std"),
            (Augment { channels: 0, mean: vec![], std: vec![], ..d() }, "--channels"),
        ] {
            let text = bad.check().expect_err(key).to_string();
            assert!(text.contains(key) && text.contains("hint:"), "{text}");
        }
    }

    #[test]
    fn settings_survive_a_file_and_missing_ones_are_the_published() {
        let recipe = Augment { hue: 0.05, local_crops_number: 6, ..Augment::default() };
        assert_eq!(toml::from_str::<Augment>(&toml::to_string(&recipe).unwrap()).unwrap(), recipe);
        assert_eq!(toml::from_str::<Augment>("hue = 0.05\nlocal_crops_number = 6").unwrap(), recipe);
    }
}
