//! Weights in the archives, pickles and containers that people have: what PyTorch wrote (`tests/cases/containers/make.py`), and what an
//! imitation of `torch.save` writes here.

mod torch_save;

use crate::common::*;
use dino_host::weights::{self, Options, Side, Weights};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

use std::path::{Path, PathBuf};
use torch_save::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/containers").join(name)
}

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/training").join(name)
}

/// One head: the networks here are 4 wide.
fn options() -> Options {
    Options { heads: Some(1), allow_extra: true, ..Options::default() }
}

fn parsed(bytes: Vec<u8>, options: &Options) -> Result<Weights, String> {
    let opened = weights::parse("file".into(), bytes, &Side::default(), options);
    opened.and_then(|o| o.strict()).map_err(|e| e.to_string())
}

#[track_caller]
fn load(bytes: Vec<u8>) -> Weights {
    parsed(bytes, &options()).unwrap_or_else(|e| panic!("{e}"))
}

#[track_caller]
fn refused(bytes: Vec<u8>, expected: &[&str]) {
    let text = parsed(bytes, &options()).unwrap_err();
    assert_eq!(text.lines().count(), 2, "{text}");
    expected.iter().for_each(|s| assert!(text.contains(s), "{s:?} is not reported: {text}"));
}

/// The tensors of plain.pth plus `add`, as a dictionary under names with `prefix`, and its storages.
fn network(prefix: &str, add: f32, storages: &mut BTreeMap<String, Vec<f32>>) -> Vec<(String, Py)> {
    let w = load(fs::read(golden("plain.pth")).unwrap());
    let all = weights::write::backbone(&w.config, &w.backbone);
    let entry = |t: weights::write::Named| {
        let key = storages.len().to_string();
        storages.insert(key.clone(), t.values.iter().map(|x| x + add).collect());
        (format!("{prefix}{}", t.name), Py::Tensor(t.shape, key))
    };
    all.into_iter().map(entry).collect()
}

/// A file whose value is made of the tensors of networks under prefixes, the dictionaries named before `/`.
fn wrapped(networks: &[(&str, f32)], beside: Vec<(String, Py)>) -> Vec<u8> {
    let (mut storages, mut all) = (BTreeMap::new(), beside);
    for (prefix, add) in networks {
        let mut parts: Vec<&str> = prefix.split('/').collect();
        let last = parts.pop().unwrap();
        let mut entries = network(last, *add, &mut storages);
        // Networks that share a dictionary are stored in one.
        for outer in parts.into_iter().rev() {
            let known = all.iter_mut().find(|(name, _)| name == outer);
            entries = match known {
                Some((_, Py::Dict(inner))) => {
                    inner.append(&mut entries);
                    vec![]
                }
                _ => vec![(outer.to_owned(), Py::Dict(entries))],
            };
        }
        all.append(&mut entries);
    }
    saved("archive", &Py::Dict(all), &storages, Way::default())
}

fn plain() -> Weights {
    load(fs::read(golden("plain.pth")).unwrap())
}

/// Names of all lengths: with 21 letters the directory's first entry is as long as what is between it and its end.
#[test]
fn archives_are_read_whatever_their_names_are() {
    let first = plain().backbone;
    let mut storages = BTreeMap::new();
    let value = Py::Dict(network("", 0.0, &mut storages));
    for length in 1..=64 {
        let name = "a".repeat(length);
        assert_eq!(load(saved(&name, &value, &storages, Way::default())).backbone, first, "{length} letters");
    }
    let many = "é".repeat(10) + "x";
    assert_eq!(load(saved(&many, &value, &storages, Way::default())).backbone, first);
    // Another byte order, compressed since, without ZIP64, behind other bytes.
    let ways = [
        Way { big_endian: true, ..Way::default() },
        Way { deflated: true, ..Way::default() },
        Way { deflated: true, big_endian: true, short: true, ..Way::default() },
        Way { short: true, ..Way::default() },
        Way { before: 100, ..Way::default() },
        Way { before: 4096, short: true, ..Way::default() },
        Way { before: 77, counted: true, ..Way::default() },
        Way { before: 77, counted: true, short: true, ..Way::default() },
    ];
    for (i, way) in ways.into_iter().enumerate() {
        for name in ["archive", "a_name_of_21_letters_"] {
            let bytes = saved(name, &value, &storages, way);
            assert_eq!(load(bytes.clone()).backbone, first, "way {i}, {name}");
            // Cut off anywhere, it is an error of a line and a hint.
            for n in (0..bytes.len()).step_by(97) {
                refused(bytes[..n].to_vec(), &[]);
            }
        }
    }
    // A changed number is found by the checksum, of a compressed entry as well.
    for way in [Way::default(), Way { deflated: true, ..Way::default() }] {
        let mut bytes = saved("archive", &value, &storages, way);
        let at = bytes.windows(14).position(|w| w == b"archive/data/0").unwrap();
        bytes[(at + 18).next_multiple_of(64) + 5] ^= 0x10;
        assert!(parsed(bytes, &options()).is_err());
    }
}

/// The two files hold the same numbers under names of 20 and 21 letters.
#[test]
fn the_name_of_an_archive_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["10", "100"].map(|n| {
        let (from, to) = (case(&format!("dino_vits16_epoch_{n}.pth")), dir.path().join(n));
        succeeds("convert {} {} --to safetensors-own --heads 1", &[&from, &to]);
        fs::read(to).unwrap()
    });
    assert_eq!(a, b);
}

/// Files that PyTorch wrote: all hold the numbers of plain.pth.
#[test]
fn what_pytorch_writes_is_read() {
    let first = plain().backbone;
    for (name, container, expected) in [
        ("extras-2.pth", "state_dict.", &["__main__.AttributeDict", "nothing was executed", "under `state_dict`"][..]),
        ("extras-5.pth", "state_dict.", &["__main__.AttributeDict", "nothing was executed"]),
        ("extras-legacy.pth", "state_dict.", &["__main__.AttributeDict", "nothing was executed"]),
        ("module.pth", "", &["a whole module, __main__.Whole", "__main__.Node"]),
        ("module-legacy.pth", "net.", &["a whole module, __main__.Whole", "under `net`"]),
        ("script.pt", "", &["TorchScript"]),
        ("list.pth", "0.", &["under `0`"]),
        ("unchecked.pth", "", &[]),
    ] {
        let w = load(fs::read(golden(name)).unwrap());
        assert_eq!((w.backbone, w.report.container.as_str()), (first.clone(), container), "{name}");
        let notes = w.report.notes.join("\n");
        expected.iter().for_each(|s| assert!(notes.contains(s), "{name}: {s:?} is not reported: {notes}"));
    }
    let whole = fs::read(golden("script.pt")).unwrap();
    for bytes in [&whole, &fs::read(golden("module-legacy.pth")).unwrap()] {
        (0..bytes.len()).step_by(61).for_each(|n| drop(parsed(bytes[..n].to_vec(), &options())));
    }
    // What is no plain tensor is refused by its name where it is wanted.
    for (name, expected) in [
        ("quantised.pth", "blocks.0.attn.qkv.weight is no plain tensor: torch._utils._rebuild_qtensor makes it"),
        ("complex.pth", "blocks.0.attn.qkv.weight holds complex64"),
        ("numpy.pth", "made by numpy._core.multiarray._reconstruct"),
    ] {
        refused(fs::read(golden(name)).unwrap(), &[expected]);
    }
}

/// A pickle that runs a command in Python: nothing happens, the weights are read, and the command's name is printed.
#[test]
fn nothing_that_a_pickle_names_is_executed() {
    let dir = tempfile::tempdir().unwrap();
    let mut convert = command("convert {} out --to official --heads 1", &[&golden("hostile.pth")]);
    let done = convert.current_dir(dir.path()).output().unwrap();
    let expected = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(expected.contains("its pickle names posix.system: nothing was executed"), "{expected}");
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["out"]);
    assert_eq!(load(fs::read(dir.path().join("out")).unwrap()).backbone, plain().backbone);
    // What a command would have made is no tensor.
    for raw in [&b"cos\nsystem\n(X\x02\x00\x00\x00idtR"[..], b"(ios\nsystem\n", b"cbuiltins\neval\n)\x81}b"] {
        let (mut storages, key) = (BTreeMap::new(), "blocks.0.mlp.fc1.weight");
        let mut all = network("", 0.0, &mut storages);
        all.iter_mut().find(|(name, _)| name == key).unwrap().1 = Py::Raw(raw);
        refused(saved("a", &Py::Dict(all), &storages, Way::default()), &[key, "nothing was executed"]);
    }
}

/// Any prefixes in any order, by themselves and around each other, and what is stored beside the network.
#[test]
fn containers_of_all_programs_are_opened() {
    let first = plain().backbone;
    for prefix in [
        "",
        "module.",
        "_orig_mod.",
        "_orig_mod.module.",
        "module._orig_mod.backbone.",
        "backbone.module.",
        "encoder.",
        "model.encoder.module.",
        "model_state_dict/",
        "model_state_dict/module.",
        "net/_orig_mod.",
        "state_dict/model.backbone.",
        "model/module.backbone.",
        "classy_state_dict/base_model/model/trunk/_feature_blocks.",
        "teacher/backbone.",
        "a.b.c.",
    ] {
        let bytes = wrapped(&[(prefix, 0.0)], vec![("epoch".into(), Py::Raw(b"K\x03"))]);
        let w = load(bytes);
        let raw = prefix.replace('/', ".");
        assert_eq!((w.backbone, w.report.container), (first.clone(), raw.clone()));
        let told = w.report.notes.iter().any(|n| n.contains(&format!("under `{}`", raw.trim_end_matches('.'))));
        assert_eq!(told, !raw.is_empty(), "{:?}", w.report.notes);
    }
    // A part of a network is wrapped by itself: activation checkpoints, a compiled block.
    let mut storages = BTreeMap::new();
    let mut all = network("", 0.0, &mut storages);
    for (name, _) in &mut all {
        *name = name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module._orig_mod.");
    }
    assert_eq!(load(saved("a", &Py::Dict(all), &storages, Way::default())).backbone, first);

    // Two networks, the teacher by default. (The average is taken for the teacher.)
    for [student, teacher] in [
        ["student/module.backbone.", "teacher/backbone."],
        ["state_dict/student_backbone.", "state_dict/teacher_backbone."],
        ["state_dict/backbone.", "state_dict/momentum_backbone."],
        ["state_dict/module.base_encoder.", "state_dict/module.momentum_encoder."],
        ["state_dict/", "state_dict_ema/"],
        ["model/", "model_ema/module."],
    ] {
        let bytes = wrapped(&[(student, 1.0), (teacher, 0.0)], vec![]);
        let other: Vec<f32> = first.iter().map(|x| x + 1.0).collect();
        let of = |network: Option<&'static str>, called: Option<&str>| {
            parsed(bytes.clone(), &Options { network, called: called.map(String::from), ..options() }).unwrap()
        };
        let name = |prefix: &str| prefix.replace('/', ".").trim_end_matches('.').to_owned();
        assert_eq!(of(None, None).backbone, first, "{teacher}");
        assert_eq!(of(Some("teacher"), None).backbone, first, "{teacher}");
        assert_ne!(of(Some("student"), None).backbone, first, "{student}");
        assert_eq!(of(None, Some(&name(teacher))).backbone, first, "{teacher}");
        let taken = of(None, Some(&name(student)));
        let all = weights::write::backbone(&taken.config, &taken.backbone);
        let intact = weights::write::backbone(&taken.config, &other);
        assert!(all.iter().zip(&intact).all(|(a, b)| a.values == b.values), "{student}");
        let notes = of(None, None).report.notes.join("\n");
        assert!(notes.contains(&format!("`{}` is taken", name(teacher))) && notes.contains(&name(student)), "{notes}");
    }
}

/// Heads of other kinds, classifiers, mask tokens and decoders change no feature; another architecture is called by its name.
#[test]
fn what_stands_beside_a_network_does_not_keep_it_from_being_read() {
    let first = plain().backbone;
    let some = || Py::Tensor(vec![4], "0".into());
    let inner = |outer: &str, names: &[&str]| {
        let all: Vec<(String, Py)> = names.iter().map(|name| (name.to_string(), some())).collect();
        if outer.is_empty() { all } else { vec![(outer.to_string(), Py::Dict(all))] }
    };
    for (prefix, outer, names, left_out, noted) in [
        (
            "state_dict/module.momentum_encoder.",
            "state_dict",
            &["module.momentum_encoder.head.0.weight", "module.predictor.0.weight"][..],
            "a head of another kind",
            "not used: 1",
        ),
        ("state_dict/momentum_backbone.", "state_dict", &["classifier.weight", "queue"], "", "not used: 2"),
        ("state_dict/backbone.", "state_dict", &["classifier.weight", "classifier.bias"], "a classifier", ""),
        ("vit.", "", &["classifier.weight", "classifier.bias"], "a classifier", ""),
        ("model/", "model", &["mask_token", "decoder_pos_embed", "decoder_blocks.0.norm1.bias"], "a mask token", ""),
        ("teacher/backbone.", "teacher", &["backbone.masked_embed", "head.mlp.0.weight"], "a mask token", ""),
    ] {
        let bytes = wrapped(&[(prefix, 0.0)], inner(outer, names));
        for head in [false, true] {
            let w = parsed(bytes.clone(), &Options { head, ..options() }).unwrap();
            assert_eq!((&w.backbone, w.head), (&first, None), "{prefix}");
            let notes = w.report.notes.join("\n");
            assert!(notes.contains(noted), "{prefix}: {notes}");
            assert!(left_out.is_empty() || w.report.left_out.iter().any(|l| l == left_out), "{:?}", w.report.left_out);
        }
    }
    for (name, what) in [
        ("student.module.backbone.layer1.0.conv1.weight", "a convolutional network"),
        ("state_dict.module.encoder_q.layer1.0.bn1.weight", "a convolutional network"),
    ] {
        refused(
            saved("a", &Py::Dict(inner("", &[name])), &BTreeMap::from([("0".into(), vec![0.0; 4])]), Way::default()),
            &[what],
        );
    }
    let bytes = wrapped(&[("teacher/backbone.", 0.0)], inner("teacher", &["backbone.blocks.0.ls1.gamma"]));
    refused(bytes, &["layer scale", "teacher.backbone.blocks.0.ls1.gamma"]);
}

/// One spelling wherever weights are read.
#[test]
fn a_network_is_named_in_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("two.pth");
    fs::write(&file, wrapped(&[("left/", 0.0), ("right/backbone.", 1.0)], vec![])).unwrap();
    let (data, out) = (case("idx"), dir.path().join("out"));
    refuses_with(
        "convert {} {} --to official --heads 1",
        &[&file, &out],
        &["2 networks: `left`, `right.backbone`", "--network left"],
    );
    refuses_with("convert {} {} --to official --heads 1 --network up", &[&file, &out], &["called up", "`left`"]);
    let other: Vec<f32> = plain().backbone.iter().map(|x| x + 1.0).collect();
    for (name, add) in [("left", 0), ("right", 1), ("right.backbone", 1)] {
        succeeds(&format!("convert {{}} {{}} --to official --heads 1 --network {name}"), &[&file, &out]);
        let w = load(fs::read(&out).unwrap());
        let intact = if add == 0 { plain().backbone } else { other.clone() };
        let [a, b] = [&w.backbone, &intact].map(|w| weights::write::backbone(&plain().config, w)[3].values.to_vec());
        assert_eq!(a, b, "{name}");
    }
    let own = dir.path().join("own");
    succeeds("convert {} {} --to safetensors-own --heads 1 --network right", &[&file, &own]);
    let knn = |line: &str, file: &Path| {
        let flags = "--mean 0.5 --std 0.25 --k 5 --json --data {}";
        succeeds(&format!("eval knn --checkpoint {{}} {line} {flags}"), &[file, &data])
    };
    assert_eq!(knn("--heads 1 --network right", &file), knn("", &own));
    refuses_with(
        "eval knn --heads 1 --network left --which student --checkpoint {} --data {}",
        &[&file, &data],
        &["--which student"],
    );
    let run = dir.path().join("run");
    let shape = "--small --channels 1 --embed-dim 4 --depth 1 --heads 1 --patch-size 2 --mlp-ratio 1 --global-size 4 --local-size 2 \
                 --hidden 8 --bottleneck 4 --out-dim 8 --batch 100 --epochs 1 --lr 0 --min-lr 0 --knn-every 0";
    succeeds(&format!("train {shape} --init-from {{}} --network right --data {{}} --out {{}}"), &[&file, &data, &run]);
    let saved = weights::open(&run.join("checkpoint.safetensors"), &options()).unwrap().strict().unwrap();
    let own = weights::open(&own, &options()).unwrap().strict().unwrap();
    assert_eq!(saved.backbone, own.backbone);
    // A run's own two networks by the same flag.
    let checkpoint = run.join("checkpoint.safetensors");
    succeeds("convert {} {} --to official --network student", &[&checkpoint, &out]);
    refuses_with(
        "convert {} {} --to official --network ema",
        &[&checkpoint, &out],
        &["called ema", "teacher or student"],
    );
    // The folder of a run is its checkpoint.
    let [of_file, of_folder] = ["of-file", "of-folder"].map(|name| dir.path().join(name));
    succeeds("convert {} {} --to official", &[&checkpoint, &of_file]);
    succeeds("convert {} {} --to official", &[&run, &of_folder]);
    assert_eq!(std::fs::read(of_file).unwrap(), std::fs::read(of_folder).unwrap());
    refuses_with(
        "convert {} {} --to official",
        &[dir.path(), &out],
        &["it is a folder without", "the folder of a run"],
    );
}

/// Hugging Face's parts with an index, in a folder and by the index itself.
#[test]
fn weights_in_parts_are_one() {
    use safetensors::tensor::{Dtype, TensorView};
    let dir = tempfile::tempdir().unwrap();
    let w = plain();
    let all = weights::write::backbone(&w.config, &w.backbone);
    let mut map = serde_json::Map::new();
    for part in 0..3 {
        let name = format!("model-0000{part}-of-00003.safetensors");
        let mine: Vec<_> = all.iter().enumerate().filter(|(i, _)| i % 3 == part).map(|(_, t)| t).collect();
        let bytes: Vec<Vec<u8>> =
            mine.iter().map(|t| t.values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let views =
            mine.iter().zip(&bytes).map(|(t, b)| (&t.name, TensorView::new(Dtype::F32, t.shape.clone(), b).unwrap()));
        fs::write(dir.path().join(&name), safetensors::serialize(views, None).unwrap()).unwrap();
        mine.iter().for_each(|t| drop(map.insert(t.name.clone(), json!(name))));
    }
    let index = dir.path().join("model.safetensors.index.json");
    let write =
        |map: &serde_json::Map<String, Value>| fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    write(&map);
    let open = |path: &Path| weights::open(path, &options()).and_then(|o| o.strict()).map_err(|e| e.to_string());
    for path in [dir.path(), &index] {
        assert_eq!(open(path).unwrap().backbone, w.backbone);
    }
    let mut extra = map.clone();
    extra.insert("blocks.7.norm1.bias".into(), json!("model-00000-of-00003.safetensors"));
    write(&extra);
    assert!(open(&index).unwrap_err().contains("none of its parts has blocks.7.norm1.bias"));
    for (name, expected) in
        [("../other", "does not lie beside it"), ("none.safetensors", "every part"), ("..", "does not lie")]
    {
        extra.insert("blocks.7.norm1.bias".into(), json!(name));
        write(&extra);
        let text = open(&index).unwrap_err();
        assert!(text.contains(expected), "{text}");
    }
    write(&serde_json::Map::new());
    assert!(open(&index).is_err());
    fs::write(&index, "[]").unwrap();
    assert!(open(&index).unwrap_err().contains("weight_map"));
    // The same tensor twice.
    fs::copy(dir.path().join("model-00000-of-00003.safetensors"), dir.path().join("again")).unwrap();
    map.insert("more".into(), json!("again"));
    write(&map);
    assert!(open(&index).unwrap_err().contains("in two of the files"));
}

/// What is no file of weights is told as what it is, and never as damaged.
#[test]
fn other_files_are_called_by_their_names() {
    let zip = |name: &str| archive(&[(name.to_string(), vec![1, 2, 3])], Way::default());
    for (bytes, expected) in [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n".to_vec(), "Git LFS"),
        (b"\n<!DOCTYPE html><html>".to_vec(), "a web page"),
        (vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], "gunzip"),
        (b"\x89HDF\r\n\x1a\n".to_vec(), "HDF5"),
        (b"GGUF\x03\0\0\0".to_vec(), "GGUF"),
        (b"\x93NUMPY\x01\0".to_vec(), "NumPy array"),
        (zip("dino.pth"), "an archive with dino.pth within"),
        (zip("arr_0.npy"), "NumPy arrays (.npz)"),
        (zip("archive/models/model.json"), "torch.export"),
        (zip("readme.txt"), "0 entries of the kind NAME/data.pkl"),
    ] {
        refused(bytes.clone(), &[expected]);
        assert!(!parsed(bytes, &options()).unwrap_err().contains("damaged"), "{expected}");
    }
}

/// A head as the published ones are for ViT-B: class and mean patch numbers alternate, in a `.pth` under `state_dict`.
#[test]
fn published_heads_are_read_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let right = case("head-alternating.safetensors");
    let (weights, data) = (case("dino_vits16_epoch_10.pth"), case("idx"));
    let line = "eval linear --checkpoint {} --heads 1 --data {} --json";
    let top1 = |flags: &str, head: &Path| {
        let done = dino(&format!("{line} {flags} --evaluate {{}}"), &[&weights, &data, head]);
        assert_eq!(done.code, 0, "{}", done.err);
        let found: Value = serde_json::from_str(&done.out).unwrap();
        (found["top1"].as_f64().unwrap(), done.err)
    };
    let (found, expected) = top1("--blocks 1 --mean-patch", &right);
    assert_eq!(found, 100.0);
    assert!(expected.contains("class token and mean patch token interleaved"), "{expected}");
    // The same in a .pth, with and without `module.`, beside what a run of the probe saves.
    let bytes = fs::read(&right).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |key: &str| -> Vec<f32> {
        let data = file.tensor(key).unwrap().data().to_vec();
        data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let (weight, bias) = (numbers("module.linear.weight"), numbers("module.linear.bias"));
    let storages = BTreeMap::from([("0".to_string(), weight.clone()), ("1".to_string(), bias.clone())]);
    for stem in ["module.linear", "linear", "_orig_mod.module.fc", "classifier"] {
        let head = Py::Dict(vec![
            (format!("{stem}.weight"), Py::Tensor(vec![10, 32], "0".into())),
            (format!("{stem}.bias"), Py::Tensor(vec![10], "1".into())),
        ]);
        let all = Py::Dict(vec![
            ("epoch".into(), Py::Raw(b"K\x64")),
            ("best_acc".into(), Py::Raw(b"cnumpy._core.multiarray\nscalar\n)R")),
            ("state_dict".into(), head.clone()),
        ]);
        for value in [head, all] {
            let path = dir.path().join("head.pth");
            fs::write(&path, saved("head", &value, &storages, Way::default())).unwrap();
            assert_eq!(top1("--blocks 1 --mean-patch", &path).0, 100.0, "{stem}");
        }
    }
    // Our own heads state their order; those of before stated that they are ours, and are read as they were.
    let path = dir.path().join("own.safetensors");
    let half = |row: usize, j: usize| weight[row * 32 + if j < 16 { 2 * j } else { 2 * (j - 16) + 1 }];
    let ours: Vec<f32> = (0..320).map(|i| half(i / 32, i % 32)).collect();
    let classes: Vec<String> = (0..10).map(|i| i.to_string()).collect();
    for order in [None, Some("concatenated"), Some("alternating")] {
        use safetensors::tensor::{Dtype, TensorView};
        let mut about = json!({"blocks": 1, "mean_patch": true, "classes": classes});
        if let Some(order) = order {
            about["order"] = json!(order);
        }
        let values = if order == Some("alternating") { &weight } else { &ours };
        let [w, b] = [values, &bias].map(|v| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
        let views = [
            ("linear.weight", TensorView::new(Dtype::F32, vec![10, 32], &w).unwrap()),
            ("linear.bias", TensorView::new(Dtype::F32, vec![10], &b).unwrap()),
        ];
        let metadata = std::collections::HashMap::from([("linear_probe".to_string(), about.to_string())]);
        fs::write(&path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
        let (found, expected) = top1("", &path);
        assert!(found == 100.0 && !expected.contains("interleaved"), "{order:?}: {found} {expected}");
    }
}
