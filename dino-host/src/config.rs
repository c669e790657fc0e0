//! Every key of the recipe, declared once for the flag, the configuration file, `run.json` and the help.
//!
//! Values come from, in this order: the published recipe, a preset (`--small`), `--config FILE.toml`, the flags.

mod notes;

use crate::augment::{Augment, EvalView};
use crate::data::{Decode, White};
use crate::error::{Error, Result};
use crate::eval::scored::KnnImages;
use crate::text;
use clap::Args;
use dino_kernel::crops::{Crops, Group};
use dino_kernel::init::LINEAR_STD;
use dino_kernel::model::{Head, Table, Vit};
use dino_kernel::ops::layernorm;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::plan::{self, Plan, PlanError};
use dino_kernel::schedule::{Cosine, TeacherTemp};
use dino_kernel::step::Hyper;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Rows of the token matrix that a micro-batch chosen for the user makes at most, on a CPU: enough for the products to run at full
/// speed, few enough for the activations of the published model to stay below two gigabytes.
pub const MICRO_BATCH_TOKENS: usize = 8192;

/// Channels an image may have: hyperspectral cameras stay well below it.
const MOST_CHANNELS: usize = 1024;

/// Declares `Flags` (every key optional: flags and files) and `Config` (every key with its value).
macro_rules! keys {
    ($($(#[$meta:meta])* $key:ident: $ty:ty = $published:expr;)*) => {
        /// The keys as a user gives them: on the command line or in a TOML file, each at most once.
        #[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Flags {
            $($(#[$meta])* #[serde(default, skip_serializing_if = "Option::is_none")] pub $key: Option<$ty>,)*
        }

        /// The keys with their values: what a run is made of. A key that is not there (in a checkpoint older than the key) has what
        /// runs did before there was the key, see `Config::before_keys`.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default = "Config::before_keys", rename_all = "kebab-case")]
        pub struct Config {
            $(#[allow(missing_docs)] pub $key: $ty,)*
        }

        impl Config {
            /// The published values.
            pub fn published() -> Config {
                Config { $($key: $published,)* }
            }

            /// Replaces what `flags` names.
            pub fn set(&mut self, flags: &Flags) {
                $(if let Some(value) = &flags.$key { self.$key = value.clone(); })*
            }

            /// The keys that `flags` names with another value than this configuration has.
            pub fn contradictions(&self, flags: &Flags) -> Vec<String> {
                let mut found = Vec::new();
                $(if let Some(value) = &flags.$key && *value != self.$key {
                    let name = stringify!($key).replace('_', "-");
                    found.push(format!("--{name} {value:?} (the run has {:?})", self.$key));
                })*
                found
            }
        }

        impl Flags {
            /// These flags over those of a file.
            pub fn over(mut self, file: Flags) -> Flags {
                $(if self.$key.is_none() { self.$key = file.$key; })*
                self
            }
        }
    };
}

keys! {
    /// vit_tiny, vit_small or vit_base (deit_ is an alias); --embed-dim, --depth and --heads override its shape
    #[arg(long, help_heading = "Model")] arch: String = "vit_small".into();
    /// Side of a patch, pixels
    #[arg(long, help_heading = "Model")] patch_size: usize = 16;
    /// Width C; 0 = as --arch says
    #[arg(long, help_heading = "Model")] embed_dim: usize = 0;
    /// Blocks; 0 = as --arch says
    #[arg(long, help_heading = "Model")] depth: usize = 0;
    /// Attention heads; 0 = as --arch says
    #[arg(long, help_heading = "Model")] heads: usize = 0;
    /// MLP width over C
    #[arg(long, help_heading = "Model")] mlp_ratio: f64 = 4.0;
    /// How positions are resized for other grids: published (the +0.1 rule) or size
    #[arg(long, help_heading = "Model")] position_resize: String = "published".into();
    /// What every LayerNorm adds to the variance; Hugging Face's weights come with 1e-12
    #[arg(long, help_heading = "Model")] norm_eps: f64 = layernorm::EPS;
    /// Standard deviation of initial linear weights; narrow networks start faster near 1 / sqrt(C)
    #[arg(long, help_heading = "Model")]
    init_std: f64 = LINEAR_STD;
    /// Prototypes K
    #[arg(long, help_heading = "Head")] out_dim: usize = 65536;
    /// Linear layers before the l2 normalisation
    #[arg(long, help_heading = "Head")] head_layers: usize = 3;
    /// Width between the head's layers
    #[arg(long, help_heading = "Head")] hidden: usize = 2048;
    /// Width of the l2-normalised rows
    #[arg(long, help_heading = "Head")] bottleneck: usize = 256;
    /// Freeze the gain of the prototypes at 1
    #[arg(long, help_heading = "Head")] norm_last_layer: bool = true;
    /// Teacher momentum at the start; rises to 1 along a cosine
    #[arg(long, help_heading = "Teacher")] momentum_teacher: f64 = 0.996;
    /// Teacher temperature at the start
    #[arg(long, help_heading = "Teacher")] warmup_teacher_temp: f64 = 0.04;
    /// Teacher temperature after its warm-up; above 0.07 is unstable
    #[arg(long, help_heading = "Teacher")] teacher_temp: f64 = 0.04;
    /// Epochs of that warm-up
    #[arg(long, help_heading = "Teacher")] warmup_teacher_temp_epochs: u64 = 0;
    /// Student temperature
    #[arg(long, help_heading = "Teacher")] student_temp: f64 = 0.1;
    /// Momentum of the centre
    #[arg(long, help_heading = "Teacher")] center_momentum: f64 = 0.9;
    /// Images of an optimisation step
    #[arg(long, help_heading = "Training")] batch: usize = 64;
    /// Images that go through the model at once (divides --batch; gradients are the same); 0 = the most that make up to 8192 tokens on a CPU, 65536 on a GPU
    #[arg(long, help_heading = "Training")] micro_batch: usize = 0;
    /// Let the student see a micro-batch's crops in turns, each time of no more tokens than the largest crop has: less memory, the same gradients; the teacher's targets are formed anew each time
    #[arg(long, help_heading = "Training", num_args = 0..=1, default_missing_value = "true")] stream_crops: bool = false;
    /// Epochs
    #[arg(long, help_heading = "Training")] epochs: u64 = 100;
    /// Optimiser: adamw
    #[arg(long, help_heading = "Training")] optimizer: String = "adamw".into();
    /// Learning rate per 256 images of batch
    #[arg(long, help_heading = "Training")] lr: f64 = 0.0005;
    /// Epochs of linear learning-rate warm-up
    #[arg(long, help_heading = "Training")] warmup_epochs: u64 = 10;
    /// Final learning rate (not scaled by the batch)
    #[arg(long, help_heading = "Training")] min_lr: f64 = 1e-6;
    /// Weight decay at the start
    #[arg(long, help_heading = "Training")] weight_decay: f64 = 0.04;
    /// Weight decay at the end (cosine)
    #[arg(long, help_heading = "Training")] weight_decay_end: f64 = 0.4;
    /// Largest gradient norm of each tensor; 0 = off
    #[arg(long, help_heading = "Training")] clip_grad: f64 = 3.0;
    /// Epochs during which the prototypes do not move
    #[arg(long, help_heading = "Training")] freeze_last_layer: u64 = 1;
    /// Stochastic depth of the student's last block (linear from 0)
    #[arg(long, help_heading = "Training")] drop_path_rate: f64 = 0.1;
    /// Adam's decay of the first moment
    #[arg(long, help_heading = "Training")] beta1: f64 = 0.9;
    /// Adam's decay of the second moment
    #[arg(long, help_heading = "Training")] beta2: f64 = 0.999;
    /// Adam's epsilon
    #[arg(long, help_heading = "Training")] adam_eps: f64 = 1e-8;
    /// Seed of everything random
    #[arg(long, help_heading = "Training")] seed: u64 = 0;
    /// Keep a numbered checkpoint every so many epochs; 0 = only the latest
    #[arg(long, help_heading = "Training")] save_every: u64 = 20;
    /// Judge the teacher by k-NN every so many epochs; 0 = never
    #[arg(long, help_heading = "Training")] knn_every: u64 = 1;
    /// Most training images that vote in it, and test images that are asked, drawn evenly over the classes; 0 = all, auto = as many as keep it below a tenth of an epoch (all of up to 70,000)
    #[arg(long, help_heading = "Training", value_name = "N")] knn_images: KnnImages = KnnImages::Auto;
    /// How pictures become the squares that are evaluated: resize-crop (the shorter side to 8/7 of the global crop's, the centre of that, as published), whole (to the global crop's) or auto: whole where the first training picture has that size
    #[arg(long, help_heading = "Training")] eval_view: String = "auto".into();
    /// Side of the two global crops, pixels
    #[arg(long, help_heading = "Crops")] global_size: usize = 224;
    /// Side of the local crops, pixels
    #[arg(long, help_heading = "Crops")] local_size: usize = 96;
    /// Least and greatest part of the image's area in a global crop
    #[arg(long, help_heading = "Crops", num_args = 2, value_names = ["MIN", "MAX"])] global_crops_scale: Vec<f64> = vec![0.4, 1.0];
    /// Local crops an image; 0 = none
    #[arg(long, help_heading = "Crops")] local_crops_number: usize = 8;
    /// The same for a local crop
    #[arg(long, help_heading = "Crops", num_args = 2, value_names = ["MIN", "MAX"])] local_crops_scale: Vec<f64> = vec![0.05, 0.4];
    /// Least and greatest width / height of a crop
    #[arg(long, help_heading = "Crops", num_args = 2, value_names = ["MIN", "MAX"])] crop_ratio: Vec<f64> = vec![3.0 / 4.0, 4.0 / 3.0];
    /// Probability of a mirror image
    #[arg(long, help_heading = "Crops")] flip: f64 = 0.5;
    /// Probability of colour jitter
    #[arg(long, help_heading = "Crops")] jitter: f64 = 0.8;
    /// Brightness within 1 +- this
    #[arg(long, help_heading = "Crops")] brightness: f64 = 0.4;
    /// Contrast within 1 +- this
    #[arg(long, help_heading = "Crops")] contrast: f64 = 0.4;
    /// Saturation within 1 +- this
    #[arg(long, help_heading = "Crops")] saturation: f64 = 0.2;
    /// Hue within +- this part of a turn
    #[arg(long, help_heading = "Crops")] hue: f64 = 0.1;
    /// Probability of a grey crop
    #[arg(long, help_heading = "Crops")] gray: f64 = 0.2;
    /// Probability of blur: first global, second global, local crops
    #[arg(long, help_heading = "Crops", num_args = 3, value_names = ["G1", "G2", "LOCAL"])] blur: Vec<f64> = vec![1.0, 0.1, 0.5];
    /// Least and greatest standard deviation of the blur, pixels
    #[arg(long, help_heading = "Crops", num_args = 2, value_names = ["MIN", "MAX"])] blur_radius: Vec<f64> = vec![0.1, 2.0];
    /// Probability that the second global crop is solarised
    #[arg(long, help_heading = "Crops")] solarize: f64 = 0.2;
    /// Values from here on are inverted by it
    #[arg(long, help_heading = "Crops")] solarize_threshold: u8 = 128;
    /// Channel means, of values in 0 to 1, a number a channel
    #[arg(long, help_heading = "Crops", num_args = 1.., value_name = "VALUE")] mean: Vec<f64> = vec![0.485, 0.456, 0.406];
    /// Channel standard deviations, a number a channel
    #[arg(long, help_heading = "Crops", num_args = 1.., value_name = "VALUE")] std: Vec<f64> = vec![0.229, 0.224, 0.225];
    /// Values a pixel: 3 = RGB, 1 = grey, both made of any picture; another number must be what the files have
    #[arg(long, help_heading = "Data")] channels: usize = 3;
    /// Leave pictures as they are stored, whatever their EXIF orientation says, as the published recipe does
    #[arg(long, help_heading = "Data", num_args = 0..=1, default_missing_value = "true")] ignore_exif: bool = false;
    /// Decode large JPEGs at 1/2, 1/4 or 1/8 of their size, never smaller than an evaluation needs; changes pixels
    #[arg(long, help_heading = "Data", num_args = 0..=1, default_missing_value = "true")] fast_decode: bool = false;
    /// The value that becomes 255 in pictures of 16 bits a channel, such as 4095 for 12 bits that fill a part of them; auto = the highest in the training images
    #[arg(long, help_heading = "Data", value_name = "VALUE")] white: White = White::FULL;
}

impl Config {
    /// What a checkpoint that does not say so was made with: the published values, and pictures as they are stored, for orientation was
    /// not looked at before there was a key for it.
    fn before_keys() -> Config {
        Config { ignore_exif: true, ..Config::published() }
    }

    /// What `--small` stands for: a ViT that learns something in minutes on two cores, made for the built-in set.
    pub fn small() -> Config {
        Config {
            arch: "vit_tiny".into(),
            patch_size: 5,
            embed_dim: 64,
            depth: 4,
            heads: 4,
            init_std: 0.15,
            out_dim: 256,
            hidden: 128,
            bottleneck: 32,
            momentum_teacher: 0.98,
            warmup_teacher_temp: 0.02,
            teacher_temp: 0.02,
            batch: 32,
            epochs: 12,
            lr: 0.016,
            warmup_epochs: 1,
            // Strong decay spreads the attention over the objects; it costs k-NN nothing up to here.
            weight_decay: 0.7,
            weight_decay_end: 1.0,
            freeze_last_layer: 0,
            drop_path_rate: 0.0,
            global_size: 40,
            local_size: 20,
            local_crops_number: 0,
            global_crops_scale: vec![0.3, 1.0],
            local_crops_scale: vec![0.1, 0.3],
            blur: vec![0.0, 0.0, 0.0],
            solarize: 0.0,
            mean: vec![0.5, 0.5, 0.5],
            std: vec![0.25, 0.25, 0.25],
            ..Config::published()
        }
    }

    /// What `--small` stands for on images of 32 x 32 pixels (CIFAR), which the crops enlarge a little: of the settings tried, those that
    /// learn most per minute.
    pub fn small_32() -> Config {
        Config { depth: 2, weight_decay: 0.04, weight_decay_end: 0.4, epochs: 40, ..Config::small() }
    }

    /// A fixed shape for tests, which do not change with the preset.
    #[cfg(test)]
    pub(crate) fn tiny() -> Config {
        Config {
            patch_size: 8,
            embed_dim: 96,
            depth: 4,
            heads: 3,
            init_std: LINEAR_STD,
            out_dim: 1024,
            hidden: 256,
            bottleneck: 64,
            batch: 64,
            global_size: 32,
            local_size: 16,
            local_crops_number: 2,
            ..Config::small()
        }
    }

    /// Reads keys from a TOML file; unknown keys are refused by name.
    pub fn file(path: &Path) -> Result<Flags> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::new(format!("cannot read the configuration {}: {e}", path.display()))
                .hint("--config takes a TOML file")
        };
        let bytes = std::fs::read(path).map_err(|e| failed(&e))?;
        let text = text::decoded(bytes).map_err(|line| failed(&format!("line {line} is no text")))?;
        Config::parse(&path.display().to_string(), &text)
    }

    /// The same for a file's text; `name` is for the errors.
    pub fn parse(name: &str, text: &str) -> Result<Flags> {
        toml::from_str(text).map_err(|e: toml::de::Error| {
            let before = e.span().map_or(0, |s| s.start.min(text.len()));
            let line = text.as_bytes()[..before].iter().filter(|b| **b == b'\n').count();
            let said: String = text.lines().nth(line).unwrap_or_default().chars().take(60).collect();
            Error::new(format!("{name}, line {}, `{}`: {}", line + 1, said.trim(), e.message().replace('\n', " ")))
                .hint("keys are the long flags without dashes in front, such as `batch = 64`")
        })
    }

    /// Fills in what depends on other keys and checks every value; the errors name the flag.
    pub fn resolve(self) -> Result<Config> {
        self.resolve_for(MICRO_BATCH_TOKENS)
    }

    /// The same where a micro-batch left to us may make up to `most` tokens: what suits a device is a number of its own, never what
    /// happens to be free.
    pub fn resolve_for(mut self, most: usize) -> Result<Config> {
        let bad = |flag: &str, value: &dyn std::fmt::Debug, fits: &str| {
            Err(Error::new(format!("--{flag} {value:?} makes no sense")).hint(fits.to_string()))
        };
        let shape = match self.arch.strip_prefix("vit_").or(self.arch.strip_prefix("deit_")) {
            Some("tiny") => Vit::TINY_16,
            Some("small") => Vit::SMALL_16,
            Some("base") => Vit::BASE_16,
            _ => {
                return bad(
                    "arch",
                    &self.arch,
                    "vit_tiny, vit_small or vit_base; other backbones are not supported yet",
                );
            }
        };
        let fill = |key: &mut usize, preset| *key = if *key == 0 { preset } else { *key };
        fill(&mut self.embed_dim, shape.dim);
        fill(&mut self.depth, shape.depth);
        fill(&mut self.heads, shape.heads);
        if self.micro_batch == 0 {
            let side = |pixels: usize| (pixels / self.patch_size.max(1)).saturating_pow(2).saturating_add(1);
            let local = self.local_crops_number.saturating_mul(side(self.local_size));
            let tokens = side(self.global_size).saturating_mul(2).saturating_add(local);
            let most = (most / tokens).clamp(1, self.batch.max(1));
            self.micro_batch = (1..=most).rev().find(|m| self.batch.is_multiple_of(*m)).unwrap_or(1);
        }
        if self.channels == 0 || self.channels > MOST_CHANNELS {
            return bad("channels", &self.channels, &format!("1 to {MOST_CHANNELS}: 3 for colour, 1 for grey"));
        }
        // The three published numbers mean colours: of any other channels each has their average.
        if self.channels != 3 {
            let published = Config::published();
            for (values, of) in [(&mut self.mean, published.mean), (&mut self.std, published.std)] {
                if *values == of || (values.len() == 3 && values.iter().all(|x| *x == values[0])) {
                    let average = (1e3 * values.iter().sum::<f64>() / 3.0).round() / 1e3;
                    *values = vec![average; self.channels];
                }
            }
        }
        if self.optimizer != "adamw" {
            return bad("optimizer", &self.optimizer, "adamw; others are not supported yet");
        }
        let positive = [("student-temp", self.student_temp), ("teacher-temp", self.teacher_temp)];
        for (flag, x) in positive.into_iter().chain([("warmup-teacher-temp", self.warmup_teacher_temp)]) {
            // Beyond, logits divided by it are no numbers of f32.
            if !(1e-30..=1e30).contains(&x) {
                return bad(
                    flag,
                    &x,
                    "a temperature is above 0 (1e-30 to 1e30); published: 0.1 for the student, 0.04 to 0.07 for the teacher",
                );
            }
        }
        let unit = [
            ("momentum-teacher", self.momentum_teacher),
            ("center-momentum", self.center_momentum),
            ("beta1", self.beta1),
            ("beta2", self.beta2),
        ];
        for (flag, x) in unit {
            if !(0.0..=1.0).contains(&x) || (flag.starts_with("beta") && x == 1.0) {
                return bad(flag, &x, "a momentum lies between 0 and 1");
            }
        }
        let not_negative = [
            ("lr", self.lr),
            ("min-lr", self.min_lr),
            ("weight-decay", self.weight_decay),
            ("weight-decay-end", self.weight_decay_end),
            ("clip-grad", self.clip_grad),
            ("adam-eps", self.adam_eps),
        ];
        for (flag, x) in not_negative {
            if !(x >= 0.0 && x.is_finite()) {
                return bad(flag, &x, "a finite number, at least 0");
            }
        }
        if !(self.init_std > 0.0 && self.init_std <= 1.0) {
            return bad("init-std", &self.init_std, "above 0, at most 1; published: 0.02");
        }
        if !(0.0..1.0).contains(&self.drop_path_rate) {
            return bad("drop-path-rate", &self.drop_path_rate, "a probability below 1");
        }
        if self.epochs == 0 {
            return bad("epochs", &self.epochs, "at least 1");
        }
        let epochs = [
            ("epochs", self.epochs),
            ("warmup-epochs", self.warmup_epochs),
            ("warmup-teacher-temp-epochs", self.warmup_teacher_temp_epochs),
            ("freeze-last-layer", self.freeze_last_layer),
        ];
        for (flag, n) in epochs {
            if n > u32::MAX as u64 {
                return bad(flag, &n, "at most 4294967295");
            }
        }
        if !(self.mlp_ratio > 0.0 && self.mlp_ratio.is_finite()) {
            return bad("mlp-ratio", &self.mlp_ratio, "above 0; published: 4");
        }
        if !["published", "size"].contains(&self.position_resize.as_str()) {
            return bad("position-resize", &self.position_resize, "published or size");
        }
        if self.eval_view != "auto" && self.eval_view().is_none() {
            return bad("eval-view", &self.eval_view, "auto, resize-crop or whole");
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return bad("norm-eps", &self.norm_eps, "above 0 and below 1; published: 1e-6");
        }
        let lists = [
            ("global-crops-scale", self.global_crops_scale.len(), 2),
            ("local-crops-scale", self.local_crops_scale.len(), 2),
            ("crop-ratio", self.crop_ratio.len(), 2),
            ("blur-radius", self.blur_radius.len(), 2),
            ("blur", self.blur.len(), 3),
            ("mean", self.mean.len(), self.channels),
            ("std", self.std.len(), self.channels),
        ];
        for (flag, got, want) in lists {
            if got != want {
                return Err(Error::new(format!("--{flag} takes {want} numbers, not {got}"))
                    .hint("on the command line they follow the flag, in a file they are a list: [a, b]"));
            }
        }
        self.augment().check()?;
        self.plan(true)?;
        Ok(self)
    }

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

    /// How pictures become evaluation views; none: the set says it.
    pub fn eval_view(&self) -> Option<EvalView> {
        [EvalView::ResizeCrop, EvalView::Whole].into_iter().find(|view| view.name() == self.eval_view)
    }

    /// How files become images. The evaluation's shorter side, 8/7 of the global crop's, is the least that fast decoding leaves.
    pub fn decode(&self) -> Decode {
        let fast = self.fast_decode.then(|| self.global_size.saturating_mul(8).div_ceil(7));
        Decode { channels: self.channels, orient: !self.ignore_exif, fast, white: self.white.value() }
    }

    /// The same configuration for pictures that are looked at in another size than the evaluation's: what fast decoding leaves of them
    /// is too small, and is not what boxes, masks and frames of their own size belong to.
    pub fn decoding_whole(self) -> Config {
        Config { fast_decode: false, ..self }
    }

    /// The networks' parameters.
    pub fn table(&self) -> Table {
        let backbone = Vit {
            image: self.global_size,
            patch: self.patch_size,
            channels: self.channels,
            dim: self.embed_dim,
            depth: self.depth,
            heads: self.heads,
            mlp: (self.embed_dim as f64 * self.mlp_ratio) as usize,
            positions: if self.position_resize == "size" { Interpolation::Size } else { Interpolation::Published },
            eps: self.norm_eps,
        };
        let head = Head {
            inp: self.embed_dim,
            layers: self.head_layers,
            hidden: self.hidden,
            bottleneck: self.bottleneck,
            prototypes: self.out_dim,
            train_gain: !self.norm_last_layer,
        };
        Table { backbone, head }
    }

    /// The memory plan of a training step, on a device that computes some things again in the backward pass
    /// ([`crate::device::Device::RECOMPUTE`]) or does not.
    pub fn plan(&self, recompute: bool) -> Result<Plan> {
        let Table { backbone, head } = self.table();
        let square = |count, side| Group { count, height: side, width: side };
        let mut views = Crops::one(square(2, self.global_size));
        if self.local_crops_number > 0 {
            views = views.with(square(self.local_crops_number, self.local_size));
        }
        let drop_path = self.drop_path_rate > 0.0;
        let (batch, micro_batch, stream_crops) = (self.batch, self.micro_batch, self.stream_crops);
        let config = plan::Config { backbone, head, views, batch, micro_batch, drop_path, recompute, stream_crops };
        Plan::new(config).map_err(|e| Error::new(e.to_string()).hint(remedy(e)))
    }

    /// The numbers of optimisation step `step` (from 0), with `per_epoch` steps in an epoch.
    pub fn hyper(&self, step: u64, per_epoch: u64) -> Hyper {
        let (epoch, steps) = (step / per_epoch, self.epochs * per_epoch);
        let lr = Cosine {
            start: 0.0,
            base: self.lr * self.batch as f64 / 256.0,
            end: self.min_lr,
            warmup: self.warmup_epochs * per_epoch,
            steps,
        };
        let temp = TeacherTemp {
            warmup: self.warmup_teacher_temp,
            end: self.teacher_temp,
            epochs: self.warmup_teacher_temp_epochs,
        };
        let frozen = self.freeze_last_layer * per_epoch;
        Hyper {
            lr: lr.at(step),
            weight_decay: Cosine::new(self.weight_decay, self.weight_decay_end, steps).at(step),
            momentum: Cosine::new(self.momentum_teacher, 1.0, steps).at(step),
            teacher_temp: temp.at(epoch),
            student_temp: self.student_temp,
            center_momentum: self.center_momentum,
            clip_grad: self.clip_grad,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.adam_eps,
            step: step + 1,
            step_last: (step + 1).saturating_sub(frozen),
            freeze_last: step < frozen,
        }
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
        PlanError::HeadLayers { .. } => "--head-layers 3 is the published depth".into(),
        PlanError::SmallCrop { side, .. } => format!("--patch-size {side} or smaller, or larger crops"),
        PlanError::Views { .. } => "there are two global crops; add --local-crops-number".into(),
        PlanError::Streams { .. } => "a smaller --local-crops-number or --depth".into(),
        PlanError::MicroBatch { batch, micro_batch } => {
            format!("--micro-batch {} divides --batch {batch}", divisor(batch, micro_batch))
        }
        PlanError::Shards { micro_batches, shards } => {
            format!("{} shards: as many micro-batches in each", divisor(micro_batches, shards))
        }
        PlanError::Ranks { shards, ranks } => format!("{shards} shards suit {} processes", divisor(shards, ranks)),
        PlanError::Blocks { depth, .. } => format!("--blocks 1 to {depth}"),
        PlanError::TooLarge => "a smaller --micro-batch, --stream-crops, smaller crops, width or --out-dim".into(),
    }
}

#[cfg(test)]
mod tests;
