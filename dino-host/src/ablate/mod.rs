//! The paper's ablations as one command: variants of a configuration, each trained for several seeds, and what came of them side by side.
//!
//! Every run has a folder of its own, as `train` writes it: DIR/VARIANT/seed-N. What is finished is not run again, what was interrupted
//! goes on, so the same command goes on wherever it was stopped, and more rows or seeds may be added later. The base is run once, whatever
//! the number of comparisons that it is in.

mod comparisons;
mod page;
mod results;

pub use comparisons::{Comparison, Paper, Row, Variant};
pub use results::{Line, Outcome, Table};

use crate::config::{Config, Flags};
use crate::data::{BUILTIN, Splits, Unreadable};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::inference::features::view_of;
use crate::io::atomic::write_atomically;
use crate::report::page::shell_line;

use crate::train::{self, BEFORE_FAILURE, CHECKPOINT, Limit, Outcome as Ended, Owner, Recorded, SharedScreen};
use indicatif::MultiProgress;
use serde_json::json;
use std::cell::Cell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The folder of the base's runs.
const BASE: &str = "base";
/// The keys of a variant, beside its runs.
const KEYS: &str = "config.toml";

/// What is to be compared.
pub struct Ablation<'a, D: Device> {
    /// The device's flags.
    pub device: &'a D::Options,
    /// The base, not resolved: what follows from other keys follows from a variant's.
    pub base: Config,
    /// The keys that the user gave.
    pub named: Flags,
    /// Whether the base starts from the small preset.
    pub small: bool,
    /// The comparisons.
    pub comparisons: Vec<Comparison>,
    /// Runs of a variant; their seeds follow the base's.
    pub seeds: u64,
    /// Runs at a time.
    pub jobs: usize,
    /// The training and the test set.
    pub splits: &'a Splits,
    /// Stop at the first unreadable image.
    pub strict: bool,
    /// What the data set was opened from.
    pub data: String,
    /// The folder for all of it.
    pub out: PathBuf,
    /// Set from outside to stop after the current steps.
    pub stop: &'static AtomicBool,
    /// To have stopped so long after this moment.
    pub time_limit: Option<(Instant, Limit)>,
    /// The arguments of the command line, for the page.
    pub command: Vec<String>,
}

/// A configuration that is run, and where.
struct Trial {
    folder: PathBuf,
    /// For messages.
    name: String,
    /// The keys, for a file that `train --config` takes.
    flags: Flags,
    config: Config,
}

/// A comparison, and which of the trials each of its variants is.
struct Lines<'a> {
    of: &'a Comparison,
    lines: Vec<(Variant, usize)>,
}

impl<D: Device> Ablation<'_, D> {
    /// Runs what is not finished, and writes the tables after every run. Returns them, and whether everything is finished.
    ///
    /// # Errors
    /// The base is not valid, the folder holds runs of another configuration or is in use, a run fails for another reason than
    /// a number that is not finite, or a file cannot be written.
    pub fn run(&self) -> Result<(Vec<Table>, bool)> {
        let (trials, comparisons) = self.trials()?;
        self.check(&trials)?;
        let _owner = Owner::of(&self.out)?;
        for trial in &trials {
            let keys = toml::to_string(&trial.flags).map_err(|e| Error::new(format!("{}: {e}", trial.name)))?;
            std::fs::create_dir_all(&trial.folder)
                .and_then(|()| std::fs::write(trial.folder.join(KEYS), keys))
                .map_err(|e| {
                    Error::new(format!("cannot write {}: {e}", trial.folder.display())).hint("--out names another")
                })?;
        }
        // Seed by seed, so that an early look at the tables shows every variant.
        let runs: Vec<(usize, u64)> =
            (0..self.seeds).flat_map(|i| (0..trials.len()).map(move |trial| (trial, i))).collect();
        let (next, bars) = (AtomicUsize::new(0), MultiProgress::new());
        let clock = Clock { begun: Instant::now(), trained: Mutex::new(0), of: runs.len() };
        let (failed, writing): (Mutex<Option<Error>>, _) = (Mutex::new(None), Mutex::new(()));
        let work = || {
            while let Some(&(trial, i)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.stop.load(Ordering::Relaxed) || failed.lock().is_ok_and(|f| f.is_some()) {
                    return;
                }
                let done = self.train(&trials[trial], i, &bars).and_then(|trained| {
                    // One at a time: the files are written aside under one name.
                    let one = writing.lock();
                    self.write(&self.tables(&trials, &comparisons))?;
                    drop(one);
                    if trained {
                        bars.suspend(|| clock.print(next.load(Ordering::Relaxed).min(runs.len()), self.jobs));
                    }
                    Ok(())
                });
                if let (Err(e), Ok(mut failed)) = (done, failed.lock()) {
                    failed.get_or_insert(e);
                    return;
                }
            }
        };
        // Every worker has threads of its own: in one pool a run waits for the other's steps.
        let threads = (rayon::current_num_threads() / self.jobs).max(1);
        let pools = (0..self.jobs).map(|_| rayon::ThreadPoolBuilder::new().num_threads(threads).build());
        let pools = pools.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| {
            Error::new(format!("cannot start {} times {threads} threads: {e}", self.jobs)).hint("fewer --jobs")
        })?;
        std::thread::scope(|scope| {
            for pool in &pools {
                scope.spawn(|| pool.install(work));
            }
        });
        if let Ok(Some(e)) = failed.into_inner() {
            return Err(e);
        }
        let tables = self.tables(&trials, &comparisons);
        self.write(&tables)?;
        let finished = runs.iter().all(|&(trial, i)| self.is_over(&trials[trial], i));
        Ok((tables, finished))
    }

    /// The base and what differs from it, each once, and which of them the variants are. A variant that is no configuration beside the
    /// base's keys is left out, which is printed.
    fn trials(&self) -> Result<(Vec<Trial>, Vec<Lines<'_>>)> {
        let resolve = |flags: &Flags| {
            let mut config = self.base.clone();
            config.set(flags);
            let mut config = config.resolve_for(D::MICRO_BATCH_TOKENS)?;
            config.eval_view = view_of(&config, &*self.splits.train).name().into();
            Ok::<Config, Error>(config)
        };
        let base = resolve(&Flags::default())?;
        let mut trials = vec![Trial {
            folder: self.out.join(BASE),
            name: BASE.into(),
            flags: self.named.clone(),
            config: base.clone(),
        }];
        let mut comparisons = Vec::new();
        for of in &self.comparisons {
            let mut lines = Vec::new();
            for variant in &of.variants {
                let config = match resolve(&variant.flags) {
                    Ok(config) => config,
                    Err(e) => {
                        errln!("note: {} is left out: {}", variant.name, e.message);
                        continue;
                    }
                };
                // All runs are trained on one opened set.
                let drawn = self.data == BUILTIN && config.global_size != base.global_size;
                if drawn || config.choose_on != base.choose_on || config.decode() != base.decode() {
                    return Err(Error::new(format!("{} would be trained on other images than the base", variant.name))
                        .hint("compare that by two commands: --choose-on, --channels, --white and the like are given to all variants"));
                }
                let trial = match trials.iter().position(|trial| trial.config == config) {
                    Some(known) => known,
                    None => {
                        let (folder, name) = (self.out.join(&variant.folder), variant.name.clone());
                        if let Some(other) = trials.iter().find(|trial| trial.folder == folder) {
                            return Err(Error::new(format!(
                                "two variants are called {}: {} and {name}",
                                variant.folder, other.name
                            ))
                            .hint("each needs a name of its own, other than base"));
                        }
                        let flags = variant.flags.clone().over(self.named.clone());
                        trials.push(Trial { folder, name, flags, config });
                        trials.len() - 1
                    }
                };
                lines.push((variant.clone(), trial));
            }
            // A comparison without the base would compare with nothing.
            if !lines.iter().any(|(_, trial)| *trial == 0) {
                let flags = Flags::default();
                let base = Variant { flags, name: String::new(), folder: BASE.into(), paper: Paper::Silent };
                lines.insert(0, (base, 0));
            }
            comparisons.push(Lines { of, lines });
        }
        Ok((trials, comparisons))
    }

    fn folder(&self, trial: &Trial, i: u64) -> PathBuf {
        trial.folder.join(format!("seed-{}", trial.config.seed.wrapping_add(i)))
    }

    fn config(&self, trial: &Trial, i: u64) -> Config {
        Config { seed: trial.config.seed.wrapping_add(i), ..trial.config.clone() }
    }

    /// Refuses a folder that holds runs of other configurations or data, before anything is trained.
    fn check(&self, trials: &[Trial]) -> Result<()> {
        for trial in trials {
            for i in 0..self.seeds {
                let folder = self.folder(trial, i);
                if !folder.join(CHECKPOINT).exists() {
                    continue;
                }
                let recorded = Recorded::read(&folder)?;
                let (before, now) = (json!(recorded.config), json!(self.config(trial, i)));
                let keys = now.as_object().into_iter().flatten();
                let differs = keys.filter(|(key, value)| before[key.as_str()] != **value);
                let other =
                    differs.map(|(key, value)| format!("{key} {} instead of {value}", before[key.as_str()])).next();
                let data = recorded.data()?;
                let other =
                    other.or_else(|| (data != self.data).then(|| format!("data {data} instead of {}", self.data)));
                if let Some(other) = other {
                    return Err(Error::new(format!("{} was made with {other}", folder.display()))
                        .hint("the command that began it goes on with it; another --out starts anew"));
                }
            }
        }
        Ok(())
    }

    /// Whether nothing is left to do for a run: its last epoch is done, or a number of it was not finite.
    fn is_over(&self, trial: &Trial, i: u64) -> bool {
        let folder = self.folder(trial, i);
        folder.join(BEFORE_FAILURE).exists()
            || Recorded::read(&folder).is_ok_and(|recorded| recorded.is_finished(trial.config.epochs))
    }

    /// Trains a run to its end, or goes on with it. Returns whether there was anything to do.
    fn train(&self, trial: &Trial, i: u64, bars: &MultiProgress) -> Result<bool> {
        if self.is_over(trial, i) {
            return Ok(false);
        }
        let (out, config) = (self.folder(trial, i), self.config(trial, i));
        let _owner = Owner::of(&out)?;
        let unreadable = Unreadable::new(self.strict);
        let resume = out.join(CHECKPOINT).exists();
        let run = train::Run::<D> {
            group: Default::default(),
            device: self.device,
            command: self.train_command(trial, &config, &out),
            screen: Some(SharedScreen { bars: bars.clone(), label: format!("{}, seed {}", trial.name, config.seed) }),
            config,
            splits: self.splits,
            unreadable: &unreadable,
            resume,
            accept_changed_data: false,
            data: self.data.clone(),
            start: Cell::new(None),
            stop: self.stop,
            time_limit: self.time_limit,
            out: out.clone(),
        };
        match train::run(&run) {
            Ok(Ended::Finished) => Ok(true),
            Ok(Ended::Interrupted) => {
                self.stop.store(true, Ordering::Relaxed);
                Ok(true)
            }
            // That a variant does not train is what the comparison shows.
            Err(e) if out.join(BEFORE_FAILURE).exists() => {
                bars.suspend(|| errln!("{}, seed {}: {}", trial.name, run.config.seed, e.message));
                Ok(true)
            }
            Err(e) => Err(e),
        }
    }

    /// The command that makes the same run.
    fn train_command(&self, trial: &Trial, config: &Config, out: &Path) -> Vec<String> {
        let program = std::env::args().next().unwrap_or_else(|| "dino-host".into());
        let mut command = vec![program, "train".into()];
        command.extend(self.small.then(|| "--small".into()));
        let keys = trial.folder.join(KEYS).display().to_string();
        let rest = ["--config", &keys, "--data", &self.data, "--seed", &config.seed.to_string(), "--out"];
        command.extend(rest.map(String::from));
        command.push(out.display().to_string());
        command
    }

    /// What is there so far.
    fn tables(&self, trials: &[Trial], comparisons: &[Lines]) -> Vec<Table> {
        let line = |(variant, at): &(Variant, usize)| {
            let (trial, all) = (&trials[*at], 0..self.seeds);
            let outcomes = all.clone().filter_map(|i| Outcome::read(&self.folder(trial, i))).collect();
            let open = all.filter(|i| !self.is_over(trial, *i)).count();
            Line { name: variant.name.clone(), base: *at == 0, paper: variant.paper, outcomes, open }
        };
        let table = |of: &Lines| Table {
            name: of.of.name.clone(),
            paper: of.of.paper,
            lines: of.lines.iter().map(line).collect(),
        };
        comparisons.iter().map(table).collect()
    }

    /// The tables as JSON, Markdown and a page, each written aside and renamed.
    fn write(&self, tables: &[Table]) -> Result<()> {
        let all = json!({
            "command": self.command,
            "data": self.data,
            "seeds": self.seeds,
            "rows": tables.iter().map(Table::json).collect::<Vec<_>>(),
        });
        let text = tables.iter().map(Table::text).collect::<Vec<_>>().join("\n");
        let html = page::write(tables, &shell_line(self.command.iter().map(String::as_str)), &self.data, self.seeds);
        write_atomically(&self.out.join("ablate.json"), |f| writeln!(f, "{all:#}"))?;
        write_atomically(&self.out.join("ablate.md"), |f| f.write_all(text.as_bytes()))?;
        write_atomically(&self.out.join("ablate.html"), |f| f.write_all(html.as_bytes()))
    }
}

/// How long the rest will take.
struct Clock {
    begun: Instant,
    /// Runs that were trained, at least to a part, since then.
    trained: Mutex<u32>,
    of: usize,
}

impl Clock {
    /// `at`: runs that were begun or passed over.
    fn print(&self, at: usize, jobs: usize) {
        let Ok(mut trained) = self.trained.lock() else { return };
        *trained += 1;
        let left = (self.of - at + jobs - 1) as u32;
        let rest = (self.begun.elapsed() / *trained).saturating_mul(left);
        let rest = humantime::format_duration(Duration::from_secs(rest.as_secs().div_ceil(60) * 60));
        errln!("{at} of {} runs begun, about {rest} left", self.of);
    }
}
