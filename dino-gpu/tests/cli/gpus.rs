//! Several processes with a GPU each, on the emulated driver and the emulated NCCL: they end in the bytes of one process, whoever starts
//! them; and what happens when one of them fails.

use super::{emulation, printed, refuses};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The program with the emulation's libraries and some GPUs.
fn program(line: &str, paths: &[&Path], driver: &Path, gpus: usize) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-gpu"));
    prepared(&mut command, line, paths, driver, gpus);
    command
}

fn prepared(command: &mut Command, line: &str, paths: &[&Path], driver: &Path, gpus: usize) {
    let mut paths = paths.iter();
    for argument in line.split_whitespace() {
        match argument {
            "{}" => command.arg(paths.next().expect("a path for every {}")),
            argument => command.arg(argument),
        };
    }
    command.env("DINO_LIBCUDA", driver).env("DINO_CUBLASLT", "/nowhere");
    command.env("DINO_NCCL", driver.with_file_name("libnccl_emulated.so"));
    command.env("EMULATION_DEVICES", gpus.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
}

#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let o = ended(command, |_| ());
    assert!(o.status.success(), "{command:?}: {}", printed(&o));
    printed(&o)
}

/// Runs a command to its end, which none may fail to reach; `meanwhile` is called again and again.
fn ended(command: &mut Command, mut meanwhile: impl FnMut(u32)) -> Output {
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(300) {
            child.kill().unwrap();
            panic!("{command:?} hangs");
        }
        meanwhile(child.id());
        std::thread::sleep(Duration::from_millis(5));
    }
    let o = child.wait_with_output().unwrap();
    assert!(!printed(&o).contains("panicked"), "{}", printed(&o));
    o
}

/// A model with a block of more than the 65,536 gradients that are worth a sum of their own, and four shards.
const MODEL: &str = "--patch-size 8 --embed-dim 96 --depth 2 --heads 2 --out-dim 32 --hidden 16 --bottleneck 8 --global-size 16 \
    --local-size 8 --local-crops-number 1 --batch 8 --shards 4 --warmup-epochs 0 --freeze-last-layer 0 --drop-path-rate 0.1 \
    --knn-every 0 --workspace 256 --seed 3 --threads 1";

fn line(more: &str) -> String {
    let epochs = if more.contains("--epochs") { "" } else { "--epochs 2" };
    format!("train {MODEL} --micro-batch 2 {epochs} {more} --data {{}} --out {{}}")
}

/// The same of a model whose steps take little time.
fn quick(more: &str) -> String {
    line(more).replace("--embed-dim 96 --depth 2", "--embed-dim 16 --depth 1")
}

/// A folder of images, and one for runs.
fn folders() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("images");
    fs::create_dir(&data).unwrap();
    tests::gpu::images(&data, 16, 20);
    (folder, data)
}

/// Weights, teacher and optimizer at the end of a run.
fn end(out: &Path) -> Vec<u8> {
    fs::read(out.join("checkpoint.safetensors")).unwrap()
}

/// Calls of NCCL on all ranks, as the emulation reports them.
fn calls(printed: &str) -> u64 {
    let numbers = printed.split("calls ").skip(1).filter_map(|rest| rest.split(',').next()?.parse::<u64>().ok());
    numbers.sum()
}

#[test]
fn any_number_of_gpus_ends_in_the_same_bytes() {
    let Some(driver) = emulation() else { return };
    let (folder, data) = folders();
    let at = |name: &str| folder.path().join(name);
    let alone = at("alone");
    succeeds(&mut program(&line(""), &[&data, &alone], driver, 1));
    let mut counted = Vec::new();
    for (name, more) in [
        ("all", "--gpus all"),
        ("late", "--gpus all --overlap off"),
        ("direct", "--gpus 3,0,1,2 --launch direct"),
        ("two", "--gpus 2,1"),
        ("one", "--gpus 3"),
    ] {
        let out = at(name);
        let printed = succeeds(program(&line(more), &[&data, &out], driver, 4).env("EMULATION_REPORT", "1"));
        assert!(end(&alone) == end(&out), "{more}: other weights");
        assert_eq!(printed.matches("training into").count(), 1, "one process prints: {printed}");
        counted.push(calls(&printed));
    }
    // What is summed beside the backward pass is not summed again after it, and goes in more pieces.
    assert!(counted[0] > counted[1] && counted[1] > 0, "{counted:?}");
    // Several micro-batches a shard, of which the last one's passes alone are summed beside; a crop at a time.
    let parts = |more: &str| line(&format!("--stream-crops {more}")).replace("--batch 8", "--batch 16");
    let [one, four] = ["parts alone", "parts shared"].map(at);
    succeeds(&mut program(&parts(""), &[&data, &one], driver, 1));
    succeeds(&mut program(&parts("--gpus all"), &[&data, &four], driver, 4));
    assert!(end(&one) == end(&four), "several micro-batches: other weights");
    // Three shards: what is added by halves is no power of two.
    let three = |gpus: &str| quick(gpus).replace("--shards 4", "--shards 3").replace("--batch 8", "--batch 6");
    let [one, shared] = ["three alone", "three shared"].map(at);
    succeeds(&mut program(&three(""), &[&data, &one], driver, 1));
    succeeds(&mut program(&three("--gpus 0,1,2"), &[&data, &shared], driver, 3));
    assert!(end(&one) == end(&shared), "three shards: other weights");
}

/// Targets of the full batch, and batch norms over it, in backbone and head: shards exchange in the middle of a step, and those of one process
/// go through it side by side.
#[test]
fn what_depends_on_the_full_batch_is_shared() {
    let Some(driver) = emulation() else { return };
    let (folder, data) = folders();
    for (i, more) in [
        "--targets sinkhorn-knopp",
        "--use-bn-in-head",
        "--use-bn-in-head --out-dim 8192 --bottleneck 16",
        "--arch resnet_small --widths 8 12 --stage-blocks 1 1",
        "--arch resnet_small --widths 8 12 --stage-blocks 1 1 --targets softmax-batch --use-bn-in-head --precision f32",
    ]
    .into_iter()
    .enumerate()
    {
        let mut line = quick(more);
        if more.contains("--out-dim") {
            line = line.replace("--out-dim 32", "").replace("--bottleneck 8", ""); // as many gradients as are worth a sum of their own
        }
        if more.contains("resnet") {
            line = line
                .replace("--patch-size 8 --embed-dim 16 --depth 1 --heads 2", "")
                .replace("--drop-path-rate 0.1", "");
        }
        let run = |name: &str, gpus: &str| {
            let out = folder.path().join(format!("{i} {name}"));
            succeeds(&mut program(&line.replace("--data", &format!("{gpus} --data")), &[&data, &out], driver, 4));
            end(&out)
        };
        let alone = run("alone", "");
        for (name, gpus) in [("two", "--gpus 0,1"), ("four", "--gpus all"), ("direct", "--gpus 1,2 --launch direct")] {
            assert!(alone == run(name, gpus), "{more}: {name}: other weights");
        }
    }
}

#[test]
fn launchers_start_gpus_too() {
    let Some(driver) = emulation() else { return };
    let (folder, data) = folders();
    let alone = folder.path().join("alone");
    succeeds(&mut program(&quick(""), &[&data, &alone], driver, 1));
    // MPI carries what hosts exchange, NCCL the gradients.
    for (launcher, name, more) in [
        ("mpirun.openmpi", "Open MPI", &["--oversubscribe", "--bind-to", "none"][..]),
        ("mpiexec.mpich", "HYDRA", &[][..]),
    ] {
        let found = Command::new(launcher).arg("--version").output();
        if !found.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(name)) {
            eprintln!("SKIPPED launchers_start_gpus_too with {launcher}: it is not there");
            continue;
        }
        let out = folder.path().join(launcher);
        let mut command = Command::new(launcher);
        command.args(more).args(["-n", "2", env!("CARGO_BIN_EXE_dino-gpu")]);
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        prepared(&mut command, &quick(""), &[&data, &out], driver, 2);
        succeeds(&mut command);
        assert!(end(&alone) == end(&out), "{launcher}: other weights");
        // With one GPU for both it is none.
        let same = folder.path().join(format!("{launcher} same"));
        let mut command = Command::new(launcher);
        command.args(more).args(["-n", "2", env!("CARGO_BIN_EXE_dino-gpu")]);
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        prepared(&mut command, &quick(""), &[&data, &same], driver, 1);
        refuses(&ended(&mut command, |_| ()), &["ranks 0 and 1 on", "have the same GPU", "hint"]);
    }
    // As torchrun does it: variables, and nothing else.
    let out = folder.path().join("torchrun");
    let ranks: Vec<_> = (0..2)
        .map(|rank: usize| {
            let mut command = program(&quick(""), &[&data, &out], driver, 2);
            command.envs([("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("MASTER_PORT", "29500")]);
            command.envs([("RANK", rank.to_string()), ("LOCAL_RANK", rank.to_string())]);
            std::thread::spawn(move || succeeds(&mut command))
        })
        .collect();
    let printed: Vec<String> = ranks.into_iter().map(|rank| rank.join().expect("a rank ends well")).collect();
    assert!(printed[0].contains("2 processes on 1 machine, NCCL 2.") && printed[1].is_empty(), "{printed:?}");
    assert!(end(&alone) == end(&out), "torchrun: other weights");
}

#[test]
fn features_are_the_same_on_several_gpus() {
    let Some(driver) = emulation() else { return };
    let (folder, data) = folders();
    let run = folder.path().join("run");
    succeeds(&mut program(&quick(""), &[&data, &run], driver, 1));
    let weights = run.join("teacher.safetensors");
    let outs = ["alone", "shared"].map(|name| folder.path().join(name));
    for (out, more) in outs.iter().zip(["", "--gpus all"]) {
        let line = format!("features --checkpoint {{}} --data {{}} --out {{}} --workspace 256 --threads 1 {more}");
        succeeds(&mut program(&line, &[&weights, &data, out], driver, 3));
    }
    for file in ["features.npy", "images.tsv"] {
        let [a, b] = outs.each_ref().map(|out| fs::read(out.join(file)).unwrap());
        assert!(a == b, "{file}");
    }
}

/// The process of a rank whose command line has this folder.
#[cfg(target_os = "linux")]
fn process(rank: usize, folder: &Path) -> Option<u32> {
    let has = |file: PathBuf, text: &str| {
        fs::read(file).is_ok_and(|bytes| bytes.split(|b| *b == 0).any(|part| part == text.as_bytes()))
    };
    let name = format!("DINO_RANK={rank}");
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let (path, id) = (entry.path(), entry.file_name().to_str()?.parse().ok()?);
        (has(path.join("environ"), &name) && has(path.join("cmdline"), folder.to_str()?)).then_some(id)
    })
}

/// Starts a long run on two GPUs, waits for some of its steps, and sends a signal to one of its ranks, or to the process that has started
/// them.
#[cfg(target_os = "linux")]
fn with_signal(signal: &str, rank: Option<usize>, [data, out]: [&Path; 2], driver: &Path, more: &str) -> Output {
    let mut sent = false;
    let lines = || fs::read(out.join("log.jsonl")).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count());
    let more = if more.contains("--gpus") { more.to_owned() } else { format!("--gpus 0,1 {more}") };
    let line = quick(&format!("--epochs 40 {more}"));
    // Three processes take three shards.
    let line = if more.contains("0,1,2") {
        line.replace("--shards 4", "--shards 3").replace("--batch 8", "--batch 6")
    } else {
        line
    };
    ended(&mut program(&line, &[data, out], driver, 3), |parent| {
        if !sent && lines() >= 5 {
            let id = rank.map_or(parent, |rank| process(rank, out).expect("a process of that rank"));
            assert!(Command::new("kill").args([signal, &id.to_string()]).status().unwrap().success());
            sent = true;
        }
    })
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_that_is_stopped_goes_on_with_any_number_of_gpus() {
    let Some(driver) = emulation() else { return };
    let (folder, data) = folders();
    let whole = folder.path().join("whole");
    succeeds(&mut program(&quick("--epochs 40"), &[&data, &whole], driver, 1));
    for (signal, rank, code) in [("-TERM", None, 130), ("-USR1", Some(1), 130), ("-KILL", Some(1), 2)] {
        let out = folder.path().join(format!("{signal} {rank:?}"));
        let o = with_signal(signal, rank, [&data, &out], driver, "");
        let text = printed(&o);
        assert_eq!(o.status.code(), Some(code), "{signal}: {text}");
        let expected = if code == 130 { "go on with: train --resume" } else { "rank 1 of 2 was ended by signal 9" };
        assert_eq!(text.matches(expected).count(), 1, "{signal}: {text}");
        // Nobody is left behind.
        assert!((0..2).all(|rank| process(rank, &out).is_none()), "{signal}: a process is left");
        let resume = "train --resume --gpus all --workspace 256 --threads 1 --out {}";
        succeeds(&mut program(resume, &[&out], driver, 4));
        assert!(end(&out) == end(&whole), "{signal}: other weights");
    }
}

/// Under `nohup` the end of a session ends nothing: neither the processes nor the one that has started them.
#[cfg(target_os = "linux")]
#[test]
fn an_ignored_signal_stays_ignored() {
    let Some(driver) = emulation() else { return };
    let (folder, data) = folders();
    let out = folder.path().join("run");
    let mut command = Command::new("nohup");
    command.arg(env!("CARGO_BIN_EXE_dino-gpu"));
    prepared(&mut command, &quick("--epochs 20 --gpus 0,1"), &[&data, &out], driver, 2);
    let mut sent = false;
    let o = ended(&mut command, |parent| {
        if !sent && fs::read(out.join("log.jsonl")).is_ok_and(|text| !text.is_empty()) {
            assert!(Command::new("kill").args(["-HUP", &parent.to_string()]).status().unwrap().success());
            sent = true;
        }
    });
    assert!(sent && o.status.success(), "{}", printed(&o));
}

#[cfg(target_os = "linux")]
#[test]
fn a_rank_that_hangs_is_named() {
    let Some(driver) = emulation() else { return };
    let (folder, data) = folders();
    for (gpus, ranks) in [("0,1", 2), ("0,1,2", 3)] {
        let out = folder.path().join(gpus);
        let more = format!("--rank-timeout 3s --gpus {gpus}");
        let o = with_signal("-STOP", Some(1), [&data, &out], driver, &more);
        refuses(&o, &["rank 1 has not come for 3 s", "--rank-timeout"]);
        assert_eq!(printed(&o).matches("has not come").count(), 1, "{}", printed(&o));
        assert!((0..ranks).all(|rank| process(rank, &out).is_none()), "a process is left");
    }
}

#[test]
fn what_fails_on_one_gpu_ends_all() {
    let Some(driver) = emulation() else { return };
    let (folder, data) = folders();
    let [alone, shared] = ["alone", "shared"].map(|name| folder.path().join(name));
    let away = "--lr 1e30 --clip-grad 0";
    let o = ended(&mut program(&quick(away), &[&data, &alone], driver, 1), |_| ());
    refuses(&o, &["stopped being finite"]);
    let o = ended(&mut program(&quick(&format!("{away} --gpus all")), &[&data, &shared], driver, 4), |_| ());
    refuses(&o, &["rank ", "stopped being finite"]);
    assert_eq!(printed(&o).matches("stopped being finite").count(), 1, "printed once: {}", printed(&o));
    assert!(end(&alone) == end(&shared));
    // An image that cannot be read.
    let image = fs::read_dir(&data).unwrap().flatten().map(|e| e.path()).find(|p| p.is_file());
    let image = image.unwrap_or_else(|| {
        let class = fs::read_dir(&data).unwrap().flatten().next().unwrap().path();
        fs::read_dir(class).unwrap().flatten().next().unwrap().path()
    });
    fs::write(&image, "no image").unwrap();
    let strict = folder.path().join("strict");
    let o = ended(&mut program(&quick("--strict --gpus all"), &[&data, &strict], driver, 4), |_| ());
    refuses(&o, &["rank ", image.file_name().unwrap().to_str().unwrap()]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(driver) = emulation() else { return };
    let (folder, data) = folders();
    let out = folder.path().join("run");
    for (more, expected) in [
        ("--gpus 0,1,2", &["3 processes", "hint"][..]),
        ("--gpus 0,7", &["there is no GPU 7: the driver sees 4", "hint"]),
        ("--gpus 0,0", &["GPU 0 is named twice"]),
        ("--gpus x", &["all", "0,1,2,3"]),
        ("--gpus all --use-bn-in-head --bn-group 2", &["--bn-group", "dino-host can"]),
    ] {
        let o = ended(&mut program(&quick(more), &[&data, &out], driver, 4), |_| ());
        refuses(&o, expected);
    }
    let o = ended(
        program(&quick("--gpus 0,1"), &[&data, &out], driver, 2).env("DINO_NCCL", "/nowhere/libnccl.so.2"),
        |_| (),
    );
    refuses(&o, &["several GPUs need NCCL", "/nowhere/libnccl.so.2", "DINO_NCCL"]);
    let o = ended(&mut program("attend --gpus 0,1 --checkpoint none --image none --out none", &[], driver, 2), |_| ());
    refuses(&o, &["one process", "hint"]);
    assert!(!out.join("checkpoint.safetensors").exists());
}
