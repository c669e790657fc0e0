//! Weights of any known kind: checkpoints of this program, the published ones, timm's and Hugging Face's, from safetensors or `.pth`.
//!
//! A file is opened ([`open`]), its names are brought to ours, the architecture is read off the shapes, and every tensor must be where the
//! table wants it: what is missing, extra or misshapen is listed, and nothing is loaded then.

pub mod checkpoint;
mod classifier;
mod entries;
mod file;
pub mod flat;
mod infer;
pub mod init;
pub mod names;
mod networks;
pub mod onnx;
pub mod pickle;
mod pth;
mod tensors;
pub mod write;

pub use classifier::Classifier;
pub(crate) use classifier::{RECORD as CLASSIFIER_RECORD, record as classifier_record};
pub use file::{File, Format};
pub use names::Naming;
pub use networks::plain;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::checkpoint::Checkpoint;
use dino_kernel::params::Part;
use entries::entries;
use names::{Family, TensorPart, harmless};
use networks::Network;
use pickle::Dtype;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Keys that an error line names; the report has them all.
const SHOWN: usize = 3;

/// How to read a file.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Names and rules; `None` reads them off the file.
    pub naming: Option<Naming>,
    /// "teacher" (as without one) or "student", where a file has both.
    pub network: Option<&'static str>,
    /// Or the network that is stored under these words of its names.
    pub called: Option<String>,
    /// Attention heads, if the file does not state them.
    pub heads: Option<usize>,
    /// Read the projection head too, if there is one.
    pub head: bool,
    /// Read the classifier too, if there is one on the backbone's output.
    pub classifier: bool,
    /// Go on without what changes no feature: a classifier, a pooler.
    pub allow_extra: bool,
}

/// What was found in a file, key by key.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its name.
    pub file: String,
    /// The format it was read as.
    pub format: Format,
    /// The naming convention of its tensors.
    pub naming: Naming,
    /// What precedes the network's names in the file: `teacher.backbone.`, or "".
    pub container: String,
    /// Keys of the table that the file lacks.
    pub missing: Vec<String>,
    /// Keys of the file that the table does not know.
    pub extra: Vec<String>,
    /// The key, and what is wrong with its shape.
    pub misshapen: Vec<String>,
    /// Known parts that were not asked for.
    pub left_out: Vec<String>,
    /// What to know of these weights, a line each.
    pub notes: Vec<String>,
}

impl Report {
    /// As `convert --json` prints it.
    pub fn json(&self) -> Value {
        json!({
            "file": self.file, "format": self.format.name(), "dialect": self.naming.name(), "container": self.container,
            "missing": self.missing, "extra": self.extra, "misshapen": self.misshapen, "left_out": self.left_out,
            "notes": self.notes,
        })
    }

    /// Every key that does not fit, a line each.
    pub fn lines(&self) -> Vec<String> {
        let kinds = [("missing", &self.missing), ("extra", &self.extra), ("misshapen", &self.misshapen)];
        kinds.iter().flat_map(|(kind, keys)| keys.iter().map(move |key| format!("{kind}\t{key}"))).collect()
    }

    /// Checks that every key fits; the error counts those that do not, and names the first.
    ///
    /// # Errors
    /// A key is missing, extra or misshapen.
    pub fn check(&self) -> Result<()> {
        let kinds = [("missing", &self.missing), ("extra", &self.extra), ("misshapen", &self.misshapen)];
        let misfits: Vec<String> = kinds
            .iter()
            .filter(|(_, keys)| !keys.is_empty())
            .map(|(kind, keys)| {
                let first: Vec<&str> = keys.iter().take(SHOWN).map(String::as_str).collect();
                format!("{} {kind} ({}{})", keys.len(), first.join(", "), if keys.len() > SHOWN { ", …" } else { "" })
            })
            .collect();
        if misfits.is_empty() {
            return Ok(());
        }
        let only_harmless = self.missing.is_empty()
            && self.misshapen.is_empty()
            && self
                .extra
                .iter()
                .all(|key| harmless(key.strip_prefix(self.container.as_str()).unwrap_or(key)).is_some());
        let statistics = |key: &String| key.ends_with(".running_mean") || key.ends_with(".running_var");
        let no_statistics = self.extra.is_empty() && self.misshapen.is_empty() && self.missing.iter().all(statistics);
        Err(Error::new(format!("the tensors of {} do not fit: {}", self.file, misfits.join(", "))).hint(
            if no_statistics {
                "batch norms need their running means and variances: save state_dict(), not the parameters alone"
            } else if only_harmless {
                "no feature depends on them: `convert --allow-extra` leaves them out"
            } else {
                "`dino-host convert FILE --json` lists every key; `--dialect` names another way of naming"
            },
        ))
    }
}

/// Weights in this program's layout.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Of the run, for files of this program; read off the shapes else, with the published rest.
    pub config: Config,
    /// In the table's layout, [`dino_kernel::model::Table::backbone_numbers`] numbers.
    pub backbone: Vec<f32>,
    /// The projection head, [`dino_kernel::model::Table::head_numbers`] numbers, if it was asked for and is there.
    pub head: Option<Vec<f32>>,
    /// The classifier, if it was asked for and is there.
    pub classifier: Option<Classifier>,
    /// Whether the file stated how many attention heads there are; else the caller did, or they are 64 wide.
    pub heads_stated: bool,
    /// What was found, key by key.
    pub report: Report,
}

impl Weights {
    /// How many tensors they are, in the published way of counting.
    pub fn tensors(&self) -> usize {
        let head = self.head.iter().map(|h| write::head(&self.config, h).len()).sum::<usize>();
        let classifier = if self.classifier.is_some() { classifier::NAMES } else { 0 };
        write::backbone(&self.config, &self.backbone).len() + head + classifier
    }
}

/// What a file holds: the report always, the rest if everything fits.
pub struct Opened {
    /// What was found, key by key.
    pub report: Report,
    weights: Result<Weights>,
}

impl Opened {
    /// The weights, if every key fits.
    ///
    /// # Errors
    /// A key does not fit, there is no such network, or a tensor cannot be read.
    pub fn strict(self) -> Result<Weights> {
        self.weights
    }
}

/// Opens a file, or a folder of Hugging Face's or timm's (`model.safetensors` or `pytorch_model.bin`, or their parts and an index, and
/// `config.json`).
///
/// # Errors
/// As [`parse`], or a file cannot be read. What does not fit is the error of [`Opened::strict`].
pub fn open(path: &Path, options: &Options) -> Result<Opened> {
    let (path, folder) = whole(path)?;
    let mut side = Side::default();
    if let Some(folder) = folder {
        for (name, to) in [("config.json", &mut side.config), ("preprocessor_config.json", &mut side.preprocessor)] {
            let path = folder.join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => *to = serde_json::from_str(&text).map_err(|e| cannot(&path, &e))?,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => (),
                Err(e) => return Err(cannot(&path, &e)),
            }
        }
    }
    let bytes = std::fs::read(&path).map_err(|e| cannot(&path, &e))?;
    if path.extension().is_some_and(|e| e == "json") {
        return Ok(fit(&parts(&path, &bytes)?, &side, options));
    }
    parse(path.display().to_string(), bytes, &side, options)
}

fn cannot(path: &Path, e: &dyn std::fmt::Display) -> Error {
    Error::new(format!("cannot read the weights {}: {e}", path.display()))
        .hint("a checkpoint of a run, or a .pth or safetensors file of the published, timm's or Hugging Face's names")
}

/// The weights of a file of any kind, strictly. What changes no feature is left out, and listed in the report. Which network: "teacher",
/// "student", or that which is `called` so.
///
/// # Errors
/// As [`open`] and [`Opened::strict`].
pub fn read(path: &Path, network: &'static str, called: Option<&str>, heads: Option<usize>) -> Result<Weights> {
    let called = called.map(str::to_owned);
    open(path, &Options { network: Some(network), called, heads, allow_extra: true, ..Options::default() })?.strict()
}

/// Hugging Face's names of files, each alone or as an index of parts (`NAME.index.json`).
const WHOLE: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// The file itself (an index is one), and the folder that its settings are in.
fn whole(path: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let names = || WHOLE.iter().flat_map(|name| [name.to_string(), format!("{name}.index.json")]);
    if !path.is_dir() {
        // Only files under Hugging Face's own names: another's neighbors tell nothing about it.
        let named = path.file_name().and_then(|n| n.to_str());
        let known = named.is_some_and(|named| names().any(|name| name == named));
        return Ok((path.to_owned(), path.parent().filter(|_| known).map(Path::to_owned)));
    }
    if let Some(file) = names().map(|name| path.join(name)).find(|file| file.is_file()) {
        return Ok((file, Some(path.to_owned())));
    }
    // The folder of a run: its full state has both networks.
    let run = ["checkpoint.safetensors", "teacher.safetensors"]
        .map(|name| path.join(name))
        .into_iter()
        .find(|file| file.is_file());
    if let Some(file) = run {
        return Ok((file, None));
    }
    let hint = "--checkpoint names a file, the folder of a run, or a folder that Hugging Face's save_pretrained wrote";
    Err(Error::new(format!("cannot read the checkpoint {}: it is a folder without model.safetensors", path.display()))
        .hint(hint))
}

/// The parts that an index names, as one file. They are stored beside it.
fn parts(path: &Path, index: &[u8]) -> Result<File> {
    let index: Value = serde_json::from_slice(index).map_err(|e| cannot(path, &e))?;
    let no_map = || cannot(path, &"it is no index of parts: it has no weight_map of names to files");
    let map = index["weight_map"].as_object().ok_or_else(no_map)?;
    let names: BTreeSet<&str> = map.values().map(|v| v.as_str().ok_or_else(no_map)).collect::<Result<_>>()?;
    let mut files = vec![];
    for name in names {
        if name.contains(['/', '\\']) || name == ".." {
            return Err(cannot(path, &format!("its part {name} does not lie beside it")));
        }
        let part = path.with_file_name(name);
        let bytes =
            std::fs::read(&part).map_err(|e| cannot(&part, &e).hint("every part that the index names is needed"))?;
        files.push(File::parse(part.display().to_string(), bytes)?);
    }
    let file = File::join(path.display().to_string(), files)?;
    match map.keys().find(|key| !file.tensors.contains_key(*key) && !file.opaque.contains_key(*key)) {
        Some(key) => Err(cannot(path, &format!("none of its parts has {key}")).hint("do the parts belong together?")),
        None => Ok(file),
    }
}

/// What is stored beside a file, or null.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// `config.json`.
    pub config: Value,
    /// `preprocessor_config.json`.
    pub preprocessor: Value,
}

/// The same for the bytes of a file.
///
/// # Errors
/// The bytes are none of the formats or a damaged checkpoint, or `options` asks for another naming or network than a checkpoint has.
pub fn parse(name: String, bytes: Vec<u8>, side: &Side, options: &Options) -> Result<Opened> {
    let file = if !file::is_safetensors(&bytes) {
        File::parse(name, bytes)?
    } else {
        // What is no safetensors file at all is told as a broken checkpoint, and so is what claims to be one.
        match safetensors::SafeTensors::read_metadata(&bytes) {
            Ok((_, header)) if header.metadata().as_ref().is_none_or(|m| !m.contains_key("config")) => {
                File::parse(name, bytes)?
            }
            _ => return own(name, bytes, options),
        }
    };
    if options.naming == Some(Naming::Own) {
        return Err(Error::new(format!("{} was not written by this program: its header has no config", file.name))
            .hint("without --dialect its kind is looked for"));
    }
    Ok(fit(&file, side, options))
}

/// A checkpoint of this program.
fn own(name: String, bytes: Vec<u8>, options: &Options) -> Result<Opened> {
    let checkpoint = Checkpoint::parse(name.clone(), bytes)?;
    if let Some(other) = options.naming.filter(|d| *d != Naming::Own) {
        return Err(Error::new(format!("{name} is a checkpoint of this program, not {}", other.name()))
            .hint("leave --dialect out"));
    }
    let network = match options.called.as_deref().map(|called| called.trim_end_matches('.')) {
        None => options.network.unwrap_or("teacher"),
        Some("teacher" | "teacher.backbone") => "teacher",
        Some("student" | "student.backbone") => "student",
        Some(called) => {
            return Err(Error::new(format!(
                "{name} is a checkpoint of this program and has no network called {called}"
            ))
            .hint("--network teacher or student"));
        }
    };
    let bare = checkpoint.is_bare();
    let backbone = checkpoint.backbone(network)?;
    let head = if options.head && !bare { Some(checkpoint.head(network)?) } else { None };
    let mut left_out = if bare || head.is_some() { vec![] } else { vec!["the projection head".into()] };
    let classifier = if options.classifier { Classifier::of_checkpoint(&checkpoint)? } else { None };
    let mut config = checkpoint.config;
    if std::mem::take(&mut config.predictor) && network == "student" && head.is_some() {
        left_out.push(PREDICTOR.into());
    }
    let report = Report {
        file: name,
        format: Format::Safetensors,
        naming: Naming::Own,
        container: if bare { String::new() } else { format!("{network}.") },
        missing: vec![],
        extra: vec![],
        misshapen: vec![],
        left_out,
        notes: vec![],
    };
    let weights = Weights { config, backbone, head, classifier, heads_stated: true, report: report.clone() };
    Ok(Opened { report, weights: Ok(weights) })
}

/// Why no file of one network gets or gives a predictor.
const PREDICTOR: &str = "the predictor, which a student has in the checkpoint of its run alone";

/// Names of ours and the keys they have in the file.
type Keys = BTreeMap<TensorPart, String>;

/// Brings a foreign file to our table.
fn fit(file: &File, side: &Side, options: &Options) -> Opened {
    let mut report = Report {
        file: file.name.clone(),
        format: file.format,
        naming: Naming::Official,
        container: String::new(),
        missing: vec![],
        extra: vec![],
        misshapen: vec![],
        left_out: vec![],
        notes: vec![],
    };
    let weights = load(file, side, options, &mut report);
    let weights = weights.map(|w| Weights { report: report.clone(), ..w }).map_err(|mut e| {
        // What the file asked for and did not get may be why, and is worth knowing whatever else is wrong.
        e.message.extend(file.notes.iter().map(|note| format!("; {note}")));
        e
    });
    Opened { report, weights }
}

/// What a file has of a network.
struct Inside<'a> {
    /// Keys, and the names without what precedes them.
    bare: Vec<(&'a str, String)>,
    /// Known parts beside it, which change no feature.
    harmless: BTreeSet<&'static str>,
    /// How many other tensors there are.
    others: usize,
}

fn inside<'a>(names: impl Iterator<Item = &'a String>, network: &Network) -> Inside<'a> {
    // Heads are stored beside a backbone, or within it.
    let wrappers = wrappers(network.family);
    let outer = wrappers.into_iter().find_map(|prefix| network.path.strip_suffix(prefix));
    let mut all = Inside { bare: vec![], harmless: BTreeSet::new(), others: 0 };
    for key in names {
        let name = networks::plain(key);
        let beside = outer.and_then(|outer| name.strip_prefix(outer));
        let head = beside.filter(|name| name.starts_with("head.") && harmless(name).is_none());
        if let Some(name) = name.strip_prefix(&network.path).or(head) {
            all.bare.push((key.as_str(), bared(name, wrappers)));
        } else if let Some(what) = beside.and_then(harmless) {
            all.harmless.insert(what);
        } else {
            all.others += 1;
        }
    }
    all
}

/// The tensors by the published names, and the keys and names that have none. An error where one is wanted that is no plain tensor.
fn published_names(
    file: &File,
    network: &Network,
    bare: Vec<(&str, String)>,
    naming: Naming,
) -> Result<(Keys, Vec<(String, String)>)> {
    let (mut keys, mut others) = (Keys::new(), vec![]);
    let names = network.family.names();
    let published = |name: &str| (names.published)(naming, name);
    for (key, name) in bare {
        let known = published(&name).filter(|_| !name.ends_with(".num_batches_tracked"));
        match known.filter(|p| !keys.contains_key(p) && harmless(&name).is_none()) {
            Some(part) => drop(keys.insert(part, key.to_owned())),
            None => others.push((key.to_owned(), name)),
        }
    }
    // What a wanted tensor is made of must be known, all else may be anything.
    for (key, name) in inside(file.opaque.keys(), network).bare {
        if published(&name).is_some_and(|p| (names.is_ours)(&p.name) && !keys.contains_key(&p)) {
            let made = &file.opaque[key];
            return Err(Error::new(format!("{}: {key} is no plain tensor: {made} makes it", file.name))
                .hint(pth::plain_tensors(made)));
        }
    }
    Ok((keys, others))
}

/// `len` numbers: of every part (key, offset, length) the tensor's. Shapes fit what the file holds, so these are no more than are in it.
fn values(file: &File, parts: Vec<(&String, usize, usize)>, len: usize, report: &mut Report) -> Result<Vec<f32>> {
    let mut all = vec![0.0; len];
    let mut types: BTreeMap<&str, usize> = BTreeMap::new();
    for (key, at, len) in parts {
        all[at..at + len].copy_from_slice(&file.values(key)?);
        let dtype = file.tensors[key].dtype;
        if dtype != Dtype::F32 {
            *types.entry(dtype.name()).or_default() += 1;
        }
    }
    let converted = types.into_iter().map(|(name, n)| format!("{n} tensors of {name} are converted to float32"));
    report.notes.extend(converted);
    Ok(all)
}

fn load(file: &File, side: &Side, options: &Options, report: &mut Report) -> Result<Weights> {
    let (network, notes) = networks::choose(file, options.network, options.called.as_deref())?;
    report.container = network.raw.clone();
    report.notes.extend(file.notes.iter().cloned().chain(notes));
    let Inside { bare, harmless: beside, others } = inside(file.tensors.keys(), &network);
    report.left_out.extend(beside.into_iter().map(String::from));
    if others > 0 {
        report.notes.push(format!("tensors beside that network that are not used: {others}"));
    }
    let names = network.family.names();
    if let Some((key, what)) = bare.iter().find_map(|(key, name)| Some((key, (names.foreign)(name)?))) {
        let count = bare.iter().filter(|(_, name)| (names.foreign)(name) == Some(what)).count();
        return Err(Error::new(format!(
            "{} has {what}, which this program has not: {key} ({count} such keys)",
            file.name
        ))
        .hint(names.reads));
    }
    let hf = bare.iter().any(|(_, name)| (names.is_hf)(name));
    report.naming = options.naming.unwrap_or(if hf {
        Naming::Hf
    } else if side.config.get("pretrained_cfg").is_some() {
        Naming::Timm
    } else {
        Naming::Official
    });
    let (mut keys, mut others) = published_names(file, &network, bare, report.naming)?;
    let (config, heads_stated) =
        infer::config(network.family, infer::Source { file, keys: &keys, side, options }, report)?;
    let classifier = match options.classifier {
        true => Classifier::of_file(file, side, &network, config.table().backbone.dim())?,
        false => None,
    };
    if classifier.is_some() {
        others.retain(|(_, name)| !classifier::is_name(name));
        report.left_out.retain(|part| part != classifier::HARMLESS);
    }
    let part = |word: &'static str| move |tensor_part: &TensorPart| tensor_part.name.starts_with(word);
    let has_head = keys.keys().any(part("head.last_layer."));
    let with_head = options.head && has_head;
    if !with_head && keys.keys().any(part("head.")) {
        keys.retain(|tensor_part, _| !part("head.")(tensor_part));
        report.left_out.push(if has_head { "the projection head" } else { "a head of another kind" }.into());
    }

    if keys.keys().any(part("head.predictor.")) {
        keys.retain(|tensor_part, _| !part("head.predictor.")(tensor_part));
        report.left_out.push(PREDICTOR.into());
    }

    // What the table wants, chunk by chunk, and where it goes.
    let table = config.table();
    let (mut wanted, mut parts) = (BTreeSet::new(), vec![]);
    for entry in entries(&table) {
        if !(entry.part == Part::Backbone || with_head) {
            continue;
        }
        let spelled = (names.spelled)(report.naming, &entry.name);
        let first = if entry.part == Part::Head { table.backbone_numbers() } else { 0 };
        let mut at = first + entry.in_part(&table).start;
        let mut shape = entry.shape;
        shape[0] /= spelled.len();
        let len: usize = shape.iter().product();
        for (i, shown) in spelled.iter().enumerate() {
            let tensor_part = TensorPart { name: entry.name.clone(), third: (spelled.len() > 1).then_some(i) };
            match keys.get(&tensor_part) {
                None => report.missing.push(format!("{}{shown}", report.container)),
                Some(key) => {
                    let found = &file.tensors[key].shape;
                    if *found == shape {
                        parts.push((key, at, len));
                    } else {
                        report.misshapen.push(format!("{key} {found:?}, not {shape:?}"));
                    }
                }
            }
            wanted.insert(tensor_part);
            at += len;
        }
    }
    report
        .extra
        .extend(keys.iter().filter(|(tensor_part, _)| !wanted.contains(tensor_part)).map(|(_, key)| key.clone()));
    for (key, name) in others {
        // A batch norm's count of its batches: no number of it is used here or in evaluation.
        if name.ends_with(".num_batches_tracked") {
            continue;
        }
        match harmless(&name) {
            Some(what) if options.allow_extra => {
                if !report.left_out.iter().any(|known| known == what) {
                    report.left_out.push(what.into());
                }
            }
            _ => report.extra.push(key),
        }
    }
    report.check()?;

    let in_head = if with_head { table.head_numbers() } else { 0 };
    let mut all = values(file, parts, table.backbone_numbers() + in_head, report)?;
    for entry in entries(&table).into_iter().filter(|entry| entry.buffer && entry.part == Part::Backbone) {
        if entry.name.ends_with(".running_var")
            && let Some(x) = all[entry.in_part(&table)].iter().find(|x| **x < 0.0)
        {
            return Err(Error::new(format!("{}: {} has the variance {x}", file.name, entry.name))
                .hint("the file is damaged: no variance is negative; copy or download it again"));
        }
    }
    if options.head && !has_head {
        report.notes.push("there is no projection head in it".into());
    }
    let head = with_head.then(|| all.split_off(table.backbone_numbers()));
    Ok(Weights { config, backbone: all, head, classifier, heads_stated, report: report.clone() })
}

/// Attributes that programs put around a network.
fn wrappers(family: Family) -> [&'static str; 2] {
    ["backbone.", family.names().attribute]
}

/// A name without what wrappers put in front, with the prototypes' two tensors as PyTorch called them before 2.0, and a head's layers
/// always in a list.
fn bared(name: &str, wrappers: [&str; 2]) -> String {
    let mut name = name;
    // Around some tensors of a network and not around others, in any order.
    while let Some(inner) = wrappers.into_iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = inner;
    }
    match name {
        // The published head of one layer has no list.
        "head.mlp.weight" => "head.mlp.0.weight".into(),
        "head.mlp.bias" => "head.mlp.0.bias".into(),
        "head.last_layer.parametrizations.weight.original0" => "head.last_layer.weight_g".into(),
        "head.last_layer.parametrizations.weight.original1" => "head.last_layer.weight_v".into(),
        _ => name.into(),
    }
}
