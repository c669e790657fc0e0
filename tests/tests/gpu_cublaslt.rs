//! Matmuls through cuBLASLt: every op against the CPU, and full steps as graphs and kernel by kernel. On a card with its library where
//! there is one, else on the emulation with the emulated library.

use dino_gpu::cuda::cublaslt;
use dino_gpu::{Gemm, Gpu, Launch, Options, Precision};
use dino_host::device::{Device, Part, Step};
use dino_kernel::mem::Pool;
use dino_kernel::model::Backbone;
use dino_kernel::plan::{Config, Plan, Pools};
use dino_kernel::scalars::monitor;
use proptest::prelude::*;
use std::sync::Once;
use tests::backend::Factory;
use tests::gpu::{Ground, bf16_bound, build_emulation, ground, ready, step_beside_cpu};
use tests::plans::{configs, ordinary};
use tests::training::{Run, hyper_numbers, normals};

/// Whether there is a library to test; prints why where not. The emulation always has one.
fn ready_with_library(test: &str) -> bool {
    if !ready(test) {
        return false;
    }
    static NAMED: Once = Once::new();
    NAMED.call_once(|| {
        if ground() == &Ground::Emulation {
            let out = build_emulation().expect("built before");
            assert!(
                cublaslt::use_library(out.join("libcublaslt_emulated.so")),
                "cuBLASLt was used before it was named"
            );
        }
    });
    match cublaslt::missing() {
        Some(why) if ground() != &Ground::Emulation => {
            eprintln!("SKIPPED {test}: {why}");
            false
        }
        missing => {
            assert_eq!(missing, None);
            true
        }
    }
}

fn options(launch: Launch, gemm: Gemm) -> Options {
    Options { precision: Precision::Bf16, launch, workspace: 256, gemm, ..Options::default() }
}

struct WithLibrary;

impl Factory for WithLibrary {
    type Backend = Gpu;

    fn make(pools: Pools) -> Gpu {
        Gpu::create(&options(Launch::Direct, Gemm::Cublaslt), pools).expect("it fits")
    }
}

/// Widths of full 16 bytes, which the library takes, for every second plan; any widths for the others, where few matmuls are.
fn plans() -> impl Strategy<Value = Config> {
    (configs(), any::<bool>()).prop_map(|(mut c, aligned)| {
        if aligned {
            let up = |x: usize| x.next_multiple_of(8);
            let Backbone::Vit(vit) = &mut c.backbone else { panic!("a ViT") };
            vit.dim = vit.heads * up(vit.dim / vit.heads);
            (vit.mlp, c.head.inp) = (up(vit.mlp), vit.dim);
            (c.head.hidden, c.head.bottleneck) = (up(c.head.hidden), up(c.head.bottleneck));
            c.head.prototypes = up(c.head.prototypes);
        }
        c
    })
}

#[test]
fn ops_agree() {
    if !ready_with_library("ops_agree") {
        return;
    }
    let worst = std::cell::Cell::new(0.0f64);
    proptest!(tests::plans::cases(12), |(config in plans(), seed in 0..1u64 << 32, temp in 0.02f64..1.0)| {
        let (run, parts) = step_beside_cpu::<WithLibrary>(config, seed, [temp, 0.1], bf16_bound);
        parts.iter().for_each(|(_, part)| worst.set(worst.get().max(*part)));
        let Backbone::Vit(vit) = config.backbone else { panic!("a ViT") };
        let widths = [vit.dim, vit.mlp, config.head.hidden, config.head.bottleneck, config.head.prototypes];
        if widths.iter().all(|x| x.is_multiple_of(8)) {
            // Of every block the forward passes of both networks (four matmuls each) and the backward pass (eight).
            let least = 16 * vit.depth;
            let taken = run.o.b.library_matmuls();
            // A card's library may refuse the bias, of forward matmuls only.
            let least = if ground() == &Ground::Emulation { least } else { least / 2 };
            prop_assert!(taken >= least, "{} of at least {} matmuls went to the library", taken, least);
        }
    });
    println!("ops_agree: the largest error is {:.2} of its bound", worst.get());
}

/// Four steps: monitors, weights, matmuls that went to the library, and the device's name.
fn steps(launch: Launch, gemm: Gemm, stream_crops: bool) -> (Vec<[f32; monitor::LEN]>, Vec<f32>, usize, String) {
    use dino_kernel::crops::{Crops, Group};
    use dino_kernel::model::{Head, Vit};
    use dino_kernel::ops::layernorm::EPS;
    use dino_kernel::ops::position::Interpolation;
    let backbone = Backbone::Vit(Vit {
        image: 16,
        patch: 8,
        channels: 3,
        dim: 16,
        depth: 2,
        heads: 2,
        mlp: 32,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let head =
        Head { inp: 16, layers: 2, hidden: 16, bottleneck: 8, prototypes: 80, train_gain: false, ..Head::PUBLISHED };
    let views = Crops::one(Group { count: 2, height: 16, width: 16 }).with(Group { count: 1, height: 8, width: 16 });
    let plan = Plan::new(Config { drop_path: true, stream_crops, ..ordinary(backbone, head, views, [4, 2]) })
        .expect("a valid plan");
    let gpu = Gpu::create(&options(launch, gemm), plan.pools).expect("it fits");
    let mut gpu = Run::random(plan, gpu, 5).o;
    let hyper = hyper_numbers().numbers(&plan).map(|x| x as f32);
    let mut monitors = Vec::new();
    for i in 0..4 {
        let pixels = |p: u64| normals(10 * i + p, plan.pixels.len()).iter().map(|x| *x as f32).collect::<Vec<f32>>();
        let data = [pixels(0), pixels(1)];
        let drop = vec![1.0; plan.drop.len()];
        let parts = data.iter().map(|pixels| Part { drop: drop.clone(), pixels }).collect();
        gpu.step(&plan, &Step { hyper, parts }).expect("a step");
        monitors.push(gpu.report(&plan, 1, true).expect("a report").expect("the last"));
    }
    let mut weights = vec![0.0; plan.pools.weights];
    gpu.download(Pool::Weights, 0, &mut weights);
    gpu.sync().expect("no error");
    (monitors, weights, gpu.library_matmuls(), gpu.name())
}

#[test]
fn captured_steps_have_the_bits_of_direct_ones() {
    if !ready_with_library("captured_steps_have_the_bits_of_direct_ones") {
        return;
    }
    for stream in [false, true] {
        let (monitors, weights, direct, name) = steps(Launch::Direct, Gemm::Auto, stream);
        assert!(monitors.iter().all(|m| m[monitor::FINITE] == 1.0));
        assert!(name.contains("cuBLASLt"), "{name}");
        let (captured_monitors, captured_weights, captured, _) = steps(Launch::Graph, Gemm::Cublaslt, stream);
        assert!(monitors == captured_monitors && weights == captured_weights, "as graphs and kernel by kernel");
        // Four steps of two micro-batches, against the first of them and what is captured.
        assert!(direct > 0 && 8 * captured == 3 * direct, "{captured} captured, {direct} direct");
        let (own_monitors, _, none, name) = steps(Launch::Graph, Gemm::Own, stream);
        assert!(none == 0 && name.contains("own kernels"), "{name}");
        assert!(own_monitors[0].iter().zip(&monitors[0]).all(|(a, b)| (a - b).abs() <= 0.02 * (1.0 + b.abs())));
    }
}
