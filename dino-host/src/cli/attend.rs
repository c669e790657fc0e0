//! `attend`.

use super::shared::{Shared, Tolerance, backbone, start};
use crate::attend::{self, Part};
use crate::data::files::Files;
use crate::device::Device;
use crate::error::Result;
use crate::look::Look;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Args)]
pub struct Attend<O: Args> {
    /// checkpoint.safetensors or teacher.safetensors of a run
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// A picture of any size, a folder of pictures or a pattern such as 'a/*.jpg'; may be given several times
    #[arg(long, value_name = "PATH", required = true)]
    image: Vec<PathBuf>,
    /// Folder for the pictures; of several images each gets a folder of its own in it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Whose weights: teacher or student
    #[arg(long, default_value = "teacher", value_parser = ["teacher", "student"])]
    which: String,
    /// Whose class token, counted from 1 [default: the last block]
    #[arg(long, value_name = "N")]
    block: Option<usize>,
    /// Shorter side the image is resized to, pixels; 0 = the run's global crop
    #[arg(long, default_value_t = 0)]
    size: usize,
    /// Part of a head's attention mass that its mask keeps
    #[arg(long, default_value_t = 0.6)]
    keep: f64,
    /// What to write, a list [default: all of it]
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    write: Vec<Part>,
    #[command(flatten)]
    shared: Shared<O>,
    #[command(flatten)]
    tolerance: Tolerance,
}

pub fn run<D: Device>(args: Attend<D::Options>) -> Result<u8> {
    start::<D>(&args.shared)?;
    let (config, weights) = backbone(&args.checkpoint, &args.which)?;
    let faults = args.tolerance.faults();
    let mut look = Look::<D>::new(&args.shared.device, &config, &weights, args.block, args.size)?;
    let parts = if args.write.is_empty() { Part::value_variants() } else { &args.write };
    let files = Files::open(&args.image, config.decode())?;
    let drawn = attend::draw(&mut look, &files, &faults, args.keep, parts, &args.out);
    faults.say();
    eprintln!("{}", drawn?);
    Ok(0)
}
