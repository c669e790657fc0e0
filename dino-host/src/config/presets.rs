//! Sets of values with a name.

use super::{Config, Flags};
use crate::error::{Error, Result};
#[cfg(test)]
use dino_kernel::init::LINEAR_STD;

/// A published configuration: what it has other values of than the published code's defaults.
pub struct Preset {
    /// As `--preset` takes it.
    pub name: &'static str,
    /// Where it is published.
    pub source: &'static str,
    /// Its keys, in TOML.
    pub keys: &'static str,
}

/// The published configurations. Batches are those of all cards together.
pub const PRESETS: [Preset; 9] = [
    Preset {
        name: "vit-small-16",
        source: "README of the published code: ViT-S/16, 100 epochs on 8 cards, 69.3 % k-NN",
        keys: "arch = 'vit_small'\nbatch = 512\nepochs = 100",
    },
    Preset {
        name: "vit-small-16-boosted",
        source: "README, boosted: ViT-S/16, 300 epochs on 16 cards, 72.8 % k-NN",
        keys: "arch = 'vit_small'\nbatch = 1024\nepochs = 300\nteacher-temp = 0.07\nwarmup-teacher-temp-epochs = 30\nnorm-last-layer = false",
    },
    Preset {
        name: "vit-small-16-paper",
        source: "paper: ViT-S/16, 800 epochs on 16 cards, 10 local crops, 74.5 % k-NN",
        keys: "arch = 'vit_small'\nbatch = 1024\nepochs = 800\nteacher-temp = 0.07\nwarmup-teacher-temp-epochs = 30\nnorm-last-layer = false\nlocal-crops-number = 10\nglobal-crops-scale = [0.25, 1.0]\nlocal-crops-scale = [0.05, 0.25]",
    },
    Preset {
        name: "vit-small-16-two-crops",
        source: "author, issue 122 of the published code: ViT-S/16 without local crops, 300 epochs, 67.9 % k-NN",
        keys: "arch = 'vit_small'\nbatch = 1024\nepochs = 300\nclip-grad = 0.0\nmin-lr = 1e-5\nglobal-crops-scale = [0.14, 1.0]\nlocal-crops-number = 0",
    },
    Preset {
        name: "vit-small-8",
        source: "author, issue 104: ViT-S/8, 16 images on each of 64 cards",
        keys: "arch = 'vit_small'\npatch-size = 8\nbatch = 1024",
    },
    Preset {
        name: "vit-small-16-vissl",
        source: "VISSL's configuration: ViT-S/16, 300 epochs on 16 cards; what it counts in steps is in epochs here",
        keys: "arch = 'vit_small'\nbatch = 1024\nepochs = 300\nteacher-temp = 0.07\nwarmup-teacher-temp-epochs = 30",
    },
    Preset {
        name: "vit-small-16-small-batch",
        source: "author, issue 104, and the help of --momentum_teacher: batches of 256 with a slower teacher",
        keys: "arch = 'vit_small'\nbatch = 256\nmomentum-teacher = 0.9995",
    },
    Preset {
        name: "resnet50",
        source: "arguments of the released ResNet-50: LARS, 800 epochs, batch 4080 on 80 cards, 67.5 % k-NN",
        keys: "arch = 'resnet50'\noptimizer = 'lars'\nbatch = 4080\nepochs = 800\nlr = 0.3\nmin-lr = 0.0048\nweight-decay = 1e-6\nweight-decay-end = 1e-6\nclip-grad = 0.0\nteacher-temp = 0.07\nwarmup-teacher-temp-epochs = 50\nout-dim = 60000\nhead-layers = 2\nhidden = 4096\nuse-bn-in-head = true\nlocal-crops-number = 6\nglobal-crops-scale = [0.14, 1.0]\nlocal-crops-scale = [0.05, 0.14]",
    },
    Preset {
        name: "resnet50-sgd",
        source: "README, ResNet-50 with small batches: SGD, 100 epochs on 8 cards",
        keys: "arch = 'resnet50'\noptimizer = 'sgd'\nbatch = 512\nepochs = 100\nlr = 0.03\nweight-decay = 1e-4\nweight-decay-end = 1e-4\nglobal-crops-scale = [0.14, 1.0]\nlocal-crops-scale = [0.05, 0.14]",
    },
];

impl Config {
    /// The keys of a published configuration.
    ///
    /// # Errors
    /// There is none of this name; the hint lists them.
    pub fn preset(name: &str) -> Result<Flags> {
        let Some(preset) = PRESETS.iter().find(|preset| preset.name == name) else {
            let names = PRESETS.map(|preset| preset.name).join(", ");
            return Err(Error::new(format!("there is no published configuration {name:?}")).hint(names));
        };
        Config::parse(preset.name, preset.keys)
    }

    /// What a checkpoint that does not state it was made with: the published values, and images as they are stored, for orientation was
    /// ignored before there was a key for it.
    pub(super) fn before_keys() -> Config {
        Config { ignore_exif: true, ..Config::published() }
    }

    /// What `--small` means: a ViT that learns something in minutes on two cores, made for the built-in set.
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
            // A run of 3,000 steps that ends at 1 freezes its teacher before the student is done.
            momentum_teacher_end: 0.99,
            warmup_teacher_temp: 0.02,
            teacher_temp: 0.02,
            batch: 32,
            epochs: 24,
            // At twice this rate one seed in two learned late, and ended 20 points behind; a rate that falls to nothing ends the learning early.
            lr: 0.008,
            min_lr: 0.0003,
            warmup_epochs: 1,
            knn_every: 4,
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

    /// What `--small` means on images about as small as CIFAR's 32 x 32 pixels: a small ResNet.
    pub fn small_32() -> Config {
        Config {
            arch: "resnet_small".into(),
            // Maps of 16 x 16 and smaller: 1.8 times the images a minute of 16, 32 and 64 channels at stride 1, and no less of each.
            widths: vec![32, 64, 128],
            stage_blocks: vec![1, 1, 1],
            stem_stride: 2,
            out_dim: 1024,
            hidden: 256,
            bottleneck: 64,
            use_bn_in_head: true,
            warmup_teacher_temp: 0.04,
            teacher_temp: 0.04,
            momentum_teacher_end: 0.99,
            clip_grad: 1.0,
            batch: 64,
            epochs: 60,
            optimizer: "sgd".into(),
            lr: 0.4,
            weight_decay: 0.0005,
            weight_decay_end: 0.0005,
            knn_every: 5,
            init_std: 0.02,
            global_size: 32,
            global_crops_scale: vec![0.25, 1.0],
            ..Config::small_32_vit()
        }
    }

    /// What `--small` means on larger images, photos for example: the same on crops of 64 pixels, whose settings were chosen on Imagenette.
    pub fn small_64() -> Config {
        Config { global_size: 64, min_lr: 0.0003, ..Config::small_32() }
    }

    /// [`Config::small_32`] where a ViT is asked for; the crops enlarge the images a little.
    pub fn small_32_vit() -> Config {
        Config {
            depth: 2,
            epochs: 40,
            lr: 0.016,
            min_lr: Config::published().min_lr,
            knn_every: 1,
            momentum_teacher_end: 1.0,
            weight_decay: 0.04,
            weight_decay_end: 0.4,
            ..Config::small()
        }
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
            momentum_teacher_end: 1.0,
            lr: 0.016,
            min_lr: Config::published().min_lr,
            knn_every: 1,
            epochs: 12,
            ..Config::small()
        }
    }
}
