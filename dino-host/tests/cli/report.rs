//! The page of a run, and its event file.

use crate::common::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Records of an event file, as (step, bytes); lengths must fit to the end.
fn records(run: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(run.join("events.out.tfevents.0.dino")).unwrap();
    let (mut rest, mut found) = (&bytes[..], Vec::new());
    while let Some((length, tail)) = rest.split_first_chunk::<8>() {
        let n = u64::from_le_bytes(*length) as usize;
        found.push(tail[4..4 + n].to_vec());
        rest = &tail[4 + n + 4..];
    }
    assert!(rest.is_empty());
    found
}

fn page(run: &Path, flags: &str) -> String {
    succeeds(&format!("report {{}} {flags}"), &[run]);
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(!html.contains("http://") && !html.contains("https://") && !html.contains("NaN"));
    html
}

#[test]
fn a_run_becomes_a_page_and_events() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    succeeds(&format!("train {TINY} --epochs 2 --data {{}} --out {{}}"), &[data.path(), &run]);
    let manifest: Value = serde_json::from_slice(&fs::read(run.join("run.json")).unwrap()).unwrap();
    assert_eq!(manifest["command"][1], "train");
    assert!(manifest["host"]["threads"].as_u64().unwrap() > 0);
    // The baseline is no curve, and has no record.
    let rows_of = || log(&run).into_iter().filter(|row| row["kind"] != "baseline").collect::<Vec<_>>();
    let rows = rows_of();
    assert_eq!(log(&run).len(), rows.len() + 1);
    let last = rows.last().unwrap();
    assert!(last["knn_top1"].is_number() && last["knn_top1_student"].is_number(), "{last}");
    // The head of the file and a record a row, also after more epochs.
    assert_eq!(records(&run).len(), 1 + rows.len());
    assert!(records(&run)[0].ends_with(b"brain.Event:2"));
    succeeds("train --resume --epochs 3 --out {}", &[&run]);
    let rows = rows_of();
    assert_eq!((rows.len(), records(&run).len()), (3 * STEPS + 3, 1 + 3 * STEPS + 3));
    assert!(rows.last().unwrap()["knn_top1_student"].is_number(), "the student is evaluated after the last epoch");
    let again: Value = serde_json::from_slice(&fs::read(run.join("run.json")).unwrap()).unwrap();
    assert_eq!(again["command"], manifest["command"]);

    let html = page(&run, "");
    for part in [
        "Loss at the end",
        "k-NN, teacher",
        "k-NN, student",
        "k-NN, pixels",
        "Teacher entropy and KL",
        "Learning rate",
        "Weight decay",
        "Teacher momentum",
        "Teacher temperature",
        "Gradient norm",
        "Throughput",
        "Waiting for data",
        "What the teacher attends to",
        "before training",
        "after epoch 1",
        "Where the features lie",
        "Principal components",
        "Nearest neighbors",
        "k-NN by class",
        "Confusion",
        "Begun",
        "Parameters",
        "Spread of cosines",
        "What differs from --small",
        "--embed-dim",
        "The same again",
        "Manifest",
        "--warmup-epochs",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("Not shown"));
    // Nothing asks for the page again: it is a file.
    assert!(!html.contains("http-equiv=\"refresh\""));
    assert_eq!(page(&run, ""), html, "equal folders give equal bytes");

    let Some(python) = std::env::var_os("DINO_PYTHON") else {
        eprintln!("SKIPPED: TensorBoard and Chromium on the files: DINO_PYTHON names a Python that has tensorboard");
        return;
    };
    let script = "import sys; from tensorboard.backend.event_processing.event_accumulator import EventAccumulator as E
e = E(sys.argv[1]); e.Reload()
print(len(e.Scalars('train/loss')), e.Scalars('train/loss')[-1].value, len(e.Scalars('eval/knn_teacher')))";
    let done = Command::new(&python).args(["-c", script]).arg(&run).output().unwrap();
    let loss = rows.iter().rev().find(|r| r["kind"] == "step").unwrap()["loss"].as_f64().unwrap() as f32;
    assert_eq!(String::from_utf8(done.stdout).unwrap().trim(), format!("{} {} 3", 3 * STEPS, loss as f64));
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/report/check.py");
    let done =
        Command::new(&python).arg(check).arg(run.join("report.html")).arg(dir.path().join("shots")).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

/// A log alone, cut short, of a run with hostile names.
#[test]
fn what_is_missing_is_said_and_names_are_not_markup() {
    let evil = "<script>alert(1)</script>'\"&.png";
    let row =
        |step: u64| json!({"kind": "step", "step": step, "loss": null, "lr": 0.1, "teacher_entropy": null, "kl": 1.0});
    let bad = json!({"kind": "unreadable", "step": 0, "image": evil, "error": evil, "count": 1});
    let text = format!("{}\n{bad}\n[]\n\n{}\n{{\"kind\": \"st", row(0), row(1));
    let run =
        folder(&[("log.jsonl", text.into_bytes()), ("run.json", json!({"data": evil, "seed": 1}).to_string().into())]);
    let html = page(run.path(), "");
    assert!(!html.contains("alert(1)<") && html.contains("&lt;script&gt;alert(1)"));
    assert!(html.contains("2 lines of the log") && html.contains("Not shown") && html.contains("No finite loss"));
    assert_eq!(html.matches("<script>").count(), 1);
    // One step, nothing else.
    let one =
        json!({"kind": "step", "step": 0, "loss": 5.0, "loss_minus_ln_k": 0.5, "teacher_entropy": 1.0, "kl": 4.0});
    let run = folder(&[("log.jsonl", format!("{one}\n").into_bytes())]);
    assert!(page(run.path(), "--data /nowhere").contains("Healthy"));
    // An empty log is a page as well; no log is an error.
    let run = folder(&[("log.jsonl", Vec::new())]);
    assert!(page(run.path(), "").contains("No step was logged"));
    refuses_with("report {}", &[&run.path().join("none")], &["cannot read", "the folder of a run"]);
}

/// Two runs over each other: the settings that differ, both curves, and what came of each.
#[test]
fn runs_are_laid_over_each_other() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    for (run, flags) in [(&a, ""), (&b, "--lr 0.002")] {
        succeeds(&format!("train {TINY} --epochs 2 --knn-every 1 {flags} --data {{}} --out {{}}"), &[data.path(), run]);
    }
    let out = dir.path().join("both.html");
    succeeds("report {} {} --out {}", &[&a, &b, &out]);
    let html = fs::read_to_string(&out).unwrap();
    for part in
        ["2 runs", "Settings that differ", "--lr", "0.002", "0.016", "k-NN accuracy of the teacher", "Loss", "verdict"]
    {
        assert!(html.contains(part), "{part}");
    }
    assert!(
        !html.contains("--batch") && !html.contains("http://") && !html.contains("NaN"),
        "what is the same is not listed"
    );
    assert!(html.contains("line c0") && html.contains("line c1"));
    succeeds("report {} {} --out {}", &[&a, &a, &out]);
    assert!(fs::read_to_string(&out).unwrap().contains("None: all keys are the same."));
    refuses_with("report {} {} --out {}", &[&a, &dir.path().join("none"), &out], &["none", "the folder of a run"]);
}

/// One request over a connection of its own: the status, and what came.
fn ask(port: u16, request: &str) -> (u16, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

/// The page of a run while it goes on: it has what the log has by then, and is for this machine alone.
#[test]
fn a_run_is_watched() {
    use std::io::BufRead;
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    let train = format!("train {TINY} --epochs 2 --knn-every 1 --data {{}} --out {{}}");
    succeeds(&train, &[data.path(), &run]);
    // As it is in the middle of its first epoch.
    let whole = fs::read_to_string(run.join("log.jsonl")).unwrap();
    let part: String = whole.lines().take(5).map(|line| format!("{line}\n")).collect();
    fs::write(run.join("log.jsonl"), part).unwrap();
    let mut child = command("watch {} --port 0", &[&run]).spawn().unwrap();
    let mut lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
    let line =
        lines.find_map(|line| line.unwrap().strip_prefix("http://127.0.0.1:").map(String::from)).expect("a port");
    let port: u16 = line.split(' ').next().unwrap().parse().unwrap();
    let get = |path: &str, host: &str| {
        ask(port, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
    };
    let own = format!("127.0.0.1:{port}");
    let (status, early) = get("/", &own);
    assert!(
        status == 200 && early.contains("DINO run") && early.contains("The log ends after step 4 of 18"),
        "{early}"
    );
    assert!(early.contains("http-equiv=\"refresh\"") && !early.contains("after epoch 2 "));
    fs::write(run.join("log.jsonl"), &whole).unwrap();
    let (status, done) = get("/", &format!("localhost:{port}"));
    assert!(status == 200 && done.contains("Epoch by epoch") && !done.contains("The log ends after step"), "{done}");
    assert!(!done.contains("http-equiv=\"refresh\""), "a run that is over does not change");
    assert_eq!(get("/", "evil.example").0, 403);
    assert_eq!(get("/../etc/passwd", &own).0, 404);
    assert_eq!(
        ask(port, &format!("POST / HTTP/1.1\r\nHost: {own}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")).0,
        405
    );
    refuses_with(&format!("watch {{}} --port {port}"), &[&run], &["cannot listen on port", "--port 0"]);
    child.kill().unwrap();
    child.wait().unwrap();
    refuses_with("watch {}", &[&dir.path().join("none")], &["cannot read", "the folder of a run"]);
}
