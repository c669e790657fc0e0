//! The keys: name, help, type and published value, each declared once.

use super::read::Place;
use super::{KnnImages, Switch};
use crate::image::White;
use clap::Args;
use dino_kernel::init::LINEAR_STD;
use dino_kernel::ops::layernorm;
use dino_kernel::optim::{AdamW, Lars, Sgd};
use serde::{Deserialize, Serialize};

/// Declares `Flags` (every key optional: flags and files) and `Config` (every key with its value).
macro_rules! keys {
    ($($(#[$meta:meta])* $key:ident: $ty:ty = $published:expr;)*) => {
        /// The keys as a user gives them: on the command line or in a TOML file, each at most once.
        #[derive(Args, Clone, Debug, Default, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct Flags {
            $($(#[$meta])* #[serde(skip_serializing_if = "Option::is_none")] pub $key: Option<$ty>,)*
        }

        /// The keys with their values: the configuration of a run. A key that is not there (in a checkpoint older than the key) has what
        /// runs did before there was the key, see `Config::before_keys`.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(from = "Flags", rename_all = "kebab-case")]
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
            /// The names of all keys, as files have them.
            pub(super) fn names() -> [String; [$(stringify!($key)),*].len()] {
                [$(stringify!($key)),*].map(|name| name.replace('_', "-"))
            }

            /// Where the value of the key of this name goes; none if there is no such key.
            pub(super) fn place(&mut self, name: &str) -> Option<Place<'_>> {
                match name.replace('-', "_").as_str() {
                    _ if name.contains('_') => None,
                    $(stringify!($key) => Some((&mut self.$key).into()),)*
                    _ => None,
                }
            }

            /// These flags over those of a file.
            pub fn over(mut self, file: Flags) -> Flags {
                $(if self.$key.is_none() { self.$key = file.$key; })*
                self
            }
        }
    };
}

keys! {
    /// vit_tiny, vit_small or vit_base (deit_ is an alias), whose shape --embed-dim, --depth and --heads override; resnet18, resnet34, resnet50 or resnet_small (for small images), whose shape --widths, --stage-blocks, --block-kind and --stem override
    #[arg(long, help_heading = "Model")] arch: String = "vit_small".into();
    /// Side of a patch, pixels
    #[arg(long, help_heading = "Model")] patch_size: usize = 16;
    /// Width C; 0 = as --arch sets it
    #[arg(long, help_heading = "Model")] embed_dim: usize = 0;
    /// Blocks; 0 = as --arch sets it
    #[arg(long, help_heading = "Model")] depth: usize = 0;
    /// Attention heads; 0 = as --arch sets it
    #[arg(long, help_heading = "Model")] heads: usize = 0;
    /// MLP width over C
    #[arg(long, help_heading = "Model")] mlp_ratio: f64 = 4.0;
    /// How positions are resized for other grids: published (the +0.1 rule) or size
    #[arg(long, help_heading = "Model")] position_resize: String = "published".into();
    /// Channels of the 3x3 convolutions of each stage of a ResNet; none = as --arch sets them
    #[arg(long, help_heading = "Model", num_args = 1.., value_name = "WIDTH")] widths: Vec<usize> = vec![];
    /// Residual blocks of each stage of a ResNet; none = as --arch sets them
    #[arg(long, help_heading = "Model", num_args = 1.., value_name = "N")] stage_blocks: Vec<usize> = vec![];
    /// Kind of a ResNet's blocks: basic (two 3x3) or bottleneck (1x1, 3x3, 1x1); auto = as --arch sets it
    #[arg(long, help_heading = "Model")] block_kind: String = "auto".into();
    /// A ResNet's first convolution, as wide as its first stage: 7x7 (and a max pool after it) or 3x3 (without one, for small images); auto = as --arch sets it
    #[arg(long, help_heading = "Model")] stem: String = "auto".into();
    /// Its stride; 0 = 2 for 7x7, 1 for 3x3
    #[arg(long, help_heading = "Model")] stem_stride: usize = 0;
    /// Images over which a batch norm takes mean and variance (divides --micro-batch); 0 = the batch, of all shards and processes
    #[arg(long, help_heading = "Model", value_name = "N")] bn_group: usize = 0;
    /// What every LayerNorm adds to the variance; Hugging Face's weights come with 1e-12
    #[arg(long, help_heading = "Model")] norm_eps: f64 = layernorm::EPS;
    /// Standard deviation of initial linear weights; narrow networks start faster near 1 / sqrt(C)
    #[arg(long, help_heading = "Model")]
    init_std: f64 = LINEAR_STD;
    /// Prototypes K
    #[arg(long, help_heading = "Head")] out_dim: usize = 65536;
    /// Linear layers in front of the prototypes, 1 to 8; with --bottleneck 0 the prototypes are the last of them
    #[arg(long, help_heading = "Head")] head_layers: usize = 3;
    /// Width between the head's layers
    #[arg(long, help_heading = "Head")] hidden: usize = 2048;
    /// Width of the l2-normalized rows; 0 = no bottleneck: the last of the layers makes the logits
    #[arg(long, help_heading = "Head")] bottleneck: usize = 256;
    /// What is between the head's layers: gelu or relu
    #[arg(long, help_heading = "Head")] activation: String = "gelu".into();
    /// Put a batch norm in front of each activation of the head; statistics are of all crops of --bn-group images
    #[arg(long, help_heading = "Head", num_args = 0..=1, default_missing_value = "true")] use_bn_in_head: bool = false;
    /// l2-normalize the rows in front of the prototypes; auto = true with a bottleneck, false without
    #[arg(long, help_heading = "Head", value_name = "BOOL")] l2_norm: Switch = Switch::Auto;
    /// Normalize the prototypes' weights (weight norm); auto = true with a bottleneck, false without
    #[arg(long, help_heading = "Head", value_name = "BOOL")] weight_norm: Switch = Switch::Auto;
    /// Freeze the gain of the weight-normalized prototypes at 1
    #[arg(long, help_heading = "Head")] norm_last_layer: bool = true;
    /// Give the student, not the teacher, a predictor in front of the l2 normalization: linear, activation (after a batch norm with --use-bn-in-head), linear
    #[arg(long, help_heading = "Head", num_args = 0..=1, default_missing_value = "true")] predictor: bool = false;
    /// Width between the predictor's layers; 0 = twice --hidden
    #[arg(long, help_heading = "Head")] predictor_hidden: usize = 0;
    /// Where the teacher comes from: ema (an average of the student), previous-epoch, previous-iteration or student (copies of it), frozen (stays as it begins)
    #[arg(long, help_heading = "Teacher", value_name = "RULE")] teacher: String = "ema".into();
    /// Teacher momentum at the start; for --teacher ema
    #[arg(long, help_heading = "Teacher")] momentum_teacher: f64 = 0.996;
    /// Teacher momentum at the end, to which it comes along a cosine; below 1 the teacher follows the student of a short run to its end
    #[arg(long, help_heading = "Teacher")] momentum_teacher_end: f64 = 1.0;
    /// Teacher temperature at the start
    #[arg(long, help_heading = "Teacher")] warmup_teacher_temp: f64 = 0.04;
    /// Teacher temperature after its warm-up; above 0.07 is unstable
    #[arg(long, help_heading = "Teacher")] teacher_temp: f64 = 0.04;
    /// Epochs of that warm-up
    #[arg(long, help_heading = "Teacher")] warmup_teacher_temp_epochs: u64 = 0;
    /// Student temperature
    #[arg(long, help_heading = "Teacher")] student_temp: f64 = 0.1;
    /// What is subtracted from the teacher's logits before their softmax: center (a running mean), sinkhorn-knopp or softmax-batch (so that every prototype gets an equal share of the batch; softmax-batch is one iteration), or none
    #[arg(long, help_heading = "Teacher")] targets: String = "center".into();
    /// Momentum of the center
    #[arg(long, alias = "centre-momentum", help_heading = "Teacher")] center_momentum: f64 = 0.9;
    /// Iterations of --targets sinkhorn-knopp
    #[arg(long, help_heading = "Teacher")] sinkhorn_iterations: u32 = 3;
    /// How the student's outputs are compared with the teacher's: cross-entropy, or mse (the squared error between the softmax outputs)
    #[arg(long, help_heading = "Teacher")] loss: String = "cross-entropy".into();
    /// Images of an optimization step
    #[arg(long, help_heading = "Training")] batch: usize = 64;
    /// Images that go through the model at once (divides --batch; gradients are the same); 0 = the most that make up to 8192 tokens on a CPU, 65536 on a GPU
    #[arg(long, help_heading = "Training")] micro_batch: usize = 0;
    /// Equal parts of the batch that are summed apart, then by halves; processes share them, and a run has the same bits on any number of processes that divides it [default for a new run: one a process]
    #[arg(long, help_heading = "Training")] shards: usize = 1;
    /// Run the student over a micro-batch's crops in several passes, none of more tokens than the largest crop has: less memory, the same gradients; every pass computes the teacher's targets again
    #[arg(long, help_heading = "Training", num_args = 0..=1, default_missing_value = "true")] stream_crops: bool = false;
    /// Epochs
    #[arg(long, help_heading = "Training")] epochs: u64 = 100;
    /// Optimizer: adamw, sgd or lars
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
    #[arg(long, help_heading = "Training")] beta1: f64 = AdamW::PUBLISHED.beta1;
    /// Adam's decay of the second moment
    #[arg(long, help_heading = "Training")] beta2: f64 = AdamW::PUBLISHED.beta2;
    /// Adam's epsilon
    #[arg(long, help_heading = "Training")] adam_eps: f64 = AdamW::PUBLISHED.eps;
    /// Momentum of SGD and LARS
    #[arg(long, help_heading = "Training")] sgd_momentum: f64 = Sgd::PUBLISHED.momentum;
    /// LARS's trust coefficient: the length of a tensor's update over the tensor's norm, before the learning rate
    #[arg(long, help_heading = "Training")] lars_eta: f64 = Lars::PUBLISHED.eta;
    /// Seed of everything random
    #[arg(long, help_heading = "Training")] seed: u64 = 0;
    /// Which of the orders of images and sets of crops that the seed has; --on-collapse rollback counts it up
    #[arg(long, help_heading = "Training", value_name = "N")] reseed: u64 = 0;
    /// What to do when the teacher's output has become the same for every image: warn (and go on), stop, or rollback (go on from the last numbered checkpoint before it with the next --reseed, up to 5 times)
    #[arg(long, help_heading = "Training", value_name = "WHAT")] on_collapse: String = "warn".into();
    /// Keep a numbered checkpoint every N epochs; 0 = only the latest
    #[arg(long, help_heading = "Training")] save_every: u64 = 20;
    /// Evaluate the teacher by k-NN every N epochs; 0 = never
    #[arg(long, help_heading = "Training")] knn_every: u64 = 1;
    /// Most training images that vote in the k-NN evaluation, and most test images that are queries, drawn evenly over the classes; 0 = all, auto = as many as keep it below a tenth of an epoch (all of up to 70,000)
    #[arg(long, help_heading = "Training", value_name = "N")] knn_images: KnnImages = KnnImages::Auto;
    /// How images become the squares that are evaluated: resize-crop (the shorter side to 8/7 of the global crop's, the center of that, as published), whole (the entire image resized to the global crop's size) or auto: whole where the first training image has that size
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
    /// Probability of color jitter
    #[arg(long, help_heading = "Crops")] jitter: f64 = 0.8;
    /// Brightness within 1 +- this
    #[arg(long, help_heading = "Crops")] brightness: f64 = 0.4;
    /// Contrast within 1 +- this
    #[arg(long, help_heading = "Crops")] contrast: f64 = 0.4;
    /// Saturation within 1 +- this
    #[arg(long, help_heading = "Crops")] saturation: f64 = 0.2;
    /// Hue shift within +- this part of the full circle
    #[arg(long, help_heading = "Crops")] hue: f64 = 0.1;
    /// Probability of a gray crop
    #[arg(long, help_heading = "Crops")] gray: f64 = 0.2;
    /// Probability of blur: first global, second global, local crops
    #[arg(long, help_heading = "Crops", num_args = 3, value_names = ["G1", "G2", "LOCAL"])] blur: Vec<f64> = vec![1.0, 0.1, 0.5];
    /// Least and greatest standard deviation of the blur, pixels
    #[arg(long, help_heading = "Crops", num_args = 2, value_names = ["MIN", "MAX"])] blur_radius: Vec<f64> = vec![0.1, 2.0];
    /// Probability that the second global crop is solarized
    #[arg(long, help_heading = "Crops")] solarize: f64 = 0.2;
    /// Values from this one up are inverted by solarization
    #[arg(long, help_heading = "Crops")] solarize_threshold: u8 = 128;
    /// Channel means, of values in 0 to 1, a number a channel
    #[arg(long, help_heading = "Crops", num_args = 1.., value_name = "VALUE")] mean: Vec<f64> = vec![0.485, 0.456, 0.406];
    /// Channel standard deviations, a number a channel
    #[arg(long, help_heading = "Crops", num_args = 1.., value_name = "VALUE")] std: Vec<f64> = vec![0.229, 0.224, 0.225];
    /// Values a pixel: 3 = RGB, 1 = gray, both made of any image; another number must be what the files have
    #[arg(long, help_heading = "Data")] channels: usize = 3;
    /// Leave images as they are stored, whatever their EXIF orientation is, as the published recipe does
    #[arg(long, help_heading = "Data", num_args = 0..=1, default_missing_value = "true")] ignore_exif: bool = false;
    /// Decode large JPEGs at 1/2, 1/4 or 1/8 of their size, never smaller than an evaluation needs; changes pixels
    #[arg(long, help_heading = "Data", num_args = 0..=1, default_missing_value = "true")] fast_decode: bool = false;
    /// The value that becomes 255 in images of 16 bits a channel, such as 4095 for 12 bits that fill a part of them; auto = the highest in the training images
    #[arg(long, help_heading = "Data", value_name = "VALUE")] white: White = White::FULL;
    /// Images that settings are chosen on: test, or train-split: a tenth of the training images, left out of training and evaluated in place of the test images (eval linear chooses its rate on such a tenth, and evaluates the test images)
    #[arg(long, help_heading = "Data", value_name = "PART")] choose_on: String = "test".into();
}
