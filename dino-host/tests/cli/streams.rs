//! Output that nobody reads, or that cannot be written: the work goes on, and the exit code is what the work deserves.

use crate::common::*;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Output, Stdio};

fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// Runs the program with these streams; it must not panic.
#[track_caller]
fn with(line: &str, paths: &[&Path], out: Stdio, err: Stdio) -> (i32, String, String) {
    let done = command(line, paths).stdout(out).stderr(err).output().unwrap();
    ended(line, done)
}

#[track_caller]
fn ended(line: &str, Output { status, stdout, stderr }: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(stdout), text(stderr));
    assert!(!err.contains("panicked"), "{line}: {err}");
    (status.code().unwrap_or_else(|| panic!("{line}: {status}: {err}")), out, err)
}

/// Waits for a program, one of whose pipes is taken: a pipe nobody reads any more.
#[track_caller]
fn closed(line: &str, mut child: Child, out: bool, after: usize) -> (i32, String, String) {
    let mut some = vec![0; after];
    if out {
        child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    } else {
        child.stderr.take().unwrap().read_exact(&mut some).unwrap();
    }
    ended(line, child.wait_with_output().unwrap())
}

const RESULTS: [&str; 5] = ["plan --small --json", "plan --small", "--help", "train --help", "--version"];

#[test]
fn results_that_cannot_be_written_are_an_error() {
    let data = cifar();
    let knn = "eval knn --which pixels --k 1 --data {}";
    for line in RESULTS.iter().chain(&[knn, "eval knn --which pixels --k 1 --json --data {}"]) {
        let paths: &[&Path] = if line.contains("{}") { &[data.path()] } else { &[] };
        let (code, _, err) = with(line, paths, full().into(), Stdio::piped());
        let last: Vec<_> = err.lines().rev().take(2).collect();
        assert_eq!(code, 2, "{line}: {err}");
        assert!(last[1].starts_with("dino-host: cannot write the results to stdout"), "{line}: {err}");
        assert!(last[0].starts_with("  hint: "), "{line}: {err}");
        // A reader that has seen enough is no error, whenever it goes away.
        let child = command(line, paths).spawn().unwrap();
        let (code, _, err) = closed(line, child, true, 0);
        assert_eq!(code, 0, "{line}: {err}");
    }
    // Nobody reads why, but the exit code tells.
    assert_eq!(with(knn, &[data.path()], full().into(), full().into()).0, 2);
    assert_eq!(with("plan --bogus", &[], Stdio::piped(), full().into()).0, 2);
}

/// The checkpoint and how many rows of a kind the log has.
fn left(run: &Path) -> (Vec<u8>, impl Fn(&str) -> usize) {
    let rows = log(run);
    let count = move |kind: &str| rows.iter().filter(|row| row["kind"] == kind).count();
    (fs::read(run.join("checkpoint.safetensors")).unwrap(), count)
}

/// What `convert` prints of the weights, and what `check` finds.
#[test]
fn other_results_that_cannot_be_written_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/training/dino_vits16_epoch_10.pth");
    let convert = "convert {} {} --to safetensors-own --heads 1";
    let lines: [(&str, &[&Path]); 2] = [(convert, &[&weights, &dir.path().join("out")]), ("check", &[])];
    for (line, paths) in lines {
        let (code, _, err) = with(line, paths, full().into(), Stdio::piped());
        assert!(code == 2 && err.contains("cannot write the results to stdout"), "{line}: {code} {err}");
    }
}

#[test]
fn a_run_goes_on_without_anybody_to_tell() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let line = format!("train {TINY} --epochs 3 --data {{}} --out {{}}");
    let whole = dir.path().join("whole");
    succeeds(&line, &[data.path(), &whole]);
    let (weights, _) = left(&whole);
    let check = |run: &Path, noted: usize| {
        let (found, count) = left(run);
        assert!(found == weights, "{}", run.display());
        assert_eq!((count("step"), count("epoch"), count("messages_lost")), (3 * STEPS, 3, noted));
    };

    let run = dir.path().join("full");
    assert_eq!(with(&line, &[data.path(), &run], full().into(), full().into()).0, 0);
    check(&run, 1);
    let lost = log(&run).into_iter().find(|row| row["kind"] == "messages_lost").unwrap();
    assert!(lost["error"].as_str().unwrap().contains("No space left"), "{lost}");
    // Readers of the log know nothing of that row and need not.
    succeeds("report {} --data {}", &[&run, data.path()]);
    assert!(run.join("report.html").exists());

    for (name, after) in [("at once", 0), ("after a line", 40)] {
        let run = dir.path().join(name);
        let child = command(&line, &[data.path(), &run]).spawn().unwrap();
        let (code, _, _) = closed(&line, child, false, after);
        assert_eq!(code, 0);
        check(&run, 1);
    }
    // What was noted stays so when the run goes on with a reader.
    succeeds("train --resume --epochs 4 --out {}", &[&run]);
    let (_, count) = left(&run);
    assert_eq!((count("epoch"), count("messages_lost")), (4, 1));
}

/// Descriptors that are closed from the start.
#[test]
fn a_run_without_any_streams() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    let shell = |redirections: &str, line: &str, paths: &[&Path]| {
        let arguments: Vec<String> = arguments(line, paths).iter().map(|w| format!("'{w}'")).collect();
        let script = format!("'{}' {} {redirections}", env!("CARGO_BIN_EXE_dino-host"), arguments.join(" "));
        std::process::Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().unwrap().status.code()
    };
    let line = format!("train {TINY} --epochs 1 --data {{}} --out {{}}");
    assert_eq!(shell("<&- >&- 2>&-", &line, &[data.path(), &run]), Some(0));
    assert_eq!(left(&run).1("step"), STEPS);
    assert_eq!(shell(">&- 2>&-", "plan --bogus", &[]), Some(2));
}

/// A log that cannot grow any more ends the run, but not before the run is saved. (The limit is on the size of a file; a program that
/// ignores the signal gets an error instead.)
#[cfg(target_os = "linux")]
#[test]
fn a_log_that_cannot_be_written_costs_no_step() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let (whole, run) = (dir.path().join("whole"), dir.path().join("run"));
    let line = format!("train {TINY} --epochs 120 --knn-every 0 --save-every 0 --data {{}} --out {{}}");
    succeeds(&line, &[data.path(), &whole]);
    // As large as the checkpoint, in blocks of 512 bytes: the log of all steps is larger.
    let size = |name: &str| fs::metadata(whole.join(name)).unwrap().len();
    let blocks = size("checkpoint.safetensors").div_ceil(512);
    assert!(size("log.jsonl") > 512 * blocks + 2000, "{} and {blocks}", size("log.jsonl"));
    let arguments: Vec<String> = arguments(&line, &[data.path(), &run]).iter().map(|w| format!("'{w}'")).collect();
    let script =
        format!("trap '' XFSZ; ulimit -f {blocks}; exec '{}' {}", env!("CARGO_BIN_EXE_dino-host"), arguments.join(" "));
    let done = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    let (code, _, err) = ended(&line, done);
    assert_eq!(code, 2, "{err}");
    let saved = header(&fs::read(run.join("checkpoint.safetensors")).unwrap())["__metadata__"]["step"].clone();
    let saved: usize = saved.as_str().unwrap().parse().unwrap();
    assert!(err.contains("cannot write") && err.contains("log.jsonl"), "{err}");
    assert!(err.contains(&format!("the run is saved as it was after step {saved}\n")), "{err}");
    // The step whose row is torn is the last one, and it is saved.
    let text = fs::read_to_string(run.join("log.jsonl")).unwrap();
    let rows = text.lines().filter(|row| row.contains("\"kind\":\"step\"") && row.ends_with('}')).count();
    assert!(rows + 1 == saved || rows == saved, "{rows} rows, step {saved}");
    // With space again it ends as a run that always had it.
    succeeds("train --resume --out {}", &[&run]);
    let weights = |run: &Path| fs::read(run.join("checkpoint.safetensors")).unwrap();
    assert!(weights(&run) == weights(&whole));
}
