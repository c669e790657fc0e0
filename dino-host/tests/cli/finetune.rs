//! Fine-tuning through the program: trained, stopped, resumed, evaluated, converted with its classifier; and what cannot be is refused.

use crate::common::*;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A backbone after an epoch of self-distillation.
fn backbone(data: &Path, dir: &Path) -> PathBuf {
    succeeds(&format!("train {TINY} --epochs 1 --knn-every 0 --data {{}} --out {{}}"), &[data, dir]);
    dir.join("checkpoint.safetensors")
}

/// What is printed for the images, as JSON.
fn classify(file: &Path, images: &Path, flags: &str) -> Value {
    let text = succeeds(&format!("classify --checkpoint {{}} --image {{}} --json {flags}"), &[file, images]);
    serde_json::from_str(&text).unwrap()
}

/// Whether two answers are the same, probabilities to 1e-5.
fn agree(a: &Value, b: &Value) -> bool {
    let flat = |v: &Value| -> Vec<(String, f64)> {
        let images = v.as_array().unwrap().iter().flat_map(|image| image["top"].as_array().unwrap());
        images.map(|c| (c["class"].as_str().unwrap().into(), c["probability"].as_f64().unwrap())).collect()
    };
    let (a, b) = (flat(a), flat(b));
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-5)
}

const RECIPE: &str = "--epochs 2 --batch 8 --lr 0.01 --warmup-epochs 1 --layer-decay 0.75";

#[test]
fn a_backbone_is_fine_tuned_converted_and_classifies() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let (data, at) = (data.path(), |name: &str| dir.path().join(name));
    let trained = backbone(data, &at("run"));
    let line = format!("finetune {RECIPE} --checkpoint {{}} --data {{}} --out {{}}");
    let done = dino(&line, &[&trained, data, &at("tuned")]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("epoch 2/2: loss") && done.err.contains("top-5"), "{}", done.err);
    let rows = log(&at("tuned"));
    let epochs: Vec<&Value> = rows.iter().filter(|row| row["kind"] == "epoch").collect();
    assert_eq!((epochs.len(), rows.len()), (2, 2 * STEPS + 2));
    assert!(epochs.iter().all(|row| row["top1"].as_f64() <= row["top5"].as_f64()), "{epochs:?}");
    let manifest: Value = serde_json::from_slice(&fs::read(at("tuned/run.json")).unwrap()).unwrap();
    assert_eq!((&manifest["finetune"]["mixup"], &manifest["start"]["which"]), (&json!(0.8), &json!("teacher")));
    let scores: Value = serde_json::from_slice(&fs::read(at("tuned/scores.json")).unwrap()).unwrap();
    let counted: u64 = scores["confusion"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|r| r.as_array().unwrap())
        .map(|n| n.as_u64().unwrap())
        .sum();
    assert_eq!((counted, scores["images"].as_u64()), (TEST as u64, Some(TEST as u64)));

    // Every other command takes it for a backbone.
    let model = at("tuned/classifier.safetensors");
    let knn = |file: &Path| succeeds("eval knn --checkpoint {} --data {} --k 5 --json", &[file, data]);
    assert_eq!(knn(&model), knn(&at("tuned/checkpoint.safetensors")));

    let images = folder(
        &[1, 2, 3].map(|i| (["a.png", "b.png", "c.png"][i - 1], image_bytes(image::ImageFormat::Png, i as u32))),
    );
    let images = images.path();
    let want = classify(&model, images, "--top 3");
    assert_eq!(want.as_array().unwrap().len(), 3);
    for image in want.as_array().unwrap() {
        let p: Vec<f64> = image["top"].as_array().unwrap().iter().map(|c| c["probability"].as_f64().unwrap()).collect();
        assert!(p.len() == 3 && p.is_sorted_by(|a, b| a >= b) && p.iter().sum::<f64>() <= 1.0 + 1e-9, "{image}");
    }
    let all = classify(&model, images, "--top 99");
    let sum = all[0]["top"].as_array().unwrap().iter().map(|c| c["probability"].as_f64().unwrap()).sum::<f64>();
    assert!((sum - 1.0).abs() < 1e-9 && all[0]["top"].as_array().unwrap().len() == 10, "{all}");
    assert!(agree(&classify(&at("tuned/checkpoint.safetensors"), images, "--top 3"), &want));
    let printed = succeeds("classify --checkpoint {} --image {}", &[&model, &images.join("a.png")]);
    assert!(printed.lines().count() == 6 && printed.lines().nth(1).unwrap().contains(" %  "), "{printed}");

    // There and back under every program's names, with the names of the classes.
    for (to, out, file) in [
        ("timm", "timm.safetensors", "timm.safetensors"),
        ("official", "official.safetensors", "official.safetensors"),
        ("safetensors-own", "own.safetensors", "own.safetensors"),
        ("hf", "hf", "hf/model.safetensors"),
    ] {
        let printed = succeeds(&format!("convert {{}} --to {to} {{}}"), &[&model, &at(out)]);
        assert!(printed.contains("a classifier of 10 classes"), "{printed}");
        let back = classify(&at(out), images, "--top 3");
        assert!(agree(&back, &want), "{to}: {back} {want}");
        let names = header(&fs::read(at(file)).unwrap());
        let (weight, network) = match to {
            "hf" => ("classifier.weight", "vit.embeddings.cls_token"),
            _ => ("head.weight", "cls_token"),
        };
        assert_eq!(names[weight]["shape"], json!([10, 24]), "{to}");
        assert!(names.get(network).is_some(), "{to}");
        // And from there once more; without the classifier on request.
        succeeds("convert {} --to timm {}", &[&at(out), &at("again.safetensors")]);
        assert!(agree(&classify(&at("again.safetensors"), images, "--top 3"), &want), "{to}");
    }
    let config: Value = serde_json::from_slice(&fs::read(at("hf/config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"], json!(["ViTForImageClassification"]));
    assert_eq!(config["id2label"]["3"], want_class(&scores, 3));
    assert_eq!(config["label2id"][want_class(&scores, 3).as_str().unwrap()], 3);
    succeeds("convert {} --allow-extra --to timm {}", &[&at("hf"), &at("bare.safetensors")]);
    refuses_with(
        "classify --checkpoint {} --image {}",
        &[&at("bare.safetensors"), images],
        &["has no classifier", "finetune"],
    );
    refuses_with("classify --checkpoint {} --image {}", &[&trained, images], &["has no classifier"]);
    let printed = succeeds("convert {} --to onnx {}", &[&model, &at("model.onnx")]);
    assert!(printed.contains("logits (batch, 10)"), "{printed}");
    let onnx = fs::read(at("model.onnx")).unwrap();
    let holds = |text: &str| onnx.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(holds("logits") && holds("head.weight") && holds("classes"));
    succeeds("convert {} --to npy {}", &[&model, &at("npy")]);
    assert!(at("npy/head.weight.npy").exists() && at("npy/head.bias.npy").exists());
    assert!(succeeds("convert {} --to flat {}", &[&model, &at("flat")]).contains("classifier is left out"));

    // The report has the confusion matrix, and needs neither images nor weights.
    succeeds("report {}", &[&at("tuned")]);
    let page = fs::read_to_string(at("tuned/report.html")).unwrap();
    for text in ["Fine-tuning", "Confusion", "class=\"confusion\"", "top-5", "layer-decay", "The same again"] {
        assert!(page.contains(text), "{text}");
    }
}

fn want_class(scores: &Value, i: usize) -> Value {
    scores["classes"][i].clone()
}

#[test]
fn what_goes_on_is_what_began() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let (data, at) = (data.path(), |name: &str| dir.path().join(name));
    let trained = backbone(data, &at("run"));
    let tune = |out: &str, flags: &str| {
        let line = format!("finetune {RECIPE} {flags} --checkpoint {{}} --data {{}} --out {{}}");
        dino(&line, &[&trained, data, &at(out)])
    };
    for (out, flags) in [("teacher", ""), ("random", "--which random"), ("student", "--which student --threads 1")] {
        let done = tune(out, flags);
        assert_eq!(done.code, 0, "{}", done.err);
    }
    let bytes = |out: &str| fs::read(at(out).join("checkpoint.safetensors")).unwrap();
    assert!(bytes("teacher") != bytes("random") && bytes("teacher") != bytes("student"));
    // A limit that is over at once ends it after the first step, with the state saved.
    let stopped = tune("stopped", "--time-limit 1ms --threads 1");
    let (code, err) = (stopped.code, stopped.err);
    assert!(code == 130 && err.contains("stopped after step") && err.contains("--time-limit 1ms"), "{code}: {err}");
    assert!(err.contains("finetune --resume --out"), "{err}");
    let before = content(&at("stopped"));
    let resume = |flags: &str| format!("finetune --resume {flags} --out {{}}");
    for (flags, expected) in [
        ("--lr 0.02", "--lr 0.02 (it has 0.01)"),
        ("--blocks 1", "--blocks 1 (it has null)"),
        ("--mixup 0", "--mixup 0.0 (it has 0.8)"),
        ("--epochs 3", "--epochs 3 (it has 2)"),
    ] {
        refuses_with(&resume(flags), &[&at("stopped")], &["cannot go on with", expected, "another --out"]);
    }
    refuses_with(&resume("--checkpoint x"), &[&at("stopped")], &["--checkpoint", "--resume"]);
    let others = folder(&[("train.bin", records(TRAIN, 9)), ("test.bin", records(TEST, 2))]);
    refuses_with(&resume("--data {}"), &[others.path(), &at("stopped")], &["does not hold the images", "--data"]);
    assert!(content(&at("stopped")) == before);
    let done = dino(&resume("--lr 0.01"), &[&at("stopped")]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(bytes("stopped") == bytes("teacher"), "stopped and gone on with, on another number of threads");
    assert!(log_without_clock(&at("stopped")) == log_without_clock(&at("teacher")));
    let finished = dino(&resume(""), &[&at("stopped")]);
    assert!(finished.code == 0 && finished.err.contains("is finished: 2 epochs"), "{}", finished.err);
    // Folders of the two kinds are told apart.
    refuses_with("train --resume --out {}", &[&at("stopped")], &["holds a fine-tuning", "finetune --resume"]);
    refuses_with(&resume(""), &[&at("run")], &["a run of `train`", "--checkpoint"]);
    refuses_with(&resume(""), &[&at("nowhere")], &["there is no fine-tuning"]);
    let again = tune("stopped", "");
    assert!(again.code == 2 && again.err.contains("already holds a run"), "{}", again.err);
    assert!(!at("nowhere").exists());
}

#[test]
fn what_cannot_be_fine_tuned_is_refused_in_a_line() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let (data, at) = (data.path(), |name: &str| dir.path().join(name));
    let trained = backbone(data, &at("run"));
    let refused = |flags: &str, data: &Path, expected: &[&str]| {
        let batch = if flags.contains("--batch") { "" } else { "--batch 8" };
        let line = format!("finetune {batch} {flags} --checkpoint {{}} --data {{}} --out {{}}");
        refuses_with(&line, &[&trained, data, &at("out")], expected);
        assert!(!at("out").exists(), "{flags}");
    };
    refused("--blocks 3", data, &["--blocks 3: this network has 2", "0 trains the classifier alone"]);
    refused("--which pixels", data, &["pixels are no network"]);
    refused("--layer-decay 0", data, &["--layer-decay 0"]);
    refused("--layer-decay 1.5", data, &["--layer-decay 1.5"]);
    refused("--smoothing 1", data, &["--smoothing 1"]);
    refused("--mixup=-1", data, &["--mixup"]);
    refused("--cutmix nan", data, &["--cutmix"]);
    refused("--mixup-prob 2", data, &["--mixup-prob 2"]);
    refused("--drop-path-rate 1", data, &["--drop-path-rate 1"]);
    refused("--lr 0", data, &["--lr 0"]);
    refused("--lr inf", data, &["--lr"]);
    refused("--epochs 0", data, &["--epochs 0"]);
    refused("--micro-batch 3", data, &["not a multiple of the micro-batch 3", "--micro-batch"]);
    refused("--batch 0", data, &["--batch"]);
    refused("--batch 80", data, &["72 training images are fewer than a batch of 80", "--batch 72"]);
    refused("--eval-view sideways", data, &["--eval-view"]);
    refused("--network nobody", data, &["nobody", "--network teacher"]);
    // No labels; one class; nothing at all; images of other channels.
    let png = |seed| image_bytes(image::ImageFormat::Png, seed);
    let flat = folder(&[("a.png", png(1)), ("b.png", png(2)), ("c.png", png(3))]);
    refused("", flat.path(), &["no labels", "class folders"]);
    let one = folder(&[("train/cat/a.png", png(1)), ("train/cat/b.png", png(2)), ("val/cat/c.png", png(3))]);
    refused("", one.path(), &["one class"]);
    refused("", &at("none"), &["none"]);
    // Weights that are none, or no vision transformer's.
    let junk = folder(&[("x.safetensors", b"junk".to_vec())]);
    let line = "finetune --checkpoint {} --data {} --out {}";
    refuses_with(line, &[&junk.path().join("x.safetensors"), data, &at("out")], &["x.safetensors"]);
    refuses_with(line, &[&at("gone"), data, &at("out")], &["gone"]);
    refuses_with("finetune --data {} --out {}", &[data, &at("out")], &["--checkpoint"]);
    // classify: no images, none that can be read, none asked for.
    refuses_with("classify --checkpoint {} --image {} --top 0", &[&trained, flat.path()], &["--top 0"]);
    refuses_with("classify --checkpoint {}", &[&trained], &["--image"]);
    refuses_with("classify --checkpoint {} --image {}", &[&trained, &at("none.png")], &["has no classifier"]);
}

/// A number that runs away ends the run with the last good state saved, and classify names what it cannot read.
#[test]
fn errors_on_the_way_keep_what_is_there() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let (data, at) = (data.path(), |name: &str| dir.path().join(name));
    let trained = backbone(data, &at("run"));
    let tune = |flags: &str, out: &str| {
        let line =
            format!("finetune --batch 8 --epochs 1 --warmup-epochs 0 {flags} --checkpoint {{}} --data {{}} --out {{}}");
        dino(&line, &[&trained, data, &at(out)])
    };
    let away = tune("--lr 1e30", "away");
    assert!(
        away.code == 2 && away.err.contains("finite") && away.err.contains("saved as it was after step 0"),
        "{}",
        away.err
    );
    assert!(away.err.contains("--lr"), "{}", away.err);
    assert_eq!(tune("--lr 0.001 --blocks 0 --mixup 0 --cutmix 0", "alone").code, 0);
    let bytes = [b"junk".to_vec(), image_bytes(image::ImageFormat::Png, 1)];
    let [bad, good] = bytes;
    let images = folder(&[("bad.png", bad.clone()), ("good.png", good)]);
    let model = at("alone/classifier.safetensors");
    let done = dino("classify --checkpoint {} --image {}", &[&model, images.path()]);
    assert!(done.code == 0 && done.out.contains("good.png") && done.err.contains("bad.png"), "{}", done.err);
    refuses_with("classify --checkpoint {} --image {} --strict", &[&model, images.path()], &["bad.png"]);
    let none = folder(&[("bad.png", bad)]);
    refuses_with("classify --checkpoint {} --image {}", &[&model, none.path()], &["none of the images can be read"]);
}

/// The same of a ResNet: torchvision's names, batch norms in training and their running statistics afterwards.
#[test]
fn a_resnet_is_fine_tuned_converted_and_classifies() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let (data, at) = (data.path(), |name: &str| dir.path().join(name));
    let shape = "--arch resnet_small --stem 7x7 --widths 8 12 --stage-blocks 1 1 --out-dim 64 --hidden 32 --bottleneck 16 --batch 8";
    let line = format!("train --small {shape} --warmup-epochs 1 --epochs 1 --knn-every 0 --data {{}} --out {{}}");
    succeeds(&line, &[data, &at("run")]);
    let line = "finetune --epochs 1 --batch 8 --blocks 1 --layer-decay 0.5 --checkpoint {} --data {} --out {}";
    succeeds(line, &[&at("run/teacher.safetensors"), data, &at("tuned")]);
    let manifest: Value = serde_json::from_slice(&fs::read(at("tuned/run.json")).unwrap()).unwrap();
    assert_eq!((&manifest["finetune"]["mixup"], &manifest["finetune"]["drop-path-rate"]), (&json!(0.0), &json!(0.0)));
    let images = folder(&[("a.png", image_bytes(image::ImageFormat::Png, 1))]);
    let want = classify(&at("tuned/classifier.safetensors"), images.path(), "");
    for to in ["timm", "official", "safetensors-own"] {
        succeeds(&format!("convert {{}} --to {to} {{}}"), &[&at("tuned/classifier.safetensors"), &at(to)]);
        assert_eq!(header(&fs::read(at(to)).unwrap())["fc.weight"]["shape"], json!([10, 12]), "{to}");
        assert!(agree(&classify(&at(to), images.path(), ""), &want), "{to}");
    }
    // Hugging Face's, in a folder with the names of the classes.
    succeeds("convert {} --to hf {}", &[&at("tuned/classifier.safetensors"), &at("hf")]);
    let file = at("hf/model.safetensors");
    assert_eq!(header(&fs::read(&file).unwrap())["classifier.1.weight"]["shape"], json!([10, 12]));
    let config: Value = serde_json::from_slice(&fs::read(at("hf/config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"], json!(["ResNetForImageClassification"]));
    assert_eq!(config["id2label"].as_object().unwrap().len(), 10);
    assert!(agree(&classify(&file, images.path(), ""), &want));
    let bad = "finetune --epochs 1 --batch 8 --micro-batch 4 --checkpoint {} --data {} --out {}";
    refuses_with(
        bad,
        &[&at("run/teacher.safetensors"), data, &at("bad")],
        &["batch norm's groups of 8", "--micro-batch"],
    );
}
