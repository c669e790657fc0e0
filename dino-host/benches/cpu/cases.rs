//! Our side: the cases of the reference's `bench_step.py` and of `reference_resnet.py`, by the trainer's own doors.

use crate::flags::Case;
use crate::{median, sgemm};
use dino_host::config::Config;
use dino_host::cpu::{Cpu, NoOptions};
use dino_host::device::{self, Device, Part, Step};
use dino_host::eval::knn;
use dino_kernel::backend::Op;
use dino_kernel::backend::wrap::{Tally, Timed};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::init;
use dino_kernel::mem::Pool;
use dino_kernel::model::Output;
use dino_kernel::model::{Backbone, Vit};
use dino_kernel::plan::{FeaturePlan, Plan};
use dino_kernel::rng::{Kind, Rng};
use dino_kernel::scalars::monitor;
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;
use std::time::Instant;

/// What was found. MiB are 2^20 bytes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Of a step or a pass.
    pub median_ms: f64,
    /// Images or k-NN queries of it.
    pub images: usize,
    /// Images at once.
    pub micro_batch: usize,
    /// Matmuls that the formulas of the ops need (an op's second pass over the same logits is not counted), 10^9 operations.
    pub gflop: f64,
    /// Of sgemm on all threads, GFLOP/s.
    pub ceiling: f64,
    /// One f32 copy of the weights.
    pub weights_mib: f64,
    /// The most memory that the process had.
    pub peak_mib: f64,
}

impl Measured {
    /// What the issue of memory is about: see the note under the table.
    pub fn memory_mib(&self, case: Case) -> f64 {
        if case.config().is_some() { self.peak_mib - 5.0 * self.weights_mib } else { self.peak_mib }
    }
}

impl Case {
    /// In the order of the table.
    pub const ALL: [Case; 9] = [
        Case::Cifar6,
        Case::Cifar12,
        Case::Tiny16,
        Case::Small16,
        Case::ResNet50,
        Case::ResNetSmall,
        Case::Feat1,
        Case::Feat16,
        Case::Knn,
    ];

    /// Whether PyTorch's side is `reference_resnet.py`.
    pub fn is_resnet(self) -> bool {
        matches!(self, Case::ResNet50 | Case::ResNetSmall)
    }

    /// As the reference calls it.
    pub fn name(self) -> &'static str {
        match self {
            Case::Cifar6 => "cifar6",
            Case::Cifar12 => "cifar12",
            Case::Tiny16 => "tiny16",
            Case::Small16 => "small16",
            Case::ResNet50 => "resnet50",
            Case::ResNetSmall => "resnet_small",
            Case::Feat1 => "feat1",
            Case::Feat16 => "feat16",
            Case::Knn => "knn",
        }
    }

    /// The recipe of a training case, and the micro-batch that keeps it within a quarter of PyTorch's memory.
    pub fn config(self) -> Option<Config> {
        let cifar = |depth, micro_batch| Config {
            arch: "vit_tiny".into(),
            patch_size: 4,
            depth,
            global_size: 32,
            local_size: 16,
            local_crops_number: 4,
            batch: 64,
            micro_batch,
            hidden: 512,
            bottleneck: 128,
            out_dim: 4096,
            ..Config::published()
        };
        let imagenet =
            |arch: &str, batch, micro_batch| Config { arch: arch.into(), batch, micro_batch, ..Config::published() };
        match self {
            Case::Cifar6 => Some(cifar(6, 16)),
            Case::Cifar12 => Some(cifar(12, 16)),
            Case::Tiny16 => Some(imagenet("vit_tiny", 8, 4)),
            Case::Small16 => Some(imagenet("vit_small", 4, 2)),
            // Statistics are of the full batch, so it is one micro-batch; its crops go by sizes.
            Case::ResNet50 => Some(Config { drop_path_rate: 0.0, stream_crops: true, ..imagenet("resnet50", 4, 4) }),
            Case::ResNetSmall => Some(Config {
                arch: "resnet_small".into(),
                patch_size: Config::published().patch_size,
                depth: 0,
                drop_path_rate: 0.0,
                stream_crops: true,
                ..cifar(0, 64)
            }),
            _ => None,
        }
    }
}

/// The most memory this process has had, MiB; 0 where the system does not report it.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn mib(floats: usize) -> f64 {
    floats as f64 * 4.0 / (1 << 20) as f64
}

fn noise(len: usize) -> Vec<f32> {
    let mut rng = Rng::new(0, 0, 0, 0, Kind::Test, 0);
    (0..len).map(|_| rng.normal() as f32).collect()
}

/// Milliseconds of every call after two that warm up.
fn times(count: usize, mut call: impl FnMut(usize)) -> Vec<f64> {
    let mut times = Vec::new();
    for i in 0..count + 2 {
        let start = Instant::now();
        call(i);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.split_off(2)
}

/// A recipe, and noise as its input.
struct Data {
    config: Config,
    plan: Plan,
    /// Of the full batch.
    pixels: Vec<f32>,
}

/// How a batch is split.
#[derive(Clone, Copy)]
pub struct Split {
    /// 0 = the case's own.
    pub micro_batch: usize,
    /// Whether crops go through the student one after another.
    pub stream_crops: bool,
}

/// A model on the CPU.
struct Training {
    data: Data,
    cpu: Cpu,
}

impl Training {
    fn new(config: Config, Split { micro_batch, stream_crops }: Split) -> Result<Training, String> {
        let micro_batch = if micro_batch == 0 { config.micro_batch } else { micro_batch };
        let stream_crops = stream_crops || config.stream_crops;
        let config = Config { micro_batch, stream_crops, ..config }.resolve().map_err(|e| e.to_string())?;
        let plan = config.plan(Cpu::RECOMPUTE).map_err(|e| e.to_string())?;
        let mut cpu = Cpu::new(&NoOptions {}, plan.pools).map_err(|e| e.to_string())?;
        let mut state = vec![0.0; plan.pools.state];
        plan.initial_state(&mut state);
        cpu.upload(Pool::State, 0, &state);
        let mut weights = vec![0.0; plan.table.len()];
        init::weights(&mut weights, &plan.table, config.seed, config.init_std);
        cpu.upload(Pool::Weights, 0, &weights);
        cpu.upload(Pool::Weights, plan.table.len(), &weights);
        drop(weights);
        let pixels = noise(plan.parts() * plan.pixels.len());
        Ok(Training { data: Data { config, plan, pixels }, cpu })
    }
}

impl Data {
    /// Step `number`: each counts as an epoch, so that only the first finds the prototypes frozen.
    fn step(&self, number: usize) -> Step<'_> {
        let (plan, config) = (&self.plan, &self.config);
        let hyper = config.schedules(1).at(number as u64).numbers(plan);
        let images: Vec<u32> = (0..config.batch as u32).collect();
        let parts = images.chunks(config.micro_batch).zip(self.pixels.chunks(plan.pixels.len()));
        let part = |(images, pixels): (&[u32], _)| {
            let mut drop = vec![0.0; plan.drop.len()];
            plan.drop_path(&mut drop, config.seed, number as u32, images, config.drop_path_rate);
            Part { drop, pixels }
        };
        Step { hyper: hyper.map(|x| x as f32), parts: parts.map(part).collect() }
    }
}

fn clock() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64
}

/// Ours in this process.
///
/// # Errors
/// The recipe has no plan, the backend cannot be made, or a step is not finite.
pub fn measure(case: Case, steps: usize, split: Split) -> Result<Measured, String> {
    // The peak first: what comes after, the ceiling's own matrices among it, is not the case's.
    let measured = |times: Vec<f64>, images, micro_batch, operations: u64, weights| Measured {
        peak_mib: peak_mib(),
        median_ms: median(times),
        images,
        micro_batch,
        gflop: operations as f64 / 1e9,
        ceiling: sgemm::ceiling(),
        weights_mib: mib(weights),
    };
    let Some(config) = case.config() else {
        return match case {
            Case::Knn => {
                let (images, operations, times) = neighbors(steps);
                Ok(measured(times, images, 0, operations, 0))
            }
            _ => {
                let batch = if case == Case::Feat1 { 1 } else { 16 };
                let (times, operations, weights) = features(batch, if batch == 1 { 40 } else { 9.max(steps) })?;
                Ok(measured(times, batch, batch, operations, weights))
            }
        };
    };
    let mut t = Training::new(config, split)?;
    let mut bad = None;
    let times = {
        let steps: Vec<Step> = (0..steps + 2).map(|n| t.data.step(n)).collect();
        let (cpu, plan) = (&mut t.cpu, &t.data.plan);
        times(steps.len() - 2, |i| {
            let done = cpu.step(plan, &steps[i]).and_then(|()| cpu.report(plan, 1, true));
            match done {
                Ok(Some(m)) if m[monitor::FINITE] == 1.0 => (),
                other => bad = Some(format!("step {i}: {other:?}")),
            }
        })
    };
    if let Some(bad) = bad {
        return Err(bad);
    }
    let peak_mib = peak_mib(); // before the profile, whose own memory is no step's
    let operations = by_op(&mut t, 0).iter().map(|w| w.1.operations).sum();
    let found = measured(times, t.data.config.batch, t.data.config.micro_batch, operations, t.data.plan.table.len());
    Ok(Measured { peak_mib, ..found })
}

/// ViT-S/16 features: times, operations, parameters.
fn features(batch: usize, calls: usize) -> Result<(Vec<f64>, u64, usize), String> {
    let crops = Crops::one(Group { count: batch, height: 224, width: 224 });
    let plan = FeaturePlan::new(Backbone::Vit(Vit::SMALL_16), crops, Output::Class, 0).map_err(|e| e.to_string())?;
    let mut cpu = Cpu::new(&NoOptions {}, plan.pools).map_err(|e| e.to_string())?;
    let mut state = vec![0.0; plan.pools.state];
    plan.initial_state(&mut state);
    cpu.upload(Pool::State, 0, &state);
    let mut rng = Rng::new(0, 0, 0, 0, Kind::Test, 0);
    for at in 0..plan.pools.weights {
        cpu.upload(Pool::Weights, at, &[0.02 * rng.normal() as f32]);
    }
    let pixels = noise(plan.pixels.len());
    let times = times(calls, |_| {
        cpu.upload(Pool::Acts, plan.pixels.0.at, &pixels);
        cpu.run(|o| plan.forward(o));
    });
    let mut timed = Timed::new(&mut cpu, clock);
    plan.forward(&mut timed);
    Ok((times, timed.tally.iter().map(|t| t.operations).sum(), plan.pools.weights))
}

/// k-NN of 10,000 queries among 50,000 rows of 384 columns, k 20, 1000 classes.
fn neighbors(calls: usize) -> (usize, u64, Vec<f64>) {
    let (queries, bank, dim) = (10_000, 50_000, 384);
    let rows = |n: usize| {
        let all = Array2::from_shape_vec((n, dim), noise(n * dim)).expect("as many as the shape has");
        knn::normalize(all)
    };
    let (q, b) = (rows(queries), rows(bank));
    let labels: Vec<u32> = (0..bank as u32).map(|i| i % 1000).collect();
    let times = times(calls.min(3), |_| {
        let found = knn::neighbors(b.view(), q.view(), 20);
        std::hint::black_box(knn::predict(&found, &labels, 20, 0.07));
    });
    (queries, 2 * (queries * bank * dim) as u64, times)
}

/// Step `number` by op.
fn by_op(t: &mut Training, number: usize) -> Vec<(Op, Tally)> {
    let step = t.data.step(number);
    let mut timed = Timed::new(&mut t.cpu, clock);
    let plan = &t.data.plan;
    rayon::scope(|_| {
        device::issue_step(&mut timed, plan, &step, |o, pool, at, values| o.inner.upload(pool, at, values))
    });
    let tally = timed.tally;
    Op::ALL.iter().copied().zip(tally).filter(|(_, t)| t.calls > 0).collect()
}

/// Prints a step by op, the longest first; of `steps` steps every op's quickest.
///
/// # Errors
/// The case is no training step, its recipe has no plan, or the backend cannot be made.
pub fn profile(case: Case, steps: usize, split: Split) -> Result<(), String> {
    let config = case.config().ok_or_else(|| format!("{} is no training step", case.name()))?;
    let ceiling = sgemm::ceiling();
    let mut t = Training::new(config, split)?;
    by_op(&mut t, 0);
    let mut ops = by_op(&mut t, 1);
    for number in 2..=steps {
        for (op, other) in ops.iter_mut().zip(by_op(&mut t, number)) {
            op.1.nanoseconds = op.1.nanoseconds.min(other.1.nanoseconds);
        }
    }
    ops.sort_by_key(|w| std::cmp::Reverse(w.1.nanoseconds));
    let total: u64 = ops.iter().map(|w| w.1.nanoseconds).sum();
    let row = |name: &str, calls: u64, nanoseconds: u64, operations: u64| {
        let rate = operations as f64 / nanoseconds as f64;
        let (share, part) = (100.0 * nanoseconds as f64 / total as f64, 100.0 * rate / ceiling);
        let rate = if operations == 0 { "| | ".into() } else { format!("| {rate:.0} | {part:.0} % ") };
        println!("| {name} | {calls} | {:.1} | {share:.1} % {rate}|", nanoseconds as f64 / 1e6);
    };
    let streamed = if split.stream_crops { ", crops in several passes" } else { "" };
    let size = t.data.config.micro_batch;
    println!("{}, micro-batches of {size}{streamed}; sgemm ceiling {ceiling:.0} GFLOP/s\n", case.name());
    println!("| op | calls | ms | of the step | GFLOP/s | of the ceiling |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (op, tally) in &ops {
        row(op.name(), tally.calls, tally.nanoseconds, tally.operations);
    }
    let (calls, operations) = ops.iter().fold((0, 0), |(c, o), w| (c + w.1.calls, o + w.1.operations));
    row("all", calls, total, operations);
    Ok(())
}
