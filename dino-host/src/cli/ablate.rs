//! The command `ablate`.

use super::shared::{Model, Shared, Tolerance, open, start};
use crate::ablate::{Ablation, Comparison, Row, Table};
use crate::data;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::signals;
use crate::train::Limit;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

#[derive(Args)]
pub struct Ablate<O: Args> {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    shared: Shared<O>,
    /// Images, as `train` takes them; without it --small draws its own
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Folder for all runs and the tables; the same command goes on with what is there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The paper's comparisons [default: all of them, or none beside --variants]
    #[arg(long, value_delimiter = ',', value_name = "ROW,ROW,…")]
    rows: Vec<Row>,
    /// Variants of one's own, from a TOML file: [NAME], then keys such as lr = 0.01; may be given several times
    #[arg(long, value_name = "FILE.toml")]
    variants: Vec<PathBuf>,
    /// Runs of every variant, with seeds from --seed on
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Runs at a time, which share --threads; no result depends on it
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Save and stop (exit code 130) before the program has run for this long, as `train` does
    #[arg(long, value_name = "TIME", value_parser = super::train::time)]
    time_limit: Option<Limit>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tolerance: Tolerance,
}

/// Set by signals.
static STOP: AtomicBool = AtomicBool::new(false);

/// Runs the command `ablate`; returns the exit code.
///
/// # Errors
/// The device, the base or the data set is not usable, the folder holds other runs, or a run fails.
pub fn run<D: Device>(args: Ablate<D::Options>) -> Result<u8> {
    if args.model.lists_presets() {
        return Ok(0);
    }
    let started = Instant::now();
    start::<D>(&args.shared)?;
    let data = match args.data {
        Some(data) => data,
        None if args.model.small => data::BUILTIN.into(),
        None => {
            return Err(
                Error::new("what to train on? --data PATH").hint("--data builtin, or --small, draws its own images")
            );
        }
    };
    let resolved = args.model.resolve::<D>(Some(&data))?;
    let mut base = args.model.start(Some(&data))?;
    base.white = resolved.white; // as it was found in the images
    args.model.print_choice(&resolved)?;
    let splits = open(&data, &resolved)?;
    if splits.test.is_empty() || splits.train.classes().is_empty() {
        errln!("note: {data} has no labeled test images, so there is no k-NN: what is compared is rank and collapse");
    }
    signals::watch(&STOP);
    let rows = match args.rows.is_empty() && args.variants.is_empty() {
        true => Row::value_variants().to_vec(),
        false => args.rows,
    };
    let of_paper = rows.into_iter().map(|row| Comparison::of(row, &resolved));
    let own = args.variants.iter().map(|file| Comparison::from_file(file));
    let comparisons = of_paper.chain(own).collect::<Result<Vec<Comparison>>>()?;
    let ablation = Ablation::<D> {
        device: &args.shared.device,
        base,
        named: args.model.named()?,
        small: args.model.small,
        comparisons,
        seeds: args.seeds,
        jobs: args.jobs.into(),
        splits: &splits,
        strict: args.tolerance.strict,
        data,
        out: args.out,
        stop: &STOP,
        time_limit: args.time_limit.map(|limit| (started, limit)),
        command: std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
    };
    let (tables, finished) = ablation.run()?;
    if args.json {
        outln!("{:#}", json!(tables.iter().map(Table::json).collect::<Vec<_>>()));
    } else {
        tables.iter().for_each(|table| outln!("{}", table.text()));
    }
    errln!("tables and curves: {}", ablation.out.join("ablate.html").display());
    if finished {
        return Ok(0);
    }
    errln!("stopped before the last run was finished; the same command goes on");
    Ok(130)
}
