//! Runs that go on: what may change, what it leaves in `run.json`, and whose a folder is.

use crate::common::*;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn manifest(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("run.json")).unwrap()).unwrap()
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("checkpoint.safetensors")).unwrap()
}

/// A number in a checkpoint's header.
fn recorded(run: &Path, key: &str) -> Value {
    let text = header(&weights(run))["__metadata__"][key].clone();
    text.as_str().map_or(Value::Null, |text| serde_json::from_str(text).unwrap())
}

fn rows(run: &Path, kind: &str) -> Vec<Value> {
    log(run).into_iter().filter(|row| row["kind"] == kind).collect()
}

/// A case of the field's: 400 gray images.
fn idx() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/training/idx")
}

const GRAY: &str = "train --small --arch vit_tiny --channels 1 --batch 8 --knn-every 0 --threads 1 --data {} --out {}";

#[test]
fn what_the_error_of_a_run_away_advises_can_be_done() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let text = refuses(&format!("{GRAY} --epochs 2 --lr 1e6"), &[&idx(), &run]);
    assert!(text.contains("a number stopped being finite in step 6"), "{text}");
    assert!(text.contains("the run is saved as it was after step 0"), "{text}");
    let advice = text
        .split_once("from there on: ")
        .unwrap()
        .1
        .split_once(" (")
        .unwrap()
        .0
        .replace(&*run.to_string_lossy(), "{}");
    assert_eq!(advice, "train --resume --lr 1.0e-3 --out {}");
    // The state in which it failed is kept aside: with the same numbers, the same step fails.
    let failed = fs::read(run.join("before_failure.safetensors")).unwrap();
    assert_eq!(header(&failed)["__metadata__"]["step"], "6");
    refuses_with("train --resume --out {}", &[&run], &["stopped being finite in step 6"]);

    let done = dino(&advice, &[&run]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("from step 0 on: --lr 0.001 instead of 1000000.0"), "{}", done.err);
    let change = json!([{"step": 0, "key": "lr", "from": 1e6, "to": 1e-3}]);
    assert_eq!((&manifest(&run)["changes"], &manifest(&run)["config"]["lr"]), (&change, &json!(1e-3)));
    // As if it had been so from the start.
    let straight = dir.path().join("straight");
    succeeds(&format!("{GRAY} --epochs 2 --lr 0.001"), &[&idx(), &straight]);
    assert!(weights(&run) == weights(&straight));
}

#[test]
fn keys_that_every_step_reads_may_change_and_it_is_recorded() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    succeeds(&format!("train {TINY} --epochs 2 --data {{}} --out {{}}"), &[data.path(), &run]);
    let flags = "--epochs 4 --lr 0.002 --clip-grad 0.5 --warmup-epochs 2 --weight-decay 0.1 --teacher-temp 0.04 \
                 --momentum-teacher 0.99 --drop-path-rate 0.2 --beta2 0.99 --knn-every 3 --save-every 2 --threads 1";
    let done = dino(&format!("train --resume {flags} --out {{}}"), &[&run]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.err.matches("from step 18 on: --").count(), 11, "{}", done.err);
    let changes = manifest(&run)["changes"].clone();
    let keys: Vec<_> = changes.as_array().unwrap().iter().map(|c| (&c["step"], c["key"].as_str().unwrap())).collect();
    assert_eq!(keys.len(), 11);
    assert!(
        keys.iter().all(|(step, _)| **step == 2 * STEPS) && keys.iter().any(|(_, key)| *key == "beta2"),
        "{changes}"
    );
    assert!(keys.iter().all(|(_, key)| *key != "threads"), "{changes}");
    assert_eq!(rows(&run, "step")[2 * STEPS + 5]["teacher_temp"], 0.04);
    // Kept over further resumes, and what does not change is not recorded again.
    succeeds("train --resume --epochs 5 --lr 0.002 --out {}", &[&run]);
    let later = manifest(&run)["changes"].clone();
    let later = later.as_array().unwrap();
    assert_eq!(later[..11], changes.as_array().unwrap()[..]);
    assert_eq!(later[11..], [json!({"step": 4 * STEPS, "key": "epochs", "from": 4, "to": 5})]);
    // Prototypes that move are not frozen again.
    let before = content(&run);
    refuses_with("train --resume --epochs 9 --freeze-last-layer 7 --out {}", &[&run], &["move already"]);
    assert!(content(&run) == before);
}

/// An optimizer's state is of no use to another one; a rule for the teacher has no state.
#[test]
fn an_optimizer_stays_and_a_teacher_rule_may_change() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    succeeds(&format!("train {TINY} --optimizer sgd --epochs 2 --data {{}} --out {{}}"), &[data.path(), &run]);
    assert_eq!(
        (&manifest(&run)["config"]["optimizer"], &manifest(&run)["config"]["teacher"]),
        (&json!("sgd"), &json!("ema"))
    );
    let before = content(&run);
    let said = ["cannot go on with --optimizer \"lars\" (the run has \"sgd\")", "--init-from"];
    refuses_with("train --resume --epochs 3 --optimizer lars --out {}", &[&run], &said);
    assert!(content(&run) == before);
    succeeds("train --resume --epochs 4 --teacher previous-epoch --sgd-momentum 0.8 --out {}", &[&run]);
    let changes = manifest(&run)["changes"].clone();
    assert!(
        changes
            .as_array()
            .unwrap()
            .contains(&json!({"step": 2 * STEPS, "key": "teacher", "from": "ema", "to": "previous-epoch"})),
        "{changes}"
    );
    let momenta: Vec<f64> = rows(&run, "step").iter().map(|row| row["momentum"].as_f64().unwrap()).collect();
    assert!(momenta[..2 * STEPS].iter().all(|m| (0.9..1.0).contains(m)));
    let epoch: Vec<f64> = (0..STEPS).map(|step| if step + 1 == STEPS { 0.0 } else { 1.0 }).collect();
    assert_eq!(momenta[2 * STEPS..], [epoch.clone(), epoch].concat());
}

/// Two keys that change no number leave the weights as they are.
#[test]
fn how_often_a_run_is_evaluated_and_saved_changes_no_weight() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let [whole, resumed] = ["whole", "resumed"].map(|name| dir.path().join(name));
    let line = format!("train {TINY} --epochs 3 --data {{}} --out {{}}");
    succeeds(&line, &[data.path(), &whole]);
    let stopped = dino(&format!("{line} --time-limit 1ms"), &[data.path(), &resumed]);
    assert_eq!(stopped.code, 130, "{}", stopped.err);
    assert!(stopped.err.contains("in time for --time-limit 1ms; go on with: train --resume --out"), "{}", stopped.err);
    assert_eq!(recorded(&resumed, "step"), 1);
    succeeds("train --resume --save-every 1 --knn-every 0 --threads 1 --out {}", &[&resumed]);
    let tensors = |run: &Path| {
        let bytes = weights(run);
        let n = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        bytes[8 + n..].to_vec()
    };
    assert!(tensors(&whole) == tensors(&resumed));
    assert!(resumed.join("checkpoint0001.safetensors").exists());
}

/// Stopped for time again and again, also where an epoch's steps are done and it is not evaluated yet, a run ends as one that had time.
#[test]
fn a_run_in_many_short_times_is_the_same_run() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let [whole, resumed] = ["whole", "resumed"].map(|name| dir.path().join(name));
    let line = format!("train {TINY} --epochs 2 --save-every 1 --data {{}} --out {{}}");
    succeeds(&line, &[data.path(), &whole]);
    let mut code = dino(&format!("{line} --time-limit 1ms"), &[data.path(), &resumed]).code;
    let mut sittings = 1;
    while code == 130 {
        code = dino("train --resume --time-limit 1ms --out {}", &[&resumed]).code;
        sittings += 1;
    }
    // A step each, and the last epoch is evaluated in a start of its own.
    assert_eq!((code, sittings), (0, 2 * STEPS + 1));
    for file in
        ["checkpoint.safetensors", "teacher.safetensors", "checkpoint0000.safetensors", "checkpoint0001.safetensors"]
    {
        assert!(fs::read(whole.join(file)).unwrap() == fs::read(resumed.join(file)).unwrap(), "{file}");
    }
    assert_eq!(log_without_clock(&whole), log_without_clock(&resumed));
    for time in ["0", "soon", "3:55", "-1h"] {
        refuses(&format!("train --resume --time-limit={time} --out {{}}"), &[&resumed]);
    }
}

#[test]
fn an_end_that_lies_behind_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    succeeds(&format!("{GRAY} --epochs 2"), &[&idx(), &run]);
    let before = content(&run);
    refuses_with("train --resume --epochs 1 --out {}", &[&run], &["2 epochs", "--epochs 2 or more"]);
    let done = dino("train --resume --epochs 2 --out {}", &[&run]);
    assert!(done.code == 0 && done.err.contains("is finished: 2 epochs, 100 steps"), "{}", done.err);
    assert!(content(&run) == before);
    // In the third epoch, the third cannot be left out.
    assert_eq!(dino("train --resume --epochs 9 --time-limit 1ms --out {}", &[&run]).code, 130);
    let before = content(&run);
    refuses_with("train --resume --epochs 2 --out {}", &[&run], &["under way", "--epochs 3 or more"]);
    assert!(content(&run) == before);
    succeeds("train --resume --epochs 3 --out {}", &[&run]);
    assert_eq!(recorded(&run, "step"), 150);
}

/// Class folders of images, `count` of them in the train part, and what a run over them is.
fn images(count: u32) -> tempfile::TempDir {
    let mut files = Vec::new();
    for i in 0..count + 8 {
        let (part, class) = (if i < count { "train" } else { "val" }, i % 2);
        files.push((format!("{part}/{class}/{i:02}.png"), image_bytes(image::ImageFormat::Png, i)));
    }
    folder(&files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect::<Vec<_>>())
}

#[test]
fn a_changed_set_is_accepted_and_recorded() {
    let (data, dir) = (images(35), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    let line = format!("train {TINY} --epochs 4 --time-limit 1ms --data {{}} --out {{}}");
    assert_eq!(dino(&line, &[data.path(), &run]).code, 130);
    // One more step: two of the four of the first epoch are done.
    assert_eq!(dino("train --resume --time-limit 1ms --out {}", &[&run]).code, 130);
    let began = manifest(&run)["train"].clone();

    // An image less: as many steps in an epoch as before.
    fs::remove_file(data.path().join("train/1/33.png")).unwrap();
    let before = content(&run);
    refuses_with("train --resume --out {}", &[&run], &["(35 then, 34 now)", "--accept-changed-data"]);
    assert!(content(&run) == before);
    let done = dino("train --resume --accept-changed-data --time-limit 1ms --out {}", &[&run]);
    assert_eq!(done.code, 130, "{}", done.err);
    assert!(done.err.contains("from step 2 on the train part is another: 34 images, before 35"), "{}", done.err);
    assert_eq!((recorded(&run, "step"), recorded(&run, "ahead")), (json!(3), Value::Null));
    let short = |set: &Value| json!({"images": set["images"], "fingerprint": set["fingerprint"]});
    let change = json!({"step": 2, "key": "train", "from": short(&began), "to": short(&manifest(&run)["train"])});
    assert_eq!(manifest(&run)["changes"], json!([change]));
    assert_eq!(change["to"]["images"], 34);

    // Twice as many, and another test part: three quarters of the first epoch stay done, six of eight steps.
    for i in 0..34 {
        fs::write(data.path().join(format!("train/0/more{i}.png")), image_bytes(image::ImageFormat::Png, 100 + i))
            .unwrap();
    }
    fs::write(data.path().join("val/0/more.png"), image_bytes(image::ImageFormat::Png, 99)).unwrap();
    let done = dino("train --resume --accept-changed-data --out {}", &[&run]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(
        done.err.contains("8 steps now, 4 before: what is done stays done, 0 epochs, and 6 steps of the next"),
        "{}",
        done.err
    );
    assert!(
        done.err.contains("the test part is another: 9 images, before 8; its scores do not compare"),
        "{}",
        done.err
    );
    // Two steps end the first epoch, three more have eight each. Steps are numbered on.
    let steps = rows(&run, "step");
    assert_eq!(steps.iter().map(|r| r["step"].as_u64().unwrap()).collect::<Vec<_>>(), (0..29).collect::<Vec<_>>());
    assert_eq!(steps.iter().filter(|r| r["epoch"] == 0).count(), 5);
    assert!((1..4).all(|e| steps.iter().filter(|r| r["epoch"] == e).count() == 8));
    let epochs: Vec<_> = rows(&run, "epoch").iter().map(|r| (r["epoch"].clone(), r["step"].clone())).collect();
    let ends = [(0, 4), (1, 12), (2, 20), (3, 28)].map(|(epoch, step)| (json!(epoch), json!(step)));
    assert_eq!(epochs, ends);
    assert_eq!(
        (recorded(&run, "step"), recorded(&run, "ahead"), recorded(&run, "per_epoch")),
        (29.into(), 3.into(), 8.into())
    );
    // The rate is where it would be in the set as it is now, and the mean loss of the mixed epoch is between its steps'.
    let losses: Vec<f64> = steps[..5].iter().map(|r| r["loss"].as_f64().unwrap()).collect();
    let mean = rows(&run, "epoch")[0]["train_loss"].as_f64().unwrap();
    assert!(losses.iter().any(|l| *l < mean) && losses.iter().any(|l| *l > mean), "{mean} {losses:?}");
    let keys: Vec<_> = manifest(&run)["changes"].as_array().unwrap().iter().map(|c| c["key"].clone()).collect();
    assert_eq!(keys, ["train", "train", "test"]);
    // Finished in its own numbers, and accepted for good.
    let done = dino("train --resume --out {}", &[&run]);
    assert!(done.code == 0 && done.err.contains("is finished: 4 epochs, 29 steps"), "{}", done.err);
    succeeds("train --resume --epochs 5 --out {}", &[&run]);
    assert_eq!(recorded(&run, "step"), 37);
    succeeds("report {} --data {}", &[&run, data.path()]);
    refuses_with(
        &format!("train {TINY} --accept-changed-data --data builtin --out {{}}"),
        &[&dir.path().join("x")],
        &["--resume"],
    );
}

/// An image is counted by its name: a set that was moved has other messages, and the same images.
#[test]
fn unreadable_images_are_counted_once_over_a_move() {
    let (data, dir) = (images(32), tempfile::tempdir().unwrap());
    let [run, moved] = ["run", "moved"].map(|name| dir.path().join(name));
    // In both parts under one name.
    fs::write(data.path().join("train/0/00.png"), "not an image").unwrap();
    fs::write(data.path().join("val/0/00.png"), "not an image").unwrap();
    let line = format!("train {TINY} --epochs 2 --data {{}} --out {{}}");
    let done = dino(&line, &[data.path(), &run]);
    assert_eq!((done.code, done.err.matches("WARNING").count()), (0, 2), "{}", done.err);
    fs::create_dir(&moved).unwrap();
    for part in ["train", "val"] {
        fs::rename(data.path().join(part), moved.join(part)).unwrap();
    }
    let done = dino("train --resume --epochs 4 --data {} --out {}", &[&moved, &run]);
    assert_eq!((done.code, done.err.matches("WARNING").count()), (0, 0), "{}", done.err);
    let named: Vec<_> =
        rows(&run, "unreadable").iter().map(|r| [r["part"].clone(), r["image"].clone(), r["count"].clone()]).collect();
    assert_eq!(json!(named), json!([["train", "0/00.png", 1], ["test", "0/00.png", 2]]));
}

/// Back to an earlier checkpoint, what was recorded for later is taken back.
#[test]
fn changes_of_a_future_that_is_dropped_go_with_it() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    succeeds(&format!("train {TINY} --epochs 2 --save-every 1 --data {{}} --out {{}}"), &[data.path(), &run]);
    succeeds("train --resume --epochs 3 --lr 0.002 --out {}", &[&run]);
    assert_eq!(manifest(&run)["changes"].as_array().unwrap().len(), 2);
    fs::copy(run.join("checkpoint0000.safetensors"), run.join("checkpoint.safetensors")).unwrap();
    succeeds("train --resume --lr 0.004 --out {}", &[&run]);
    let changes = manifest(&run)["changes"].clone();
    assert_eq!(changes, json!([{"step": STEPS, "key": "lr", "from": 0.016, "to": 0.004}]));
    assert_eq!(recorded(&run, "step"), 2 * STEPS);
}

#[test]
fn schedules_that_never_arrive_are_reported() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let flags = "--freeze-last-layer 3 --warmup-teacher-temp-epochs 30 --teacher-temp 0.07";
    let line = format!(
        "train {} --warmup-epochs 4 --epochs 2 {flags} --data {{}} --out {{}}",
        TINY.replace("--warmup-epochs 1", "")
    );
    let done = dino(&line, &[data.path(), &dir.path().join("run")]);
    assert_eq!(done.code, 0, "{}", done.err);
    for expected in ["it reaches 50 % of --lr", "does not reach --teacher-temp 0.07", "--freeze-last-layer 1 lets them"]
    {
        assert_eq!(done.err.matches(expected).count(), 1, "{expected}: {}", done.err);
    }
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::process::{Child, Command};
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    #[track_caller]
    fn wait(what: &str, until: impl Fn() -> bool) {
        let begun = Instant::now();
        while !until() {
            assert!(begun.elapsed().as_secs() < 120, "{what} does not come");
            sleep(Duration::from_millis(5));
        }
    }

    fn signal(child: &Child, name: &str) {
        assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
    }

    fn has_rows(run: &Path) -> bool {
        fs::read(run.join("log.jsonl")).is_ok_and(|text| text.iter().filter(|b| **b == b'\n').count() > 3)
    }

    const ENDLESS: &str = "--epochs 999999 --knn-every 0 --data {} --out {}";

    #[test]
    fn warnings_of_a_scheduler_save_and_stop() {
        let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
        for name in ["-INT", "-TERM", "-HUP", "-USR1", "-USR2", "-XCPU"] {
            let run = dir.path().join(&name[1..]);
            let child = command(&format!("train {TINY} {ENDLESS}"), &[data.path(), &run]).spawn().unwrap();
            wait("a row", || has_rows(&run));
            signal(&child, name);
            let done = child.wait_with_output().unwrap();
            let err = String::from_utf8(done.stderr).unwrap();
            assert_eq!(done.status.code(), Some(130), "{name}: {err}");
            assert!(err.contains(&format!("SIG{}: stopping after this step", &name[1..])), "{err}");
            assert!(err.contains("go on with: train --resume --out"), "{err}");
            let step = recorded(&run, "step").as_u64().unwrap();
            assert_eq!(rows(&run, "step").len() as u64, step);
            assert!(!run.join("owner.lock").exists());
        }
    }

    /// The step of a large batch lasts long enough for another signal to come before its end.
    #[test]
    fn the_second_interrupt_ends_the_program_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let line = "train --small --batch 512 --epochs 9 --knn-every 0 --threads 1 --out {}";
        let child = command(line, &[&run]).spawn().unwrap();
        wait("the first save", || run.join("gallery/start.png").exists());
        sleep(Duration::from_millis(100)); // the handlers are set, the step is under way
        signal(&child, "-INT");
        sleep(Duration::from_millis(100));
        signal(&child, "-INT");
        let done = child.wait_with_output().unwrap();
        let err = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(130), "{err}");
        assert!(err.contains("once more to stop at once") && !err.contains("stopped after"), "{err}");
        assert_eq!(recorded(&run, "step"), 0);
    }

    /// As under nohup (SIGHUP), or in the background of a shell's script (SIGINT).
    #[test]
    fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
        let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
        for (ignored, sent) in [("HUP", "-HUP"), ("INT", "-INT"), ("USR1 HUP", "-USR1")] {
            let run = dir.path().join(sent);
            let arguments = arguments(&format!("train {TINY} {ENDLESS}"), &[data.path(), &run]);
            let arguments: Vec<String> = arguments.iter().map(|w| format!("'{w}'")).collect();
            let script =
                format!("trap '' {ignored}; exec '{}' {}", env!("CARGO_BIN_EXE_dino-host"), arguments.join(" "));
            let child = Command::new("sh").args(["-c", &script]).stderr(std::process::Stdio::piped()).spawn().unwrap();
            wait("a row", || has_rows(&run));
            signal(&child, sent);
            let seen = rows(&run, "step").len();
            wait("another row", || fs::read_to_string(run.join("log.jsonl")).unwrap().lines().count() > seen + 20);
            signal(&child, "-TERM");
            let done = child.wait_with_output().unwrap();
            let err = String::from_utf8(done.stderr).unwrap();
            assert_eq!(done.status.code(), Some(130), "{err}");
            assert!(err.contains("SIGTERM") && !err.contains(&format!("SIG{}", &sent[1..])), "{err}");
        }
    }

    #[test]
    fn a_folder_has_one_owner_until_its_process_ends() {
        let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
        let run = dir.path().join("run");
        let line = format!("train {TINY} {ENDLESS}");
        let mut child = command(&line, &[data.path(), &run]).spawn().unwrap();
        wait("a row", || has_rows(&run));
        let pid = child.id().to_string();
        let expected = ["run is being written by process", pid.as_str(), "since 20"];
        refuses_with("train --resume --out {}", &[&run], &expected);
        refuses_with("train --resume --epochs 7 --out {}", &[&run.join("../run")], &expected);
        refuses_with(&line, &[data.path(), &run], &expected);
        // Who only reads is let in.
        succeeds("eval knn --checkpoint {} --data {}", &[&run.join("checkpoint.safetensors"), data.path()]);
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(dino("train --resume --time-limit 1ms --out {}", &[&run]).code, 130);
        assert!(!run.join("owner.lock").exists());
    }

    #[test]
    fn runs_without_a_name_that_begin_at_once_take_a_folder_each() {
        let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
        let line = format!("train {TINY} --epochs 1 --knn-every 0 --threads 1 --data {{}}");
        let start = |_| command(&line, &[data.path()]).current_dir(&dir).spawn().unwrap();
        let runs: Vec<_> = (0..4).map(start).collect();
        for run in runs {
            let done = run.wait_with_output().unwrap();
            assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
        }
        for i in 1..5 {
            let run = dir.path().join(format!("runs/{i}"));
            assert_eq!(rows(&run, "step").len(), STEPS, "{}", run.display());
        }
        assert_eq!(fs::read_dir(dir.path().join("runs")).unwrap().count(), 4);
        refuses(&format!("{line} --mem-limit 1kB"), &[data.path()]);
    }
}
