//! The command `crops`.

use super::shared::{Model, Tolerance, backbone, open, print_left_out, recorded};
use crate::device::Device;
use crate::error::Result;
use crate::viz::contact_sheet;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct Crops {
    #[command(flatten)]
    model: Model,
    /// The configuration of this run's checkpoint.safetensors or teacher.safetensors, instead of flags
    #[arg(long, value_name = "FILE", conflicts_with = "small")]
    checkpoint: Option<PathBuf>,
    /// Images, as `train` takes them, or `builtin`
    #[arg(long, value_name = "PATH")]
    data: String,
    /// Folder to write the contact sheets to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How many images, in the order in which the epoch takes them
    #[arg(long, default_value_t = 16)]
    images: usize,
    /// Which epoch, counted from 0
    #[arg(long, default_value_t = 0)]
    epoch: u64,
    #[command(flatten)]
    tolerance: Tolerance,
}

/// Runs the command `crops`; returns the exit code.
///
/// # Errors
/// The configuration is not valid, the data set cannot be opened, or the contact sheets cannot be written.
pub fn run<D: Device>(args: Crops) -> Result<u8> {
    let config = match &args.checkpoint {
        Some(file) => recorded(&backbone(file, "teacher", None)?.0, &args.model)?,
        None => args.model.resolve::<D>(Some(&args.data))?,
    };
    let (splits, unreadable) = (open(&args.data, &config)?, args.tolerance.unreadable());
    print_left_out(&config);
    let drawn = contact_sheet::draw(&config, &*splits.train, &unreadable, args.epoch, args.images, &args.out);
    unreadable.print();
    errln!("{}", drawn?);
    Ok(0)
}
