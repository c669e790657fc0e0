use super::*;
use dino_kernel::model::{Backbone, Vit};
use dino_kernel::objective::{Divergence, Objective, Targets};
use dino_kernel::params::Part;

#[test]
fn published_values_resolve_to_the_published_model() {
    let c = Config::published().resolve().unwrap();
    assert_eq!(c.table().backbone, Backbone::Vit(Vit::SMALL_16));
    let mut parameters = 0;
    c.table().visit(|s| parameters += if s.part == Part::Backbone { s.at.len() } else { 0 });
    assert_eq!(parameters, 21_665_664); // the published 21.67 M
}

#[test]
fn a_file_is_overridden_by_flags_and_unknown_keys_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, "batch = 32\nlr = 0.001\nglobal-crops-scale = [0.25, 1.0]\n").unwrap();
    let flags = Flags { batch: Some(16), ..Flags::default() }.over(Config::file(&path).unwrap());
    let mut c = Config::published();
    c.set(&flags);
    assert_eq!((c.batch, c.lr, c.global_crops_scale[0]), (16, 0.001, 0.25));
    std::fs::write(&path, "batch = 32\nbatsh = 3\n").unwrap();
    let message = Config::file(&path).unwrap_err().to_string();
    assert!(message.contains("batsh") && message.contains("line 2"), "{message}");
}

/// A resumed run computes with the numbers it reads: one bit off and it is another run.
#[test]
fn numbers_survive_the_checkpoint_header_to_the_bit() {
    let mut rng = dino_kernel::rng::Rng::new(1, 0, 0, 0, dino_kernel::rng::Kind::Test, 0);
    for _ in 0..2000 {
        let c = Config { lr: libm::exp(10.0 * rng.normal()), ..Config::tiny() };
        let read: Config = serde_json::from_str(&serde_json::to_string(&c).unwrap()).unwrap();
        assert_eq!(read.lr.to_bits(), c.lr.to_bits(), "{:e}", c.lr);
    }
}

#[test]
fn a_checkpoint_older_than_a_key_reads_as_it_was_made() {
    let read: Config = serde_json::from_str(r#"{"batch": 8}"#).unwrap();
    // Images are rotated by default, and were not before there was a key for it.
    assert!(read.ignore_exif && !Config::published().ignore_exif);
    assert_eq!(read, Config { batch: 8, ignore_exif: true, ..Config::published() });
    assert!(serde_json::from_str::<Config>(r#"{"bacth": 8}"#).is_err());
    // Before there was a key for the teacher, it was the average; the optimizer was always written down.
    assert_eq!((read.optimizer.as_str(), read.teacher.as_str()), ("adamw", "ema"));
}

/// The momentum of a step, of an epoch of three, under every rule for the teacher.
#[test]
fn a_teacher_rule_copies_and_keeps_at_its_steps() {
    let rates = |teacher: &str| {
        let config = Config { teacher: teacher.into(), epochs: 2, momentum_teacher: 0.9, ..Config::tiny() };
        let config = config.resolve().unwrap();
        (0..6).map(|step| config.schedules(3).at(step).momentum).collect::<Vec<f64>>()
    };
    assert_eq!(rates("previous-epoch"), [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]);
    assert_eq!(rates("previous-iteration"), [0.0; 6]);
    assert_eq!(rates("student"), [0.0; 6]);
    assert_eq!(rates("frozen"), [1.0; 6]);
    assert!(rates("ema").iter().all(|m| (0.9..1.0).contains(m)));
    let before = |teacher: &str| Config { teacher: teacher.into(), ..Config::tiny() }.teacher().before_update();
    let first = ["ema", "previous-epoch", "previous-iteration", "student", "frozen"].map(before);
    assert_eq!(first, [false, false, true, false, false]);
}

#[test]
fn bad_values_are_refused_by_flag() {
    let refuse = |change: fn(&mut Config), text: &str| {
        let mut c = Config::tiny();
        change(&mut c);
        let message = c.resolve().unwrap_err().to_string();
        assert!(message.contains(text), "{message}");
    };
    refuse(|c| c.teacher_temp = 0.0, "--teacher-temp");
    refuse(|c| c.heads = 5, "--heads 4");
    refuse(|c| c.micro_batch = 7, "--micro-batch 8");
    refuse(|c| c.lr = f64::NAN, "--lr");
    refuse(|c| c.optimizer = "adam".into(), "adamw, sgd, lars");
    refuse(|c| c.teacher = "mean".into(), "ema, previous-epoch, previous-iteration, student, frozen");
    refuse(|c| c.sgd_momentum = 1.0, "--sgd-momentum");
    refuse(|c| c.lars_eta = 0.0, "--lars-eta");
    refuse(|c| c.arch = "resnet51".into(), "--arch");
    refuse(|c| c.local_size = 4, "--patch-size 4");
    refuse(|c| c.mean = vec![0.5], "--mean");
}

#[test]
fn objectives_have_their_keys() {
    let of = |change: fn(&mut Config)| {
        let mut c = Config::tiny();
        change(&mut c);
        c.resolve()
    };
    let targets = |change| of(change).unwrap().objective().targets;
    assert_eq!(of(|_| ()).unwrap().objective(), Objective::PUBLISHED);
    assert_eq!(targets(|c| c.targets = "none".into()), Targets::Plain);
    assert_eq!(targets(|c| c.targets = "softmax-batch".into()), Targets::SinkhornKnopp { iterations: 1 });
    assert_eq!(targets(|c| c.targets = "sinkhorn-knopp".into()), Targets::SinkhornKnopp { iterations: 3 });
    let more = |c: &mut Config| (c.targets, c.sinkhorn_iterations) = ("sinkhorn-knopp".into(), 5);
    assert_eq!(targets(more), Targets::SinkhornKnopp { iterations: 5 });
    let spelled = of(|c| c.targets = "centre".into()).unwrap();
    assert_eq!((spelled.targets.as_str(), spelled.objective()), ("center", Objective::PUBLISHED));
    assert_eq!(of(|c| c.loss = "mse".into()).unwrap().objective().divergence, Divergence::SquaredError);

    let refused = |change, parts: &[&str]| {
        let message = of(change).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    refused(|c| c.targets = "swav".into(), &["--targets", "sinkhorn-knopp, softmax-batch or none"]);
    refused(|c| c.loss = "l1".into(), &["--loss", "cross-entropy or mse"]);
    refused(|c| c.sinkhorn_iterations = 0, &["--sinkhorn-iterations 0"]);
    let no_center = |c: &mut Config| (c.targets, c.center_momentum) = ("none".into(), 0.99);
    refused(no_center, &["--center-momentum 0.99 has no meaning with --targets none", "--targets center"]);
    refused(
        |c| c.sinkhorn_iterations = 5,
        &["--sinkhorn-iterations 5", "--targets center", "--targets sinkhorn-knopp"],
    );
}

#[test]
fn what_is_no_key_or_no_value_is_refused_by_its_name_and_line() {
    for (text, wanted) in [
        ("batch = 8\nbacth = 8", "line 2, `bacth = 8`: unknown field `bacth`, expected one of `arch`, `patch-size`"),
        ("micro_batch = 8", "unknown field `micro_batch`"),
        ("lr = 1\nbatch = \"many\"", "line 2, `batch = \"many\"`: invalid type"),
        ("batch = 8\nbatch = 9", "line 2, `batch = 9`: duplicate key"),
    ] {
        let e = Config::parse("x.toml", text).unwrap_err().to_string();
        assert!(e.contains(wanted), "{text}: {e}");
    }
    for (text, wanted) in [
        (r#"{"lr": 0.1, "lr": 0.1}"#, "duplicate field `lr`"),
        (r#"{"lr": null}"#, "invalid type: null"),
        (r#"{"lr": [0.1]}"#, "invalid type: sequence"),
        ("[0.1]", "keys with values"),
    ] {
        let e = serde_json::from_str::<Config>(text).unwrap_err().to_string();
        assert!(e.contains(wanted), "{text}: {e}");
    }
}

#[test]
fn a_batch_that_its_shards_do_not_divide_is_refused_with_one_that_they_do() {
    let refused = |batch, shards| Config { batch, shards, ..Config::tiny() }.resolve().unwrap_err().to_string();
    assert!(refused(64, 3).contains("--batch 63 or 66"));
    assert!(refused(2, 3).contains("--batch 3 can"));
    assert!(refused(64, 0).contains("--shards 0"));
    assert!(refused(usize::MAX, 2).contains("equal shards"), "no overflow");
}
