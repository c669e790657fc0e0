//! What a run that goes on is: as it was recorded, and what may change from here on.

use super::{CHECKPOINT, MANIFEST};
use crate::config::{Config, Flags};
use crate::error::{Error, Result};
use crate::weights::checkpoint::{Checkpoint, Progress};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Keys that change no number of the training: how often and how it is evaluated.
const FREE: [&str; 5] = ["on-collapse", "save-every", "knn-every", "knn-images", "eval-view"];

/// Keys that every step reads anew. They hold from the step on at which they change.
const ANEW: [&str; 24] = [
    "epochs",
    "reseed",
    "lr",
    "warmup-epochs",
    "min-lr",
    "weight-decay",
    "weight-decay-end",
    "clip-grad",
    "teacher",
    "momentum-teacher",
    "momentum-teacher-end",
    "warmup-teacher-temp",
    "teacher-temp",
    "warmup-teacher-temp-epochs",
    "student-temp",
    "center-momentum",
    "sinkhorn-iterations",
    "freeze-last-layer",
    "drop-path-rate",
    "beta1",
    "beta2",
    "adam-eps",
    "sgd-momentum",
    "lars-eta",
];

/// Keys without which the weights do not fit.
const SHAPE: [&str; 24] = [
    "arch",
    "widths",
    "stage-blocks",
    "block-kind",
    "stem",
    "stem-stride",
    "patch-size",
    "embed-dim",
    "depth",
    "heads",
    "mlp-ratio",
    "position-resize",
    "out-dim",
    "head-layers",
    "hidden",
    "bottleneck",
    "activation",
    "use-bn-in-head",
    "l2-norm",
    "weight-norm",
    "norm-last-layer",
    "predictor",
    "predictor-hidden",
    "channels",
];

/// A folder's run as it was recorded.
pub struct Recorded {
    out: PathBuf,
    /// The checkpoint's.
    pub config: Config,
    /// The checkpoint's.
    pub progress: Progress,
    /// `run.json`, null where it cannot be read.
    manifest: Value,
}

/// A key with another value than before.
#[derive(Debug, PartialEq)]
pub struct Change {
    pub key: String,
    pub from: Value,
    pub to: Value,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "--{} {} instead of {}", self.key, self.to, self.from)
    }
}

/// A number of epochs as text.
pub fn epochs(count: u64) -> String {
    if count == 1 { "1 epoch".into() } else { format!("{count} epochs") }
}

/// The keys whose values differ.
fn differences(before: &Config, after: &Config) -> Vec<Change> {
    let (before, after) = (json!(before), json!(after));
    let keys = after.as_object().into_iter().flatten();
    let differ = keys.filter(|(key, to)| before[key.as_str()] != **to);
    differ.map(|(key, to)| Change { key: key.clone(), from: before[key.as_str()].clone(), to: to.clone() }).collect()
}

impl Recorded {
    /// Reads the folder of a run.
    ///
    /// # Errors
    /// There is no checkpoint, or it cannot be read. A `run.json` that cannot be read is no error.
    pub fn read(out: &Path) -> Result<Recorded> {
        let path = out.join(CHECKPOINT);
        if !path.exists() {
            return Err(Error::new(format!("there is no run in {}: it has no {CHECKPOINT}", out.display()))
                .hint("--resume goes on from a folder that `train --out` has written; leave it out to start anew"));
        }
        let checkpoint = Checkpoint::open(&path)?;
        if checkpoint.recorded.contains_key("finetune") {
            return Err(Error::new(format!("{} holds a fine-tuning, not a run of `train`", out.display()))
                .hint(format!("finetune --resume --out {}", out.display())));
        }
        let Checkpoint { config, progress, .. } = checkpoint;
        let text = std::fs::read_to_string(out.join(MANIFEST)).unwrap_or_default();
        Ok(Recorded { out: out.into(), config, progress, manifest: serde_json::from_str(&text).unwrap_or_default() })
    }

    /// What the run was trained on.
    ///
    /// # Errors
    /// `run.json` does not name it.
    pub fn data(&self) -> Result<String> {
        self.manifest["data"].as_str().map(str::to_owned).ok_or_else(|| {
            let path = self.out.join(MANIFEST);
            Error::new(format!("{} does not state what the run was trained on", path.display()))
                .hint("name the data with --data")
        })
    }

    /// Steps of an epoch so far, if that is recorded.
    fn per_epoch(&self) -> Option<u64> {
        let images = self.manifest["train"]["images"].as_u64().map(|n| n / self.config.batch as u64);
        self.progress.moved.map(|moved| moved.per_epoch).or(images).filter(|n| *n > 0)
    }

    /// Whether there is nothing left to do for a run of so many epochs.
    pub fn is_finished(&self, epochs: u64) -> bool {
        self.per_epoch().is_some_and(|per_epoch| {
            self.progress.position() == epochs.saturating_mul(per_epoch) && !self.progress.epoch_is_open(per_epoch)
        })
    }

    /// The configuration to go on with: the run's, with the values of `named` where they may change.
    ///
    /// # Errors
    /// A key that may not change would, the run is beyond the new number of epochs, or `freeze-last-layer` would change although the
    /// run is beyond the old or the new one.
    pub fn change(&self, named: &Flags) -> Result<(Config, Vec<Change>)> {
        let mut config = self.config.clone();
        config.set(named);
        let changes = differences(&self.config, &config);
        for change in &changes {
            let key = change.key.as_str();
            if !FREE.contains(&key) && !ANEW.contains(&key) {
                let hint = if SHAPE.contains(&key) {
                    "leave the flag out; other networks need a new run in another --out".into()
                } else {
                    let weights = self.out.join(CHECKPOINT);
                    let weights = weights.display();
                    format!(
                        "leave the flag out, or start a new run from these weights: --init-from {weights} in another --out"
                    )
                };
                let (to, from) = (&change.to, &change.from);
                let message =
                    format!("the run in {} cannot go on with --{key} {to} (the run has {from})", self.out.display());
                return Err(Error::new(message).hint(hint));
            }
        }
        self.check_epochs(&config)?;
        self.check_frozen(&config)?;
        Ok((config, changes))
    }

    /// Refuses an end that the run has passed.
    fn check_epochs(&self, config: &Config) -> Result<()> {
        let Some(per_epoch) = self.per_epoch() else { return Ok(()) };
        let position = self.progress.position();
        if position <= config.epochs.saturating_mul(per_epoch) {
            return Ok(());
        }
        let (done, out) = (position / per_epoch, self.out.display());
        let under_way = if position.is_multiple_of(per_epoch) { "" } else { ", and another is under way" };
        Err(Error::new(format!(
            "--epochs {} is less than the run in {out} has done: {}{under_way}",
            config.epochs,
            epochs(done)
        ))
        .hint(format!("--epochs {} or more", position.div_ceil(per_epoch))))
    }

    /// The optimizer's step count of the prototypes is that of the steps since they were let go, so that may not be rewritten.
    fn check_frozen(&self, config: &Config) -> Result<()> {
        let (was, is) = (self.config.freeze_last_layer, config.freeze_last_layer);
        let Some(per_epoch) = self.per_epoch().filter(|_| was != is) else { return Ok(()) };
        let position = self.progress.position();
        if position <= was.min(is).saturating_mul(per_epoch) {
            return Ok(());
        }
        let error = |what| {
            Error::new(format!(
                "the run in {} cannot go on with --freeze-last-layer {is} (the run has {was}): {what}",
                self.out.display()
            ))
        };
        Err(if position > was.saturating_mul(per_epoch) {
            error("its prototypes move already").hint("leave the flag out")
        } else {
            error("so many epochs are over")
                .hint(format!("--freeze-last-layer {} or more", position.div_ceil(per_epoch)))
        })
    }

    /// What `run.json` held when the run was at this step: changes that were recorded for later steps (it went on from an earlier
    /// checkpoint since) are taken back.
    pub fn into_known(self) -> Known {
        let Recorded { manifest, progress, config, .. } = self;
        let recorded: Vec<Value> = manifest["changes"].as_array().cloned().unwrap_or_default();
        let (kept, undone): (Vec<Value>, Vec<Value>) =
            recorded.into_iter().partition(|change| change["step"].as_u64().is_none_or(|step| step <= progress.step));
        // A configuration that cannot be read (of another version) is taken for the checkpoint's.
        let mut before = json!(serde_json::from_value(manifest["config"].clone()).unwrap_or(config));
        let (mut train, mut test) = (manifest["train"].clone(), manifest["test"].clone());
        for change in undone.iter().rev() {
            match change["key"].as_str() {
                Some("train") => train = change["from"].clone(),
                Some("test") => test = change["from"].clone(),
                Some(key) if before.get(key).is_some() => before[key] = change["from"].clone(),
                _ => (),
            }
        }
        // A key that it is older than is what other keys make of it.
        let config = serde_json::from_value::<Config>(before).ok().and_then(|config| config.resolve().ok());
        Known { manifest, config, train, test, changes: kept }
    }
}

/// What `run.json` records of a run that goes on; all null and empty for a new one.
#[derive(Default)]
pub struct Known {
    pub manifest: Value,
    config: Option<Config>,
    /// Its training part: `images`, `classes`, `fingerprint`.
    pub train: Value,
    test: Value,
    changes: Vec<Value>,
}

impl Known {
    /// The list for `run.json` of everything that has changed since the run began, with what changes now, before the step that is
    /// `step` steps after the first; and what changes now, as text.
    pub fn changes(&self, step: u64, config: &Config, train: &Value, test: &Value) -> (Vec<Value>, Vec<String>) {
        let (mut all, mut notes) = (self.changes.clone(), Vec::new());
        for Change { key, from, to } in self.config.iter().flat_map(|before| differences(before, config)) {
            all.push(json!({"step": step, "key": key, "from": from, "to": to}));
        }
        for (key, from, to) in [("train", &self.train, train), ("test", &self.test, test)] {
            let known = from["fingerprint"].as_str();
            if known.is_some_and(|known| to["fingerprint"] != known) {
                let short = |set: &Value| json!({"images": set["images"], "fingerprint": set["fingerprint"]});
                all.push(json!({"step": step, "key": key, "from": short(from), "to": short(to)}));
                let scores = if key == "test" { "; its scores do not compare with those before" } else { "" };
                notes.push(format!(
                    "from step {step} on the {key} part is another: {} images, before {}{scores}",
                    to["images"], from["images"]
                ));
            }
        }
        (all, notes)
    }
}

/// The progress of a run in a set that has `per_epoch` steps now and had `before`: complete epochs stay complete, and of the one under
/// way the same part counts as done.
pub fn moved(progress: Progress, before: u64, per_epoch: u64) -> Progress {
    let position = progress.position();
    let (epochs, part) = (position / before, position % before);
    let (part, of) = ((part as u128 * per_epoch as u128 / before as u128) as u64, part);
    // The mean loss of the epoch so far stays what it is.
    let epoch_loss = if of == 0 { progress.epoch_loss } else { progress.epoch_loss * part as f64 / of as f64 };
    progress.at(epochs.saturating_mul(per_epoch).saturating_add(part), per_epoch, epoch_loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(step: u64, epoch_loss: f64, manifest: Value) -> Recorded {
        let config = Config { freeze_last_layer: 2, epochs: 5, batch: 8, ..Config::tiny() }.resolve().unwrap();
        let progress = Progress { step, epoch_loss, moved: None };
        Recorded { out: "runs/1".into(), config, progress, manifest }
    }

    #[test]
    fn every_key_is_of_one_kind_and_there() {
        let config = json!(Config::published());
        let mut all: Vec<&str> = FREE.iter().chain(&ANEW).chain(&SHAPE).copied().collect();
        all.sort();
        assert!(all.windows(2).all(|w| w[0] != w[1]));
        for key in all {
            assert!(config.get(key).is_some() || key == "knn-images", "{key}");
        }
    }

    #[test]
    fn an_end_that_lies_behind_is_refused() {
        let images = json!({"train": {"images": 80}});
        let to = |step, epochs| {
            recorded(step, 0.0, images.clone()).change(&Flags { epochs: Some(epochs), ..Flags::default() }).map(|_| ())
        };
        assert!(to(20, 2).is_ok() && to(20, 7).is_ok());
        let refused = to(20, 1).unwrap_err();
        assert!(refused.message.contains("2 epochs") && refused.hint.unwrap() == "--epochs 2 or more");
        let refused = to(21, 2).unwrap_err();
        assert!(refused.message.contains("another is under way") && refused.hint.unwrap() == "--epochs 3 or more");
        assert!(recorded(50, 0.0, images.clone()).is_finished(5));
        assert!(!recorded(50, 1.0, images.clone()).is_finished(5), "its last epoch is not evaluated yet");
        assert!(!recorded(50, 0.0, images.clone()).is_finished(6) && !recorded(50, 0.0, Value::Null).is_finished(5));
    }

    #[test]
    fn prototypes_are_not_frozen_anew() {
        let to = |step, freeze| {
            let run = recorded(step, 0.0, json!({"train": {"images": 80}}));
            run.change(&Flags { freeze_last_layer: Some(freeze), ..Flags::default() }).map(|_| ())
        };
        assert!(to(9, 1).is_ok() && to(10, 4).is_ok() && to(10, 1).is_ok() && to(40, 2).is_ok());
        assert!(to(11, 1).unwrap_err().hint.unwrap().contains("--freeze-last-layer 2 or more"));
        assert!(to(21, 3).unwrap_err().message.contains("move already"));
    }

    #[test]
    fn a_changed_set_keeps_the_place_in_the_schedule() {
        let progress = Progress { step: 25, epoch_loss: 10.0, moved: None };
        let more = moved(progress, 10, 20);
        assert_eq!((more.step, more.position(), more.epoch_loss), (25, 50, 20.0));
        let less = moved(more, 20, 3);
        assert_eq!((less.step, less.position()), (25, 7));
        assert_eq!(less.epoch_loss, 2.0);
        // Between two epochs, the first of which is not evaluated yet.
        let between = moved(Progress { step: 20, epoch_loss: 5.0, moved: None }, 10, 7);
        assert!(between.epoch_is_open(7) && between.position() == 14);
    }

    #[test]
    fn changes_of_a_dropped_future_are_taken_back() {
        let mut later = recorded(30, 0.0, Value::Null).config;
        later.lr = 3.0;
        let set = |mark: &str| json!({"images": 80, "fingerprint": mark});
        let manifest = json!({
            "config": later, "train": set("b"), "test": set("t"),
            "changes": [
                {"step": 4, "key": "lr", "from": 1.0, "to": 2.0},
                {"step": 20, "key": "lr", "from": 2.0, "to": 3.0},
                {"step": 20, "key": "train", "from": set("a"), "to": set("b")},
            ],
        });
        let mut at_10 = recorded(10, 0.0, manifest.clone()).into_known();
        assert_eq!((at_10.changes.len(), at_10.config.take().unwrap().lr), (1, 2.0));
        assert_eq!(at_10.train, set("a"));
        let at_30 = recorded(30, 0.0, manifest).into_known();
        let now = Config { lr: 4.0, ..later };
        let (all, notes) = at_30.changes(30, &now, &set("b"), &set("u"));
        assert_eq!(all[3], json!({"step": 30, "key": "lr", "from": 3.0, "to": 4.0}));
        assert_eq!((all.len(), &all[4]["key"], notes.len()), (5, &json!("test"), 1));
    }
}
