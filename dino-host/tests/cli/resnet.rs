//! Residual networks through the program: trained, resumed, evaluated, converted; and what they cannot do is refused.

use crate::common::*;
use image::ImageFormat::Png;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::LazyLock;
use tempfile::TempDir;

/// A network that trains in seconds.
const RESNET: &str = "--small --arch resnet_small --widths 8 12 --stage-blocks 1 1 --stem-stride 1 --out-dim 64 --hidden 32 --bottleneck 16 --batch 8 \
                      --warmup-epochs 1 --global-size 24 --local-size 12";

/// Data, and a run of one epoch on it, which the tests share.
static TRAINED: LazyLock<[TempDir; 2]> = LazyLock::new(|| {
    let [data, run] = [cifar(), tempfile::tempdir().unwrap()];
    let done = dino(&format!("train {RESNET} --epochs 1 --data {{}} --out {{}}"), &[data.path(), run.path()]);
    // The gallery is drawn too: of a ResNet it is the class activation.
    assert!(done.code == 0 && !done.err.contains("note: no attention"), "{}", done.err);
    [data, run]
});

#[test]
fn a_resnet_is_trained_evaluated_and_converted() {
    let ([data, dir], out) = (&*TRAINED, tempfile::tempdir().unwrap());
    let data = data.path();
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
    // Features come out of other files as they went in.
    for to in ["timm", "safetensors-own"] {
        let path = out.path().join(to);
        succeeds(&format!("convert {{}} --to {to} {{}}"), &[&checkpoint, &path]);
        for ((_, a), (path, b)) in of_checkpoint.iter().zip(rows(&path, &format!("of-{to}"))) {
            assert!(*a == b, "{to}: {}", path.display());
        }
    }
    let said = succeeds("convert {} --to onnx {}", &[&checkpoint, &out.path().join("a.onnx")]);
    assert!(said.contains("map (batch, C, rows, columns)") && said.contains("resnet_small, width 12"), "{said}");
    let (model, blob) = (out.path().join("b.onnx"), out.path().join("flat"));
    succeeds("convert {} --to onnx --height 40 --width 33 {}", &[&checkpoint, &model]);
    succeeds("convert {} --to flat {}", &[&checkpoint, &blob]);
    assert_eq!(std::fs::read(blob).unwrap()[..12], *b"DINOFLAT\x03\0\0\0");
    // Its stem is none of Hugging Face's.
    let to_hf = "convert {} --to hf {}";
    refuses_with(to_hf, &[&checkpoint, &out.path().join("e")], &["7 x 7", "this one 3 x 3", "--to timm"]);
    // Another run starts from it, the student alone too, and not from what it has no shape for.
    let again = |flags: &str, file: &Path, out: &Path| {
        let line = format!(
            "train {RESNET} --epochs 1 --lr 0 --min-lr 0 --local-crops-number 0 --knn-every 0 --init-from {{}} --data {{}} --out {{}} {flags}"
        );
        dino(&line, &[file, data, out])
    };
    let next = out.path().join("next");
    let done = again("", &checkpoint, &next);
    assert!(done.code == 0 && done.err.contains("the projection head is the file's"), "{}", done.err);
    let arrays = |file: &Path, name: &str| {
        let path = out.path().join(name);
        succeeds("convert {} --to npy {}", &[file, &path]);
        let all = content(&path).into_iter();
        let weights = all.filter(|(path, _)| !path.to_string_lossy().contains("running_"));
        weights.map(|(_, bytes)| bytes).collect::<Vec<_>>()
    };
    assert!(arrays(&checkpoint, "from") == arrays(&next.join("checkpoint.safetensors"), "to"), "no step moved them");
    let done = dino(
        "train --small --arch vit_tiny --init-from {} --data {} --out {}",
        &[&checkpoint, data, &out.path().join("vit")],
    );
    assert!(done.code == 2 && done.err.contains("is a ResNet, the run has a vision transformer"), "{}", done.err);
}

/// Every evaluation and every figure that needs a row an image.
#[test]
fn every_evaluation_takes_a_resnet() {
    let ([data, run], out) = (&*TRAINED, tempfile::tempdir().unwrap());
    let (data, checkpoint) = (data.path(), run.path().join("checkpoint.safetensors"));
    let scores = |line: &str| -> Value {
        let line = format!("{line} --json --checkpoint {{}} --data {{}}");
        serde_json::from_str(&succeeds(&line, &[&checkpoint, data])).unwrap_or_else(|e| panic!("{line}: {e}"))
    };
    let percent = |found: &Value, what: &str| {
        let x = found.as_f64().unwrap_or_else(|| panic!("{what}: {found}"));
        assert!((0.0..=100.0).contains(&x), "{what}: {x}");
    };
    let knn = scores("eval knn --k 5 --which teacher,student,random");
    (0..3).for_each(|i| percent(&knn["results"][i]["scores"][0]["top1"], "knn"));
    let logistic = scores("eval logistic --shots 1");
    percent(&logistic["results"][0]["top1"], "logistic");
    assert_eq!((&logistic["width"], &knn["results"][0]["width"]), (&json!(12), &json!(12)));
    percent(&scores("eval retrieval --which teacher,random")["scores"][1]["map"], "retrieval");
    let found = scores("eval retrieval --size 32 --multi-scale --leave-one-out");
    percent(&found["scores"][0]["map"], "retrieval in three scales");
    // Average and generalized mean of the last map, also of images that are smaller than a cell of a large network.
    for size in [1, 32] {
        let found = scores(&format!("eval copies --attack --queries 2 --size {size}"));
        assert_eq!(found["networks"][0]["blocks"].as_array().unwrap().len(), 13, "{found}");
    }
    // The average over the last map, as published for ResNet-50; a head is saved and scored.
    let head = out.path().join("head");
    let line = "eval linear --epochs 2 --json --checkpoint {} --data {} --save {}";
    let found: Value = serde_json::from_str(&succeeds(line, &[&checkpoint, data, &head])).unwrap();
    let tensors = header(&std::fs::read(&head).unwrap());
    assert_eq!(tensors["linear.weight"]["shape"], serde_json::json!([10, 12]), "{found}");
    succeeds("eval linear --checkpoint {} --data {} --evaluate {}", &[&checkpoint, data, &head]);
    succeeds("eval linear --epochs 1 --augmented --lr 0.01 --checkpoint {} --data {}", &[&checkpoint, data]);
    let linear = |flags: &str, expected: &[&str]| {
        refuses_with(&format!("eval linear {flags} --checkpoint {{}} --data {{}}"), &[&checkpoint, data], expected);
    };
    linear("--blocks 2", &["--blocks 2: a ResNet has the average", "--blocks 1"]);
    linear("--mean-patch", &["none for its patches", "vision transformer"]);
    for line in [
        "neighbours --pixels --queries 2 --checkpoint {} --data {} --out {}",
        "crops --checkpoint {} --data {} --images 2 --out {}",
    ] {
        succeeds(line, &[&checkpoint, data, &out.path().join(line.split(' ').next().unwrap())]);
    }
    succeeds("report {} --data {}", &[run.path(), data]);
    let page = std::fs::read_to_string(run.path().join("report.html")).unwrap();
    assert!(page.contains("last map is active") && page.contains("Nearest neighbors"), "a gallery and neighbors");
    assert!(!page.contains("class token"), "a ResNet has none");
    succeeds(&format!("plan {RESNET}"), &[]);
}

/// What needs a row for each patch, or attention, is refused in a line that names what would work; the last map can be drawn.
#[test]
fn a_resnet_draws_its_class_activation() {
    let ([data, run], out) = (&*TRAINED, tempfile::tempdir().unwrap());
    let (data, checkpoint) = (data.path(), run.path().join("checkpoint.safetensors"));
    let images = folder(&[("a.png", image_bytes(Png, 1)), ("b.png", image_bytes(Png, 2))]);
    let (image, figures) = (images.path().join("a.png"), out.path().join("figures"));
    for command in ["attend", "attend --block 1", "attend --block 0", "pca", "pca --block 1"] {
        let line = format!("{command} --checkpoint {{}} --image {{}} --out {{}}");
        refuses_with(&line, &[&checkpoint, &image, &figures], &["this backbone has", "vision transformer", "--cam"]);
    }
    let line = "features --tokens patches --checkpoint {} --data {} --out {}";
    refuses_with(line, &[&checkpoint, data, &figures], &["none for its patches", "--cam"]);
    let [attention, video] = ["eval attention --checkpoint {}", "eval video --checkpoint {} --data {}"];
    refuses_with(attention, &[&checkpoint], &["this backbone has", "eval knn"]);
    refuses_with(&format!("{attention} --block 1"), &[&checkpoint], &["this backbone has", "eval knn"]);
    refuses_with(video, &[&checkpoint, data], &["this backbone has", "eval knn"]);

    succeeds("attend --cam --checkpoint {} --image {} --out {}", &[&checkpoint, &image, &figures]);
    let names: Vec<String> =
        content(&figures).iter().map(|(path, _)| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let all = [
        "cam-cutout.png",
        "cam-heat.png",
        "cam-mask.png",
        "cam.json",
        "cam.npy",
        "cam.png",
        "image.png",
        "overlay.png",
    ];
    assert_eq!(names, all);
    let cam: Value = serde_json::from_slice(&std::fs::read(figures.join("cam.json")).unwrap()).unwrap();
    // An image of 41 x 36 with its shorter side at 24, the global crop: 27 x 24, of which 26 x 24 are full cells of a stride of 2.
    assert_eq!((&cam["rows"], &cam["cols"], &cam["width"]), (&json!(12), &json!(13), &json!(26)));
    let numbers: Vec<f64> = cam["activation"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    assert!(numbers.len() == 12 * 13 && numbers.iter().all(|x| *x >= 0.0) && numbers.iter().any(|x| *x > 0.0));
    // Of several images each has a folder; sides that are no multiples of a cell; one pixel.
    for (size, several) in [(25, "several"), (1, "pixel")] {
        let several = out.path().join(several);
        let line = format!("attend --cam --size {size} --write overlay,npy --checkpoint {{}} --image {{}} --out {{}}");
        succeeds(&line, &[&checkpoint, images.path(), &several]);
        assert!(several.join("b/cam.npy").is_file() && several.join("sheet-000.png").is_file());
    }
    let cam = |flags: &str, expected: &[&str]| {
        let line = format!("attend --cam {flags} --checkpoint {{}} --image {{}} --out {{}}");
        refuses_with(&line, &[&checkpoint, &image, &figures], expected);
    };
    cam("--block 1", &["--cam", "--block"]);
    cam("--write heads", &["no heads", "--write overlay"]);
    cam("--size 99999999", &["--size 99999999", "a smaller --size"]);
    // A vision transformer has attention for it.
    let vit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/weights/hf");
    let line = "attend --cam --checkpoint {} --image {} --out {}";
    refuses_with(line, &[&vit, &image, &figures], &["no last feature map", "attend without --cam"]);
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

/// The small preset follows the size of the images, and what is named.
#[test]
fn small_is_a_resnet_by_the_size_of_the_images_unless_a_vit_is_named() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    // Of 36 x 41 pixels, and of 70 x 49: the shorter side decides.
    let small: Vec<_> =
        (0..8).map(|i| (format!("{}/{i}.png", ["a", "b"][i % 2]), image_bytes(Png, i as u32))).collect();
    let small = folder(&small.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect::<Vec<_>>());
    let large = tempfile::tempdir().unwrap();
    for i in 0..8 {
        let class = large.path().join(["a", "b"][i % 2]);
        std::fs::create_dir_all(&class).unwrap();
        let image = image::RgbImage::from_fn(70, 49, |x, y| image::Rgb([x as u8, 3 * y as u8, (x * y) as u8]));
        image.save(class.join(format!("{i}.png"))).unwrap();
    }
    let cases = [
        ("", data.path(), "resnet_small", json!([32, 64, 128]), 32),
        ("--widths 8 12 16", data.path(), "resnet_small", json!([8, 12, 16]), 32),
        ("--arch resnet_small --stage-blocks 1 2 1", data.path(), "resnet_small", json!([32, 64, 128]), 32),
        ("--arch resnet18 --stem 3x3 --batch 4", data.path(), "resnet18", json!([64, 128, 256, 512]), 32),
        ("--arch vit_tiny", data.path(), "vit_tiny", json!([]), 40),
        ("--patch-size 8", data.path(), "vit_tiny", json!([]), 40),
        ("--batch 2", small.path(), "resnet_small", json!([32, 64, 128]), 32),
        ("--batch 2", large.path(), "resnet_small", json!([32, 64, 128]), 64),
        ("--batch 2 --depth 2", large.path(), "vit_tiny", json!([]), 40),
        ("--batch 2 --arch resnet18", large.path(), "resnet18", json!([64, 128, 256, 512]), 64),
    ];
    for (i, (named, data, arch, widths, size)) in cases.into_iter().enumerate() {
        let out = dir.path().join(i.to_string());
        let line = format!("train --small {named} --epochs 1 --warmup-epochs 0 --knn-every 0 --data {{}} --out {{}}");
        let done = dino(&line, &[data, &out]);
        assert_eq!(done.code, 0, "{line}: {}", done.err);
        let run: Value = serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
        assert_eq!((&run["config"]["arch"], &run["config"]["widths"]), (&json!(arch), &widths), "{named}");
        assert_eq!(run["config"]["global-size"], size, "{named}");
        // What was chosen for the user is printed.
        let chosen = arch == "resnet_small" && !named.contains("--arch");
        assert_eq!(done.err.contains("--small is a small ResNet"), chosen, "{named}: {}", done.err);
    }
}
