//! The training loop: load, step, log, judge, save.

mod screen;

use crate::checkpoint::{self, Checkpoint, Progress};
use crate::config::Config;
use crate::data::{Dataset, Faults, Splits};
use crate::device::{Device, Part, QUEUE, Step};
use crate::error::{Error, Result};
use crate::eval::knn;
use crate::features::Extractor;
use crate::gallery;
use crate::loader::{self, Batch, Recipe};
use crate::log::{Log, number, write_atomically};
use crate::monitor::{Verdict, Watch, effective_rank};
use crate::weights::init::Start;
use dino_kernel::init;
use dino_kernel::middleware::{Checked, Fault, Pool, Word};
use dino_kernel::plan::Plan;
use dino_kernel::step::{self, Hyper, monitor};
use screen::Screen;
use serde_json::{Map, Value, json};
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A run: what, where to, and whether to go on from what lies there.
pub struct Run<'a, D: Device> {
    /// The device's flags.
    pub device: &'a D::Options,
    pub config: Config,
    pub splits: &'a Splits,
    /// What cannot be read of them goes here.
    pub faults: &'a Faults,
    pub out: PathBuf,
    pub resume: bool,
    /// What the data set was opened from, for `run.json`.
    pub data: String,
    /// Where a new run starts, if not with drawn weights. It is taken when the run does.
    pub start: Cell<Option<Start>>,
    /// Set from outside to stop after the current step.
    pub stop: &'a AtomicBool,
    /// The words of the command line, for `run.json`.
    pub command: Vec<String>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    Interrupted,
}

/// The k of the k-NN vote during training, and its temperature: the published ones.
const KNN: (usize, f64) = (20, 0.07);
/// Longest time between two saves: what a crash may cost.
const SAVE_AFTER: Duration = Duration::from_secs(600);

pub const CHECKPOINT: &str = "checkpoint.safetensors";
pub const TEACHER: &str = "teacher.safetensors";
pub const LOG: &str = "log.jsonl";
pub const MANIFEST: &str = "run.json";

/// A step that the device has been given, its report not yet taken.
struct Pending {
    /// Counted from 0.
    number: u64,
    hyper: Hyper,
    batch: Batch,
    /// How long its batch was waited for.
    waited: Duration,
}

/// What a step reports.
struct Report {
    loss: f64,
    entropy: f64,
    grad_norm: f64,
    centre_norm: f64,
}

struct Trainer<'a, D: Device> {
    run: &'a Run<'a, D>,
    plan: Plan,
    device: D,
    recipe: Recipe,
    /// As of the last report taken.
    progress: Progress,
    /// Oldest first, at most [`QUEUE`].
    pending: VecDeque<Pending>,
    watch: Watch,
    log: Log,
    screen: Screen,
    saved: Instant,
    /// Where the checkpoint on the disk stands, once there is one.
    saved_step: Option<u64>,
    /// When the last report was taken, or the last save done.
    reported: Instant,
}

/// Trains until the last epoch, or until `run.stop`. Every error leaves a good state saved: the last one, or, if the device itself
/// failed, what was last saved before (the error says of which step).
pub fn run<D: Device>(run: &Run<D>) -> Result<Outcome> {
    let config = &run.config;
    let per_epoch = loader::check_size(&*run.splits.train, config.batch)?;
    let plan = config.plan(D::RECOMPUTE)?;
    let mut device = D::new(run.device, plan.pools)?;
    let (progress, moved) = start(run, &mut device, &plan)?;
    let recipe = Recipe {
        augment: config.augment(),
        seed: config.seed,
        batch: config.batch,
        micro_batch: config.micro_batch,
        per_epoch,
    };
    let mut watch = Watch::new(config.out_dim);
    let log = Log::open(&run.out.join(LOG), progress.step, |row| {
        if row["kind"] == "unreadable" {
            row["error"].as_str().into_iter().for_each(|error| run.faults.know(error));
        }
        if let (Some(entropy), Some(kl)) = (row["teacher_entropy"].as_f64(), row["kl"].as_f64()) {
            watch.step(entropy, kl);
        }
    })?;
    let mut screen = Screen::new(config.epochs * per_epoch, progress.step);
    screen.say(&format!("on {}", device.name()));
    if let Some(known) = moved {
        screen.say(&format!(
            "the run was on {known}: from here on its bits may differ from those of a run that stays there"
        ));
    }
    let mut trainer = Trainer {
        run,
        plan,
        device,
        recipe,
        progress,
        pending: VecDeque::new(),
        watch,
        log,
        screen,
        saved: Instant::now(),
        saved_step: run.resume.then_some(progress.step),
        reported: Instant::now(),
    };
    if !run.resume {
        trainer.save()?; // from here on there is always something to go on from
        trainer.draw(None)?;
    }
    trainer.train()
}

/// Fills the device: from the checkpoint, or with the initial weights, the teacher an exact copy of the student. Also returns what
/// arithmetic the run had before, if it was another.
fn start<D: Device>(run: &Run<D>, device: &mut D, plan: &Plan) -> Result<(Progress, Option<String>)> {
    let mut state = vec![0.0f32; plan.pools.state];
    plan.initial_state(&mut state);
    device.upload(Pool::State, 0, &state);
    if run.resume {
        let checkpoint = Checkpoint::open(&run.out.join(CHECKPOINT))?;
        checkpoint.load(device, plan)?;
        let text = std::fs::read_to_string(run.out.join(MANIFEST)).unwrap_or_default();
        let known: Value = serde_json::from_str(&text).unwrap_or_default();
        check_data(run, &known)?;
        manifest(run, device, &known, &known["init_from"])?;
        let before = known["arithmetic"].as_str().filter(|before| *before != device.arithmetic());
        return Ok((checkpoint.progress, before.map(String::from)));
    }
    std::fs::create_dir_all(&run.out).map_err(|e| {
        Error::new(format!("cannot make the folder {}: {e}", run.out.display())).hint("--out names another")
    })?;
    let given = run.start.take();
    manifest(run, device, &Value::Null, given.as_ref().map_or(&Value::Null, |start| &start.record))?;
    let weights = given.map(|start| start.weights).unwrap_or_else(|| {
        let mut weights = vec![0.0f32; plan.table.len()];
        init::weights(&mut weights, &plan.table, run.config.seed, run.config.init_std);
        weights
    });
    device.upload(Pool::Weights, 0, &weights);
    device.upload(Pool::Weights, plan.table.len(), &weights);
    Ok((Progress::default(), None))
}

/// Refuses to go on with other images than the run began with (its manifest is `known`); where they lie does not matter.
fn check_data<D: Device>(run: &Run<D>, known: &Value) -> Result<()> {
    match known["train"]["fingerprint"].as_str() {
        Some(known) if known != run.splits.train.fingerprint() => Err(Error::new(format!(
            "{} does not hold the images that the run in {} began with",
            run.data,
            run.out.display()
        ))
        .hint("--data names where they are now; another set needs a new run")),
        _ => Ok(()),
    }
}

/// `run.json`: what made this run. `known` is what it was before, if the run goes on; `init_from` is null, or what it started from.
fn manifest<D: Device>(run: &Run<D>, device: &D, known: &Value, init_from: &Value) -> Result<()> {
    let set = |s: &dyn Dataset| json!({"images": s.len(), "classes": s.classes(), "fingerprint": s.fingerprint()});
    // A run that goes on is still made by the command that began it.
    let command = if run.resume { known["command"].clone() } else { json!(run.command) };
    let manifest = json!({
        "command": command,
        "host": {
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
            "threads": rayon::current_num_threads(),
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
        },
        "version": env!("CARGO_PKG_VERSION"),
        "config": run.config,
        "seed": run.config.seed,
        "device": device.name(),
        "arithmetic": device.arithmetic(),
        "data": run.data,
        "init_from": init_from,
        "train": set(&*run.splits.train),
        "test": set(&*run.splits.test),
        "held_out": run.splits.held_out,
    });
    write_atomically(&run.out.join(MANIFEST), |f| writeln!(f, "{manifest:#}"))
}

impl<D: Device> Trainer<'_, D> {
    fn train(&mut self) -> Result<Outcome> {
        let per_epoch = self.recipe.per_epoch;
        let total = self.run.config.epochs * per_epoch;
        let recipe = self.recipe.clone();
        std::thread::scope(|scope| {
            let steps = self.progress.step..total;
            let (batches, thread) = recipe.start(scope, &*self.run.splits.train, self.run.faults, steps.clone());
            for number in steps {
                let started = Instant::now();
                let batch = match batches.recv() {
                    Ok(Ok(batch)) => batch,
                    Ok(Err(e)) => return self.fail(e),
                    Err(_) => {
                        // It panicked. Not joined, the scope would panic as well, and the error would be lost.
                        let _ = thread.join();
                        return self.fail(Error::new("the loader thread ended early"));
                    }
                };
                let hyper = self.run.config.hyper(number, per_epoch);
                self.take_faults(number)?;
                self.queue(Pending { number, hyper, batch, waited: started.elapsed() })?;
                self.take_reports(QUEUE - 1)?;
                let done = number + 1;
                if done.is_multiple_of(per_epoch) {
                    self.take_reports(0)?;
                    self.end_epoch(number)?;
                }
                if self.run.stop.load(Ordering::Relaxed) && done < total {
                    self.save()?;
                    self.screen.say(&format!("stopped after step {done}; {}", self.resume_hint()));
                    return Ok(Outcome::Interrupted);
                }
                if self.saved.elapsed() > SAVE_AFTER {
                    self.save()?;
                }
            }
            self.save()?;
            self.screen.finish();
            Ok(Outcome::Finished)
        })
    }

    /// Hands a step to the device.
    fn queue(&mut self, pending: Pending) -> Result<()> {
        let step = self.data(&pending);
        self.device.step(&self.plan, &step).map_err(|e| self.lost(e))?;
        self.pending.push_back(pending);
        Ok(())
    }

    /// What a device needs to know of a step.
    fn data<'a>(&self, of: &'a Pending) -> Step<'a> {
        let (plan, config) = (&self.plan, &self.run.config);
        let epoch = (of.number / self.recipe.per_epoch) as u32;
        let parts = of.batch.images.chunks(config.micro_batch).zip(of.batch.pixels.chunks(plan.pixels.len()));
        let part = |(images, pixels)| {
            let mut drop = vec![0.0; plan.drop.len()];
            plan.drop_path(&mut drop, config.seed, epoch, images, config.drop_path_rate);
            Part { drop, pixels }
        };
        let hyper = of.hyper.derive(config.batch, plan.views(), plan.teachers()).map(|x| x as f32);
        Step { hyper, parts: parts.map(part).collect() }
    }

    /// Takes and logs the reports that are there, oldest first, and waits for more while more than `most` are missing.
    fn take_reports(&mut self, most: usize) -> Result<()> {
        while let queued @ 1.. = self.pending.len() {
            let found = self.device.report(&self.plan, queued, queued > most).map_err(|e| self.lost(e))?;
            let Some((m, step)) = found.and_then(|m| Some((m, self.pending.pop_front()?))) else { break };
            if m[monitor::FINITE] != 1.0 {
                self.pending.clear(); // the steps after it changed nothing
                self.save()?; // before the replay, which must not matter
                return Err(self.explain(&step));
            }
            let (images, teachers) = (self.run.config.batch, self.plan.teachers());
            let report = Report {
                loss: m[monitor::LOSS] as f64 / (images * teachers * (self.plan.views() - 1)) as f64,
                entropy: m[monitor::ENTROPY] as f64 / (images * teachers) as f64,
                grad_norm: m[monitor::GRAD_NORM] as f64,
                centre_norm: m[monitor::CENTRE_NORM] as f64,
            };
            self.progress.step += 1;
            self.progress.epoch_loss += report.loss;
            let took = self.reported.elapsed();
            self.reported = Instant::now();
            self.write_step(&step, &report, took)?;
        }
        Ok(())
    }

    /// Names the images that could not be read, once each.
    fn take_faults(&mut self, step: u64) -> Result<()> {
        for fault in self.run.faults.take() {
            self.log.row(json!({
                "kind": "unreadable",
                "step": step,
                "image": fault.image,
                "error": fault.error.message,
                "count": fault.count,
            }))?;
            self.screen.say(&fault.to_string());
        }
        Ok(())
    }

    /// Saves the last good state, then passes the error on. For errors that leave the device alive.
    fn fail(&mut self, error: Error) -> Result<Outcome> {
        self.save()?;
        Err(error)
    }

    /// An error of the device: nothing can be saved from it any more, so the error says what there is to go on from.
    fn lost(&self, error: Error) -> Error {
        let Some(step) = self.saved_step else { return error };
        let message = format!("{}; the run is saved as it was after step {step}", error.message);
        Error::new(message).hint(error.hint.unwrap_or_else(|| self.resume_hint()))
    }

    fn resume_hint(&self) -> String {
        format!("go on with: train --resume --out {}", self.run.out.display())
    }

    /// Saves the state after the steps queued so far.
    fn save(&mut self) -> Result<()> {
        self.take_reports(0)?;
        let (out, config) = (&self.run.out, &self.run.config);
        checkpoint::save(&out.join(CHECKPOINT), &mut self.device, &self.plan, config, self.progress)
            .map_err(|e| self.lost(e))?;
        self.saved_step = Some(self.progress.step);
        checkpoint::save_teacher(&out.join(TEACHER), &mut self.device, &self.plan, config, self.progress)
            .map_err(|e| self.lost(e))?;
        self.saved = Instant::now();
        self.reported = Instant::now();
        Ok(())
    }

    /// Replays a step that was not finite under a backend that looks at every number, and names the first bad one.
    fn explain(&mut self, step: &Pending) -> Error {
        let (data, plan) = (self.data(step), &self.plan);
        self.device.upload(Pool::State, plan.monitor.0.at + monitor::HALTED, &[0.0]);
        self.device.upload(Pool::State, plan.hyper.0.at, &data.hyper);
        let mut checked = Checked::new(&mut self.device);
        step::begin(&mut checked, plan);
        // The micro-batch, where the pass wrote and its first view, when the fault came; none if no crop had been seen.
        let mut during = None;
        let mut innocent = checked.fault.is_none();
        for (number, part) in data.parts.iter().enumerate() {
            checked.inner.upload(Pool::State, plan.drop.0.at, &part.drop);
            checked.inner.upload(Pool::Acts, plan.pixels.0.at, part.pixels);
            step::micro_batch_each(&mut checked, plan, |o, acts, first_view| {
                if innocent && o.fault.is_some() {
                    (during, innocent) = (Some((number, *acts, first_view)), false);
                }
            });
        }
        step::commit(&mut checked, plan);
        let place = match checked.fault {
            Some((Fault::NonFinite(touch, index), word, said)) => {
                let during = during.filter(|_| touch.pool == Pool::Acts && word != Word::patchify);
                let image = during.and_then(|(part, acts, first_view)| {
                    let (view, i) = plan.locate(&acts, first_view, touch.span, index)?;
                    let id = step.batch.images[part * plan.config.micro_batch + i];
                    Some(format!(", crop {view} of image {}", self.run.splits.train.name(id as usize)))
                });
                format!("first in {} (word {said}){}", word.name(), image.unwrap_or_default())
            }
            Some((fault, word, said)) => format!("{fault:?} in {} (word {said})", word.name()),
            None => "only in the sum of all gradients, which overflowed".into(),
        };
        Error::new(format!("a number stopped being finite in step {}: {place}", step.number))
            .hint("the state before this step is saved; a lower --lr or a smaller --clip-grad usually helps")
    }

    /// `took`: the time between the report before (or a save) and this one, which, reports being taken at the pace of the steps, is
    /// that between two queued steps. From it come the row's `images_per_second`, and `data_wait`, the part spent waiting for
    /// the loader.
    fn write_step(&mut self, of: &Pending, r: &Report, took: Duration) -> Result<()> {
        let (step, h) = (of.number, &of.hyper);
        let (epoch, ln_k) = (step / self.recipe.per_epoch, (self.run.config.out_dim as f64).ln());
        let rate = self.run.config.batch as f64 / took.as_secs_f64();
        let wait = of.waited.as_secs_f64() / took.as_secs_f64();
        self.log.row(json!({
            "kind": "step",
            "step": step,
            "epoch": epoch,
            "loss": number(r.loss),
            "loss_minus_ln_k": number(r.loss - ln_k),
            "lr": number(h.lr),
            "wd": number(h.weight_decay),
            "momentum": number(h.momentum),
            "teacher_temp": number(h.teacher_temp),
            "teacher_entropy": number(r.entropy),
            "kl": number(r.loss - r.entropy),
            "grad_norm": number(r.grad_norm),
            "center_norm": number(r.centre_norm),
            "images_per_second": number(rate),
            "data_wait": number(wait),
        }))?;
        self.screen.step(step + 1, epoch, self.run.config.epochs, r.loss, rate, wait);
        if let Some(verdict) = self.watch.step(r.entropy, r.loss - r.entropy) {
            let word = if verdict == Verdict::Healthy { "note" } else { "WARNING" };
            self.screen.say(&format!("{word}, step {step}: {}", verdict.words()));
        }
        Ok(())
    }

    /// The backbone of the student (at 0) or the teacher (at the table's length), as the device has it now.
    fn backbone(&mut self, at: usize) -> Result<Vec<f32>> {
        let mut weights = vec![0.0; self.plan.table.backbone_len()];
        self.device.download(Pool::Weights, at, &mut weights);
        self.device.sync().map_err(|e| self.lost(e))?;
        Ok(weights)
    }

    /// Draws what the teacher attends to. A run does not end over a picture.
    fn draw(&mut self, epoch: Option<u64>) -> Result<()> {
        let teacher = self.backbone(self.plan.table.len())?;
        let run = self.run;
        if let Err(e) = gallery::draw::<D>(run.device, &run.config, &teacher, run.splits, epoch, &run.out) {
            self.screen.say(&format!("note: no attention is drawn: {e}"));
        }
        Ok(())
    }

    fn end_epoch(&mut self, step: u64) -> Result<()> {
        let (config, per_epoch) = (&self.run.config, self.recipe.per_epoch);
        let epoch = step / per_epoch;
        let last = epoch + 1 == config.epochs;
        let mut row = json!({
            "kind": "epoch",
            "step": step,
            "epoch": epoch,
            "train_loss": number(self.progress.epoch_loss / per_epoch as f64),
            "knn_top1": null,
            "verdict": self.watch.verdict().name(),
        });
        let mut said = String::new();
        let mut failed = None;
        if config.knn_every > 0 && (last || (epoch + 1).is_multiple_of(config.knn_every)) {
            match self.judge_both(gallery::due(epoch, config.epochs)) {
                Ok((found, text)) => {
                    found.into_iter().for_each(|(key, value)| row[key] = value);
                    said = text;
                }
                // What was learnt is written down and saved first, so that the run goes on with the next epoch.
                Err(e) => failed = Some(e),
            }
            self.take_faults(step)?;
        }
        if gallery::due(epoch, config.epochs) {
            self.draw(Some(epoch))?;
        }
        self.log.row(row)?;
        self.screen.say(&format!(
            "epoch {epoch}: loss {:.4} (ln K {:.4}){said}",
            self.progress.epoch_loss / per_epoch as f64,
            (config.out_dim as f64).ln()
        ));
        self.run.faults.endless().iter().for_each(|line| self.screen.say(line));
        self.progress.epoch_loss = 0.0;
        // The numbered one first: killed in between, the run comes by here again.
        if config.save_every > 0 && epoch.is_multiple_of(config.save_every) {
            let numbered = self.run.out.join(format!("checkpoint{epoch:04}.safetensors"));
            checkpoint::save(&numbered, &mut self.device, &self.plan, config, self.progress)
                .map_err(|e| self.lost(e))?;
        }
        self.save()?;
        failed.map_or(Ok(()), Err)
    }

    /// Judges the teacher's features, and, when it is their turn, the student's: what belongs into the epoch's row, and the same in
    /// words. (Every time, the student's would make `train --small` a sixth slower.)
    fn judge_both(&mut self, student: bool) -> Result<(Map<String, Value>, String)> {
        let run = self.run;
        let judged = |weights: &[f32]| judge::<D>(run.device, &run.config, weights, run.splits, run.faults);
        let (mut row, mut said) = (Map::new(), String::new());
        let (rank, top1) = judged(&self.backbone(self.plan.table.len())?)?;
        row.insert("feature_rank".into(), number(rank));
        if let Some(top1) = top1 {
            row.insert("knn_top1".into(), number(top1));
            said = format!(", k-NN {top1:.2} %");
            if student {
                let (_, top1) = judged(&self.backbone(0)?)?;
                row.insert("knn_top1_student".into(), top1.map_or(Value::Null, number));
                said += &top1.map_or(String::new(), |top1| format!(" (student {top1:.2} %)"));
            }
        }
        said += &format!(", feature rank {rank:.1}");
        Ok((row, said))
    }
}

/// Feature rank, and, with labels, the top-1 of the k-NN vote on the test part, of a backbone.
pub fn judge<D: Device>(
    options: &D::Options,
    config: &Config,
    weights: &[f32],
    splits: &Splits,
    faults: &Faults,
) -> Result<(f64, Option<f64>)> {
    let mut extractor = Extractor::<D>::new(options, config, weights)?;
    let bank = extractor.run(&*splits.train, faults, |_| ())?;
    let rank = effective_rank(&bank.rows);
    let Some(bank_labels) = bank.labels(&*splits.train) else { return Ok((rank, None)) };
    let queries = extractor.run(&*splits.test, faults, |_| ())?;
    let Some(labels) = queries.labels(&*splits.test).filter(|labels| !labels.is_empty()) else {
        return Ok((rank, None));
    };
    let scores = knn::evaluate(bank.rows, &bank_labels, queries.rows, &labels, &[KNN.0], KNN.1)?;
    Ok((rank, scores.first().map(|s| s.top1)))
}

/// The folder's configuration, for `--resume`.
pub fn recorded(out: &Path) -> Result<Config> {
    let path = out.join(CHECKPOINT);
    if !path.exists() {
        return Err(Error::new(format!("there is no run in {}: it has no {CHECKPOINT}", out.display()))
            .hint("--resume goes on from a folder that `train --out` has written; leave it out to start anew"));
    }
    Ok(Checkpoint::open(&path)?.config)
}

/// What the folder's run was trained on.
pub fn recorded_data(out: &Path) -> Result<String> {
    let path = out.join(MANIFEST);
    let bad =
        |what: String| Error::new(format!("cannot read {}: {what}", path.display())).hint("name the data with --data");
    let text = std::fs::read_to_string(&path).map_err(|e| bad(e.to_string()))?;
    let manifest: Value = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    manifest["data"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| bad("it does not say what the run was trained on".into()))
}

#[cfg(test)]
mod tests;
