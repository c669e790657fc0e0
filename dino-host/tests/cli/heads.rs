//! What a flag makes of the projection head: trained, resumed to the same bytes, scored, converted there and back; and what is refused.

use crate::common::*;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Two steps an epoch.
const RUN: &str = "--small --embed-dim 12 --depth 1 --heads 2 --patch-size 8 --out-dim 24 --hidden 16 --batch 36 --epochs 2 \
                   --warmup-epochs 1 --save-every 1";

/// A tensor's name and shape.
type Tensor = (&'static str, &'static [usize]);

/// Flags, and tensors that a head of them has.
const HEADS: [(&str, &[Tensor]); 9] = [
    ("--bottleneck 8", &[("head.mlp.4.weight", &[8, 16]), ("head.last_layer.weight_g", &[24, 1])]),
    ("--bottleneck 8 --use-bn-in-head", &[("head.mlp.4.running_var", &[16]), ("head.mlp.6.weight", &[8, 16])]),
    ("--bottleneck 8 --activation relu --head-layers 1", &[("head.mlp.0.weight", &[8, 12])]),
    ("--bottleneck 0", &[("head.mlp.2.weight", &[16, 16]), ("head.last_layer.weight", &[24, 16])]),
    ("--bottleneck 0 --head-layers 1", &[("head.last_layer.weight", &[24, 12])]),
    (
        "--bottleneck 0 --l2-norm true --weight-norm true --norm-last-layer false",
        &[("head.last_layer.weight_v", &[24, 16])],
    ),
    ("--bottleneck 8 --l2-norm false --norm-last-layer false --head-layers 8", &[("head.mlp.14.weight", &[8, 16])]),
    ("--bottleneck 8 --weight-norm false --targets sinkhorn-knopp", &[("head.last_layer.weight", &[24, 8])]),
    (
        "--bottleneck 8 --predictor --predictor-hidden 10 --use-bn-in-head --bn-group 18 --micro-batch 18",
        &[("head.predictor.1.running_mean", &[10]), ("head.predictor.3.weight", &[8, 10])],
    ),
];

fn line(flags: &str) -> String {
    format!("train {} {flags} --data {{}} --out {{}}", RUN)
}

/// A run that goes on from its numbered checkpoint of the first epoch.
fn resumed(run: &Path, data: &Path) -> PathBuf {
    let again = run.with_extension("again");
    fs::create_dir(&again).unwrap();
    for (path, bytes) in content(run).into_iter().filter(|(path, _)| path.parent() == Some(run)) {
        fs::write(again.join(path.file_name().unwrap()), bytes).unwrap();
    }
    fs::rename(again.join("checkpoint0000.safetensors"), again.join("checkpoint.safetensors")).unwrap();
    let done = dino("train --resume --out {} --data {}", &[&again, data]);
    assert!(
        done.code == 0 && !done.err.contains("is finished") && done.err.contains("epoch 2/2: loss"),
        "{}",
        done.err
    );
    again
}

#[test]
fn every_head_trains_and_resumes_to_the_same_bytes() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    for (i, (flags, tensors)) in HEADS.iter().enumerate() {
        let run = dir.path().join(i.to_string());
        succeeds(&line(flags), &[data.path(), &run]);
        let checkpoint = run.join("checkpoint.safetensors");
        let bytes = fs::read(&checkpoint).unwrap();
        let names = header(&bytes);
        for (name, shape) in *tensors {
            assert_eq!(names[format!("student.{name}")]["shape"], serde_json::json!(shape), "{flags}: {name}");
            let teacher = !names[format!("teacher.{name}")].is_null();
            assert_eq!(teacher, !name.contains("predictor"), "{flags}: {name}");
        }
        let count = |what: &str| names.as_object().unwrap().keys().filter(|name| name.contains(what)).count();
        assert_eq!(count("teacher.head.predictor"), 0);
        assert!((count("last_layer.weight_g") > 0) != names["student.head.last_layer.weight"].is_object(), "{flags}");
        let last = log(&run).last().unwrap().clone();
        assert!(
            last["train_loss"].as_f64().unwrap().is_finite() && last["knn_top1"].as_f64().is_some(),
            "{flags}: {last}"
        );
        let again = resumed(&run, data.path());
        assert!(
            fs::read(again.join("checkpoint.safetensors")).unwrap() == bytes,
            "{flags}: other bytes after a resume"
        );
        assert_eq!(log_without_clock(&again), log_without_clock(&run), "{flags}");
        let scores = succeeds("eval knn --checkpoint {} --data {} --k 20 --json", &[&checkpoint, data.path()]);
        let scores: Value = serde_json::from_str(&scores).unwrap();
        assert_eq!(scores["scores"][0]["top1"], last["knn_top1"], "{flags}");
        converted(&checkpoint, flags);
    }
}

/// The head of either network, under the published names and back.
fn converted(checkpoint: &Path, flags: &str) {
    let out = tempfile::tempdir().unwrap();
    for which in ["teacher", "student"] {
        let [official, own, again] =
            ["official", "own", "again"].map(|n| out.path().join(format!("{which}-{n}.safetensors")));
        let said = dino(&format!("convert {{}} --to official {{}} --head --which {which}"), &[checkpoint, &official]);
        assert_eq!(said.code, 0, "{}", said.err);
        let predicts = which == "student" && flags.contains("--predictor");
        assert_eq!(
            said.out.contains("the predictor") || said.err.contains("the predictor"),
            predicts,
            "{flags}: {} {}",
            said.out,
            said.err
        );
        succeeds("convert {} --to safetensors-own {} --head", &[&official, &own]);
        succeeds("convert {} --to official {} --head", &[&own, &again]);
        let (a, b) = (fs::read(&official).unwrap(), fs::read(&again).unwrap());
        let mut names = header(&a);
        assert_eq!(names, header(&b), "{flags}");
        assert!(a == b, "{flags}: other weights after a conversion there and back");
        // As the run has them.
        let (bytes, run) = (fs::read(checkpoint).unwrap(), header(&fs::read(checkpoint).unwrap()));
        let values = |bytes: &[u8], header: &Value, name: &str| {
            let at = |i: usize| header[name]["data_offsets"][i].as_u64().unwrap() as usize;
            let data = &bytes[8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize..];
            data[at(0)..at(1)].to_vec()
        };
        names.as_object_mut().unwrap().remove("__metadata__");
        let mut heads = 0;
        for name in names.as_object().unwrap().keys() {
            heads += usize::from(name.starts_with("head."));
            assert!(values(&a, &names, name) == values(&bytes, &run, &format!("{which}.{name}")), "{flags}: {name}");
        }
        let prefix = format!("{which}.head.");
        let wanted = run.as_object().unwrap().keys();
        let wanted = wanted.filter(|n| n.starts_with(&prefix) && !n.contains("predictor")).count();
        assert_eq!(heads, wanted, "{flags}");
    }
}

#[test]
fn published_checkpoints_of_other_heads_are_read() {
    let (cases, out) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/heads"), tempfile::tempdir().unwrap());
    for (file, expected) in
        [("bn", ["head.mlp.1.running_var", "head.mlp.6.bias"]), ("one_layer", ["head.mlp.0.weight"; 2])]
    {
        let (pth, own) = (cases.join(format!("{file}.pth")), out.path().join(file));
        for which in ["teacher", "student"] {
            succeeds(
                &format!("convert {{}} --to safetensors-own {{}} --head --heads 2 --which {which}"),
                &[&pth, &own],
            );
            let names = header(&fs::read(&own).unwrap());
            for name in expected {
                assert!(!names[format!("teacher.{name}")].is_null(), "{file}: {name}");
            }
            let config: Value = serde_json::from_str(names["__metadata__"]["config"].as_str().unwrap()).unwrap();
            assert_eq!(config["use-bn-in-head"], file == "bn", "{file}");
        }
    }
    // A run takes the head where it has the same shape, and else tells it.
    let data = cifar();
    let run = |flags: &str, file: &str, out: &Path| {
        let line = format!(
            "train --small --patch-size 8 --global-size 16 --embed-dim 8 --depth 1 --heads 2 --mlp-ratio 4 --epochs 1 --batch 36 \
             --warmup-epochs 0 --out-dim 12 --hidden 6 --bottleneck 4 {flags} --init-from {{}} --data {{}} --out {{}}"
        );
        (line, cases.join(format!("{file}.pth")), out.to_owned())
    };
    for (i, (file, flags)) in [
        ("bn", "--use-bn-in-head"),
        ("bn", "--use-bn-in-head --predictor --activation relu"),
        ("one_layer", "--head-layers 1"),
    ]
    .into_iter()
    .enumerate()
    {
        let (line, pth, to) = run(flags, file, &out.path().join(format!("run{i}")));
        let done = dino(&line, &[&pth, data.path(), &to]);
        assert_eq!(done.code, 0, "{}", done.err);
        assert!((done.out + &done.err).contains("the projection head is the file's"), "{flags}");
    }
    let (line, pth, to) = run("", "bn", &out.path().join("refused"));
    refuses_with(
        &line,
        &[&pth, data.path(), &to],
        &["projection head does not fit", "--init-head fresh", "--use-bn-in-head"],
    );
}

#[test]
fn heads_that_do_not_fit_are_refused_with_those_that_do() {
    let plan = |flags: &str, expected: &[&str]| {
        refuses_with(&format!("plan {} {flags}", RUN), &[], expected);
    };
    plan("--head-layers 9", &["not 1 to 8", "--head-layers 1 to 8"]);
    plan("--bottleneck 0 --head-layers 0", &["not 1 to 8"]);
    plan("--activation tanh", &["--activation", "gelu or relu"]);
    plan("--weight-norm false --norm-last-layer false", &["--norm-last-layer false", "--weight-norm true"]);
    plan("--bottleneck 0 --norm-last-layer false", &["--norm-last-layer false", "--weight-norm true"]);
    plan("--use-bn-in-head --stream-crops --local-crops-number 2", &["--use-bn-in-head"]);
    plan("--use-bn-in-head --micro-batch 12", &["12", "--micro-batch 36"]);
    plan("--use-bn-in-head --bn-group 5", &["--bn-group 4 divides --batch 36"]);
    plan("--bn-group 4", &["--bn-group has no meaning"]);
    plan("--predictor --predictor-hidden 18446744073709551615", &["memory"]);
    assert_eq!(dino("plan --small --l2-norm maybe", &[]).code, 2);
    // A published run's plan: what a predictor takes is the student's alone.
    let json =
        |flags: &str| -> Value { serde_json::from_str(&succeeds(&format!("plan --json {flags}"), &[])).unwrap() };
    let (without, with) = (json("--batch 2"), json("--batch 2 --predictor"));
    let elements = |plan: &Value, name: &str| {
        let pools = plan["pools"].as_array().unwrap();
        pools.iter().find(|pool| pool["name"] == name).unwrap()["elements"].as_u64().unwrap()
    };
    assert_eq!(elements(&with, "teacher weights"), elements(&without, "teacher weights"));
    let more = elements(&with, "student weights") - elements(&without, "student weights");
    assert_eq!(more, 2 * 256 * 4096 + 4096 + 256);
    let file = |plan: &Value| plan["checkpoints"][0]["elements"].as_u64().unwrap();
    assert_eq!(file(&with) - file(&without), 3 * more, "the weights, and AdamW's two averages");
    // A run may not go on with another head.
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    succeeds(&line("--bottleneck 8"), &[data.path(), &run]);
    for flag in ["--predictor", "--activation relu", "--l2-norm false", "--weight-norm false", "--use-bn-in-head"] {
        let key = flag.split(' ').next().unwrap();
        refuses_with(&format!("train --resume --epochs 3 {flag} --out {{}}"), &[&run], &["cannot go on", key]);
    }
}
