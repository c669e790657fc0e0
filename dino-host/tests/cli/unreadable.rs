//! A folder with every kind of bad file among the good ones: each costs one named, counted warning, never the run.

use crate::common::*;
use image::ImageFormat::{Jpeg, Png};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// The header of a PNG file that claims 60,000 x 60,000 pixels, and nothing after it.
fn bomb() -> Vec<u8> {
    let mut bytes = image_bytes(Png, 1);
    bytes[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    bytes
}

/// The bad files by name.
fn bad() -> Vec<(&'static str, Vec<u8>)> {
    let (png, jpeg) = (image_bytes(Png, 3), image_bytes(Jpeg, 3));
    let mut damaged = png.clone();
    damaged.iter_mut().skip(60).step_by(7).for_each(|byte| *byte ^= 0x55);
    vec![
        ("train/a/bomb.png", bomb()),
        ("train/a/cut.jpg", jpeg[..jpeg.len() / 2].to_vec()),
        ("train/a/cut.png", png[..png.len() / 2].to_vec()),
        ("train/a/damaged.png", damaged),
        ("train/a/empty.jpg", vec![]),
        ("train/b/header.jpg", jpeg[..12].to_vec()),
        ("train/b/text.jpg", b"<html>404 not found</html>".to_vec()),
        ("train/b/zeros.png", vec![0; 4096]),
        ("val/b/noise.jpg", (0..999u32).map(|i| ((i * i) >> 3) as u8).collect()),
    ]
}

/// Bad files among 64 good training and 8 good test images; one of the good ones has another format's ending.
fn mixed() -> TempDir {
    let dir = folder(&bad().iter().map(|(name, bytes)| (*name, bytes.clone())).collect::<Vec<_>>());
    for i in 0..72u32 {
        let part = if i < 64 { "train" } else { "val" };
        let format = if i % 5 == 0 { Jpeg } else { Png };
        fs::create_dir_all(dir.path().join(part).join(["a", "b"][i as usize % 2])).unwrap();
        let name = format!("{part}/{}/good{i:02}.png", ["a", "b"][i as usize % 2]);
        fs::write(dir.path().join(name), image_bytes(format, i)).unwrap();
    }
    dir
}

#[test]
fn bad_files_cost_a_warning_each_and_never_the_run() {
    let (data, out) = (mixed(), tempfile::tempdir().unwrap());
    let runs = ["1", "3"].map(|threads| {
        let run = out.path().join(threads);
        let done =
            dino(&format!("train {TINY} --epochs 3 --threads {threads} --data {{}} --out {{}}"), &[data.path(), &run]);
        assert_eq!(done.code, 0, "{}", done.err);
        for (name, _) in bad() {
            assert_eq!(
                done.err.matches(&format!("{name}: ")).count() + done.err.matches(&format!("{name} ")).count(),
                1,
                "{name}: {}",
                done.err
            );
        }
        let counted = format!("{} images so far", bad().len());
        assert!(done.err.contains(&counted), "{}", done.err);
        let rows = log(&run);
        let mut named: Vec<&str> =
            rows.iter().filter(|r| r["kind"] == "unreadable").map(|r| r["image"].as_str().unwrap()).collect();
        named.sort();
        let parts = |name: &'static str| name.split_once('/').unwrap().1;
        let mut want: Vec<&str> = bad().iter().map(|(name, _)| parts(name)).collect();
        want.sort();
        assert_eq!(named, want);
        // 72 training files, bad ones included: the length of an epoch does not depend on what can be read.
        assert_eq!(rows.iter().filter(|r| r["kind"] == "step").count(), 3 * STEPS);
        let epochs: Vec<_> = rows.iter().filter(|r| r["kind"] == "epoch").collect();
        assert!(epochs.len() == 3 && epochs.iter().all(|r| r["knn_top1"].is_f64()), "{epochs:?}");
        fs::read(run.join("teacher.safetensors")).unwrap()
    });
    assert!(runs[0] == runs[1], "what replaces a bad image depends on the number of threads");
}

#[test]
fn strict_stops_at_the_first_bad_file_and_keeps_what_was_learned() {
    let (data, out) = (mixed(), tempfile::tempdir().unwrap());
    let run = out.path().join("run");
    // One bad file is left, which does not come in the first batch.
    for (name, _) in bad().iter().filter(|(name, _)| *name != "train/a/cut.png") {
        fs::remove_file(data.path().join(name)).unwrap();
    }
    let line = format!("train {TINY} --seed 1 --strict --epochs 2 --data {{}} --out {{}}");
    refuses_with(&line, &[data.path(), &run], &["train/a/cut.png"]);
    let steps = log(&run).iter().filter(|r| r["kind"] == "step").count();
    assert!(steps > 0, "a bad file in the first batch shows nothing: another --seed");
    assert_eq!(saved_step(&run), steps);
    refuses("eval knn --strict --which pixels --k 5 --data {}", &[data.path()]);
}

/// The step that a run's checkpoint states.
fn saved_step(run: &Path) -> usize {
    let checkpoint = header(&fs::read(run.join("checkpoint.safetensors")).unwrap());
    checkpoint["__metadata__"]["step"].as_str().unwrap().parse().unwrap()
}

/// The bad file is first met when the first epoch is evaluated: that epoch must not be lost.
#[test]
fn strict_stops_at_a_bad_test_file_and_keeps_the_epoch() {
    let (data, out) = (mixed(), tempfile::tempdir().unwrap());
    let run = out.path().join("run");
    for (name, _) in bad().iter().filter(|(name, _)| name.starts_with("train")) {
        fs::remove_file(data.path().join(name)).unwrap();
    }
    let line = format!("train {TINY} --strict --epochs 3 --save-every 1 --data {{}} --out {{}}");
    refuses_with(&line, &[data.path(), &run], &["val/b/noise.jpg"]);
    let count = |kind: &str| log(&run).iter().filter(|r| r["kind"] == kind).count();
    assert_eq!((saved_step(&run), count("step"), count("epoch")), (8, 8, 1));
    let epoch = log(&run).into_iter().find(|r| r["kind"] == "epoch").unwrap();
    assert!(epoch["knn_top1"].is_null() && epoch["train_loss"].is_f64(), "{epoch}");
    assert!(run.join("checkpoint0000.safetensors").exists());
    fs::remove_file(data.path().join("val/b/noise.jpg")).unwrap();
    succeeds("train --resume --strict --out {}", &[&run]);
    assert_eq!((saved_step(&run), count("step"), count("epoch")), (24, 24, 3));
    // The loss of the failed epoch must not be counted to the next.
    let rows = log(&run);
    let loss = |kind: &str| {
        let of = rows.iter().filter(|r| r["kind"] == kind && r["epoch"] == 1);
        of.map(|r| r[if kind == "step" { "loss" } else { "train_loss" }].as_f64().unwrap()).sum::<f64>()
    };
    assert!((loss("step") / 8.0 - loss("epoch")).abs() < 1e-9, "{} {}", loss("step"), loss("epoch"));
}

#[test]
fn an_evaluation_leaves_bad_files_out() {
    let data = mixed();
    let done = dino("eval knn --which pixels --global-size 40 --k 5 --json --data {}", &[data.path()]);
    assert_eq!(done.code, 0, "{}", done.err);
    let found: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((&found["bank"], &found["queries"]), (&64.into(), &8.into()));
    assert_eq!(done.err.matches("WARNING").count(), bad().len(), "{}", done.err);
}

/// The preset and the width of pixels follow the images' size: 32 x 32 here, whatever the first file holds.
#[test]
fn a_bad_first_file_changes_no_configuration() {
    for channels in [3, 4] {
        let (data, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for i in 0..40u32 {
            let name = data.path().join(format!("{}/{i:02}.png", ["a", "b"][i as usize % 2]));
            fs::create_dir_all(name.parent().unwrap()).unwrap();
            let pixel = |x: u32, y: u32| image::Rgba([(5 * x + i) as u8, (7 * y) as u8, (x * y) as u8, 200]);
            let image = image::DynamicImage::from(image::RgbaImage::from_fn(32, 32, pixel));
            let image = if channels == 3 { image.into_rgb8().into() } else { image };
            image.save(name).unwrap();
        }
        fs::write(data.path().join("a/00.png"), b"\x89PNG\r\n\x1a\n and no more").unwrap();
        let line = format!("train {TINY} --channels {channels} --epochs 1 --data {{}} --out {{}}");
        succeeds(&line, &[data.path(), out.path()]);
        let manifest = fs::read(out.path().join("run.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        // small_32's, not small's 0.7.
        assert_eq!(manifest["config"]["weight-decay"], 0.04, "{channels} channels");
        let line = format!("eval knn --which pixels --channels {channels} --k 5 --json --data {{}}");
        let found: serde_json::Value = serde_json::from_str(&succeeds(&line, &[data.path()])).unwrap();
        assert_eq!(found["width"], 32 * 32 * channels);
    }
}

#[test]
fn a_file_that_vanishes_during_the_run_is_left_out() {
    let (data, out) = (mixed(), tempfile::tempdir().unwrap());
    let (run, gone) = (out.path().join("run"), data.path().join("train/a/good10.png"));
    let mut child =
        command(&format!("train {TINY} --epochs 400 --knn-every 0 --data {{}} --out {{}}"), &[data.path(), &run])
            .spawn()
            .unwrap();
    let logged = || fs::read_to_string(run.join("log.jsonl")).unwrap_or_default();
    let wait = |what: &str, until: &dyn Fn() -> bool| {
        let begun = std::time::Instant::now();
        while !until() {
            assert!(begun.elapsed().as_secs() < 120, "{what} does not come: {}", logged());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    };
    wait("the first epoch", &|| logged().contains("\"epoch\":1"));
    fs::remove_file(&gone).unwrap();
    wait("the warning", &|| logged().contains("good10.png"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn nothing_but_bad_files_is_an_error_that_says_why() {
    let out = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    for i in 0..16 {
        fs::write(data.path().join(format!("{i}.jpg")), [0; 9]).unwrap();
    }
    let line = format!("train {TINY} --data {{}} --out {{}}");
    refuses_with(&line, &[data.path(), &out.path().join("run")], &["cannot be read", ".jpg"]);
}

#[test]
fn contact_sheets_show_the_crops_of_a_run() {
    let (data, out) = (mixed(), tempfile::tempdir().unwrap());
    let (sheets, again) = (out.path().join("sheets"), out.path().join("again"));
    let line = "crops --small --arch vit_tiny --local-crops-number 3 --images 10 --epoch 1 --data {} --out {}";
    let done = dino(line, &[data.path(), &sheets]);
    assert_eq!(done.code, 0, "{}", done.err);
    let index = fs::read_to_string(sheets.join("index.tsv")).unwrap();
    assert_eq!(index.lines().count(), 11, "{index}");
    assert!(!bad().iter().any(|(name, _)| index.contains(name.split_once('/').unwrap().1)), "{index}");
    let sheet_images =
        ["sheet-000.png", "sheet-001.png"].map(|name| image::open(sheets.join(name)).unwrap().into_rgb8());
    // Crops of 40 pixels are drawn four times as large: eight rows on the first contact sheet, two on the second.
    assert_eq!(sheet_images.each_ref().map(|p| p.height()), [8 * 160 + 7 * 4, 2 * 160 + 4]);
    assert!(sheet_images[0].pixels().any(|p| p.0[0] != p.0[1]), "no color");
    assert_eq!(dino(line, &[data.path(), &again]).code, 0);
    assert!(content(&sheets).iter().map(|f| &f.1).eq(content(&again).iter().map(|f| &f.1)), "not the same twice");
    refuses_with("crops --data {} --out {} --images 0", &[data.path(), &sheets], &["--images"]);
    refuses_with("crops --strict --small --images 72 --data {} --out {}", &[data.path(), &sheets], &["train/"]);
}

/// Four channels as RGBA images; a fifth of the files have three.
#[test]
fn any_number_of_channels_is_trained_on_and_shown() {
    let (data, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    ["train", "val"].iter().for_each(|part| fs::create_dir(data.path().join(part)).unwrap());
    fs::write(data.path().join("val/00.png"), image_bytes(Png, 0)).unwrap();
    for i in 0..40u32 {
        let name = data.path().join(format!("train/{i:02}.png"));
        let value = |x: u32, y: u32, c: u32| (7 * x + 3 * y * (c + 1) + 11 * i) as u8;
        match i % 5 {
            0 => image::RgbImage::from_fn(40, 40, |x, y| image::Rgb([0, 1, 2].map(|c| value(x, y, c)))).save(name),
            _ => image::RgbaImage::from_fn(40, 40, |x, y| image::Rgba([0, 1, 2, 3].map(|c| value(x, y, c)))).save(name),
        }
        .unwrap();
    }
    let run = |channels: usize| {
        let run = out.path().join(channels.to_string());
        let line = format!("train {TINY} --channels {channels} --epochs 1 --data {{}} --out {{}}");
        let done = dino(&line, &[data.path(), &run]);
        assert_eq!(done.code, 0, "{}", done.err);
        let checkpoint = fs::read(run.join("teacher.safetensors")).unwrap();
        let shape = &header(&checkpoint)["patch_embed.proj.weight"]["shape"];
        assert_eq!(*shape, serde_json::json!([24, channels, 8, 8]));
        let teacher = run.join("teacher.safetensors");
        let (sheets, maps) = (run.join("sheets"), run.join("maps"));
        succeeds("crops --images 4 --checkpoint {} --data {} --out {}", &[&teacher, data.path(), &sheets]);
        assert!(image::open(sheets.join("sheet-000.png")).unwrap().width() > 320);
        succeeds("attend --checkpoint {} --image {} --out {}", &[&teacher, &data.path().join("train/01.png"), &maps]);
        done.err
    };
    let gray = run(1);
    assert!(gray.contains("not changed by --saturation, --hue, --gray\n") && !gray.contains("WARNING"), "{gray}");
    let four = run(4);
    assert!(four.contains("--brightness, --contrast, --saturation, --hue, --gray"), "{four}");
    assert_eq!(four.matches("has 3 channels, 4 are asked for").count(), 8, "{four}");
    assert!(!run(3).contains("not changed by"));
    refuses_with("plan --small --channels 0", &[], &["--channels"]);
    refuses_with("plan --small --channels 2 --mean 0.5", &[], &["--mean takes 2"]);
    let line = format!("train {TINY} --channels 2 --data builtin --out {{}}");
    refuses_with(&line, &[&out.path().join("none")], &["builtin has 3 channels, 2 are asked for"]);
}

#[test]
fn features_are_written_for_every_image_that_can_be_read() {
    let (data, out) = (mixed(), tempfile::tempdir().unwrap());
    let run = out.path().join("run");
    succeeds(&format!("train {TINY} --epochs 1 --data {{}} --out {{}}"), &[data.path(), &run]);
    let checkpoint = run.join("checkpoint.safetensors");
    let write = |flags: &str| {
        let to = out.path().join(flags.replace(' ', ""));
        let done = dino(
            &format!("features {flags} --checkpoint {{}} --data {{}} --out {{}}"),
            &[&checkpoint, data.path(), &to],
        );
        assert_eq!((done.code, done.err.matches("WARNING").count()), (0, bad().len()), "{}", done.err);
        to
    };
    let npy = write("--tokens class");
    let numbers = fs::read(npy.join("features.npy")).unwrap();
    assert!(String::from_utf8_lossy(&numbers[..128]).contains("'shape': (72, 24, )"));
    assert_eq!(numbers.len(), 128 + 4 * 72 * 24);
    let list = fs::read_to_string(npy.join("images.tsv")).unwrap();
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!((lines.len(), lines[0]), (73, "part\tlabel\timage"));
    assert_eq!(lines.iter().filter(|l| l.starts_with("train\ta\ta/good")).count(), 32, "{list}");
    assert_eq!(lines.iter().filter(|l| l.starts_with("test\tb\tb/good")).count(), 4, "{list}");

    let file = fs::read(write("--format safetensors").join("features.safetensors")).unwrap();
    assert_eq!(header(&file)["features"]["shape"], serde_json::json!([72, 24]));
    assert!(file[256..] == numbers[128..], "the two formats differ");
    assert!(numbers[128..].as_chunks::<4>().0.iter().any(|x| f32::from_le_bytes(*x).abs() > 0.1));

    let patches = fs::read(write("--tokens patches --which student").join("features.npy")).unwrap();
    assert!(String::from_utf8_lossy(&patches[..128]).contains("'shape': (72, 5, 5, 24, )"));
    assert_eq!(patches.len(), 128 + 4 * 72 * 25 * 24);
    // A list that cannot be written leaves no array without one.
    let to = out.path().join("taken");
    fs::create_dir_all(to.join("images.tsv/in the way")).unwrap();
    refuses_with("features --checkpoint {} --data {} --out {}", &[&checkpoint, data.path(), &to], &["images.tsv"]);
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    let nothing = folder(&[("a/1.png", vec![]), ("b/2.png", vec![0; 9])]);
    let to = out.path().join("nothing");
    let line = "features --checkpoint {} --data {} --out {}";
    refuses_with(line, &[&checkpoint, nothing.path(), &to], &["none of the images could be read"]);
    assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
    let to = out.path().join("strict");
    refuses("features --strict --checkpoint {} --data {} --out {}", &[&checkpoint, data.path(), &to]);
    assert!(!to.join("features.npy").exists() && !to.join("features.part").exists());
}

/// Images of 12 bits in 16: what `--white auto` finds is recorded, and a resume and an evaluation go by it.
#[test]
fn white_is_found_recorded_and_kept() {
    let (data, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for i in 0..40u16 {
        let name = data.path().join(format!("{}/{i:02}.png", ["a", "b"][usize::from(i) % 2]));
        fs::create_dir_all(name.parent().unwrap()).unwrap();
        let pixel = |x: u32, y: u32| image::Luma([(100 * x as u16 + 20 * y as u16 + i).min(4000)]);
        image::DynamicImage::from(image::ImageBuffer::from_fn(40, 40, pixel)).save(name).unwrap();
    }
    let run = |name: &str, flags: &str| {
        let run = out.path().join(name);
        let done = dino(&format!("train {TINY} --epochs 1 {flags} --data {{}} --out {{}}"), &[data.path(), &run]);
        assert_eq!(done.code, 0, "{}", done.err);
        let manifest: serde_json::Value = serde_json::from_slice(&fs::read(run.join("run.json")).unwrap()).unwrap();
        (manifest["config"]["white"].clone(), done.err, run)
    };
    let (white, text, _) = run("whole", "");
    assert_eq!(white, 65535);
    assert!(text.contains("17 of 256 levels") && text.contains("--white 4000"), "{text}");
    let (white, text, found) = run("auto", "--white auto");
    assert_eq!(white, 4000);
    assert!(text.contains("--white auto is 4000") && !text.contains("levels"), "{text}");
    let (white, ..) = run("number", "--white 4095");
    assert_eq!(white, 4095);
    // The flag of the first start may be in the second's command line.
    let line = format!("train {TINY} --epochs 2 --white auto --resume --data {{}} --out {{}}");
    succeeds(&line, &[data.path(), &found]);
    refuses_with(
        "train --resume --epochs 3 --white 4095 --data {} --out {}",
        &[data.path(), &found],
        &["--white 4095 (the run has 4000)"],
    );
    let features = |flags: &str| {
        let file = out.path().join("features");
        let _ = fs::remove_dir_all(&file);
        let checkpoint = found.join("teacher.safetensors");
        succeeds(&format!("eval knn --checkpoint {{}} --k 5 {flags} --json --data {{}}"), &[&checkpoint, data.path()])
    };
    assert_eq!(features(""), features("--white 4000"));
    refuses_with(
        "eval knn --checkpoint {} --white auto --data {}",
        &[&found.join("teacher.safetensors"), data.path()],
        &["--white auto is for training"],
    );
    for wrong in ["0", "70000", "bright"] {
        assert_eq!(dino(&format!("plan --small --white {wrong}"), &[]).code, 2, "{wrong}");
    }
}

/// Files without an end mark are used, and counted once an epoch at most.
#[test]
fn files_without_an_end_mark_are_counted_once() {
    let (data, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for i in 0..40u8 {
        let image = image::RgbImage::from_fn(40, 40, |x, y| image::Rgb([6 * x as u8, 6 * y as u8, i]));
        let mut jpeg = std::io::Cursor::new(Vec::new());
        image.write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
        let mut jpeg = jpeg.into_inner();
        if i < 12 {
            jpeg.truncate(jpeg.len() - 2);
        }
        fs::write(data.path().join(format!("{i:02}.jpg")), jpeg).unwrap();
    }
    let done = dino(&format!("train {TINY} --epochs 3 --data {{}} --out {{}}"), &[data.path(), out.path()]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.err.matches("lack their end mark").count(), 1, "{}", done.err);
    assert!(!done.err.contains("left out"), "{}", done.err);
}
