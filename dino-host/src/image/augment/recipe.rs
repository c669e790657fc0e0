//! Every parameter of the augmentation, and which values it may have.

use super::color;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Every parameter of the recipe; [`Default`] is the published one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Augment {
    /// Values a pixel: 3 are R G B, 1 is gray; other numbers have no color operations, see [`Augment::left_out`].
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
    /// Probability that colors are changed at all.
    pub jitter_prob: f64,
    /// Brightness factor within 1 ± this.
    pub brightness: f64,
    /// Contrast factor within 1 ± this.
    pub contrast: f64,
    /// Saturation factor within 1 ± this.
    pub saturation: f64,
    /// Hue shift within ± this part of a full rotation; at most 0.5.
    pub hue: f64,
    /// Probability of a gray image.
    pub gray_prob: f64,
    /// Probability of a blur: first global, second global, local crops.
    pub blur_probs: [f64; 3],
    /// Least and greatest standard deviation of the blur, pixels.
    pub blur_radius: [f64; 2],
    /// Probability that the second global crop is solarized.
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

/// The three kinds of crops, which differ in size, scale, blur and solarization.
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

impl Augment {
    /// Side and kind of every crop of an image: two global ones, then the local ones.
    pub fn crops_of(&self) -> Vec<(usize, View)> {
        (0..2 + self.local_crops_number).map(|v| (self.size(View::of(v)), View::of(v))).collect()
    }

    pub(super) fn size(&self, view: View) -> usize {
        if view == View::Local { self.local_size } else { self.global_size }
    }

    /// Refuses values outside their meaning; the error names the key.
    ///
    /// # Errors
    /// A value is outside its range; the error names the key.
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
                return fail(key, &x, "the factor is within 1 ± this; 0 turns it off");
            }
        }
        if !(0.0..=0.5).contains(&self.hue) {
            return fail("hue", &self.hue, "part of the full circle, 0 to 0.5");
        }
        if self.channels == 0 {
            return fail("channels", &self.channels, "3 for colors, 1 for gray, or the number of bands, at least 1");
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

    /// The operations of this recipe that cannot change an image of these channels, by their flags, to be printed.
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
}
