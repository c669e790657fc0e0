//! From a file to the ten crops of the published recipe, one thread: decoding, every operation, all at once, beside Pillow and torchvision.
//!
//!     cargo bench -p dino-host --bench crops                                        ours alone, on drawn images
//!     cargo bench -p dino-host --bench crops -- --reference DIR --python FILE       beside DIR/bench_step.py, on the files that it uses
//!
//! The machine's speed drifts, so the two programs run one after another, and only neighbors are compared.

#[path = "../flags.rs"]
mod flags;
mod ours;
mod reference;

use clap::Parser;
use dino_host::image::Decode;
use flags::Crops;
use std::process::ExitCode;

/// The median.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

fn run(args: &Crops) -> Result<(), String> {
    if args.of_the_other() {
        println!("SKIPPED: the benchmark of crops, for the flags name work of the other one (cpu)");
        return Ok(());
    }
    let rounds = args.both.rounds.unwrap_or(5);
    if rounds == 0 {
        return Err("--rounds is at least 1".into());
    }
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let reference = match args.both.reference() {
        Some(at) => {
            let reference = reference::Reference::new(&at, &args.both.python())?;
            reference.write_files(folder.path())?;
            Some(reference)
        }
        None => {
            ours::write_files(folder.path(), 4, 500, 375)?;
            None
        }
    };
    let ours = ours::Ours::new(folder.path())?;
    ours.operations(rounds);
    fast_decode(rounds)?;
    let Some(reference) = reference else {
        println!(
            "\nSKIPPED: the reference's side. --reference DIR names the folder of bench_step.py, --python FILE a Python that has torchvision."
        );
        return Ok(());
    };
    println!("\n| round | theirs, ms an image | ours | theirs / ours | theirs, decoding | ours |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        let [theirs, their_decode] = reference.run()?;
        let [all, decode] = ours.decode_and_crop();
        ratios.push(theirs / all);
        println!("| {round} | {theirs:.2} | {all:.2} | {:.2} | {their_decode:.2} | {decode:.2} |", theirs / all);
    }
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    println!("\ntheirs / ours: median {:.2}, least {least:.2}", median(ratios));
    Ok(())
}

/// Photographs as cameras make them, with and without `--fast-decode`.
fn fast_decode(rounds: usize) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    ours::write_files(folder.path(), 2, 2000, 1500)?;
    println!("\n| 2000 x 1500 pixels, ms an image | decode | decode and crops |");
    println!("| --- | --- | --- |");
    for (name, fast) in [("full size", None), ("--fast-decode, shorter side at least 256", Some(256))] {
        let ours = ours::Ours::decoded(folder.path(), Decode { fast, ..Decode::default() })?;
        let times: Vec<[f64; 2]> = (0..rounds).map(|_| ours.decode_and_crop()).collect();
        let [all, decode] = [0, 1].map(|i| times.iter().map(|t| t[i]).fold(f64::INFINITY, f64::min));
        println!("| {name} | {decode:.2} | {all:.2} |");
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Crops::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("crops bench: {e}");
            ExitCode::from(2)
        }
    }
}
