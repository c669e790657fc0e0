//! What the commands share: flags, and what they mean.

use crate::config::{Config, Flags, PRESETS};
use crate::data::{self, Dataset, Splits, Unreadable};
use crate::device::Device;
use crate::dist::{Group, PATIENCE};
use crate::error::{Error, Result};
use crate::image::augment::EvalView;
use crate::image::{Decode, White};
use crate::inference::features::{first_readable, view_of};
use crate::planning::memory;
use crate::train;
use crate::weights;
use clap::{Args, ValueEnum};
use dino_kernel::init;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Shared<O: Args> {
    /// Worker threads; 0 = one a core, and a part of the cores for processes that share them. No result depends on it
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// How long processes that share a run wait for one that does not come, before all end: 10m, 3600 (seconds) [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = super::train::time)]
    pub rank_timeout: Option<train::Limit>,
    #[command(flatten)]
    pub device: O,
    /// The processes that share the work, where the command shares it.
    #[arg(skip)]
    pub group: Group,
}

#[derive(Args)]
pub struct Model {
    /// Start from the small preset: minutes on two cores
    #[arg(long)]
    pub small: bool,
    /// Start from a published configuration; without a name they are listed with their sources
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "", conflicts_with = "small")]
    pub preset: Option<String>,
    /// Read keys from a TOML file; flags win
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub flags: Flags,
}

impl Model {
    /// What the user named: flags over the file over the published configuration.
    ///
    /// # Errors
    /// The configuration file cannot be read, or there is no such published configuration.
    pub fn named(&self) -> Result<Flags> {
        let file = self.config.as_deref().map(Config::file).transpose()?.unwrap_or_default();
        let preset = self.preset.as_deref().map(Config::preset).transpose()?.unwrap_or_default();
        Ok(self.flags.clone().over(file).over(preset))
    }

    /// Gives a new run of several processes a shard for each, unless the user names another number.
    ///
    /// # Errors
    /// As [`Model::named`].
    pub fn shard_for(&mut self, ranks: usize) -> Result<()> {
        if ranks != 1 && self.named()?.shards.is_none() {
            self.flags.shards = Some(ranks);
        }
        Ok(())
    }

    /// Whether `--preset` without a name is given; then the published configurations are printed.
    pub fn lists_presets(&self) -> bool {
        let asked = self.preset.as_deref() == Some("");
        for preset in PRESETS.iter().filter(|_| asked) {
            outln!("{}\n    {}\n    {}", preset.name, preset.source, preset.keys.replace('\n', "\n    "));
        }
        asked
    }

    /// The configuration of a new run before anything that depends on other keys is filled in.
    ///
    /// # Errors
    /// As [`Model::named`].
    pub fn start(&self, data: Option<&str>) -> Result<Config> {
        let named = self.named()?;
        let mut config = if self.small { small(data, &named) } else { Config::published() };
        config.set(&named);
        Ok(config)
    }

    /// Prints what `--small` has chosen where it depends on the images.
    ///
    /// # Errors
    /// As [`Model::named`].
    pub fn print_choice(&self, config: &Config) -> Result<()> {
        let named = self.named()?;
        if self.small && named.arch.is_none() && config.arch == Config::small_32().arch {
            errln!(
                "note: for images of this size --small is a small ResNet on crops of {} pixels, which learns more a minute; \
                 --arch vit_tiny is the ViT, which has attention to draw (attend --cam draws where a ResNet is active)",
                config.global_size
            );
        }
        Ok(())
    }

    /// The configuration of a new run: preset, file and flags, with `--white auto` resolved on `data`.
    ///
    /// # Errors
    /// The configuration file cannot be read, a value is not valid, or the data for `--white auto` cannot be used.
    pub fn resolve<D: Device>(&self, data: Option<&str>) -> Result<Config> {
        let mut config = self.start(data)?.resolve_for(D::MICRO_BATCH_TOKENS)?;
        if let (White::Found(_), Some(data)) = (config.white, data) {
            config.white = found_white(data, &config)?;
        }
        Ok(config)
    }
}

/// The small preset that suits the data and the keys that are `named`: a ViT, made for the built-in set, or a ResNet for images that are read,
/// by their size, where no ViT is asked for by `--arch` or by a key that only a ViT has. Data that cannot be opened is reported when it is used.
pub fn small(data: Option<&str>, named: &Flags) -> Config {
    /// The longest shorter side that is taken for images of CIFAR's kind.
    const SMALL: usize = 48;
    let folder = data.filter(|data| *data != data::BUILTIN);
    let how = Decode { channels: named.channels.unwrap_or(Config::small().channels), ..Decode::default() };
    let first = folder.and_then(|folder| first_readable(&*data::open(Path::new(folder), how).ok()?.train));
    let Some(image) = first else { return Config::small() };
    let (vit, resnet) = match image.width.min(image.height) {
        ..=SMALL => (Config::small_32_vit(), Config::small_32()),
        _ => (Config::small(), Config::small_64()),
    };
    let of_vit = named.patch_size.or(named.embed_dim).or(named.depth).or(named.heads).is_some();
    match named.arch.as_deref() {
        None if of_vit => vit,
        None => resnet,
        Some(arch) if !arch.starts_with("resnet") => vit,
        Some(arch) if arch == resnet.arch => resnet,
        // Another ResNet has a shape of its own.
        Some(_) => Config { widths: Vec::new(), stage_blocks: Vec::new(), ..resnet },
    }
}

/// What `--white auto` means for this data: the highest value in its training images, as far as they are examined.
fn found_white(data: &str, config: &Config) -> Result<White> {
    const IMAGES: usize = 1024;
    let range = match data {
        data::BUILTIN => None,
        path => data::Range::of(&*data::open(Path::new(path), config.decode())?.train, IMAGES),
    };
    Ok(match range.and_then(|r| Some((r.images, NonZeroU16::new(r.highest)?))) {
        Some((images, highest)) => {
            let many = if images == 1 { "" } else { "s" };
            errln!("note: --white auto is {highest}, the highest value in {images} training image{many} of 16 bits");
            White::Value(highest)
        }
        None => {
            errln!("note: --white auto found no images of 16 bits among the first training images");
            White::FULL
        }
    })
}

/// Prints a note where little is left of 16-bit images that use a part of the range.
pub fn print_few_levels(set: &dyn Dataset, config: &Config) {
    const IMAGES: usize = 64;
    let note = data::Range::of(set, IMAGES).and_then(|range| range.note(config.white.value()));
    note.iter().for_each(|note| errln!("note: {note}"));
}

#[derive(Args)]
pub struct Limit {
    /// Choose --micro-batch and --stream-crops: the coarsest split of a batch that takes at most this much memory, such as 2GiB.
    /// The scratch space of every thread is counted: where bits must not depend on the machine, give the two flags instead
    #[arg(long, value_name = "SIZE", value_parser = memory::parse)]
    pub mem_limit: Option<u64>,
}

#[derive(Args)]
pub struct Tolerance {
    /// Stop at the first unreadable image, instead of reporting it and going on without it
    #[arg(long)]
    pub strict: bool,
}

impl Tolerance {
    pub fn unreadable(&self) -> Unreadable {
        Unreadable::new(self.strict)
    }
}

/// Whose features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    Teacher,
    Student,
    /// A freshly initialized backbone
    Random,
    /// Per-channel normalized pixels
    Pixels,
}

#[derive(Args)]
pub struct Source<O: Args> {
    #[command(flatten)]
    pub model: Model,
    #[command(flatten)]
    pub shared: Shared<O>,
    /// Weights: checkpoint.safetensors or teacher.safetensors of a run, whose configuration is used, or published ones (.pth, timm, Hugging Face)
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Take the network whose tensor names begin with this prefix (`backbone`, `state_dict_ema`) for the teacher
    #[arg(long, value_name = "PREFIX", requires = "checkpoint")]
    pub network: Option<String>,
    /// Images, as `train` takes them, or `builtin`
    #[arg(long, value_name = "PATH", default_value = data::BUILTIN)]
    pub data: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub tolerance: Tolerance,
}

/// The same for a command whose work several processes share.
///
/// # Errors
/// As [`start`].
pub fn start_shared<D: Device>(shared: &mut Shared<D::Options>, group: &Group) -> Result<()> {
    shared.group = group.clone();
    group.set_patience(shared.rank_timeout.map_or(PATIENCE, |limit| limit.0));
    D::ready(&shared.device, group.local_rank())?;
    threads(group.threads(shared.threads))
}

/// Checks that the device is there, and starts as many threads as requested.
///
/// # Errors
/// The device is not there, or the threads cannot be started.
pub fn start<D: Device>(shared: &Shared<D::Options>) -> Result<()> {
    let processes = D::processes(&shared.device)?;
    if processes > 1 {
        return Err(Error::new(format!("this command works in one process, not in {processes}"))
            .hint("name one device; train, features and eval knn, linear, logistic and retrieval share their work"));
    }
    D::ready(&shared.device, 0)?;
    threads(shared.threads)
}

/// Starts the worker threads: `count`, or one a core for 0.
///
/// # Errors
/// The threads cannot be started, or were started before.
pub fn threads(count: usize) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .build_global()
        .map_err(|e| Error::new(format!("cannot start {count} threads: {e}")).hint("--threads 0 takes one a core"))
}

/// Opens the data and prints what was passed over in it.
///
/// # Errors
/// There is no usable data set at `data`.
pub fn open(data: &str, config: &Config) -> Result<Splits> {
    let mut splits = if data == data::BUILTIN {
        data::builtin(config.global_size, config.channels)
    } else {
        data::open(Path::new(data), config.decode())?
    };
    if config.chooses_on_training_images() {
        splits = data::to_choose_on(splits);
        let (learned, chosen) = (splits.train.len(), splits.test.len());
        splits.notes.push(format!("--choose-on train-split: {learned} training images are left to learn from, {chosen} stand for the test images"));
    }
    splits.notes.iter().for_each(|note| errln!("note: {note}"));
    Ok(splits)
}

/// How images become evaluation views, decided once and for all sets: the training images decide it where the configuration does not.
/// `trained`: the configuration is that of weights, which is where it should be stored.
pub fn settle_view(config: &mut Config, train: &dyn Dataset, trained: bool) -> EvalView {
    let view = view_of(config, train);
    if trained && config.eval_view().is_none() {
        let how = match view {
            EvalView::Whole => "they are used entire, as the first one has the size of the crops",
            EvalView::ResizeCrop => {
                "they are resized and cropped, as the first one does not have the size of the crops"
            }
        };
        errln!("note: the weights do not state how images become evaluation views: {how}; --eval-view sets it");
    }
    config.eval_view = view.name().into();
    view
}

/// A new run's configuration, its micro-batch and passes chosen by `--mem-limit`, of each of `ranks` processes, if that is given.
///
/// # Errors
/// The configuration is not valid, no micro-batch fits `--mem-limit`, or both `--mem-limit` and `--micro-batch` are given.
pub fn sized<D: Device>(
    options: &D::Options,
    model: &Model,
    limit: &Limit,
    data: Option<&str>,
    ranks: usize,
) -> Result<Config> {
    let config = model.resolve::<D>(data)?;
    let named = model.named()?;
    match (limit.mem_limit, named.micro_batch) {
        (None, _) => Ok(config),
        (Some(limit), None | Some(0)) => {
            let streams = named.stream_crops.map_or(vec![false, true], |named| vec![named]);
            memory::fit::<D>(options, config, &streams, limit, ranks)
        }
        (Some(_), Some(m)) => {
            Err(Error::new(format!("--mem-limit chooses the micro-batch, --micro-batch {m} names it"))
                .hint("leave one of the two out"))
        }
    }
}

/// Color operations are on by default, and some mean nothing without colors.
pub fn print_left_out(config: &Config) {
    let left_out = config.augment().left_out();
    if !left_out.is_empty() {
        errln!("note: images of --channels {} are not changed by {}", config.channels, left_out.join(", "));
    }
}

/// The configuration and the backbone's weights of a network (teacher or student, or `called` by a prefix of its tensor names) in a file of any
/// known kind.
///
/// # Errors
/// The file cannot be read, or does not hold that network.
pub fn backbone(file: &Path, network: &str, called: Option<&str>) -> Result<(Config, Vec<f32>)> {
    read(file, network, called, None)
}

/// The same, with the attention heads of a file that does not state how many.
fn read(file: &Path, network: &str, called: Option<&str>, heads: Option<usize>) -> Result<(Config, Vec<f32>)> {
    let network = if network == "student" { "student" } else { "teacher" };
    let found = weights::read(file, network, called, heads)?;
    let report = &found.report;
    // What differs from the program that wrote them is never silent; this program's own files need no note.
    if report.naming != weights::Naming::Own {
        report.left_out.iter().for_each(|part| errln!("note: {part} is left out"));
        report.notes.iter().for_each(|note| errln!("note: {note}"));
    }
    Ok((found.config, found.backbone))
}

/// A checkpoint's configuration. How files become pixels may be given anew, and the norms' epsilon (weights of other programs do not state
/// them); other flags that contradict it are refused, for they would be passed over in silence.
///
/// # Errors
/// The configuration file cannot be read, a flag contradicts the checkpoint, or a value is not valid.
pub fn recorded(config: &Config, model: &Model) -> Result<Config> {
    let (mut config, mut named) = (config.clone(), model.named()?);
    config.mean = named.mean.take().unwrap_or(config.mean);
    config.std = named.std.take().unwrap_or(config.std);
    config.norm_eps = named.norm_eps.take().unwrap_or(config.norm_eps);
    config.ignore_exif = named.ignore_exif.take().unwrap_or(config.ignore_exif);
    config.fast_decode = named.fast_decode.take().unwrap_or(config.fast_decode);
    config.eval_view = named.eval_view.take().unwrap_or(config.eval_view);
    config.white = named.white.take().unwrap_or(config.white);
    // A run may have left images out to choose its settings by; what is evaluated now does not follow from that.
    config.choose_on = named.choose_on.take().unwrap_or_else(|| Config::published().choose_on);
    if let White::Found(_) = config.white {
        return Err(Error::new("--white auto is for training: it is recorded as the number that is found")
            .hint("leave it out, or give the number, such as --white 4095"));
    }
    let other = if model.small { Some("--small".into()) } else { config.contradictions(&named).into_iter().next() };
    match other {
        None => config.resolve(),
        Some(other) => Err(Error::new(format!("the run of --checkpoint was not made with {other}"))
            .hint("leave the flag out: the checkpoint's configuration is used")),
    }
}

/// The configuration, and for networks the backbone's weights, that `which` means.
///
/// # Errors
/// `which` needs a checkpoint that is not given or cannot be read, a flag contradicts it, or random weights do not fit the memory.
pub fn network<D: Device>(source: &Source<D::Options>, which: Which) -> Result<(Config, Option<Vec<f32>>)> {
    let of = if which == Which::Student { "student" } else { "teacher" };
    // Of a run that is not wanted but for its configuration, the teacher is there in every kind of file.
    let called = source.network.as_deref();
    if let (Some(called), Which::Student) = (called, which) {
        return Err(Error::new(format!("--which student is another network than --network {called}"))
            .hint("--network alone names it"));
    }
    let file = source.checkpoint.as_deref();
    let checkpoint = file.map(|file| read(file, of, called, source.model.flags.heads)).transpose()?;
    let config = match &checkpoint {
        Some((config, _)) => recorded(config, &source.model)?,
        // Without a checkpoint the small preset decides how the crops are made.
        None => {
            let Model { preset, config, flags, .. } = &source.model;
            let (small, preset) = (preset.is_none(), preset.clone());
            Model { small, preset, config: config.clone(), flags: flags.clone() }.resolve::<D>(Some(&source.data))?
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
        (Which::Teacher | Which::Student, Some((_, weights))) => Some(weights),
        (Which::Teacher | Which::Student, None) => {
            return Err(Error::new("--which teacher and student need --checkpoint FILE")
                .hint("--which pixels and --which random need none"));
        }
    };
    Ok((config, weights))
}

/// A backbone's name in a table, and its weights in the table's layout.
pub type Named = (String, Vec<f32>);

/// The networks to compare in one table: their names, one configuration, their weights. None named: the teacher of the checkpoint, or
/// random weights without one.
///
/// # Errors
/// As [`network`]; or pixels are among `which`.
pub fn networks<D: Device>(source: &Source<D::Options>, which: &[Which]) -> Result<(Config, Vec<Named>)> {
    let trained = source.checkpoint.is_some();
    let default = if trained { Which::Teacher } else { Which::Random };
    let (first, rest) = which.split_first().unwrap_or((&default, &[]));
    let named = |which: Which| -> Result<(Config, Named)> {
        let (of, weights) = network::<D>(source, which)?;
        let weights =
            weights.ok_or_else(|| Error::new("pixels are no network").hint("--which teacher, student or random"))?;
        Ok((of, (format!("{which:?}").to_lowercase(), weights)))
    };
    let (config, first) = named(*first)?;
    let mut all = vec![first];
    for which in rest {
        all.push(named(*which)?.1);
    }
    Ok((config, all))
}
