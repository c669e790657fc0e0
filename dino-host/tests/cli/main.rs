//! The command line as a user meets it: the program is run as a process.

mod ablate;
mod collapse;
mod common;
mod crash;
mod dense;
mod documents;
mod draw;
mod examples;
mod finetune;
mod heads;
#[cfg(unix)]
mod mpi;
mod probes;
mod refusals;
mod report;
mod resnet;
mod runs;
mod scores;
mod sets;
#[cfg(unix)]
mod streams;
#[cfg(unix)]
mod torchrun;
mod unreadable;

use common::*;
use image::ImageFormat::{Jpeg, Png};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

#[test]
fn help_and_version() {
    let version = succeeds("--version", &[]);
    // And, in parentheses, the instructions of this machine that matmuls use.
    let instructions = version.trim().strip_prefix(concat!("dino-host ", env!("CARGO_PKG_VERSION"), " ("));
    assert!(instructions.is_some_and(|rest| rest.ends_with(')') && rest.len() > 2), "{version}");
    for line in [
        "--help",
        "help",
        "train --help",
        "ablate --help",
        "eval --help",
        "eval knn --help",
        "finetune --help",
        "classify --help",
        "eval linear --help",
        "eval logistic --help",
        "attend --help",
        "pca --help",
        "neighbours --help",
        "plan --help",
        "crops --help",
    ] {
        let text = succeeds(line, &[]);
        assert!(text.contains("Usage:"), "{line}: {text}");
    }
    for flag in ["--batch", "--teacher-temp", "--resume", "--small", "--threads"] {
        assert!(succeeds("train --help", &[]).contains(flag), "{flag}");
    }
    let nothing = dino("", &[]);
    assert!(nothing.code == 2 && nothing.err.contains("Usage:"), "{}", nothing.err);
}

fn plan(flags: &str) -> Value {
    serde_json::from_str(&succeeds(&format!("plan --small {flags} --json"), &[])).unwrap()
}

#[test]
fn a_plan_says_what_is_allocated_where() {
    let found = plan("--device cpu");
    assert_eq!(found["device"], "cpu");
    assert!(found["memory_total"].as_u64() >= found["total"]["bytes"].as_u64(), "the pools and scratch");
    let memory = found["memory"].as_array().unwrap();
    let sum: u64 = memory.iter().map(|item| item["bytes"].as_u64().unwrap()).sum();
    assert_eq!(found["memory_total"], sum);
    assert!(succeeds("plan --small", &[]).contains("allocated on cpu"));
    // The second network that scores the teacher, and what every thread takes for itself.
    let bytes = |plan: &Value, name: &str| {
        let item = plan["memory"].as_array().unwrap().iter().find(|item| item["name"] == name);
        item.unwrap_or_else(|| panic!("no {name}"))["bytes"].as_u64().unwrap()
    };
    let [two, six] = [2, 6].map(|threads| bytes(&plan(&format!("--threads {threads}")), "scratch of the threads"));
    assert!(two > 0 && six == 3 * two, "{two} bytes, {six} bytes");
    let scored = [0, 1].map(|every| bytes(&plan(&format!("--knn-every {every}")), "scoring between steps"));
    assert!(scored[0] > 0 && scored[1] > scored[0], "one image is drawn, many are scored: {scored:?}");
    refuses_with("plan --small --device cuda", &[], &["runs on cpu", "dino-gpu plan --device cuda"]);
    refuses_with("plan --small --device tpu", &[], &["tpu", "dino-host plan"]);
}

#[test]
fn a_memory_limit_chooses_the_split_and_a_resume_keeps_it() {
    let total = |split: &str| {
        let bytes = &plan(&format!("--batch 12 --micro-batch {split}"))["memory_total"];
        bytes.as_u64().unwrap()
    };
    let within = |bytes: u64| plan(&format!("--batch 12 --mem-limit {bytes}B"))["memory_total"].as_u64().unwrap();
    assert_eq!(within(total("12")), total("12"));
    // Two passes of six images at once, not two of twelve one after another; 5 would fit and does not divide 12.
    assert_eq!(within(total("12") - 1), total("6"));
    assert_eq!(within(total("6") - 1), total("4"));
    assert_eq!(within(total("1") - 1), total("1 --stream-crops"));
    let at_once = total("1") - 1;
    refuses_with(
        &format!("plan --small --batch 12 --stream-crops false --mem-limit {at_once}B"),
        &[],
        &["micro-batches of 1 take", "more than"],
    );
    let small = total("1 --stream-crops") - 1;
    refuses_with(
        &format!("plan --small --batch 12 --mem-limit {small}B"),
        &[],
        &["micro-batches of 1, crops in several passes, take", "more than"],
    );
    let streamed = succeeds("plan --small --stream-crops", &[]);
    assert!(
        streamed.contains("pass.1.student.blocks.0.attn.qkv") && streamed.contains("reuse the same memory"),
        "{streamed}"
    );
    refuses_with(
        "plan --small --mem-limit 2GiB --micro-batch 4",
        &[],
        &["--micro-batch 4", "leave one of the two out"],
    );
    refuses_with("plan --small --mem-limit 2", &[], &["512MiB"]);

    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let (run, line) = (dir.path().join("run"), format!("train {TINY} --epochs 1 --data {{}} --out {{}}"));
    let finest = succeeds(&format!("plan {TINY} --micro-batch 1 --stream-crops --json"), &[]);
    let finest = serde_json::from_str::<Value>(&finest).unwrap()["memory_total"].as_u64().unwrap();
    let done = dino(&format!("{line} --mem-limit {finest}B"), &[data.path(), &run]);
    assert_eq!(done.code, 0, "{}", done.err);
    let manifest: Value = serde_json::from_slice(&fs::read(run.join("run.json")).unwrap()).unwrap();
    let config = &manifest["config"];
    assert_eq!((&config["micro-batch"], &config["stream-crops"]), (&1.into(), &true.into()));
    assert!(done.err.contains("--micro-batch 1 --stream-crops takes"), "{}", done.err);
    succeeds(&format!("train --resume --out {{}} --mem-limit {finest}B"), &[&run]);
    refuses_with("train --resume --out {} --stream-crops false", &[&run], &["cannot go on", "stream-crops"]);
    refuses_with(
        "train --resume --epochs 2 --out {} --mem-limit 1kB",
        &[&run],
        &["cannot go on", "keeps its micro-batch"],
    );
}

fn keys(row: &Value) -> Vec<&str> {
    row.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_run_leaves_its_manifest_log_and_weights() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let out = dir.path().join("deep/run");
    succeeds(&format!("train {TINY} --epochs 2 --save-every 0 --data {{}} --out {{}}"), &[data.path(), &out]);

    let files: Vec<_> = content(&out).into_iter().map(|(p, _)| p.strip_prefix(&out).unwrap().to_owned()).collect();
    let gallery =
        ["epoch0000.png", "epoch0001.png", "images.json", "images.png", "start.png"].map(|f| format!("gallery/{f}"));
    let expected = ["checkpoint.safetensors", "events.out.tfevents.0.dino"].map(String::from).into_iter();
    let rest = ["log.jsonl", "run.json", "teacher.safetensors"].map(String::from);
    assert_eq!(files, expected.chain(gallery).chain(rest).map(std::path::PathBuf::from).collect::<Vec<_>>());

    let manifest: Value = serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(manifest["config"]["embed-dim"], 24);
    assert_eq!(manifest["seed"], 0);
    assert_eq!(manifest["data"], data.path().to_str().unwrap());
    assert_eq!((&manifest["train"]["images"], &manifest["test"]["images"]), (&TRAIN.into(), &TEST.into()));

    let rows = log(&out);
    let steps: Vec<&Value> = rows.iter().filter(|r| r["kind"] == "step").collect();
    let epochs: Vec<&Value> = rows.iter().filter(|r| r["kind"] == "epoch").collect();
    assert_eq!((steps.len(), epochs.len()), (2 * STEPS, 2));
    for (i, row) in steps.iter().enumerate() {
        assert_eq!((&row["step"], &row["epoch"]), (&i.into(), &(i / STEPS).into()));
        for key in ["loss", "lr", "wd", "momentum", "teacher_temp", "teacher_entropy", "kl", "grad_norm"] {
            assert!(row[key].is_f64(), "{key}: {row}");
        }
        assert!(row["images_per_second"].as_f64().unwrap() > 0.0, "{row}");
        assert!(
            (row["kl"].as_f64().unwrap() + row["teacher_entropy"].as_f64().unwrap() - row["loss"].as_f64().unwrap())
                .abs()
                < 1e-9
        );
    }
    for (i, row) in epochs.iter().enumerate() {
        assert_eq!(row["epoch"], i);
        let mean = steps[i * STEPS..][..STEPS].iter().map(|r| r["loss"].as_f64().unwrap()).sum::<f64>() / STEPS as f64;
        assert!((row["train_loss"].as_f64().unwrap() - mean).abs() < 1e-9, "{row}");
        assert!((0.0..=100.0).contains(&row["knn_top1"].as_f64().unwrap()), "{row}");
    }

    let checkpoint = header(&fs::read(out.join("checkpoint.safetensors")).unwrap());
    let teacher = header(&fs::read(out.join("teacher.safetensors")).unwrap());
    assert_eq!(checkpoint["__metadata__"]["step"], (2 * STEPS).to_string());
    let shape = |key: &str| checkpoint[key]["shape"].clone();
    assert_eq!(shape("center"), serde_json::json!([1, 64]));
    let parameters =
        ["backbone.cls_token", "backbone.pos_embed", "backbone.blocks.1.attn.qkv.weight", "head.mlp.0.weight"];
    for parameter in parameters.into_iter().chain(["head.last_layer.weight_g", "head.last_layer.weight_v"]) {
        for prefix in ["student", "teacher", "optimizer.exp_avg", "optimizer.exp_avg_sq"] {
            assert!(checkpoint[format!("{prefix}.{parameter}")].is_object(), "{prefix}.{parameter}");
        }
    }
    assert_eq!(shape("student.backbone.blocks.1.attn.qkv.weight"), serde_json::json!([72, 24]));
    let known = ["student.", "teacher.", "optimizer.exp_avg.", "optimizer.exp_avg_sq.", "center", "__metadata__"];
    for key in keys(&checkpoint) {
        assert!(known.iter().any(|k| key.starts_with(k)), "{key}");
    }
    for key in keys(&teacher).into_iter().filter(|k| *k != "__metadata__") {
        assert_eq!(teacher[key]["shape"], shape(&format!("teacher.backbone.{key}")), "{key}");
    }
    assert_eq!(teacher["cls_token"]["shape"], serde_json::json!([1, 1, 24]));
}

/// Class folders of `n` images each, every other one a JPEG under a PNG's or its own name.
fn class_folders(n: u32) -> tempfile::TempDir {
    let mut files = Vec::new();
    for class in ["cat", "dog"] {
        for i in 0..n {
            let (format, ending) = if i % 2 == 0 { (Png, "png") } else { (Jpeg, "jpeg") };
            files.push((format!("{class}/{i}.{ending}"), image_bytes(format, i)));
        }
    }
    folder(&files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect::<Vec<_>>())
}

#[test]
fn folders_of_pictures_train_with_and_without_labels() {
    let labeled = class_folders(12);
    let flat = folder(&[]);
    for i in 0..20 {
        fs::write(flat.path().join(format!("{i}.png")), image_bytes(Png, i)).unwrap();
    }
    for (data, labels) in [(&labeled, true), (&flat, false)] {
        let dir = tempfile::tempdir().unwrap();
        let line = format!("train {TINY} --epochs 1 --data {{}} --out {{}}");
        succeeds(&line, &[data.path(), dir.path()]);
        let rows = log(dir.path());
        let last = rows.last().unwrap();
        assert_eq!(last["kind"], "epoch");
        assert_eq!(last.get("knn_top1").map(Value::is_number), Some(labels), "{last}");
        assert!(last["knn_top1"].is_null() != labels && last["train_loss"].is_f64(), "{last}");
    }
    let text = succeeds("eval knn --data {} --k 3 --json", &[labeled.path()]);
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["scores"][0]["k"], 3);
    refuses_with("eval knn --data {}", &[flat.path()], &["has no labels"]);
}

#[test]
fn a_configuration_file_is_read_and_flags_win() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let file = dir.path().join("c.toml");
    fs::write(&file, "epochs = 1\nlr = 0.001\nbatch = 4\nglobal-crops-scale = [0.5, 1.0]\n").unwrap();
    let out = dir.path().join("run");
    succeeds(&format!("train {TINY} --config {{}} --data {{}} --out {{}}"), &[&file, data.path(), &out]);
    let manifest: Value = serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
    let config = &manifest["config"];
    assert_eq!((&config["lr"], &config["batch"], &config["epochs"]), (&0.001.into(), &8.into(), &1.into()));
    assert_eq!(config["global-crops-scale"], serde_json::json!([0.5, 1.0]));
}

fn knn(line: &str, paths: &[&Path]) -> Value {
    serde_json::from_str(&succeeds(&format!("eval knn {line} --k 1,5 --json"), paths)).unwrap()
}

#[test]
fn knn_of_pixels_random_and_trained_features() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    succeeds(&format!("train {TINY} --epochs 1 --data {{}} --out {{}}"), &[data.path(), dir.path()]);
    let (checkpoint, teacher) = (dir.path().join("checkpoint.safetensors"), dir.path().join("teacher.safetensors"));
    let data = data.path();

    let pixels = knn("--data {}", &[data]);
    let random = knn("--embed-dim 48 --which random --data {}", &[data]);
    let trained = knn("--checkpoint {} --data {}", &[&checkpoint, data]);
    let student = knn("--checkpoint {} --which student --data {}", &[&checkpoint, data]);
    for (found, which, width) in [
        (&pixels, "pixels", 3 * 32 * 32),
        (&random, "random", 48),
        (&trained, "teacher", 24),
        (&student, "student", 24),
    ] {
        assert_eq!((&found["which"], &found["width"]), (&which.into(), &width.into()));
        assert_eq!((&found["bank"], &found["queries"]), (&TRAIN.into(), &TEST.into()));
        let ks: Vec<_> = found["scores"].as_array().unwrap().iter().map(|s| s["k"].as_u64()).collect();
        assert_eq!(ks, [Some(1), Some(5)]);
        for score in found["scores"].as_array().unwrap() {
            let (top1, top5) = (score["top1"].as_f64().unwrap(), score["top5"].as_f64().unwrap());
            assert!(0.0 <= top1 && top1 <= top5 && top5 <= 100.0, "{score}");
        }
    }
    // What the run itself logged is what the program finds afterwards, in either file.
    let logged = log(dir.path()).last().unwrap()["knn_top1"].clone();
    for file in [&checkpoint, &teacher] {
        let text = succeeds("eval knn --checkpoint {} --data {} --k 20 --json", &[file, data]);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["scores"][0]["top1"], logged);
    }
    let table = succeeds("eval knn --checkpoint {} --data {} --k 7", &[&checkpoint, data]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines.len() == 5 && lines[0].starts_with("k-NN, teacher") && lines[4].starts_with("always "), "{table}");
    assert_eq!(lines[3], "images resized to 46 pixels, 40 x 40 cut out (resize-crop)");
    refuses_with(
        "eval knn --checkpoint {} --which student --data {}",
        &[&teacher, data],
        &["teacher's backbone alone"],
    );
}

/// `-h` is a screen, `--help` has every key with its values, and evaluations do not list what weights bring with them.
#[test]
fn help_is_short_or_complete() {
    let short = succeeds("train -h", &[]);
    assert!(short.lines().count() <= 50, "{short}");
    assert!(short.contains("--lr") && !short.contains("--adam-eps"), "{short}");
    let long = succeeds("train --help", &[]);
    assert!(
        long.contains("[default: 0.0005; --small: 0.008]") && long.contains("[default: 65536; --small: 256]"),
        "{long}"
    );
    // Every key, that is, every flag under a heading, has a default, and so has every number of all commands.
    let config = serde_json::to_value(dino_host::config::Config::published()).unwrap();
    for key in config.as_object().unwrap().keys() {
        let at = long.find(&format!("\n      --{key} ")).unwrap_or_else(|| panic!("{key} is not listed"));
        let rest = &long[at..];
        let end = rest[1..].find("\n      --").map_or(rest.len(), |end| end + 1);
        assert!(rest[..end].contains("[default: "), "{}", &rest[..end]);
    }
    assert!(long.contains("Examples:"), "{long}");
    for command in ["eval knn", "eval linear", "features", "attend"] {
        let text = succeeds(&format!("{command} --help"), &[]);
        assert!(!text.contains("--adam-eps") && !text.contains("--momentum-teacher"), "{command}: {text}");
        assert!(succeeds(&format!("{command} -h"), &[]).lines().count() <= 45, "{command}");
    }
    // They are taken all the same, for a network that is drawn.
    let line = "eval knn --which random --small --embed-dim 24 --depth 1 --heads 2 --k 5 --json";
    assert!(succeeds(line, &[]).contains("\"width\""), "{line}");
}

/// Names of flags that other programs have are taken, or answered with ours.
#[test]
fn flags_of_other_programs_are_taken_or_named() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    let line = "train --small --embed_dim=24 --depth 2 --heads 2 --patch_size 8 --out_dim 64 --hidden 32 --bottleneck 16 \
                --batch_size 8 --learning_rate 0.002 --warmup_epochs 1 --epochs 1 --saveckp_freq 1 --data_path {} --output_dir {}";
    succeeds(line, &[data.path(), &run]);
    let config: Value = serde_json::from_slice(&std::fs::read(run.join("run.json")).unwrap()).unwrap();
    let config = &config["config"];
    assert_eq!((&config["batch"], &config["lr"], &config["save-every"]), (&json!(8), &json!(0.002), &json!(1)));
    assert!(run.join("checkpoint0000.safetensors").is_file());
    for (flag, instead) in [
        ("--num_workers 4", "--threads"),
        ("--batch_size_per_gpu 4", "--batch"),
        ("--use_fp16 true", "leave it out"),
        ("--checkpoint_key teacher", "--which"),
        ("--img-size 224", "--global-size"),
    ] {
        refuses_with(&format!("train {flag} --small"), &[], &["unexpected argument", instead]);
    }

    // A run's folder is its weights, wherever weights are taken.
    let file = run.join("checkpoint.safetensors");
    let of_file = succeeds("eval knn --checkpoint {} --k 5 --data {}", &[&file, data.path()]);
    assert_eq!(succeeds("eval knn --checkpoint {} --k 5 --data {}", &[&run, data.path()]), of_file);
    succeeds("eval knn --checkpoint {} --which student --k 5 --data {}", &[&run, data.path()]);
    succeeds("features --checkpoint {} --data {} --out {}", &[&run, data.path(), &dir.path().join("features")]);
    succeeds("crops --checkpoint {} --data {} --out {}", &[&run, data.path(), &dir.path().join("crops")]);
    let other = dir.path().join("other");
    succeeds(&format!("train {TINY} --epochs 1 --init-from {{}} --data {{}} --out {{}}"), &[&run, data.path(), &other]);
    refuses_with("eval knn --checkpoint {}", &[dir.path()], &["it is a folder without", "the folder of a run"]);

    // Without a network it is said that none was asked.
    let done = dino("eval knn --k 5 --data {}", &[data.path()]);
    assert!(done.code == 0 && done.err.contains("no network was asked"), "{}", done.err);
    assert!(!dino("eval knn --which pixels --k 5 --data {}", &[data.path()]).err.contains("no network"));
}

/// What is not asked for is not printed; errors are.
#[test]
fn quiet_prints_results_and_errors() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    let done = dino(&format!("-q train {TINY} --epochs 1 --data {{}} --out {{}}"), &[data.path(), &run]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    let done = dino("eval knn --checkpoint {} --k 5 --data {} --quiet", &[&run, data.path()]);
    assert!(done.code == 0 && done.err.is_empty() && done.out.contains("k-NN, teacher"), "{} {}", done.err, done.out);
    refuses_with("-q train --data /nowhere --out {}", &[&dir.path().join("x")], &["/nowhere"]);
}

#[test]
fn shells_and_man_have_their_files() {
    for (shell, part) in [("bash", "complete -F"), ("zsh", "#compdef"), ("fish", "complete -c dino-host")] {
        let script = succeeds(&format!("completions {shell}"), &[]);
        assert!(script.contains(part) && script.contains("momentum-teacher"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    succeeds("man --out {}", &[dir.path()]);
    let page = std::fs::read_to_string(dir.path().join("dino-host-train.1")).unwrap();
    assert!(page.contains(".TH dino-host-train") && page.contains("momentum\\-teacher"), "{page}");
    let version = succeeds("--version", &[]);
    assert!(version.starts_with("dino-host 0.") && version.contains('('), "{version}");
}
