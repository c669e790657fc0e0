//! The programs of `examples/`, run: each prints what its header states, but for numbers.
//!
//! `cargo test` builds them before the tests run; `cargo test --test cli` alone does not, and what is not there is skipped with a message.

use crate::common::*;
use crate::documents::Inputs;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The built program, if it is there.
fn program(name: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_BIN_EXE_dino-host")).with_file_name("examples").join(name);
    let found = found.with_extension(std::env::consts::EXE_EXTENSION);
    if !found.exists() {
        eprintln!("SKIPPED: {name} is not built: `cargo test` without a target builds the examples");
    }
    found.exists().then_some(found)
}

/// The lines that a header states that the program prints.
fn expected(source: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("examples").join(source)).unwrap();
    let lines = text.lines().map(|line| line.strip_prefix("//!").unwrap_or(line));
    let after =
        lines.skip_while(|line| !line.contains("Expected output")).skip(1).skip_while(|line| line.trim().is_empty());
    let found: Vec<String> = after.take_while(|line| line.starts_with("    ")).map(|l| l.trim().into()).collect();
    assert!(!found.is_empty(), "{source} does not state what it prints");
    found
}

/// A line with every number as `#`.
fn masked(line: &str) -> String {
    let mut masked = String::new();
    for c in line.chars() {
        match c {
            '0'..='9' if masked.ends_with('#') => (),
            '0'..='9' => masked.push('#'),
            '.' if masked.ends_with('#') => (), // within a number, or where a sentence ends with one
            _ => masked.push(c),
        }
    }
    masked.replace("-#", "#").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs a program, which must print its header's lines in their order; `exactly`: to the digit.
#[track_caller]
fn prints(command: &mut Command, source: &str, exactly: bool) {
    let done = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{source}: {text}");
    let shape = |line: &str| if exactly { line.to_string() } else { masked(line) };
    let mut found = text.lines().map(|line| shape(line.trim()));
    for line in expected(source).iter().filter(|line| *line != "...") {
        assert!(found.any(|l| l == shape(line)), "{source} does not print `{line}`, in that order: {text}");
    }
}

#[test]
fn one_step_over_a_static_arena() {
    if let Some(program) = program("one_step") {
        prints(&mut Command::new(program), "one_step.rs", true);
    }
}

#[test]
fn features_of_an_image() {
    if let Some(program) = program("features") {
        let inputs = Inputs::get();
        let files = [inputs.path("run/teacher.safetensors"), inputs.path("a.jpg")];
        prints(Command::new(program).args(files), "features.rs", false);
    }
}

#[test]
fn training_on_a_data_set_in_memory() {
    if let Some(program) = program("custom_dataset") {
        let out = tempfile::tempdir().unwrap();
        prints(Command::new(program).arg(out.path().join("run")), "custom_dataset.rs", false);
        assert!(out.path().join("run/teacher.safetensors").exists());
    }
}

#[test]
fn attention_is_read_from_python() {
    let python = std::env::var_os("DINO_PYTHON").unwrap_or_else(|| "python3".into());
    let numpy = Command::new(&python).args(["-c", "import numpy"]).output();
    if !numpy.is_ok_and(|done| done.status.success()) {
        eprintln!("SKIPPED: read_attention.py needs a python3 with numpy ($DINO_PYTHON names one)");
        return;
    }
    let (inputs, out) = (Inputs::get(), tempfile::tempdir().unwrap());
    let line = "attend --checkpoint {} --image {} --write npy --out {}";
    let weights = inputs.path("run/checkpoint.safetensors");
    succeeds(line, &[&weights, &inputs.path("a.jpg"), out.path()]);
    let script = root().join("examples/read_attention.py");
    prints(Command::new(python).arg(script).arg(out.path().join("attention.npy")), "read_attention.py", false);
}

#[test]
fn numbers_are_masked() {
    assert_eq!(masked("step  1: loss -1.566, 40 x 7."), "step #: loss #, # x #");
}
