//! The GPU backend for tests: on the card where there is one, else on the emulation, which is built here; skipped with a message
//! where there is neither a card nor a C++ compiler.

use crate::backend::{Factory, make_poisoned, read_span};
use crate::training::{Run, hyper_numbers, random_views};
use dino_gpu::cuda::driver;
use dino_gpu::{Gpu, Launch, Options, Precision};
use dino_host::cpu::Cpu;
use dino_kernel::backend::wrap::{Lockstep, Mismatch};
use dino_kernel::backend::{Memory, Op};
use dino_kernel::mem::{Pool, Span};
use dino_kernel::model::Backbone;
use dino_kernel::plan::{Config, Plan, Pools};
use dino_kernel::scalars::monitor;
use dino_kernel::step::Hyper;
use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What the GPU tests of this process run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ground {
    /// A GPU.
    Card,
    /// The emulated driver on the CPU.
    Emulation,
    /// Neither, and why.
    None(String),
}

fn emulator() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dino-gpu/emulate/build.sh")
}

/// Builds the emulated driver and the emulated cuBLASLt; nothing is done where they are newer than their sources.
///
/// # Errors
/// There is no `sh`, or the emulation does not compile.
pub fn build_emulation() -> Result<PathBuf, String> {
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/emulation");
    let built = Command::new("sh").arg(emulator()).arg(&out).output().map_err(|e| format!("cannot run sh: {e}"))?;
    if !built.status.success() {
        return Err(format!("the emulation does not build: {}", String::from_utf8_lossy(&built.stderr)));
    }
    Ok(out)
}

/// Finds or makes the ground, once.
pub fn ground() -> &'static Ground {
    static GROUND: OnceLock<Ground> = OnceLock::new();
    GROUND.get_or_init(|| {
        if std::env::var_os(driver::DRIVER_VARIABLE).is_some() || Path::new("/dev/nvidiactl").exists() {
            return Ground::Card; // or whatever the variable names
        }
        if Command::new(std::env::var_os("CXX").unwrap_or_else(|| "g++".into())).arg("--version").output().is_err() {
            return Ground::None("there is no GPU, and no C++ compiler (g++ or $CXX) to build the emulation".into());
        }
        let out = build_emulation().expect("with a compiler, the emulation builds");
        assert!(
            driver::use_library(out.join("libcuda_emulated.so")),
            "the driver was used before the emulation was ready"
        );
        eprintln!("no GPU here: the kernels run on the CPU, behind an emulated driver");
        Ground::Emulation
    })
}

/// Whether GPU tests can run; prints why where they cannot.
pub fn ready(test: &str) -> bool {
    match ground() {
        Ground::None(why) => {
            eprintln!("SKIPPED {test}: {why}");
            false
        }
        _ => true,
    }
}

/// A count of the emulation, such as "allocations" (see `emulate/driver.cpp`).
pub fn emulation_count(what: &CStr) -> i64 {
    let address = driver::symbol(c"emulation_count").expect("this ground is the emulation");
    // SAFETY: the emulation's function of that name has this signature.
    let count: unsafe extern "C" fn(*const c_char) -> i64 = unsafe { std::mem::transmute(address) };
    // SAFETY: a name that ends in nul.
    unsafe { count(what.as_ptr()) }
}

/// The GPU backend in f32 or bf16, with a workspace of `KIB` KiB: a small one makes many tiles, strips and splits of small sizes.
pub struct OnGpu<const BF16: bool, const KIB: usize>;

impl<const BF16: bool, const KIB: usize> OnGpu<BF16, KIB> {
    /// Its flags.
    pub fn options() -> Options {
        let precision = if BF16 { Precision::Bf16 } else { Precision::F32 };
        Options { precision, launch: Launch::Direct, workspace: KIB, ..Options::default() }
    }
}

impl<const BF16: bool, const KIB: usize> Factory for OnGpu<BF16, KIB> {
    type Backend = Gpu;

    fn ready(test: &str) -> bool {
        ready(test)
    }

    fn make(pools: Pools) -> Gpu {
        Gpu::create(&Self::options(), pools).expect("a test's pools fit the GPU")
    }
}

/// 8 eps sqrt(k) from the truth for either side, k the longest sum: the rows of a weight gradient, or the prototypes.
pub fn f32_bound(k: f64) -> f64 {
    16.0 * f32::EPSILON as f64 * k.sqrt()
}

/// Half a unit in the last place of bf16, relative: the most that rounding a result does. The operands are the same numbers on both
/// sides.
const HALF_ULP: f64 = 1.0 / 256.0;

/// What an op may differ by in bf16. Sums are f32, so what is kept in f32 (statistics, gradients, state) is as near as in f32, and
/// activations are a rounding further off. GELU sees the rounded sum; attention rounds its probabilities and their gradients on the
/// way; the loss the gradient of the logits, which the prototypes' gradients are made of as well.
pub fn bf16_bound(op: Op, pool: Pool, k: f64) -> f64 {
    let roundings = match (pool, op) {
        (Pool::Acts, Op::linear_gelu | Op::attention | Op::attention_backward | Op::dino_loss | Op::mse_loss) => 2.0,
        (Pool::Acts, _) | (Pool::Grads, Op::dino_loss | Op::mse_loss) => 1.0,
        _ => 0.0,
    };
    roundings * HALF_ULP + f32_bound(k)
}

/// The same where logits are sharpened. A logit enters as its difference from the largest: two cosines, each a sum of `bottleneck` terms
/// and two roundings more, on either side; divided by the lower temperature, that is how far a probability is off, as a part of itself.
/// (What bf16 drops is the same on both sides.)
pub fn sharpened(bound: f64, op: Op, coldest: f64, bottleneck: usize) -> f64 {
    match op {
        Op::teacher_lse | Op::dino_loss | Op::mse_loss | Op::sum_stat => {
            bound + (2.0 + (bottleneck as f64).sqrt()) * f32::EPSILON as f64 / coldest
        }
        _ => bound,
    }
}

/// A run of the CPU and of another backend in lockstep.
pub type BesideCpu<B> = Run<Lockstep<Cpu, B>>;

/// One training step of the CPU and of `F` in lockstep, from random weights that bf16 holds, so that the matmuls have the same operands.
/// Panics where what an op writes differs by more than `bound(op, pool, longest sum)`; returns the run, and every op's error as a
/// part of its bound.
pub fn step_beside_cpu<F: Factory>(
    config: Config,
    seed: u64,
    [teacher_temp, student_temp]: [f64; 2],
    bound: fn(Op, Pool, f64) -> f64,
) -> (BesideCpu<F::Backend>, Vec<(Op, f64)>) {
    let plan = Plan::new(config).expect("a valid plan");
    let both = Lockstep::new(make_poisoned::<Cpu>(plan.pools), make_poisoned::<F>(plan.pools));
    let mut run = Run::random(plan, both, seed);
    let mut weights = read_span(&mut run.o, Pool::Weights, Span { at: 0, len: plan.pools.weights });
    weights.iter_mut().for_each(|w| *w = f64::from(half::bf16::from_f64(*w)));
    run.o.write(Pool::Weights, 0, &weights);
    // Where student and teacher are one-hot on the same prototype, the gradient p - q of a row is what cancellation leaves of the two, so
    // its error is measured by their size.
    let (images, pairs) = (plan.config.micro_batch as f64, plan.teachers() * (plan.views() - 1) * plan.config.batch);
    for op in [Op::dino_loss, Op::mse_loss] {
        for pool in [Pool::Acts, Pool::Grads] {
            run.o.floor[op as usize][pool as usize] = images.sqrt() / (student_temp * pairs as f64);
        }
    }
    // A bias in front of a batch norm has no gradient, so its error is measured by the terms of the sum: by the loss's gradient.
    if config.head.batch_norm {
        run.o.floor[Op::linear_backward as usize][Pool::Grads as usize] =
            (config.micro_batch as f64).sqrt() / (student_temp * pairs as f64);
    }
    run.step(&Hyper { teacher_temp, student_temp, ..hyper_numbers() }, &random_views(&plan, seed));
    assert_eq!(run.monitor(monitor::FINITE), 1.0);
    // The longest sum: the rows of a weight's gradient, or the prototypes.
    let rows = match config.backbone {
        Backbone::Vit(_) => config.backbone.cost(&plan.crops()),
        Backbone::ResNet(_) => plan.crops().pixels(),
    };
    let k = rows.max(config.head.prototypes) as f64;
    let part = |m: &Mismatch| {
        let bound = sharpened(bound(m.op, m.access.pool, k), m.op, teacher_temp.min(student_temp), config.head.cols());
        assert!(m.error <= bound, "{m:?} exceeds {bound:e} under {config:?}");
        (m.op, m.error / bound)
    };
    let parts = run.o.worst.iter().flatten().flatten().map(part).collect();
    (run, parts)
}

/// `count` small PNG images of noise.
pub fn images(folder: &Path, side: u32, count: u64) {
    use dino_kernel::rng::{Kind, Rng};
    for i in 0..count {
        let mut rng = Rng::new(i, 0, 0, 0, Kind::Test, 0);
        let image =
            image::RgbImage::from_fn(side, side, |_, _| image::Rgb([0; 3].map(|_: u8| (rng.uniform() * 255.0) as u8)));
        image.save(folder.join(format!("{i:03}.png"))).expect("an image can be written");
    }
}
