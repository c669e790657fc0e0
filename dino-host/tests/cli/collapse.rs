//! `--on-collapse`: a run that has collapsed ends, or goes back to where it was sound and on from there with other crops.

use crate::common::*;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Temperatures at which the teacher's output becomes uniform.
const HOT: &str = "--teacher-temp 1 --warmup-teacher-temp 1 --lr 0.1";

fn rows(run: &Path, kind: &str) -> Vec<Value> {
    log(run).into_iter().filter(|row| row["kind"] == kind).collect()
}

/// A run of four sound epochs, each with a checkpoint.
fn sound(data: &Path, run: &Path) {
    succeeds(
        &format!("train {TINY} --epochs 4 --save-every 1 --knn-every 0 --threads 1 --data {{}} --out {{}}"),
        &[data, run],
    );
}

#[test]
fn a_run_that_is_to_stop_ends_with_what_is_wrong_and_what_to_do() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    sound(data.path(), &run);
    let text = refuses(&format!("train --resume --epochs 400 {HOT} --on-collapse stop --out {{}}"), &[&run]);
    assert!(text.contains("the run has collapsed after step") && text.contains("(uniform collapse)"), "{text}");
    assert!(text.contains("--teacher-temp") && text.contains("the run is saved as it was after step"), "{text}");
    let row = rows(&run, "collapse").pop().expect("a row");
    assert_eq!(row["health"], "uniform collapse");
    assert!(text.contains(&format!("after step {}", row["step"].as_u64().unwrap() + 1)), "{text} {row}");
    // What it advises can be done, and goes on from the end of a sound epoch.
    let advice = text.split_once("cp ").unwrap().1.split_once(", with that changed").unwrap().0;
    let (copy, go_on) = advice.split_once(", then ").unwrap();
    let (from, to) = copy.split_once(' ').unwrap();
    fs::copy(from, to).unwrap();
    assert_eq!(go_on, format!("train --resume --out {}", run.display()));
    let line = "train --resume --epochs 12 --teacher-temp 0.02 --warmup-teacher-temp 0.02 --lr 0.008 --out {}";
    succeeds(line, &[&run]);
    assert!(rows(&run, "collapse").is_empty(), "it is of a future that was dropped");
}

#[test]
fn a_run_that_goes_back_draws_anew_and_in_the_end_gives_up() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let [run, by_hand, other] = ["run", "by-hand", "other"].map(|name| dir.path().join(name));
    for run in [&run, &by_hand, &other] {
        sound(data.path(), run);
    }
    let hot = format!("{HOT} --save-every 0 --on-collapse rollback");
    let text = refuses(&format!("train --resume --epochs 400 {hot} --out {{}}"), &[&run]);
    assert!(text.contains("--reseed is 5 already"), "{text}");
    let back = rows(&run, "rollback");
    let found: Vec<_> =
        back.iter().map(|row| [&row["step"], &row["epoch"], &row["reseed"]].map(Value::as_u64)).collect();
    assert_eq!(found, [1, 2, 3, 4, 5].map(|reseed| [Some(35), Some(3), Some(reseed)]));
    assert!(back.iter().all(|row| row["health"] == "uniform collapse" && row["from_step"].as_u64() > Some(100)));
    let manifest: Value = serde_json::from_slice(&fs::read(run.join("run.json")).unwrap()).unwrap();
    let reseeds: Vec<_> = manifest["changes"].as_array().unwrap().iter().filter(|c| c["key"] == "reseed").collect();
    assert_eq!(manifest["config"]["reseed"], 5);
    assert!(reseeds.iter().all(|change| change["step"] == 36) && reseeds.last().unwrap()["to"] == 5, "{reseeds:?}");

    // The steps from there on are those of a run that was given the same number by hand, and other ones than those of another number.
    let losses = |run: &Path| -> Vec<Value> { rows(run, "step").into_iter().map(|row| row["loss"].clone()).collect() };
    for (out, reseed) in [(&by_hand, 5), (&other, 4)] {
        refuses(&format!("train --resume --epochs 400 {HOT} --reseed {reseed} --on-collapse stop --out {{}}"), &[out]);
    }
    assert_eq!(losses(&run), losses(&by_hand));
    let [ours, others] = [&run, &other].map(|run| losses(run));
    assert_eq!(ours[..36], others[..36]);
    assert!((36..100).all(|step| ours[step] != others[step]));
}

/// A run that is killed in the middle of it all and goes on goes back at the same step to the same place.
#[test]
fn an_interrupted_run_goes_back_as_one_that_was_not() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let [straight, broken] = ["straight", "broken"].map(|name| dir.path().join(name));
    let hot = format!("{HOT} --save-every 0 --on-collapse rollback --reseed 3");
    for run in [&straight, &broken] {
        sound(data.path(), run);
    }
    let text = refuses(&format!("train --resume --epochs 400 {hot} --out {{}}"), &[&straight]);
    assert!(text.contains("--reseed is 5 already"), "{text}");
    // Killed in the middle of the first way to the collapse, and of the second.
    for (flags, reseed) in [(&*hot, 3), ("", 4)] {
        let mut child =
            command(&format!("train --resume --epochs 400 {flags} --out {{}}"), &[&broken]).spawn().unwrap();
        let is_there = || {
            let text = fs::read_to_string(broken.join("log.jsonl")).unwrap_or_default();
            let steps = text.lines().filter(|line| line.contains(r#""kind":"step""#)).count();
            steps > 80 && (reseed == 3 || text.contains(r#""kind":"rollback""#))
        };
        while !is_there() {
            assert!(child.try_wait().unwrap().is_none(), "it ended before");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    refuses("train --resume --out {}", &[&broken]);
    let numbers = |run: &Path| -> Vec<Value> {
        log_without_clock(run).into_iter().filter(|row| row["kind"] != "epoch").collect()
    };
    assert_eq!(numbers(&straight), numbers(&broken));
}

#[test]
fn there_is_nothing_to_go_back_to_and_no_other_thing_to_do() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    let line = format!("train {TINY} {HOT} --epochs 400 --save-every 0 --knn-every 0 --data {{}} --out {{}}");
    let expected = ["no numbered checkpoint", "--save-every 1", "begin anew in another --out"];
    refuses_with(&format!("{line} --on-collapse rollback"), &[data.path(), &run], &expected);
    refuses_with(
        &format!("{line} --on-collapse retry"),
        &[data.path(), &dir.path().join("other")],
        &["--on-collapse \"retry\"", "warn, stop or rollback"],
    );
}
