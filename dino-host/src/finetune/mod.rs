//! Supervised fine-tuning (paper, table 6): a backbone and a linear classifier on labeled images.
//!
//! The mathematics is [`dino_kernel::finetune`]; loader, log, clock and screen are those of [`crate::train`]. A run's folder has
//! `checkpoint.safetensors` (to go on from), `classifier.safetensors` (the model, for `classify` and `convert`), `run.json`, `log.jsonl`
//! and `scores.json` (the last evaluation, with its confusion matrix).

mod begin;
mod evaluate;
mod recipe;
mod state;

pub use begin::recorded;
pub use evaluate::{Scores, labels, logits, probabilities};
pub use recipe::{Flags, Recipe};
pub use state::{Opened, is_finetune};

use crate::config::Config;
use crate::data::loader::{self, Batch};
use crate::data::{Splits, Unreadable, unreadable_lines};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::scores::Labels;
use crate::image::augment::ProbeView;
use crate::inference::features::{Extractor, view_of};
use crate::io::atomic::write_atomically;
use crate::io::json::number as float;
use crate::train::{CHECKPOINT, Clock, LOG, Limit, Log, Outcome, SAVE_AFTER, Screen, both};
use crate::weights::Classifier;
use crate::weights::checkpoint::{Progress, Unsaved};
use dino_kernel::backend::Rows;
use dino_kernel::finetune::mix::{self, Mix};
use dino_kernel::finetune::{Plan, step};
use dino_kernel::mem::Pool;
use dino_kernel::model::DropPath;
use dino_kernel::ops::cross_entropy;
use dino_kernel::rng::{Kind, Rng};
use dino_kernel::scalars::monitor;
use dino_kernel::schedule::Cosine;
use serde_json::{Value, json};
use state::About;
use std::cell::Cell;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The model alone, in a run's folder.
pub const MODEL: &str = "classifier.safetensors";
/// The last evaluation, in a run's folder.
pub const SCORES: &str = "scores.json";

/// A fine-tuning: what, where to, and whether to go on from what is stored there.
pub struct Run<'a, D: Device> {
    /// The device's flags.
    pub device: &'a D::Options,
    /// The backbone's configuration, with the view of evaluation decided.
    pub config: Config,
    /// How it is trained.
    pub recipe: Recipe,
    /// The training and the test set.
    pub splits: &'a Splits,
    /// Their labels, of the classes that occur.
    pub labels: Labels,
    /// What cannot be read of them goes here.
    pub unreadable: &'a Unreadable,
    /// Whoever calls sees to it that nobody else writes there.
    pub out: PathBuf,
    /// The state to go on from.
    pub resume: Option<Opened>,
    /// What the data set was opened from.
    pub data: String,
    /// The backbone that a new run starts from, parameters and then buffers; none for one that is drawn.
    pub start: Cell<Option<Vec<f32>>>,
    /// Where that came from, for `run.json`.
    pub source: Value,
    /// Set from outside to stop after the current step.
    pub stop: &'a AtomicBool,
    /// To have stopped so long after this moment.
    pub time_limit: Option<(Instant, Limit)>,
    /// The arguments of the command line, for `run.json`.
    pub command: Vec<String>,
}

struct Tuner<'a, D: Device> {
    run: &'a Run<'a, D>,
    plan: Plan,
    device: D,
    loader: loader::Recipe<ProbeView>,
    lr: Cosine,
    mix: Mix,
    progress: Progress,
    log: Log,
    screen: Screen,
    clock: Clock,
    saved: Instant,
    /// The progress of the checkpoint on the disk, once there is one.
    saved_step: Option<u64>,
}

/// What a step reports.
struct Report {
    loss: f64,
    grad_norm: f64,
    lr: f64,
}

/// Trains until the last epoch, until `run.stop`, or until the time is nearly over.
///
/// # Errors
/// The set holds less than a batch, the plan or the device cannot be made, a step is not finite, the device fails, or a file cannot be
/// written. The last good state stays saved.
pub fn run<D: Device>(run: &Run<D>) -> Result<Outcome> {
    let (config, recipe) = (&run.config, &run.recipe);
    let per_epoch = loader::check_size(&*run.splits.train, recipe.batch)?;
    let plan = recipe.plan(config, run.labels.classes.len(), D::RECOMPUTE)?;
    let mut device = D::new(run.device, plan.pools)?;
    let begun = Instant::now();
    let (started, limit) = run.time_limit.map_or((begun, None), |(started, limit)| (started, Some(limit)));
    let mut clock = Clock::new(started, limit);
    let (progress, notes) = begin::start(run, &mut device, &plan)?;
    let augment = ProbeView { side: config.global_size, mean: config.mean.clone(), std: config.std.clone() };
    let (batch, micro_batch, seed) = (recipe.batch, recipe.micro_batch, recipe.seed);
    let loader = loader::Recipe { augment, seed, batch, own: 0..batch, micro_batch, per_epoch };
    let (path, open) = (run.out.join(LOG), progress.epoch_is_open(per_epoch));
    let log = Log::go_on(&path, progress.step, open, &mut clock, run.unreadable, |_| ())?;
    let mut screen = Screen::new(recipe.epochs * per_epoch, progress.step, None, true);
    screen.print(&format!("on {}", device.name()));
    notes.iter().for_each(|line| screen.print(line));
    let mut tuner = Tuner {
        run,
        plan,
        device,
        loader,
        lr: recipe.schedule(per_epoch),
        mix: recipe.mix(),
        progress,
        log,
        screen,
        clock,
        saved: Instant::now(),
        saved_step: run.resume.as_ref().map(|_| progress.step),
    };
    if run.resume.is_none() {
        tuner.save()?; // from here on there is always something to go on from
    }
    tuner.train()
}

impl<D: Device> Tuner<'_, D> {
    fn train(&mut self) -> Result<Outcome> {
        let per_epoch = self.loader.per_epoch;
        let total = self.run.recipe.epochs * per_epoch;
        if self.progress.epoch_is_open(per_epoch) {
            self.end_epoch()?;
        }
        let loader = self.loader.clone();
        std::thread::scope(|scope| {
            let steps = self.progress.step..total;
            let (batches, thread) = loader.start(scope, &*self.run.splits.train, self.run.unreadable, steps.clone());
            for number in steps {
                let started = Instant::now();
                let batch = match batches.recv() {
                    Ok(Ok(batch)) => batch,
                    Ok(Err(e)) => return Err(self.fail(e)),
                    Err(_) => {
                        let _ = thread.join(); // not joined, the scope would panic as well
                        return Err(self.fail(Error::new("the loader thread ended early")));
                    }
                };
                let waited = started.elapsed();
                self.take_unreadable(number)?;
                let report = self.step(number, batch)?;
                self.write_step(number, &report, waited, started.elapsed())?;
                self.clock.step_took(started.elapsed());
                let (done, asked) = (number + 1, self.run.stop.load(Ordering::Relaxed));
                if done.is_multiple_of(per_epoch) {
                    // An epoch that is not evaluated now is evaluated first of all when the run goes on.
                    let guess = self.clock.step().saturating_mul(u32::try_from(per_epoch / 3).unwrap_or(u32::MAX));
                    if (asked && done < total) || self.clock.no_time_for_evaluation(guess) {
                        return self.interrupt(asked);
                    }
                    self.end_epoch()?;
                }
                let asked = self.run.stop.load(Ordering::Relaxed);
                if done < total && (asked || self.clock.no_time_for_a_step(0)) {
                    return self.interrupt(asked);
                }
                if self.saved.elapsed() > SAVE_AFTER {
                    self.save()?;
                }
            }
            self.screen.finish();
            Ok(Outcome::Finished)
        })
    }

    /// One optimization step; nothing of it depends on the steps before but through the device.
    fn step(&mut self, number: u64, batch: Batch) -> Result<Report> {
        let (plan, recipe) = (&self.plan, &self.run.recipe);
        let (classes, parts) = (plan.config.classes, plan.parts());
        let (epoch, within) = ((number / self.loader.per_epoch) as u32, (number % self.loader.per_epoch) as u32);
        let Batch { images, mut pixels } = batch;
        let mixed = self.mix.draw(&mut Rng::new(recipe.seed, epoch, within, 0, Kind::Mix, 0), plan.config.image);
        mixed.apply(&mut pixels, images.len(), plan.config.image);
        let labels: Vec<u32> = images.iter().map(|&i| self.run.labels.train[i as usize]).collect();
        let mut targets = vec![0.0f32; labels.len() * classes];
        mix::targets(&mut targets, &labels, classes, mixed.share(plan.config.image), recipe.smoothing);

        let lr = self.lr.at(number);
        let (layer_decay, weight_decay, clip_grad) = (recipe.layer_decay, recipe.weight_decay, recipe.clip_grad);
        let hyper = step::Hyper { lr, layer_decay, weight_decay, clip_grad, step: number + 1 };
        let mut numbers = vec![0.0f32; plan.hyper.len()];
        hyper.fill(plan, &mut numbers);
        let device = &mut self.device;
        device.upload(Pool::State, plan.hyper.0.at, &numbers);
        device.run(|o| step::begin(o, plan));

        let n = Rows { rows: images.len() / parts, cols: classes };
        let mut drop = vec![0.0f32; plan.drop.len()];
        let (mut logits, mut d_logits) = (vec![0.0f32; n.rows * classes], vec![0.0f32; n.rows * classes]);
        let (mut losses, mut loss) = (vec![0.0f32; n.rows], 0.0f64);
        let key = DropPath { seed: recipe.seed, epoch, rate: recipe.drop_path_rate };
        let inputs = images.chunks(n.rows).zip(pixels.chunks(plan.pixels.len())).zip(targets.chunks(n.rows * classes));
        for ((images, pixels), targets) in inputs {
            plan.drop_path(&mut drop, key, images);
            device.upload(Pool::State, plan.drop.0.at, &drop);
            device.upload(Pool::Acts, plan.pixels.0.at, pixels);
            device.run(|o| step::forward(o, plan));
            device.download(Pool::Acts, plan.logits.0.at, &mut logits);
            let scale = 1.0 / recipe.batch as f64;
            cross_entropy::forward_backward(&mut losses, &mut d_logits, &logits, targets, scale, n);
            loss += losses.iter().map(|x| *x as f64).sum::<f64>();
            device.upload(Pool::Acts, plan.d_logits.0.at, &d_logits);
            device.run(|o| step::backward(o, plan));
        }
        device.upload(Pool::State, plan.loss().0.at, &[loss as f32]);
        device.run(|o| step::commit(o, plan));
        let mut m = [0.0f32; monitor::LEN];
        device.download(Pool::State, plan.monitor.0.at, &mut m);
        device.sync().map_err(|e| self.lost(e))?;
        if m[monitor::FINITE] != 1.0 {
            return Err(self.lost(
                Error::new(format!("a number stopped being finite in step {number}"))
                    .hint(format!("start again with --lr {:.1e} or lower in another --out", recipe.lr / 10.0)),
            ));
        }
        let loss = loss / recipe.batch as f64;
        self.progress.step += 1;
        self.progress.epoch_loss += loss;
        Ok(Report { loss, grad_norm: m[monitor::GRAD_NORM] as f64, lr })
    }

    fn write_step(&mut self, number: u64, r: &Report, waited: Duration, took: Duration) -> Result<()> {
        let (epoch, recipe) = (number / self.loader.per_epoch, &self.run.recipe);
        let (rate, wait) = (recipe.batch as f64 / took.as_secs_f64(), waited.as_secs_f64() / took.as_secs_f64());
        self.row(json!({
            "kind": "step", "step": number, "epoch": epoch, "loss": float(r.loss), "grad_norm": float(r.grad_norm),
            "lr": r.lr, "wd": recipe.weight_decay, "images_per_second": float(rate), "data_wait": float(wait),
        }))?;
        self.screen.step(number + 1, epoch, recipe.epochs, r.loss, rate, wait);
        Ok(())
    }

    /// The backbone as the device has it, parameters and then buffers, and the classifier.
    fn network(&mut self) -> Result<(Vec<f32>, Classifier)> {
        let (backbone, plan) = (&self.plan.table.backbone, &self.plan);
        let mut weights = vec![0.0f32; backbone.len() + plan.running.len()];
        let (parameters, buffers) = weights.split_at_mut(backbone.len());
        self.device.download(Pool::Weights, 0, parameters);
        self.device.download(Pool::State, plan.running.0.at, buffers);
        let mut read = |at: dino_kernel::mem::Weight| {
            let mut values = vec![0.0f32; at.len()];
            self.device.download(Pool::Weights, at.0.at, &mut values);
            values
        };
        let (weight, bias) = (read(plan.classifier.w), read(plan.classifier.b));
        self.device.sync().map_err(|e| self.lost(e))?;
        Ok((weights, Classifier { classes: self.run.labels.classes.clone(), weight, bias }))
    }

    fn evaluate(&mut self, epoch: u64) -> Result<Scores> {
        let (run, (weights, classifier)) = (self.run, self.network()?);
        let mut extractor = Extractor::<D>::new(run.device, &run.config, &weights)?;
        extractor.set_view(view_of(&run.config, &*run.splits.train));
        let found = extractor.run(&*run.splits.test, run.unreadable, |_| ())?;
        evaluate::score(epoch, &classifier, &found, &run.labels.test)
    }

    /// Ends the epoch whose last step is done. An error leaves it open: it is ended again when the run goes on.
    fn end_epoch(&mut self) -> Result<()> {
        let per_epoch = self.loader.per_epoch;
        let (step, epoch) = (self.progress.step - 1, self.progress.step / per_epoch - 1);
        let (loss, started) = (self.progress.epoch_loss / per_epoch as f64, Instant::now());
        let scores = self.evaluate(epoch).map_err(|e| self.fail(e))?;
        self.clock.evaluation_took(started.elapsed());
        self.take_unreadable(step)?;
        let Scores { top1, top5, .. } = scores;
        self.row(json!({
            "kind": "epoch", "step": step, "epoch": epoch, "train_loss": float(loss),
            "top1": top1, "top5": top5, "test_loss": float(scores.loss),
        }))?;
        let text = serde_json::to_string(&scores).expect("scores are plain data");
        write_atomically(&self.run.out.join(SCORES), |f| writeln!(f, "{text}"))?;
        self.progress.epoch_loss = 0.0;
        self.save()?;
        // Printed when it is true: whoever stops the program at this line loses nothing.
        self.screen.print(&format!(
            "epoch {}/{}: loss {loss:.4}, test loss {:.4}, top-1 {top1:.2} %, top-5 {top5:.2} %",
            epoch + 1,
            self.run.recipe.epochs,
            scores.loss
        ));
        self.run.unreadable.endless().iter().for_each(|line| self.screen.print(line));
        Ok(())
    }

    fn take_unreadable(&mut self, step: u64) -> Result<()> {
        let unreadable = self.run.unreadable.take(Some(&*self.run.splits.test));
        unreadable_lines(&unreadable).iter().for_each(|line| self.screen.print(line));
        for entry in unreadable {
            let part = if entry.of_test { "test" } else { "train" };
            self.row(json!({
                "kind": "unreadable", "step": step, "part": part, "image": entry.image,
                "error": entry.error.message, "count": entry.count,
            }))?;
        }
        Ok(())
    }

    /// Appends a row to the log. Where that fails the run ends, but what it has learned is saved first.
    fn row(&mut self, row: Value) -> Result<()> {
        self.log.row(row).map_err(|e| self.fail(e))
    }

    fn save(&mut self) -> Result<()> {
        let (started, run) = (Instant::now(), self.run);
        let about = About { config: &run.config, recipe: &run.recipe, classes: &run.labels.classes };
        let [state, model] = [CHECKPOINT, MODEL].map(|name| run.out.join(name));
        let saved = state::save([&state, &model], &mut self.device, &self.plan, &about, self.progress);
        saved.map_err(|why| match why {
            Unsaved::Failed(error) => self.lost(error),
            Unsaved::Spoilt(which) => self.lost(
                Error::new(format!("after step {} {which}", self.progress.step)).hint("a lower --lr in another --out"),
            ),
        })?;
        self.saved_step = Some(self.progress.step);
        self.clock.save_took(started.elapsed());
        self.saved = Instant::now();
        Ok(())
    }

    /// Saves and stops, because somebody asked for it or the time is nearly over.
    fn interrupt(&mut self, asked: bool) -> Result<Outcome> {
        self.save()?;
        let limit = self.clock.limit().filter(|_| !asked);
        let why = limit.map_or(String::new(), |limit| format!(", in time for --time-limit {limit}"));
        self.screen.print(&format!("stopped after step {}{why}; {}", self.progress.step, self.resume_hint()));
        Ok(Outcome::Interrupted)
    }

    fn resume_hint(&self) -> String {
        format!("go on with: finetune --resume --out {}", self.run.out.display())
    }

    /// Saves the last good state before an error that leaves the device alive ends the run.
    fn fail(&mut self, error: Error) -> Error {
        match self.save() {
            Ok(()) => error,
            Err(also) => both(error, also),
        }
    }

    /// An error after which nothing is saved any more: it names what there is to go on from.
    fn lost(&self, error: Error) -> Error {
        let Some(step) = self.saved_step else { return error };
        let message = format!("{}; the run is saved as it was after step {step}", error.message);
        Error::new(message).hint(error.hint.unwrap_or_else(|| self.resume_hint()))
    }
}

#[cfg(test)]
mod tests;
