//! Residual networks of other programs: what torchvision and transformers wrote and computed (`cases/resnet/make.py`), there and back.

use crate::common::*;
use dino_host::config::Config;
use dino_host::cpu::{Cpu, NoOptions};
use dino_host::eval::head_file;
use dino_host::inference::dense::Dense;
use dino_host::linalg::leading;
use dino_host::weights::init::{self, Head};
use dino_host::weights::{self, File, Naming, Options, Side, Weights, write};
use dino_kernel::crops::Group;
use ndarray::ArrayView2;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/resnet").join(name)
}

/// The folder that parity is measured on: `resnet` in `$DINO_FIXTURES` where there is one, else the committed one.
fn measured() -> PathBuf {
    let other = std::env::var_os("DINO_FIXTURES").map(|folder| PathBuf::from(folder).join("resnet"));
    other.filter(|folder| folder.is_dir()).unwrap_or_else(|| case(""))
}

fn recorded(folder: &Path) -> File {
    let path = folder.join("activations.safetensors");
    File::parse(path.display().to_string(), fs::read(path).unwrap()).unwrap()
}

#[track_caller]
fn load(path: &Path, options: &Options) -> Weights {
    let options = Options { allow_extra: true, ..options.clone() };
    weights::open(path, &options).and_then(|o| o.strict()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The average over the last map, within 1e-4 of what the program that wrote the file computed, for images of every size.
#[test]
fn features_are_those_of_torchvision_and_transformers() {
    let folder = measured();
    let recorded = recorded(&folder);
    let mut seen = 0;
    for key in recorded.tensors.keys() {
        let (file, network, pixels) = match key.split(':').collect::<Vec<_>>()[..] {
            [_, "cam"] => continue,
            [file, pixels] => (file, None, pixels),
            [file, network, pixels] => (file, Some(network.to_owned()), pixels),
            _ => continue,
        };
        let w = load(&folder.join(file), &Options { called: network, ..Options::default() });
        let &[count, _, height, width] = recorded.tensors[pixels].shape.as_slice() else { panic!("{pixels}") };
        let group = Group { count, height, width };
        let mut network = Dense::<Cpu>::new(&NoOptions {}, &w.config, &w.backbone, group).unwrap();
        let found = network.rows(&recorded.values(pixels).unwrap()).unwrap();
        let want = recorded.values(key).unwrap();
        assert_eq!(found.images.len(), want.len(), "{key}");
        let most = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let error = found.images.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / most;
        println!("{key}: largest relative error {error:.1e}");
        assert!(most > 0.1 && error < 1e-4, "{key}: {error:.1e} of {most}");
        seen += 1;
    }
    assert!(seen >= 6, "{seen}");
}

/// A full run under the published names: either network and its head, running statistics, and nothing else.
#[test]
fn published_layouts_are_read() {
    let of = |network| load(&case("full.pth"), &Options { network: Some(network), head: true, ..Options::default() });
    let (teacher, student) = (of("teacher"), of("student"));
    assert_eq!((teacher.config.out_dim, teacher.config.hidden, teacher.config.bottleneck), (16, 12, 8));
    assert_eq!(write::head(&teacher.config, teacher.head.as_ref().unwrap()).len(), 8);
    assert_ne!(student.backbone, teacher.backbone);
    assert_eq!(
        (teacher.report.container.as_str(), student.report.container.as_str()),
        ("teacher.backbone.", "student.module.backbone.")
    );
    let raw = File::parse("full.pth".into(), fs::read(case("full.pth")).unwrap()).unwrap();
    for t in write::backbone(&teacher.config, &teacher.backbone) {
        assert_eq!(t.values, raw.values(&format!("teacher.backbone.{}", t.name)).unwrap(), "{}", t.name);
    }
    let w = load(&case("pretrain.pth"), &Options::default());
    assert_eq!(
        (w.config.arch.as_str(), w.config.block_kind.as_str(), w.config.embed_dim),
        ("resnet_small", "bottleneck", 32)
    );
    assert_eq!((&w.config.widths[..], &w.config.stage_blocks[..]), (&[4, 4, 4, 8][..], &[1, 1, 2, 1][..]));
    assert!(w.report.left_out.is_empty() && w.report.extra.is_empty(), "{:?}", w.report);
    let (head, about) = head_file::load(&case("linearweights.pth")).unwrap();
    assert_eq!((head.weight.dim(), head.bias.len(), about), ((3, 32), 3, None));
}

/// From each naming convention to each, through files: the same bits.
#[test]
fn conversions_keep_every_bit() {
    let dir = tempfile::tempdir().unwrap();
    let first = load(&case("pretrain.pth"), &Options::default());
    let kinds =
        [("official", Naming::Official), ("timm", Naming::Timm), ("hf", Naming::Hf), ("safetensors-own", Naming::Own)];
    for (i, (a, _)) in kinds.into_iter().enumerate() {
        let one = dir.path().join(a);
        succeeds(&format!("convert {{}} --to {a} {{}}"), &[&case("pretrain.pth"), &one]);
        for (b, naming) in [kinds[(i + 1) % 4], kinds[(i + 2) % 4]] {
            let two = dir.path().join(format!("{a}-{b}"));
            succeeds(&format!("convert {{}} --to {b} {{}}"), &[&one, &two]);
            let w = load(&two, &Options::default());
            let read = if naming == Naming::Timm { Naming::Official } else { naming };
            assert_eq!(w.report.naming, read, "{a} to {b}");
            assert!(w.backbone == first.backbone, "{a} to {b}");
            assert_eq!((w.config.global_size, w.config.stem_stride), (224, 2), "{a} to {b}");
        }
    }
    // As transformers writes it, the count of batches too: names, types and shapes.
    let shapes = |path: &Path| -> BTreeMap<String, Value> {
        let header = header(&fs::read(path).unwrap());
        let names = header.as_object().unwrap().iter().filter(|(name, _)| name.contains('.'));
        names.map(|(name, t)| (name.clone(), json!([t["dtype"], t["shape"]]))).collect()
    };
    let (ours, theirs) = (dir.path().join("hf/model.safetensors"), case("hf/model.safetensors"));
    assert_eq!(shapes(&ours), shapes(&theirs));
    let json = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let (ours, theirs) = (json(&dir.path().join("hf/config.json")), json(&case("hf/config.json")));
    for key in ours.as_object().unwrap().keys() {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    assert!(load(&case("hf"), &Options::default()).backbone == first.backbone);
    let pixels = json(&dir.path().join("hf/preprocessor_config.json"));
    assert_eq!((&pixels["size"], &pixels["crop_pct"]), (&json!({"shortest_edge": 224}), &json!(0.875)));

    // Within a classifier.
    let bytes = with_header(&fs::read(case("hf/model.safetensors")).unwrap(), |h| {
        let tensors = h.as_object_mut().unwrap();
        for name in tensors.keys().filter(|k| *k != "__metadata__").cloned().collect::<Vec<_>>() {
            let value = tensors.remove(&name).unwrap();
            tensors.insert(format!("resnet.{name}"), value);
        }
        tensors.insert("classifier.1.bias".into(), json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}));
    });
    let options = Options { allow_extra: true, ..Options::default() };
    let w = weights::parse("file".into(), bytes, &Side::default(), &options).unwrap().strict().unwrap();
    assert!(w.backbone == first.backbone && w.report.left_out == ["a classifier"], "{:?}", w.report);

    let out = dir.path().join("x");
    refuses_with("convert {} --head --to hf {}", &[&case("full.pth"), &out], &["no place"]);
    succeeds("convert {} --head --to official {}", &[&case("full.pth"), &out]);
    let head = Options { head: true, ..Options::default() };
    assert_eq!(load(&out, &head).head, load(&case("full.pth"), &head).head);
    let said = succeeds("convert {} --json --to npy {}", &[&case("pretrain.pth"), &dir.path().join("npy")]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["architecture"]["block_kind"], &said["tensors"]), (&json!("bottleneck"), &json!(100)));
    assert_eq!(content(&dir.path().join("npy")).len(), 100);
}

/// The tiny file with another header: what is refused, or the weights.
fn reread(side: &Side, change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Result<Weights, String> {
    let bytes = fs::read(case("hf/model.safetensors")).unwrap();
    let bytes = with_header(&bytes, |h| change(h.as_object_mut().unwrap()));
    let opened = weights::parse("file".into(), bytes, side, &Options::default());
    opened.and_then(|o| o.strict()).map_err(|e| e.to_string())
}

/// One line states what is wrong and one what would fit.
#[test]
fn files_that_do_not_fit_are_refused() {
    let none = Side::default();
    assert!(reread(&none, |_| ()).is_ok());
    let refused = |what: &str, parts: &[&str], said: Result<Weights, String>| {
        let said = said.map(|w| w.config).unwrap_err();
        assert!(said.lines().count() == 2 && said.contains("  hint: "), "{what}: {said}");
        parts.iter().for_each(|part| assert!(said.contains(part), "{what}: {part}: {said}"));
    };
    const LAST: &str = "encoder.stages.3.layers.0.layer.1";
    let without = |unwanted: &dyn Fn(&str) -> bool| {
        let path = case("hf/model.safetensors");
        let raw = File::parse("raw".into(), fs::read(path).unwrap()).unwrap();
        let kept: Vec<(&String, Vec<usize>, Vec<u8>)> = raw
            .tensors
            .iter()
            .filter(|(name, _)| !unwanted(name) && !name.ends_with("tracked"))
            .map(|(name, t)| {
                let bytes = raw.values(name).unwrap().iter().flat_map(|x| x.to_le_bytes()).collect();
                (name, t.shape.clone(), bytes)
            })
            .collect();
        let views = kept.iter().map(|(name, shape, bytes)| {
            (name, TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).expect("a tensor"))
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        let opened = weights::parse("file".into(), bytes, &none, &Options::default());
        opened.and_then(|o| o.strict()).map_err(|e| e.to_string())
    };
    assert!(without(&|_| false).is_ok(), "the count of batches is no part of the weights");
    let means = without(&|name| name.ends_with(".running_mean"));
    refused("means", &["20 missing", "running_mean", "state_dict()"], means);
    let variances = without(&|name| name.ends_with(".running_var"));
    refused("variances", &["20 missing", "running_var", "state_dict()"], variances);
    let all = without(&|name| name.contains("running_"));
    refused("both", &["40 missing", "state_dict()"], all);
    let one = without(&|name| name == format!("{LAST}.convolution.weight"));
    refused("one", &["1 missing (encoder.stages.3.layers.0.layer.1.convolution.weight)", "--json"], one);
    let shape = reread(&none, |h| h[&format!("{LAST}.normalization.bias")]["shape"] = json!([2, 4]));
    refused("shape", &["1 misshapen", "[2, 4], not [8]"], shape);
    // torchvision's name among Hugging Face's.
    let mixed = reread(&none, |h| {
        let value = h.remove(&format!("{LAST}.convolution.weight")).unwrap();
        h.insert("layer4.0.conv2.weight".into(), value);
    });
    refused("mixed", &["1 missing", "1 extra (layer4.0.conv2.weight)", "--dialect"], mixed);
    let counted = reread(&none, |h| h[&format!("{LAST}.convolution.weight")]["dtype"] = json!("I32"));
    refused("type", &["holds int32", "float32"], counted);
    for (stated, word) in [
        (json!({"downsample_in_bottleneck": true}), "downsample_in_bottleneck true"),
        (json!({"downsample_in_first_stage": true}), "downsample_in_first_stage true"),
        (json!({"hidden_act": "gelu"}), "hidden_act \"gelu\""),
        (json!({"depths": [3, 4, 6, 3]}), "depths [3,4,6,3], its tensors [1,1,2,1]"),
        (json!({"hidden_sizes": "many"}), "hidden_sizes \"many\""),
        (json!({"layer_type": "basic"}), "layer_type \"basic\""),
    ] {
        refused(word, &[word, "config.json"], reread(&Side { config: stated, ..Side::default() }, |_| ()));
    }
    // Relatives: by their shapes, by their names.
    let wide = |h: &mut serde_json::Map<String, Value>, name: &str, shape: Value| {
        let len = 4 * shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product::<u64>();
        h.insert(name.into(), json!({"dtype": "F32", "shape": shape, "data_offsets": [0, len]}));
    };
    let fresh = |tensors: &[(&str, Value)]| {
        let mut h = serde_json::Map::new();
        let stem = ("conv1.weight", json!([8, 3, 7, 7]));
        let mean = ("layer1.0.bn1.running_mean", json!([8]));
        for (name, shape) in tensors.iter().chain([&stem, &mean]) {
            wide(&mut h, name, shape.clone());
        }
        // Every tensor has its own bytes.
        let mut at = 0;
        for t in h.values_mut() {
            let len = t["data_offsets"][1].as_u64().unwrap();
            t["data_offsets"] = json!([at, at + len]);
            at += len;
        }
        let header = serde_json::to_vec(&h).unwrap();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &vec![0; at as usize]].concat();
        let opened = weights::parse("file".into(), bytes, &none, &Options::default());
        opened.and_then(|o| o.strict()).map_err(|e| e.to_string())
    };
    let (first, second) = (("layer1.0.conv1.weight", json!([8, 8, 1, 1])), "layer1.0.conv2.weight");
    let third = ("layer1.0.conv3.weight", json!([32, 8, 1, 1]));
    refused("grouped", &["grouped"], fresh(&[first.clone(), (second, json!([8, 2, 3, 3])), third.clone()]));
    let narrow = ("layer1.0.conv3.weight", json!([16, 8, 1, 1]));
    refused("wide", &["a wide network"], fresh(&[first.clone(), (second, json!([8, 8, 3, 3])), narrow]));
    let vast = ("layer1.0.conv1.weight", json!([1u64 << 62, 0, 1, 1]));
    refused("vast", &["file"], fresh(&[vast, third.clone()]));
    for (name, word) in [
        ("layer1.0.se.fc1.weight", "attention in its blocks"),
        ("conv1.0.weight", "a deep stem"),
        ("layer2.0.downsample.2.weight", "average pool"),
    ] {
        refused(name, &[word], fresh(&[first.clone(), third.clone(), (name, json!([8]))]));
    }
}

/// Damaged bytes: an error of two lines or other numbers, never a panic. A variance below zero is named.
#[test]
fn damaged_files_are_refused() {
    let whole = fs::read(case("hf/model.safetensors")).unwrap();
    let read =
        |bytes| weights::parse("file".into(), bytes, &Side::default(), &Options::default()).and_then(|o| o.strict());
    for n in (0..whole.len()).step_by(whole.len() / 60) {
        assert_eq!(read(whole[..n].to_vec()).unwrap_err().to_string().lines().count(), 2, "{n} bytes");
    }
    for i in (0..whole.len()).step_by(whole.len() / 200) {
        let mut changed = whole.clone();
        changed[i] ^= 0x55;
        let _ = read(changed);
    }
    let name = "embedder.embedder.normalization.running_var";
    let header = header(&whole);
    let first = whole.len()
        - header.as_object().unwrap().values().filter_map(|t| t["data_offsets"][1].as_u64()).max().unwrap() as usize;
    let at = first + header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let mut negative = whole;
    negative[at..at + 4].copy_from_slice(&(-0.5f32).to_le_bytes());
    let said = read(negative).unwrap_err().to_string();
    assert!(said.contains("bn1.running_var has the variance -0.5"), "{said}");
}

/// NumPy's singular vectors.
#[test]
fn the_class_activation_is_the_first_singular_projection() {
    let recorded = recorded(&case(""));
    for name in ["tall", "flat"] {
        let &[rows, cols] = recorded.tensors[name].shape.as_slice() else { panic!("{name}") };
        let map = recorded.values(name).unwrap();
        let found = leading::projection(ArrayView2::from_shape((rows, cols), &map).unwrap());
        let want = recorded.values(&format!("{name}:cam")).unwrap();
        assert_eq!(found.len(), want.len());
        for (a, b) in found.iter().zip(&want) {
            assert!((a - b).abs() < 1e-5, "{name}: {found:?}, not {want:?}");
        }
    }
}

fn run_of(w: &Weights, change: impl FnOnce(&mut Config)) -> Config {
    let (global_size, local_size) = (32, 16);
    let head = |w: &Weights| (w.config.out_dim, w.config.hidden, w.config.bottleneck, w.config.head_layers);
    let (out_dim, hidden, bottleneck, head_layers) = head(w);
    let mut config = Config {
        arch: "resnet_small".into(),
        block_kind: w.config.block_kind.clone(),
        stem: w.config.stem.clone(),
        widths: w.config.widths.clone(),
        stage_blocks: w.config.stage_blocks.clone(),
        ..Config::published()
    };
    config = Config { global_size, local_size, out_dim, hidden, bottleneck, head_layers, batch: 8, ..config };
    change(&mut config);
    config.resolve().unwrap()
}

/// Weights and running statistics of every kind of file, to the bit, and more channels on request.
#[test]
fn runs_start_from_every_kind() {
    let full = load(&case("full.pth"), &Options { head: true, ..Options::default() });
    for (name, head) in [("full.pth", Head::Keep), ("pretrain.pth", Head::Keep), ("hf", Head::Fresh)] {
        let w = load(&case(name), &Options { head: name == "full.pth", ..Options::default() });
        let config = run_of(&w, |_| ());
        let start = init::start(&case(name), None, &config, head, false).unwrap();
        let table = config.table();
        assert_eq!((start.weights.len(), start.buffers.len()), (table.len(), table.buffers_len()), "{name}");
        assert!(start.weights[..table.backbone_len()] == w.backbone[..table.backbone_len()], "{name}");
        assert!(start.buffers == w.backbone[table.backbone_len()..], "{name}");
        if name == "full.pth" {
            assert_eq!(Some(&start.weights[table.backbone_len()..]), full.head.as_deref());
        }
    }
    let file = case("full.pth");
    let start = |change: &dyn Fn(&mut Config), channels: bool| {
        init::start(&file, None, &run_of(&full, change), Head::Fresh, channels).map_err(|e| e.to_string())
    };
    let said = start(&|c| c.widths = vec![4, 4, 4, 16], false).map(|s| s.notes).unwrap_err();
    assert!(said.contains("the shape of") && said.contains("--widths 4 4 4 8"), "{said}");
    let said = start(&|c| c.block_kind = "bottleneck".into(), false).map(|s| s.notes).unwrap_err();
    assert!(said.contains("--block-kind basic"), "{said}");
    let gray = |c: &mut Config| (c.channels, c.mean, c.std) = (1, vec![0.5], vec![0.25]);
    let said = start(&gray, false).map(|s| s.notes).unwrap_err();
    assert!(said.contains("3 channels, the run 1") && said.contains("--init-channels"), "{said}");
    let one = start(&gray, true).unwrap();
    let old = &full.backbone[..3 * 49];
    for (i, x) in one.weights[..49].iter().enumerate() {
        let sum: f64 = (0..3).map(|c| f64::from(old[c * 49 + i])).sum();
        assert!((f64::from(*x) - sum).abs() < 1e-6, "{i}");
    }
    let noted = start(&|c| c.stem_stride = 1, false).unwrap().notes;
    assert!(noted.iter().any(|line| line.contains("--stem-stride")), "{noted:?}");
    // Another family, each way.
    let vit = Config { batch: 8, ..Config::small() }.resolve().unwrap();
    let said = init::start(&file, None, &vit, Head::Fresh, false).map(|s| s.notes).unwrap_err().to_string();
    assert!(
        said.contains("is a ResNet, the run has a vision transformer") && said.contains("--arch resnet_small"),
        "{said}"
    );
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/weights/hf");
    let run = run_of(&full, |_| ());
    let said = init::start(&other, None, &run, Head::Fresh, false).map(|s| s.notes).unwrap_err().to_string();
    assert!(said.contains("is a vision transformer, the run has a ResNet"), "{said}");
}
