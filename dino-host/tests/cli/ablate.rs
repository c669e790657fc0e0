//! The paper's ablations as one command, on tiny runs.

use crate::common::*;
use serde_json::Value;
use std::fs;
use std::path::Path;

fn results(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("ablate.json")).unwrap()).unwrap()
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("checkpoint.safetensors")).unwrap()
}

fn line<'a>(results: &'a Value, row: usize, flags: &str) -> &'a Value {
    let variants = results["rows"][row]["variants"].as_array().unwrap();
    variants.iter().find(|v| v["flags"] == flags).unwrap_or_else(|| panic!("{flags}: {results:#}"))
}

#[test]
fn variants_are_trained_once_and_compared_and_the_same_command_goes_on() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let out = dir.path().join("all");
    let ablate = format!("ablate {TINY} --rows loss,teacher --epochs 2 --data {{}} --out {{}}");
    // Stopped at once: whatever is there goes on.
    let stopped = dino(&format!("{ablate} --seeds 1 --time-limit 1"), &[data.path(), &out]);
    assert!([0, 130].contains(&stopped.code), "{}", stopped.err);
    let one = ablate.replace("loss,teacher", "loss");
    let text = succeeds(&format!("{one} --seeds 2 --jobs 2"), &[data.path(), &out]);
    let found = results(&out);
    let (base, mse) = (line(&found, 0, "--loss cross-entropy"), line(&found, 0, "--loss mse"));
    assert_eq!(
        (&base["base"], &base["paper"]["knn_top1"], &base["not_finished"]),
        (&true.into(), &72.8.into(), &0.into())
    );
    assert_eq!((&mse["base"], mse["verdicts"].as_array().unwrap().len()), (&false.into(), 2), "{mse}");
    assert!(mse["knn_top1"]["mean"].is_number() && mse["knn_top1_student"]["mean"].is_number(), "{mse}");
    assert_eq!(fs::read_to_string(out.join("ablate.md")).unwrap().trim(), text.trim());

    // Nothing is done twice, and rows may be added; what is the base in both is one.
    let before = weights(&out.join("base/seed-1"));
    let done = dino(&format!("{ablate} --seeds 1 --json"), &[data.path(), &out]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(!done.err.contains("base, seed 0") && done.err.contains("--teacher frozen, seed 0"), "{}", done.err);
    assert!(weights(&out.join("base/seed-1")) == before);
    let found = results(&out);
    assert_eq!(serde_json::from_str::<Value>(&done.out).unwrap(), found["rows"]);
    let (base, ema) = (line(&found, 0, "--loss cross-entropy"), line(&found, 1, "--teacher ema"));
    assert_eq!((&ema["base"], &ema["feature_rank"]), (&true.into(), &base["feature_rank"]));
    let ranks = ["--teacher student", "--teacher previous-epoch", "--teacher frozen", "--teacher ema"]
        .map(|flags| line(&found, 1, flags)["feature_rank"]["mean"].as_f64().unwrap());
    assert!((0..4).all(|i| ranks[..i].iter().all(|other| *other != ranks[i])), "{ranks:?}");
    let page = fs::read_to_string(out.join("ablate.html")).unwrap();
    assert!(page.contains("--teacher previous-iteration") && page.matches("<svg").count() == 2);

    // A run is what `train` makes of the same keys, and its manifest has the command.
    let run = out.join("loss-mse/seed-1");
    let manifest: Value = serde_json::from_slice(&fs::read(run.join("run.json")).unwrap()).unwrap();
    let command: Vec<&str> = manifest["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let again = dir.path().join("again");
    let at = command.iter().position(|a| *a == "--out").unwrap();
    let line = format!("{} --out {{}}", command[1..at].join(" "));
    succeeds(&line, &[&again]);
    assert!(weights(&again) == weights(&run), "{line}");
}

#[test]
fn a_variant_that_runs_away_is_a_result_and_other_keys_are_refused() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let out = dir.path().join("all");
    let ablate = format!("ablate {TINY} --epochs 1 --data {{}} --out {{}}");
    let one = format!("{ablate} --rows loss --seeds 1");
    let text = succeeds(&format!("{one} --lr 1e6"), &[data.path(), &out]);
    assert!(text.contains("not finite"), "{text}");
    // Other keys or other data would compare what does not compare.
    let paths = [data.path(), out.as_path()];
    refuses_with(&one, &paths, &["was made with lr 1000000.0", "another --out starts anew"]);
    let other = cifar();
    refuses_with(&format!("{one} --lr 1e6"), &[other.path(), &out], &["was made with data"]);
    for (flags, expected) in
        [("--rows loss,colour", "colour"), ("--seeds 0", "0"), ("--jobs 0", "0"), ("--micro-batch 3", "--micro-batch")]
    {
        refuses_with(&format!("{ablate} {flags}"), &[data.path(), &dir.path().join("x")], &[expected]);
    }
    refuses_with("ablate --rows loss --out {}", &[&out], &["--data"]);
    assert!(!dir.path().join("x").exists());
}

/// A file's variants, on a tenth of the training images; the test images play no part in it.
#[test]
fn variants_of_ones_own_are_compared_on_images_left_out_of_training() {
    let files = [("train.bin", records(TRAIN, 1)), ("test.bin", records(TEST, 2))];
    let (data, dir) = (folder(&files), tempfile::tempdir().unwrap());
    let write = |text: &str| fs::write(dir.path().join("own.toml"), text).unwrap();
    let variants = "[slow]\nlr = 0.001\n[few]\nout-dim = 16\nglobal-crops-scale = [0.5, 1.0]\n";
    write(&format!("{variants}[same]\nchoose-on = \"train-split\"\n"));
    let (own, out) = (dir.path().join("own.toml"), dir.path().join("all"));
    let line = format!("ablate {TINY} --epochs 1 --seeds 1 --variants {{}} --data {{}} --out {{}}");
    let chosen = format!("{line} --choose-on train-split");
    let text = succeeds(&chosen, &[&own, data.path(), &out]);
    assert!(text.starts_with("own\n\n| variant "), "{text}");
    let found = results(&out);
    assert_eq!(found["rows"].as_array().unwrap().len(), 1, "no row of the paper's: {text}");
    assert_eq!(found["rows"][0]["source"], Value::Null);
    let lines = found["rows"][0]["variants"].as_array().unwrap();
    let named = |name: &str| lines.iter().find(|v| v["flags"].as_str().unwrap().starts_with(name)).unwrap();
    assert_eq!(named("few: ")["flags"], "few: --global-crops-scale 0.5 1.0 --out-dim 16");
    assert!(named("slow: ")["seconds"]["mean"].as_f64() > Some(0.0), "{text}");
    assert_eq!(named("same: ")["base"], true, "what changes nothing is the base");
    let manifest = |run: &Path| -> Value { serde_json::from_slice(&fs::read(run.join("run.json")).unwrap()).unwrap() };
    let left = manifest(&out.join("few/seed-0"));
    let counts = [&left["train"]["images"], &left["test"]["images"]].map(|n| n.as_u64().unwrap() as usize);
    assert!(counts[0] + counts[1] == TRAIN && (1..TRAIN / 4).contains(&counts[1]), "{counts:?}");
    // The same runs with other test images end the same; a run on everything differs.
    let other = folder(&[("train.bin", records(TRAIN, 1)), ("test.bin", records(TEST, 7))]);
    let (again, all) = (dir.path().join("again"), dir.path().join("on test"));
    succeeds(&chosen, &[&own, other.path(), &again]);
    write(variants);
    succeeds(&line.replace("--variants", "--rows loss --variants"), &[&own, data.path(), &all]);
    assert!(weights(&again.join("few/seed-0")) == weights(&out.join("few/seed-0")));
    assert!(weights(&all.join("few/seed-0")) != weights(&out.join("few/seed-0")));
    assert_eq!(results(&all)["rows"].as_array().unwrap().len(), 2);
    // What is evaluated from such a run is on all images again, unless the same is asked for.
    let eval = "eval knn --k 5 --json --checkpoint {} --data {}";
    let weights = out.join("few/seed-0/teacher.safetensors");
    let images = |line: &str| {
        let found: Value = serde_json::from_str(&succeeds(line, &[&weights, data.path()])).unwrap();
        [&found["bank"], &found["queries"]].map(|n| n.as_u64().unwrap() as usize)
    };
    assert_eq!(images(eval), [TRAIN, TEST]);
    assert_eq!(images(&format!("{eval} --choose-on train-split")), counts);

    for (text, expected) in [
        ("[a]\nlearning = 1", "a variant, line 1"),
        ("[base]\nlr = 0.1", "two variants are called base"),
        ("[a]\nchoose-on = 'train-split'", "trained on other images"),
        ("[a]\nchannels = 1", "trained on other images"),
        ("[\"a b\"]\nlr = 0.1", "no name for a folder"),
        ("[\"../a\"]\nlr = 0.1", "no name for a folder"),
        ("[\"ablate.md\"]\nlr = 0.1", "no name for a folder"),
        ("[\"\"]\nlr = 0.1", "no name for a folder"),
        ("[a.b]\nlr = 0.1", "a: a variant, line 1"),
        ("[a]\nlr = \"fast\"", "a: a variant, line 1"),
        ("lr = 0.1", "in no variant's table"),
        ("", "no variant is in it"),
        ("[a", "own.toml, line 1, `[a`"),
        ("[a]\nlr = 1\n\0\u{1b}x", "own.toml, line 3, `x`"),
    ] {
        write(text);
        refuses_with(&line, &[&own, data.path(), &dir.path().join("x")], &[expected]);
    }
    fs::write(&own, b"[a]\nlr = \xff").unwrap();
    refuses_with(&line, &[&own, data.path(), &dir.path().join("x")], &["own.toml: line 2 is no text"]);
    refuses_with(&line, &[&dir.path().join("none.toml"), data.path(), &dir.path().join("x")], &["none.toml"]);
    refuses_with(&format!("train {TINY} --choose-on val --data {{}}"), &[data.path()], &["--choose-on", "train-split"]);
}

#[test]
fn published_configurations_are_listed_and_used() {
    let list = succeeds("plan --preset", &[]);
    for name in ["vit-small-16-boosted", "resnet50-sgd"] {
        assert!(list.contains(name), "{list}");
    }
    let plan: Value = serde_json::from_str(&succeeds("plan --preset resnet50-sgd --batch 8 --json", &[])).unwrap();
    assert_eq!(plan["optimizer"], "sgd", "{plan:#}");
    refuses_with("plan --preset resnet51", &[], &["\"resnet51\"", "resnet50-sgd"]);
    refuses_with("plan --preset resnet50 --small", &[], &["--small"]);
}
