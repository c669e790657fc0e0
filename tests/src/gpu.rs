//! The GPU backend for tests: on the card where there is one, else on the emulation, which is built here; skipped with a message
//! where there is neither a card nor a C++ compiler.

use crate::backend::{Factory, make_poisoned, read_span};
use crate::training::{Run, hyper_numbers, random_views};
use dino_gpu::cuda::driver;
use dino_gpu::{Gpu, Launch, Options, Precision};
use dino_host::cpu::Cpu;
use dino_host::planning::agreement::{Compared, compared, set_floors};
pub use dino_host::planning::agreement::{bf16_bound, f32_bound};
use dino_kernel::backend::wrap::Lockstep;
use dino_kernel::backend::{Memory, Op};
use dino_kernel::mem::{Pool, Span};
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
    set_floors(&mut run.o, &plan, student_temp);
    run.step(&Hyper { teacher_temp, student_temp, ..hyper_numbers() }, &random_views(&plan, seed));
    assert_eq!(run.monitor(monitor::FINITE), 1.0);
    let part = |c: &Compared| {
        assert!(c.found.error <= c.allowed, "{c:?} under {config:?}");
        (c.found.op, c.part())
    };
    let parts = compared(&run.o, &plan, teacher_temp.min(student_temp), bound).iter().map(part).collect();
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
