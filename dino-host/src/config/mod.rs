//! Every key of the recipe, declared once for the flag, the configuration file, `run.json` and the help.
//!
//! Values come from, in this order: the published recipe, a preset (`--small`, `--preset`), `--config FILE.toml`, the flags.

mod file;
mod keys;
mod knn_images;
mod notes;
mod plan;
mod presets;
mod read;
mod resolve;
mod schedule;
mod switch;

pub use file::parse as parse_toml;
pub use keys::{Config, Flags};
pub use knn_images::KnnImages;
pub use presets::{PRESETS, Preset};
pub use schedule::Schedules;
pub use switch::Switch;

use crate::image::Decode;
use crate::image::augment::{Augment, EvalView};

impl Config {
    /// The augmentation's own view of the keys.
    pub fn augment(&self) -> Augment {
        let pair = |v: &[f64]| [v[0], v[1]];
        Augment {
            channels: self.channels,
            global_size: self.global_size,
            local_size: self.local_size,
            global_crops_scale: pair(&self.global_crops_scale),
            local_crops_scale: pair(&self.local_crops_scale),
            local_crops_number: self.local_crops_number,
            ratio: pair(&self.crop_ratio),
            flip: self.flip,
            jitter_prob: self.jitter,
            brightness: self.brightness,
            contrast: self.contrast,
            saturation: self.saturation,
            hue: self.hue,
            gray_prob: self.gray,
            blur_probs: [self.blur[0], self.blur[1], self.blur[2]],
            blur_radius: pair(&self.blur_radius),
            solarize_prob: self.solarize,
            solarize_threshold: self.solarize_threshold,
            mean: self.mean.clone(),
            std: self.std.clone(),
        }
    }

    /// The seed of what a step sees: the order of images, crops, and the blocks that stochastic depth leaves out. Weights, and what is
    /// evaluated, have the seed itself.
    pub fn data_seed(&self) -> u64 {
        // An odd factor of all bits keeps neighboring seeds from sharing an order.
        self.seed.wrapping_add(self.reseed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// How images become evaluation views; none: the set decides it.
    pub fn eval_view(&self) -> Option<EvalView> {
        [EvalView::ResizeCrop, EvalView::Whole].into_iter().find(|view| view.name() == self.eval_view)
    }

    /// How files become images. The evaluation's shorter side, 8/7 of the global crop's, is the least that fast decoding leaves.
    pub fn decode(&self) -> Decode {
        let fast = self.fast_decode.then(|| self.global_size.saturating_mul(8).div_ceil(7));
        Decode { channels: self.channels, orient: !self.ignore_exif, fast, white: self.white.value() }
    }

    /// Whether settings are chosen on a tenth of the training images, and the test images are left alone.
    pub fn chooses_on_training_images(&self) -> bool {
        self.choose_on != "test"
    }

    /// The same configuration for images that are used in another size than the evaluation's: what fast decoding leaves of them
    /// is too small, and is not what boxes, masks and frames of their own size belong to.
    pub fn decoding_whole(self) -> Config {
        Config { fast_decode: false, ..self }
    }
}

#[cfg(test)]
mod tests;
