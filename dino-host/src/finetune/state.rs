//! What a fine-tuning keeps on the disk: the full state, and the model alone.
//!
//! Both are safetensors under the published names, the classifier's beside the backbone's (`head.weight` or `fc.weight`), so every command
//! that reads weights reads either; the state also has `optimizer.` + the name of an array + the same names. Headers hold the backbone's
//! configuration, the recipe, the names of the classes and the progress.

use super::Recipe;
use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::weights::checkpoint::{self, Checkpoint, Progress, Stored, Unsaved};
use crate::weights::classifier_record;
use dino_kernel::finetune::Plan;
use dino_kernel::mem::{Layout, Pool};
use dino_kernel::params::ParamTable;
use std::collections::BTreeMap;
use std::path::Path;

/// The entry of the header that holds the recipe.
const RECIPE: &str = "finetune";
/// That of the names of classes.
const CLASSES: &str = crate::weights::CLASSIFIER_RECORD;

/// Parameters, then what a network keeps beside them.
fn model(p: &Plan) -> Vec<Stored> {
    let mut all = Vec::new();
    p.table.visit(&mut |spec| {
        let (key, shape) = (spec.name.to_string(), spec.shape().to_vec());
        all.push(Stored { key, shape, pool: Pool::Weights, at: spec.at.range() });
    });
    p.table.backbone.buffers(&mut Layout::new(), &mut |b| {
        let at = p.running.part(b.at.0.at, b.at.len()).range();
        all.push(Stored { key: b.name.to_string(), shape: vec![b.at.len()], pool: Pool::State, at });
    });
    all
}

/// The model, and the optimizer's arrays of state.
fn full(p: &Plan) -> Vec<Stored> {
    let (mut all, len) = (model(p), p.table.len());
    let parameters: Vec<Stored> = all.iter().filter(|stored| stored.pool == Pool::Weights).cloned().collect();
    for (i, name) in p.config.optimizer.slots().iter().enumerate() {
        all.extend(parameters.iter().cloned().map(|stored| Stored {
            key: format!("optimizer.{name}.{}", stored.key),
            pool: Pool::Slots,
            at: i * len + stored.at.start..i * len + stored.at.end,
            ..stored
        }));
    }
    all
}

/// What is recorded of a run.
#[derive(Clone, Copy)]
pub struct About<'a> {
    pub config: &'a Config,
    pub recipe: &'a Recipe,
    pub classes: &'a [String],
}

fn metadata(about: &About, progress: Progress) -> BTreeMap<&'static str, String> {
    let mut entries = checkpoint::metadata(about.config, progress);
    entries.insert(RECIPE, serde_json::to_string(about.recipe).expect("a recipe is plain data"));
    entries.insert(CLASSES, classifier_record(about.classes));
    entries
}

/// Writes the full state and the model.
///
/// # Errors
/// A number is not finite, the device is lost, or a file cannot be written; the files that were there stay.
pub fn save<D: Device>(
    [state_file, model_file]: [&Path; 2],
    o: &mut D,
    p: &Plan,
    about: &About,
    progress: Progress,
) -> Result<(), Unsaved> {
    for (path, stored) in [(state_file, full(p)), (model_file, model(p))] {
        let tensors = checkpoint::downloaded(o, stored);
        o.sync()?; // what a lost device gave must not replace a good file
        checkpoint::check_finite(&tensors)?;
        checkpoint::write(path, tensors, metadata(about, progress))?;
    }
    Ok(())
}

/// An open state of a fine-tuning.
pub struct Opened {
    checkpoint: Checkpoint,
    /// The recipe.
    pub recipe: Recipe,
    /// Names of the classes.
    pub classes: Vec<String>,
}

impl Opened {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// The file cannot be read, or is not the state of a fine-tuning.
    pub fn open(path: &Path) -> Result<Opened> {
        let checkpoint = Checkpoint::open(path)?;
        let bad = |what: &str| Error::new(format!("{} {what}", path.display()));
        let Some(recipe) = checkpoint.recorded.get(RECIPE) else {
            return Err(bad("is the checkpoint of a run of `train`, not of a fine-tuning").hint(
                "`train --resume` goes on with that; `finetune --checkpoint FILE` fine-tunes it into another --out",
            ));
        };
        let recipe =
            serde_json::from_str(recipe).map_err(|e| bad(&format!("has a recipe that cannot be read: {e}")))?;
        let text = checkpoint.recorded.get(CLASSES).map_or("", String::as_str);
        let classes: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        let classes: Vec<String> = serde_json::from_value(classes["classes"].clone()).unwrap_or_default();
        if classes.len() < 2 {
            return Err(bad("does not name its classes").hint("it was changed after the fine-tuning; start anew"));
        }
        Ok(Opened { checkpoint, recipe, classes })
    }

    /// The backbone's configuration.
    pub fn config(&self) -> &Config {
        &self.checkpoint.config
    }

    /// How far the run was.
    pub fn progress(&self) -> Progress {
        self.checkpoint.progress
    }

    /// Fills a device. Nothing is written before every tensor has been found valid.
    ///
    /// # Errors
    /// A tensor is missing or misshapen, or a number is not finite.
    pub fn load<D: Device>(&self, o: &mut D, p: &Plan) -> Result<()> {
        let read = |s: Stored| Ok((s.pool, s.at.start, self.checkpoint.tensor(&s.key, &s.shape)?));
        let all: Vec<(Pool, usize, Vec<f32>)> = full(p).into_iter().map(read).collect::<Result<_>>()?;
        all.iter().for_each(|(pool, at, values)| o.upload(*pool, *at, values));
        Ok(())
    }
}

/// Whether a checkpoint is the state of a fine-tuning.
pub fn is_finetune(checkpoint: &Checkpoint) -> bool {
    checkpoint.recorded.contains_key(RECIPE)
}
