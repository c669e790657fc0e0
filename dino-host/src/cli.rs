//! The command line, generic over the device: `dino-host` runs it on the CPU.

use crate::checkpoint::Checkpoint;
use crate::config::{Config, Flags};
use crate::data::{self, Decode, Faults, Splits};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::{attention, knn};
use crate::features::{self, Extractor, Tokens};
use crate::train::{self, Outcome};
use crate::{attend, check, export, inspect, memory, sheets};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use dino_kernel::init;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// DINO v1: self-distillation with no labels
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli<O: Args> {
    #[command(subcommand)]
    command: Command<O>,
}

#[derive(Subcommand)]
enum Command<O: Args> {
    /// Train a student and its teacher
    Train(Train<O>),
    /// Judge features
    #[command(subcommand)]
    Eval(Eval<O>),
    /// Write the features of every image, for other programs
    Features(Features<O>),
    /// Draw what the class token of the last block attends to
    Attend(Attend<O>),
    /// Draw the crops that a run would see, a row an image
    Crops(Crops),
    /// Print every pool and tensor of a training step and their bytes; allocates nothing
    Plan(Plan<O>),
    /// Check every gradient against finite differences in f64, on this machine
    Check,
}

#[derive(Subcommand)]
enum Eval<O: Args> {
    /// Weighted k-nearest-neighbours vote
    Knn(Knn<O>),
    /// How well the attention covers the objects of the built-in set (Jaccard index with the exact masks)
    Attention(Attention<O>),
}

#[derive(Args)]
struct Shared<O: Args> {
    /// Worker threads; 0 = one a core. The numbers do not depend on it
    #[arg(long, default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    device: O,
}

#[derive(Args)]
struct Model {
    /// Start from the small preset: minutes on two cores
    #[arg(long)]
    small: bool,
    /// Read keys from a TOML file; flags win
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

impl Model {
    /// What the user named, flags over file.
    fn named(&self) -> Result<Flags> {
        let file = self.config.as_deref().map(Config::file).transpose()?.unwrap_or_default();
        Ok(self.flags.clone().over(file))
    }

    fn resolve<D: Device>(&self, data: Option<&str>) -> Result<Config> {
        let mut config = if self.small { small(data) } else { Config::published() };
        config.set(&self.named()?);
        config.resolve_for(D::MICRO_BATCH_TOKENS)
    }
}

/// The small preset that suits the data: the built-in set's, or, where images have the size of CIFAR's, theirs. Data that cannot be
/// opened is reported when it is used.
fn small(data: Option<&str>) -> Config {
    let folder = data.filter(|data| *data != data::BUILTIN);
    let first = folder.and_then(|folder| data::open(Path::new(folder), Decode::default()).ok()?.train.image(0).ok());
    match first {
        Some(image) if (image.width, image.height) == (32, 32) => Config::small_32(),
        _ => Config::small(),
    }
}

#[derive(Args)]
struct Limit {
    /// Choose the largest --micro-batch whose plan takes at most this, such as 2GiB
    #[arg(long, value_name = "SIZE", value_parser = memory::parse)]
    mem_limit: Option<u64>,
}

#[derive(Args)]
struct Tolerance {
    /// Stop at the first image that cannot be read, instead of naming it and going on without it
    #[arg(long)]
    strict: bool,
}

impl Tolerance {
    fn faults(&self) -> Faults {
        Faults::new(self.strict)
    }
}

#[derive(Args)]
struct Train<O: Args> {
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
    #[command(flatten)]
    limit: Limit,
    #[command(flatten)]
    tolerance: Tolerance,
}

/// Whose features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    Teacher,
    Student,
    /// A freshly initialised backbone
    Random,
    /// Per-channel normalised pixels
    Pixels,
}

#[derive(Args)]
struct Source<O: Args> {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    shared: Shared<O>,
    /// checkpoint.safetensors or teacher.safetensors of a run; its configuration is used
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Images, as `train` takes them, or `builtin`
    #[arg(long, value_name = "PATH", default_value = data::BUILTIN)]
    data: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tolerance: Tolerance,
}

#[derive(Args)]
struct Knn<O: Args> {
    #[command(flatten)]
    source: Source<O>,
    /// Neighbours, a list
    #[arg(long, value_delimiter = ',', default_value = "10,20,100,200")]
    k: Vec<usize>,
    #[arg(long, default_value_t = 0.07)]
    temperature: f64,
    /// Whose features [default: teacher with --checkpoint, else pixels]
    #[arg(long)]
    which: Option<Which>,
}

#[derive(Args)]
struct Attention<O: Args> {
    #[command(flatten)]
    source: Source<O>,
    /// Whose attention [default: teacher with --checkpoint, else random]
    #[arg(long)]
    which: Option<Which>,
    /// Part of a head's attention mass that its mask keeps
    #[arg(long, default_value_t = 0.6)]
    keep: f64,
}

#[derive(Args)]
struct Attend<O: Args> {
    /// checkpoint.safetensors or teacher.safetensors of a run
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// A picture file, any size
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Folder for the pictures
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Shorter side the image is resized to, pixels; 0 = the run's global crop
    #[arg(long, default_value_t = 0)]
    size: usize,
    /// Part of a head's attention mass that its mask keeps
    #[arg(long, default_value_t = 0.6)]
    keep: f64,
    #[command(flatten)]
    shared: Shared<O>,
}

#[derive(Args)]
struct Features<O: Args> {
    /// checkpoint.safetensors or teacher.safetensors of a run
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// Images, as `train` takes them, or `builtin`
    #[arg(long, value_name = "PATH")]
    data: String,
    /// Folder for the array and the list of images
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Whose weights: teacher or student
    #[arg(long, default_value = "teacher", value_parser = ["teacher", "student"])]
    which: String,
    #[arg(long, default_value = "class")]
    tokens: Tokens,
    #[arg(long, default_value = "npy")]
    format: export::Format,
    #[command(flatten)]
    shared: Shared<O>,
    #[command(flatten)]
    tolerance: Tolerance,
}

#[derive(Args)]
struct Crops {
    #[command(flatten)]
    model: Model,
    /// The configuration of this run's checkpoint.safetensors or teacher.safetensors, instead of flags
    #[arg(long, value_name = "FILE", conflicts_with_all = ["small", "config"])]
    checkpoint: Option<PathBuf>,
    /// Images, as `train` takes them, or `builtin`
    #[arg(long, value_name = "PATH")]
    data: String,
    /// Folder for the sheets
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How many images, in the order in which the epoch takes them
    #[arg(long, default_value_t = 16)]
    images: usize,
    /// Which epoch, counted from 0
    #[arg(long, default_value_t = 0)]
    epoch: u64,
    #[command(flatten)]
    tolerance: Tolerance,
}

#[derive(Args)]
struct Plan<O: Args> {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    limit: Limit,
    #[command(flatten)]
    options: O,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Whose bytes: this program's device, by name
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

/// Set by Ctrl-C and SIGTERM; the second one ends the program at once.
static STOP: AtomicBool = AtomicBool::new(false);

/// Runs the program on device `D`: 0 done, 1 a check failed, 2 an error, 130 interrupted.
pub fn main<D: Device>(program: &str) -> ExitCode {
    match Cli::<D::Options>::try_parse() {
        Ok(cli) => match dispatch::<D>(cli.command) {
            Ok(code) => ExitCode::from(code),
            Err(e) => {
                eprintln!("{program}: {e}");
                ExitCode::from(2)
            }
        },
        // Help and version are not errors.
        Err(e) if !e.use_stderr() || e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = e.print();
            ExitCode::from(if e.use_stderr() { 2 } else { 0 })
        }
        Err(e) => {
            eprintln!("{program}: {}", brief(&e.render().to_string()));
            ExitCode::from(2)
        }
    }
}

/// What the parser says over several lines as one, and a hint.
fn brief(text: &str) -> Error {
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let (mut message, mut hint) = (Vec::new(), "--help lists the commands and flags".to_string());
    for line in lines.by_ref().take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more")) {
        match line.strip_prefix("tip: ").or(line.strip_prefix("[").and_then(|l| l.strip_suffix("]"))) {
            Some(tip) => hint = tip.into(),
            None => message.push(line.trim_start_matches("error: ")),
        }
    }
    Error::new(message.join(" ")).hint(hint)
}

fn dispatch<D: Device>(command: Command<D::Options>) -> Result<u8> {
    match command {
        Command::Train(args) => run_train::<D>(args),
        Command::Eval(Eval::Knn(args)) => run_knn::<D>(args),
        Command::Eval(Eval::Attention(args)) => run_attention::<D>(args),
        Command::Attend(args) => run_attend::<D>(args),
        Command::Features(args) => run_features::<D>(args),
        Command::Crops(args) => run_crops::<D>(args),
        Command::Plan(args) => run_plan::<D>(args),
        Command::Check => Ok(if check::run() { 0 } else { 1 }),
    }
}

/// The device is there, and as many threads as asked for.
fn start<D: Device>(shared: &Shared<D::Options>) -> Result<()> {
    D::ready(&shared.device)?;
    rayon::ThreadPoolBuilder::new().num_threads(shared.threads).build_global().map_err(|e| {
        Error::new(format!("cannot start {} threads: {e}", shared.threads)).hint("--threads 0 takes one a core")
    })
}

fn open(data: &str, config: &Config) -> Result<Splits> {
    if data == data::BUILTIN {
        Ok(data::builtin(config.global_size, config.channels))
    } else {
        data::open(Path::new(data), config.decode())
    }
}

/// The first of runs/1, runs/2, … that does not exist.
fn free_folder() -> PathBuf {
    (1..).map(|i| PathBuf::from(format!("runs/{i}"))).find(|p| !p.exists()).expect("folders are finite")
}

/// A new run's configuration, its micro-batch chosen by `--mem-limit` if that is given.
fn sized<D: Device>(options: &D::Options, model: &Model, limit: &Limit, data: Option<&str>) -> Result<Config> {
    let config = model.resolve::<D>(data)?;
    match (limit.mem_limit, model.named()?.micro_batch) {
        (None, _) => Ok(config),
        (Some(limit), None | Some(0)) => memory::fit::<D>(options, config, limit),
        (Some(_), Some(m)) => {
            Err(Error::new(format!("--mem-limit chooses the micro-batch, --micro-batch {m} names it"))
                .hint("leave one of the two out"))
        }
    }
}

fn run_plan<D: Device>(args: Plan<D::Options>) -> Result<u8> {
    args.device.as_deref().map_or(Ok(()), inspect::check_kind::<D>)?;
    let config = sized::<D>(&args.options, &args.model, &args.limit, None)?;
    inspect::print::<D>(&args.options, &config, args.json)?;
    Ok(0)
}

fn run_train<D: Device>(args: Train<D::Options>) -> Result<u8> {
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
            eprintln!("--epochs {epochs} instead of {}: the schedules are recomputed for it", config.epochs);
            config.epochs = epochs;
        }
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
    eprintln!(
        "{} training and {} test images ({data}); crops of {} pixels, {} images a step in parts of {}; {} into {}",
        splits.train.len(),
        splits.test.len(),
        config.global_size,
        config.batch,
        config.micro_batch,
        if args.resume { "going on" } else { "training" },
        out.display()
    );
    say_left_out(&config);
    if config.warmup_epochs > config.epochs {
        eprintln!(
            "note: the learning rate warms up over {} epochs, the run has {}",
            config.warmup_epochs, config.epochs
        );
    }
    // Setting the handler fails only if one is set already, as when the library runs twice in one process.
    let _ = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step; once more to stop at once");
    });
    let (resume, faults) = (args.resume, args.tolerance.faults());
    let run = train::Run::<D> { device, config, splits: &splits, faults: &faults, out, resume, data, stop: &STOP };
    Ok(match train::run(&run)? {
        Outcome::Finished => 0,
        Outcome::Interrupted => 130,
    })
}

/// Colour operations are asked for by default, and some mean nothing without colours.
fn say_left_out(config: &Config) {
    let left_out = config.augment().left_out();
    if !left_out.is_empty() {
        eprintln!("note: images of --channels {} are not changed by {}", config.channels, left_out.join(", "));
    }
}

/// The configuration, and for networks the backbone's weights, that `which` means.
fn network<D: Device>(source: &Source<D::Options>, which: Which) -> Result<(Config, Option<Vec<f32>>)> {
    let checkpoint = source.checkpoint.as_deref().map(Checkpoint::open).transpose()?;
    let config = match &checkpoint {
        Some(c) => c.config.clone(),
        // Without a checkpoint the small preset says what the crops look like.
        None => {
            let (config, flags) = (source.model.config.clone(), source.model.flags.clone());
            Model { small: true, config, flags }.resolve::<D>(Some(&source.data))?
        }
    };
    let weights = match (which, checkpoint) {
        (Which::Pixels, _) => None,
        (Which::Random, _) => {
            let table = config.table();
            let mut weights = Vec::new();
            weights.try_reserve_exact(table.len()).map_err(|_| {
                Error::new(format!("not enough memory for {} weights", table.len())).hint("smaller sizes take less")
            })?;
            weights.resize(table.len(), 0.0);
            init::weights(&mut weights, &table, config.seed, config.init_std);
            weights.truncate(table.backbone_len());
            Some(weights)
        }
        (Which::Teacher, Some(c)) => Some(c.backbone("teacher")?),
        (Which::Student, Some(c)) => Some(c.backbone("student")?),
        (Which::Teacher | Which::Student, None) => {
            return Err(Error::new("--which teacher and student need --checkpoint FILE")
                .hint("--which pixels and --which random need none"));
        }
    };
    Ok((config, weights))
}

fn run_knn<D: Device>(args: Knn<D::Options>) -> Result<u8> {
    start::<D>(&args.source.shared)?;
    if args.k.contains(&0) || args.k.is_empty() || !(args.temperature > 0.0 && args.temperature.is_finite()) {
        return Err(
            Error::new("--k and --temperature are above 0").hint("published: --k 10,20,100,200 --temperature 0.07")
        );
    }
    let trained = args.source.checkpoint.is_some();
    let which = args.which.unwrap_or(if trained { Which::Teacher } else { Which::Pixels });
    let (mut config, weights) = network::<D>(&args.source, which)?;
    let splits = open(&args.source.data, &config)?;
    let unlabelled = || Error::new(format!("{} has no labels", args.source.data)).hint("class folders give labels");
    if splits.train.classes().is_empty() || splits.test.classes().is_empty() {
        return Err(unlabelled());
    }
    let (train, test, faults) = (&*splits.train, &*splits.test, args.source.tolerance.faults());
    // The preset may enlarge small images for its patches; pixels by themselves are taken as they are, unless a size was asked for.
    if which == Which::Pixels && !trained && args.source.model.named()?.global_size.is_none() {
        match faults.image(train, 0)? {
            Some(first) if first.width == first.height => {
                config.global_size = config.global_size.min(first.width);
            }
            _ => (),
        }
    }
    let (bank, queries) = match weights {
        None => (features::pixels(train, &faults, &config)?, features::pixels(test, &faults, &config)?),
        Some(weights) => {
            let mut extractor = Extractor::<D>::new(&args.source.shared.device, &config, &weights)?;
            (extractor.run(train, &faults, |_| ())?, extractor.run(test, &faults, |_| ())?)
        }
    };
    faults.say();
    let (bank_labels, labels) = bank.labels(train).zip(queries.labels(test)).ok_or_else(unlabelled)?;
    let width = bank.rows.ncols();
    let scores = knn::evaluate(bank.rows, &bank_labels, queries.rows, &labels, &args.k, args.temperature)?;
    let name = format!("{which:?}").to_lowercase();
    if args.source.json {
        let json = serde_json::json!({
            "which": name, "bank": bank_labels.len(), "queries": labels.len(), "width": width,
            "temperature": args.temperature, "scores": scores,
        });
        println!("{json}");
    } else {
        println!("k-NN, {name}, {width} numbers an image, bank {}, queries {}", bank_labels.len(), labels.len());
        println!("{:>6} {:>8} {:>8}", "k", "top-1 %", "top-5 %");
        scores.iter().for_each(|s| println!("{:>6} {:>8.2} {:>8.2}", s.k, s.top1, s.top5));
    }
    Ok(0)
}

fn run_attention<D: Device>(args: Attention<D::Options>) -> Result<u8> {
    start::<D>(&args.source.shared)?;
    let trained = args.source.checkpoint.is_some();
    let which = args.which.unwrap_or(if trained { Which::Teacher } else { Which::Random });
    let (config, weights) = network::<D>(&args.source, which)?;
    let weights =
        weights.ok_or_else(|| Error::new("pixels do not attend").hint("--which teacher, student or random"))?;
    let splits = open(&args.source.data, &config)?;
    let jaccard = attention::evaluate::<D>(&args.source.shared.device, &config, &weights, &*splits.test, args.keep)?;
    let name = format!("{which:?}").to_lowercase();
    if args.source.json {
        println!("{}", serde_json::json!({"which": name, "keep": args.keep, "jaccard": jaccard}));
    } else {
        println!("Jaccard index of attention masks with the objects, {name}, {} images", splits.test.len());
        jaccard.heads.iter().enumerate().for_each(|(h, j)| println!("head {h}: {j:.3}"));
        println!("best head of every image: {:.3}", jaccard.best);
    }
    Ok(0)
}

fn run_features<D: Device>(args: Features<D::Options>) -> Result<u8> {
    start::<D>(&args.shared)?;
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let (config, weights) = (&checkpoint.config, checkpoint.backbone(&args.which)?);
    let (splits, faults) = (open(&args.data, config)?, args.tolerance.faults());
    let mut extractor = Extractor::<D>::of(args.tokens, &args.shared.device, config, &weights)?;
    let written = export::write(&mut extractor, config, args.tokens, &splits, &faults, args.format, &args.out);
    faults.say();
    eprintln!("{}", written?);
    Ok(0)
}

fn run_crops<D: Device>(args: Crops) -> Result<u8> {
    let config = match &args.checkpoint {
        Some(file) => Checkpoint::open(file)?.config,
        None => args.model.resolve::<D>(Some(&args.data))?,
    };
    let (splits, faults) = (open(&args.data, &config)?, args.tolerance.faults());
    say_left_out(&config);
    let drawn = sheets::draw(&config, &*splits.train, &faults, args.epoch, args.images, &args.out);
    faults.say();
    eprintln!("{}", drawn?);
    Ok(0)
}

fn run_attend<D: Device>(args: Attend<D::Options>) -> Result<u8> {
    start::<D>(&args.shared)?;
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let weights = checkpoint.backbone("teacher")?;
    let image = data::decode(&args.image, checkpoint.config.decode())?;
    attend::draw::<D>(&args.shared.device, &checkpoint.config, &weights, &image, args.size, args.keep, &args.out)?;
    Ok(0)
}
