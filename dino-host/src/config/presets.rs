//! Sets of values with a name.

use super::Config;
#[cfg(test)]
use dino_kernel::init::LINEAR_STD;

impl Config {
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

    /// What `--small` means on images of 32 x 32 pixels (CIFAR), which the crops enlarge a little: of the settings tried, those that
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
}
