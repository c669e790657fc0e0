//! `--on-collapse`: a run whose teacher's output has become the same for every image ends, or goes back to where it was sound.
//!
//! It goes back to the last numbered checkpoint of an epoch that ended well, and draws another order of images and other crops from there on
//! (`--reseed`), for with the same ones it would collapse again. Both depend on the steps alone: a run that was interrupted goes back to the
//! same place as one that was not.

use super::collapse::{Health, PATIENCE};
use super::verdict::Verdict;
use super::{CHECKPOINT, LOG, Run, Trainer};
use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use serde_json::{Value, json};
use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// The value of `--reseed` from which on a run does not go back any more.
const MOST: u64 = 5;

/// Why a run went back.
#[derive(Clone, Debug)]
pub(super) struct Back {
    /// Steps that were done when the collapse was seen.
    step: u64,
    health: Health,
    /// The epoch whose checkpoint it goes on from, counted from 0.
    epoch: u64,
}

/// The file of the checkpoint of an epoch, counted from 0.
pub(super) fn numbered(out: &Path, epoch: u64) -> PathBuf {
    out.join(format!("checkpoint{epoch:04}.safetensors"))
}

/// The last epoch, counted from 0, that ended well before a collapse that was seen after `step` steps, and whose checkpoint is there.
///
/// # Errors
/// The log cannot be read.
fn last_sound(out: &Path, step: u64) -> Result<Option<u64>> {
    // A suspicion holds for so many steps before it is a finding, and rests on means over as many.
    let latest = step.saturating_sub(2 * u64::from(PATIENCE));
    let path = out.join(LOG);
    let cannot = |e| Error::new(format!("cannot read {}: {e}", path.display()));
    let mut found = None;
    for line in BufReader::new(File::open(&path).map_err(cannot)?).lines() {
        let Ok(row) = serde_json::from_str::<Value>(&line.map_err(cannot)?) else { continue };
        let sound = row["kind"] == "epoch" && row["verdict"].as_str().is_none_or(Verdict::is_sound);
        let (Some(epoch), true) = (row["epoch"].as_u64(), sound) else { continue };
        if row["step"].as_u64().is_some_and(|last| last < latest) && numbered(out, epoch).is_file() {
            found = Some(epoch);
        }
    }
    Ok(found)
}

impl<'a, D: Device> Run<'a, D> {
    /// The run as it goes on after it went back.
    pub(super) fn reseeded(&self) -> Run<'a, D> {
        let reseed = self.config.reseed + 1;
        Run {
            config: Config { reseed, ..self.config.clone() },
            out: self.out.clone(),
            resume: true,
            data: self.data.clone(),
            start: Cell::new(None),
            command: self.command.clone(),
            screen: self.screen.clone(),
            group: self.group.clone(),
            ..*self
        }
    }
}

impl<D: Device> Trainer<'_, D> {
    /// Whether the run is not to go on as it does.
    pub(super) fn has_collapsed(&self) -> bool {
        self.run.config.on_collapse != "warn" && self.detector.health() != Health::Healthy
    }

    /// What becomes of a run that has collapsed: it goes back, to a checkpoint that is in its place already, or it ends.
    ///
    /// # Errors
    /// It is to stop, there is nothing to go back to, it went back too often, or a file cannot be read or written. What is saved stays as
    /// it is.
    pub(super) fn end_collapsed(&mut self) -> Result<Back> {
        // As it was found, not as far as the device has come since.
        let (run, step, health) = (self.run, self.detector.changed(), self.detector.health());
        let remedy = health.remedy(self.plan.config.objective.targets);
        self.row(json!({"kind": "collapse", "step": step - 1, "health": health.name()}));
        let (out, meaning) = (&run.out, health.meaning());
        let sound = run.group.from_first(|| last_sound(out, step))?;
        let stop = |why: &str| {
            let again = match sound {
                Some(epoch) => {
                    format!(
                        "cp {} {out}/{CHECKPOINT}, then train --resume --out {out}",
                        numbered(out, epoch).display(),
                        out = out.display()
                    )
                }
                None => "begin anew in another --out".into(),
            };
            let message = format!("the run has collapsed after step {step}: {meaning}{why}");
            Err(self.lost(Error::new(message).hint(format!("{remedy}: {again}, with that changed"))))
        };
        if run.config.on_collapse == "stop" {
            return stop("");
        }
        if run.config.reseed >= MOST {
            return stop(&format!("; --reseed is {} already, so it does not go back once more", run.config.reseed));
        }
        let Some(epoch) = sound else {
            return stop("; it has no numbered checkpoint from before (--save-every 1 keeps one an epoch)");
        };
        run.group.from_first(|| {
            let from = numbered(out, epoch);
            let cannot = |e: std::io::Error| Error::new(format!("cannot read {}: {e}", from.display()));
            let mut file = File::open(&from).map_err(cannot)?;
            write_atomically(&out.join(CHECKPOINT), |to| std::io::copy(&mut file, to).map(drop))
        })?;
        self.screen.print(&format!(
            "back to the end of epoch {}, after which it was sound, and on from there with --reseed {}",
            epoch + 1,
            run.config.reseed + 1
        ));
        Ok(Back { step, health, epoch })
    }

    /// Records that the run went back, and makes all its files those of where it is now.
    ///
    /// # Errors
    /// They cannot be written.
    pub(super) fn went_back(&mut self, why: &Back) -> Result<()> {
        self.row(json!({
            "kind": "rollback", "step": self.progress.step - 1, "epoch": why.epoch, "from_step": why.step - 1,
            "health": why.health.name(), "reseed": self.run.config.reseed,
        }));
        self.save()
    }
}
