//! The CPU backend against PyTorch: full training steps, features and k-NN, time and memory, pair by pair in one run.
//!
//!     cargo bench -p dino-host                                                ours alone, and the share of the machine's sgemm ceiling
//!     cargo bench -p dino-host -- --reference DIR --python FILE               beside DIR/bench_step.py, run by that Python
//!     cargo bench -p dino-host -- --python FILE --only resnet50               ResNets beside reference_resnet.py, run by that Python
//!     cargo bench -p dino-host -- --profile small16                           a step by op:   calls, ms, GFLOP/s, share of the ceiling
//!     cargo bench -p dino-host -- --sgemm                                     the matmul on the shapes of the workload
//!
//! The machine's speed drifts, so the two programs run one after another, each in a process of its own, and only pairs of neighbors
//! are compared.

mod cases;
#[path = "../flags.rs"]
mod flags;
mod reference;
mod sgemm;

use cases::{Measured, Split};
use clap::Parser;
use flags::{Case, Cpu, Mode, Timed};
use reference::Reference;
use std::process::{Command, ExitCode};

/// Ours in a process of its own, so that the peak of its memory is its own.
fn ours(args: &Timed, case: Case) -> Result<Measured, String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(own);
    command.args(["--ours", case.name(), "--steps", &args.steps.to_string(), "--threads", &args.threads.to_string()]);
    command.args(["--micro-batch", &args.micro_batch.to_string()]);
    command.args(args.stream_crops.then_some("--stream-crops"));
    let done = command.output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&done.stdout);
    serde_json::from_str(text.trim()).map_err(|e| format!("{e}: {text}{}", String::from_utf8_lossy(&done.stderr)))
}

/// The median.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// One mode of the reference beside ours, round after round; prints a row of the table.
fn pairs(args: &Timed, rounds: usize, reference: &Reference, case: Case, mode: &Mode) -> Result<(), String> {
    let (mut theirs_ms, mut ours_ms, mut ratios, mut memory) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        let theirs = reference.run(case, mode, args.threads, args.steps)?;
        let ours = ours(args, case)?;
        theirs_ms.push(theirs.median_ms);
        ours_ms.push(ours.median_ms);
        ratios.push(theirs.median_ms / ours.median_ms);
        memory.push((theirs.memory_mib(case, ours.weights_mib), ours.memory_mib(case)));
    }
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let (theirs_mib, ours_mib) = (median(memory.iter().map(|m| m.0)), median(memory.iter().map(|m| m.1)));
    println!(
        "| {} | {} | {:.0} | {:.0} | **{:.2}** | {least:.2} | {theirs_mib:.0} | {ours_mib:.0} | 1/{:.1} |",
        case.name(),
        mode.name(),
        median(theirs_ms),
        median(ours_ms),
        median(ratios),
        theirs_mib / ours_mib
    );
    Ok(())
}

fn table(all: &Cpu, rounds: usize, cases: &[Case]) -> Result<(), String> {
    let args = &all.timed;
    println!(
        "| case | micro-batch | ms | img/s | GFLOP | GFLOP/s | sgemm ceiling | share | peak RSS MiB | of it beyond |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for &case in cases {
        let m = ours(args, case)?;
        let (rate, beyond) = (m.gflop / m.median_ms * 1e3, m.memory_mib(case));
        println!(
            "| {} | {}{} | {:.0} | {:.2} | {:.1} | {rate:.0} | {:.0} | {:.0} % | {:.0} | {beyond:.0} |",
            case.name(),
            m.micro_batch,
            if args.stream_crops { " in several passes" } else { "" },
            m.median_ms,
            m.images as f64 / m.median_ms * 1e3,
            m.gflop,
            m.ceiling,
            100.0 * rate / m.ceiling,
            m.peak_mib
        );
    }
    println!(
        "\n\"Beyond\": of a step, beyond the five f32 copies of the weights; of features and k-NN, all of the process.\n"
    );
    let folder = all.both.reference();
    if folder.is_none() && !all.both.names_python() {
        println!(
            "SKIPPED: PyTorch's side. --reference DIR names the folder of bench_step.py, --python FILE a Python that has PyTorch."
        );
        return Ok(());
    }
    let reference = Reference::new(folder.as_deref(), &all.both.python())?;
    if folder.is_none() {
        println!("SKIPPED: PyTorch's side of all but ResNets. --reference DIR names the folder of bench_step.py.\n");
    }
    println!(
        "| case | PyTorch | theirs, ms | ours, ms | theirs / ours | least pair | theirs, MiB | ours, MiB | ours / theirs |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for &case in cases.iter().filter(|&&case| reference.script(case).is_some()) {
        // k-NN has no modes of its own.
        let modes = args.modes.iter().filter(|m| case != Case::Knn || m.plain());
        modes.into_iter().try_for_each(|mode| pairs(args, rounds, &reference, case, mode))?;
    }
    Ok(())
}

fn run(all: &Cpu) -> Result<(), String> {
    let (args, rounds) = (&all.timed, all.both.rounds.unwrap_or(3));
    if rounds == 0 || args.steps == 0 {
        return Err("--rounds and --steps are at least 1".into());
    }
    rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global().map_err(|e| e.to_string())?;
    let split = Split { micro_batch: args.micro_batch, stream_crops: args.stream_crops };
    if let Some(case) = args.ours {
        let m = cases::measure(case, args.steps, split)?;
        println!("{}", serde_json::to_string(&m).map_err(|e| e.to_string())?);
        return Ok(());
    }
    if let Some(case) = args.profile {
        return cases::profile(case, args.steps, split);
    }
    if args.sgemm {
        sgemm::shapes(args.threads);
        return Ok(());
    }
    table(all, rounds, if args.only.is_empty() { &Case::ALL } else { &args.only })
}

fn main() -> ExitCode {
    match run(&Cpu::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cpu bench: {e}");
            ExitCode::from(2)
        }
    }
}
