//! Runs that several processes share end in the same bytes as one that is alone, whoever launches them; and what happens when one of
//! them fails.
//!
//! Every launcher that is found is tried: Open MPI's and MPICH's, and one more by `DINO_MPICH_ABI`, the folder of a library with the
//! standard interface of MPI 5 (bin/mpiexec, lib/libmpi_abi.so.1).

use crate::common::*;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A launcher of processes.
struct Launcher {
    name: &'static str,
    program: PathBuf,
    arguments: &'static [&'static str],
    library: Option<PathBuf>,
    /// Its own files. Open MPI has one folder a user, which a launch that begins may make in the moment in which another one makes or
    /// removes it; it ends then.
    session: TempDir,
}

/// The launchers of this machine.
fn launchers(test: &str) -> Vec<Launcher> {
    let answers = |program: &Path, name: &str| {
        let done = Command::new(program).arg("--version").output();
        done.is_ok_and(|done| String::from_utf8_lossy(&done.stdout).contains(name))
    };
    let first =
        |programs: &[&str], name: &str| programs.iter().map(PathBuf::from).find(|program| answers(program, name));
    let session = || tempfile::tempdir().unwrap();
    let mut found = Vec::new();
    if let Some(program) = first(&["mpirun.openmpi", "mpirun"], "Open MPI") {
        let arguments = &["--oversubscribe", "--bind-to", "none"][..];
        found.push(Launcher { name: "Open MPI", program, arguments, library: None, session: session() });
    }
    if let Some(program) = first(&["mpiexec.mpich", "mpiexec.hydra", "mpiexec"], "HYDRA") {
        found.push(Launcher { name: "MPICH", program, arguments: &[], library: None, session: session() });
    }
    if let Some(folder) = std::env::var_os("DINO_MPICH_ABI").map(PathBuf::from) {
        let (program, library) = (folder.join("bin/mpiexec.hydra"), folder.join("lib/libmpi_abi.so.1"));
        assert!(answers(&program, "HYDRA") && library.exists(), "no launcher in {}", folder.display());
        found.push(Launcher { name: "MPI 5", program, arguments: &[], library: Some(library), session: session() });
    }
    if found.is_empty() {
        eprintln!("SKIPPED {test}: there is no mpirun (apt install openmpi-bin mpich)");
    }
    found
}

impl Launcher {
    /// `ranks` processes of the program.
    fn command(&self, ranks: usize, line: &str, paths: &[&Path]) -> Command {
        let mut command = self.bare();
        let ranks = ranks.to_string();
        command.args(["-n", &ranks, env!("CARGO_BIN_EXE_dino-host")]).args(arguments(line, paths));
        command
    }

    fn bare(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(self.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.prepare(&mut command);
        hear_signals(&mut command);
        command
    }

    fn prepare(&self, command: &mut Command) {
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env("TMPDIR", self.session.path());
        if let Some(library) = &self.library {
            command.env("DINO_MPI", library);
        }
    }

    /// Runs them to their end.
    fn run(&self, ranks: usize, line: &str, paths: &[&Path]) -> Done {
        ended(self.command(ranks, line, paths).spawn().unwrap(), &format!("{}, {ranks} ranks: {line}", self.name))
    }

    #[track_caller]
    fn succeeds(&self, ranks: usize, line: &str, paths: &[&Path]) -> String {
        let done = self.run(ranks, line, paths);
        assert_eq!(done.code, 0, "{}, {ranks} ranks: {line}: {}", self.name, done.err);
        done.out
    }
}

/// Waits for a launcher. None may hang.
pub fn ended(mut child: Child, what: &str) -> Done {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(300) {
            child.kill().unwrap();
            panic!("{what} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let done = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(done.stdout), text(done.stderr));
    assert!(!err.contains("panicked"), "{what}: {err}");
    Done { code: done.status.code().unwrap_or(-1), out, err }
}

/// Epochs of a run that is stopped on its way.
const EPOCHS: usize = 60;

/// A run of four shards.
const LINE: &str = "--micro-batch 2 --shards 4 --threads 1 --drop-path-rate 0.1 --save-every 2 --data {} --out {}";

pub fn line(epochs: usize, more: &str) -> String {
    format!("train {TINY} --epochs {epochs} {more} {LINE}")
}

/// The weights of a run, file by file, and its log.
fn left(run: &Path) -> (Vec<(PathBuf, Vec<u8>)>, Vec<Value>) {
    let files = content(run).into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "safetensors"));
    let files = files.map(|(path, bytes)| (path.strip_prefix(run).unwrap().to_owned(), bytes)).collect();
    (files, log_without_clock(run))
}

#[track_caller]
pub fn assert_same(a: &Path, b: &Path, what: &str) {
    let ((files, rows), (other_files, other_rows)) = (left(a), left(b));
    let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&files), names(&other_files), "{what}");
    for ((name, x), (_, y)) in files.iter().zip(&other_files) {
        assert!(x == y, "{what}: {} differs", name.display());
    }
    assert_eq!(rows, other_rows, "{what}");
}

#[test]
fn any_number_of_processes_ends_in_the_same_bytes() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let alone = dir.path().join("alone");
    succeeds(&line(2, ""), &[data.path(), &alone]);
    for launcher in launchers("any_number_of_processes_ends_in_the_same_bytes") {
        for ranks in [2, 4] {
            let out = dir.path().join(format!("{} {ranks}", launcher.name));
            launcher.succeeds(ranks, &line(2, ""), &[data.path(), &out]);
            assert_same(&alone, &out, &format!("{}, {ranks} ranks", launcher.name));
            let manifest: Value = serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
            assert!(manifest["processes"].as_str().unwrap().starts_with(&format!("{ranks} processes on 1 machine, ")));
            assert_eq!(manifest["config"]["shards"], 4);
            // A new run has a shard a process, unless it is given more.
            let out = dir.path().join(format!("{} {ranks} shards", launcher.name));
            let line = format!("train {TINY} --epochs 1 --data {{}} --out {{}}");
            launcher.succeeds(ranks, &line, &[data.path(), &out]);
            let same = dir.path().join(format!("{ranks} shards"));
            if !same.exists() {
                succeeds(&format!("{line} --shards {ranks}"), &[data.path(), &same]);
            }
            assert_same(&same, &out, launcher.name);
        }
    }
}

/// What is formed of the full batch in the middle of a step is that of the full batch on any number of processes, which may change.
#[test]
fn what_takes_the_full_batch_is_shared_to_the_bit() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let all = launchers("what_takes_the_full_batch_is_shared_to_the_bit");
    let resnet = "--arch resnet_small --widths 8 16 --stage-blocks 1 1";
    let cases = [
        "--targets sinkhorn-knopp".to_owned(),
        resnet.to_owned(),
        format!("{resnet} --bn-group 2"),
        "--use-bn-in-head --targets softmax-batch".to_owned(),
    ];
    for (i, more) in cases.iter().enumerate() {
        let (alone, further) = (dir.path().join(format!("alone {i}")), "train --resume --epochs 2 --out {}");
        succeeds(&line(1, more), &[data.path(), &alone]);
        // Launchers take turns: what they do themselves is tried above.
        let shared = all.iter().cycle().skip(i).zip([2, 4]);
        let out = |launcher: &Launcher, ranks| dir.path().join(format!("{} {ranks} {i}", launcher.name));
        for (launcher, ranks) in shared.clone() {
            let out = out(launcher, ranks);
            launcher.succeeds(ranks, &line(1, more), &[data.path(), &out]);
            assert_same(&alone, &out, &format!("{}, {ranks} ranks, {more}", launcher.name));
        }
        succeeds(further, &[&alone]);
        for (launcher, ranks) in shared {
            let out = out(launcher, ranks);
            launcher.succeeds(6 - ranks, further, &[&out]);
            assert_same(&alone, &out, &format!("{}, {ranks} ranks, then {}, {more}", launcher.name, 6 - ranks));
        }
    }
}

/// The process of a rank whose command line has this folder.
#[cfg(target_os = "linux")]
fn process(rank: usize, folder: &Path) -> Option<u32> {
    let has = |file: PathBuf, text: &str| {
        fs::read(file).is_ok_and(|bytes| bytes.split(|b| *b == 0).any(|word| word == text.as_bytes()))
    };
    let names = [format!("OMPI_COMM_WORLD_RANK={rank}"), format!("PMI_RANK={rank}")];
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let (path, id) = (entry.path(), entry.file_name().to_str()?.parse().ok()?);
        let is_rank = names.iter().any(|name| has(path.join("environ"), name));
        (is_rank && has(path.join("cmdline"), folder.to_str()?)).then_some(id)
    })
}

/// Starts a long run, waits for some of its steps, and sends a signal to one of its ranks.
#[cfg(target_os = "linux")]
fn with_signal(launcher: &Launcher, data: &Path, out: &Path, more: &str, signal: &str, rank: usize) -> Done {
    let child = launcher.command(2, &line(EPOCHS, more), &[data, out]).spawn().unwrap();
    let started = Instant::now();
    while fs::read(out.join("log.jsonl")).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count()) < 12 {
        assert!(started.elapsed() < Duration::from_secs(120), "{} does not begin", launcher.name);
        std::thread::sleep(Duration::from_millis(5));
    }
    let id = process(rank, out).unwrap_or_else(|| panic!("{}: no process of rank {rank}", launcher.name));
    assert!(Command::new("kill").args([signal, &id.to_string()]).status().unwrap().success());
    ended(child, &format!("{}: {signal} to rank {rank}", launcher.name))
}

/// Stopped and killed runs go on, on another number of processes and with another launcher, to the same bytes.
#[cfg(target_os = "linux")]
#[test]
fn a_run_that_is_stopped_goes_on_with_any_number_of_processes() {
    let all = launchers("a_run_that_is_stopped_goes_on_with_any_number_of_processes");
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let whole = dir.path().join("whole");
    succeeds(&line(EPOCHS, ""), &[data.path(), &whole]);
    for (i, launcher) in all.iter().enumerate() {
        let other = &all[(i + 1) % all.len()];
        let stopped = dir.path().join(format!("stopped {i}"));
        let done = with_signal(launcher, data.path(), &stopped, "", "-USR1", 1);
        assert_eq!(done.code, 130, "{}: {}", launcher.name, done.err);
        assert!(done.err.contains("go on with: train --resume"), "{}: {}", launcher.name, done.err);
        let bytes = fs::read(stopped.join("checkpoint.safetensors")).unwrap();
        let step: u64 = header(&bytes)["__metadata__"]["step"].as_str().unwrap().parse().unwrap();
        assert_eq!(log(&stopped).last().unwrap()["step"].as_u64(), Some(step - 1), "saved where it stopped");
        other.succeeds(4, "train --resume --threads 1 --out {}", &[&stopped]);
        assert_same(&whole, &stopped, launcher.name);

        let killed = dir.path().join(format!("killed {i}"));
        let done = with_signal(launcher, data.path(), &killed, "", "-KILL", 1);
        assert_ne!(done.code, 0, "{}: {}", launcher.name, done.err);
        // A launcher may end a little before the processes that it ends.
        let ended = Instant::now();
        while (0..2).any(|rank| process(rank, &killed).is_some()) {
            assert!(ended.elapsed() < Duration::from_secs(20), "{}: a process is left", launcher.name);
            std::thread::sleep(Duration::from_millis(5));
        }
        succeeds("train --resume --out {}", &[&killed]);
        for (path, _) in content(&killed).into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "part"))
        {
            fs::remove_file(path).unwrap();
        }
        assert_same(&whole, &killed, launcher.name);
    }
}

/// A rank that stands still is named, and ends the run.
#[cfg(target_os = "linux")]
#[test]
fn a_rank_that_hangs_is_named() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    for launcher in launchers("a_rank_that_hangs_is_named") {
        let out = dir.path().join(launcher.name);
        let done = with_signal(&launcher, data.path(), &out, "--rank-timeout 2s", "-STOP", 1);
        assert_ne!(done.code, 0, "{}: {}", launcher.name, done.err);
        assert!(done.err.contains("rank 1 has not come for 2s"), "{}: {}", launcher.name, done.err);
    }
}

/// What goes wrong for one process ends the run for all in the same step: the state that is left is that of a run that is alone, and
/// the message names who met it.
#[test]
fn what_fails_on_one_process_ends_all_as_it_ends_one() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<(String, Vec<u8>)> = (0..TRAIN + TEST)
        .map(|i| {
            let part = if i < TRAIN { "train" } else { "val" };
            let mut bytes = image_bytes(image::ImageFormat::Png, i as u32);
            bytes.truncate(if i == 29 { bytes.len() / 2 } else { bytes.len() });
            (format!("{part}/{}/{i}.png", i % 2), bytes)
        })
        .collect();
    let named: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let bad = folder(&named);
    let good = cifar();
    let all = launchers("what_fails_on_one_process_ends_all_as_it_ends_one");
    // What the run trains on, what is wrong with it, its exit code, and what it says.
    let cases: [(&Path, &str, i32, &str); 3] = [
        (bad.path(), "--strict", 2, "29.png"),
        (bad.path(), "", 0, "29.png"),
        (good.path(), "--lr 1e30 --clip-grad 0", 2, "stopped being finite"),
    ];
    for (i, (data, more, code, says)) in cases.into_iter().enumerate() {
        let alone = dir.path().join(format!("alone {i}"));
        let one = dino(&line(2, more), &[data, &alone]);
        assert!(one.code == code && one.err.contains(says), "{}", one.err);
        // Another launcher for each: what they do themselves is tried above.
        for launcher in all.iter().cycle().skip(i).take(all.len().min(1)) {
            let out = dir.path().join(format!("{} {i}", launcher.name));
            let done = launcher.run(4, &line(2, more), &[data, &out]);
            assert!(done.code == code && done.err.contains(says), "{}: {}", launcher.name, done.err);
            if code != 0 {
                let told: Vec<&str> = done.err.lines().filter(|line| line.contains(says)).collect();
                assert_eq!(told.len(), 1, "printed once: {}", done.err);
                assert!(told[0].contains("rank "), "{}", told[0]);
            }
            // At which step an unreadable image is named may differ, for loaders are ahead of the steps.
            let rows = |run: &Path| {
                let mut rows = log_without_clock(run);
                rows.iter_mut().filter(|row| row["kind"] == "unreadable").for_each(|row| row["step"] = 0.into());
                rows.sort_by_key(|row| (row["kind"].to_string(), row["step"].as_u64()));
                rows
            };
            assert_eq!(left(&alone).0, left(&out).0, "{}: {more}", launcher.name);
            assert_eq!(rows(&alone), rows(&out), "{}: {more}", launcher.name);
        }
    }
}

/// Evaluations share the images, and give the same numbers.
#[test]
fn evaluations_are_the_same_to_the_bit() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let run = dir.path().join("run");
    succeeds(&format!("train {TINY} --epochs 1 --data {{}} --out {{}}"), &[data.path(), &run]);
    let weights = run.join("teacher.safetensors");
    let all = launchers("evaluations_are_the_same_to_the_bit");
    for launcher in all.iter().take(1) {
        for evaluation in [
            "knn --k 5,10",
            "knn --leave-one-out",
            "linear --epochs 3 --batch 16",
            "linear --epochs 2 --batch 16 --augmented",
            "logistic --shots 2 --draws 2",
            "retrieval",
            "retrieval --size 32 --multi-scale",
        ] {
            let line = format!("eval {evaluation} --checkpoint {{}} --data {{}} --json");
            let paths = [&weights, data.path()];
            assert_eq!(succeeds(&line, &paths), launcher.succeeds(3, &line, &paths), "{}: {line}", launcher.name);
        }
        let outs = ["alone", "shared"].map(|name| dir.path().join(format!("{name} {}", launcher.name)));
        let line = "features --checkpoint {} --data {} --out {}";
        succeeds(line, &[&weights, data.path(), &outs[0]]);
        launcher.succeeds(3, line, &[&weights, data.path(), &outs[1]]);
        for file in ["features.npy", "images.tsv"] {
            let [a, b] = [0, 1].map(|i| fs::read(outs[i].join(file)).unwrap());
            assert!(a == b, "{}: {file}", launcher.name);
        }
    }
}

/// What cannot be shared is refused once, with what would fit.
#[test]
fn what_does_not_fit_is_refused_by_all() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let out = dir.path().join("run");
    let all = launchers("what_does_not_fit_is_refused_by_all");
    for launcher in all.iter().take(1) {
        let refuses = |ranks, line: &str, paths: &[&Path], says: &[&str]| {
            let done = launcher.run(ranks, line, paths);
            assert_eq!(done.code, 2, "{}: {line}: {}", launcher.name, done.err);
            let told: Vec<&str> = done.err.lines().filter(|line| line.starts_with("dino-host: ")).collect();
            assert_eq!(told.len(), 1, "{}: told once: {}", launcher.name, done.err);
            says.iter().for_each(|says| assert!(done.err.contains(says), "{}: {says}: {}", launcher.name, done.err));
            assert!(!out.exists(), "{}: {line}", launcher.name);
        };
        refuses(3, &line(1, ""), &[data.path(), &out], &["4 shards", "3 processes", "4 shards suit 2 processes"]);
        let three = format!("train {TINY} --data {{}} --out {{}}");
        refuses(3, &three, &[data.path(), &out], &["--batch of 8", "3 equal shards", "--batch 6 or 9"]);
        let norms = line(1, "--use-bn-in-head").replace("--micro-batch 2 --shards 4", "--micro-batch 2 --shards 2");
        refuses(2, &norms, &[data.path(), &out], &["each of 2 shards at once: 4 images, not 2", "--micro-batch 4"]);
        refuses(
            2,
            "attend --checkpoint x --image x --out {}",
            &[&out],
            &["attend works in one process, and 2 were launched"],
        );
        refuses(
            2,
            &format!("train {TINY} --lr=-1 --data {{}} --out {{}}"),
            &[data.path(), &out],
            &["--lr", "at least 0"],
        );
        refuses(2, &line(1, "--no-such-flag"), &[data.path(), &out], &["--no-such-flag"]);
        // A process that is started with something else.
        let mut command = launcher.bare();
        for (i, more) in ["", "--lr 0.5"].into_iter().enumerate() {
            command.args(if i == 0 { &[][..] } else { &[":"] }).args(["-n", "1", env!("CARGO_BIN_EXE_dino-host")]);
            command.args(arguments(&line(1, more), &[data.path(), &out]));
        }
        let done = ended(command.spawn().unwrap(), "two command lines");
        assert_eq!(done.code, 2, "{}: {}", launcher.name, done.err);
        assert!(done.err.contains("rank 1 ") && done.err.contains("lr is 0.5, rank 0 has"), "{}", done.err);
        fs::remove_dir_all(&out).unwrap_or_default();
    }
    // A library that is not there is named.
    let started = |variables: &[(&str, &str)]| {
        let mut command = command(&line(1, ""), &[data.path(), &out]);
        let done = command.envs(variables.iter().copied()).output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let (code, err) = started(&[("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("DINO_MPI", "libnone.so.1")]);
    assert!(code == Some(2) && err.contains("libnone.so.1") && err.contains("DINO_MPI="), "{err}");
}

/// A library that belongs to another launcher would start every process alone: two runs that write into one folder.
#[test]
fn a_launcher_with_the_library_of_another_is_an_error() {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let all = launchers("a_launcher_with_the_library_of_another_is_an_error");
    for (launcher, library) in all.iter().filter_map(|launcher| match launcher.name {
        "Open MPI" => Some((launcher, "libmpich.so.12")),
        "MPICH" => Some((launcher, "libmpi.so.40")),
        _ => None,
    }) {
        if all.len() < 2 {
            return eprintln!(
                "SKIPPED a launcher with the library of another: there is one launcher, {}",
                launcher.name
            );
        }
        let out = dir.path().join(launcher.name);
        let mut command = launcher.command(2, &line(1, ""), &[data.path(), &out]);
        let done = ended(command.env("DINO_MPI", library).spawn().unwrap(), launcher.name);
        assert_eq!(done.code, 2, "{}", done.err);
        assert!(done.err.contains("belongs to another launcher"), "{}", done.err);
        assert!(!out.exists(), "nothing was written");
    }
}

/// Two machines with a network between them, taken down when it is dropped.
#[cfg(target_os = "linux")]
struct Machines {
    number: String,
}

#[cfg(target_os = "linux")]
impl Machines {
    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/two_machines.sh");

    fn new() -> Result<Machines, String> {
        let machines = Machines { number: (std::process::id() % 256).to_string() };
        let up = machines.script(&["up"]).output().map_err(|e| e.to_string())?;
        let why = String::from_utf8_lossy(&up.stderr).lines().last().unwrap_or("the script failed").to_owned();
        if up.status.success() { Ok(machines) } else { Err(why) }
    }

    fn script(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Machines::SCRIPT);
        command.args(arguments).env("DINO_MACHINES", &self.number);
        command
    }
}

#[cfg(target_os = "linux")]
impl Drop for Machines {
    fn drop(&mut self) {
        let _ = self.script(&["down"]).output();
    }
}

/// Over a network the bytes are the same, and the second machine needs nothing of the run's folder, neither to begin nor to go on.
#[cfg(target_os = "linux")]
#[test]
fn two_machines_end_in_the_same_bytes() {
    let test = "two_machines_end_in_the_same_bytes";
    let all = launchers(test);
    let machines = match Machines::new() {
        Ok(machines) => machines,
        Err(why) => return eprintln!("SKIPPED {test}: there can be no second machine here: {why}"),
    };
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    let runs = dir.path().join("runs");
    fs::create_dir(&runs).unwrap();
    let (alone, further) = (dir.path().join("alone"), "train --resume --epochs 3 --out {}");
    succeeds(&line(2, ""), &[data.path(), &alone]);
    succeeds(further, &[&alone]);
    let [first, second] = [1, 2].map(|i| format!("10.77.{}.{i}", machines.number));
    let (hosts, net) = (format!("{first},{second}"), format!("10.77.{}.0/24", machines.number));
    for launcher in all {
        let over_network = match launcher.name {
            "Open MPI" => format!(
                "--host {hosts} -mca plm_rsh_agent {} -mca btl self,tcp -mca btl_tcp_if_include {net} \
                 -mca oob_tcp_if_include {net}",
                Machines::SCRIPT
            ),
            _ => format!("-hosts {hosts} -launcher ssh -launcher-exec {}", Machines::SCRIPT),
        };
        let out = runs.join(launcher.name.replace(' ', "-"));
        for own in [arguments(&line(2, ""), &[data.path(), &out]), arguments(further, &[&out])] {
            let (program, dino) = (launcher.program.display(), env!("CARGO_BIN_EXE_dino-host"));
            let text = format!("{program} {over_network} -n 2 {dino} {}", own.join(" "));
            let mut command = machines.script(&[&first, &text]);
            launcher.prepare(&mut command);
            command.env("DINO_HIDDEN", &runs);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let done = ended(command.spawn().unwrap(), launcher.name);
            assert_eq!(done.code, 0, "{}: {}", launcher.name, done.err);
            assert!(done.err.contains("2 processes on 2 machines"), "{}: {}", launcher.name, done.err);
        }
        assert_same(&alone, &out, launcher.name);
    }
}
