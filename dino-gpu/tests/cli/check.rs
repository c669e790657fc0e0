//! `dino-gpu check`: the first command of a new user.

use super::{emulation, printed, refuses, run};
use std::path::Path;
use std::process::{Command, Output};

fn lines(o: &Output) -> Vec<String> {
    String::from_utf8_lossy(&o.stdout).lines().map(str::to_string).collect()
}

#[test]
fn what_was_found_and_how_it_agrees() {
    let Some(driver) = emulation() else { return };
    let o = run("check", &[], driver, &[("CAPABILITY_MAJOR", "8"), ("CAPABILITY_MINOR", "6")]);
    let found = lines(&o);
    assert_eq!(o.status.code(), Some(0), "{found:?} {}", printed(&o));
    let first =
        ["driver: CUDA ", "GPU: ", "memory: ", "kernels: the code for compute capability 8.0", "cuBLASLt: none "];
    for (line, begins) in found.iter().zip(first) {
        assert!(line.starts_with(begins), "{found:?}");
    }
    assert!(found[1].contains("compute capability 8.6") && found[2].contains("ECC off"), "{found:?}");
    assert!(found[4].contains("half as fast") && found[4].contains("DINO_CUBLASLT"), "{found:?}");
    // Five steps in f32 and in bf16, steps as graphs, and the end.
    assert_eq!(found.iter().filter(|line| line.starts_with("good: f32, ")).count(), 5);
    assert_eq!(found.iter().filter(|line| line.starts_with("good: bf16, ")).count(), 5);
    assert!(found[found.len() - 2].contains("graphs") && found[found.len() - 1].starts_with("all good: "), "{found:?}");

    let o = run("check", &[], driver, &[("CAPABILITY_MAJOR", "10")]);
    assert!(lines(&o)[3].starts_with("kernels: PTX 8.0, which the driver compiles"), "{:?}", lines(&o));
}

/// With cuBLASLt its matmuls are compared as well.
#[test]
fn with_cublaslt() {
    let Some(driver) = emulation() else { return };
    let library = driver.with_file_name("libcublaslt_emulated.so");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-gpu"));
    let o = command.arg("check").env("DINO_LIBCUDA", driver).env("DINO_CUBLASLT", &library).output().unwrap();
    let found = lines(&o);
    assert_eq!(o.status.code(), Some(0), "{found:?} {}", printed(&o));
    assert!(found[4].starts_with("cuBLASLt: 13.0.2, ") && found[4].ends_with("libcublaslt_emulated.so"), "{found:?}");
    assert_eq!(found.iter().filter(|line| line.starts_with("good: bf16 with cuBLASLt, ")).count(), 5, "{found:?}");
}

#[test]
fn what_cannot_be_used_is_named() {
    let Some(driver) = emulation() else { return };
    refuses(&run("check", &[], Path::new("/nowhere/libcuda.so.1"), &[]), &["no NVIDIA driver found"]);
    refuses(&run("check", &[], driver, &[("DEVICES", "0")]), &["GPU", "hint"]);
    let o = run("check", &[], driver, &[("CAPABILITY_MAJOR", "7")]);
    refuses(&o, &["compute capability 7.0", "8.0"]);
    assert!(lines(&o)[0].starts_with("driver: "), "what was found is printed before: {:?}", lines(&o));
    let o = run("check", &[], driver, &[("FAIL_AFTER", "100"), ("FAIL_CODE", "719")]);
    refuses(&o, &["719"]);
    assert!(!lines(&o).iter().any(|line| line.starts_with("all good")), "{:?}", lines(&o));
}

/// A driver that takes no cubin compiles the PTX; one that does not take that either is named.
#[test]
fn kernels_that_are_refused_are_compiled_from_ptx() {
    let Some(driver) = emulation() else { return };
    let o = run("check", &[], driver, &[("FAIL_MODULE", "1")]);
    assert_eq!(o.status.code(), Some(0), "{}", printed(&o));
    assert_eq!(printed(&o).matches("the driver compiled the kernels from PTX").count(), 1, "{}", printed(&o));
    refuses(&run("check", &[], driver, &[("FAIL_MODULE", "2")]), &["does not take the kernels", "525 or later"]);
}

/// A kernel with a mistake: a driver's compiler, or a card, that gives other numbers.
#[test]
fn an_op_that_differs_is_named() {
    if emulation().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kernels = folder.path().join("kernels");
    std::fs::create_dir(&kernels).unwrap();
    for entry in std::fs::read_dir(project.join("kernels")).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, kernels.join(from.file_name().unwrap())).unwrap();
    }
    let source = std::fs::read_to_string(kernels.join("sgd.cu")).unwrap();
    let right = "momentum * buffer[at]";
    assert!(source.contains(right), "the mistake has a place: {source}");
    std::fs::write(kernels.join("sgd.cu"), source.replacen(right, "0.99f * momentum * buffer[at]", 1)).unwrap();
    let out = folder.path().join("emulation");
    let mut build = Command::new("sh");
    build.arg(project.join("emulate/build.sh")).arg(&out).env("KERNELS", kernels.join("kernels.cu"));
    let built = build.output().unwrap();
    assert!(built.status.success(), "{}", printed(&built));

    let o = run("check", &[], &out.join("libcuda_emulated.so"), &[]);
    refuses(
        &o,
        &["differs from the CPU: f32, a ViT whose crops go in several passes", ": optimize by ", "allowed", "hint"],
    );
    let errors = printed(&o).lines().filter(|line| line.starts_with("dino-gpu: ")).count();
    assert_eq!(errors, 1, "{}", printed(&o));
    assert!(lines(&o).iter().any(|line| line.starts_with("DIFFERS: ")), "{:?}", lines(&o));
}
