//! How a run begins or goes on: the device is filled, and `run.json` records what the run is made of.

use super::resume::{self, Known, Recorded};
use super::{CHECKPOINT, MANIFEST, Run};
use crate::config::Config;
use crate::data::Dataset;
use crate::device::Device;
use crate::dist::Group;
use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use crate::weights::checkpoint::{self, Checkpoint, Progress, Unsaved};
use dino_kernel::init;
use dino_kernel::mem::Pool;
use dino_kernel::plan::Plan;
use serde_json::{Value, json};
use std::io::Write;

/// The plan of a step for each of `ranks` processes on `D`.
///
/// # Errors
/// Those of [`Config::plan_of`], or the plan takes what the device cannot do.
pub fn plan<D: Device>(config: &Config, ranks: usize) -> Result<Plan> {
    let plan = config.plan_of(D::RECOMPUTE, ranks)?;
    match D::cannot(&plan) {
        None => Ok(plan),
        Some(what) => Err(Error::new(format!("device {} cannot {what}", D::KIND)).hint("dino-host can, on the CPU")),
    }
}

/// Refuses processes that were not started alike, naming the first difference. Returns what may differ and should be known.
///
/// # Errors
/// A process has another configuration, other images or another version than the first one, or the group fails.
pub fn compare<D: Device>(run: &Run<D>, device: &D) -> Result<Vec<String>> {
    let group = &run.group;
    if group.size() == 1 {
        return Ok(Vec::new());
    }
    let mut own = json!(run.config);
    own["version"] = env!("CARGO_PKG_VERSION").into();
    own["training images"] = run.splits.train.fingerprint().into();
    own["test images"] = run.splits.test.fingerprint().into();
    let all = group.gather_each(&(own, device.arithmetic()))?;
    let ((first, arithmetic), others) = all.split_first().expect("a group has a rank");
    for (i, (other, _)) in others.iter().enumerate() {
        let differs = other.as_object().into_iter().flatten().find(|(key, value)| first[key.as_str()] != **value);
        if let Some((key, value)) = differs {
            group.end_together();
            let message = group.named(i + 1, format!("{key} is {value}, rank 0 has {}", first[key.as_str()]));
            return Err(Error::new(message)
                .hint("start all ranks with the same program and the same flags, each with the same images"));
        }
    }
    let unlike = others.iter().enumerate().find(|(_, (_, other))| other != arithmetic);
    Ok(unlike.map_or(Vec::new(), |(i, (_, other))| {
        let note = format!("computes on {other}, rank 0 on {arithmetic}: other ranks there would give other bits");
        vec![group.named(i + 1, note)]
    }))
}

/// What the first process has read or drawn goes to all others: they need no checkpoint, and no disk.
///
/// # Errors
/// The device or the group fails.
pub fn share<D: Device>(group: &Group, device: &mut D, plan: &Plan) -> Result<()> {
    const AT_ONCE: usize = 1 << 22;
    if group.size() == 1 {
        return Ok(());
    }
    let n = plan.pools;
    for (pool, len) in [(Pool::Weights, n.weights), (Pool::Slots, n.slots), (Pool::State, n.state)] {
        for at in (0..len).step_by(AT_ONCE) {
            let mut values = vec![0.0f32; AT_ONCE.min(len - at)];
            device.download(pool, at, &mut values);
            device.sync()?;
            group.broadcast(bytemuck::cast_slice_mut(&mut values))?;
            device.upload(pool, at, &values);
        }
    }
    Ok(())
}

/// Fills the device: from the checkpoint, or with the initial weights, the teacher an exact copy of the student. Returns the run's
/// progress, and the lines to print about it.
///
/// # Errors
/// The folder cannot be made, `run.json` cannot be written, or the checkpoint cannot be read or does not fit the run or its data.
pub fn start<D: Device>(run: &Run<D>, device: &mut D, plan: &Plan, per_epoch: u64) -> Result<(Progress, Vec<String>)> {
    let mut state = vec![0.0f32; plan.pools.state];
    plan.initial_state(&mut state);
    device.upload(Pool::State, 0, &state);
    if run.resume {
        return go_on(run, device, plan, per_epoch);
    }
    std::fs::create_dir_all(&run.out).map_err(|e| {
        Error::new(format!("cannot make the folder {}: {e}", run.out.display())).hint("--out names another")
    })?;
    let given = run.start.take();
    let init_from = given.as_ref().map_or(Value::Null, |start| start.record.clone());
    manifest(run, device, &Known::default(), &init_from, 0)?;
    let weights = match given {
        Some(start) => {
            for network in [&plan.student, &plan.teacher].into_iter().filter(|_| !start.buffers.is_empty()) {
                device.upload(Pool::State, network.running.0.at, &start.buffers);
            }
            start.weights
        }
        None => {
            let mut weights = vec![0.0f32; plan.table.len()];
            init::weights(&mut weights, &plan.table, run.config.seed, run.config.init_std);
            weights
        }
    };
    device.upload(Pool::Weights, 0, &weights);
    device.upload(Pool::Weights, plan.table.len(), &weights[..plan.table.of_teacher().len()]);
    Ok((Progress::default(), Vec::new()))
}

/// Goes on from the checkpoint. What has changed is in the checkpoint before it is in `run.json`: a run that is killed in between
/// finds it by comparing the two.
fn go_on<D: Device>(run: &Run<D>, device: &mut D, plan: &Plan, per_epoch: u64) -> Result<(Progress, Vec<String>)> {
    let path = run.out.join(CHECKPOINT);
    let checkpoint = Checkpoint::open(&path)?;
    checkpoint.load(device, plan)?;
    let known = Recorded::read(&run.out)?.into_known();
    let mut notes = Vec::new();
    let progress = check_data(run, &known, checkpoint.progress, per_epoch, &mut notes)?;
    if run.config != checkpoint.config || progress != checkpoint.progress {
        checkpoint::save(&path, device, plan, &run.config, progress).map_err(Unsaved::error)?;
    }
    notes.extend(manifest(run, device, &known, &known.manifest["init_from"], progress.step)?);
    let before = known.manifest["arithmetic"].as_str().filter(|before| *before != device.arithmetic());
    notes.extend(before.map(|before| {
        format!("the run was on {before}: from here on its bits may differ from those of a run that stays there")
    }));
    Ok((progress, notes))
}

/// Refuses to go on with other images than the run began with, unless that is accepted; where they are stored does not matter. Returns
/// the run's progress in the set as it is.
fn check_data<D: Device>(
    run: &Run<D>,
    known: &Known,
    progress: Progress,
    per_epoch: u64,
    notes: &mut Vec<String>,
) -> Result<Progress> {
    let (images, batch) = (run.splits.train.len(), run.config.batch as u64);
    let fingerprint = known.train["fingerprint"].as_str();
    let same = fingerprint.is_none_or(|known| known == run.splits.train.fingerprint());
    let recorded = known.train["images"].as_u64();
    if !same && !run.accept_changed_data {
        return Err(Error::new(format!(
            "{} does not hold the images that the run in {} began with ({} then, {images} now)",
            run.data,
            run.out.display(),
            recorded.map_or("unknown".into(), |n| n.to_string())
        ))
        .hint("--data names where those are now; --accept-changed-data goes on with these"));
    }
    let before = progress.moved.map(|moved| moved.per_epoch).or(recorded.map(|n| n / batch)).filter(|n| *n > 0);
    let Some(before) = before.filter(|before| *before != per_epoch) else { return Ok(progress) };
    let moved = resume::moved(progress, before, per_epoch);
    notes.push(format!(
        "an epoch has {per_epoch} steps now, {before} before: what is done stays done, {}{}",
        resume::epochs(moved.position() / per_epoch),
        match moved.position() % per_epoch {
            0 => String::new(),
            part => format!(", and {part} steps of the next"),
        }
    ));
    Ok(moved)
}

/// `run.json`: what made this run. `known` is what it was before, if the run goes on; `init_from` is null, or what it started from. Returns
/// the changes after `step` steps as lines of text.
fn manifest<D: Device>(run: &Run<D>, device: &D, known: &Known, init_from: &Value, step: u64) -> Result<Vec<String>> {
    let set = |s: &dyn Dataset| json!({"images": s.len(), "classes": s.classes(), "fingerprint": s.fingerprint()});
    let (train, test) = (set(&*run.splits.train), set(&*run.splits.test));
    // A run that goes on is still made by the command that began it.
    let command = if run.resume { known.manifest["command"].clone() } else { json!(run.command) };
    let (changes, notes) = known.changes(step, &run.config, &train, &test);
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
        "processes": run.group.description(),
        "arithmetic": device.arithmetic(),
        "data": run.data,
        "init_from": init_from,
        "train": train,
        "test": test,
        "held_out": run.splits.held_out,
        "changes": changes,
    });
    write_atomically(&run.out.join(MANIFEST), |f| writeln!(f, "{manifest:#}"))?;
    Ok(notes)
}
