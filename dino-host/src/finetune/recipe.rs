//! How a backbone is fine-tuned: flags, their defaults (DeiT's, for ViTs), and the numbers of every step.

use crate::config::Config;
use crate::error::{Error, Result};
use clap::Args;
use dino_kernel::crops::{Crops, Group};
use dino_kernel::finetune::mix::Mix;
use dino_kernel::finetune::{self, Plan};
use dino_kernel::model::Backbone;
use dino_kernel::optim::{AdamW, Optimizer};
use dino_kernel::schedule::Cosine;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt::Display;

/// Images that `--lr` is for (DeiT).
const REFERENCE: f64 = 512.0;
/// Learning rate of the first step of a warm-up (DeiT).
const WARMUP_LR: f64 = 1e-6;

/// The recipe as a user gives it.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Recipe")]
pub struct Flags {
    /// Epochs [default: 100]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
    /// Images of an optimization step [default: 64]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Images that go through the model at once; divides --batch [default: the most that make up to 8192 tokens on a CPU]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Learning rate per 512 images of batch [default: 0.0005]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Final learning rate, not scaled by the batch, and never above the first one [default: 0.00001]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr: Option<f64>,
    /// Epochs of linear learning-rate warm-up [default: 5]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_epochs: Option<u64>,
    /// Weight decay; class token, positions, biases and norms have none [default: 0.05]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Largest gradient norm of each tensor; 0 = off [default: 0]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_grad: Option<f64>,
    /// What the learning rate is multiplied by from layer to layer, from the classifier down to the patch embedding, such as 0.75 [default: 1]
    #[arg(long, value_name = "FACTOR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_decay: Option<f64>,
    /// Train the last N blocks, what follows them and the classifier; 0 = the classifier alone [default: everything]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<usize>,
    /// Stochastic depth of a ViT's last block (linear from 0) [default: 0.1]
    #[arg(long, value_name = "RATE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_path_rate: Option<f64>,
    /// Label smoothing [default: 0.1 for a ViT, 0 for a ResNet]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smoothing: Option<f64>,
    /// Alpha of MixUp; 0 = off [default: 0.8 for a ViT, 0 for a ResNet]
    #[arg(long, value_name = "ALPHA")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixup: Option<f64>,
    /// Alpha of CutMix; 0 = off [default: 1 for a ViT, 0 for a ResNet]
    #[arg(long, value_name = "ALPHA")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cutmix: Option<f64>,
    /// Probability that a batch is mixed at all [default: 1]
    #[arg(long, value_name = "P")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixup_prob: Option<f64>,
    /// Probability of CutMix where both are on [default: 0.5]
    #[arg(long, value_name = "P")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixup_switch_prob: Option<f64>,
    /// Images over which a ResNet's batch norms take mean and variance (divides --micro-batch); 0 = the batch [default: 0]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bn_group: Option<usize>,
    /// Seed of everything random [default: 0]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// The recipe of a run. Equal recipes, images and first weights give equal bits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs)] // as the flags
pub struct Recipe {
    pub epochs: u64,
    pub batch: usize,
    pub micro_batch: usize,
    pub lr: f64,
    pub min_lr: f64,
    pub warmup_epochs: u64,
    pub weight_decay: f64,
    pub clip_grad: f64,
    pub layer_decay: f64,
    pub blocks: Option<usize>,
    pub drop_path_rate: f64,
    pub smoothing: f64,
    pub mixup: f64,
    pub cutmix: f64,
    pub mixup_prob: f64,
    pub mixup_switch_prob: f64,
    pub bn_group: usize,
    pub seed: u64,
}

/// The largest divisor of `n`, 1 to `most`.
fn divisor(n: usize, most: usize) -> usize {
    (1..=most.min(n)).rev().find(|d| n.is_multiple_of(*d)).unwrap_or(1)
}

impl Flags {
    /// The recipe for a backbone: the defaults where nothing is given. `most`: tokens of a micro-batch that is left to us.
    ///
    /// # Errors
    /// A value is outside its range, or there are fewer blocks.
    pub fn resolve(&self, config: &Config, most: usize) -> Result<Recipe> {
        let backbone = config.table().backbone;
        let vit = matches!(backbone, Backbone::Vit(_));
        let of_vit = |value: f64| if vit { value } else { 0.0 };
        let batch = self.batch.unwrap_or(64);
        let bn_group = self.bn_group.unwrap_or(0);
        let side = config.global_size;
        let tokens = backbone.cost(&Crops::one(Group { count: 1, height: side, width: side })).max(1);
        // A batch norm's group stays together.
        let group = match (backbone.batch_statistics() && self.blocks != Some(0), bn_group) {
            (false, _) => 1,
            (true, 0) => batch.max(1),
            (true, group) => group,
        };
        let recipe = Recipe {
            epochs: self.epochs.unwrap_or(100),
            batch,
            micro_batch: self.micro_batch.unwrap_or(group * divisor(batch / group, (most / tokens / group).max(1))),
            lr: self.lr.unwrap_or(5e-4),
            min_lr: self.min_lr.unwrap_or(1e-5),
            warmup_epochs: self.warmup_epochs.unwrap_or(5),
            weight_decay: self.weight_decay.unwrap_or(0.05),
            clip_grad: self.clip_grad.unwrap_or(0.0),
            layer_decay: self.layer_decay.unwrap_or(1.0),
            blocks: self.blocks,
            drop_path_rate: self.drop_path_rate.unwrap_or(of_vit(0.1)),
            smoothing: self.smoothing.unwrap_or(of_vit(0.1)),
            mixup: self.mixup.unwrap_or(of_vit(0.8)),
            cutmix: self.cutmix.unwrap_or(of_vit(1.0)),
            mixup_prob: self.mixup_prob.unwrap_or(1.0),
            mixup_switch_prob: self.mixup_switch_prob.unwrap_or(0.5),
            bn_group,
            seed: self.seed.unwrap_or(0),
        };
        recipe.check(&backbone)?;
        Ok(recipe)
    }
}

impl Recipe {
    fn check(&self, backbone: &Backbone) -> Result<()> {
        let bad = |flag: &str, value: &dyn Display, fits: &str| {
            Err(Error::new(format!("--{flag} {value} makes no sense")).hint(fits.to_owned()))
        };
        for (flag, value) in
            [("epochs", self.epochs as usize), ("batch", self.batch), ("micro-batch", self.micro_batch)]
        {
            if value == 0 {
                return bad(flag, &value, "1 or more");
            }
        }
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            return bad("lr", &self.lr, "a finite number above 0; DeiT: 0.0005");
        }
        let not_negative = [
            ("min-lr", self.min_lr),
            ("weight-decay", self.weight_decay),
            ("clip-grad", self.clip_grad),
            ("mixup", self.mixup),
            ("cutmix", self.cutmix),
        ];
        for (flag, x) in not_negative {
            if !(x >= 0.0 && x.is_finite()) {
                return bad(flag, &x, "a finite number, at least 0");
            }
        }
        if !(self.layer_decay > 0.0 && self.layer_decay <= 1.0) {
            return bad(
                "layer-decay",
                &self.layer_decay,
                "above 0, at most 1 (the same rate everywhere); usual: 0.65 to 0.75",
            );
        }
        for (flag, x) in [("smoothing", self.smoothing), ("drop-path-rate", self.drop_path_rate)] {
            if !(0.0..1.0).contains(&x) {
                return bad(flag, &x, "0 up to, not including, 1; DeiT: 0.1");
            }
        }
        for (flag, x) in [("mixup-prob", self.mixup_prob), ("mixup-switch-prob", self.mixup_switch_prob)] {
            if !(0.0..=1.0).contains(&x) {
                return bad(flag, &x, "a probability, 0 to 1");
            }
        }
        match self.blocks {
            Some(blocks) if blocks > backbone.depth() => {
                Err(Error::new(format!("--blocks {blocks}: this network has {}", backbone.depth()))
                    .hint("0 trains the classifier alone; without --blocks everything is trained"))
            }
            _ => Ok(()),
        }
    }

    /// The values that `flags` name and this recipe does not have, as an error.
    ///
    /// # Errors
    /// There is such a value.
    pub fn check_same(&self, flags: &Flags, out: &str) -> Result<()> {
        let (given, known) = (json!(flags), json!(self));
        let differs = |(key, value): (&String, &Value)| (known[key.as_str()] != *value).then(|| key.clone());
        let Some(key) = given.as_object().and_then(|all| all.iter().find_map(differs)) else { return Ok(()) };
        Err(Error::new(format!(
            "the fine-tuning in {out} cannot go on with --{key} {} (it has {})",
            given[&key], known[&key]
        ))
        .hint("leave the flag out; another recipe needs another --out"))
    }

    /// The memory plan of a step.
    ///
    /// # Errors
    /// The sizes do not fit one another, or are too large.
    pub fn plan(&self, config: &Config, classes: usize, recompute: bool) -> Result<Plan> {
        let backbone = config.table().backbone;
        let plan = finetune::Config {
            backbone,
            classes,
            image: [config.global_size; 2],
            batch: self.batch,
            micro_batch: self.micro_batch,
            drop_path: self.drop_path_rate > 0.0,
            recompute,
            optimizer: Optimizer::AdamW(AdamW::PUBLISHED),
            blocks: self.blocks,
            by_layer: self.layer_decay != 1.0,
            bn_group: (self.bn_group > 0).then_some(self.bn_group),
        };
        Plan::new(plan).map_err(|e| {
            Error::new(e.to_string())
                .hint("--micro-batch divides --batch, and is a multiple of a ResNet's --bn-group; smaller ones take less memory")
        })
    }

    /// The learning rate, with `per_epoch` steps in an epoch.
    pub fn schedule(&self, per_epoch: u64) -> Cosine {
        let base = self.lr * self.batch as f64 / REFERENCE;
        Cosine {
            start: WARMUP_LR.min(base),
            base,
            end: self.min_lr.min(base),
            warmup: self.warmup_epochs.min(self.epochs) * per_epoch,
            steps: self.epochs * per_epoch,
        }
    }

    /// How batches are mixed.
    pub fn mix(&self) -> Mix {
        Mix { mixup: self.mixup, cutmix: self.cutmix, prob: self.mixup_prob, switch: self.mixup_switch_prob }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_deits_for_a_vit_and_plain_for_a_resnet() {
        let vit = Config::tiny().resolve().unwrap();
        let recipe = Flags::default().resolve(&vit, 8192).unwrap();
        assert_eq!((recipe.smoothing, recipe.mixup, recipe.cutmix, recipe.drop_path_rate), (0.1, 0.8, 1.0, 0.1));
        assert_eq!((recipe.mixup_prob, recipe.mixup_switch_prob, recipe.weight_decay), (1.0, 0.5, 0.05));
        assert!(recipe.batch.is_multiple_of(recipe.micro_batch));
        let resnet = Config { arch: "resnet_small".into(), ..Config::published() }.resolve().unwrap();
        let recipe = Flags::default().resolve(&resnet, 8192).unwrap();
        assert_eq!((recipe.smoothing, recipe.mixup, recipe.cutmix, recipe.drop_path_rate), (0.0, 0.0, 0.0, 0.0));
        assert_eq!(recipe.micro_batch, recipe.batch, "a batch norm's group stays together");
        let groups = Flags { bn_group: Some(16), ..Flags::default() }.resolve(&resnet, 1).unwrap();
        assert_eq!(groups.micro_batch, 16);
    }

    #[test]
    fn rates_rise_and_fall_and_never_rise_at_the_end() {
        let vit = Config::tiny().resolve().unwrap();
        let flags = Flags { batch: Some(64), epochs: Some(10), warmup_epochs: Some(2), ..Flags::default() };
        let lr = flags.resolve(&vit, 8192).unwrap().schedule(7);
        assert_eq!((lr.at(0), lr.at(13), lr.at(14)), (1e-6, 5e-4 / 8.0, 5e-4 / 8.0));
        assert!(lr.at(69) > 1e-5 && lr.at(69) < 1.1e-5, "{}", lr.at(69));
        let small = Flags { lr: Some(1e-6), ..flags }.resolve(&vit, 8192).unwrap().schedule(7);
        assert!((0..70).all(|i| small.at(i) <= 1.25e-7 + 1e-20), "--min-lr is above it");
    }

    #[test]
    fn other_values_are_not_gone_on_with() {
        let vit = Config::tiny().resolve().unwrap();
        let recipe = Flags { lr: Some(0.01), ..Flags::default() }.resolve(&vit, 8192).unwrap();
        assert!(recipe.check_same(&Flags { lr: Some(0.01), epochs: Some(100), ..Flags::default() }, "x").is_ok());
        let refused = recipe.check_same(&Flags { blocks: Some(1), ..Flags::default() }, "x").unwrap_err();
        assert!(refused.message.contains("--blocks 1 (it has null)"), "{refused}");
        let back: Recipe = serde_json::from_value(json!(recipe)).unwrap();
        assert_eq!(back, recipe);
    }
}
