//! Data sets as they come, through the full program.

use crate::common::*;
use std::path::{Path, PathBuf};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/data").join(name)
}

#[test]
fn training_goes_on_where_the_test_part_has_no_labels() {
    let png = |i| image_bytes(image::ImageFormat::Png, i);
    let files: Vec<(String, Vec<u8>)> = (0..8)
        .map(|i| (format!("train/{}/{i}.png", ["ant", "bee"][i % 2]), png(i as u32)))
        .chain((8..11).map(|i| (format!("val/images/{i}.png"), png(i as u32))))
        .collect();
    let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    let data = folder(&files);
    let run = data.path().join(".run");
    let done = dino(&format!("train {TINY} --epochs 1 --data {{}} --out {{}}"), &[data.path(), &run]);
    assert_eq!(done.code, 0, "{}", done.err);
    let notes: Vec<&str> = done.err.lines().filter(|line| line.starts_with("note: ") && line.contains("val")).collect();
    assert!(notes.len() == 1 && notes[0].contains("without labels") && !done.err.contains("k-NN"), "{}", done.err);
    let epoch = log(&run).into_iter().find(|row| row["kind"] == "epoch").unwrap();
    assert!(epoch["knn_top1"].is_null() && epoch["feature_rank"].is_number(), "{epoch}");
    succeeds("report {}", &[&run]);
    for eval in ["eval knn --which pixels", "eval linear --which pixels --epochs 1", "eval logistic --which pixels"] {
        refuses_with(
            &format!("{eval} --data {{}}"),
            &[data.path()],
            &["the test part", "no labels", "leave-one-out train"],
        );
    }
    let line = "eval knn --which pixels --k 1 --leave-one-out train --data {}";
    assert!(succeeds(line, &[data.path()]).contains("8 images"));
}

#[test]
fn among_one_class_there_is_no_accuracy() {
    let (nested, dir) = (case("nested"), tempfile::tempdir().unwrap());
    for eval in [
        "eval knn --which pixels",
        "eval knn --which pixels --leave-one-out",
        "eval linear --which pixels --epochs 1",
        "eval logistic --which pixels",
        "eval retrieval",
    ] {
        refuses_with(&format!("{eval} --data {{}}"), &[&nested], &["one class, images", "nested/images/2024"]);
    }
    succeeds("eval knn --which pixels --k 1 --leave-one-out --data {}", &[&nested.join("images/2024")]);
    let run = dir.path().join("run");
    let done = dino(
        &format!("train {TINY} --batch 4 --epochs 1 --data {{}} --out {{}}").replacen("--batch 8 ", "", 1),
        &[&nested, &run],
    );
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("there is one class, images") && !done.err.contains("k-NN"), "{}", done.err);
    succeeds("report {}", &[&run]);
    assert!(std::fs::read_to_string(run.join("report.html")).unwrap().contains("there is one class, images"));
}

/// Labels 7 and 47219 are two classes: nothing is sized by the larger one.
#[test]
fn labels_that_are_large_numbers() {
    let (list, dir) = (case("lists/taxa.csv"), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    let line = format!("train {TINY} --batch 4 --epochs 1 --data {{}} --out {{}}").replacen("--batch 8 ", "", 1);
    succeeds(&line, &[&list, &run]);
    succeeds("report {}", &[&run]);
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("47219") && page.len() < 2 << 20);
    let text = succeeds("eval knn --which pixels --k 1 --leave-one-out --json --data {}", &[&list]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["classes"], serde_json::json!(["7", "47219"]));
}

#[test]
fn configurations_with_a_byte_order_mark() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let (file, run) = (dir.path().join("c.toml"), dir.path().join("run"));
    for text in [&b"\xef\xbb\xbfepochs = 1\r\n"[..], b"\xff\xfee\0p\0o\0c\0h\0s\0=\x001\0\r\0\n\0"] {
        std::fs::write(&file, text).unwrap();
        let _ = std::fs::remove_dir_all(&run);
        succeeds(&format!("train {TINY} --config {{}} --data {{}} --out {{}}"), &[&file, data.path(), &run]);
        assert_eq!(log(&run).iter().filter(|row| row["kind"] == "epoch").count(), 1);
    }
    std::fs::write(&file, b"batch = 4\n\xff\n").unwrap();
    std::fs::remove_dir_all(&run).unwrap();
    refuses_with(
        &format!("train {TINY} --config {{}} --data {{}} --out {{}}"),
        &[&file, data.path(), &run],
        &["c.toml", "line 2"],
    );
}
