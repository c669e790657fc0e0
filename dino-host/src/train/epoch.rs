//! The end of an epoch: evaluate, draw, log, save.

use super::verdict::{Level, Signs, Verdict};
use super::{Baseline, Trainer, rollback};
use crate::config::Config;
use crate::data::{Dataset, Splits, Unreadable, only_class};
use crate::device::Device;
use crate::dist::Group;
use crate::error::Result;
use crate::eval::knn;
use crate::eval::sampling::draw;
use crate::inference::features::{self, Extractor, Features, view_of};
use crate::io::json::number;
use crate::train::collapse::{Health, cosine_spread, effective_rank};
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
        let mut row =
            json!({"kind": "epoch", "step": step, "epoch": epoch, "train_loss": number(loss), "knn_top1": null});
        let mut scores = String::new();
        let mut signs = self.signs((epoch + 1) as f64 / config.epochs as f64);
        let mut failed = None;
        let started = Instant::now();
        if self.is_evaluated(epoch) {
            match self.evaluate_both(gallery::due(epoch, config.epochs), &mut signs) {
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
        let verdict = signs.verdict();
        row["verdict"] = verdict.name.into();
        row["because"] = verdict.because.as_str().into();
        self.row(row);
        self.agree(Ok(()), false)?;
        let ended = Progress { epoch_loss: 0.0, ..self.progress };
        // The numbered one before the epoch is closed: killed in between, the run comes by here again. But where there is no space for
        // it, the steps are saved.
        if config.save_every > 0 && epoch.is_multiple_of(config.save_every) {
            self.save()?;
            let numbered = rollback::numbered(&self.run.out, epoch);
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
        let (done, epochs) = (epoch + 1, config.epochs);
        // Beside the loss what tells whether it means anything: a loss that rises while the entropy does is no divergence.
        let means = self.detector.means().map_or(String::new(), |m| match self.plan.config.objective.divergence {
            Divergence::CrossEntropy => {
                format!(" (entropy {:.2}, KL {:.2}, ln K {:.2})", m.entropy, m.kl, (config.out_dim as f64).ln())
            }
            Divergence::SquaredError => format!(" (entropy {:.2})", m.entropy),
        });
        self.screen.print(&format!("epoch {done}/{epochs}: loss {loss:.4}{means}{scores}"));
        if done < epochs {
            self.print_if_bad(&verdict, step);
        }
        self.verdict = Some(verdict);
        self.run.unreadable.endless().iter().for_each(|line| self.screen.print(line));
        failed.map_or(Ok(()), Err)
    }

    /// What is known of the run before this epoch's evaluation.
    fn signs(&self, done: f64) -> Signs {
        let config = &self.run.config;
        let objective = self.plan.config.objective;
        Signs {
            health: self.detector.health(),
            means: self.detector.means(),
            ln_k: (config.out_dim as f64).ln(),
            targets: objective.targets,
            divergence: objective.divergence,
            done,
            rank: None,
            width: 0,
            spread: None,
            teacher: None,
            student: None,
            pixels: self.baseline.pixels,
            before: self.baseline.before,
            asked: config.knn_images.of(self.run.splits.train.len(), self.run.splits.test.len())[1],
        }
    }

    /// Prints a verdict that has become bad, once; the watch over the steps has printed a collapse already.
    fn print_if_bad(&mut self, verdict: &Verdict, step: u64) {
        let known = self.verdict.as_ref().map(|v| v.name);
        if verdict.level == Level::Bad && known != Some(verdict.name) && self.detector.health() == Health::Healthy {
            self.screen.print(&format!("WARNING, step {step}: {}", verdict.line()));
        }
    }

    /// Evaluates the teacher's features, and, where they are due, the student's: returns what belongs into the epoch's row, and the same as
    /// text. (Every time, the student's would make `train --small` a sixth slower.)
    fn evaluate_both(&mut self, student: bool, signs: &mut Signs) -> Result<(Map<String, Value>, String)> {
        let run = self.run;
        let evaluated =
            |weights: &[f32]| evaluate::<D>(run.device, &run.config, weights, run.splits, run.unreadable, &run.group);
        let (mut row, mut text) = (Map::new(), String::new());
        let found = evaluated(&self.backbone(self.plan.table.len())?)?;
        (signs.rank, signs.width, signs.spread) = (Some(found.rank), found.width, Some(found.spread));
        row.insert("feature_rank".into(), number(found.rank));
        row.insert("feature_width".into(), found.width.into());
        row.insert("cosine_spread".into(), number(found.spread));
        if let Some(top1) = found.top1 {
            signs.teacher = Some(top1);
            row.insert("knn_top1".into(), number(top1));
            text = format!(", k-NN {top1:.2} %");
            if student {
                signs.student = evaluated(&self.backbone(0)?)?.top1;
                row.insert("knn_top1_student".into(), signs.student.map_or(Value::Null, number));
                text += &signs.student.map_or(String::new(), |top1| format!(" (student {top1:.2} %)"));
            }
        }
        text += &format!(", feature rank {:.1}", found.rank);
        Ok((row, text))
    }

    /// What the features have to be better than: pixels, and the teacher before the first step. One row of the log.
    pub(super) fn measure_baseline(&mut self) -> Result<()> {
        if self.run.config.knn_every == 0 {
            return Ok(());
        }
        let started = Instant::now();
        let teacher = self.backbone(self.plan.table.len())?;
        match baseline(self.run, &teacher) {
            Ok((found, pixels)) => {
                self.baseline = Baseline { pixels, before: found.top1 };
                let or_null = |x: Option<f64>| x.map_or(Value::Null, number);
                self.take_unreadable(0)?;
                self.row(json!({
                    "kind": "baseline", "step": 0, "knn_pixels": or_null(pixels), "knn_before": or_null(found.top1),
                    "feature_rank": number(found.rank), "cosine_spread": number(found.spread),
                }));
                if let Some(before) = found.top1 {
                    let pixels = pixels.map_or(String::new(), |x| format!(", of pixels {x:.2} %"));
                    self.screen.print(&format!("before training: k-NN {before:.2} %{pixels}"));
                }
            }
            Err(e) if !self.run.unreadable.is_strict() => return Err(e),
            // The image that stops it stops the run as well, once it is due, and is named then.
            Err(_) => self.screen.print("note: the features before training could not be evaluated"),
        }
        self.clock.evaluation_took(started.elapsed());
        Ok(())
    }
}

/// The features of a teacher before training, and the vote by pixels.
fn baseline<D: Device>(run: &super::Run<D>, teacher: &[f32]) -> Result<(Found, Option<f64>)> {
    let (config, splits, unreadable) = (&run.config, run.splits, run.unreadable);
    let found = evaluate::<D>(run.device, config, teacher, splits, unreadable, &run.group)?;
    let scored = config.knn_images.of(splits.train.len(), splits.test.len());
    let numbers = scored.iter().sum::<usize>() * config.channels * config.global_size.pow(2);
    let pixels = match found.top1 {
        Some(_) if 4 * numbers <= MOST_PIXELS => {
            top1(|set| run.group.all(features::pixels(set, unreadable, config)), splits, config, &run.group)?
        }
        _ => None,
    };
    Ok((found, pixels))
}

/// Pixels of all images as numbers take at most this many bytes; beyond, they are not compared with.
const MOST_PIXELS: usize = 1 << 29;

/// What a network's features come to.
pub struct Found {
    /// Directions that they use, of how many columns.
    pub rank: f64,
    /// See [`Found::rank`].
    pub width: usize,
    /// Standard deviation of their cosines.
    pub spread: f64,
    /// k-NN top-1, percent; none without labels or with one class.
    pub top1: Option<f64>,
}

/// Feature rank and spread, and, with labels, the top-1 of the k-NN vote on the test part, of a backbone; of at most `knn_images` images.
/// Processes share the images, and all of them have the result.
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
) -> Result<Found> {
    let mut extractor = Extractor::<D>::new(options, config, weights)?;
    extractor.share(group);
    extractor.set_view(view_of(config, &*splits.train));
    let mut seen = None;
    let top1 = top1(
        |set| {
            let found = extractor.run(set, unreadable, |_| ())?;
            seen.get_or_insert_with(|| (effective_rank(&found.rows), found.rows.ncols(), cosine_spread(&found.rows)));
            Ok(found)
        },
        splits,
        config,
        group,
    )?;
    let (rank, width, spread) = seen.unwrap_or_default();
    Ok(Found { rank, width, spread, top1 })
}

/// The vote by the rows that `rows` makes of the images that vote (first, whether there are labels or not), then of those that are asked.
fn top1(
    mut rows: impl FnMut(&dyn Dataset) -> Result<Features>,
    splits: &Splits,
    config: &Config,
    group: &Group,
) -> Result<Option<f64>> {
    let scored = config.knn_images.of(splits.train.len(), splits.test.len());
    let part = |set, count| Members::of(set, &draw(set, count, config.seed));
    let (train, test) = (part(&*splits.train, scored[0]), part(&*splits.test, scored[1]));
    let bank = rows(&train)?;
    // Of one class every vote is right.
    if only_class(splits).is_some() {
        return Ok(None);
    }
    let Some(bank_labels) = bank.labels(&train) else { return Ok(None) };
    let queries = rows(&test)?;
    let Some(labels) = queries.labels(&test).filter(|labels| !labels.is_empty()) else { return Ok(None) };
    let scores = knn::evaluate(bank.rows, &bank_labels, queries.rows, &labels, &[KNN.0], KNN.1, group)?;
    Ok(scores.first().map(|s| s.top1))
}
