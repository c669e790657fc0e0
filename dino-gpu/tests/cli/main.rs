//! The program as a user meets it, on the emulation: what it prints where there is no GPU, too old a GPU, too little memory, a device that
//! is lost, and that none of these costs a checkpoint.

mod check;
mod gpus;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The emulated driver, or none where it cannot be built.
fn emulation() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| match tests::gpu::build_emulation() {
        Ok(out) => Some(out.join("libcuda_emulated.so")),
        Err(why) => {
            eprintln!("SKIPPED tests that need the emulation: {why}");
            None
        }
    });
    built.as_deref()
}

/// Runs a command line (split at blanks, then `more`) with the driver at `driver` and the emulation's settings.
fn run(line: &str, more: &[&Path], driver: &Path, settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-gpu"));
    command.args(line.split_whitespace()).args(more).env("DINO_LIBCUDA", driver);
    command.env("DINO_CUBLASLT", "/nowhere"); // the kernels of this project
    settings.iter().for_each(|(name, value)| {
        command.env(format!("EMULATION_{name}"), value);
    });
    command.output().expect("the program runs")
}

fn printed(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

#[track_caller]
fn refuses(o: &Output, expected: &[&str]) {
    let text = printed(o);
    assert_eq!(o.status.code(), Some(2), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    for part in expected {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

/// Six steps of a tiny model.
const TRAIN: &str = "train --data builtin --patch-size 8 --embed-dim 16 --depth 1 --heads 2 --out-dim 32 --hidden 16 --bottleneck 8 \
    --global-size 16 --local-crops-number 0 --batch 400 --micro-batch 2 --epochs 1 --warmup-epochs 0 --knn-every 0 \
    --workspace 256 --seed 3 --threads 1 --out";

#[test]
fn without_a_driver_it_says_so_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let o = run(TRAIN, &[&out], Path::new("/nowhere/libcuda.so.1"), &[]);
    refuses(&o, &["dino-gpu: no NVIDIA driver found (/nowhere/libcuda.so.1", "dino-host"]);
    assert!(printed(&o).lines().count() == 2 && !out.exists(), "{}", printed(&o));
    // What needs no GPU works without one.
    let o = run("plan --small --device cuda --json", &[], Path::new("/nowhere"), &[]);
    assert!(o.status.success(), "{}", printed(&o));
    let plan: Value = serde_json::from_slice(&o.stdout).unwrap();
    let f32_plan = run("plan --small --device cuda --precision f32 --json", &[], Path::new("/nowhere"), &[]);
    let f32_plan: Value = serde_json::from_slice(&f32_plan.stdout).unwrap();
    let bytes = |plan: &Value, name: &str| {
        let items = plan["memory"].as_array().unwrap().iter().filter(|item| item["name"] == name);
        items.map(|item| item["bytes"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(plan["device"], "cuda");
    assert_eq!(2 * bytes(&plan, "activations"), bytes(&f32_plan, "activations"));
    assert_eq!(2 * bytes(&plan, "weights as bf16"), bytes(&plan, "weights"));
    assert_eq!(bytes(&f32_plan, "weights as bf16"), 0);
}

#[test]
fn an_unfit_gpu_is_named() {
    let Some(driver) = emulation() else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    refuses(&run(TRAIN, &[&out], driver, &[("DEVICES", "0")]), &["GPU", "hint"]);
    let old = [("CAPABILITY_MAJOR", "7"), ("CAPABILITY_MINOR", "5")];
    refuses(&run(TRAIN, &[&out], driver, &old), &["compute capability 7.5", "8.0"]);
    let o = run(TRAIN, &[&out], driver, &[("MEMORY_LIMIT", "100000")]);
    refuses(&o, &["not enough memory on the GPU", "--mem-limit"]);
    assert!(!out.join("checkpoint.safetensors").exists());
}

#[test]
fn a_lost_device_leaves_the_last_checkpoint() {
    let Some(driver) = emulation() else { return };
    let folder = tempfile::tempdir().unwrap();
    let line = TRAIN.replace("--batch 400 --micro-batch 2", "--batch 4 --micro-batch 4").replace("builtin", "DATA");
    let data = folder.path().join("images");
    std::fs::create_dir(&data).unwrap();
    tests::gpu::images(&data, 16, 20);
    let line = line.replace("DATA", data.to_str().unwrap()).replace("--epochs 1", "--epochs 3");
    let (kept, lost) = (folder.path().join("kept"), folder.path().join("lost"));
    let o = run(&line, &[&kept], driver, &[]);
    assert!(o.status.success(), "{}", printed(&o));

    // Somewhere in the second epoch; the first is saved.
    let o = run(&line, &[&lost], driver, &[("FAIL_AFTER", "700"), ("FAIL_CODE", "719")]);
    refuses(&o, &["checkpoint", "--resume", "719"]);
    let saved = std::fs::read(lost.join("checkpoint.safetensors")).unwrap();
    assert!(!lost.join("checkpoint.part").exists());
    let o = run("train --resume --workspace 256 --threads 1 --out", &[&lost], driver, &[]);
    assert!(o.status.success(), "{}", printed(&o));
    let end = |out: &Path| std::fs::read(out.join("checkpoint.safetensors")).unwrap();
    assert!(end(&lost) != saved && end(&lost) == end(&kept), "the resumed run has other weights");
}

/// Images in a folder, and a line that trains three epochs of four steps on them.
fn short_run(folder: &Path) -> String {
    let data = folder.join("images");
    std::fs::create_dir(&data).unwrap();
    tests::gpu::images(&data, 16, 16);
    let line =
        TRAIN.replace("--batch 400 --micro-batch 2", "--batch 4 --micro-batch 4").replace("--epochs 1", "--epochs 3");
    line.replace("builtin", data.to_str().unwrap())
}

/// Where a step cannot be captured, whichever of its parts it is, the run goes on kernel by kernel, with the bits of one that was begun so.
#[test]
fn without_a_capture_it_goes_on_kernel_by_kernel() {
    let Some(driver) = emulation() else { return };
    let folder = tempfile::tempdir().unwrap();
    let line = short_run(folder.path());
    let end = |out: &Path| std::fs::read(out.join("checkpoint.safetensors")).unwrap();
    let kept = folder.path().join("kept");
    let o = run(&line, &[&kept], driver, &[]);
    assert!(o.status.success() && !printed(&o).contains("kernel by kernel"), "{}", printed(&o));
    for capture in ["0", "1", "2"] {
        let out = folder.path().join(capture);
        let o = run(&line, &[&out], driver, &[("FAIL_CAPTURE", capture)]);
        let text = printed(&o);
        assert!(o.status.success(), "{text}");
        assert_eq!(text.matches("as asked").count(), 1, "the emulation had captures to fail: {text}");
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("launched kernel by kernel")).collect();
        assert!(lines.len() == 1 && lines[0].contains("901"), "{text}");
        assert!(end(&out) == end(&kept), "kernel by kernel: other weights");
    }
}

/// The lines that report an error: one, and its hint.
#[track_caller]
fn fails_in_one_line(o: &Output, expected: &[&str]) {
    refuses(o, expected);
    let text = printed(o);
    let errors = text.lines().filter(|line| line.starts_with("dino-gpu: ") || line.contains("panicked")).count();
    assert_eq!(errors, 1, "{text}");
}

#[test]
fn no_memory_at_any_allocation_is_one_line() {
    let Some(driver) = emulation() else { return };
    let folder = tempfile::tempdir().unwrap();
    let line = short_run(folder.path());
    let mut refused = 0;
    for number in 0.. {
        let out = folder.path().join(number.to_string());
        let text = number.to_string();
        let o = run(&line, &[&out], driver, &[("FAIL_ALLOCATION", &text)]);
        if !printed(&o).contains("as asked") {
            assert!(o.status.success() && refused > 20, "{refused} of {number} allocations: {}", printed(&o));
            break;
        }
        // Figures are drawn where there is memory for them; the run goes on without.
        if printed(&o).contains("note: no attention is drawn: cannot allocate") {
            assert!(o.status.success(), "{}", printed(&o));
            continue;
        }
        refused += 1;
        fails_in_one_line(&o, &["CUDA_ERROR_OUT_OF_MEMORY", "--mem-limit"]);
        assert!(!out.join("checkpoint.part").exists());
    }
}

/// Wherever a kernel fails, in the first step, in a captured one or at the end, and with whichever code that stays.
#[test]
fn a_kernel_that_fails_is_one_line() {
    let Some(driver) = emulation() else { return };
    let folder = tempfile::tempdir().unwrap();
    let line = short_run(folder.path());
    for (after, code) in [("0", "700"), ("1", "719"), ("60", "700"), ("200", "716"), ("500", "719"), ("900", "46")] {
        let out = folder.path().join(after);
        let o = run(&line, &[&out], driver, &[("FAIL_AFTER", after), ("FAIL_CODE", code)]);
        fails_in_one_line(&o, &[code, "nvidia-smi", "--resume"]);
        assert!(!out.join("checkpoint.part").exists());
        // What was saved before is whole: it goes on, to the end.
        if out.join("checkpoint.safetensors").exists() {
            let o = run("train --resume --workspace 256 --threads 1 --out", &[&out], driver, &[]);
            assert!(o.status.success(), "after {after}: {}", printed(&o));
        }
    }
    assert!(folder.path().join("900/checkpoint.safetensors").exists(), "the last of them fails after an epoch");
}

/// A residual network trains, one step a graph or kernel by kernel, and `plan` counts the scratch memory of its convolutions and norms.
#[test]
fn a_residual_network_trains() {
    let Some(driver) = emulation() else { return };
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("images");
    std::fs::create_dir(&data).unwrap();
    tests::gpu::images(&data, 16, 8);
    let model = "--arch resnet_small --widths 8 12 --stage-blocks 1 1 --out-dim 32 --hidden 16 --bottleneck 8 --global-size 16 \
        --local-size 8 --local-crops-number 1 --batch 4";
    let line = format!(
        "train --data {} {model} --epochs 2 --warmup-epochs 0 --knn-every 0 --workspace 256 --threads 1 --out",
        data.display()
    );
    let (graph, direct) = (folder.path().join("graph"), folder.path().join("direct"));
    let o = run(&line, &[&graph], driver, &[]);
    assert!(o.status.success(), "{}", printed(&o));
    let o = run(&format!("train --launch direct {}", line.strip_prefix("train ").unwrap()), &[&direct], driver, &[]);
    assert!(o.status.success(), "{}", printed(&o));
    let end = |out: &Path| std::fs::read(out.join("checkpoint.safetensors")).unwrap();
    assert!(end(&graph) == end(&direct), "kernel by kernel: other weights");

    let o = run(&format!("plan {model} --device cuda --json"), &[], Path::new("/nowhere"), &[]);
    let plan: Value = serde_json::from_slice(&o.stdout).unwrap();
    let items = plan["memory"].as_array().unwrap();
    let scratch = items.iter().find(|item| item["name"] == "scratch of convolutions and batch norms").expect("a row");
    // The largest filter is 3 x 3 from 12 channels to 12; a norm has two sums for each of its blocks and channels.
    assert!(scratch["bytes"].as_u64().unwrap() > 4 * 9 * 12 * 12, "{scratch}");
}
