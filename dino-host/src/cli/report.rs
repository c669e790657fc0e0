//! `report`.

use super::shared::{Shared, Tolerance, backbone, open, start};
use crate::device::Device;
use crate::error::Result;
use crate::log::write_atomically;
use crate::report::{self, evidence};
use crate::train;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
pub struct Report<O: Args> {
    /// The folder of a run
    #[arg(value_name = "DIR")]
    run: PathBuf,
    /// Where the images are now [default: where the run found them]
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// The page [default: report.html in DIR]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Most images of each part that neighbours and confusion are made of; 0 leaves both out
    #[arg(long, default_value_t = 5000)]
    images: usize,
    #[command(flatten)]
    shared: Shared<O>,
    #[command(flatten)]
    tolerance: Tolerance,
}

pub fn run<D: Device>(args: Report<D::Options>) -> Result<u8> {
    start::<D>(&args.shared)?;
    let faults = args.tolerance.faults();
    // A page without them is still a page: it says what is missing and why.
    let gather = || {
        let (config, teacher) = backbone(&args.run.join(train::TEACHER), "teacher")?;
        let data = args.data.clone().map_or_else(|| train::recorded_data(&args.run), Ok)?;
        let splits = open(&data, &config)?;
        evidence::gather::<D>(&args.shared.device, &config, &teacher, &splits, &faults, args.images)
    };
    let evidence = if args.images == 0 { Ok(evidence::Evidence::default()) } else { gather() };
    faults.say();
    if let Err(e) = &evidence {
        eprintln!("note: neighbours and confusion are left out: {e}");
    }
    let page = report::page(&args.run, evidence)?;
    let out = args.out.unwrap_or_else(|| args.run.join("report.html"));
    write_atomically(&out, |file| file.write_all(page.as_bytes()))?;
    eprintln!("{} ({} KB)", out.display(), page.len().div_ceil(1000));
    Ok(0)
}
