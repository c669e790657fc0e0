//! What evaluations count, on cases where it is known: few neighbors, extreme temperatures, images of several sizes, hostile sets.

use crate::common::*;
use image::ImageFormat::Png;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/training").join(name)
}

/// JSON has no NaN: whatever can be read has none.
#[track_caller]
fn json(line: &str, paths: &[&Path]) -> Value {
    serde_json::from_str(&succeeds(&format!("{line} --json"), paths)).unwrap()
}

const PIXELS: &str = "eval knn --which pixels --channels 1 --mean 0.5 --std 0.25 --data {}";

#[track_caller]
fn tops(line: &str, paths: &[&Path]) -> Vec<[f64; 2]> {
    let found = json(line, paths);
    let scores = found["scores"].as_array().unwrap();
    scores.iter().map(|s| [&s["top1"], &s["top5"]].map(|x| x.as_f64().unwrap())).collect()
}

/// Case T04.
#[test]
fn only_classes_with_a_vote_count_in_top_5() {
    let found = tops(&format!("{PIXELS} --k 1,2,3,20"), &[&case("idx")]);
    assert_eq!(found, [[32.0, 32.0], [32.0, 46.0], [35.0, 56.0], [38.0, 82.0]]);
    // Every image asked among all others of both parts, its own class having several: top-5 of one neighbor is its top-1.
    let alone = tops(&format!("{PIXELS} --leave-one-out --k 1,2"), &[&case("idx")]);
    assert_eq!(alone[0][0], alone[0][1]);
    assert!(alone[1][1] > alone[1][0]);
}

#[test]
fn votes_hold_at_any_temperature() {
    let idx = case("idx");
    let at = |t: &str| tops(&format!("{PIXELS} --k 1,20 --temperature {t}"), &[&idx]);
    // Lower and lower, the most alike image decides; k = 1 knows no temperature.
    let low = at("1e-6");
    assert_eq!(low[1][0], low[0][0]);
    assert_eq!((at("1e-12"), at("1e-300")), (low.clone(), low.clone()));
    // Of 20 neighbors the same classes have a vote, whatever it weighs: more than five seldom do, and the first five differ little.
    let high = at("1e6");
    assert_eq!(high, at("1e4"));
    assert!(high[1][1] >= 80.0 && low[1][1] >= 60.0, "{high:?} {low:?}");
    for bad in ["0", "-1", "nan", "inf", "-inf"] {
        refuses_with(&format!("{PIXELS} --temperature={bad}"), &[&idx], &["--temperature", "0.07"]);
    }
    for bad in ["0", "nan", "1e-50", "1e50"] {
        refuses_with(&format!("plan --small --teacher-temp={bad}"), &[], &["--teacher-temp"]);
        refuses_with(&format!("plan --small --student-temp={bad}"), &[], &["--student-temp"]);
    }
}

/// A colored gradient of some size.
fn gradient(width: u32, height: u32, seed: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(200 * x / width + seed) as u8, (200 * y / height) as u8, (97 * seed + x * y) as u8])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, Png).unwrap();
    bytes.into_inner()
}

/// Two classes in class folders, `size` of image i.
fn images(size: impl Fn(u32) -> (u32, u32)) -> tempfile::TempDir {
    let files: Vec<(String, Vec<u8>)> = (0..16)
        .map(|i| {
            let (width, height) = size(i);
            (format!("{}/{i:02}.png", ["a", "b"][i as usize % 2]), gradient(width, height, i))
        })
        .collect();
    let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    folder(&files)
}

#[test]
fn one_rule_makes_the_views_of_all_pictures_and_is_said_and_recorded() {
    let net = "--which random --embed-dim 24 --depth 2 --heads 2 --patch-size 8 --global-size 32";
    let rule = |flags: &str, data: &Path| {
        let found = json(&format!("eval knn {net} {flags} --k 1 --leave-one-out --data {{}}"), &[data]);
        found["eval_view"].as_str().unwrap().to_string()
    };
    let (same, large) = (images(|_| (32, 32)), images(|_| (48, 40)));
    // The first image has the crops' size and the others have not, and the other way round.
    let [first, rest] = [0, 1].map(|k| images(move |i| if (i == 0) == (k == 0) { (32, 32) } else { (48, 40) }));
    assert_eq!(rule("", same.path()), "whole");
    assert_eq!(rule("", large.path()), "resize-crop");
    assert_eq!(rule("", first.path()), "whole");
    assert_eq!(rule("", rest.path()), "resize-crop");
    assert_eq!(rule("--eval-view resize-crop", same.path()), "resize-crop");
    assert_eq!(rule("--eval-view whole", rest.path()), "whole");
    refuses_with("eval knn --eval-view crop --data {}", &[same.path()], &["--eval-view", "resize-crop or whole"]);

    // A run decides it by its training images, and what it made states so ever after, whatever set is evaluated.
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, flags: &str, data: &Path| {
        let out = dir.path().join(name);
        succeeds(&format!("train {TINY} --epochs 1 --global-size 32 {flags} --data {{}} --out {{}}"), &[data, &out]);
        out.join("teacher.safetensors")
    };
    let manifest = |weights: &Path| -> Value {
        let text = std::fs::read_to_string(weights.with_file_name("run.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["config"]["eval-view"].clone()
    };
    let (whole, cut) = (run("whole", "", same.path()), run("cut", "", large.path()));
    assert_eq!((manifest(&whole), manifest(&cut)), ("whole".into(), "resize-crop".into()));
    assert_eq!(manifest(&run("asked", "--eval-view resize-crop", same.path())), "resize-crop");
    for (weights, want) in [(&whole, "whole"), (&cut, "resize-crop")] {
        for data in [&same, &large, &first, &rest] {
            let line = "eval knn --k 1 --leave-one-out --checkpoint {} --data {}";
            assert_eq!(json(line, &[weights, data.path()])["eval_view"], want);
        }
    }
    // Weights that are older than the key: the set decides it, and that is printed once.
    let bytes = std::fs::read(&whole).unwrap();
    let old = with_header(&bytes, |header| {
        let mut config: Value = serde_json::from_str(header["__metadata__"]["config"].as_str().unwrap()).unwrap();
        config.as_object_mut().unwrap().remove("eval-view");
        header["__metadata__"]["config"] = config.to_string().into();
    });
    let path = dir.path().join("old.safetensors");
    std::fs::write(&path, old).unwrap();
    let done = dino("eval knn --k 1 --leave-one-out --checkpoint {} --data {}", &[&path, same.path()]);
    assert!(done.out.contains("entire images at 32 x 32 pixels"), "{}", done.out);
    assert_eq!(done.err.matches("do not state how images become evaluation views").count(), 1, "{}", done.err);
    // Of images of one size nothing has changed.
    let line = "eval knn --k 1,3 --leave-one-out --checkpoint {} --data {}";
    for data in [&same, &large] {
        let asked = ["whole", "resize-crop"][(data.path() == large.path()) as usize];
        let plain = json(line, &[&path, data.path()]);
        assert_eq!(plain["eval_view"], asked);
        assert_eq!(plain, json(&format!("{line} --eval-view {asked}"), &[&path, data.path()]));
    }
    // Published weights are evaluated as published.
    let published = json(
        "eval knn --k 1 --leave-one-out --checkpoint {} --heads 1 --data {}",
        &[&case("dino_vits16_epoch_10.pth"), &case("idx")],
    );
    assert_eq!(published["eval_view"], "resize-crop");
}

#[test]
fn a_chosen_rate_trains_once_more_on_all_images() {
    let idx = case("idx");
    let line = "eval linear --which pixels --channels 1 --mean 0.5 --std 0.25 --epochs 5 --rates 0.1,0.5,1 --data {}";
    let [reported, split] = ["test", "train-split"].map(|on| json(&format!("{line} --choose-on {on}"), &[&idx]));
    assert_eq!((&reported["left_out"], &reported["trained_again"]), (&0.into(), &Value::Null));
    assert_eq!(split["left_out"], 40);
    // What is reported is the head of the chosen rate as it is when nothing is left out.
    let chosen = split["lr"].as_f64().unwrap();
    let same = reported["grid"].as_array().unwrap().iter().find(|s| s["lr"].as_f64() == Some(chosen)).unwrap();
    assert_eq!(&split["trained_again"], same);
    assert_eq!((&split["top1"], &split["top5"]), (&same["top1"], &same["top5"]));
    // The grid was trained on 360 of the 400, and is not the same.
    assert_ne!(split["grid"], reported["grid"]);
    let text = succeeds(&format!("{line} --choose-on train-split"), &[&idx]);
    assert!(
        text.contains("360 of 400 training images") && text.contains("once more with") && text.contains("on all 400")
    );
}

#[test]
fn a_run_scores_as_many_images_as_asked_for() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = |name: &str, flags: &str| {
        let out = dir.path().join(name);
        let line = format!("train {TINY} --epochs 1 {flags} --data {{}} --out {{}}");
        let done = dino(&line, &[data.path(), &out]);
        assert_eq!(done.code, 0, "{}", done.err);
        let row = log(&out).into_iter().rev().find(|row| row["kind"] == "epoch").unwrap();
        let weights = std::fs::read(out.join("teacher.safetensors")).unwrap();
        // The weights behind the header, which holds the key.
        let header = 8 + u64::from_le_bytes(*weights.first_chunk().unwrap()) as usize;
        (row, weights[header..].to_vec(), done.err)
    };
    let (default, weights, text) = run("default", "");
    assert!(!text.contains("k-NN scores"), "{text}");
    let (all, same, _) = run("all", "--knn-images 0");
    assert_eq!((&all["knn_top1"], &all["feature_rank"]), (&default["knn_top1"], &default["feature_rank"]));
    let (few, again, text) = run("few", "--knn-images 12");
    assert_eq!(text.matches("k-NN scores 12 of 16 test images by 12 of 72 training images; --knn-images 0").count(), 1);
    assert_ne!(few["feature_rank"], all["feature_rank"]);
    assert_eq!(few["feature_rank"], run("twice", "--knn-images 12").0["feature_rank"]);
    // Training does not know of it.
    assert!(weights == same && weights == again);
    assert!(!run("never", "--knn-images 12 --knn-every 0").2.contains("k-NN scores"));
    refuses_with("plan --small --knn-images many", &[], &["--knn-images", "auto"]);
    let file = dir.path().join("c.toml");
    for (text, ok) in [("knn-images = 5", true), ("knn-images = \"auto\"", true), ("knn-images = \"all\"", false)] {
        std::fs::write(&file, text).unwrap();
        let done = dino("plan --small --config {}", &[&file]);
        assert_eq!(done.code == 0, ok, "{text}: {}", done.err);
    }
}

/// Images that tell nothing, classes of one image, classes that are in one part only, one query: a number or a line, never a NaN.
#[test]
fn hostile_sets_give_numbers_or_a_line() {
    let set = |parts: &[(&str, u32)], pixel: fn(u32) -> u8| {
        let mut files = Vec::new();
        for (class, (folder, count)) in parts.iter().enumerate() {
            for i in 0..*count {
                let value = pixel(31 * class as u32 + 7 * i);
                let image = image::RgbImage::from_pixel(16, 16, image::Rgb([value, value / 2, value]));
                let mut bytes = std::io::Cursor::new(Vec::new());
                image.write_to(&mut bytes, Png).unwrap();
                files.push((format!("{folder}/{i}.png"), bytes.into_inner()));
            }
        }
        let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
        folder(&files)
    };
    let parts = [("train/a", 5), ("train/b", 5), ("test/a", 2), ("test/b", 2)];
    let sets = [
        set(&parts, |_| 0),
        set(&parts, |_| 127),
        set(&parts, |x| x as u8),
        set(&[("train/a", 1), ("train/b", 1), ("train/c", 1), ("test/a", 1), ("test/b", 1)], |x| x as u8),
        set(&[("train/a", 5), ("train/b", 4), ("train/c", 1), ("test/c", 1)], |x| x as u8),
    ];
    let net = "--which random --embed-dim 24 --depth 2 --heads 2 --patch-size 8 --global-size 16";
    for (number, data) in sets.iter().enumerate() {
        for flags in ["--which pixels", net] {
            for line in [
                "knn --k 1,20,18446744073709551615",
                "knn --k 3 --leave-one-out",
                "linear --epochs 2",
                "linear --epochs 2 --choose-on train-split",
                "logistic --fraction 1 --draws 1",
                "logistic --shots 1 --draws 2 --scale standard",
            ] {
                let found = json(&format!("eval {line} {flags} --data {{}}"), &[data.path()]);
                for key in ["mean_class", "baseline"] {
                    assert!(!found[key].is_null(), "set {number}, {line} {flags}: {found}");
                }
            }
        }
        for line in ["retrieval", "retrieval --size 16", "copies --attack --size 16 --queries 2"] {
            let found = json(&format!("eval {line} {net} --data {{}}"), &[data.path()]);
            assert!(!found.to_string().contains("null,\"precision"), "{found}");
        }
    }
    // Nothing shows which class it is: of the first rows of the bank, all of class a, the vote is always a.
    let black = tops(&format!("eval knn --k 1,3 {net} --data {{}}"), &[sets[0].path()]);
    assert_eq!(black, [[50.0, 50.0], [50.0, 50.0]]);
}

/// Weights whose features overflow: named, and nothing is written.
#[test]
fn features_that_are_not_finite_are_named() {
    let (data, dir) = (images(|_| (32, 32)), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    succeeds(&format!("train {TINY} --epochs 1 --global-size 32 --data {{}} --out {{}}"), &[data.path(), &run]);
    let mut bytes = std::fs::read(run.join("teacher.safetensors")).unwrap();
    let (length, about) = (8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize, header(&bytes));
    let key = about.as_object().unwrap().keys().find(|k| k.ends_with("norm.weight") && !k.contains("blocks")).unwrap();
    let [from, to] = [0, 1].map(|i| length + about[key]["data_offsets"][i].as_u64().unwrap() as usize);
    bytes[from..to].chunks_mut(4).for_each(|x| x.copy_from_slice(&3e38f32.to_le_bytes()));
    let huge = dir.path().join("huge.safetensors");
    std::fs::write(&huge, bytes).unwrap();
    let out = dir.path().join("out");
    for line in ["eval knn", "eval linear", "eval logistic --fraction 1", "eval retrieval"] {
        refuses_with(
            &format!("{line} --checkpoint {{}} --data {{}}"),
            &[&huge, data.path()],
            &["the features of", "not finite"],
        );
    }
    for line in ["features", "neighbours"] {
        let line = format!("{line} --checkpoint {{}} --data {{}} --out {{}}");
        refuses_with(&line, &[&huge, data.path(), &out], &[".png are not finite"]);
    }
    assert!(!out.join("features.npy").exists() && !out.join("neighbours.json").exists());
}
