//! Devices that work late, and devices that die, made of the CPU.

use super::*;
use crate::cpu::{Cpu, NoOptions};
use crate::data::Dataset;
use crate::data::builtin::{Builtin, Part as Set};
use crate::weights::checkpoint::Checkpoint;
use dino_kernel::backend::wrap::Checked;
use dino_kernel::mem::Pool;
use dino_kernel::plan::Pools;
use std::cell::RefCell;

/// What the device of a test does, and the reports it holds back: one a thread, which is one a test.
#[derive(Default)]
struct Script {
    reports: VecDeque<[f32; monitor::LEN]>,
    /// Most reports that were ever held back.
    most: usize,
    steps: u64,
    /// The device dies in this step, counted from 0.
    dies: Option<u64>,
    dead: bool,
    /// The update of this step makes a number of a pool one that is not.
    spoils: Option<(u64, Pool, usize)>,
}

thread_local! {
    static SCRIPT: RefCell<Script> = RefCell::default();
}

/// The CPU, giving a step's report only when it must.
type Late = Checked<Cpu>;

impl Device for Late {
    type Options = NoOptions;
    const KIND: &'static str = "late";

    fn memory(options: &NoOptions, pools: Pools) -> Vec<(&'static str, u64)> {
        Cpu::memory(options, pools)
    }

    fn cannot(plan: &Plan) -> Option<&'static str> {
        (plan.sharding.ranks > 1 || plan.pools.lanes > 1).then_some("share so much")
    }

    fn new(options: &NoOptions, pools: Pools) -> Result<Late> {
        Ok(Checked::new(Cpu::new(options, pools)?))
    }

    fn upload(&mut self, pool: Pool, at: usize, values: &[f32]) {
        self.inner.upload(pool, at, values);
    }

    fn download(&mut self, pool: Pool, at: usize, values: &mut [f32]) {
        self.inner.download(pool, at, values);
    }

    fn sync(&mut self) -> Result<()> {
        SCRIPT.with_borrow(|s| if s.dead { Err(Error::new("the device is lost")) } else { Ok(()) })
    }

    fn name(&self) -> String {
        "late".into()
    }

    fn step(&mut self, plan: &Plan, step: &Step) -> Result<()> {
        self.inner.step(plan, step)?;
        let report = self.inner.report(plan, 1, true)?.expect("the CPU has it");
        SCRIPT.with_borrow_mut(|s| {
            s.dead |= s.dies == Some(s.steps);
            if let Some((at, pool, index)) = s.spoils
                && at == s.steps
            {
                self.inner.upload(pool, index, &[f32::INFINITY]);
            }
            s.steps += 1;
            s.reports.push_back(report);
            s.most = s.most.max(s.reports.len());
        });
        Ok(())
    }

    fn report(&mut self, _: &Plan, queued: usize, wait: bool) -> Result<Option<[f32; monitor::LEN]>> {
        SCRIPT.with_borrow_mut(|s| {
            assert_eq!(s.reports.len(), queued);
            assert!(queued <= QUEUE);
            match (s.dead, wait) {
                (true, _) => Err(Error::new("the device is lost")),
                (_, true) => Ok(s.reports.pop_front()),
                _ => Ok(None),
            }
        })
    }
}

fn config() -> Config {
    let config = Config {
        batch: 8,
        micro_batch: 4,
        epochs: 2,
        embed_dim: 24,
        depth: 2,
        heads: 2,
        out_dim: 64,
        drop_path_rate: 0.2,
        save_every: 1,
        ..Config::tiny()
    };
    config.resolve().unwrap()
}

/// What shards exchange beside their sums is refused for a device that cannot, before anything is made.
#[test]
fn a_device_that_cannot_share_is_named() {
    let norms = Config { use_bn_in_head: true, shards: 2, micro_batch: 0, ..config() }.resolve().unwrap();
    let targets = Config { targets: "sinkhorn-knopp".into(), shards: 2, ..config() }.resolve().unwrap();
    let groups = Config { bn_group: 2, micro_batch: 2, ..norms.clone() }.resolve().unwrap();
    for (config, ranks) in [(&norms, 1), (&groups, 2), (&targets, 2)] {
        assert!(plan::<Cpu>(config, ranks).is_ok());
        let e = plan::<Late>(config, ranks).map(drop).unwrap_err();
        assert_eq!(e.message, "device late cannot share so much");
    }
    assert!(plan::<Late>(&targets, 1).is_ok() && plan::<Late>(&groups, 1).is_ok());
}

/// Weights files by name.
type Files = Vec<(String, Vec<u8>)>;

/// Trains on three batches an epoch; what was printed in the end, and what was left: files, and the log without the clock's numbers.
fn train<D: Device>(config: Config, stop: bool) -> (Result<Outcome>, Files, Vec<Value>) {
    train_on::<D>(config, stop, Box::new(Builtin::new(32, 24, Set::Train, 0)))
}

/// The same on other images.
fn train_on<D: Device>(config: Config, stop: bool, set: Box<dyn Dataset>) -> (Result<Outcome>, Files, Vec<Value>) {
    let dir = tempfile::tempdir().unwrap();
    let splits =
        Splits { train: set, test: Box::new(Builtin::new(32, 8, Set::Test, 0)), held_out: false, notes: Vec::new() };
    let (device, stop) = (&D::Options::default(), &AtomicBool::new(stop));
    let run = Run::<D> {
        device,
        config,
        splits: &splits,
        unreadable: &Unreadable::default(),
        out: dir.path().into(),
        resume: false,
        accept_changed_data: false,
        data: "test".into(),
        start: None.into(),
        stop,
        time_limit: None,
        command: Vec::new(),
        screen: None,
        group: Group::default(),
    };
    let outcome = super::run(&run);
    let mut files = Files::new();
    for path in std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()) {
        if path.extension().is_some_and(|e| e == "safetensors") {
            files.push((path.file_name().unwrap().to_str().unwrap().into(), std::fs::read(&path).unwrap()));
        }
    }
    files.sort();
    let text = std::fs::read_to_string(dir.path().join(LOG)).unwrap();
    let mut rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for row in rows.iter_mut().filter_map(Value::as_object_mut) {
        row.remove("images_per_second");
        row.remove("data_wait");
        row.remove("seconds");
        row.remove("time");
    }
    (outcome, files, rows)
}

fn step_of(files: &Files) -> u64 {
    step_in(files, CHECKPOINT)
}

fn step_in(files: &Files, file: &str) -> u64 {
    let (name, bytes) = files.iter().find(|f| f.0 == file).unwrap();
    Checkpoint::parse(name.clone(), bytes.clone()).unwrap().progress.step
}

#[test]
fn late_reports_change_nothing() {
    for stop in [false, true] {
        let (outcome, files, rows) = train::<Cpu>(config(), stop);
        let late = train::<Late>(config(), stop);
        assert_eq!((outcome.unwrap(), &rows), (late.0.unwrap(), &late.2));
        assert!(files == late.1, "the weights differ");
        assert_eq!(step_of(&files), if stop { 1 } else { 6 });
    }
    assert_eq!(SCRIPT.with_borrow(|s| s.most), QUEUE, "steps were queued");
}

/// The step after a bad one is queued before anybody knows: what is saved, logged and printed is the same. The run stays saved as it was
/// at the beginning, from where another rate helps; the weights that the first step made are kept aside.
#[test]
fn a_step_that_is_not_finite_is_found_late() {
    for stream_crops in [false, true] {
        let exploding = Config { lr: 1e30, warmup_epochs: 0, clip_grad: 0.0, stream_crops, ..config() };
        let (outcome, files, rows) = train::<Cpu>(exploding.clone(), false);
        SCRIPT.take();
        let late = train::<Late>(exploding, false);
        let (error, late_error) = (outcome.unwrap_err(), late.0.unwrap_err());
        let hint = error.hint.unwrap();
        assert!(hint.contains("train --resume --lr 1.0e-3 --out"), "{hint}");
        let (text, late_text) = (error.message, late_error.message);
        let start = "a number stopped being finite in step 1: first in linear (op 13), crop 0 of image builtin/train/";
        assert!(text.contains(start), "{text}");
        assert!(text.ends_with("; the run is saved as it was after step 0"), "{text}");
        assert_eq!((text, rows), (late_text, late.2));
        assert!(files == late.1, "the weights differ");
        assert_eq!((step_of(&files), step_in(&files, BEFORE_FAILURE)), (0, 1));
    }
}

/// Loss and gradients are finite, the update is not: found when the next step is not finite, or when it is to be saved.
#[test]
fn an_update_that_is_not_finite_is_never_saved() {
    let table = config().table().len();
    let spoilt = |step, pool, index| {
        SCRIPT.take();
        SCRIPT.with_borrow_mut(|s| s.spoils = Some((step, pool, index)));
        let (outcome, files, _) = train::<Late>(config(), false);
        (outcome.unwrap_err(), files)
    };
    // An epoch is three steps, and is saved at its end.
    for (step, pool, index, key, found, saved) in [
        (4, Pool::Weights, 0, "student.backbone.cls_token", 5, 3),
        (5, Pool::Weights, table, "teacher.backbone.cls_token", 6, 3),
        (5, Pool::Slots, 0, "optimizer.exp_avg.backbone.cls_token", 6, 3),
        (2, Pool::Slots, 2 * table - 1, "optimizer.exp_avg_sq.head.", 3, 0),
        (0, Pool::State, config().plan(Late::RECOMPUTE).unwrap().targets.rows.offset.0.at, "center", 2, 0),
    ] {
        let (error, files) = spoilt(step, pool, index);
        let text = format!("{error}");
        assert!(error.message.starts_with(&format!("after step {found} ")), "{text}");
        assert!(text.contains(key) && text.contains("is not finite: element"), "{text}");
        assert!(text.contains(&format!("the run is saved as it was after step {saved}")), "{text}");
        assert!(text.contains("--resume --lr"), "{text}");
        assert_eq!((step_of(&files), step_in(&files, TEACHER)), (saved, saved), "{key}");
        for (name, bytes) in &files {
            let all = safetensors::SafeTensors::deserialize(bytes).unwrap();
            let finite = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().all(|x| f32::from_le_bytes(*x).is_finite());
            assert!(all.iter().all(|(_, tensor)| finite(tensor.data())), "{name} after {key}");
        }
    }
}

#[test]
fn a_lost_device_leaves_the_last_checkpoint() {
    SCRIPT.with_borrow_mut(|s| s.dies = Some(4));
    let (outcome, files, rows) = train::<Late>(config(), false);
    let error = outcome.unwrap_err();
    assert_eq!(error.message, "the device is lost; the run is saved as it was after step 3");
    assert!(error.hint.unwrap().contains("train --resume --out"));
    assert_eq!(step_of(&files), 3);
    assert_eq!(rows.iter().filter(|r| r["kind"] == "step").count(), 3);
}

/// The built-in set, one image of which makes the loader panic.
struct Panics(Builtin, usize);

impl Dataset for Panics {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn image(&self, i: usize) -> Result<crate::image::Image> {
        assert_ne!(i, self.1, "an error in the data's own code");
        self.0.image(i)
    }
    fn label(&self, i: usize) -> Option<u32> {
        self.0.label(i)
    }
    fn classes(&self) -> &[String] {
        self.0.classes()
    }
    fn name(&self, i: usize) -> String {
        self.0.name(i)
    }
    fn fingerprint(&self) -> String {
        self.0.fingerprint()
    }
}

#[test]
fn a_panic_of_the_loader_is_an_error_that_saves_the_run() {
    let set = Builtin::new(32, 24, Set::Train, 0);
    // In the second batch.
    let bad = set.order(config().seed, 0)[12] as usize;
    // Evaluated, it would be read before the first step.
    let config = Config { knn_every: 0, ..config() };
    let (outcome, files, _) = train_on::<Cpu>(config, false, Box::new(Panics(set, bad)));
    assert_eq!(outcome.unwrap_err().message, "the loader thread ended early");
    assert_eq!(step_of(&files), 1);
}
