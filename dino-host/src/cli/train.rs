//! The command `train`.

use super::shared::{
    Limit, Model, Shared, Tolerance, open, print_few_levels, print_left_out, settle_view, sized, start_shared,
};
use crate::config::Config;
use crate::data::{self, Splits};
use crate::device::Device;
use crate::dist::{Group, launch};
use crate::error::{Error, Result};
use crate::image::White;
use crate::io::signals;
use crate::planning::memory;
use crate::train::{self, Outcome, Owner, Recorded};
use crate::weights::checkpoint::Checkpoint;
use crate::weights::init;
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

#[derive(Args)]
pub struct Train<O: Args> {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    pub(super) shared: Shared<O>,
    /// Images: a folder, a list, shards, IDX or CIFAR files (see the README); without it --small draws its own
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Folder for the run; the first free runs/N if not given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on from the checkpoint in --out, with its configuration
    #[arg(long)]
    resume: bool,
    /// Student and teacher start from these weights: a run's, or published ones (.pth, timm, Hugging Face)
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    init_from: Option<PathBuf>,
    /// Which of the file's networks to start from, by the prefix of its tensor names (`student`, `state_dict_ema`) [default: the teacher]
    #[arg(long, value_name = "PREFIX", requires = "init_from")]
    network: Option<String>,
    /// What to do with their projection head
    #[arg(long, value_name = "HOW", default_value = "keep", requires = "init_from")]
    init_head: init::Head,
    /// Adapt them to another number of channels: summed for one, repeated and scaled for more
    #[arg(long, requires = "init_from")]
    init_channels: bool,
    /// With --resume: go on although the images differ from those the run began with; run.json records from which step on
    #[arg(long, requires = "resume")]
    accept_changed_data: bool,
    /// Save and stop (exit code 130) before the program has run for this long: 3h55m, 90m, 3600 (seconds), 3:55:00, 1-02:00:00
    #[arg(long, value_name = "TIME", value_parser = time)]
    time_limit: Option<train::Limit>,
    #[command(flatten)]
    limit: Limit,
    #[command(flatten)]
    tolerance: Tolerance,
}

/// A time for the command line, where an error is a text.
pub(super) fn time(text: &str) -> Result<train::Limit, String> {
    text.parse().map_err(|e: Error| format!("{}: {}", e.message, e.hint.unwrap_or_default()))
}

/// Set by signals.
pub(super) static STOP: AtomicBool = AtomicBool::new(false);

/// Where runs go that name no folder.
const RUNS: &str = "runs";

/// A run that goes on: the lock of its folder, its configuration, and where its images are.
struct GoingOn {
    owner: Owner,
    config: Config,
    data: String,
}

/// What `--resume` goes on with; `None` if there is nothing left to do, which is reported.
fn go_on<D: Device>(args: &Train<D::Options>, out: &Path) -> Result<Option<GoingOn>> {
    let mut named = args.model.named()?;
    named.white.take_if(|white| matches!(white, White::Found(_))); // the run has what was found
    let recorded = Recorded::read(out)?;
    let (config, _) = recorded.change(&named)?;
    if recorded.is_finished(config.epochs) {
        Checkpoint::open(&out.join(train::CHECKPOINT))?.whole(&recorded.config.plan(D::RECOMPUTE)?)?;
        let (epochs, steps, out) = (config.epochs, recorded.progress.step, out.display());
        let more = epochs.saturating_add(epochs.div_ceil(2));
        errln!("the run in {out} is finished: {}, {steps} steps", train::epochs(epochs));
        errln!("to train longer: train --resume --epochs {more} --out {out}");
        return Ok(None);
    }
    let owner = Owner::of(out)?;
    let recorded = Recorded::read(out)?; // it does not change from here on
    let (config, changes) = recorded.change(&named)?;
    if let Some(limit) = args.limit.mem_limit {
        memory::check::<D>(&args.shared.device, &config, limit, args.shared.group.size())?;
    }
    let data = args.data.clone().map_or_else(|| recorded.data(), Ok)?;
    let config = config.resolve_for(D::MICRO_BATCH_TOKENS)?;
    changes.iter().for_each(|change| errln!("from step {} on: {change}", recorded.progress.step));
    Ok(Some(GoingOn { owner, config, data }))
}

/// Refuses to begin a run in a folder that already holds one.
fn check_new(out: &Path) -> Result<()> {
    if out.join(train::CHECKPOINT).exists() {
        drop(Owner::of(out)?); // the error names the process that works on the run, rather than that there is a run
        return Err(holds_a_run(out));
    }
    Ok(())
}

fn holds_a_run(out: &Path) -> Error {
    Error::new(format!("{} already holds a run", out.display()))
        .hint("--resume goes on with it, another --out starts a new one")
}

/// The configuration, what to train on, and the images.
fn prepare<D: Device>(
    args: &Train<D::Options>,
    going_on: Option<(Config, String)>,
    ranks: usize,
) -> Result<(Config, String, Splits)> {
    let (mut config, data) = match (going_on, &args.data) {
        (Some(going_on), _) => going_on,
        (None, None) if !args.model.small => {
            return Err(
                Error::new("what to train on? --data PATH").hint("--data builtin, or --small, draws its own images")
            );
        }
        (None, data) => {
            let data = data.clone().unwrap_or_else(|| data::BUILTIN.into());
            let config = sized::<D>(&args.shared.device, &args.model, &args.limit, Some(&data), ranks)?;
            args.model.print_choice(&config)?;
            (config, data)
        }
    };
    train::plan::<D>(&config, ranks)?;
    let splits = open(&data, &config)?;
    settle_view(&mut config, &*splits.train, args.resume);
    Ok((config, data, splits))
}

/// Runs the command `train`; returns the exit code.
///
/// # Errors
/// The device, the configuration, the data set, the initial weights or the run's folder are not usable, or training fails.
pub fn run<D: Device>(mut args: Train<D::Options>, group: &Group) -> Result<u8> {
    if args.model.lists_presets() {
        return Ok(0);
    }
    let started = Instant::now();
    start_shared::<D>(&mut args.shared, group)?;
    if !args.resume {
        args.model.shard_for(group.size())?;
    }
    let mut held = None;
    let going_on = match (args.resume, &args.out) {
        (true, None) => {
            return Err(Error::new("--resume needs --out").hint("--out DIR is the folder of the run to go on with"));
        }
        (true, Some(out)) => {
            let going_on = group.from_first(|| {
                let going_on = go_on::<D>(&args, out)?;
                Ok(going_on.map(|GoingOn { owner, config, data }| {
                    held = Some(owner);
                    (config, data)
                }))
            })?;
            match going_on {
                None => return Ok(0),
                going_on => going_on,
            }
        }
        (false, out) => {
            group.from_first(|| out.as_deref().map_or(Ok(()), check_new))?;
            None
        }
    };
    // Every process opens the images for itself; where one cannot, all end.
    let (config, data, splits) = group.all(prepare::<D>(&args, going_on, group.size()))?;
    let device = &args.shared.device;
    let from = args.init_from.as_deref();
    let mut start = None;
    let out = group.from_first(|| {
        start = from
            .map(|file| init::start(file, args.network.as_deref(), &config, args.init_head, args.init_channels))
            .transpose()?;
        // A new run takes its folder when everything that may be wrong has been checked.
        let owner = match (held.take(), &args.out) {
            (Some(owner), _) => owner,
            (None, Some(out)) => Owner::of(out)?,
            (None, None) => Owner::of_new_in(Path::new(RUNS))?,
        };
        let out = owner.folder().to_owned();
        if !args.resume && out.join(train::CHECKPOINT).exists() {
            return Err(holds_a_run(&out)); // begun and ended while the images were examined
        }
        held = Some(owner);
        Ok(out)
    })?;
    errln!(
        "{} training and {} test images ({data}); crops of {} pixels, {} images a step in parts of {}{}; {} into {}",
        splits.train.len(),
        splits.test.len(),
        config.global_size,
        config.batch,
        config.micro_batch,
        if config.stream_crops { ", their crops one pass after another" } else { "" },
        if args.resume { "going on" } else { "training" },
        out.display()
    );
    print_left_out(&config);
    print_few_levels(&*splits.train, &config);
    if let (Some(file), Some(start)) = (from, &start) {
        errln!("student and teacher start from {}", file.display());
        start.notes.iter().for_each(|note| errln!("note: {note}"));
    }
    config.never_arrives().iter().for_each(|note| errln!("note: {note}"));
    if let Some(limit) = args.time_limit {
        errln!("saving and stopping before {limit} are over");
    }
    if group.size() > 1 {
        group.note().iter().for_each(|note| errln!("note: {note}"));
    }
    if launch::from_environment().is_some_and(|launch| launch.by.brings_mpi()) {
        errln!("SIGUSR1 to the launcher saves and stops; after Ctrl-C and SIGTERM some launchers leave no time for it");
    }
    signals::watch(&STOP);
    let (resume, unreadable) = (args.resume, args.tolerance.unreadable());
    let command = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let start = start.into();
    let run = train::Run::<D> {
        device,
        config,
        splits: &splits,
        unreadable: &unreadable,
        out,
        resume,
        accept_changed_data: args.accept_changed_data,
        data,
        start,
        stop: &STOP,
        time_limit: args.time_limit.map(|limit| (started, limit)),
        command,
        screen: None,
        group: group.clone(),
    };
    Ok(match train::run(&run)? {
        Outcome::Finished => 0,
        Outcome::Interrupted => 130,
    })
}
