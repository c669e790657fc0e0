//! Residual networks through the program: trained, resumed, evaluated, converted; and what they cannot do is refused.

use crate::common::*;
use serde_json::Value;

/// A network that trains in seconds.
const RESNET: &str = "--small --arch resnet_small --widths 8 12 --stage-blocks 1 1 --out-dim 64 --hidden 32 --bottleneck 16 --batch 8 \
                      --warmup-epochs 1";

#[test]
fn a_resnet_is_trained_evaluated_and_converted() {
    let (data, dir, out) = (cifar(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let data = data.path();
    succeeds(&format!("train {RESNET} --epochs 1 --data {{}} --out {{}}"), &[data, dir.path()]);
    let [checkpoint, teacher] = ["checkpoint.safetensors", "teacher.safetensors"].map(|name| dir.path().join(name));
    let logged = log(dir.path()).last().unwrap()["knn_top1"].clone();
    let knn = |file: &std::path::Path| -> Value {
        let text = succeeds("eval knn --checkpoint {} --data {} --k 20 --json", &[file, data]);
        serde_json::from_str::<Value>(&text).unwrap()["scores"][0]["top1"].clone()
    };
    // torchvision's names, there and back; running statistics are a part of it.
    let official = out.path().join("official.safetensors");
    succeeds("convert {} --to official {}", &[&checkpoint, &official]);
    let names = header(&std::fs::read(&official).unwrap());
    for (name, shape) in [
        ("conv1.weight", vec![8, 3, 3, 3]),
        ("bn1.running_mean", vec![8]),
        ("layer2.0.downsample.0.weight", vec![12, 8, 1, 1]),
        ("layer2.0.bn2.running_var", vec![12]),
    ] {
        assert_eq!(names[name]["shape"], serde_json::json!(shape), "{name}");
    }
    let rows = |file: &std::path::Path, name: &str| {
        let path = out.path().join(name);
        succeeds("features --checkpoint {} --data {} --out {}", &[file, data, &path]);
        content(&path).into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "npy")).collect::<Vec<_>>()
    };
    let of_checkpoint = rows(&checkpoint, "a");
    assert!(!of_checkpoint.is_empty());
    for (file, folder) in [(&teacher, "b"), (&official, "c")] {
        assert_eq!(knn(file), logged, "{}", file.display());
        for ((_, a), (path, b)) in of_checkpoint.iter().zip(rows(file, folder)) {
            assert!(*a == b, "{}", path.display());
        }
    }
    // A row an image is all that it has.
    let images = folder(&[("a.png", image_bytes(image::ImageFormat::Png, 1))]);
    for command in ["attend", "pca"] {
        let line = format!("{command} --checkpoint {{}} --image {{}} --out {{}}");
        let paths = [&*checkpoint, &images.path().join("a.png"), &out.path().join("d")];
        refuses_with(&line, &paths, &["this backbone has", "vision transformer"]);
    }
    for (to, what) in [("onnx", "ONNX"), ("hf", "Hugging Face"), ("flat", "flat blob")] {
        let line = format!("convert {{}} --to {to} {{}}");
        refuses_with(&line, &[&checkpoint, &out.path().join("e")], &["ResNet", what]);
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused_with_those_that_do() {
    let plan = |flags: &str, expected: &[&str]| refuses_with(&format!("plan {RESNET} {flags}"), &[], expected);
    plan("--micro-batch 4", &["4", "--micro-batch 8"]);
    plan("--bn-group 3", &["groups of 3", "--bn-group 2 divides --batch 8"]);
    plan("--bn-group 4 --micro-batch 2", &["2", "--micro-batch 4"]);
    refuses_with("plan --arch resnet18 --widths 8", &[], &["--widths names 1 stages and --stage-blocks 4"]);
    plan("--block-kind square", &["--block-kind", "basic or bottleneck"]);
    plan("--stem 5x5", &["--stem", "7x7 or 3x3"]);
    refuses_with("plan --arch resnet51", &[], &["--arch", "resnet50"]);
    refuses_with("plan --small --widths 8 12", &[], &["--widths has no meaning with --arch vit_tiny", "resnet"]);
    succeeds(&format!("plan {RESNET} --bn-group 4 --micro-batch 4"), &[]);
    succeeds("plan --arch resnet50 --batch 4", &[]);
}

/// A file that has the names of a ResNet and shapes of none is refused in a line.
#[test]
fn hostile_files_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("hostile.safetensors");
    let tensors = |block: Value, mean: Value, stem: Value| {
        let mut at = 0;
        let mut header = serde_json::Map::new();
        for (name, shape) in
            [("conv1.weight", stem), ("layer1.0.bn1.running_mean", mean), ("layer1.0.conv1.weight", block)]
        {
            let len = 4 * shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product::<u64>();
            header.insert(
                name.into(),
                serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [at, at + len]}),
            );
            at += len;
        }
        let header = serde_json::to_vec(&header).unwrap();
        [&(header.len() as u64).to_le_bytes()[..], &header, &vec![0; at as usize]].concat()
    };
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    for (block, mean, stem) in [
        ("[]", "[8]", "[8, 3, 3, 3]"),
        ("[8, 8, 3, 3]", "[]", "[8, 3, 3, 3]"),
        ("[8, 8, 3, 3]", "[8]", "[8, 3, 5, 5]"),
        ("[8, 8, 3, 3]", "[8]", "[]"),
        ("[0, 8, 3, 3]", "[0]", "[8, 3, 3, 3]"),
        ("[4611686018427387904, 0, 3, 3]", "[8]", "[8, 3, 3, 3]"),
        ("[8, 8, 3, 3]", "[8]", "[9, 3, 3, 3]"),
    ] {
        std::fs::write(&path, tensors(json(block), json(mean), json(stem))).unwrap();
        // The keys that do not fit are listed on stdout.
        let done = dino("convert {} --to npy {}", &[&path, &out.path().join("npy")]);
        assert!(done.code == 2 && !done.err.contains("panicked"), "{block} {mean} {stem}: {}", done.err);
        assert!(done.err.contains("hostile.safetensors") && done.err.contains("  hint: "), "{}", done.err);
    }
}
