//! Runs that are stopped, killed, moved and resumed end in the same bytes as one that was left alone.

use crate::common::*;
use std::fs;
use std::path::Path;

const EPOCHS: usize = 30;

fn line() -> String {
    format!("train {TINY} --epochs {EPOCHS} --save-every 10 --drop-path-rate 0.1 --data {{}} --out {{}}")
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("checkpoint.safetensors")).unwrap()
}

#[track_caller]
fn assert_same_run(a: &Path, b: &Path) {
    let (x, y) = (content(a), content(b));
    let names = |files: &[(std::path::PathBuf, Vec<u8>)]| -> Vec<_> {
        files.iter().map(|f| f.0.file_name().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&x), names(&y));
    assert!(names(&x).len() >= 4 + EPOCHS / 10, "{:?}", names(&x));
    for ((name, x), (_, y)) in x.iter().zip(&y).filter(|((name, _), _)| name.extension().unwrap() == "safetensors") {
        assert!(x == y, "{} differs", name.display());
    }
    for (x, y) in log_without_clock(a).iter().zip(&log_without_clock(b)) {
        assert_eq!(x, y);
    }
    assert_eq!(log(a).len(), log(b).len());
}

#[test]
fn threads_do_not_change_the_bytes() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let runs = [1, 2, 3, 7].map(|threads| {
        let out = dir.path().join(threads.to_string());
        let line = format!("train {TINY} --epochs 2 --threads {threads} --data {{}} --out {{}}");
        succeeds(&line, &[data.path(), &out]);
        (weights(&out), log_without_clock(&out))
    });
    assert!(runs.iter().all(|r| r.0 == runs[0].0));
    assert!(runs.iter().all(|r| r.1 == runs[0].1));
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::path::PathBuf;
    use std::process::{Child, Command};
    use std::thread::sleep;
    use std::time::Duration;

    fn rows(run: &Path) -> usize {
        fs::read(run.join("log.jsonl")).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count())
    }

    /// Waits until the log has `more` new rows, or the program has ended.
    fn after(child: &mut Child, run: &Path, more: usize) {
        let (first, mut polls) = (rows(run), 0);
        // A resume drops rows first, so the count may fall before it grows.
        let mut least = first;
        while child.try_wait().unwrap().is_none() {
            let now = rows(run);
            least = least.min(now);
            if now >= least + more {
                return;
            }
            polls += 1;
            assert!(polls < 60_000, "the program writes no rows");
            sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_killed_run_resumes_to_the_same_bytes() {
        let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
        let (whole, killed) = whole_and_killed(data.path(), dir.path());
        assert_same_run(&whole, &killed);
    }

    /// Neither the order within shards nor what replaces bad images may depend on where the run began anew. (At which step
    /// a bad image is named in the log may: the loader is ahead of the step.)
    #[test]
    fn a_killed_run_on_packed_shards_with_bad_images_resumes_to_the_same_bytes() {
        let (data, dir) = (shards(), tempfile::tempdir().unwrap());
        let (whole, killed) = whole_and_killed(data.path(), dir.path());
        assert!(weights(&whole) == weights(&killed));
        let named = |run: &Path| {
            let mut named: Vec<_> =
                log(run).iter().filter(|r| r["kind"] == "unreadable").map(|r| r["image"].clone()).collect();
            named.sort_by_key(|n| n.to_string());
            named
        };
        assert_eq!((named(&whole).len(), named(&whole)), (6, named(&killed)));
    }

    /// Packed shards of [`TRAIN`] images, six of them cut short, and of [`TEST`].
    fn shards() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, first, count) in [("train-0", 0, 30), ("train-1", 30, TRAIN - 30), ("val-0", TRAIN, TEST)] {
            let file = fs::File::create(dir.path().join(format!("{name}.tar.gz"))).unwrap();
            let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast()));
            for i in first..first + count {
                let complete = image_bytes(image::ImageFormat::Png, i as u32);
                let bad = i < TRAIN && i % 12 == 5;
                let image = if bad { &complete[..complete.len() / 2] } else { &complete };
                for (ending, bytes) in [("cls", (i % 2).to_string().as_bytes()), ("png", image)] {
                    let mut header = tar::Header::new_gnu();
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, format!("{i:03}.{ending}"), bytes).unwrap();
                }
            }
            tar.into_inner().unwrap().finish().unwrap();
        }
        dir
    }

    /// A run that was left alone, and one that was killed again and again.
    fn whole_and_killed(data: &Path, dir: &Path) -> (PathBuf, PathBuf) {
        let (whole, killed) = (dir.join("whole"), dir.join("killed"));
        succeeds(&line(), &[data, &whole]);

        let (mut kills, mut x) = (0, std::process::id());
        let mut line = line();
        for _ in 0..6 {
            let mut child = command(&line, &[data, &killed]).spawn().unwrap();
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            after(&mut child, &killed, 1 + (x >> 16) as usize % (2 * STEPS));
            sleep(Duration::from_micros((x >> 12) as u64 % 5000));
            child.kill().unwrap();
            kills += (child.wait().unwrap().signal() == Some(9)) as u32;
            line = format!("{} --resume", super::line());
        }
        assert!(kills >= 3, "the run was over before it could be killed: {kills} kills");
        succeeds(&line, &[data, &killed]);
        // What a kill in the middle of a write leaves aside is no part of the run.
        for (path, _) in content(&killed) {
            if path.extension().is_some_and(|e| e == "part") {
                fs::remove_file(path).unwrap();
            }
        }
        (whole, killed)
    }

    #[test]
    fn an_interrupted_run_saves_and_resumes_to_the_same_bytes() {
        let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
        let (whole, stopped) = (dir.path().join("whole"), dir.path().join("stopped"));
        succeeds(&line(), &[data.path(), &whole]);
        for (signal, resume) in [("-INT", ""), ("-TERM", "--resume")] {
            let line = format!("{} {resume}", line());
            let mut child = command(&line, &[data.path(), &stopped]).spawn().unwrap();
            after(&mut child, &stopped, STEPS + 2);
            let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
            assert!(sent.success());
            let done = child.wait_with_output().unwrap();
            let err = String::from_utf8(done.stderr).unwrap();
            assert_eq!(done.status.code(), Some(130), "{signal}: {err}");
            assert!(err.contains("go on with: train --resume"), "{err}");
            // Saved where it stopped, not at the last epoch: the log ends with the checkpoint's last step.
            let step: u64 = header(&weights(&stopped))["__metadata__"]["step"].as_str().unwrap().parse().unwrap();
            assert_eq!(log(&stopped).last().unwrap()["step"].as_u64(), Some(step - 1));
        }
        // Where the images are stored may change; which they are may not.
        let moved = cifar();
        succeeds("train --resume --out {} --data {}", &[&stopped, moved.path()]);
        assert_same_run(&whole, &stopped);
    }
}

#[test]
fn a_resume_reads_its_configuration_from_the_run() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    succeeds(&format!("train {TINY} --epochs 1 --data {{}} --out {{}}"), &[data.path(), &run]);
    let before = content(&run);

    // Finished: that is printed, and nothing is done or written. With more epochs it goes on.
    let done = dino("train --resume --out {}", &[&run]);
    assert_eq!(done.code, 0);
    assert!(content(&run) == before && !done.err.contains("bits may differ"), "{}", done.err);
    assert!(
        done.err.contains("is finished: 1 epoch, 9 steps") && done.err.contains("--resume --epochs 2"),
        "{}",
        done.err
    );
    for (flag, expected) in [
        ("--batch 4", "--batch 4 (the run has 8)"),
        ("--seed 3", "--seed 3 (the run has 0)"),
        ("--global-crops-scale 0.5 1", "--global-crops-scale [0.5,1.0] (the run has [0.3,1.0])"),
        ("--depth 3", "--depth 3"),
        ("--ignore-exif", "--ignore-exif true"),
    ] {
        let line = format!("train --resume --epochs 2 {flag} --out {{}}");
        refuses_with(&line, &[&run], &["cannot go on with", expected]);
    }
    let other = folder(&[("train.bin", records(TRAIN, 3)), ("test.bin", records(TEST, 4))]);
    refuses_with(
        "train --resume --epochs 2 --out {} --data {}",
        &[&run, other.path()],
        &["does not hold the images", "(72 then, 72 now)", "--accept-changed-data"],
    );
    assert!(content(&run) == before, "a refusal must not change the run");
    // Other hardware or libraries sum in another order: that is printed, and only once.
    let manifest = std::fs::read_to_string(run.join("run.json")).unwrap();
    let began = manifest.replace("\"arithmetic\": \"CPU, ", "\"arithmetic\": \"CPU, abacus and ");
    assert_ne!(began, manifest);
    std::fs::write(run.join("run.json"), began).unwrap();
    let done = dino("train --resume --epochs 2 --batch 8 --out {}", &[&run]);
    assert!(done.err.contains("was on CPU, abacus and") && done.err.contains("bits may differ"), "{}", done.err);
    assert_eq!(log(&run).iter().filter(|r| r["kind"] == "epoch").count(), 2);
    let done = dino("train --resume --epochs 3 --out {}", &[&run]);
    assert!(done.code == 0 && !done.err.contains("bits may differ"), "{}", done.err);
}
