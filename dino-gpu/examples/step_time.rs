//! The time of full training steps on the GPU, where it goes by op, and whether the driver does what the backend relies on.
//!
//!     step_time [--tiny] [MODEL, CROP AND DEVICE FLAGS OF dino-gpu train]       images a second, ms a step, memory
//!     step_time --ops ...                                                       the same, and a table by op
//!     step_time --check-driver ...                                              the checks that need a card, in order
//!
//! The steps are run as the trainer runs them, [`Device::step`] and [`Device::report`], with up to [`QUEUE`] steps on their way; the
//! pixels are noise. Exit: 0 done, 1 a check failed, 2 an error.

use clap::Parser;
use cust::context::CurrentContext;
use dino_gpu::cuda::{Buffer, Card, Stream, driver};
use dino_gpu::kernels::Kernels;
use dino_gpu::{Gpu, Launch, Options};
use dino_host::config::{Config, Flags};
use dino_host::device::{self, Device, Part, QUEUE, Step};
use dino_host::error::{Error, Result};
use dino_kernel::backend::Op;
use dino_kernel::backend::wrap::Timed;
use dino_kernel::init;
use dino_kernel::mem::Pool;
use dino_kernel::model::resnet::Block;
use dino_kernel::model::{Backbone, ResNet};
use dino_kernel::plan::Plan;
use dino_kernel::rng::{Kind, Rng};
use dino_kernel::scalars::monitor;
use dino_kernel::step;
use serde_json::{Value, json};
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Instant;

/// Times entire training steps on the GPU
#[derive(Parser)]
struct Args {
    /// A model that the emulated driver steps through in seconds, instead of the published one
    #[arg(long)]
    tiny: bool,
    /// Steps that are timed
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Steps before them; the second captures the graphs
    #[arg(long, default_value_t = 5)]
    warmup: usize,
    /// Print the time of every op as well: ops are launched one by one, with a wait after each
    #[arg(long, alias = "words")]
    ops: bool,
    /// Check what the backend relies on instead of timing it
    #[arg(long)]
    check_driver: bool,
    /// Add one JSON line to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Name of this configuration in the JSON line
    #[arg(long, default_value = "dino-gpu")]
    label: String,
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    options: Options,
}

impl Args {
    fn config(&self) -> Result<Config> {
        let tiny = Config {
            embed_dim: 64,
            heads: 2,
            patch_size: 8,
            global_size: 32,
            local_size: 16,
            local_crops_number: 2,
            batch: 4,
            micro_batch: 2,
            drop_path_rate: 0.1,
            ..Config::small()
        };
        let mut config = if self.tiny { tiny } else { Config::published() };
        config.set(&self.flags);
        config.resolve_for(Gpu::MICRO_BATCH_TOKENS)
    }
}

/// What is run: a model, and noise as its input.
struct Work {
    config: Config,
    plan: Plan,
    /// Of one micro-batch; every micro-batch gets the same.
    pixels: Vec<f32>,
}

impl Work {
    fn new(config: Config) -> Result<Work> {
        let plan = config.plan(Gpu::RECOMPUTE)?;
        let mut rng = Rng::new(config.seed, 0, 0, 0, Kind::Test, 0);
        let pixels = (0..plan.pixels.len()).map(|_| rng.normal() as f32).collect();
        Ok(Work { config, plan, pixels })
    }

    /// A device with a fresh model.
    fn device(&self, options: &Options) -> Result<Gpu> {
        let (plan, config) = (&self.plan, &self.config);
        let mut gpu = Gpu::new(options, plan.pools)?;
        let mut state = vec![0.0; plan.pools.state];
        plan.initial_state(&mut state);
        gpu.upload(Pool::State, 0, &state);
        let mut weights = vec![0.0; plan.table.len()];
        init::weights(&mut weights, &plan.table, config.seed, config.init_std);
        gpu.upload(Pool::Weights, 0, &weights);
        gpu.upload(Pool::Weights, plan.table.len(), &weights);
        gpu.sync()?;
        Ok(gpu)
    }

    /// The data of step `number`. Each counts as an epoch, so that only the first finds the prototypes frozen.
    fn step(&self, number: u64) -> Step<'_> {
        let (plan, config) = (&self.plan, &self.config);
        let hyper = config.schedules(1).at(number).numbers(plan);
        let images: Vec<u32> = (0..config.batch as u32).collect();
        let part = |images: &[u32]| {
            let mut drop = vec![0.0; plan.drop.len()];
            plan.drop_path(&mut drop, config.seed, number as u32, images, config.drop_path_rate);
            Part { drop, pixels: &self.pixels }
        };
        Step { hyper: hyper.map(|x| x as f32), parts: images.chunks(config.micro_batch).map(part).collect() }
    }

    /// The first `steps` steps, as the trainer does them: one is queued while the one before it runs, and then the report of that
    /// one is waited for. Gives every step's monitor, and the milliseconds between its report and the one before.
    fn run(&self, gpu: &mut Gpu, steps: u64) -> Result<(Vec<[f32; monitor::LEN]>, Vec<f64>)> {
        let (mut monitors, mut times, mut last) = (Vec::new(), Vec::new(), Instant::now());
        let mut take = |gpu: &mut Gpu, queued| -> Result<()> {
            let m = gpu.report(&self.plan, queued, true)?.expect("a report that is waited for comes");
            if m[monitor::FINITE] != 1.0 {
                return Err(Error::new(format!("step {} is not finite", monitors.len())));
            }
            monitors.push(m);
            times.push(last.elapsed().as_secs_f64() * 1e3);
            last = Instant::now();
            Ok(())
        };
        let mut queued = 0;
        for number in 0..steps {
            gpu.step(&self.plan, &self.step(number))?;
            queued += 1;
            if queued == QUEUE {
                take(gpu, queued)?;
                queued -= 1;
            }
        }
        for queued in (1..=queued).rev() {
            take(gpu, queued)?;
        }
        Ok((monitors, times))
    }

    fn loss(&self, m: &[f32; monitor::LEN]) -> f64 {
        let pairs = self.config.batch * self.plan.teachers() * (self.plan.views() - 1);
        m[monitor::LOSS] as f64 / pairs as f64
    }

    /// Floating-point operations of a step: the matmuls of the forward pass, and twice that backward, the teacher forward alone.
    fn operations(&self) -> f64 {
        let head = self.plan.table.head;
        let crop = |side: usize| match self.plan.table.backbone {
            Backbone::Vit(vit) => {
                let (n, c) = ((side / vit.patch).pow(2) + 1, vit.dim);
                let block = n * c * (4 * c + 2 * vit.mlp) + 2 * n * n * c;
                2 * (vit.depth * block + (n - 1) * vit.channels * vit.patch * vit.patch * c)
            }
            Backbone::ResNet(resnet) => 2 * multiplications(&resnet, side),
        };
        let (wide, layers) = (head.hidden, head.layers);
        let mlp = head.inp * wide + layers.saturating_sub(2) * wide * wide + wide * head.bottleneck;
        let row = 2 * (mlp + head.bottleneck * head.prototypes);
        let teacher = 2 * (crop(self.config.global_size) + row);
        let student = teacher + self.config.local_crops_number * (crop(self.config.local_size) + row);
        self.config.batch as f64 * (teacher + 3 * student) as f64
    }
}

/// Multiplications of a residual network's convolutions over a square crop.
fn multiplications(resnet: &ResNet, side: usize) -> usize {
    let (stem, halve) = (resnet.stem, |side: usize, by: usize| side.div_ceil(by));
    let mut side = halve(side, stem.stride);
    let mut sum = side * side * stem.width * resnet.channels * stem.kernel * stem.kernel;
    side = if stem.pool { halve(side, 2) } else { side };
    let mut inp = stem.width;
    for stage in resnet.stages() {
        let (w, out) = (stage.width, stage.width * resnet.block.expansion());
        for stride in std::iter::once(stage.stride).chain(std::iter::repeat_n(1, stage.blocks - 1)) {
            let (read, written) = (side * side, halve(side, stride).pow(2));
            sum += match resnet.block {
                Block::Basic => written * 9 * w * (inp + w),
                Block::Bottleneck => read * inp * w + written * w * (9 * w + out),
            };
            sum += if stride > 1 || inp != out { written * inp * out } else { 0 };
            (side, inp) = (halve(side, stride), out);
        }
    }
    sum
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::powi(2.0, 30)
}

/// The ops of a step without its uploads, launched one by one with a single wait at the end: what the GPU computes, milliseconds.
fn ops_alone(work: &Work, gpu: &mut Gpu, steps: usize) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for _ in 0..steps {
        gpu.sync()?;
        let start = Instant::now();
        step::begin(gpu, &work.plan);
        step::accumulate(gpu, &work.plan, |_, _| ());
        step::commit(gpu, &work.plan);
        gpu.sync()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

/// Nanoseconds, once everything queued has run.
fn clock() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    // A device error is reported by the next `sync` of the device.
    let _ = CurrentContext::synchronize();
    START.elapsed().as_nanos() as u64
}

/// One step, op by op, as (op, calls, milliseconds), the longest first.
fn by_op(work: &Work, gpu: &mut Gpu) -> Result<Vec<(&'static str, u64, f64)>> {
    let mut timed = Timed::new(&mut *gpu, clock);
    device::issue_step(&mut timed, &work.plan, &work.step(0), |o, pool, at, values| o.inner.upload(pool, at, values));
    let tally = timed.tally;
    gpu.sync()?;
    let rows = Op::ALL.iter().zip(tally).filter(|(_, t)| t.calls > 0);
    let mut rows: Vec<_> = rows.map(|(w, t)| (w.name(), t.calls, t.nanoseconds as f64 / 1e6)).collect();
    rows.sort_by(|a, b| b.2.total_cmp(&a.2));
    Ok(rows)
}

fn time(args: &Args) -> Result<()> {
    let (card, work, options) = (Card::get()?, Work::new(args.config()?)?, &args.options);
    let free = card.free()?.0;
    let mut gpu = work.device(options)?;
    let (monitors, times) = work.run(&mut gpu, (args.warmup + args.steps) as u64)?;
    let times = &times[args.warmup..];
    let taken = free.saturating_sub(card.free()?.0);
    let alone = ops_alone(&work, &mut gpu, args.steps)?;
    let planned: u64 = Gpu::memory(options, work.plan.pools).iter().map(|(_, bytes)| bytes).sum();
    let (c, ms) = (&work.config, median(times));
    let least = |v: &[f64]| v.iter().copied().fold(f64::INFINITY, f64::min);
    let loss = monitors.last().map_or(f64::NAN, |m| work.loss(m));
    let rate = 1e3 * c.batch as f64 / ms;
    let tflops = |ms| work.operations() / ms / 1e9;

    println!("{}", gpu.name());
    let patch = if matches!(work.plan.table.backbone, Backbone::Vit(_)) {
        format!(" / {}", c.patch_size)
    } else {
        String::new()
    };
    println!(
        "{}{patch}, 2 x {} + {} x {}, K {}, batch {} in micro-batches of {}{}; {options:?}",
        c.arch,
        c.global_size,
        c.local_crops_number,
        c.local_size,
        c.out_dim,
        c.batch,
        c.micro_batch,
        if c.stream_crops { ", crops in several passes" } else { "" }
    );
    println!(
        "entire steps, pixels uploaded: {rate:.1} images/s, {ms:.3} ms (least {:.3}, {} steps), {:.2} TFLOP/s",
        least(times),
        times.len(),
        tflops(ms)
    );
    println!(
        "ops alone, launched one by one: {:.3} ms (least {:.3}), {:.2} TFLOP/s",
        median(&alone),
        least(&alone),
        tflops(median(&alone))
    );
    println!("memory: {:.2} GiB taken, {:.2} GiB planned; loss {loss:.4}", gib(taken), gib(planned));
    let mut row = json!({
        "mode": args.label, "device": gpu.name(), "options": format!("{options:?}"), "batch": c.batch, "micro_batch": c.micro_batch, "stream_crops": c.stream_crops,
        "median_ms": ms, "min_ms": least(times), "img_per_s": rate, "tflops": tflops(ms), "words_ms": median(&alone),
        "peak_gib": gib(taken), "plan_gib": gib(planned), "loss": loss,
    });
    if args.ops {
        print_ops(&work, &mut gpu, &mut row)?;
    }
    let Some(path) = &args.json else { return Ok(()) };
    let written = OpenOptions::new().create(true).append(true).open(path).and_then(|mut f| writeln!(f, "{row}"));
    written.map_err(|e| Error::new(format!("cannot write {}: {e}", path.display())))
}

fn print_ops(work: &Work, gpu: &mut Gpu, row: &mut Value) -> Result<()> {
    by_op(work, gpu)?; // the first time loads what is loaded lazily
    let rows = by_op(work, gpu)?;
    let (start, calls) = (clock(), 1000);
    (0..calls).for_each(|_| _ = clock());
    let wait = (clock() - start) as f64 / 1e3 / calls as f64;
    println!("\nby op, a wait after each: launches and waits are in these times (a wait for nothing: {wait:.1} us)");
    println!("{:28} {:>6} {:>10} {:>6}", "op", "calls", "ms", "%");
    let total: f64 = rows.iter().map(|r| r.2).sum();
    for (op, calls, ms) in &rows {
        println!("{op:28} {calls:6} {ms:10.3} {:6.1}", 100.0 * ms / total);
    }
    println!("{:28} {:6} {total:10.3}", "all", rows.iter().map(|r| r.1).sum::<u64>());
    row["wait_us"] = json!(wait);
    row["words"] = json!(rows);
    Ok(())
}

/// Prints a check's outcome, and whether it passed.
fn check(what: &str, outcome: Result<String>) -> bool {
    match &outcome {
        Ok(facts) => println!("ok    {what}: {facts}"),
        Err(e) => println!("FAIL  {what}: {e}"),
    }
    outcome.is_ok()
}

fn names() -> Result<String> {
    let lacks = |name: &&str| driver::symbol(&CString::new(*name).expect("no nul in a name")).is_none();
    let missing: Vec<&str> = driver::NAMES.iter().copied().filter(lacks).collect();
    let found = format!("{} of {} functions", driver::NAMES.len() - missing.len(), driver::NAMES.len());
    match (missing.is_empty(), std::env::var_os(driver::DRIVER_VARIABLE)) {
        (true, _) => Ok(found),
        // An emulated driver has what the backend calls, not everything that the bindings name.
        (false, Some(file)) => Ok(format!("{found} in {}; not {}", file.display(), missing.join(" "))),
        (false, None) => Err(Error::new(format!("{found}; not {}", missing.join(" ")))),
    }
}

/// Every kernel is found and takes its shared memory, up to 70 KB.
fn kernels(card: &'static Card) -> Result<String> {
    for suffix in ["_f32", "_bf16"] {
        Kernels::new(card, suffix)?;
    }
    let (major, minor) = card.capability;
    Ok(format!("{}, compute capability {major}.{minor}, driver of CUDA {}", card.name, card.driver))
}

/// What is queued on a non-blocking stream between begin and end of a capture runs at the replay and not before.
fn capture() -> Result<String> {
    let (stream, memory) = (Stream::new()?, Buffer::new(4)?);
    let upload = |value: &u32| {
        // SAFETY: four bytes that are not pinned are read before the call returns.
        unsafe { stream.upload(memory.at, (&raw const *value).cast(), 4) }
    };
    let read = || -> Result<u32> {
        let mut value = 0u32;
        // SAFETY: four bytes that outlive the wait.
        unsafe { stream.download((&raw mut value).cast(), memory.at, 4)? };
        stream.wait()?;
        Ok(value)
    };
    upload(&7)?;
    stream.wait()?;
    stream.capture()?;
    stream.clear(memory.at, 4)?;
    let graph = stream.captured()?;
    let before = read()?;
    stream.replay(&graph)?;
    match (before, read()?) {
        (7, 0) => Ok("captured, then replayed".into()),
        (before, after) => Err(Error::new(format!("7 became {before} by the capture and {after} by the replay"))),
    }
}

/// Ten steps launched one by one and ten by replay have the same monitors, to the bit.
fn replay(work: &Work, options: &Options) -> Result<String> {
    let run = |launch| work.run(&mut work.device(&Options { launch, ..options.clone() })?, 10);
    let (direct, graph) = (run(Launch::Direct)?.0, run(Launch::Graph)?.0);
    let (from, to) = (work.loss(&direct[0]), work.loss(&direct[9]));
    let bits = |m: &[f32; monitor::LEN]| m.map(f32::to_bits);
    match direct.iter().zip(&graph).position(|(a, b)| bits(a) != bits(b)) {
        None => Ok(format!("ten steps, the same bits, {:?}; loss {from:.5} to {to:.5}", options.precision)),
        Some(i) => Err(Error::new(format!("step {i} differs: {:?} and {:?}", direct[i], graph[i]))),
    }
}

/// True if every check passed.
fn check_driver(args: &Args) -> Result<bool> {
    let card = match Card::get() {
        Ok(card) => card,
        // A driver that is there is still asked for its functions: the error may be in one that it lacks.
        Err(e) if driver::missing().is_none() => {
            check("driver's functions", names());
            return Err(e);
        }
        Err(e) => return Err(e),
    };
    let work = Work::new(args.config()?)?;
    let mut passed = check("driver's functions", names());
    passed &= check("kernels load", kernels(card));
    passed &= check("capture on a non-blocking stream", capture());
    passed &= check("direct and captured steps", replay(&work, &args.options));
    Ok(passed)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = if args.check_driver { check_driver(&args) } else { time(&args).map(|()| true) };
    match done {
        Ok(passed) => ExitCode::from(!passed as u8),
        Err(e) => {
            eprintln!("step_time: {e}");
            ExitCode::from(2)
        }
    }
}
