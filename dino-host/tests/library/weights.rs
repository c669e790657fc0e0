//! Weights of other programs: what torch, timm and transformers wrote and computed (`tests/golden/make_weights.py`), there and back.

use crate::common::*;
use dino_host::config::Config;
use dino_host::cpu::{Cpu, NoOptions};
use dino_host::inference::dense::Dense;
use dino_host::weights::{self, File, Naming, Options, Side, Weights, write};
use dino_kernel::crops::Group;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/weights").join(name)
}

/// The set that parity is measured on: `weights` in `$DINO_FIXTURES` where it is stored there, else the committed one.
fn measured(name: &str) -> PathBuf {
    let other = std::env::var_os("DINO_FIXTURES").map(|folder| PathBuf::from(folder).join("weights"));
    other.filter(|folder| folder.is_dir()).map_or_else(|| golden(name), |folder| folder.join(name))
}

fn recorded(key: &str) -> Vec<f32> {
    let path = measured("activations.safetensors");
    File::parse(path.display().to_string(), fs::read(path).unwrap()).unwrap().values(key).unwrap()
}

/// Images, height, width.
fn size(pixels: &str) -> [usize; 3] {
    let bytes = fs::read(measured("activations.safetensors")).unwrap();
    let shape = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor(pixels).unwrap().shape().to_vec();
    [shape[0], shape[2], shape[3]]
}

/// Of the measured set: only Hugging Face's configuration states how many there are.
fn heads() -> Option<usize> {
    let config: Value = serde_json::from_slice(&fs::read(measured("hf/config.json")).unwrap()).unwrap();
    config["num_attention_heads"].as_u64().map(|n| n as usize)
}

fn options() -> Options {
    Options { heads: Some(2), ..Options::default() }
}

#[track_caller]
fn load(path: &Path, options: &Options) -> Weights {
    weights::open(path, options).and_then(|o| o.strict()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn tokens(w: &Weights, pixels: &str) -> Vec<f32> {
    let [count, height, width] = size(pixels);
    let group = Group { count, height, width };
    Dense::<Cpu>::new(&NoOptions {}, &w.config, &w.backbone, group).unwrap().tokens(&recorded(pixels)).unwrap()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Every file with all digits, and its naming convention.
const EXACT: [(&str, Naming); 8] = [
    ("official.pth", Naming::Official),
    ("legacy.pth", Naming::Official),
    ("views.pth", Naming::Official),
    ("views-legacy.pth", Naming::Official),
    ("full.pth", Naming::Official),
    ("timm.safetensors", Naming::Official),
    ("hf", Naming::Hf),
    ("hf-pooler.pth", Naming::Hf),
];

/// Class and patch tokens are those that the programs computed, at the native size and at another one by each one's rule.
#[test]
fn every_file_computes_what_its_program_did() {
    let options = Options { heads: heads(), ..Options::default() };
    for (name, naming) in EXACT {
        let w = load(&measured(name), &Options { allow_extra: true, ..options.clone() });
        assert_eq!(w.report.naming, naming, "{name}");
        let (image, wide) = match naming {
            Naming::Hf => ("hf.image.1e-12", "hf.wide.1e-12"),
            _ if name.starts_with("timm") => ("timm.image", "official.wide"),
            _ => ("official.image", "official.wide"),
        };
        let (found, other) = (tokens(&w, "image"), tokens(&w, "wide"));
        assert!(distance(&found, &recorded(image)) < 1e-5, "{name}: {}", distance(&found, &recorded(image)));
        assert!(distance(&other, &recorded(wide)) < 1e-5, "{name}: {}", distance(&other, &recorded(wide)));
        // The other rule and the other epsilon are other numbers: what is given explicitly matters.
        let foreign = if naming == Naming::Hf { "official.wide" } else { "hf.wide.1e-06" };
        assert!(distance(&other, &recorded(foreign)) > 1e-4, "{name}");
        let epsilon = if naming == Naming::Hf { "hf.image.1e-06" } else { "hf.image.1e-12" };
        assert!(distance(&found, &recorded(epsilon)) > 1e-4, "{name}");
        // The epsilon is a key like others.
        let mut w = w;
        w.config.norm_eps = if naming == Naming::Hf { 1e-6 } else { 1e-12 };
        assert!(distance(&tokens(&w, "image"), &recorded(epsilon)) < 1e-5, "{name}");
    }
    // Eleven and eight bits of mantissa.
    let exact = load(&measured("official.pth"), &options);
    for (name, part) in [("half.pth", 1.0 / 2048.0), ("bf16.pth", 1.0 / 256.0)] {
        let w = load(&measured(name), &options);
        for (a, b) in w.backbone.iter().zip(&exact.backbone) {
            assert!((a - b).abs() <= part * b.abs() + 1e-7, "{name}: {a} for {b}");
        }
        assert_ne!(w.backbone, exact.backbone);
        assert!(w.report.notes.iter().any(|n| n.contains("converted to float32")), "{:?}", w.report.notes);
    }
}

#[test]
fn all_files_hold_the_same_bits() {
    let first = load(&golden("official.pth"), &options());
    for (name, _) in EXACT {
        let w = load(&golden(name), &Options { allow_extra: true, ..options() });
        assert_eq!(w.backbone, first.backbone, "{name}");
        let shape = |c: &Config| [c.embed_dim, c.depth, c.heads, c.patch_size, c.global_size, c.channels];
        assert_eq!(shape(&w.config), [16, 2, 2, 4, 12, 3], "{name}");
    }
}

/// A published checkpoint of a full run: either network, its head, and nothing else.
#[test]
fn a_full_checkpoint_has_two_networks_with_heads() {
    let of = |network| load(&golden("full.pth"), &Options { network: Some(network), head: true, ..options() });
    let (teacher, student) = (of("teacher"), of("student"));
    assert_eq!((teacher.config.out_dim, teacher.config.hidden, teacher.config.bottleneck), (32, 24, 8));
    let head = write::head(&teacher.config, teacher.head.as_ref().unwrap());
    assert_eq!(head.len(), 8);
    for t in head {
        let name = t.name.strip_prefix("head.").unwrap();
        assert_eq!(t.values, recorded(&format!("teacher.head.{name}")), "{name}");
    }
    let class = &write::backbone(&student.config, &student.backbone)[0];
    assert_eq!(class.values, recorded("student.backbone.cls_token"));
    assert_ne!(student.backbone, teacher.backbone);
    let alone = weights::open(&golden("official.pth"), &Options { network: Some("student"), ..options() });
    assert!(alone.unwrap().strict().unwrap_err().to_string().contains("one network alone"));
}

/// From each naming convention to each, through files: the same bits, and the same bytes whichever way they came.
#[test]
fn conversions_keep_every_bit() {
    let dir = tempfile::tempdir().unwrap();
    let kinds =
        [("official", Naming::Official), ("timm", Naming::Timm), ("hf", Naming::Hf), ("safetensors-own", Naming::Own)];
    let first = load(&golden("official.pth"), &options());
    let file = |path: &Path| if path.is_dir() { path.join("model.safetensors") } else { path.to_owned() };
    for (a, _) in kinds {
        let one = dir.path().join(a);
        succeeds(&format!("convert {{}} --heads 2 --to {a} {{}}"), &[&golden("official.pth"), &one]);
        for (b, naming) in kinds {
            let two = dir.path().join(format!("{a}-{b}"));
            // No --heads: the file states it.
            succeeds(&format!("convert {{}} --to {b} {{}}"), &[&one, &two]);
            let w = load(&two, &Options::default());
            assert!(w.heads_stated && w.config.heads == 2, "{a} to {b}");
            assert_eq!(w.backbone, first.backbone, "{a} to {b}");
            let read = if naming == Naming::Timm { Naming::Official } else { naming };
            assert_eq!(w.report.naming, read, "{a} to {b}");
            let three = dir.path().join("again");
            succeeds(&format!("convert {{}} --to {b} {{}}"), &[&one, &three]);
            assert_eq!(fs::read(file(&two)).unwrap(), fs::read(file(&three)).unwrap(), "{a} to {b}");
            if three.is_dir() { fs::remove_dir_all(three).unwrap() } else { fs::remove_file(three).unwrap() }
        }
    }
    let hf: Value = serde_json::from_slice(&fs::read(dir.path().join("hf/config.json")).unwrap()).unwrap();
    assert_eq!(hf["layer_norm_eps"], json!(1e-6));
    assert_eq!(header(&fs::read(dir.path().join("hf/model.safetensors")).unwrap())["__metadata__"]["format"], "pt");
    // Another epsilon travels along, wherever it comes from.
    let mut from = golden("hf");
    for (a, _) in kinds {
        let to = dir.path().join(format!("eps-{a}"));
        succeeds(&format!("convert {{}} --to {a} {{}}"), &[&from, &to]);
        assert_eq!(load(&to, &Options::default()).config.norm_eps, 1e-12, "{a}");
        from = to;
    }
    let side = Side { config: json!({"layer_norm_eps": 1e-5}), ..Side::default() };
    let bytes = fs::read(golden("hf/model.safetensors")).unwrap();
    let w = weights::parse("file".into(), bytes, &side, &options()).unwrap().strict().unwrap();
    assert_eq!(w.config.norm_eps, 1e-5);
    let said =
        weights::parse("file".into(), fs::read(golden("hf/model.safetensors")).unwrap(), &Side::default(), &options());
    assert!(said.unwrap().report.notes.iter().any(|n| n.contains("layer_norm_eps 1e-12")));

    // The head, where it is asked for and there is a place for it; arrays one by one.
    for kind in ["official", "safetensors-own"] {
        let out = dir.path().join("head");
        succeeds(&format!("convert {{}} --heads 2 --head --to {kind} {{}}"), &[&golden("full.pth"), &out]);
        let (w, full) = (load(&out, &Options { head: true, ..options() }), Options { head: true, ..options() });
        assert_eq!(w.head, load(&golden("full.pth"), &full).head, "{kind}");
    }
    refuses_with(
        "convert {} --heads 2 --head --to hf {}",
        &[&golden("full.pth"), &dir.path().join("x")],
        &["no place"],
    );
    refuses_with(
        "convert {} --heads 2 --head --to npy {}",
        &[&golden("legacy.pth"), &dir.path().join("x")],
        &["no projection head"],
    );
    let out = dir.path().join("npy");
    succeeds("convert {} --heads 2 --to npy {}", &[&golden("official.pth"), &out]);
    let all = write::backbone(&first.config, &first.backbone);
    assert_eq!(content(&out).len(), all.len());
    for t in all {
        let bytes = fs::read(out.join(format!("{}.npy", t.name))).unwrap();
        let shape: String = t.shape.iter().map(|n| format!("{n}, ")).collect();
        assert!(String::from_utf8_lossy(&bytes[10..128]).contains(&format!("'shape': ({shape})")), "{}", t.name);
        let numbers: Vec<f32> = bytes[128..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(numbers, t.values, "{}", t.name);
    }
}

fn reread(change: impl FnOnce(&mut Value)) -> Result<Weights, String> {
    let bytes = with_header(&fs::read(golden("timm.safetensors")).unwrap(), change);
    let opened = weights::parse("file".into(), bytes, &Side::default(), &options()).map_err(|e| e.to_string())?;
    let lines = opened.report.lines().join("\n");
    opened.strict().map_err(|e| format!("{e}\n{lines}"))
}

fn rename(header: &mut Value, from: &str, to: &str) {
    let value = header.as_object_mut().unwrap().remove(from).unwrap();
    header[to] = value;
}

/// Every key that does not fit is listed; what this program does not have is named.
#[test]
fn keys_that_do_not_fit_are_listed() {
    assert!(reread(|_| ()).is_ok());
    let said = reread(|h| {
        rename(h, "norm.weight", "norm.scale");
        rename(h, "blocks.1.norm1.bias", "blocks.1.norm3.bias");
        h["blocks.0.norm1.bias"]["shape"] = json!([4, 4]);
    })
    .unwrap_err();
    for part in [
        "2 missing (blocks.1.norm1.bias, norm.weight)",
        "2 extra (blocks.1.norm3.bias, norm.scale)",
        "1 misshapen (blocks.0.norm1.bias [4, 4], not [16])",
        "missing\tnorm.weight",
        "extra\tnorm.scale",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for (from, to, word) in [
        ("norm.bias", "register_tokens", "register tokens"),
        ("norm.bias", "blocks.0.ls1.gamma", "layer scale"),
        ("norm.bias", "blocks.0.mlp.w12.weight", "SwiGLU"),
        ("norm.bias", "rope.freqs", "rotary"),
        ("norm.bias", "fc_norm.weight", "another place of the norm"),
        ("norm.bias", "dist_token", "distillation"),
        ("cls_token", "some_token", "no class token"),
        ("blocks.0.norm1.bias", "blocks.4294967295.norm1.bias", "4294967296 blocks"),
        ("blocks.0.norm1.bias", "blocks.18446744073709551615.norm1.bias", "blocks"),
        ("patch_embed.proj.weight", "patch.weight", "none of a class token"),
    ] {
        let said = reread(|h| rename(h, from, to)).unwrap_err();
        assert!(said.contains(word) && said.lines().count() == 2, "{word}: {said}");
    }
    let said = reread(|h| {
        rename(h, "norm.bias", "backbone.norm.bias"); // in front of what has none: the same name
    });
    assert!(said.is_ok());
    let said = reread(|h| h["norm.weight"]["dtype"] = json!("I32")).unwrap_err();
    assert!(said.contains("norm.weight holds int32"), "{said}");
}

#[test]
fn differences_are_said_aloud() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x");
    let said = succeeds("convert {} --to official {}", &[&golden("hf"), &out]);
    for part in ["LayerNorms add 1e-12", "position-resize size", "Hugging Face names", "2 heads, "] {
        assert!(said.contains(part), "{part}: {said}");
    }
    refuses_with(
        "convert {} --to official {}",
        &[&golden("official.pth"), &out],
        &["how many attention heads", "--heads N"],
    );
    // A pooler is refused by name where weights are written, unless it may go; the report has it on stdout.
    let done = dino("convert {} --heads 2 --to official {}", &[&golden("hf-pooler.pth"), &out]);
    assert_eq!(done.code, 2);
    assert!(
        done.err.contains("2 extra (pooler.dense.bias, pooler.dense.weight)") && done.err.contains("--allow-extra"),
        "{}",
        done.err
    );
    assert_eq!(done.out, "extra\tpooler.dense.bias\nextra\tpooler.dense.weight\n");
    let done = dino("convert {} --json --heads 2 --to official {}", &[&golden("hf-pooler.pth"), &out]);
    let report: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((done.code, &report["extra"]), (2, &json!(["pooler.dense.bias", "pooler.dense.weight"])));
    let said =
        succeeds("convert {} --json --allow-extra --heads 2 --to official {}", &[&golden("hf-pooler.pth"), &out]);
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&report["left_out"], &report["architecture"]["heads"]), (&json!(["the pooler"]), &json!(2)));
    // The neighboring config.json must belong to the weights.
    let hf = dir.path().join("hf");
    for (change, word) in [
        (("patch_size", json!(8)), "patch_size 8"),
        (("hidden_act", json!("gelu_new")), "gelu_new"),
        (("num_attention_heads", json!(3)), "--heads"),
    ] {
        succeeds("convert {} --to hf {}", &[&golden("hf"), &hf]);
        let mut config: Value = serde_json::from_slice(&fs::read(golden("hf/config.json")).unwrap()).unwrap();
        config[change.0] = change.1;
        fs::write(hf.join("config.json"), config.to_string()).unwrap();
        fs::copy(golden("hf/model.safetensors"), hf.join("model.safetensors")).unwrap();
        refuses_with("convert {} --to timm {}", &[&hf, &out], &[word]);
    }
    refuses_with(
        "convert {} --dialect hf --heads 2 --to timm {}",
        &[&golden("official.pth"), &out],
        &["none of a class token"],
    );
    refuses_with(
        "convert {} --dialect own --to timm {}",
        &[&golden("official.pth"), &out],
        &["not written by this program"],
    );
}

/// Nothing is executed; what is cut off or changed is an error of one line and a hint.
#[test]
fn hostile_and_damaged_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["evil.pth", "evil-legacy.pth"] {
        for command in
            ["convert {} --to official x", "eval knn --checkpoint {}", "train --small --init-from {} --out run"]
        {
            let mut process = command_in(command, &golden(name), dir.path());
            let done = process.output().unwrap();
            let err = String::from_utf8_lossy(&done.stderr).into_owned();
            assert_eq!(done.status.code(), Some(2), "{err}");
            assert!(err.contains("system") && err.contains("nothing was executed"), "{err}");
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let read =
        |bytes: Vec<u8>| weights::parse("file".into(), bytes, &Side::default(), &options()).and_then(|o| o.strict());
    for name in ["official.pth", "legacy.pth", "views-legacy.pth", "timm.safetensors"] {
        let whole = fs::read(golden(name)).unwrap();
        for n in (0..whole.len()).step_by(whole.len() / 150) {
            let said = read(whole[..n].to_vec()).unwrap_err().to_string();
            assert_eq!(said.lines().count(), 2, "{name}, {n} bytes: {said}");
        }
        for i in (0..whole.len()).step_by(whole.len() / 400) {
            let mut changed = whole.clone();
            changed[i] ^= 0x55;
            let _ = read(changed);
        }
    }
    // A number in the middle of a storage: found by the archive's checksum.
    let mut bytes = fs::read(golden("official.pth")).unwrap();
    let cls = load(&golden("official.pth"), &options());
    let needle: Vec<u8> = cls.backbone[..4].iter().flat_map(|x| x.to_le_bytes()).collect();
    let at = bytes.windows(16).position(|w| w == needle).unwrap();
    bytes[at] ^= 1;
    assert!(read(bytes).unwrap_err().to_string().contains("checksum"));
    let tar = [vec![0; 257], b"ustar".to_vec(), vec![0; 700]].concat();
    assert!(read(tar).unwrap_err().to_string().contains("before 0.2"));
    for bytes in [vec![], b"PK".to_vec(), b"\x80\x02N.".to_vec(), vec![0x80], b"<html>".to_vec()] {
        assert_eq!(read(bytes).unwrap_err().to_string().lines().count(), 2);
    }
}

fn command_in(line: &str, file: &Path, dir: &Path) -> std::process::Command {
    let mut command = command(line, &[file]);
    command.current_dir(dir);
    command
}

/// A shape that the files have, and no learning, so that what a run starts from is what it saves.
const STILL: &str = "--small --embed-dim 16 --depth 2 --heads 2 --patch-size 4 --mlp-ratio 2 --global-size 12 --local-size 8 \
                     --local-crops-number 2 --hidden 24 --bottleneck 8 --out-dim 32 --batch 24 --epochs 1 --lr 0 --min-lr 0";

#[test]
fn runs_start_from_every_kind() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let first = load(&golden("official.pth"), &options());
    let kinds = EXACT
        .iter()
        .map(|(name, _)| golden(name))
        .chain([dir.path().join("0/checkpoint.safetensors"), dir.path().join("0/teacher.safetensors")]);
    for (i, file) in kinds.enumerate() {
        let out = dir.path().join(i.to_string());
        let done = dino(&format!("train {STILL} --data {{}} --init-from {{}} --out {{}}"), &[data.path(), &file, &out]);
        assert_eq!(done.code, 0, "{}: {}", file.display(), done.err);
        for network in ["teacher", "student"] {
            let saved =
                load(&out.join("checkpoint.safetensors"), &Options { network: Some(network), head: true, ..options() });
            assert_eq!(saved.backbone, first.backbone, "{network} from {}", file.display());
            if file.ends_with("full.pth") {
                let full = load(&golden("full.pth"), &Options { head: true, ..options() });
                assert_eq!(saved.head, full.head, "{network}");
                assert!(done.err.contains("the projection head is the file's"), "{}", done.err);
            }
        }
        let manifest: Value = serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
        assert_eq!(manifest["init_from"]["file"], json!(file.display().to_string()));
    }
    // A resumed run remembers; features and figures come from published weights directly.
    let out = dir.path().join("0");
    succeeds("train --resume --epochs 2 --out {} --data {}", &[&out, data.path()]);
    let manifest: Value = serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
    assert!(manifest["init_from"]["file"].as_str().unwrap().ends_with("official.pth"), "{manifest}");
    let knn =
        succeeds("eval knn --json --k 5 --heads 2 --checkpoint {} --data {}", &[&golden("legacy.pth"), data.path()]);
    assert!(serde_json::from_str::<Value>(&knn).is_ok(), "{knn}");
    succeeds(
        "features --checkpoint {} --data {} --out {}",
        &[&golden("hf"), data.path(), &dir.path().join("features")],
    );
}

#[test]
fn other_grids_channels_and_heads_on_request() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let mut count = 0;
    let mut run = |flags: &str| {
        count += 1;
        let out = dir.path().join(count.to_string());
        let done = dino(
            &format!("train {STILL} --data {{}} --init-from {{}} --out {{}} {flags}"),
            &[data.path(), &golden("full.pth"), &out],
        );
        let saved =
            (done.code == 0).then(|| load(&out.join("checkpoint.safetensors"), &Options { head: true, ..options() }));
        assert_eq!(saved.is_none(), !out.exists(), "{flags}: nothing is left of what was refused");
        (done.err, saved)
    };
    // STILL names --global-size and the like already, and a flag may be given once.
    let full = load(&golden("full.pth"), &Options { head: true, ..options() });
    let named = |w: &Weights, name: &str| {
        let all =
            write::backbone(&w.config, &w.backbone).into_iter().chain(write::head(&w.config, w.head.as_ref().unwrap()));
        all.into_iter().find(|t| t.name == name).unwrap().values.to_vec()
    };
    let (said, _) = run("--channels 1");
    assert!(said.contains("3 channels, the run 1") && said.contains("--init-channels"), "{said}");
    let (said, gray) = run("--channels 1 --init-channels");
    let (old, new) = (named(&full, "patch_embed.proj.weight"), named(&gray.unwrap(), "patch_embed.proj.weight"));
    for (i, x) in new.iter().enumerate() {
        let (row, at) = (i / 16, i % 16);
        let sum: f64 = (0..3).map(|c| f64::from(old[(row * 3 + c) * 16 + at])).sum();
        assert!((f64::from(*x) - sum).abs() < 1e-7, "{said}");
    }
    let (said, fresh) = run("--init-head fresh");
    assert!(said.contains("drawn anew"), "{said}");
    assert_ne!(fresh.unwrap().head, full.head);

    // The same with other sizes in place of STILL's.
    let changed = |from: &str, to: &str, flags: &str| {
        let out = dir.path().join(format!("{to}{flags}").replace(' ', ""));
        let line = STILL.replace(from, to);
        let done = dino(
            &format!("train {line} --data {{}} --init-from {{}} --out {{}} {flags}"),
            &[data.path(), &golden("full.pth"), &out],
        );
        let saved =
            (done.code == 0).then(|| load(&out.join("checkpoint.safetensors"), &Options { head: true, ..options() }));
        (done.err, saved)
    };
    let (said, _) = changed("--depth 2", "--depth 3", "");
    assert!(said.contains("depth 2, not 3") && said.contains("--depth 2"), "{said}");
    let (said, _) = changed("--out-dim 32", "--out-dim 48", "");
    assert!(said.contains("--init-head fit"), "{said}");
    for (k, words) in [(48, "16 drawn prototypes after its 32"), (20, "first 20 of its 32")] {
        let (said, fitted) = changed("--out-dim 32", &format!("--out-dim {k}"), "--init-head fit");
        assert!(said.contains(words), "{said}");
        let (old, new) =
            (named(&full, "head.last_layer.weight_v"), named(&fitted.unwrap(), "head.last_layer.weight_v"));
        assert_eq!(new.len(), k * 8);
        let n = old.len().min(new.len());
        assert_eq!(new[..n], old[..n]);
        assert!(new[n..].iter().all(|x| *x != 0.0));
    }
    // A larger grid: an image of that size gives what the small table gives there, resized by the same rule at run time.
    let (said, large) = changed("--global-size 12", "--global-size 20", "");
    assert!(said.contains("resized from 3 x 3 to 5 x 5 (position-resize published)"), "{said}");
    let pixels: Vec<f32> = (0..3 * 20 * 20).map(|i| (i as f32 * 0.37).sin()).collect();
    let see = |w: &Weights| {
        let group = Group { count: 1, height: 20, width: 20 };
        Dense::<Cpu>::new(&NoOptions {}, &w.config, &w.backbone, group).unwrap().tokens(&pixels).unwrap()
    };
    assert!(distance(&see(&large.unwrap()), &see(&full)) < 1e-5);
}
