//! The end of an epoch: evaluate, draw, log, save.

use super::Trainer;
use crate::config::Config;
use crate::data::{Splits, Unreadable, only_class};
use crate::device::Device;
use crate::dist::Group;
use crate::error::Result;
use crate::eval::knn;
use crate::eval::sampling::draw;
use crate::inference::features::{Extractor, view_of};
use crate::io::json::number;
use crate::train::collapse::effective_rank;
use crate::viz::gallery;
use crate::viz::neighbors::Members;
use crate::weights::checkpoint::{self, Progress, Unsaved};
use dino_kernel::mem::Pool;
use dino_kernel::objective::Divergence;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// The k of the k-NN vote during training, and its temperature: the published ones.
const KNN: (usize, f64) = (20, knn::TEMPERATURE);

impl<D: Device> Trainer<'_, D> {
    /// The backbone of the student (at 0) or the teacher (at the table's length), as the device has it now: parameters, then buffers.
    fn backbone(&mut self, at: usize) -> Result<Vec<f32>> {
        let table = &self.plan.table;
        let running = if at == 0 { self.plan.student.running } else { self.plan.teacher.running };
        let mut weights = vec![0.0; table.backbone_numbers()];
        let (parameters, buffers) = weights.split_at_mut(table.backbone_len());
        self.device.download(Pool::Weights, at, parameters);
        if !buffers.is_empty() {
            self.device.download(Pool::State, running.0.at, buffers);
        }
        self.device.sync().map_err(|e| self.lost(e))?;
        Ok(weights)
    }

    /// Draws what the teacher attends to. A run does not end over a figure.
    pub(super) fn draw(&mut self, epoch: Option<u64>) -> Result<()> {
        if !self.run.group.is_first() {
            return Ok(());
        }
        let teacher = self.backbone(self.plan.table.len())?;
        let run = self.run;
        if let Err(e) = gallery::draw::<D>(run.device, &run.config, &teacher, run.splits, epoch, &run.out) {
            self.screen.print(&format!("note: no attention is drawn: {e}"));
        }
        Ok(())
    }

    /// Whether the epoch that ends is evaluated by k-NN.
    fn is_evaluated(&self, epoch: u64) -> bool {
        let config = &self.run.config;
        config.knn_every > 0 && (epoch + 1 == config.epochs || (epoch + 1).is_multiple_of(config.knn_every))
    }

    /// How long an evaluation may take where it is not known yet: a step has four times as much to do for an image.
    pub(super) fn evaluation_guess(&self) -> Duration {
        let epoch = (self.progress.position() / self.recipe.per_epoch).saturating_sub(1);
        let passes = u32::try_from(self.recipe.per_epoch / 4).unwrap_or(u32::MAX);
        if self.is_evaluated(epoch) { self.clock.step().saturating_mul(passes) } else { Duration::ZERO }
    }

    /// Ends the epoch whose last step is done. An error leaves it open: it is ended again when the run goes on.
    pub(super) fn end_epoch(&mut self) -> Result<()> {
        let (config, per_epoch) = (&self.run.config, self.recipe.per_epoch);
        let (step, epoch) = (self.progress.step - 1, self.progress.position() / per_epoch - 1);
        let loss = self.progress.epoch_loss / per_epoch as f64;
        let mut row = json!({
            "kind": "epoch",
            "step": step,
            "epoch": epoch,
            "train_loss": number(loss),
            "knn_top1": null,
            "verdict": self.detector.health().name(),
        });
        let mut scores = String::new();
        let mut failed = None;
        let started = Instant::now();
        if self.is_evaluated(epoch) {
            match self.evaluate_both(gallery::due(epoch, config.epochs)) {
                Ok((found, text)) => {
                    found.into_iter().for_each(|(key, value)| row[key] = value);
                    scores = text;
                }
                // What was learned is logged and saved first, so that the run goes on with the next epoch.
                Err(e) => failed = Some(e),
            }
            self.take_unreadable(step)?;
        }
        if gallery::due(epoch, config.epochs) {
            self.draw(Some(epoch))?;
        }
        self.clock.evaluation_took(started.elapsed());
        self.row(row);
        self.agree(Ok(()), false)?;
        let ended = Progress { epoch_loss: 0.0, ..self.progress };
        // The numbered one before the epoch is closed: killed in between, the run comes by here again. But where there is no space for
        // it, the steps are saved.
        if config.save_every > 0 && epoch.is_multiple_of(config.save_every) {
            self.save()?;
            let numbered = self.run.out.join(format!("checkpoint{epoch:04}.safetensors"));
            let group = self.run.group.clone();
            group.from_first(|| match checkpoint::save(&numbered, &mut self.device, &self.plan, config, ended) {
                Ok(()) => Ok(()),
                Err(spoilt @ Unsaved::Spoilt(_)) => Err(self.unsaved(spoilt)),
                Err(Unsaved::Failed(e)) => Err(e), // the epoch stays open; the steps are saved
            })?;
        }
        self.progress = ended;
        self.save()?;
        // Printed when it is true: whoever stops the program at this line loses nothing.
        let ln_k = match self.plan.config.objective.divergence {
            Divergence::CrossEntropy => format!(" (ln K {:.4})", (config.out_dim as f64).ln()),
            Divergence::SquaredError => String::new(),
        };
        self.screen.print(&format!("epoch {epoch}: loss {loss:.4}{ln_k}{scores}"));
        self.run.unreadable.endless().iter().for_each(|line| self.screen.print(line));
        failed.map_or(Ok(()), Err)
    }

    /// Evaluates the teacher's features, and, where they are due, the student's: returns what belongs into the epoch's row, and the same as
    /// text. (Every time, the student's would make `train --small` a sixth slower.)
    fn evaluate_both(&mut self, student: bool) -> Result<(Map<String, Value>, String)> {
        let run = self.run;
        let evaluated =
            |weights: &[f32]| evaluate::<D>(run.device, &run.config, weights, run.splits, run.unreadable, &run.group);
        let (mut row, mut text) = (Map::new(), String::new());
        let (rank, top1) = evaluated(&self.backbone(self.plan.table.len())?)?;
        row.insert("feature_rank".into(), number(rank));
        if let Some(top1) = top1 {
            row.insert("knn_top1".into(), number(top1));
            text = format!(", k-NN {top1:.2} %");
            if student {
                let (_, top1) = evaluated(&self.backbone(0)?)?;
                row.insert("knn_top1_student".into(), top1.map_or(Value::Null, number));
                text += &top1.map_or(String::new(), |top1| format!(" (student {top1:.2} %)"));
            }
        }
        text += &format!(", feature rank {rank:.1}");
        Ok((row, text))
    }
}

/// Feature rank, and, with labels, the top-1 of the k-NN vote on the test part, of a backbone; of at most `knn_images` images. Processes
/// share the images, and all of them have the result.
///
/// # Errors
/// The device fails, features are not finite, or, with `--strict`, an image is unreadable.
pub fn evaluate<D: Device>(
    options: &D::Options,
    config: &Config,
    weights: &[f32],
    splits: &Splits,
    unreadable: &Unreadable,
    group: &Group,
) -> Result<(f64, Option<f64>)> {
    let mut extractor = Extractor::<D>::new(options, config, weights)?;
    extractor.share(group);
    extractor.set_view(view_of(config, &*splits.train));
    let scored = config.knn_images.of(splits.train.len(), splits.test.len());
    let part = |set, count| Members::of(set, &draw(set, count, config.seed));
    let (train, test) = (part(&*splits.train, scored[0]), part(&*splits.test, scored[1]));
    let bank = extractor.run(&train, unreadable, |_| ())?;
    let rank = effective_rank(&bank.rows);
    // Of one class every vote is right.
    if only_class(splits).is_some() {
        return Ok((rank, None));
    }
    let Some(bank_labels) = bank.labels(&train) else { return Ok((rank, None)) };
    let queries = extractor.run(&test, unreadable, |_| ())?;
    let Some(labels) = queries.labels(&test).filter(|labels| !labels.is_empty()) else {
        return Ok((rank, None));
    };
    let scores = knn::evaluate(bank.rows, &bank_labels, queries.rows, &labels, &[KNN.0], KNN.1, group)?;
    Ok((rank, scores.first().map(|s| s.top1)))
}
