//! What is wrong is reported in one line with a hint, exit code 2, and nothing half-written is left.

use crate::common::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

#[test]
fn bad_flags() {
    for (line, expected) in [
        ("train --bogus", "--bogus"),
        ("train --bacth 4", "--bacth"),
        ("trian", "trian"),
        ("train --batch many", "--batch"),
        ("train --batch -1", "-1"),
        ("train --batch", "--batch"),
        ("train --lr 1e", "--lr"),
        ("train --small --small", "--small"),
        ("train --norm-last-layer maybe", "--norm-last-layer"),
        ("train --global-crops-scale 0.4", "--global-crops-scale"),
        ("train --threads -3", "-3"),
        ("eval", "eval"),
        ("eval knn --which nobody", "nobody"),
        ("eval knn --k x", "--k"),
        ("attend --image a.png", "--checkpoint"),
    ] {
        if line == "eval" {
            assert_eq!(dino(line, &[]).code, 2); // lists its commands
        } else {
            refuses_with(line, &[], &[expected]);
        }
    }
    refuses_with("train --bacth 4", &[], &["--batch"]); // what was meant
    refuses_with("eval knn --which nobody", &[], &["teacher, student, random, pixels"]);
}

#[test]
fn values_that_make_no_sense() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let out = dir.path().join("run");
    for (flags, expected) in [
        ("--micro-batch 3", "--micro-batch 2"),
        ("--batch 0", "at least 1"),
        ("--batch 73", "72 training images are fewer than a batch of 73"),
        ("--batch 1000000000000000000 --micro-batch 7", "1000000000000000000"),
        ("--heads 5", "--heads"),
        ("--heads 0 --embed-dim 7", "--heads"),
        ("--embed-dim 1000000000000000000 --heads 7", "1000000000000000000"),
        ("--out-dim 0", "at least 1"),
        ("--out-dim 100000000000000", "memory"),
        ("--out-dim 18446744073709551615", "memory"),
        ("--patch-size 41", "41"),
        ("--patch-size 0", "at least 1"),
        ("--local-size 4 --local-crops-number 2", "--patch-size 4"),
        ("--depth 1000000000000", "memory"),
        ("--head-layers 9", "9"),
        ("--head-layers 0", "0"),
        ("--lr NaN", "--lr"),
        ("--lr inf", "--lr"),
        ("--teacher-temp 0", "--teacher-temp"),
        ("--momentum-teacher 1.5", "--momentum-teacher"),
        ("--epochs 0", "--epochs"),
        ("--epochs 18446744073709551615", "--epochs"),
        ("--warmup-epochs 18446744073709551615", "--warmup-epochs"),
        ("--freeze-last-layer 18446744073709551615", "--freeze-last-layer"),
        ("--mlp-ratio 1e300", "memory"),
        ("--arch resnet51", "--arch"),
        ("--optimizer adam", "--optimizer"),
        ("--teacher mean", "--teacher"),
        ("--jitter 2", "--jitter"),
        ("--crop-ratio 2 1", "--crop-ratio"),
        ("--global-crops-scale 0 1", "--global-crops-scale"),
        ("--std 0 1 1", "--std"),
        ("--local-crops-number 18446744073709551615", "memory"),
        ("--global-size 10000000000", "memory"),
    ] {
        // What is given last wins nothing: a flag is given once, so the tiny ones it replaces are taken out.
        let named: Vec<&str> = flags.split(' ').filter(|w| w.starts_with("--")).collect();
        let mut kept: Vec<&str> = Vec::new();
        let tiny: Vec<&str> = TINY.split_whitespace().collect();
        for pair in tiny[1..].chunks(2).filter(|pair| !named.contains(&pair[0])) {
            kept.extend(pair);
        }
        let line = format!("train --small {} {flags} --data {{}} --out {{}}", kept.join(" "));
        refuses_with(&line, &[data.path(), &out], &[expected]);
        assert!(!out.exists(), "{flags} left something behind");
    }
    for flags in ["--k 0", "--k 5,0", "--temperature 0", "--temperature NaN", "--which teacher", "--which student"] {
        refuses(&format!("eval knn {flags} --data {{}}"), &[data.path()]);
    }
    refuses_with("eval knn --which random --out-dim 100000000000000 --data {}", &[data.path()], &["memory"]);
}

#[test]
fn data_that_is_not_there_or_not_complete() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let line = format!("train {TINY} --data {{}} --out {{}}");
    let missing = dir.path().join("no/such/folder");
    refuses_with(&line, &[&missing, &out], &["no/such/folder"]);
    refuses_with("eval knn --data {}", &[&missing], &["no/such/folder"]);
    refuses_with("train --out {}", &[&out], &["--data"]);
    let cut = records(10, 1);
    let cut = cut[..cut.len() - 1].to_vec();
    let mut label = records(10, 1);
    label[3073] = 10;
    for (files, expected) in [
        (vec![], "no images"),
        (vec![("notes.txt", b"hello".to_vec())], "no images"),
        (vec![("data_batch_1.bin", cut)], "data_batch_1.bin"),
        (vec![("data_batch_1.bin", vec![])], "data_batch_1.bin"),
        (vec![("data_batch_2.bin", records(10, 1))], "data_batch_1.bin is missing"),
        (vec![("train.bin", label)], "label 10"),
    ] {
        let data = folder(&files);
        refuses_with(&line, &[data.path(), &out], &[expected]);
        refuses_with("eval knn --data {}", &[data.path()], &[expected]);
    }
    let file = folder(&[("a.png", image_bytes(image::ImageFormat::Png, 1))]);
    refuses_with(&line, &[&file.path().join("a.png"), &out], &["a.png is a single image"]);
    assert!(!out.exists());
}

/// Which image is unreadable shows only when it is decoded, in the middle of a run: the run stays intact.
#[test]
fn a_damaged_picture_is_named() {
    let data = folder(&[]);
    for i in 0..20 {
        fs::write(data.path().join(format!("{i:02}.png")), image_bytes(image::ImageFormat::Png, i)).unwrap();
    }
    let good = image_bytes(image::ImageFormat::Png, 7);
    let path = data.path().join("07.png");
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    let out = data.path().join(".run"); // a folder that begins with a dot is no class
    refuses_with(
        &format!("train {TINY} --strict --epochs 1 --data {{}} --out {{}}"),
        &[data.path(), &out],
        &["07.png"],
    );
    fs::write(&path, good).unwrap();
    // The file has another size now, as the run's fingerprint states.
    refuses_with("train --resume --out {}", &[&out], &["does not hold the images", "--accept-changed-data"]);
    succeeds("train --resume --accept-changed-data --out {}", &[&out]);
}

#[test]
fn folders_that_cannot_be_used() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let line = format!("train {TINY} --epochs 1 --data {{}} --out {{}}");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    refuses_with(&line, &[data.path(), &file.join("run")], &["file/run"]);
    refuses_with(&line, &[data.path(), &file], &["file"]);

    let run = dir.path().join("run");
    refuses_with("train --resume --out {}", &[&run], &["run"]);
    refuses_with("train --resume --out {}", &[dir.path()], &["checkpoint.safetensors"]);
    refuses_with("train --resume", &[], &["--out"]);
    assert!(!run.exists());
    succeeds(&line, &[data.path(), &run]);
    let before = content(&run);
    refuses_with(&line, &[data.path(), &run], &["already holds a run", "--resume"]);
    assert!(content(&run) == before);
}

#[test]
fn configuration_files() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let (file, out) = (dir.path().join("c.toml"), dir.path().join("run"));
    let line = format!("train {TINY} --config {{}} --data {{}} --out {{}}");
    refuses_with(&line, &[&file, data.path(), &out], &["c.toml"]);
    for (text, expected) in [
        ("epochs = 1\nbatsh = 8\n", ["line 2", "batsh"]),
        ("lr = \"fast\"\n", ["line 1", "lr"]),
        ("\n\nepochs = 1.5\n", ["line 3", "1.5"]),
        ("seed = -1\n", ["line 1", "-1"]),
        ("epochs = 1\nepochs = 2\n", ["line 2", "epochs"]),
        ("[train]\nepochs = 1\n", ["line 1", "train"]),
        ("epochs = \n", ["line 1", "c.toml"]),
        ("mean = [0.5]\n", ["--mean", "3"]),
        ("teacher-temp = nan\n", ["--teacher-temp", "NaN"]),
    ] {
        fs::write(&file, text).unwrap();
        refuses_with(&line, &[&file, data.path(), &out], &expected);
    }
    fs::write(&file, b"\xff\xff").unwrap();
    refuses_with(&line, &[&file, data.path(), &out], &["c.toml"]);
    refuses_with(&line, &[dir.path(), data.path(), &out], &["configuration"]);
    assert!(!out.exists());
}

/// Where a tensor's data begins in the file.
fn at(bytes: &[u8], key: &str) -> usize {
    let n = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    8 + n + header(bytes)[key]["data_offsets"][0].as_u64().unwrap() as usize
}

fn configured(bytes: &[u8], key: &str, value: Value) -> Vec<u8> {
    with_header(bytes, |h| {
        let mut config: Value = serde_json::from_str(h["__metadata__"]["config"].as_str().unwrap()).unwrap();
        config[key] = value;
        h["__metadata__"]["config"] = config.to_string().into();
    })
}

#[test]
fn hostile_checkpoints() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    succeeds(&format!("train {TINY} --epochs 1 --data {{}} --out {{}}"), &[data.path(), &run]);
    let file = run.join("checkpoint.safetensors");
    let good = fs::read(&file).unwrap();

    let key = "teacher.backbone.norm.weight";
    let renamed = with_header(&good, |h| {
        let tensor = h.as_object_mut().unwrap().remove(key).unwrap();
        h["teacher.backbone.norm.wait"] = tensor;
    });
    let mut nan = good.clone();
    let offset = at(&nan, key) + 8;
    nan[offset..offset + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let entry = |key: &str, value: &str| with_header(&good, |h| h["__metadata__"][key] = value.into());
    let ahead = |ahead: &str, per_epoch: &str| {
        with_header(&good, |h| {
            (h["__metadata__"]["ahead"], h["__metadata__"]["per_epoch"]) = (ahead.into(), per_epoch.into());
        })
    };
    let length = |n: u64| [&n.to_le_bytes(), &good[8..]].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "checkpoint.safetensors"),
        ("seven bytes", vec![1; 7], "checkpoint.safetensors"),
        ("zeros", vec![0; 4096], "checkpoint.safetensors"),
        ("text", b"not a checkpoint at all, but long enough".to_vec(), "checkpoint.safetensors"),
        ("half", good[..good.len() / 2].to_vec(), "checkpoint.safetensors"),
        ("one byte short", good[..good.len() - 1].to_vec(), "checkpoint.safetensors"),
        ("one byte more", [&good[..], b"x"].concat(), "checkpoint.safetensors"),
        ("huge header", length(u64::MAX), "checkpoint.safetensors"),
        ("header beyond the end", length(good.len() as u64), "checkpoint.safetensors"),
        ("header of a terabyte", length(1 << 40), "checkpoint.safetensors"),
        ("configuration is no JSON", entry("config", "{"), "configuration"),
        ("step is no number", entry("step", "many"), "step"),
        ("place before the first", ahead("-10", "9"), "no place"),
        ("place beyond all", ahead("9223372036854775807", "9"), "no place"),
        ("place is no number", ahead("many", "9"), "its ahead"),
        ("no steps in an epoch", ahead("1", "0"), "no place"),
        ("loss is no number", entry("epoch_loss", "many"), "epoch loss"),
        ("unknown key", configured(&good, "colour", json!(1)), "colour"),
        ("key of another type", configured(&good, "depth", json!("two")), "configuration"),
        ("a billion blocks", configured(&good, "depth", json!(1_000_000_000)), "1000000000 blocks"),
        ("endless width", configured(&good, "embed-dim", json!(2_000_000_000u64)), "configuration"),
        ("other width", configured(&good, "embed-dim", json!(48)), "F32 [1, 1, 24]"),
        ("one block more", configured(&good, "depth", json!(3)), "blocks.2"),
        ("shape", with_header(&good, |h| h[key]["shape"] = json!([2, 12])), "[2, 12]"),
        ("type", with_header(&good, |h| h[key]["dtype"] = "I32".into()), "I32"),
        ("missing tensor", renamed, "no tensor teacher.backbone.norm.weight"),
        ("not a number", nan, "element 2"),
    ];
    for (name, bytes, expected) in cases {
        fs::write(&file, &bytes).unwrap();
        let before = content(&run);
        for (line, paths) in [
            ("train --resume --out {}", [run.as_path(), Path::new("")]),
            ("eval knn --checkpoint {} --data {}", [&file, data.path()]),
        ] {
            let text = refuses(line, &paths);
            assert!(text.contains(expected), "{name}: {expected:?} is not reported by {line}: {text}");
        }
        assert!(content(&run) == before, "{name}: a refusal must not change the run");
    }
    refuses_with("eval knn --checkpoint {} --data {}", &[dir.path(), data.path()], &["cannot read the checkpoint"]);
    // Without metadata it is no run, and weights like another program's, which do not state everything.
    fs::write(&file, with_header(&good, |h| h["__metadata__"] = json!({}))).unwrap();
    refuses_with("train --resume --out {}", &[&run], &["config"]);
    refuses_with("eval knn --checkpoint {} --data {}", &[&file, data.path()], &["attention heads", "--heads"]);
    fs::write(&file, &good).unwrap();
    let (sheets, toml) = (dir.path().join("sheets"), dir.path().join("c.toml"));
    fs::write(&toml, "depth = 7").unwrap();
    for (flags, expected) in [
        ("--global-size 96", "--global-size 96 (the run has 40)"),
        ("--seed 5", "--seed 5 (the run has 0)"),
        ("--config {}", "--depth 7 (the run has 2)"),
    ] {
        let line = format!("crops {flags} --checkpoint {{}} --data {{}} --out {{}}");
        let toml: &[&Path] = if flags.contains("{}") { &[&toml] } else { &[] };
        refuses_with(&line, &[toml, &[&file, data.path(), &sheets]].concat(), &[expected]);
        let line = format!("eval knn {flags} --checkpoint {{}} --data {{}}");
        refuses_with(&line, &[toml, &[&file, data.path()]].concat(), &[expected]);
        assert!(!sheets.exists());
    }
    refuses_with("eval knn --small --checkpoint {} --data {}", &[&file, data.path()], &["not made with --small"]);
    // What the run has, how files are read and what is the probe's own may be given.
    succeeds("eval knn --global-size 40 --ignore-exif --checkpoint {} --data {}", &[&file, data.path()]);
    for line in ["eval linear --seed 5 --epochs 2 --batch 16 --lr 0.01", "eval logistic --seed 5 --iterations 2"] {
        succeeds(&format!("{line} --checkpoint {{}} --data {{}}"), &[&file, data.path()]);
    }
    fs::write(&file, good).unwrap();
    succeeds("train --resume --out {}", &[&run]);
}
