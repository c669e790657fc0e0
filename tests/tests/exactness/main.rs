//! Same run, same bits: for any number of threads, of ranks that share its batches (`ranks.rs`), and however often it is stopped and
//! resumed. What `kill -9` leaves behind is tested on the program itself, in `dino-host/tests/cli.rs`.

mod ranks;

use dino_host::config::Config;
use dino_host::cpu::{Cpu, NoOptions};
use dino_host::data::builtin::{Builtin, Part};
use dino_host::data::loader::{self, Recipe};
use dino_host::data::order::order;
use dino_host::data::{Splits, Unreadable};
use dino_host::train::{self, Outcome};
use serde_json::Value;
use std::path::Path;

const IMAGES: usize = 40;

fn splits() -> Splits {
    let part = |count, part| Box::new(Builtin::new(32, count, part, 0));
    Splits { train: part(IMAGES, Part::Train), test: part(12, Part::Test), held_out: false, notes: Vec::new() }
}

/// Small, but every op is issued, and every loop has more than one block of work.
fn config() -> Config {
    let config = Config {
        embed_dim: 48,
        depth: 2,
        heads: 2,
        out_dim: 600,
        hidden: 64,
        bottleneck: 64,
        batch: 8,
        micro_batch: 4,
        epochs: 2,
        warmup_epochs: 1,
        drop_path_rate: 0.2,
        save_every: 1,
        ..Config::small()
    };
    config.resolve().unwrap()
}

/// The same with local crops, one after another.
fn streamed() -> Config {
    Config { local_crops_number: 5, stream_crops: true, ..config() }
}

/// Targets that depend on the full batch, which comes in two micro-batches, and the squared error.
fn whole_batch() -> Config {
    Config { targets: "sinkhorn-knopp".into(), loss: "mse".into(), ..config() }
}

/// Trains in `out` until it is done, or for one step.
fn train(config: &Config, out: &Path, resume: bool, one_step: bool) -> Outcome {
    tests::runs::train::<Cpu>(&NoOptions {}, &splits(), config, out, resume, one_step)
}

/// What a run leaves: every weights file by name, and the log without what a clock gives.
#[derive(PartialEq)]
struct Left {
    files: Vec<(String, Vec<u8>)>,
    log: Vec<Value>,
}

fn left(out: &Path) -> Left {
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(out)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .map(|p| (p.file_name().unwrap().to_str().unwrap().into(), std::fs::read(&p).unwrap()))
        .collect();
    files.sort();
    let text = std::fs::read_to_string(out.join(train::LOG)).unwrap();
    let row = |line| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        for clock in ["images_per_second", "data_wait", "seconds", "time"] {
            row.as_object_mut().unwrap().remove(clock);
        }
        row
    };
    Left { files, log: text.lines().map(row).collect() }
}

/// Prints which file or row differs first, rather than printing all bytes of both.
#[track_caller]
fn assert_same(a: &Left, b: &Left, what: &str) {
    let names = |l: &Left| l.files.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(a), names(b), "{what}");
    for (x, y) in a.log.iter().zip(&b.log) {
        assert_eq!(x, y, "{what}");
    }
    assert_eq!(a.log.len(), b.log.len(), "{what}");
    for ((name, x), (_, y)) in a.files.iter().zip(&b.files) {
        assert!(x == y, "{what}: {name} differs from byte {:?} on", x.iter().zip(y).position(|(x, y)| x != y));
    }
}

/// A pool of `threads`, and proof that it has them.
fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        assert_eq!(rayon::current_num_threads(), threads);
        work()
    })
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for config in [config(), streamed(), whole_batch()] {
        let on = |threads| {
            let dir = tempfile::tempdir().unwrap();
            assert_eq!(with_threads(threads, || train(&config, dir.path(), false, false)), Outcome::Finished);
            left(dir.path())
        };
        let one = on(1);
        assert_eq!(one.log.len(), 2 * (IMAGES / 8) + 2, "steps and epochs");
        for threads in [2, 3, 7] {
            assert_same(&one, &on(threads), "threads");
        }
        // Another seed is another run: the comparison above has something to compare.
        let dir = tempfile::tempdir().unwrap();
        train(&Config { seed: 1, ..config }, dir.path(), false, false);
        assert!(one != left(dir.path()));
    }
}

#[test]
fn any_number_of_threads_makes_the_same_crops() {
    let (config, set) = (config(), splits().train);
    let per_epoch = loader::check_size(&*set, config.batch).unwrap();
    let (seed, batch, micro_batch) = (config.seed, config.batch, config.micro_batch);
    let recipe = Recipe { augment: config.augment(), seed, batch, micro_batch, per_epoch };
    let step = per_epoch + 2;
    let order = order(set.len(), seed, step / per_epoch);
    let load = |threads| with_threads(threads, || recipe.load(&*set, &Unreadable::new(true), &order, step).unwrap());
    let (one, bits) = (load(1), |pixels: &[f32]| pixels.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    assert!(one.pixels.iter().any(|x| *x != one.pixels[0]));
    for threads in [2, 3, 7] {
        let other = load(threads);
        assert_eq!(one.images, other.images);
        assert!(bits(&one.pixels) == bits(&other.pixels), "{threads} threads");
    }
}

/// Stopped after every single step: whatever a resume forgets shows in the weights or in the log.
fn stopped_after_every_step(config: &Config) -> Left {
    let (whole, pieces) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(train(config, whole.path(), false, false), Outcome::Finished);
    let mut sittings = 1;
    let mut outcome = train(config, pieces.path(), false, true);
    while outcome == Outcome::Interrupted {
        let recorded = train::recorded(pieces.path()).unwrap();
        assert_eq!(recorded, *config, "the configuration in the checkpoint");
        outcome = train(&recorded, pieces.path(), true, true);
        sittings += 1;
    }
    assert_eq!(sittings, config.epochs as usize * (IMAGES / config.batch));
    let whole = left(whole.path());
    assert_same(&whole, &left(pieces.path()), "stopped after every step");
    whole
}

#[test]
fn a_run_stopped_after_every_step_gives_the_same_bits() {
    for config in [config(), streamed(), whole_batch()] {
        let left = stopped_after_every_step(&config);
        assert_eq!(left.files.len(), 2 + 2, "checkpoint, teacher and two numbered checkpoints");
    }
}

/// The watch for collapse goes back thirty steps: it must not start anew with every resume.
#[test]
fn a_verdict_survives_stops() {
    let collapsing = Config {
        embed_dim: 24,
        out_dim: 64,
        student_temp: 1.0,
        teacher_temp: 1.0,
        warmup_teacher_temp: 1.0,
        epochs: 8,
        knn_every: 0,
        ..config()
    };
    let left = stopped_after_every_step(&collapsing.resolve().unwrap());
    let verdicts: Vec<&Value> = left.log.iter().filter(|r| r["kind"] == "epoch").map(|r| &r["verdict"]).collect();
    assert_eq!((verdicts[0], verdicts[7]), (&"healthy".into(), &"uniform collapse".into()));
}

/// A finished run that is resumed has nothing to do, and does nothing.
#[test]
fn resuming_a_finished_run_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    train(&config(), dir.path(), false, false);
    let before = left(dir.path());
    assert_eq!(train(&config(), dir.path(), true, false), Outcome::Finished);
    assert_same(&before, &left(dir.path()), "resumed when finished");
}
