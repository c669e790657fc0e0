//! `eval knn`, `eval linear` and `eval logistic`: what they print, write and refuse.

use crate::common::*;
use image::ImageFormat::Png;
use serde_json::Value;
use std::path::Path;
use tempfile::TempDir;

/// A network that is made in no time.
const NET: &str = "--which random --embed-dim 24 --depth 3 --heads 2 --patch-size 8 --global-size 32 --init-std 0.2";

#[track_caller]
fn json(line: &str, paths: &[&Path]) -> Value {
    serde_json::from_str(&succeeds(&format!("{line} --json"), paths)).unwrap()
}

fn number(x: &Value) -> f64 {
    x.as_f64().unwrap_or_else(|| panic!("{x} is no number"))
}

/// `counts` images of as many classes, class folders a, b, ... of one color each.
fn folders(counts: &[usize]) -> TempDir {
    let mut files = Vec::new();
    for (class, &count) in counts.iter().enumerate() {
        for i in 0..count {
            let name = format!("{}/{i}.png", (b'a' + class as u8) as char);
            let image = image::RgbImage::from_fn(32, 32, |x, y| {
                let mut color = [20, 20, 20];
                color[class % 3] = 200 - (x + y + 3 * i as u32) as u8;
                image::Rgb(color)
            });
            let mut bytes = std::io::Cursor::new(Vec::new());
            image.write_to(&mut bytes, Png).unwrap();
            files.push((name, bytes.into_inner()));
        }
    }
    let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    folder(&files)
}

/// The confusion matrix holds every image, its diagonal is what was right, and the classes' shares are its rows'.
#[track_caller]
fn consistent(found: &Value, images: usize, top1: f64) {
    let counts: Vec<Vec<u64>> = serde_json::from_value(found["confusion"].clone()).unwrap();
    assert_eq!(counts.iter().flatten().sum::<u64>(), images as u64);
    let right: u64 = (0..counts.len()).map(|c| counts[c][c]).sum();
    assert!((100.0 * right as f64 / images as f64 - top1).abs() < 1e-9, "{found}");
    for (c, class) in found["per_class"].as_array().unwrap().iter().enumerate() {
        let (all, right) = (counts[c].iter().sum::<u64>(), counts[c][c]);
        assert_eq!((class["images"].as_u64(), class["right"].as_u64()), (Some(all), Some(right)));
    }
    assert_eq!(found["classes"].as_array().unwrap().len(), counts.len());
}

#[test]
fn neighbors_of_easy_classes_are_right_with_and_without_a_test_part() {
    let data = folders(&[12, 12, 12]);
    let found = json("eval knn --k 1,20,1000 --leave-one-out --data {}", &[data.path()]);
    assert_eq!((&found["bank"], &found["queries"], &found["shown_k"]), (&36.into(), &36.into(), &20.into()));
    assert_eq!((number(&found["scores"][0]["top1"]), found["leave_one_out"].clone()), (100.0, true.into()));
    // One's own class has one vote less than the others': with equal weights all would be wrong.
    let even = json("eval knn --k 1000 --temperature 1e9 --leave-one-out --data {}", &[data.path()]);
    assert_eq!((number(&even["scores"][0]["top1"]), number(&even["baseline"]["chance"])), (0.0, 100.0 / 3.0));
    consistent(&even, 36, 0.0);
    let parts = ["train", "test", "all"].map(|part| {
        json(&format!("eval knn --k 1 --leave-one-out {part} --data {{}}"), &[data.path()])["bank"].as_u64()
    });
    assert_eq!(parts[0].zip(parts[1]).map(|(a, b)| a + b), parts[2]);

    let cifar = cifar();
    let found = json("eval knn --k 3 --data {}", &[cifar.path()]);
    consistent(&found, TEST, number(&found["scores"][0]["top1"]));
    let text = succeeds("eval knn --k 3,500 --per-class --confusion --data {}", &[cifar.path()]);
    for expected in
        ["72 others to vote", "always airplane: ", "10 classes: 10.00 %", "per class, k = 3", "truck", "rows are"]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let many = folders(&[2; 24]);
    let text = succeeds("eval knn --k 3 --confusion --leave-one-out --data {}", &[many.path()]);
    assert!(text.contains("most frequent confusions") && text.contains("taken for"), "{text}");
}

#[test]
fn sets_that_are_too_small_are_refused_or_evaluated_but_never_a_panic() {
    let (one, single, flat) =
        (folders(&[1]), folders(&[12]), folder(&[("a.png", image_bytes(Png, 1)), ("b.png", image_bytes(Png, 2))]));
    for line in ["eval knn --leave-one-out", "eval knn", "eval linear --epochs 2", "eval logistic"] {
        refuses_with(&format!("{line} --data {{}}"), &[flat.path()], &["has no labels"]);
        refuses_with(&format!("{line} --data {{}}"), &[single.path()], &["one class, a: there is nothing to tell"]);
    }
    let of_one = [
        ("knn --leave-one-out", "two images, there are 1"),
        ("knn", "1 in the bank, 0 queries"),
        ("linear", "no test images"),
    ];
    for (line, expected) in of_one {
        refuses_with(&format!("eval {line} --data {{}}"), &[one.path()], &[expected]);
    }
    let two = folders(&[1, 1]);
    for line in ["eval knn --leave-one-out", "eval linear --epochs 1 --choose-on test", "eval logistic --fraction 1"] {
        succeeds(&format!("{line} --data {{}}"), &[two.path()]);
    }
    refuses_with("eval linear --choose-on train-split --data {}", &[two.path()], &["two training images, there are 1"]);
}

#[test]
fn a_linear_probe_learns_is_saved_and_evaluated_again() {
    let (data, dir) = (folders(&[30, 30, 30]), tempfile::tempdir().unwrap());
    let path = dir.path().join("head.safetensors");
    let line = format!("eval linear {NET} --epochs 10 --batch 32 --mean-patch --data {{}}");
    let found = json(&format!("{line} --save {{}}"), &[data.path(), &path]);
    let test = found["test"].as_u64().unwrap() as usize;
    assert_eq!((number(&found["top1"]), &found["width"], &found["blocks"]), (100.0, &(4 * 24).into(), &3.into()));
    consistent(&found, test, 100.0);
    assert_eq!((found["grid"].as_array().unwrap().len(), &found["chosen_on"]), (13, &"test".into()));
    // The lowest rate has hardly moved and does not do as well.
    assert!(number(&found["grid"][0]["loss"]) > number(&found["grid"][8]["loss"]), "{found}");

    // How the features are made is in the file.
    let again = json(&format!("eval linear {NET} --evaluate {{}} --data {{}}"), &[&path, data.path()]);
    for key in ["top1", "top5", "confusion", "width", "blocks", "mean_patch"] {
        assert_eq!(again[key], found[key], "{key}");
    }
    // Fewer classes are found by their names; others are not known.
    let fewer = folders(&[0, 12, 12]);
    let some = json(&format!("eval linear {NET} --evaluate {{}} --data {{}}"), &[&path, fewer.path()]);
    assert_eq!((number(&some["top1"]), some["classes"].as_array().unwrap().len()), (100.0, 3));
    let other = cifar();
    refuses_with(
        &format!("eval linear {NET} --evaluate {{}} --data {{}}"),
        &[&path, other.path()],
        &["does not know the class airplane", "a, b, c"],
    );
    refuses_with(
        &format!("eval linear {NET} --evaluate {{}} --blocks 1 --data {{}}"),
        &[&path, data.path()],
        &["takes 96 numbers an image, this network gives 48"],
    );
    refuses_with("eval linear --evaluate {} --data {}", &[&path, data.path()], &["takes 96 numbers an image, pixels"]);
    refuses_with("eval linear --evaluate {} --data {}", &[dir.path(), data.path()], &["cannot read the head"]);

    let text = succeeds(&format!("{line} --choose-on train-split --rates 1e-6,0.5"), &[data.path()]);
    assert!(text.contains("left out %") && text.contains("a tenth of the training images"), "{text}");
    let text = succeeds(&format!("{line} --rates 0.5,1e40"), &[data.path()]);
    assert!(text.contains("diverged") && text.contains("chosen on the images that are reported"), "{text}");
    refuses_with(&format!("{line} --rates 1e40"), &[data.path()], &["gave finite numbers", "smaller"]);
}

#[test]
fn an_augmented_probe_sees_other_crops_and_any_number_of_threads_gives_the_same() {
    let data = folders(&[20, 20, 20]);
    let line = format!("eval linear {NET} --epochs 6 --batch 16 --augmented --choose-on train-split --data {{}}");
    let one = json(&format!("{line} --threads 1"), &[data.path()]);
    assert_eq!(json(&format!("{line} --threads 3"), &[data.path()]), one);
    assert!(number(&one["top1"]) > 90.0 && one["augmented"] == true, "{one}");
    assert_ne!(json(&format!("{line} --seed 1"), &[data.path()])["grid"], one["grid"]);
    refuses_with("eval linear --augmented --data {}", &[data.path()], &["pixels have none"]);
    for line in ["eval knn --k 5", "eval logistic --shots 2 --draws 2"] {
        let line = format!("{line} {NET} --data {{}}");
        let [one, three] = [1, 3].map(|n| json(&format!("{line} --threads {n}"), &[data.path()]));
        assert_eq!(one, three, "{line}");
    }
}

#[test]
fn a_few_labels_are_enough_for_easy_classes() {
    let data = folders(&[20, 20, 20]);
    let found = json("eval logistic --shots 1,3 --fraction 1 --data {}", &[data.path()]);
    let results = found["results"].as_array().unwrap();
    let draws: Vec<usize> = results.iter().map(|r| r["draws"].as_array().unwrap().len()).collect();
    assert_eq!(draws, [5, 5, 1], "all images can be drawn in one way");
    let images = |r: usize| results[r]["draws"][0]["images"].as_u64().unwrap();
    assert_eq!((images(0), images(1), images(2)), (3, 9, found["train"].as_u64().unwrap()));
    assert_eq!((&results[0]["draws"][0]["chosen"], &results[1]["draws"][0]["chosen"]), (&false.into(), &true.into()));
    assert!(results.iter().all(|r| number(&r["top1"]) == 100.0 && number(&r["top1_std"]) == 0.0), "{found}");
    for draw in results.iter().flat_map(|r| r["draws"].as_array().unwrap()) {
        assert!(draw["converged"] == true && number(&draw["gradient"]) <= 1e-5, "{draw}");
    }
    consistent(&found, found["test"].as_u64().unwrap() as usize, 100.0);
    let text = succeeds("eval logistic --shots 1 --l2 0.01 --scale standard --per-class --data {}", &[data.path()]);
    assert!(text.contains("100.00 ± 0.00") && text.contains("as given"), "{text}");
    let text = succeeds("eval logistic --shots 5 --iterations 1 --stop 1e-9 --data {}", &[data.path()]);
    assert!(text.contains("above --stop 1.0e-9"), "{text}");
    refuses_with("eval logistic --shots 21 --data {}", &[data.path()], &["class a has", "--shots 1"]);
}

#[test]
fn flags_without_meaning_are_refused() {
    let data = cifar();
    for (flags, expected) in [
        ("linear --epochs 0", "--epochs 0"),
        ("linear --batch 0", "--batch 0"),
        ("linear --rates=-1", "--lr -1"),
        ("linear --lr nan", "--lr NaN"),
        ("linear --blocks 2", "pixels"),
        ("linear --mean-patch", "pixels"),
        ("linear --evaluate x --save y", "cannot be used with"),
        ("logistic --shots 0", "--shots 0"),
        ("logistic --fraction 1.5", "--fraction 1.5"),
        ("logistic --draws 0", "--draws 0"),
        ("logistic --l2 0", "--l2"),
        ("logistic --stop 0", "--stop 0"),
        ("knn --k 0", "--k"),
        ("knn --leave-one-out some", "some"),
    ] {
        refuses_with(&format!("eval {flags} --data {{}}"), &[data.path()], &[expected]);
    }
    for blocks in [0, 4] {
        let line = format!("eval linear {NET} --blocks {blocks} --data {{}}");
        refuses_with(&line, &[data.path()], &[&format!("--blocks {blocks}: this network has 3")]);
    }
}
