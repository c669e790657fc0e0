//! The multi-crop augmentation of the published recipe, on 8-bit pixels as Pillow and torchvision do it, and the view
//! for evaluation.
//!
//! crop, resize (bicubic) → flip → color jitter → gray → blur → solarize (second global crop only) → normalize
//!
//! All randomness comes from the caller's generator, so that a crop depends on nothing but the image, the view and that
//! generator's key: any thread may make it, in any order, again after a resume.

pub mod blur;
pub mod color;
mod eval_view;
mod recipe;
pub mod region;

pub use eval_view::{EvalView, eval_view, resize_and_center};
pub use recipe::{Augment, View};

use dino_kernel::rng::Rng;

use crate::image::Image;
use crate::image::planes::{self, mirror, normalize};
use crate::image::resize::{Filter, Region, Resizer};

/// Buffers that can be used again; nothing is carried from one crop to the next.
#[derive(Default)]
pub struct Scratch {
    resizer: Resizer,
    pixels: Vec<u8>,
    blur: blur::Scratch,
}

impl Augment {
    /// Writes the crop number `view` of the image to `out`, normalized, `(channels, size, size)`.
    ///
    /// `out` is `channels * size * size` long, size as [`Augment::crops_of`] gives it; the image has these channels and is not
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

        let source = region::random_region(image.height, image.width, scale, self.ratio, rng);
        resizer.run(pixels, image, source, (size, size), Region::full(size, size), Filter::Bicubic);
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

    /// The four color operations in random order. One of strength zero is left out, as torchvision does.
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

/// The training view of the linear probe (official `eval_linear.py`): torchvision's `RandomResizedCrop(size)` with its defaults (8 to
/// 100 % of the area, ratio 3/4 to 4/3, bilinear) and a mirror image every other time.
pub fn random_resized_crop(image: &Image, size: usize, rng: &mut Rng) -> Image {
    let mut pixels = Vec::new();
    probe_planes(&mut Resizer::default(), &mut pixels, image, size, rng);
    let pixels = planes::interleaved(&pixels, image.channels);
    Image { width: size, height: size, channels: image.channels, pixels }
}

/// The planes of [`random_resized_crop`].
fn probe_planes(resizer: &mut Resizer, pixels: &mut Vec<u8>, image: &Image, size: usize, rng: &mut Rng) {
    let source = region::random_region(image.height, image.width, [0.08, 1.0], [3.0 / 4.0, 4.0 / 3.0], rng);
    resizer.run(pixels, image, source, (size, size), Region::full(size, size), Filter::Bilinear);
    if rng.chance(0.5) {
        mirror(pixels, size);
    }
}

/// [`random_resized_crop`], normalized: the training view of a supervised run.
#[derive(Clone, Debug)]
pub struct ProbeView {
    /// Pixels of a side.
    pub side: usize,
    /// Mean of every channel.
    pub mean: Vec<f64>,
    /// Standard deviation of every channel.
    pub std: Vec<f64>,
}

impl ProbeView {
    /// Numbers of a view: (channels, side, side).
    pub fn len(&self) -> usize {
        self.mean.len() * self.side * self.side
    }

    /// Whether it has no pixels.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes a view of the image to `out`, which is [`ProbeView::len`] long; the image has these channels and is not empty.
    pub fn crop_with(&self, scratch: &mut Scratch, image: &Image, rng: &mut Rng, out: &mut [f32]) {
        assert_eq!(image.channels, self.mean.len(), "channels of the image and of the recipe");
        probe_planes(&mut scratch.resizer, &mut scratch.pixels, image, self.side, rng);
        normalize(out, &scratch.pixels, &self.mean, &self.std);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dino_kernel::rng::Kind;

    fn rng(image: u32, crop: u32) -> Rng {
        Rng::new(5, 0, image, crop, Kind::Augment, 0)
    }

    /// Every pixel different from its neighbors, no symmetry.
    fn gradient(height: usize, width: usize) -> Image {
        let mut r = Rng::new(1, 0, 0, 0, Kind::Test, 0);
        let pixels = (0..height * width * 3).map(|i| (i as u32 / 3 % 97 * 2 + r.below(60)) as u8).collect();
        Image { width, height, channels: 3, pixels }
    }

    /// Small crops, no normalization, and nothing random but the cut-out.
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
        let (recipe, image) = (Augment { global_size: 32, local_size: 16, ..Augment::default() }, gradient(50, 70));
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
                let r = region::random_region(1000, 1000, scale, recipe.ratio, &mut rng(n, 0));
                let (h, w) = (r.height as f64, r.width as f64);
                assert!(r.top + r.height <= 1000 && r.left + r.width <= 1000);
                // Sides are rounded to full pixels.
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
            assert!((top / fitting - 0.5).abs() < 0.03, "mean position {}", top / fitting);
        }
    }

    #[test]
    fn where_nothing_fits_the_largest_central_part_is_taken() {
        let region = |h, w| region::random_region(h, w, [0.9, 1.0], [3.0 / 4.0, 4.0 / 3.0], &mut rng(0, 0));
        assert_eq!(region(30, 300), Region { top: 0, left: 130, height: 30, width: 40 });
        assert_eq!(region(300, 30), Region { top: 130, left: 0, height: 40, width: 30 });
        assert_eq!(region(1, 1), Region::full(1, 1));
        assert_eq!((region(1, 500).height, region(500, 1).width), (1, 1));
    }

    #[test]
    fn frequencies_are_those_of_the_recipe() {
        let published = Augment::default();
        // The entire image, so that only the step in question can change it.
        let plain = Augment {
            global_size: 8,
            local_size: 8,
            global_crops_scale: [1.0; 2],
            local_crops_scale: [1.0; 2],
            ratio: [1.0; 2],
            ..plain()
        };
        let image = gradient(8, 8);
        let changed = |recipe: &Augment, view| {
            let same = crop(&plain, &image, view, 0);
            let recipe = recipe.clone();
            move |n| crop(&recipe, &gradient(8, 8), view, n) != same
        };
        let n = 2000;
        let flip = Augment { flip: published.flip, ..plain.clone() };
        let jitter = Augment { jitter_prob: published.jitter_prob, ..plain.clone() };
        let gray = Augment { gray_prob: published.gray_prob, ..plain.clone() };
        let solarize = Augment { solarize_prob: published.solarize_prob, ..plain.clone() };
        // A blur of the least radius leaves some images as they are.
        let blur = Augment { blur_probs: published.blur_probs, blur_radius: [1.0, 2.0], ..plain.clone() };
        for (view, blurred) in [(0, 1.0), (1, 0.1), (2, 0.5)] {
            expect_frequency(0.5, n, changed(&flip, view));
            expect_frequency(0.8, n, changed(&jitter, view));
            expect_frequency(0.2, n, changed(&gray, view));
            expect_frequency(blurred, n, changed(&blur, view));
            expect_frequency(if view == 1 { 0.2 } else { 0.0 }, n, changed(&solarize, view));
        }
        // All steps at once: gray is seen in equal channels.
        let all = Augment { mean: vec![0.0; 3], std: vec![1.0; 3], global_size: 8, local_size: 8, ..published };
        expect_frequency(0.2, n, |n| {
            let out = crop(&all, &image, 0, n);
            out[..64] == out[64..128] && out[..64] == out[128..]
        });
    }

    #[test]
    fn every_order_of_the_color_operations_comes_up() {
        // Brightness and contrast by fixed factors: which went first shows in the result.
        let recipe = Augment { brightness: 0.4, contrast: 0.4, saturation: 0.2, hue: 0.1, ..plain() };
        let image = gradient(16, 16);
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
                (0..20).for_each(|n| drop(crop(&recipe, &gradient(h, w), view, n)));
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
