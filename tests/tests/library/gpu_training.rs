//! Full runs on the GPU backend: the losses of the CPU, the same bits however a step is launched, and checkpoints that either
//! backend goes on from.

use dino_gpu::{Gpu, Launch, Options, Precision};
use dino_host::config::Config;
use dino_host::cpu::{Cpu, NoOptions};
use dino_host::data::builtin::{Builtin, Part};
use dino_host::data::{Splits, Unreadable};
use dino_host::device::Device;
use dino_host::finetune::Flags;
use dino_host::inference::dense::Dense;
use dino_host::inference::features::Extractor;
use dino_host::train::{self, Outcome};
use dino_kernel::crops::Group;
use dino_kernel::init;
use serde_json::Value;
use std::path::Path;
use tests::gpu::ready;
use tests::training::normals;

/// Five steps an epoch.
const IMAGES: usize = 20;

fn splits() -> Splits {
    let part = |count, part| Box::new(Builtin::new(24, count, part, 0));
    Splits { train: part(IMAGES, Part::Train), test: part(8, Part::Test), held_out: false, notes: Vec::new() }
}

/// Tiny, with two micro-batches a step, local crops and stochastic depth.
fn config(epochs: u64) -> Config {
    let config = Config {
        patch_size: 8,
        embed_dim: 32,
        depth: 2,
        heads: 2,
        out_dim: 100,
        hidden: 32,
        bottleneck: 16,
        global_size: 24,
        local_size: 16,
        local_crops_number: 1,
        batch: 4,
        micro_batch: 2,
        epochs,
        warmup_epochs: 1,
        drop_path_rate: 0.2,
        save_every: 0,
        knn_every: 0,
        ..Config::small()
    };
    config.resolve().unwrap()
}

/// Trains in `out` to the end, or for one more step.
fn train<D: Device>(device: &D::Options, config: &Config, out: &Path, resume: bool, one_step: bool) -> Outcome {
    tests::runs::train::<D>(device, &splits(), config, out, resume, one_step)
}

fn losses(out: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(out.join(train::LOG)).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.filter(|row| row["kind"] == "step").map(|row| row["loss"].as_f64().unwrap()).collect()
}

fn gpu(precision: Precision, launch: Launch) -> Options {
    Options { precision, launch, workspace: 256, ..Options::default() }
}

fn checkpoint(out: &Path) -> Vec<u8> {
    std::fs::read(out.join(train::CHECKPOINT)).unwrap()
}

#[test]
fn twenty_steps_have_the_losses_of_the_cpu() {
    if !ready("twenty_steps_have_the_losses_of_the_cpu") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (config, at) = (config(4), |name: &str| folder.path().join(name));
    train::<Cpu>(&NoOptions {}, &config, &at("cpu"), false, false);
    let cpu = losses(&at("cpu"));
    assert_eq!(cpu.len(), 20);
    // The first loss has the error of one forward pass: of f32 sums, or of half a bf16 digit. Then differences grow: Adam divides by
    // the root of squares, so a gradient that is nearly nothing moves its weight by lr whatever its sign.
    for (precision, first, all) in [(Precision::F32, 1e-5, 1e-4), (Precision::Bf16, 1.0 / 256.0, 4.0 / 256.0)] {
        let name = format!("{precision:?}");
        train::<Gpu>(&gpu(precision, Launch::Graph), &config, &at(&name), false, false);
        let found = losses(&at(&name));
        assert_eq!(found.len(), 20);
        let errors: Vec<f64> = cpu.iter().zip(&found).map(|(c, g)| (c - g).abs() / c).collect();
        println!("{name}: relative difference of the losses {errors:.5?}");
        assert!(errors[0] <= first, "{name}: the first loss is {:e} off", errors[0]);
        assert!(errors.iter().all(|e| *e <= all), "{name}: {errors:?} exceeds {all}; CPU {cpu:?}, GPU {found:?}");

        // Kernel by kernel instead of as graphs: the same bits.
        let direct = format!("{precision:?} direct");
        train::<Gpu>(&gpu(precision, Launch::Direct), &config, &at(&direct), false, false);
        assert_eq!(losses(&at(&direct)), found, "{direct}");
        assert!(checkpoint(&at(&direct)) == checkpoint(&at(&name)), "{direct}: other weights");
    }
    assert!(cpu[19] != cpu[0]);
}

/// Targets that depend on the full batch, in two micro-batches, against the CPU and as graphs.
#[test]
fn targets_of_the_full_batch_train_as_on_the_cpu() {
    if !ready("targets_of_the_full_batch_train_as_on_the_cpu") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = Config { targets: "sinkhorn-knopp".into(), loss: "mse".into(), ..config(1) };
    let at = |name: &str| folder.path().join(name);
    train::<Cpu>(&NoOptions {}, &config, &at("cpu"), false, false);
    train::<Gpu>(&gpu(Precision::F32, Launch::Graph), &config, &at("graph"), false, false);
    train::<Gpu>(&gpu(Precision::F32, Launch::Direct), &config, &at("direct"), false, false);
    let [cpu, graph, direct] = ["cpu", "graph", "direct"].map(|name| losses(&at(name)));
    assert_eq!((cpu.len(), &graph), (5, &direct));
    assert!(checkpoint(&at("graph")) == checkpoint(&at("direct")), "kernel by kernel: other weights");
    for (c, g) in cpu.iter().zip(&graph) {
        assert!((c - g).abs() <= 1e-4 * c, "CPU {cpu:?}, GPU {graph:?}");
    }
}

/// Fine-tuning, of a vision transformer and of a residual network with its batch norms, mixed images and layer-wise decay.
#[test]
fn fine_tuning_has_the_losses_of_the_cpu() {
    if !ready("fine_tuning_has_the_losses_of_the_cpu") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let flags = Flags {
        epochs: Some(2),
        batch: Some(8),
        lr: Some(0.02),
        warmup_epochs: Some(1),
        layer_decay: Some(0.8),
        mixup: Some(0.8),
        ..Flags::default()
    };
    let view = |config: Config| Config { eval_view: "whole".into(), ..config }.resolve().unwrap();
    let small =
        Config { arch: "resnet_small".into(), widths: vec![8, 12], stage_blocks: vec![1, 1], ..Config::small() };
    for (arch, config) in [("vit", config(1)), ("resnet", Config { global_size: 24, ..small })] {
        let config = view(config);
        let at = |name: &str| folder.path().join(format!("{arch} {name}"));
        tests::runs::finetune::<Cpu>(&NoOptions {}, &splits(), &config, &flags, &at("cpu"));
        let cpu = losses(&at("cpu"));
        assert_eq!(cpu.len(), 2 * (IMAGES / 8));
        for (precision, most) in [(Precision::F32, 1e-5), (Precision::Bf16, 1.0 / 256.0)] {
            let name = format!("{precision:?}");
            tests::runs::finetune::<Gpu>(&gpu(precision, Launch::Direct), &splits(), &config, &flags, &at(&name));
            let found = losses(&at(&name));
            let errors: Vec<f64> = cpu.iter().zip(&found).map(|(c, g)| (c - g).abs() / c).collect();
            println!("{arch}, {name}: relative difference of the losses {errors:.6?}");
            assert!(found.len() == cpu.len() && errors.iter().all(|e| *e <= most), "{arch}, {name}: {errors:?}");
        }
        assert!(cpu[0] != cpu[cpu.len() - 1]);
    }
}

#[test]
fn either_backend_goes_on_from_the_others_checkpoint() {
    if !ready("either_backend_goes_on_from_the_others_checkpoint") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (config, at) = (config(1), |name: &str| folder.path().join(name));
    let options = gpu(Precision::F32, Launch::Graph);
    train::<Cpu>(&NoOptions {}, &config, &at("cpu"), false, false);
    let cpu = losses(&at("cpu"));

    // The backend changes after every step.
    let mixed = at("mixed");
    assert_eq!(train::<Cpu>(&NoOptions {}, &config, &mixed, false, true), Outcome::Interrupted);
    assert_eq!(train::<Gpu>(&options, &config, &mixed, true, true), Outcome::Interrupted);
    assert_eq!(train::<Cpu>(&NoOptions {}, &config, &mixed, true, true), Outcome::Interrupted);
    assert_eq!(train::<Gpu>(&options, &config, &mixed, true, false), Outcome::Finished);
    let found = losses(&mixed);
    assert_eq!(found.len(), cpu.len());
    for (c, m) in cpu.iter().zip(&found) {
        assert!((c - m).abs() <= 1e-4 * c, "CPU {cpu:?}, in several passes {found:?}");
    }

    // A run on the GPU alone that is stopped after every step has the bits of one that is not.
    let (at_once, stopped) = (at("once"), at("stopped"));
    train::<Gpu>(&options, &config, &at_once, false, false);
    assert_eq!(train::<Gpu>(&options, &config, &stopped, false, true), Outcome::Interrupted);
    while train::<Gpu>(&options, &config, &stopped, true, true) == Outcome::Interrupted {}
    assert_eq!(losses(&at_once), losses(&stopped));
    assert!(checkpoint(&at_once) == checkpoint(&stopped), "stopped after every step: other weights");
}

/// A residual network whose batch norms go by two images: the losses of the CPU, and the same bits after a stop, running statistics
/// included. (Graphs and kernel by kernel: `gpu_step`.)
#[test]
fn residual_networks_train_as_on_the_cpu() {
    if !ready("residual_networks_train_as_on_the_cpu") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        arch: "resnet_small".into(),
        widths: vec![8, 12],
        stage_blocks: vec![1, 1],
        bn_group: 2,
        drop_path_rate: 0.0,
        global_size: 16,
        local_size: 8,
        batch: 10,
        ..config(1)
    };
    let config = config.resolve().unwrap();
    let at = |name: &str| folder.path().join(name);
    train::<Cpu>(&NoOptions {}, &config, &at("cpu"), false, false);
    let cpu = losses(&at("cpu"));
    for (precision, bound) in [(Precision::F32, 1e-4), (Precision::Bf16, 4.0 / 256.0)] {
        let out = at(&format!("{precision:?}"));
        train::<Gpu>(&gpu(precision, Launch::Graph), &config, &out, false, false);
        let found = losses(&out);
        assert_eq!(found.len(), cpu.len());
        for (c, g) in cpu.iter().zip(&found) {
            assert!((c - g).abs() <= bound * c, "{precision:?}: CPU {cpu:?}, GPU {found:?}");
        }
    }
    let (options, stopped) = (gpu(Precision::Bf16, Launch::Graph), at("stopped"));
    assert_eq!(train::<Gpu>(&options, &config, &stopped, false, true), Outcome::Interrupted);
    assert_eq!(train::<Gpu>(&options, &config, &stopped, true, false), Outcome::Finished);
    assert!(checkpoint(&stopped) == checkpoint(&at("Bf16")), "stopped after a step: other weights or statistics");
}

/// |a - b| / |a|.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32, y: f32| f64::from(x - y).powi(2);
    let apart: f64 = a.iter().zip(b).map(|(&a, &b)| square(a, b)).sum();
    (apart / a.iter().map(|&a| square(a, 0.0)).sum::<f64>()).sqrt()
}

#[test]
fn features_and_attention_are_those_of_the_cpu() {
    if !ready("features_and_attention_are_those_of_the_cpu") {
        return;
    }
    let (config, splits) = (config(1), splits());
    let mut weights = vec![0.0; config.table().len()];
    init::weights(&mut weights, &config.table(), 1, config.init_std);
    weights.truncate(config.table().backbone_len());
    let pixels: Vec<f32> = normals(3, 2 * 3 * 24 * 16).iter().map(|x| *x as f32).collect();
    let group = Group { count: 2, height: 24, width: 16 };

    fn both<D: Device>(o: &D::Options, c: &Config, w: &[f32], s: &Splits, pixels: &[f32], g: Group) -> [Vec<f32>; 2] {
        let features = Extractor::<D>::new(o, c, w).unwrap().run(&*s.train, &Unreadable::new(true), |_| ()).unwrap();
        let attention = Dense::<D>::new(o, c, w, g).unwrap().attention(pixels).unwrap();
        [features.rows.into_raw_vec_and_offset().0, attention]
    }
    let cpu = both::<Cpu>(&NoOptions {}, &config, &weights, &splits, &pixels, group);
    // Through two blocks errors of a rounding each add up, in bf16 to two or three.
    for (precision, bound) in [(Precision::F32, 1e-5), (Precision::Bf16, 3.0 / 256.0)] {
        let found = both::<Gpu>(&gpu(precision, Launch::Graph), &config, &weights, &splits, &pixels, group);
        for (what, (c, g)) in ["features", "attention"].iter().zip(cpu.iter().zip(&found)) {
            assert_eq!(c.len(), g.len());
            let apart = distance(c, g);
            assert!(apart <= bound, "{what} in {precision:?}: {apart:e}");
        }
    }
}
