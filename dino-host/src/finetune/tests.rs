//! Bits that depend on nothing but recipe, images and first weights.

use super::*;
use crate::cpu::{Cpu, NoOptions};
use crate::data::builtin::{Builtin, Part};
use crate::eval::scores::Labels;
use std::path::Path;

const SIDE: usize = 32;

fn splits() -> Splits {
    let set = |count, part| Box::new(Builtin::new(SIDE, count, part, 0));
    Splits { train: set(24, Part::Train), test: set(8, Part::Test), held_out: false, notes: Vec::new() }
}

fn config(arch: &str) -> Config {
    let tiny = Config { embed_dim: 24, depth: 2, heads: 2, patch_size: 8, eval_view: "whole".into(), ..Config::tiny() };
    let small = Config { widths: vec![4, 6], stage_blocks: vec![1, 1], arch: arch.into(), ..Config::tiny() };
    let config = if arch == "vit" { tiny } else { Config { eval_view: "whole".into(), ..small } };
    Config { global_size: SIDE, ..config }.resolve().unwrap()
}

/// Two epochs of three steps.
fn flags() -> Flags {
    Flags {
        epochs: Some(2),
        batch: Some(8),
        lr: Some(0.02),
        warmup_epochs: Some(1),
        layer_decay: Some(0.8),
        ..Flags::default()
    }
}

/// One call of the command: from the start or from what is in `out`; `stop` ends it after a step.
fn call(out: &Path, config: &Config, flags: &Flags, stop: bool) -> Outcome {
    let (splits, unreadable, stop) = (splits(), Unreadable::default(), AtomicBool::new(stop));
    let checkpoint = out.join(CHECKPOINT);
    let resume = checkpoint.exists().then(|| Opened::open(&checkpoint).unwrap());
    let [train, test] = [&splits.train, &splits.test].map(|set| labels(&**set).unwrap());
    let run = Run::<Cpu> {
        device: &NoOptions {},
        config: config.clone(),
        recipe: flags.resolve(config, 40).unwrap(),
        labels: Labels::new(splits.train.classes(), &train, &test),
        splits: &splits,
        unreadable: &unreadable,
        out: out.into(),
        resume,
        data: "builtin".into(),
        start: None.into(),
        source: Value::Null,
        stop: &stop,
        time_limit: None,
        command: Vec::new(),
    };
    super::run(&run).unwrap()
}

/// The files of a run, and its log without the clock's numbers.
fn left(out: &Path) -> (Vec<Vec<u8>>, Vec<Value>) {
    let files = [CHECKPOINT, MODEL, SCORES].map(|name| std::fs::read(out.join(name)).unwrap());
    let text = std::fs::read_to_string(out.join(LOG)).unwrap();
    let mut rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for row in rows.iter_mut().filter_map(Value::as_object_mut) {
        ["images_per_second", "data_wait", "seconds", "time"].iter().for_each(|clock| drop(row.remove(*clock)));
    }
    (files.into(), rows)
}

#[test]
fn stopped_after_every_step_and_on_any_number_of_threads_the_bits_are_the_same() {
    for arch in ["vit", "resnet_small"] {
        let (config, flags) = (config(arch), flags());
        let straight = tempfile::tempdir().unwrap();
        assert_eq!(call(straight.path(), &config, &flags, false), Outcome::Finished);
        let want = left(straight.path());
        let kinds: Vec<&str> = want.1.iter().map(|row| row["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["step", "step", "step", "epoch", "step", "step", "step", "epoch"]);
        let stopped = tempfile::tempdir().unwrap();
        let mut calls = 1;
        while call(stopped.path(), &config, &flags, true) == Outcome::Interrupted {
            calls += 1;
            assert!(calls < 10);
        }
        assert_eq!(calls, 6);
        assert!(left(stopped.path()) == want, "{arch}: stopped after every step");
        for threads in [1, 3] {
            let (pool, other) =
                (rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap(), tempfile::tempdir().unwrap());
            pool.install(|| call(other.path(), &config, &flags, false));
            assert!(left(other.path()) == want, "{arch}: {threads} threads");
        }
    }
}

/// Thirty steps on two dozen images lower the loss; a classifier trained alone leaves the backbone as it was drawn.
#[test]
fn it_learns_and_frozen_parameters_keep_their_bits() {
    for arch in ["vit", "resnet_small"] {
        let config = config(arch);
        let flags = Flags {
            epochs: Some(30),
            batch: Some(24),
            lr: Some(0.06),
            warmup_epochs: Some(1),
            weight_decay: Some(0.0),
            drop_path_rate: Some(0.0),
            mixup: Some(0.0),
            cutmix: Some(0.0),
            ..Flags::default()
        };
        let loss_of = |rows: &[Value]| {
            let all: Vec<f64> = rows.iter().filter_map(|row| row["train_loss"].as_f64()).collect();
            [all[0], all[all.len() - 1]]
        };
        let tensors = |out: &Path| {
            let bytes = std::fs::read(out.join(MODEL)).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let all = file.iter().map(|(name, t)| (name.to_string(), t.data().to_vec()));
            all.collect::<std::collections::BTreeMap<_, _>>()
        };
        // One of the two is enough: the core's tests have the gradients of both.
        if arch == "vit" {
            let out = tempfile::tempdir().unwrap();
            call(out.path(), &config, &flags, false);
            let [first, last] = loss_of(&left(out.path()).1);
            assert!(last < first - 0.1, "{arch}: {first} to {last}");
        }
        // The classifier alone: the backbone is what it was drawn as.
        let (short, alone) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        call(alone.path(), &config, &Flags { blocks: Some(0), epochs: Some(2), ..flags.clone() }, false);
        call(short.path(), &config, &Flags { blocks: Some(0), epochs: Some(1), lr: Some(1e-9), ..flags }, false);
        let (alone, drawn) = (tensors(alone.path()), tensors(short.path()));
        for (name, values) in &alone {
            let classifier = ["head.", "fc."].iter().any(|start| name.starts_with(start));
            assert_eq!(*values == drawn[name], !classifier, "{arch}: {name}");
        }
    }
}
