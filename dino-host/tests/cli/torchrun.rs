//! Processes that torchrun starts have its variables, and no MPI: they are connected by TCP, and end in the same bytes as one that is alone.
//! Here they are started as it starts them; where it is there, by itself too.

use crate::common::*;
use crate::mpi::{assert_same, ended, line};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Starts `ranks` processes with torchrun's variables, and more of them.
fn start(ranks: usize, line: &str, paths: &[&Path], variables: &[(&str, &str)]) -> Vec<Child> {
    let size = ranks.to_string();
    let one = |rank: usize| {
        let mut command = command(line, paths);
        command.envs([("WORLD_SIZE", &size[..]), ("LOCAL_WORLD_SIZE", &size), ("MASTER_PORT", "29500")]);
        command.envs([("RANK", rank.to_string()), ("LOCAL_RANK", rank.to_string())]);
        command.env("TORCHELASTIC_RESTART_COUNT", line.len().to_string()); // several tests have the same parent
        command.envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    (0..ranks).map(one).collect()
}

/// Runs them to their end; what the first one printed.
#[track_caller]
fn succeed(ranks: usize, line: &str, paths: &[&Path]) -> Done {
    let done: Vec<Done> = start(ranks, line, paths, &[]).into_iter().map(|child| ended(child, line)).collect();
    for (rank, done) in done.iter().enumerate() {
        assert_eq!(done.code, 0, "rank {rank}: {line}: {}", done.err);
        assert!(rank == 0 || (done.out.is_empty() && done.err.is_empty()), "rank {rank} prints: {}", done.err);
    }
    done.into_iter().next().unwrap()
}

#[test]
fn processes_of_torchrun_end_in_the_same_bytes() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let alone = dir.path().join("alone");
    succeeds(&line(2, ""), &[data.path(), &alone]);
    for ranks in [2, 4] {
        let out = dir.path().join(format!("{ranks}"));
        let done = succeed(ranks, &line(2, ""), &[data.path(), &out]);
        assert!(done.err.contains(&format!("{ranks} processes on 1 machine, TCP")), "{}", done.err);
        assert_same(&alone, &out, &format!("{ranks} ranks"));
    }
    // Batch norms exchange in the middle of a step; parts that are no equal cut of a message.
    let norms = line(1, "--use-bn-in-head");
    let [one, four] = ["norms alone", "norms"].map(|name| dir.path().join(name));
    succeeds(&norms, &[data.path(), &one]);
    succeed(4, &norms, &[data.path(), &four]);
    assert_same(&one, &four, "batch norms");
    let weights = alone.join("teacher.safetensors");
    let knn = "eval knn --k 5,10 --checkpoint {} --data {} --json";
    let paths = [&weights, data.path()];
    assert_eq!(succeeds(knn, &paths), succeed(3, knn, &paths).out);
    if !Command::new("torchrun").arg("--help").output().is_ok_and(|o| o.status.success()) {
        return eprintln!("SKIPPED torchrun itself: it is not there");
    }
    let out = dir.path().join("itself");
    let mut command = Command::new("torchrun");
    command.args(["--no-python", "--nproc-per-node", "2", env!("CARGO_BIN_EXE_dino-host")]);
    command.args(arguments(&line(2, ""), &[data.path(), &out]));
    assert!(command.output().unwrap().status.success());
    assert_same(&alone, &out, "torchrun itself");
}

/// Waits until a run has made some steps.
fn wait_for_steps(out: &Path) {
    let started = Instant::now();
    while fs::read(out.join("log.jsonl")).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count()) < 5 {
        assert!(started.elapsed() < Duration::from_secs(120), "the run does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The launcher ends all where one has ended; here the others are looked at.
#[cfg(unix)]
#[test]
fn a_rank_that_is_gone_or_hangs_is_named() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    for (signal, expected) in [("-KILL", "rank 1 has left"), ("-STOP", "rank 1 has not come for 2s")] {
        let out = dir.path().join(signal);
        let mut ranks = start(
            3,
            &line(60, "--rank-timeout 2s").replace("--shards 4", "--shards 3").replace("--batch 8", "--batch 6"),
            &[data.path(), &out],
            &[("DINO_RENDEZVOUS", dir.path().to_str().unwrap()), ("MASTER_PORT", signal)],
        );
        wait_for_steps(&out);
        let id = ranks[1].id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        let third = ranks.pop().unwrap();
        let mut second = ranks.pop().unwrap();
        let first = ended(ranks.pop().unwrap(), signal);
        assert!(first.code == 2 && first.err.contains(expected), "{signal}: {} {}", first.code, first.err);
        assert_eq!(ended(third, signal).code, 2, "{signal}: the third one ends too");
        second.kill().unwrap();
        second.wait().unwrap();
    }
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let out = dir.path().join("run");
    for child in start(1, &line(1, ""), &[data.path(), &out], &[("RANK", "7"), ("WORLD_SIZE", "2")]) {
        let done = ended(child, "rank 7 of 2");
        assert!(done.code == 2 && done.err.contains("calls this process 7 of 2"), "{}", done.err);
    }
}

#[test]
fn processes_on_several_machines_need_a_folder() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let out = dir.path().join("run");
    let apart = [("LOCAL_WORLD_SIZE", "1"), ("LOCAL_RANK", "0")];
    for child in start(2, &line(1, ""), &[data.path(), &out], &apart) {
        let done = ended(child, "without a folder");
        assert!(
            done.code == 2 && done.err.contains("several machines") && done.err.contains("DINO_RENDEZVOUS=DIR"),
            "{}",
            done.err
        );
    }
    let folder = dir.path().join("rendezvous");
    fs::create_dir(&folder).unwrap();
    let named = [apart[0], apart[1], ("DINO_RENDEZVOUS", folder.to_str().unwrap())];
    for child in start(2, &line(1, ""), &[data.path(), &out], &named) {
        let done = ended(child, "with a folder");
        assert_eq!(done.code, 0, "{}", done.err);
    }
}
