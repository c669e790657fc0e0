//! How a fine-tuning begins or goes on.

use super::{Opened, Run};
use crate::data::Dataset;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use crate::train::MANIFEST;
use crate::weights::checkpoint::Progress;
use dino_kernel::finetune::Plan;
use dino_kernel::init;
use dino_kernel::mem::Pool;
use dino_kernel::params::ParamTable;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// Fills the device: from the checkpoint, or with the backbone to start from and a drawn classifier. Returns the run's progress, and the
/// lines to print about it.
///
/// # Errors
/// The folder cannot be made, `run.json` cannot be written, or the checkpoint does not fit the run or its data.
pub fn start<D: Device>(run: &Run<D>, device: &mut D, plan: &Plan) -> Result<(Progress, Vec<String>)> {
    let mut state = vec![0.0f32; plan.pools.state];
    plan.initial_state(&mut state);
    device.upload(Pool::State, 0, &state);
    if let Some(opened) = &run.resume {
        return go_on(run, opened, device, plan);
    }
    std::fs::create_dir_all(&run.out).map_err(|e| {
        Error::new(format!("cannot make the folder {}: {e}", run.out.display())).hint("--out names another")
    })?;
    let mut weights = vec![0.0f32; plan.table.len()];
    init::weights(&mut weights, &plan.table, run.recipe.seed, run.config.init_std);
    if let Some(start) = run.start.take() {
        let (parameters, buffers) = start.split_at(plan.table.backbone.len());
        weights[..parameters.len()].copy_from_slice(parameters);
        device.upload(Pool::State, plan.running.0.at, buffers);
    }
    device.upload(Pool::Weights, 0, &weights);
    manifest(run, device, &Value::Null)?;
    Ok((Progress::default(), Vec::new()))
}

fn go_on<D: Device>(run: &Run<D>, opened: &Opened, device: &mut D, plan: &Plan) -> Result<(Progress, Vec<String>)> {
    let known = recorded(&run.out);
    let set = &*run.splits.train;
    for (part, set) in [("train", set), ("test", &*run.splits.test)] {
        let mark = known[part]["fingerprint"].as_str();
        if mark.is_some_and(|mark| mark != set.fingerprint()) || opened.classes != run.labels.classes {
            return Err(Error::new(format!(
                "the {part} part of {} does not hold the images that the fine-tuning in {} began with",
                run.data,
                run.out.display()
            ))
            .hint("--data names where those are now; other images need another --out"));
        }
    }
    opened.load(device, plan)?;
    let before = known["arithmetic"].as_str().filter(|before| *before != device.arithmetic());
    let notes = before.map(|before| {
        format!("the run was on {before}: from here on its bits may differ from those of a run that stays there")
    });
    manifest(run, device, &known)?;
    Ok((opened.progress(), notes.into_iter().collect()))
}

/// The folder's `run.json`, null where it cannot be read.
pub fn recorded(out: &Path) -> Value {
    let text = std::fs::read_to_string(out.join(MANIFEST)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// `run.json`: what made this run. `known` is what it was before, if the run goes on.
fn manifest<D: Device>(run: &Run<D>, device: &D, known: &Value) -> Result<()> {
    let set = |s: &dyn Dataset| json!({"images": s.len(), "fingerprint": s.fingerprint()});
    // A run that goes on is still made by the command that began it, from the weights that it began with.
    let kept = |key: &str, new: Value| if known.is_null() { new } else { known[key].clone() };
    let manifest = json!({
        "command": kept("command", json!(run.command)),
        "host": {
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
            "threads": rayon::current_num_threads(),
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
        },
        "version": env!("CARGO_PKG_VERSION"),
        "finetune": run.recipe,
        "config": run.config,
        "seed": run.recipe.seed,
        "device": device.name(),
        "arithmetic": device.arithmetic(),
        "start": kept("start", run.source.clone()),
        "data": run.data,
        "classes": run.labels.classes,
        "train": set(&*run.splits.train),
        "test": set(&*run.splits.test),
    });
    write_atomically(&run.out.join(MANIFEST), |f| writeln!(f, "{manifest:#}"))
}
