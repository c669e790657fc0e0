//! Checkpoints: safetensors files with the published key names, written aside and renamed.
//!
//! `checkpoint.safetensors` holds a full run: `student.` and `teacher.` + `backbone.X` / `head.X`, `optimizer.` + the name of an
//! array of the optimizer's state (AdamW: `exp_avg`, `exp_avg_sq`; SGD: `momentum_buffer`; LARS: `mu`) + the same, `center`; in its
//! header the step, the epoch's loss so far and the configuration.
//! `teacher.safetensors` holds the teacher's backbone under bare published names.

use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use crate::weights::entries::entries;
use dino_kernel::mem::Pool;
#[cfg(doc)]
use dino_kernel::model::Table;
use dino_kernel::params::Part;
use dino_kernel::plan::Plan;
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// The progress of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimization steps done.
    pub step: u64,
    /// Sum of the losses of the current epoch's steps so far. After its last step it is what it was until the epoch has been evaluated.
    pub epoch_loss: f64,
    /// The run's place in its schedule, if that is not the number of steps done.
    pub moved: Option<Moved>,
}

/// A run whose data set has changed its size: steps done no longer tell how many epochs they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Place in the schedule minus steps done.
    pub ahead: i64,
    /// Steps of an epoch in which the place is counted.
    pub per_epoch: u64,
}

impl Progress {
    /// The place in the schedule, in steps: epochs done times steps of an epoch, and steps of the epoch under way.
    pub fn position(&self) -> u64 {
        self.step.saturating_add_signed(self.ahead())
    }

    /// Place in the schedule minus steps done.
    pub fn ahead(&self) -> i64 {
        self.moved.map_or(0, |moved| moved.ahead)
    }

    /// The same run at another place of a schedule with so many steps in an epoch.
    pub fn at(self, position: u64, per_epoch: u64, epoch_loss: f64) -> Progress {
        let ahead = (position as i64).wrapping_sub(self.step as i64);
        Progress { step: self.step, epoch_loss, moved: Some(Moved { ahead, per_epoch }) }
    }

    /// Whether all steps of an epoch are done, and it has not been evaluated.
    pub fn epoch_is_open(&self, per_epoch: u64) -> bool {
        self.epoch_loss != 0.0 && self.position() > 0 && self.position().is_multiple_of(per_epoch)
    }
}

/// Why nothing was saved.
pub enum Unsaved {
    /// A number is not finite: which.
    Spoilt(String),
    /// The device or the file: why.
    Failed(Error),
}

impl From<Error> for Unsaved {
    fn from(error: Error) -> Unsaved {
        Unsaved::Failed(error)
    }
}

impl Unsaved {
    /// As an error.
    pub fn error(self) -> Error {
        match self {
            Unsaved::Spoilt(which) => Error::new(which),
            Unsaved::Failed(error) => error,
        }
    }
}

/// A tensor on its way to a file.
pub(crate) struct Out {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

impl View for Out {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }
    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}

/// A tensor of a full run: its key in the file, and where a device has it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) key: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) pool: Pool,
    pub(crate) at: Range<usize>,
}

/// Every tensor of a full run. What is no parameter (the center; what a network keeps beside its parameters) is a row like the others, in
/// the state pool.
fn stored(p: &Plan) -> Vec<Stored> {
    let len = p.table.len();
    let slots = p.config.optimizer.slots().iter().enumerate();
    let (student, teacher) = (p.table, p.table.of_teacher());
    let networks = [("student.".into(), student, Pool::Weights, 0), ("teacher.".into(), teacher, Pool::Weights, len)];
    let slots = slots.map(|(i, name)| (format!("optimizer.{name}."), student, Pool::Slots, i * len));
    let mut all = Vec::new();
    for (prefix, table, pool, first) in networks.into_iter().chain(slots) {
        all.extend(entries(&table).into_iter().filter(|entry| !entry.buffer).map(|entry| Stored {
            key: format!("{prefix}{}", entry.key()),
            at: first + entry.at.start..first + entry.at.end,
            shape: entry.shape,
            pool,
        }));
    }
    for (prefix, table, running) in [("student.", student, p.student.running), ("teacher.", teacher, p.teacher.running)]
    {
        all.extend(entries(&table).into_iter().filter(|entry| entry.buffer).map(|entry| Stored {
            key: format!("{prefix}{}", entry.key()),
            at: running.0.at + entry.at.start..running.0.at + entry.at.end,
            shape: entry.shape,
            pool: Pool::State,
        }));
    }
    if p.config.objective.has_center() {
        let center = p.targets.rows.offset;
        all.push(Stored {
            key: "center".into(),
            shape: vec![1, center.len()],
            pool: Pool::State,
            at: center.0.range(),
        });
    }
    all
}

pub(crate) fn metadata(config: &Config, progress: Progress) -> BTreeMap<&'static str, String> {
    let mut entries = BTreeMap::from([
        ("config", serde_json::to_string(config).expect("a configuration is plain data")),
        ("step", progress.step.to_string()),
        ("epoch_loss", format!("{:016x}", progress.epoch_loss.to_bits())),
        ("version", env!("CARGO_PKG_VERSION").into()),
    ]);
    if let Some(Moved { ahead, per_epoch }) = progress.moved {
        entries.insert("ahead", ahead.to_string());
        entries.insert("per_epoch", per_epoch.to_string());
    }
    entries
}

/// Equal runs give equal files. The library takes metadata as a hash map, in an order that changes from run to run, so the entries
/// are put at the head of its header here.
pub(crate) fn write(
    path: &Path,
    tensors: Vec<(String, impl View)>,
    metadata: BTreeMap<&'static str, String>,
) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::new(format!("cannot write {}: {e}", path.display()));
    let bytes = safetensors::serialize(tensors, None).map_err(|e| failed(&e))?;
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| failed(&"no header"))?;
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let entries = serde_json::to_vec(&metadata).expect("strings are plain data");
    let mut header = [b"{\"__metadata__\":", &entries[..], b",", &header[1..]].concat();
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomically(path, |f| {
        f.write_all(&(header.len() as u64).to_le_bytes())?;
        f.write_all(&header)?;
        f.write_all(data)
    })
}

/// A number that is not finite spoils a checkpoint: what computes with it becomes so as well.
pub(crate) fn check_finite(tensors: &[(String, Out)]) -> Result<(), Unsaved> {
    for (key, Out { values, .. }) in tensors {
        if let Some(i) = values.iter().position(|x| !x.is_finite()) {
            return Err(Unsaved::Spoilt(format!("{key} is not finite: element {i} is {}", values[i])));
        }
    }
    Ok(())
}

pub(crate) fn downloaded<D: Device>(o: &mut D, tensors: Vec<Stored>) -> Vec<(String, Out)> {
    let download = |Stored { key, shape, pool, at }: Stored| {
        let mut values = vec![0.0; at.len()];
        o.download(pool, at.start, &mut values);
        (key, Out { shape, values })
    };
    tensors.into_iter().map(download).collect()
}

/// Writes everything a run needs to go on.
///
/// # Errors
/// A number is not finite, the device is lost, or the file cannot be written; the file that was there stays.
pub fn save<D: Device>(path: &Path, o: &mut D, p: &Plan, config: &Config, progress: Progress) -> Result<(), Unsaved> {
    let tensors = downloaded(o, stored(p));
    o.sync()?; // what a lost device gave must not replace a good file
    check_finite(&tensors)?;
    Ok(write(path, tensors, metadata(config, progress))?)
}

/// Writes the teacher's backbone alone.
///
/// # Errors
/// As [`save`].
pub fn save_teacher<D: Device>(
    path: &Path,
    o: &mut D,
    p: &Plan,
    config: &Config,
    progress: Progress,
) -> Result<(), Unsaved> {
    let teacher = stored(p).into_iter().filter_map(|tensor| {
        let key = tensor.key.strip_prefix("teacher.backbone.")?.to_owned();
        Some(Stored { key, ..tensor })
    });
    let tensors = downloaded(o, teacher.collect());
    o.sync()?;
    check_finite(&tensors)?;
    Ok(write(path, tensors, metadata(config, progress))?)
}

/// An open checkpoint file of either kind.
pub struct Checkpoint {
    path: String,
    bytes: Vec<u8>,
    /// The run's configuration, resolved.
    pub config: Config,
    /// The run's progress.
    pub progress: Progress,
    /// All that its header records beside tensors.
    pub(crate) recorded: HashMap<String, String>,
}

fn unreadable(name: &str, what: String) -> Error {
    Error::new(format!("cannot read the checkpoint {name}: {what}"))
        .hint("a checkpoint is the checkpoint.safetensors or teacher.safetensors of a run")
}

impl Checkpoint {
    /// Reads and checks the header; tensors are checked when they are asked for.
    ///
    /// # Errors
    /// The file cannot be read, or is no checkpoint.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let name = path.display().to_string();
        match std::fs::read(path) {
            Ok(bytes) => Checkpoint::parse(name, bytes),
            Err(e) => Err(unreadable(&name, e.to_string())),
        }
    }

    /// The same for the bytes of a file; `name` is for the errors.
    ///
    /// # Errors
    /// The header is damaged, or lacks the configuration or the progress or holds one that cannot be.
    pub fn parse(name: String, bytes: Vec<u8>) -> Result<Checkpoint> {
        let bad = |what| unreadable(&name, what);
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(format!("{e}, {} bytes", bytes.len())))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| bad(format!("{e}, {} bytes", bytes.len())))?.len();
        let entries = header.metadata().clone().unwrap_or_default();
        let entry = |k: &str| entries.get(k).ok_or_else(|| bad(format!("its header has no {k}")));
        let config: Config =
            serde_json::from_str(entry("config")?).map_err(|e| bad(format!("its configuration: {e}")))?;
        let config = config.resolve().map_err(|e| bad(format!("its configuration: {}", e.message)))?;
        if config.depth > tensors {
            return Err(bad(format!("its configuration has {} blocks, but it holds {tensors} tensors", config.depth)));
        }
        if config.head_layers > tensors {
            return Err(bad(format!(
                "its configuration has a head of {} layers, but it holds {tensors} tensors",
                config.head_layers
            )));
        }
        let step: u64 = entry("step")?.parse().map_err(|e| bad(format!("its step: {e}")))?;
        let bits = u64::from_str_radix(entry("epoch_loss")?, 16).map_err(|e| bad(format!("its epoch loss: {e}")))?;
        let number = |key: &str, text: &String| text.parse::<i64>().map_err(|e| bad(format!("its {key}: {e}")));
        let moved = match (entries.get("ahead"), entries.get("per_epoch")) {
            (Some(ahead), Some(per_epoch)) => {
                let (ahead, per_epoch) = (number("ahead", ahead)?, number("per_epoch", per_epoch)?);
                let place =
                    i64::try_from(step).ok().and_then(|step| step.checked_add(ahead)).filter(|place| *place >= 0);
                match (place, per_epoch) {
                    (Some(_), 1..) => Some(Moved { ahead, per_epoch: per_epoch as u64 }),
                    _ => return Err(bad(format!("no place in a schedule: {ahead} steps ahead, {per_epoch} an epoch"))),
                }
            }
            _ => None,
        };
        let progress = Progress { step, epoch_loss: f64::from_bits(bits), moved };
        Ok(Checkpoint { path: name, bytes, config, progress, recorded: entries })
    }

    pub(crate) fn tensor(&self, key: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let all = SafeTensors::deserialize(&self.bytes).map_err(|e| Error::new(format!("{}: {e}", self.path)))?;
        let t = all.tensor(key).map_err(|_| {
            Error::new(format!("{} has no tensor {key}", self.path))
                .hint("was it written by a run with another --arch?")
        })?;
        if t.dtype() != Dtype::F32 || t.shape() != shape {
            let found = format!("{:?} {:?}", t.dtype(), t.shape());
            return Err(Error::new(format!("{}: {key} is {found}, this plan has F32 {shape:?}", self.path))
                .hint("the configuration in the file does not fit its tensors: it was changed after the run"));
        }
        let values: Vec<f32> = t.data().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(values),
            Some(i) => Err(Error::new(format!("{}: {key} is not finite: element {i} is {}", self.path, values[i]))
                .hint("the file is damaged; go back to a numbered checkpoint (--save-every) if there is one")),
        }
    }

    /// Fills a device with a full run. Nothing is written before every tensor has been found valid.
    ///
    /// # Errors
    /// A tensor is missing or misshapen, or a number is not finite.
    pub fn load<D: Device>(&self, o: &mut D, p: &Plan) -> Result<()> {
        self.whole(p)?.iter().for_each(|(pool, at, values)| o.upload(*pool, *at, values));
        Ok(())
    }

    /// Every tensor of a full run, and where it belongs.
    ///
    /// # Errors
    /// A tensor is missing or misshapen, or a number is not finite; the error is that of the first one.
    pub fn whole(&self, p: &Plan) -> Result<Vec<(Pool, usize, Vec<f32>)>> {
        let tensor = |Stored { key, shape, pool, at }: Stored| Ok((pool, at.start, self.tensor(&key, &shape)?));
        stored(p).into_iter().map(tensor).collect()
    }

    /// Whether it holds the teacher's backbone alone, under bare names.
    pub fn is_bare(&self) -> bool {
        let first = entries(&self.config.table()).swap_remove(0);
        SafeTensors::deserialize(&self.bytes).is_ok_and(|all| all.names().contains(&first.name.as_str()))
    }

    /// A network's backbone in the table's layout: `network` is `teacher` or `student`; a file with bare names is taken for the teacher.
    ///
    /// # Errors
    /// As [`Checkpoint::load`], or the file holds the teacher alone and another network is asked for.
    pub fn backbone(&self, network: &str) -> Result<Vec<f32>> {
        self.part(network, false)
    }

    /// A network's projection head, [`Table::head_numbers`] numbers; a predictor, which the student alone has, is left out.
    ///
    /// # Errors
    /// As [`Checkpoint::load`], or the file holds no heads.
    pub fn head(&self, network: &str) -> Result<Vec<f32>> {
        self.part(network, true)
    }

    fn part(&self, network: &str, head: bool) -> Result<Vec<f32>> {
        let table = self.config.table().of_teacher();
        let bare = self.is_bare();
        if bare && (network != "teacher" || head) {
            return Err(Error::new(format!("{} holds the teacher's backbone alone", self.path))
                .hint("the student is in the run's checkpoint.safetensors"));
        }
        // The file may claim any size: memory is allocated when every tensor has been found.
        let mut found = Vec::new();
        for entry in entries(&table) {
            if (entry.part == Part::Backbone) == head {
                continue;
            }
            let at = entry.in_part(&table);
            let key = if bare { entry.name } else { format!("{network}.{}", entry.key()) };
            found.push((at, self.tensor(&key, &entry.shape)?));
        }
        let mut weights = vec![0.0; if head { table.head_numbers() } else { table.backbone_numbers() }];
        for (at, values) in &found {
            weights[at.clone()].copy_from_slice(values);
        }
        Ok(weights)
    }
}
