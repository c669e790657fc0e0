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
use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::BTreeSet;
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

/// The same with another optimizer and another rule for the teacher; without a warm-up, so that the first step moves weights.
fn ruled(optimizer: &str, teacher: &str) -> Config {
    Config { optimizer: optimizer.into(), teacher: teacher.into(), warmup_epochs: 0, ..config() }
}

/// Targets that depend on the full batch, which comes in two micro-batches, and the squared error.
fn whole_batch() -> Config {
    Config { targets: "sinkhorn-knopp".into(), loss: "mse".into(), ..config() }
}

/// A residual network, whose batch norms go by half of the batch at a time, and whose teacher copies it now and then.
fn resnet() -> Config {
    let shape =
        Config { arch: "resnet_small".into(), widths: vec![8, 12], stage_blocks: vec![1, 1], ..Config::small() };
    let (batch, micro_batch, bn_group) = (8, 4, 4);
    let (optimizer, teacher) = ("sgd".into(), "previous-epoch".into());
    let (out_dim, hidden, bottleneck, epochs, save_every) = (600, 64, 64, 2, 1);
    let head = Config { out_dim, hidden, bottleneck, ..shape };
    let config = Config { batch, micro_batch, bn_group, epochs, save_every, optimizer, teacher, lr: 0.05, ..head };
    config.resolve().unwrap()
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
    for config in [config(), streamed(), ruled("lars", "previous-epoch"), whole_batch(), resnet()] {
        let on = |threads| {
            let dir = tempfile::tempdir().unwrap();
            assert_eq!(with_threads(threads, || train(&config, dir.path(), false, false)), Outcome::Finished);
            left(dir.path())
        };
        let one = on(1);
        assert_eq!(one.log.len(), 2 * (IMAGES / 8) + 2 + 1, "steps, epochs and what there was before");
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
    let recipe = Recipe { augment: config.augment(), seed, batch, own: 0..batch, micro_batch, per_epoch };
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

/// Stopped after every single step: whatever a resume forgets shows in the weights or in the log. `after` sees the folder every time.
fn stopped_after_every_step(config: &Config, mut after: impl FnMut(&Path)) -> Left {
    let (at_once, resumed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(train(config, at_once.path(), false, false), Outcome::Finished);
    let mut sittings = 1;
    let mut outcome = train(config, resumed.path(), false, true);
    after(resumed.path());
    while outcome == Outcome::Interrupted {
        let recorded = train::recorded(resumed.path()).unwrap();
        assert_eq!(recorded, *config, "the configuration in the checkpoint");
        outcome = train(&recorded, resumed.path(), true, true);
        after(resumed.path());
        sittings += 1;
    }
    assert_eq!(sittings, config.epochs as usize * (IMAGES / config.batch));
    let at_once = left(at_once.path());
    assert_same(&at_once, &left(resumed.path()), "stopped after every step");
    at_once
}

#[test]
fn a_run_stopped_after_every_step_gives_the_same_bits() {
    for config in [config(), streamed(), whole_batch(), resnet()] {
        let left = stopped_after_every_step(&config, |_| ());
        assert_eq!(left.files.len(), 2 + 2, "checkpoint, teacher and two numbered checkpoints");
    }
}

/// The student's and the teacher's weights in a run's checkpoint, and the names of its optimizer's arrays.
fn networks(out: &Path) -> ([Vec<u8>; 2], BTreeSet<String>) {
    let bytes = std::fs::read(out.join(train::CHECKPOINT)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort();
    let network = |prefix| {
        let of = names.iter().filter(|name| name.starts_with(prefix));
        of.flat_map(|name| file.tensor(name).unwrap().data().to_vec()).collect()
    };
    let arrays = names.iter().filter_map(|name| name.strip_prefix("optimizer.")?.split('.').next());
    ([network("student."), network("teacher.")], arrays.map(String::from).collect())
}

/// Every optimizer and every rule for the teacher, stopped after every step: the same bits as a run that was not, the optimizer's
/// state under its own names, and a teacher that is which student's copy its rule says.
#[test]
fn every_rule_survives_stops() {
    let per_epoch = IMAGES / 8;
    // Whose copy the teacher is after a step: the student's after so many steps.
    type Copied = Option<fn(usize, usize) -> usize>;
    let rules: [(&str, &str, &[&str], Copied); 5] = [
        ("sgd", "frozen", &["momentum_buffer"], Some(|_, _| 0)),
        ("adamw", "student", &["exp_avg", "exp_avg_sq"], Some(|step, _| step)),
        ("lars", "previous-iteration", &["mu"], Some(|step, _| step - 1)),
        ("sgd", "previous-epoch", &["momentum_buffer"], Some(|step, per_epoch| step / per_epoch * per_epoch)),
        ("lars", "ema", &["mu"], None),
    ];
    let mut start: Option<Vec<u8>> = None;
    for (optimizer, teacher, arrays, copied) in rules {
        let mut steps: Vec<[Vec<u8>; 2]> = Vec::new();
        stopped_after_every_step(&ruled(optimizer, teacher), |out| {
            let (networks, names) = networks(out);
            assert!(names.iter().eq(arrays), "{optimizer}: {names:?}");
            steps.push(networks);
        });
        // The frozen teacher is the student before the first step, which is the same in all of these runs.
        let start = start.get_or_insert_with(|| steps[0][1].clone()).clone();
        let students: Vec<Vec<u8>> =
            std::iter::once(start).chain(steps.iter().map(|[student, _]| student.clone())).collect();
        assert_eq!(students.len(), 1 + 2 * per_epoch);
        for (i, [_, follower]) in steps.iter().enumerate() {
            let step = i + 1;
            assert!(students[step] != students[i], "{optimizer}: step {step} moves nothing");
            let same: Vec<usize> = (0..students.len()).filter(|&other| students[other] == *follower).collect();
            let want: Vec<usize> = copied.map(|of| of(step, per_epoch)).into_iter().collect();
            assert_eq!(same, want, "{optimizer}, {teacher}, step {step}");
        }
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
    let left = stopped_after_every_step(&collapsing.resolve().unwrap(), |_| ());
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
