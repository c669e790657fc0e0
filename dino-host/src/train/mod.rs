//! The training loop: load, step, log, evaluate, save.

mod agreement;
mod begin;
mod clock;
pub mod collapse;
mod epoch;
mod failure;
pub mod log;
pub mod metrics;
mod owner;
mod resume;
mod rollback;
mod screen;
pub mod tensorboard;
pub mod verdict;

pub use begin::plan;
pub(crate) use clock::Clock;
pub use clock::Limit;
pub use epoch::{Found, evaluate};
pub(crate) use failure::both;
pub(crate) use log::Log;
pub use owner::Owner;
pub use resume::{Recorded, epochs};
pub(crate) use screen::Screen;
pub use screen::Shared as SharedScreen;

use crate::config::{Config, Schedules};
use crate::data::loader::{self, Batch, Recipe};
use crate::data::{Splits, Unreadable, unreadable_lines};
use crate::device::{Device, Part, QUEUE, Step};
use crate::dist::Group;
use crate::error::{Error, Result};
use crate::io::output;
use crate::train::collapse::{CollapseDetector, Health};
use crate::train::metrics::Report;
use crate::train::rollback::Back;
use crate::train::verdict::Verdict;
use crate::weights::checkpoint::{self, Progress};
use crate::weights::init::Start;
use dino_kernel::plan::Plan;
use dino_kernel::scalars::monitor;
use dino_kernel::step::Hyper;
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// A run: what, where to, and whether to go on from what is stored there.
pub struct Run<'a, D: Device> {
    /// The device's flags.
    pub device: &'a D::Options,
    /// The configuration, resolved.
    pub config: Config,
    /// The training and the test set.
    pub splits: &'a Splits,
    /// What cannot be read of them goes here.
    pub unreadable: &'a Unreadable,
    /// Whoever calls sees to it that nobody else writes there, see [`Owner`].
    pub out: PathBuf,
    /// Whether the run goes on from the checkpoint in `out`.
    pub resume: bool,
    /// Go on even with other images than the run began with.
    pub accept_changed_data: bool,
    /// What the data set was opened from, for `run.json`.
    pub data: String,
    /// Where a new run starts, if not with drawn weights. It is taken when the run does.
    pub start: Cell<Option<Start>>,
    /// Set from outside to stop after the current step.
    pub stop: &'a AtomicBool,
    /// To have stopped so long after this moment.
    pub time_limit: Option<(Instant, Limit)>,
    /// The arguments of the command line, for `run.json`.
    pub command: Vec<String>,
    /// Of a run that is one of several at a time.
    pub screen: Option<SharedScreen>,
    /// The processes that share every batch, this one among them. The first of them alone prints, logs, draws and saves.
    pub group: Group,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The last epoch is done.
    Finished,
    /// The run stopped before its last epoch, and its state is saved.
    Interrupted,
}

/// How the steps of a run ended.
enum Ended {
    With(Outcome),
    /// It goes on from an earlier state.
    Back(Back),
}

/// Longest time between two saves: what a crash may cost.
pub(crate) const SAVE_AFTER: Duration = Duration::from_secs(600);

/// The run's full state, in its folder.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// The teacher's backbone alone, in the run's folder.
pub const TEACHER: &str = "teacher.safetensors";
/// The state in which a step was not finite, whatever the flags that may change on a resume: to inspect, not to go on from.
pub const BEFORE_FAILURE: &str = "before_failure.safetensors";
/// The numbers of every step and epoch, a JSON object a line, in the run's folder.
pub const LOG: &str = "log.jsonl";
/// What made the run, in its folder.
pub const MANIFEST: &str = "run.json";

/// A step that the device has been given, its report not yet taken.
struct Pending {
    /// Its position in the schedule, from 0.
    number: u64,
    hyper: Hyper,
    batch: Batch,
    /// How long its batch was waited for.
    waited: Duration,
}

/// k-NN accuracy, percent, of what the features have to be better than; none where it is not known.
#[derive(Clone, Copy, Default)]
struct Baseline {
    pixels: Option<f64>,
    /// Of the teacher before the first step.
    before: Option<f64>,
}

struct Trainer<'a, D: Device> {
    run: &'a Run<'a, D>,
    plan: Plan,
    device: D,
    recipe: Recipe,
    schedules: Schedules,
    /// As of the last report taken.
    progress: Progress,
    /// Oldest first, at most [`QUEUE`].
    pending: VecDeque<Pending>,
    detector: CollapseDetector,
    baseline: Baseline,
    /// As of the last epoch that ended here.
    verdict: Option<Verdict>,
    /// The first process's.
    log: Option<Log>,
    /// The log could not be written, and ends there: the next agreement fails.
    log_error: Option<Error>,
    /// The log has recorded that messages are lost.
    silence_noted: bool,
    screen: Screen,
    clock: Clock,
    saved: Instant,
    /// The progress of the checkpoint on the disk, once there is one.
    saved_step: Option<u64>,
    /// When the last report was taken, or the last save done.
    reported: Instant,
}

/// Trains until the last epoch, until `run.stop`, or until the time is nearly over.
///
/// # Errors
/// The set holds less than a batch, the plan or the device cannot be made, a step is not finite, the device fails, or a file cannot be
/// written. A good state stays saved: the last one, or, after a step that is not finite or a device error, the last one saved before.
pub fn run<D: Device>(run: &Run<D>) -> Result<Outcome> {
    let mut back: Option<(Run<D>, Back)> = None;
    loop {
        let ended = match &back {
            None => go(run, None)?,
            Some((run, why)) => go(run, Some(why))?,
        };
        match ended {
            Ended::With(outcome) => return Ok(outcome),
            Ended::Back(why) => back = Some((back.as_ref().map_or(run, |(run, _)| run).reseeded(), why)),
        }
    }
}

/// Trains from where the run is; `back`: why it went back there.
fn go<D: Device>(run: &Run<D>, back: Option<&Back>) -> Result<Ended> {
    let config = &run.config;
    let per_epoch = loader::check_size(&*run.splits.train, config.batch)?;
    let group = &run.group;
    let plan = begin::plan::<D>(config, group.size())?;
    let mut device = D::new(run.device, plan.pools)?;
    device.join(group.clone())?;
    let differences = begin::compare(run, &device)?;
    let begun = Instant::now();
    let (started, limit) = run.time_limit.map_or((begun, None), |(started, limit)| (started, Some(limit)));
    let mut clock = Clock::new(started, limit);
    let (progress, mut notes) = group.from_first(|| begin::start(run, &mut device, &plan, per_epoch))?;
    begin::share(group, &mut device, &plan)?;
    notes.extend(differences);
    if run.resume {
        clock.save_took(begun.elapsed()); // the best guess so far: reading it took so long
    }
    let recipe = Recipe {
        augment: config.augment(),
        seed: config.data_seed(),
        batch: config.batch,
        own: plan.images_of(group.rank()),
        micro_batch: config.micro_batch,
        per_epoch,
    };
    let mut detector = CollapseDetector::new(config.out_dim);
    let mut baseline = Baseline::default();
    let (path, open) = (run.out.join(LOG), progress.epoch_is_open(per_epoch));
    let mut log = None;
    group.from_first(|| {
        log = Some(Log::go_on(&path, progress.step, open, &mut clock, run.unreadable, |row| {
            if let (Some(entropy), Some(loss)) = (row["teacher_entropy"].as_f64(), row["loss"].as_f64()) {
                detector.step(plan.config.objective.divergence, loss, entropy);
            }
            if row["kind"] == "baseline" {
                baseline = Baseline { pixels: row["knn_pixels"].as_f64(), before: row["knn_before"].as_f64() };
            }
        })?);
        Ok(())
    })?;
    let (total, shared) = (config.epochs * per_epoch, run.screen.clone());
    let mut screen = Screen::new(total, progress.position(), shared, group.is_first());
    let among = group.description().map_or(String::new(), |group| format!(", {group}"));
    screen.print(&format!("on {}{among}", device.name()));
    notes.iter().for_each(|line| screen.print(line));
    let (train, test) = (run.splits.train.len(), run.splits.test.len());
    let [bank, asked] = config.knn_images.of(train, test);
    if config.knn_every > 0 && [bank, asked] != [train, test] {
        screen.print(&format!(
            "k-NN scores {asked} of {test} test images by {bank} of {train} training images; --knn-images 0 takes all"
        ));
    }
    let mut trainer = Trainer {
        run,
        plan,
        device,
        recipe,
        schedules: config.schedules(per_epoch),
        progress,
        pending: VecDeque::new(),
        detector,
        baseline,
        verdict: None,
        log,
        log_error: None,
        silence_noted: false,
        screen,
        clock,
        saved: Instant::now(),
        saved_step: run.resume.then_some(progress.step),
        reported: Instant::now(),
    };
    if !run.resume {
        trainer.save()?; // from here on there is always something to go on from
        trainer.draw(None)?;
    }
    if progress.step == 0 {
        trainer.measure_baseline()?;
    }
    if let Some(why) = back {
        trainer.went_back(why)?;
    }
    let ended = trainer.train()?;
    trainer.note_silence();
    trainer.agree(Ok(()), false)?;
    if let Ended::With(_) = ended {
        group.end_together();
    }
    Ok(ended)
}

impl<D: Device> Trainer<'_, D> {
    fn train(&mut self) -> Result<Ended> {
        let per_epoch = self.recipe.per_epoch;
        let total = self.run.config.epochs * per_epoch;
        if self.progress.epoch_is_open(per_epoch) {
            self.end_epoch()?;
        }
        let recipe = self.recipe.clone();
        std::thread::scope(|scope| {
            let steps = self.progress.position()..total;
            let (batches, thread) = recipe.start(scope, &*self.run.splits.train, self.run.unreadable, steps.clone());
            let (first, mut thread) = (steps.start, Some(thread));
            for number in steps {
                let started = Instant::now();
                let batch = match batches.recv() {
                    Ok(batch) => batch,
                    Err(_) => {
                        // It panicked. Not joined, the scope would panic as well, and the error would be lost.
                        let _ = thread.take().map(|thread| thread.join());
                        Err(Error::new("the loader thread ended early"))
                    }
                };
                let late = number > first && self.clock.no_time_for_a_step(self.pending.len() as u32);
                let (batch, agreed) = self.agree(batch, late)?;
                if number > first && (agreed.stop || agreed.late) {
                    return self.interrupt(agreed.stop);
                }
                if agreed.collapsed {
                    return self.end_collapsed().map(Ended::Back);
                }
                if agreed.save {
                    self.save()?;
                }
                if agreed.unreadable {
                    self.take_unreadable(self.step_at(number))?;
                }
                let hyper = self.schedules.at(number);
                self.queue(Pending { number, hyper, batch, waited: started.elapsed() })?;
                self.take_reports(QUEUE - 1)?;
                self.clock.step_took(started.elapsed());
                self.note_silence();
                let done = number + 1;
                if done.is_multiple_of(per_epoch) {
                    self.take_reports(0)?;
                    let late = self.clock.no_time_for_evaluation(self.evaluation_guess());
                    let ((), agreed) = self.agree(Ok(()), late)?;
                    // An epoch that is not evaluated now is evaluated first of all when the run goes on.
                    if (agreed.stop && done < total) || agreed.late {
                        return self.interrupt(agreed.stop);
                    }
                    if agreed.collapsed {
                        return self.end_collapsed().map(Ended::Back);
                    }
                    if agreed.stop || agreed.save {
                        self.save()?;
                    }
                    self.end_epoch()?;
                }
            }
            self.screen.finish();
            self.print_end();
            Ok(Ended::With(Outcome::Finished))
        })
    }

    /// Prints what came of the run, and what to look at.
    fn print_end(&mut self) {
        let seconds = self.log.as_ref().map_or(0.0, Log::seconds).round() as u64;
        self.screen.print(&format!("finished in {}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60));
        if let Some(verdict) = &self.verdict {
            self.screen.print(&verdict.line());
        }
        self.screen.print(&format!("see it with: report {}", self.run.out.display()));
    }

    /// The number of the step at a position of the schedule, from 0.
    fn step_at(&self, position: u64) -> u64 {
        position.saturating_add_signed(-self.progress.ahead())
    }

    /// Saves and stops, because somebody asked for it or the time is nearly over.
    fn interrupt(&mut self, asked: bool) -> Result<Ended> {
        self.save()?;
        let limit = self.clock.limit().filter(|_| !asked);
        let why = limit.map_or(String::new(), |limit| format!(", in time for --time-limit {limit}"));
        self.screen.print(&format!("stopped after step {}{why}; {}", self.progress.step, self.resume_hint()));
        Ok(Ended::With(Outcome::Interrupted))
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
            plan.drop_path(&mut drop, config.data_seed(), epoch, images, config.drop_path_rate);
            Part { drop, pixels }
        };
        let hyper = of.hyper.numbers(plan).map(|x| x as f32);
        Step { hyper, parts: parts.map(part).collect() }
    }

    /// Takes and logs the reports that are there, oldest first, and waits for more while more than `most` are missing.
    fn take_reports(&mut self, most: usize) -> Result<()> {
        while let queued @ 1.. = self.pending.len() {
            let found = self.device.report(&self.plan, queued, queued > most).map_err(|e| self.lost(e))?;
            let Some((m, step)) = found.and_then(|m| Some((m, self.pending.pop_front()?))) else { break };
            if m[monitor::FINITE] != 1.0 {
                self.pending.clear(); // the steps after it changed nothing
                return Err(self.not_finite(&step));
            }
            let report = Report::new(&m, &self.plan);
            self.progress.step += 1;
            self.progress.epoch_loss += report.loss;
            let took = self.reported.elapsed();
            self.reported = Instant::now();
            self.write_step(&step, &report, took);
        }
        Ok(())
    }

    /// Names the images that could not be read, by any process, once each. Where many have one cause (a shard that is gone), it is printed
    /// once.
    fn take_unreadable(&mut self, step: u64) -> Result<()> {
        let (all, splits) = (self.run.unreadable, self.run.splits);
        all.collect_at_first(&self.run.group, &*splits.train, &*splits.test)?;
        let unreadable = all.take(Some(&*splits.test));
        unreadable_lines(&unreadable).iter().for_each(|line| self.screen.print(line));
        for entry in unreadable {
            self.row(json!({
                "kind": "unreadable",
                "step": step,
                "part": if entry.of_test { "test" } else { "train" },
                "image": entry.image,
                "error": entry.error.message,
                "count": entry.count,
            }));
        }
        Ok(())
    }

    /// Appends a row to the log. Where that fails the run ends at the next agreement, and what it has learned is saved first.
    fn row(&mut self, row: Value) {
        let ended = self.log_error.is_some();
        if let Some(Err(e)) = self.log.as_mut().filter(|_| !ended).map(|log| log.row(row)) {
            self.log_error = Some(e);
        }
    }

    /// Notes in the log, once, that messages have no reader any more.
    fn note_silence(&mut self) {
        if let Some(why) = output::messages_lost().filter(|_| !self.silence_noted) {
            self.silence_noted = true;
            let step = self.progress.step.saturating_sub(1);
            self.row(json!({"kind": "messages_lost", "step": step, "error": why}));
        }
    }

    /// Saves the state after the steps queued so far. All processes come here together, and the first one writes.
    fn save(&mut self) -> Result<()> {
        self.take_reports(0)?;
        let started = Instant::now();
        self.run.group.from_first(|| self.write())?;
        self.saved_step = Some(self.progress.step);
        self.clock.save_took(started.elapsed());
        self.saved = Instant::now();
        self.reported = Instant::now();
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let (out, config) = (&self.run.out, &self.run.config);
        checkpoint::save(&out.join(CHECKPOINT), &mut self.device, &self.plan, config, self.progress)
            .map_err(|e| self.unsaved(e))?;
        self.saved_step = Some(self.progress.step);
        checkpoint::save_teacher(&out.join(TEACHER), &mut self.device, &self.plan, config, self.progress)
            .map_err(|e| self.unsaved(e))
    }

    /// `took`: the time between the report before (or a save) and this one, which, reports being taken at the pace of the steps, is
    /// that between two queued steps. From it come the row's `images_per_second`, and `data_wait`, the part spent waiting for
    /// the loader.
    fn write_step(&mut self, of: &Pending, r: &Report, took: Duration) {
        let (step, h) = (self.step_at(of.number), &of.hyper);
        let epoch = of.number / self.recipe.per_epoch;
        let rate = self.run.config.batch as f64 / took.as_secs_f64();
        let wait = of.waited.as_secs_f64() / took.as_secs_f64();
        let ln_k = (self.run.config.out_dim as f64).ln();
        let numbers = metrics::Step { report: *r, hyper: h, ln_k, images_per_second: rate, data_wait: wait };
        let mut row = json!({"kind": "step", "step": step, "epoch": epoch});
        metrics::row(&numbers).into_iter().for_each(|(key, value)| row[key] = value);
        self.row(row);
        self.screen.step(of.number + 1, epoch, self.run.config.epochs, r.loss, rate, wait);
        if let Some(health) = self.detector.step(r.divergence, r.loss, r.entropy) {
            let level = if health == Health::Healthy { "note" } else { "WARNING" };
            let explanation = health.explanation(self.plan.config.objective.targets);
            self.screen.print(&format!("{level}, step {step}: {explanation}"));
        }
    }
}

/// The folder's configuration, for `--resume`.
///
/// # Errors
/// The folder has no checkpoint, or it cannot be read.
pub fn recorded(out: &Path) -> Result<Config> {
    Ok(Recorded::read(out)?.config)
}

#[cfg(test)]
mod tests;
