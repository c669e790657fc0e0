//! The command `finetune`.

use super::eval::{one_class, unlabelled};
use super::shared::{Shared, Tolerance, Which, open, settle_view, start};
use super::train::{STOP, time};
use crate::config::Config;
use crate::data::{self, Splits};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::scores::Labels;
use crate::finetune::{self, Flags, Opened, recorded};
use crate::io::signals;
use crate::train::{self, CHECKPOINT, Outcome, Owner};
use crate::weights;
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Args)]
pub struct Finetune<O: Args> {
    /// Weights: checkpoint.safetensors or teacher.safetensors of a run, or published ones (.pth, timm, Hugging Face)
    #[arg(long, value_name = "FILE", required_unless_present = "resume", conflicts_with = "resume")]
    checkpoint: Option<PathBuf>,
    /// Labeled images, as `train` takes them, or `builtin`
    #[arg(long, value_name = "PATH", required_unless_present = "resume")]
    data: Option<String>,
    /// Folder for the fine-tuning
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on from the checkpoint in --out, with its recipe
    #[arg(long)]
    resume: bool,
    /// Whose weights to start from; random is the same recipe from scratch
    #[arg(long, default_value = "teacher", conflicts_with = "resume")]
    which: Which,
    /// Start from the network whose tensor names begin with this prefix instead: `backbone`, `state_dict_ema`
    #[arg(long, value_name = "PREFIX", requires = "checkpoint")]
    network: Option<String>,
    /// Number of attention heads, for a file that does not state it [default: heads 64 wide]
    #[arg(long, value_name = "N", requires = "checkpoint")]
    heads: Option<usize>,
    /// How test images become the squares that the network takes: resize-crop, whole or auto [default: as recorded with the weights]
    #[arg(long, requires = "checkpoint")]
    eval_view: Option<String>,
    /// Save and stop (exit code 130) before the program has run for this long: 3h55m, 90m, 3600 (seconds), 3:55:00, 1-02:00:00
    #[arg(long, value_name = "TIME", value_parser = time)]
    time_limit: Option<train::Limit>,
    #[command(flatten)]
    recipe: Flags,
    #[command(flatten)]
    shared: Shared<O>,
    #[command(flatten)]
    tolerance: Tolerance,
}

/// Where a run begins: the backbone's configuration and weights (none for drawn ones), and what `run.json` records of them.
type Begin = (Config, Option<Vec<f32>>, Value);

fn begin<O: Args>(args: &Finetune<O>, file: &Path) -> Result<Begin> {
    let network = match args.which {
        Which::Student => "student",
        Which::Teacher | Which::Random => "teacher",
        Which::Pixels => {
            return Err(Error::new("pixels are no network").hint("--which teacher, student or random"));
        }
    };
    let found = weights::read(file, network, args.network.as_deref(), args.heads)?;
    if found.report.naming != weights::Naming::Own {
        found.report.notes.iter().for_each(|note| errln!("note: {note}"));
    }
    let mut config = Config { choose_on: Config::published().choose_on, ..found.config };
    if let Some(view) = &args.eval_view {
        config = Config { eval_view: view.clone(), ..config }.resolve()?;
    }
    let which = format!("{:?}", args.which).to_lowercase();
    let source = json!({"file": file.display().to_string(), "which": which, "network": args.network});
    Ok((config, (args.which != Which::Random).then_some(found.backbone), source))
}

/// The labels of both parts, of two classes at least.
fn labels(splits: &Splits, data: &str) -> Result<Labels> {
    let several = splits.train.len() + splits.test.len() > 1;
    let (train, test) = match (finetune::labels(&*splits.train), finetune::labels(&*splits.test)) {
        (Some(train), Some(test)) if !splits.train.classes().is_empty() => (train, test),
        (Some(_), None) => {
            return Err(Error::new(format!("the test part of {data} has no labels that fit its training part"))
                .hint("both parts need labels: class folders, or a list beside the images"));
        }
        _ => return Err(unlabelled(data)),
    };
    if let Some(class) = data::only_class(splits).filter(|_| several) {
        return Err(one_class(data, class));
    }
    let labels = Labels::new(splits.train.classes(), &train, &test);
    match labels.classes.len() {
        0 | 1 => Err(one_class(data, labels.classes.first().map_or("", String::as_str))),
        _ => Ok(labels),
    }
}

/// Runs the command `finetune`; returns the exit code.
///
/// # Errors
/// The device, the weights, the recipe, the labeled data set or the folder are not usable, or training fails.
pub fn run<D: Device>(args: Finetune<D::Options>) -> Result<u8> {
    let started = Instant::now();
    start::<D>(&args.shared)?;
    let out = &args.out;
    let there = out.join(CHECKPOINT);
    let (owner, opened) = match args.resume {
        true if !there.exists() => {
            return Err(Error::new(format!("there is no fine-tuning in {}: it has no {CHECKPOINT}", out.display()))
                .hint("--resume goes on from a folder that `finetune --out` has written; leave it out to start anew"));
        }
        true => (Some(Owner::of(out)?), Some(Opened::open(&there)?)),
        false if there.exists() => {
            return Err(Error::new(format!("{} already holds a run", out.display()))
                .hint("--resume goes on with it, another --out starts a new one"));
        }
        false => (None, None),
    };
    let (mut config, weights, source, recipe, data) = match (&opened, &args.checkpoint) {
        (Some(opened), _) => {
            opened.recipe.check_same(&args.recipe, &out.display().to_string())?;
            let known = recorded(out);
            let data = args.data.clone().or(known["data"].as_str().map(String::from));
            let data = data.ok_or_else(|| {
                Error::new(format!("{} does not state what was fine-tuned on", out.display()))
                    .hint("name the data with --data")
            })?;
            (opened.config().clone(), None, Value::Null, opened.recipe.clone(), data)
        }
        (None, Some(file)) => {
            let (config, weights, source) = begin(&args, file)?;
            let recipe = args.recipe.resolve(&config, D::MICRO_BATCH_TOKENS)?;
            (config, weights, source, recipe, args.data.clone().unwrap_or_default())
        }
        (None, None) => return Err(Error::new("--checkpoint FILE names the weights to start from").hint("or --resume")),
    };
    let splits = open(&data, &config)?;
    settle_view(&mut config, &*splits.train, true);
    let labels = labels(&splits, &data)?;
    if let Some(opened) = &opened {
        let steps = recipe.epochs * (splits.train.len() / recipe.batch) as u64;
        if opened.progress().step >= steps && opened.progress().epoch_loss == 0.0 {
            errln!("the fine-tuning in {} is finished: {}", out.display(), train::epochs(recipe.epochs));
            return Ok(0);
        }
    }
    recipe.plan(&config, labels.classes.len(), D::RECOMPUTE)?;
    // A new run takes its folder when everything that may be wrong has been checked.
    let _owner = owner.map_or_else(|| Owner::of(out), Ok)?;
    errln!(
        "{} training and {} test images of {} classes ({data}); {} pixels, {} images a step in parts of {}; {} into {}",
        splits.train.len(),
        splits.test.len(),
        labels.classes.len(),
        config.global_size,
        recipe.batch,
        recipe.micro_batch,
        if args.resume { "going on" } else { "fine-tuning" },
        out.display()
    );
    match (recipe.blocks, args.which) {
        (Some(0), _) => errln!("the classifier alone is trained"),
        (Some(n), _) => errln!("the last {n} blocks and the classifier are trained"),
        (None, Which::Random) => errln!("from scratch: the weights of --checkpoint are not used, its shape is"),
        _ => (),
    }
    signals::watch(&STOP);
    let unreadable = args.tolerance.unreadable();
    let run = finetune::Run::<D> {
        device: &args.shared.device,
        config,
        recipe,
        splits: &splits,
        labels,
        unreadable: &unreadable,
        out: out.clone(),
        resume: opened,
        data,
        start: weights.into(),
        source,
        stop: &STOP,
        time_limit: args.time_limit.map(|limit| (started, limit)),
        command: std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
    };
    match finetune::run(&run)? {
        Outcome::Finished => {
            errln!("the model: {}", out.join(finetune::MODEL).display());
            Ok(0)
        }
        Outcome::Interrupted => Ok(130),
    }
}
