//! `eval video`, `attention`, `retrieval` and `copies` on small folders, right and wrong ones.

use crate::common::*;
use image::ImageFormat::{Jpeg, Png};
use image::{GrayImage, Luma, Rgb, RgbImage};
use serde_json::Value;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A network of random weights: it needs no training.
const RANDOM: &str = "--small --embed-dim 24 --depth 2 --heads 2 --patch-size 8";

fn encoded(image: impl Into<image::DynamicImage>, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A bright square of 24 x 24 at `x` on a striped ground of 80 x 48, and its mask.
fn scene(x: u32) -> (RgbImage, GrayImage) {
    let inside = move |px: u32, py: u32| (x..x + 24).contains(&px) && (12..36).contains(&py);
    let image = RgbImage::from_fn(80, 48, |px, py| match inside(px, py) {
        true => Rgb([250, 240, 30]),
        false => Rgb([(px * 7 % 60) as u8, 40, (py * 5 % 90) as u8]),
    });
    (image, GrayImage::from_fn(80, 48, |px, py| Luma([if inside(px, py) { 255 } else { 0 }])))
}

/// DAVIS' layout: `moving` (six frames, all masks), `first` (three frames, one mask), `none` (no mask).
fn davis() -> TempDir {
    let mut files = Vec::new();
    for (name, frames, masks) in [("moving", 6, 6), ("first", 3, 1), ("none", 2, 0)] {
        for i in 0..frames {
            let (image, mask) = scene(8 + 4 * i);
            files.push((format!("JPEGImages/480p/{name}/{i:05}.png"), encoded(image, Png)));
            if i < masks {
                files.push((format!("Annotations/480p/{name}/{i:05}.png"), encoded(mask, Png)));
            }
        }
    }
    folder(&files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect::<Vec<_>>())
}

/// A command line whose `--size 48` or `--size 32` is another.
fn sized(line: &str, size: usize) -> String {
    line.replace("--size 48", &format!("--size {size}")).replace("--size 32", &format!("--size {size}"))
}

fn json(line: &str, paths: &[&Path]) -> Value {
    serde_json::from_str(&succeeds(line, paths)).unwrap()
}

#[test]
fn a_video_is_followed_scored_and_drawn() {
    let (davis, out) = (davis(), tempfile::tempdir().unwrap());
    let line = format!("eval video {RANDOM} --data {{}} --size 48 --out {{}}");
    let paths = [davis.path(), out.path()];
    let done = dino(&line, &paths);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("left out: none") && done.err.contains("first has no mask between"), "{}", done.err);
    assert!(done.out.contains("first mask kept") && done.out.contains("not scored"), "{}", done.out);
    let found = json(&format!("{line} --json --threads 1"), &paths);
    let (random, kept) = (&found["networks"][0], &found["networks"][1]);
    let of = |table: &Value, i: usize| table["sequences"][i]["score"].clone();
    assert_eq!((&random["which"], &kept["which"]), (&"random".into(), &"first mask kept".into()));
    assert!(of(random, 0).is_null() && of(random, 1)["jf"].is_f64());
    // Frames 1 to 4 are scored; the square moves by 4 of 24 columns a frame: J of the kept mask (24 - 4 i) / (24 + 4 i).
    assert_eq!(found["judged_frames"], serde_json::json!([0, 4]));
    let by_hand = (1..5).map(|i| (24.0 - 4.0 * i as f64) / (24.0 + 4.0 * i as f64)).sum::<f64>() / 4.0;
    assert!((of(kept, 1)["j"][0].as_f64().unwrap() - by_hand).abs() < 1e-12, "{found}");
    // Even random weights follow a bright square on a dark ground better than that.
    assert!(random["mean"]["jf"].as_f64() > kept["mean"]["jf"].as_f64(), "{found}");
    // The masks as DAVIS' tools read them, one object in white; the first as it was given.
    let first = image::open(out.path().join("moving/00000.png")).unwrap().into_luma8();
    assert_eq!(first.dimensions(), (80, 48));
    assert!(out.path().join("overlays/moving/00005.png").is_file() && out.path().join("first/00002.png").is_file());
    let two = succeeds(&format!("{line} --which random,random --sequences moving"), &paths);
    assert_eq!(two.matches("\nrandom").count(), 2, "{two}");
    assert!(out.path().join("random/moving/00003.png").is_file());
}

#[test]
fn several_objects_keep_their_numbers() {
    let palette = dino_host::image::masks::palette();
    let mut files = Vec::new();
    for i in 0..4u32 {
        let image = RgbImage::from_fn(64, 32, |x, _| {
            Rgb([[10, 10, 10], [250, 20, 20], [20, 20, 250], [20; 3]][x as usize / 16])
        });
        let mask = RgbImage::from_fn(64, 32, |x, _| Rgb(palette[[0, 1, 2, 0][x as usize / 16]]));
        files.push((format!("JPEGImages/a/{i}.jpg"), encoded(image, Jpeg)));
        files.push((format!("Annotations/a/{i}.png"), encoded(mask, Png)));
    }
    let davis = folder(&files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect::<Vec<_>>());
    let out = tempfile::tempdir().unwrap();
    let found = json(
        &format!("eval video {RANDOM} --data {{}} --size 32 --radius 1 --json --out {{}}"),
        &[davis.path(), out.path()],
    );
    let one = &found["networks"][0]["sequences"][0];
    assert_eq!(one["objects"], 2);
    // Nothing moves, so the masks stay.
    assert!(one["score"]["j"][0].as_f64().unwrap() > 0.9, "{found}");
    let last = dino_host::image::masks::Mask::read(&out.path().join("a/3.png")).unwrap();
    assert_eq!((last.ids[24], last.ids[40]), (1, 2));
}

#[test]
fn wrong_videos_are_named() {
    let davis = davis();
    let reports = |extra: &str, expected: &[&str]| {
        refuses_with(&format!("eval video {RANDOM} --data {{}} --size 48 {extra}"), &[davis.path()], expected);
    };
    reports("--resolution 1080p", &["1080p", "480p"]);
    reports("--sequences nobody", &["nobody", "moving"]);
    reports("--sequences none", &["mask of its first frame"]);
    let small = sized(&format!("eval video {RANDOM} --data {{}} --size 48"), 7);
    refuses_with(&small, &[davis.path()], &["00000.png", "no patch"]);
    reports("--top 0", &["--top"]);
    reports("--temperature nan", &["--temperature"]);
    reports("--which pixels", &["pixels are no network"]);
    reports("--which teacher", &["--checkpoint"]);
    let empty = tempfile::tempdir().unwrap();
    refuses_with(&format!("eval video {RANDOM} --data {{}}"), &[empty.path()], &["JPEGImages"]);
    let mask = davis.path().join("Annotations/480p/moving/00002.png");
    fs::write(&mask, encoded(GrayImage::new(40, 24), Png)).unwrap();
    reports("", &["moving/00002.png", "40 x 24", "80 x 48"]);
    fs::write(&mask, b"nothing").unwrap();
    reports("", &["moving/00002.png"]);
    fs::remove_file(&mask).unwrap();
    // Without it the frame is followed, not scored.
    let found = json(&format!("eval video {RANDOM} --data {{}} --size 48 --json"), &[davis.path()]);
    assert_eq!(found["judged_frames"][1], 3);
    // A first mask with no object, and one frame alone.
    fs::write(davis.path().join("Annotations/480p/first/00000.png"), encoded(GrayImage::new(80, 48), Png)).unwrap();
    let done = dino(&format!("eval video {RANDOM} --data {{}} --size 48 --sequences first"), &[davis.path()]);
    assert!(done.code == 0 && done.err.contains("no object") && done.out.contains("nothing to score"), "{}", done.err);
    for i in 1..6 {
        fs::remove_file(davis.path().join(format!("JPEGImages/480p/moving/{i:05}.png"))).unwrap();
    }
    let done = dino(&format!("eval video {RANDOM} --data {{}} --size 48 --sequences moving"), &[davis.path()]);
    assert!(done.code == 0 && done.out.contains("not scored"), "{}", done.err);
    fs::write(davis.path().join("JPEGImages/480p/moving/00001.png"), b"broken").unwrap();
    reports("--sequences moving", &["moving/00001.png"]);
}

#[test]
fn attention_is_evaluated_on_any_masks() {
    let davis = davis();
    let (images, masks) = (davis.path().join("JPEGImages/480p"), davis.path().join("Annotations/480p"));
    let paths = [images.as_path(), masks.as_path()];
    let line = format!("eval attention {RANDOM} --images {{}} --masks {{}} --size 48 --json");
    let all = json(&line, &paths);
    // Seven frames have masks.
    assert_eq!((&all["images"], &all["block"]), (&7.into(), &2.into()));
    let j = &all["networks"][0]["jaccard"];
    assert_eq!(j["heads"].as_array().unwrap().len(), 2);
    assert!(j["best"].as_f64() >= j["mean_best_head"].as_f64() && j["best"].as_f64().unwrap() > 0.0, "{all}");
    // All patches: the object's share of the image, 24 x 24 of 80 x 48, whatever the weights.
    let all = json(&format!("{line} --keep 1"), &paths);
    let share = (24.0 * 24.0) / (80.0 * 48.0);
    assert!((all["networks"][0]["jaccard"]["best"].as_f64().unwrap() - share).abs() < 1e-12, "{all}");
    let first = json(&format!("{line} --block 1 --every 3 --which random,random"), &paths);
    assert_eq!((&first["images"], first["networks"].as_array().unwrap().len()), (&3.into(), 2));
    assert_ne!(first["networks"][0]["jaccard"], all["networks"][0]["jaccard"]);
    assert_eq!(first["networks"][0], first["networks"][1]);
    assert!(succeeds(&line.replace("--json", ""), &paths).contains("best fixed head"));

    let reports = |extra: &str, expected: &[&str]| refuses_with(&format!("{line} {extra}"), &paths, expected);
    reports("--block 3", &["block 3"]);
    refuses_with(&sized(&line, 7), &paths, &["00000.png", "no patch"]);
    reports("--every 0", &["--every"]);
    reports("--keep 2", &["--keep"]);
    let empty = tempfile::tempdir().unwrap();
    refuses_with(&line, &[&images, empty.path()], &["no mask in"]);
    refuses_with(&line, &[empty.path(), &masks], &["no image for the mask"]);
    refuses_with(&line, &[&images, &images.join("none/00000.png")], &["cannot list"]);
    fs::write(masks.join("first/00000.png"), encoded(GrayImage::new(8, 8), Png)).unwrap();
    reports("", &["first/00000.png", "8 x 8", "80 x 48"]);
    fs::write(masks.join("first/00000.png"), encoded(GrayImage::new(80, 48), Png)).unwrap();
    let done = dino(&line, &paths);
    assert!(done.code == 0 && done.err.contains("1 masks have no object"), "{}", done.err);
    fs::remove_dir_all(masks.join("moving")).unwrap();
    reports("", &["no mask has an object"]);
}

#[test]
fn retrieval_of_classes() {
    let cifar = cifar();
    let line = format!("eval retrieval {RANDOM} --data {{}} --json");
    let found = json(&line, &[cifar.path()]);
    assert_eq!((&found["bank"], &found["queries"]), (&TRAIN.into(), &TEST.into()));
    let score = &found["scores"][0];
    let map = score["map"].as_f64().unwrap();
    assert!((0.05..1.0).contains(&map) && score["precision"].as_array().unwrap().len() == 3, "{found}");
    let own = json(&format!("{line} --leave-one-out --which random,random"), &[cifar.path()]);
    assert_eq!((&own["bank"], own["scores"][0].clone()), (&TEST.into(), own["scores"][1].clone()));
    // Six of sixteen test images have another of their class: 0 to 5 come twice.
    assert_eq!(own["scores"][0]["queries"], 12);
    let scaled = json(&format!("{line} --size 32 --multi-scale"), &[cifar.path()]);
    assert!(scaled["scores"][0]["map"].as_f64().unwrap() > 0.05);
    assert!(succeeds(&line.replace("--json", ""), &[cifar.path()]).contains("mP@10"));
    refuses_with(&format!("{line} --k 0"), &[cifar.path()], &["--k"]);
    refuses_with(&format!("{line} --multi-scale"), &[cifar.path()], &["--size"]);
    refuses_with(&format!("{line} --size 12 --multi-scale"), &[cifar.path()], &["scale 0.50", "no patch"]);
    let unlabeled = folder(&[("a.png", image_bytes(Png, 1)), ("b.png", image_bytes(Png, 2))]);
    refuses_with(&line, &[unlabeled.path()], &["has no labels"]);
    let one = folder(&[("a/a.png", image_bytes(Png, 1)), ("b/b.png", image_bytes(Png, 2))]);
    refuses_with(&line, &[one.path()], &["no query shares its class"]);
}

#[test]
fn retrieval_by_ground_truth() {
    let encoded_images: Vec<(String, Vec<u8>)> =
        (0..6).map(|i| (format!("jpg/i{i}.png"), image_bytes(Png, i))).collect();
    let images = folder(&encoded_images.iter().map(|(n, b)| (n.as_str(), b.clone())).collect::<Vec<_>>());
    let truth = images.path().join("gnd.json");
    let mut gnd = serde_json::json!({
        "imlist": ["i0", "i1", "i2", "i3", "i4", "i5"],
        "qimlist": ["i0", "i3.png"],
        "gnd": [
            {"easy": [0], "hard": [1], "junk": [2], "bbx": [0.0, 0.0, 500.0, 500.0]},
            {"easy": [3], "hard": [], "junk": [0, 1, 2, 4, 5]},
        ],
    });
    fs::write(&truth, gnd.to_string()).unwrap();
    let line = format!("eval retrieval {RANDOM} --ground-truth {{}} --data {{}} --json");
    let paths = [truth.as_path(), images.path()];
    let found = json(&line, &paths);
    let score = |i: usize| (found["scores"][i]["protocol"].as_str().unwrap(), found["scores"][i]["queries"].as_u64());
    assert_eq!([score(0), score(1), score(2)], [("easy", Some(2)), ("medium", Some(2)), ("hard", Some(1))]);
    // A query finds itself first.
    assert_eq!(found["scores"][0]["map"], 1.0);
    assert_eq!(json(&format!("{line} --whole-queries"), &paths)["scores"][0]["map"], 1.0);
    let mut reports = |change: &dyn Fn(&mut Value), expected: &[&str]| {
        let before = gnd.clone();
        change(&mut gnd);
        fs::write(&truth, gnd.to_string()).unwrap();
        refuses_with(&line, &paths, expected);
        gnd = before;
    };
    reports(&|g| g["gnd"][0]["easy"] = serde_json::json!([6]), &["gnd.json", "row 6 of 6"]);
    reports(&|g| g["gnd"] = serde_json::json!([]), &["2 queries and 0 entries"]);
    reports(&|g| g["imlist"][5] = "gone".into(), &["no image gone"]);
    reports(&|g| g["gnd"][0]["bbx"] = serde_json::json!([5, 5, 5, 9]), &["box", "empty"]);
    reports(&|g| g["gnd"][0]["easy"] = serde_json::json!([-1]), &["gnd.json", "no ground truth"]);
    fs::write(&truth, b"\x80\x04\x95").unwrap();
    refuses_with(&line, &paths, &["no ground truth", "pickles are not read"]);
    fs::remove_file(&truth).unwrap();
    refuses_with(&line, &paths, &["cannot read"]);
}

#[test]
fn copies_are_made_and_found() {
    let encoded_images: Vec<(String, Vec<u8>)> =
        (0..12).map(|i| (format!("{i:02}.png"), image_bytes(Png, i))).collect();
    let images = folder(&encoded_images.iter().map(|(n, b)| (n.as_str(), b.clone())).collect::<Vec<_>>());
    let line = format!("eval copies {RANDOM} --attack --size 32 --json --data {{}}");
    let found = json(&format!("{line} --queries 5"), &[images.path()]);
    assert_eq!(found["database"], 12);
    let blocks = found["networks"][0]["blocks"].as_array().unwrap();
    let map = |name: &str| blocks.iter().find(|b| b["block"] == name).unwrap()["map"].as_f64().unwrap();
    assert!(blocks.iter().all(|b| b["copies"] == 5) && map("jpegqual/75") > map("strong"), "{found}");
    assert_eq!(found, json(&format!("{line} --queries 5 --threads 1"), &[images.path()]), "the same twice");
    let white = json(
        &format!("{line} --queries 3 --whiten {{}} --distractors {{}} --uncentred --which random,random"),
        &[images.path(); 3],
    );
    assert_eq!((&white["database"], &white["whitened"]), (&24.into(), &true.into()));
    assert!(succeeds(&line.replace("--json", ""), &[images.path()]).contains("crops/80"));
    refuses_with(&sized(&line, 7), &[images.path()], &["no patch"]);
    refuses_with(&format!("{line} --gem 0"), &[images.path()], &["--gem"]);
    let one = folder(&[("a.png", image_bytes(Png, 1))]);
    refuses_with(&format!("{line} --whiten {{}}"), &[images.path(), one.path()], &["whitening cannot be learned"]);
    let empty = tempfile::tempdir().unwrap();
    refuses_with(&line, &[empty.path()], &["no images"]);
}

#[test]
fn a_folder_like_copydays() {
    let set = folder(&[
        ("original/200000.png", image_bytes(Png, 1)),
        ("original/200100.png", image_bytes(Png, 9)),
        ("jpegqual/3/200000.jpg", image_bytes(Jpeg, 1)),
        ("jpegqual/20/200100.jpg", image_bytes(Jpeg, 9)),
        ("strong/200001.jpg", image_bytes(Jpeg, 1)),
        ("strong/200002.jpg", image_bytes(Jpeg, 1)),
    ]);
    let line = format!("eval copies {RANDOM} --size 32 --json --data {{}}");
    let found = json(&line, &[set.path()]);
    let blocks = found["networks"][0]["blocks"].as_array().unwrap();
    let names: Vec<&str> = blocks.iter().map(|b| b["block"].as_str().unwrap()).collect();
    assert_eq!(names, ["original", "jpegqual/3", "jpegqual/20", "strong"]);
    assert_eq!((&blocks[0]["map"], &blocks[3]["copies"]), (&1.0.into(), &2.into()));
    fs::write(set.path().join("strong/3.jpg"), image_bytes(Jpeg, 1)).unwrap();
    refuses_with(&line, &[set.path()], &["strong/3.jpg", "no original"]);
    fs::remove_file(set.path().join("strong/3.jpg")).unwrap();
    // An original that cannot be read is left out, and its copies with it.
    fs::write(set.path().join("original/200100.png"), b"").unwrap();
    refuses_with(&line, &[set.path()], &["no copy's original could be read"]);
    refuses_with(&format!("{line} --strict"), &[set.path()], &["200100.png is empty"]);
    fs::remove_dir_all(set.path().join("original")).unwrap();
    refuses_with(&line, &[set.path()], &["original"]);
    refuses_with(&format!("eval copies {RANDOM}"), &[], &["--attack"]);
}

/// A JPEG of 160 x 96 of twice the [`scene`]'s size, which fast decoding halves for crops of 40, and its mask.
fn large(x: u32) -> (Vec<u8>, Vec<u8>) {
    let (image, mask) = scene(x);
    let image = image::imageops::resize(&image, 160, 96, image::imageops::FilterType::Nearest);
    let mask = image::imageops::resize(&mask, 160, 96, image::imageops::FilterType::Nearest);
    (encoded(image, Jpeg), encoded(mask, Png))
}

/// Masks, frames and boxes belong to images of their full size.
#[test]
fn fast_decoding_is_not_for_dense_evaluations() {
    let mut files = Vec::new();
    for i in 0..4 {
        let (image, mask) = large(8 + 4 * i);
        files.push((format!("JPEGImages/a/{i}.jpg"), image));
        files.push((format!("Annotations/a/{i}.png"), mask));
    }
    let davis = folder(&files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect::<Vec<_>>());
    let line = format!("eval video {RANDOM} --size 48 --json --data {{}}");
    assert_eq!(json(&line, &[davis.path()]), json(&format!("{line} --fast-decode"), &[davis.path()]));
    let (images, masks) = (davis.path().join("JPEGImages/a"), davis.path().join("Annotations/a"));
    let line = format!("eval attention {RANDOM} --size 48 --json --images {{}} --masks {{}}");
    assert_eq!(json(&line, &[&images, &masks]), json(&format!("{line} --fast-decode"), &[&images, &masks]));
    // The box is in the right half, which half an image does not have.
    let truth = davis.path().join("gnd.json");
    let bbx = [100.0, 0.0, 160.0, 96.0];
    let gnd = serde_json::json!({
        "imlist": ["0", "1"], "qimlist": ["0"], "gnd": [{"easy": [0], "hard": [1], "junk": [], "bbx": bbx}],
    });
    fs::write(&truth, gnd.to_string()).unwrap();
    let line = format!("eval retrieval {RANDOM} --json --ground-truth {{}} --data {{}}");
    assert_eq!(json(&line, &[&truth, &images]), json(&format!("{line} --fast-decode"), &[&truth, &images]));
    // Nor does one that is rotated upright: the box is in the pixels of the file, 160 x 96.
    let jpeg = fs::read(images.join("0.jpg")).unwrap();
    // EXIF, little-endian, with one entry: orientation (0x112), a short, 6.
    let exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let rotated = [&jpeg[..2], exif, &jpeg[2..]].concat();
    let how = dino_host::image::Decode::default();
    let seen = dino_host::image::decode_bytes(Path::new("rotated"), &rotated, how).unwrap();
    assert_eq!((seen.width, seen.height), (96, 160), "the file's tag is not read");
    fs::write(images.join("0.jpg"), rotated).unwrap();
    succeeds(&line, &[&truth, &images]);
}
