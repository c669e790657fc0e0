//! `train`.

use super::shared::{Limit, Model, Shared, Tolerance, open, say_few_levels, say_left_out, sized, start};
use crate::data::{self, White};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::memory;
use crate::train::{self, Outcome};
use crate::weights::init;
use clap::Args;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Args)]
pub struct Train<O: Args> {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    shared: Shared<O>,
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
    /// What becomes of their projection head
    #[arg(long, value_name = "HOW", default_value = "keep", requires = "init_from")]
    init_head: init::Head,
    /// Take them for another number of channels: summed for one, repeated and scaled for more
    #[arg(long, requires = "init_from")]
    init_channels: bool,
    #[command(flatten)]
    limit: Limit,
    #[command(flatten)]
    tolerance: Tolerance,
}

/// Set by Ctrl-C and SIGTERM; the second one ends the program at once.
static STOP: AtomicBool = AtomicBool::new(false);

/// The first of runs/1, runs/2, … that does not exist.
fn free_folder() -> PathBuf {
    (1..).map(|i| PathBuf::from(format!("runs/{i}"))).find(|p| !p.exists()).expect("folders are finite")
}

pub fn run<D: Device>(args: Train<D::Options>) -> Result<u8> {
    start::<D>(&args.shared)?;
    let device = &args.shared.device;
    let out = match (args.out, args.resume) {
        (Some(out), _) => out,
        (None, false) => free_folder(),
        (None, true) => {
            return Err(Error::new("--resume needs --out").hint("--out DIR is the folder of the run to go on with"));
        }
    };
    let recorded = if args.resume { Some(train::recorded(&out)?) } else { None };
    let data = match (args.data, args.resume, args.model.small) {
        (Some(data), ..) => data,
        (None, true, _) => train::recorded_data(&out)?,
        (None, false, true) => data::BUILTIN.into(),
        (None, false, false) => {
            return Err(
                Error::new("what to train on? --data PATH").hint("--data builtin, or --small, draws its own images")
            );
        }
    };
    let config = if let Some(mut config) = recorded {
        let mut named = args.model.named()?;
        if let Some(epochs) = named.epochs.take().filter(|e| *e != config.epochs) {
            errln!("--epochs {epochs} instead of {}: the schedules are recomputed for it", config.epochs);
            config.epochs = epochs;
        }
        named.white.take_if(|white| matches!(white, White::Found(_))); // the run has what was found
        if let Some(other) = config.contradictions(&named).first() {
            return Err(Error::new(format!("the run in {} cannot go on with {other}", out.display()))
                .hint("leave the flag out, or start a new run; only --epochs, --threads and paths may change"));
        }
        if let Some(limit) = args.limit.mem_limit {
            memory::check::<D>(device, &config, limit)?;
        }
        config.resolve_for(D::MICRO_BATCH_TOKENS)?
    } else {
        if out.join(train::CHECKPOINT).exists() {
            return Err(Error::new(format!("{} already holds a run", out.display()))
                .hint("--resume goes on with it, another --out starts a new one"));
        }
        sized::<D>(device, &args.model, &args.limit, Some(&data))?
    };
    let splits = open(&data, &config)?;
    errln!(
        "{} training and {} test images ({data}); crops of {} pixels, {} images a step in parts of {}{}; {} into {}",
        splits.train.len(),
        splits.test.len(),
        config.global_size,
        config.batch,
        config.micro_batch,
        if config.stream_crops { ", their crops in turns" } else { "" },
        if args.resume { "going on" } else { "training" },
        out.display()
    );
    say_left_out(&config);
    say_few_levels(&*splits.train, &config);
    let from = args.init_from.as_deref();
    let start = from.map(|file| init::start(file, &config, args.init_head, args.init_channels)).transpose()?;
    if let (Some(file), Some(start)) = (from, &start) {
        errln!("student and teacher start from {}", file.display());
        start.said.iter().for_each(|note| errln!("note: {note}"));
    }
    if config.warmup_epochs > config.epochs {
        errln!("note: the learning rate warms up over {} epochs, the run has {}", config.warmup_epochs, config.epochs);
    }
    // Setting the handler fails only if one is set already, as when the library runs twice in one process.
    let _ = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        errln!("stopping after this step; once more to stop at once");
    });
    let (resume, faults) = (args.resume, args.tolerance.faults());
    let command = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let start = start.into();
    let run = train::Run::<D> {
        device,
        config,
        splits: &splits,
        faults: &faults,
        out,
        resume,
        data,
        start,
        stop: &STOP,
        command,
    };
    Ok(match train::run(&run)? {
        Outcome::Finished => 0,
        Outcome::Interrupted => 130,
    })
}
