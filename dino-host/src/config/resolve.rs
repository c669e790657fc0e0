//! Values that depend on others filled in, and every value checked.

use super::schedule::{OPTIMIZERS, TEACHERS};
use super::{Config, Switch};
use crate::device::MICRO_BATCH_TOKENS;
use crate::error::{Error, Result};
use dino_kernel::model::Vit;
use dino_kernel::model::resnet::MAX_STAGES;

/// The value of `--choose-on` that means a tenth of the training images.
const TRAIN_SPLIT: &str = "train-split";
/// The values of `--arch`.
const ARCHS: &str = "vit_tiny, vit_small, vit_base, resnet18, resnet34, resnet50 or resnet_small";
/// Channels an image may have: hyperspectral cameras stay well below it.
const MOST_CHANNELS: usize = 1024;
/// Iterations after which Sinkhorn-Knopp has long come to rest.
const MOST_ITERATIONS: u32 = 100;

impl Config {
    /// Fills in what depends on other keys and checks every value.
    ///
    /// # Errors
    /// A value is outside its range, or values do not fit one another; the error names the flag.
    pub fn resolve(self) -> Result<Config> {
        self.resolve_for(MICRO_BATCH_TOKENS)
    }

    /// The same where a micro-batch left to us may make up to `most` tokens: what suits a device is a number of its own, never what
    /// happens to be free.
    ///
    /// # Errors
    /// As [`Config::resolve`].
    pub fn resolve_for(mut self, most: usize) -> Result<Config> {
        if self.arch.starts_with("resnet") {
            self.fill_resnet()?
        } else {
            self.fill_vit()?
        }
        self.fill_head()?;
        self.check_shards()?;
        if self.micro_batch == 0 {
            self.micro_batch = self.suitable_micro_batch(most);
        }
        self.fit_normalization()?;
        self.check_training()?;
        self.check_objective()?;
        self.check_model()?;
        self.check_lists()?;
        self.augment().check()?;
        self.plan(true)?;
        Ok(self)
    }

    /// What `--arch` sets of a vision transformer.
    fn fill_vit(&mut self) -> Result<()> {
        let shape = match self.arch.strip_prefix("vit_").or(self.arch.strip_prefix("deit_")) {
            Some("tiny") => Vit::TINY_16,
            Some("small") => Vit::SMALL_16,
            Some("base") => Vit::BASE_16,
            _ => return bad("arch", &self.arch, ARCHS),
        };
        let of_resnets = [
            ("widths", !self.widths.is_empty()),
            ("stage-blocks", !self.stage_blocks.is_empty()),
            ("block-kind", self.block_kind != "auto"),
            ("stem", self.stem != "auto"),
            ("stem-stride", self.stem_stride != 0),
            ("bn-group", self.bn_group != 0 && !self.use_bn_in_head),
        ];
        if let Some((flag, _)) = of_resnets.iter().find(|(_, given)| *given) {
            return Err(Error::new(format!("--{flag} has no meaning with --arch {}", self.arch))
                .hint(format!("leave it out, or --arch resnet50, resnet_small and the like: {ARCHS}")));
        }
        let fill = |key: &mut usize, preset| *key = if *key == 0 { preset } else { *key };
        fill(&mut self.embed_dim, shape.dim);
        fill(&mut self.depth, shape.depth);
        fill(&mut self.heads, shape.heads);
        Ok(())
    }

    /// What `--arch` sets of a residual network, and the width of its features. Keys of vision transformers are not read.
    fn fill_resnet(&mut self) -> Result<()> {
        let torchvision = [64, 128, 256, 512];
        let (widths, blocks, block, stem) = match self.arch.as_str() {
            "resnet18" => (&torchvision[..], &[2, 2, 2, 2][..], "basic", "7x7"),
            "resnet34" => (&torchvision[..], &[3, 4, 6, 3][..], "basic", "7x7"),
            "resnet50" => (&torchvision[..], &[3, 4, 6, 3][..], "bottleneck", "7x7"),
            "resnet_small" => (&[32, 64, 128][..], &[2, 2, 2][..], "basic", "3x3"),
            _ => return bad("arch", &self.arch, ARCHS),
        };
        let fill = |key: &mut Vec<usize>, preset: &[usize]| {
            if key.is_empty() {
                *key = preset.to_vec();
            }
        };
        fill(&mut self.widths, widths);
        fill(&mut self.stage_blocks, blocks);
        for (flag, key, preset, known) in [
            ("block-kind", &mut self.block_kind, block, ["basic", "bottleneck"]),
            ("stem", &mut self.stem, stem, ["7x7", "3x3"]),
        ] {
            if key == "auto" {
                *key = preset.into();
            }
            if !known.contains(&key.as_str()) {
                return bad(flag, key, &format!("auto, {}", known.join(" or ")));
            }
        }
        if self.stem_stride == 0 {
            self.stem_stride = if self.stem == "7x7" { 2 } else { 1 };
        }
        if self.widths.len() != self.stage_blocks.len() || self.widths.len() > MAX_STAGES {
            let (widths, blocks) = (self.widths.len(), self.stage_blocks.len());
            return Err(Error::new(format!("--widths names {widths} stages and --stage-blocks {blocks}"))
                .hint(format!("one number a stage each, 1 to {MAX_STAGES} stages")));
        }
        self.embed_dim = self.resnet().map_or(0, |resnet| resnet.dim());
        Ok(())
    }

    /// What the head leaves to the bottleneck, and the predictor's width.
    fn fill_head(&mut self) -> Result<()> {
        if !["gelu", "relu"].contains(&self.activation.as_str()) {
            return bad("activation", &self.activation, "gelu or relu");
        }
        for switch in [&mut self.l2_norm, &mut self.weight_norm] {
            *switch = Switch::Set(switch.or(self.bottleneck > 0));
        }
        if self.weight_norm == Switch::Set(false) && !self.norm_last_layer {
            return Err(Error::new(
                "--norm-last-layer false trains gains, and prototypes without weight norm have none",
            )
            .hint("leave it out, or --weight-norm true"));
        }
        if self.predictor && self.predictor_hidden == 0 {
            self.predictor_hidden = self.hidden.saturating_mul(2);
        }
        Ok(())
    }

    /// The largest divisor of a shard of the batch whose crops make up to `most` tokens; with batch norms one that cuts none of their
    /// groups.
    fn suitable_micro_batch(&self, most: usize) -> usize {
        let side = |pixels: usize| match self.resnet() {
            // As many pixels as a ViT/16 makes a token of.
            Some(_) => pixels.saturating_mul(pixels).div_ceil(256),
            None => (pixels / self.patch_size.max(1)).saturating_pow(2).saturating_add(1),
        };
        let local = self.local_crops_number.saturating_mul(side(self.local_size));
        let tokens = side(self.global_size).saturating_mul(2).saturating_add(local).max(1);
        if self.resnet().is_some() || self.use_bn_in_head {
            let group = if self.bn_group == 0 { self.batch } else { self.bn_group }.max(1);
            if !self.batch.is_multiple_of(group) {
                return self.batch; // refused by the plan, which names the group
            }
            let shard = self.batch / self.shards.max(1);
            if group == self.batch {
                return shard; // the shards of the full batch go through at once
            }
            let most = (most / tokens / group).clamp(1, (shard / group).max(1));
            let groups = (1..=most).rev().find(|n| shard.is_multiple_of(n * group)).unwrap_or(1);
            return groups * group;
        }
        let shard = self.batch / self.shards.max(1);
        let most = (most / tokens).clamp(1, shard.max(1));
        (1..=most).rev().find(|m| shard.is_multiple_of(*m)).unwrap_or(1)
    }

    /// Checks that the batch can be cut into its shards.
    fn check_shards(&self) -> Result<()> {
        let Config { batch, shards, .. } = *self;
        if shards == 0 {
            return bad("shards", &shards, "at least 1");
        }
        if batch.is_multiple_of(shards) {
            return Ok(());
        }
        let near = [batch / shards * shards, (batch / shards + 1).saturating_mul(shards)];
        let fits: Vec<String> = near.iter().filter(|n| **n > 0).map(usize::to_string).collect();
        Err(Error::new(format!("a --batch of {batch} cannot be cut into {shards} equal shards")).hint(format!(
            "--batch {} can; a launcher's processes are as many shards unless --shards names another number",
            fits.join(" or ")
        )))
    }

    /// Checks the channels; the published mean and deviation, which are those of colors, become their average where there are none.
    fn fit_normalization(&mut self) -> Result<()> {
        if self.channels == 0 || self.channels > MOST_CHANNELS {
            return bad("channels", &self.channels, &format!("1 to {MOST_CHANNELS}: 3 for color, 1 for gray"));
        }
        // The three published numbers mean colors: of any other channels each has their average.
        if self.channels != 3 {
            let published = Config::published();
            for (values, of) in [(&mut self.mean, published.mean), (&mut self.std, published.std)] {
                if *values == of || (values.len() == 3 && values.iter().all(|x| *x == values[0])) {
                    let average = (1e3 * values.iter().sum::<f64>() / 3.0).round() / 1e3;
                    *values = vec![average; self.channels];
                }
            }
        }
        Ok(())
    }

    /// Optimizer, teacher, schedules, initial weights.
    fn check_training(&self) -> Result<()> {
        if !OPTIMIZERS.contains(&self.optimizer.as_str()) {
            return bad("optimizer", &self.optimizer, &OPTIMIZERS.join(", "));
        }
        if !TEACHERS.contains(&self.teacher.as_str()) {
            return bad("teacher", &self.teacher, &TEACHERS.join(", "));
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
            ("momentum-teacher-end", self.momentum_teacher_end),
            ("center-momentum", self.center_momentum),
            ("beta1", self.beta1),
            ("beta2", self.beta2),
            ("sgd-momentum", self.sgd_momentum),
        ];
        for (flag, x) in unit {
            let of_state = ["momentum-teacher", "momentum-teacher-end", "center-momentum"].contains(&flag);
            if !(0.0..=1.0).contains(&x) || (!of_state && x == 1.0) {
                return bad(flag, &x, "a momentum is between 0 and 1");
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
        if !(self.lars_eta > 0.0 && self.lars_eta <= 1.0) {
            return bad("lars-eta", &self.lars_eta, "above 0, at most 1; published: 0.001");
        }
        if !(self.init_std > 0.0 && self.init_std <= 1.0) {
            return bad("init-std", &self.init_std, "above 0, at most 1; published: 0.02");
        }
        if !(0.0..1.0).contains(&self.drop_path_rate) {
            return bad("drop-path-rate", &self.drop_path_rate, "a probability below 1");
        }
        if !["warn", "stop", "rollback"].contains(&self.on_collapse.as_str()) {
            return bad("on-collapse", &self.on_collapse, "warn, stop or rollback");
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
        Ok(())
    }

    /// Targets and loss. What another kind of targets would use is refused, rather than left unused.
    fn check_objective(&mut self) -> Result<()> {
        if self.targets == "centre" {
            self.targets = "center".into();
        }
        let (targets, published) = (self.targets.as_str(), Config::published());
        if !["center", "sinkhorn-knopp", "softmax-batch", "none"].contains(&targets) {
            return bad("targets", &self.targets, "center, sinkhorn-knopp, softmax-batch or none");
        }
        if !["cross-entropy", "mse"].contains(&self.loss.as_str()) {
            return bad("loss", &self.loss, "cross-entropy or mse");
        }
        if !(1..=MOST_ITERATIONS).contains(&self.sinkhorn_iterations) {
            return bad("sinkhorn-iterations", &self.sinkhorn_iterations, "1 to 100; published: 3");
        }
        let unused = |flag: &str, value: &dyn std::fmt::Display, of: &str| {
            Err(Error::new(format!("--{flag} {value} has no meaning with --targets {targets}"))
                .hint(format!("--targets {of}, or leave --{flag} out")))
        };
        if targets != "center" && self.center_momentum != published.center_momentum {
            return unused("center-momentum", &self.center_momentum, "center");
        }
        if targets != "sinkhorn-knopp" && self.sinkhorn_iterations != published.sinkhorn_iterations {
            return unused("sinkhorn-iterations", &self.sinkhorn_iterations, "sinkhorn-knopp");
        }
        Ok(())
    }

    /// Keys of the model and of the evaluation.
    fn check_model(&self) -> Result<()> {
        if !(self.mlp_ratio > 0.0 && self.mlp_ratio.is_finite()) {
            return bad("mlp-ratio", &self.mlp_ratio, "above 0; published: 4");
        }
        if !["published", "size"].contains(&self.position_resize.as_str()) {
            return bad("position-resize", &self.position_resize, "published or size");
        }
        if self.eval_view != "auto" && self.eval_view().is_none() {
            return bad("eval-view", &self.eval_view, "auto, resize-crop or whole");
        }
        if !["test", TRAIN_SPLIT].contains(&self.choose_on.as_str()) {
            return bad("choose-on", &self.choose_on, "test or train-split");
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return bad("norm-eps", &self.norm_eps, "above 0 and below 1; published: 1e-6");
        }
        Ok(())
    }

    /// How many numbers a list has.
    fn check_lists(&self) -> Result<()> {
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
        Ok(())
    }
}

/// The refusal of a value.
fn bad<T>(flag: &str, value: &dyn std::fmt::Debug, fits: &str) -> Result<T> {
    Err(Error::new(format!("--{flag} {value:?} makes no sense")).hint(fits.to_string()))
}
