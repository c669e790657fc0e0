//! The time of every row of the table of op cases, on the CPU or the GPU: `cargo bench -p tests -- [--gpu] [--precision bf16] [ROW]`.
//!
//! A row is called until a tenth of a second has passed, five times over; the median time a call is printed, with the rate of its matmuls.
//! On the emulation the numbers show that the rows run, and nothing else.

use clap::{Parser, ValueEnum};
use dino_host::cpu::Cpu;
use dino_kernel::backend::wrap::Timed;
use dino_kernel::backend::{Memory, Update};
use dino_kernel::mem::Pool;
use std::time::{Duration, Instant};
use tests::backend::Factory;
use tests::cases::{Call, Row, TABLE};
use tests::gpu::OnGpu;

#[derive(Clone, Copy, ValueEnum)]
enum Precision {
    F32,
    Bf16,
}

/// Times every op at the size of a training step of ViT-S/16 on four images.
#[derive(Parser)]
struct Args {
    /// Rows whose names contain this; all without it.
    row: Option<String>,
    /// Run on the GPU instead of the CPU.
    #[arg(long)]
    gpu: bool,
    /// What activations are on the GPU.
    #[arg(long, default_value = "bf16")]
    precision: Precision,
    /// `cargo bench` hands this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    match (args.gpu, args.precision) {
        (false, _) => table::<Cpu>(&args),
        (true, Precision::F32) => table::<OnGpu<false, { 64 << 10 }>>(&args),
        (true, Precision::Bf16) => table::<OnGpu<true, { 64 << 10 }>>(&args),
    }
}

fn table<F: Factory>(args: &Args) {
    if !F::ready("the benchmark of ops on a GPU") {
        return;
    }
    let chosen = |row: &&Row| args.row.as_ref().is_none_or(|part| row.name.contains(part.as_str()));
    println!("| row | sizes | forward, us | GFLOP/s | backward, us | GFLOP/s |\n| --- | --- | --- | --- | --- | --- |");
    for row in TABLE.iter().flat_map(|rows| rows.iter()).filter(chosen) {
        let (o, calls) = row.random(row.timed).place::<F>();
        let mut o = Timed::new(o, || 0);
        let forward = time(&mut o, &calls.forward);
        let backward = calls.backward.map_or_else(|| "- | -".into(), |call| time(&mut o, &call));
        println!("| {} | {:?} | {forward} | {backward} |", row.name, row.timed);
    }
}

/// Microseconds of a call, and the rate of its matmuls.
fn time<O: Update + Memory>(o: &mut Timed<O>, call: &Call) -> String {
    let operations = |o: &Timed<O>| o.tally.iter().map(|tally| tally.operations).sum::<u64>();
    let before = operations(o);
    call(o);
    let work = (operations(o) - before) as f64;
    let mut seconds: Vec<f64> = (0..5)
        .map(|_| {
            let (start, mut calls) = (Instant::now(), 0);
            while start.elapsed() < Duration::from_millis(100) {
                call(o);
                calls += 1;
            }
            o.inner.read(Pool::Acts, 0, &mut [0.0]); // a device has finished when it has been read from
            start.elapsed().as_secs_f64() / f64::from(calls)
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let rate = if work == 0.0 { "-".into() } else { format!("{:.1}", work / seconds[2] / 1e9) };
    format!("{:.1} | {rate}", seconds[2] * 1e6)
}
