//! `attend`.

use super::shared::{Shared, backbone, start};
use crate::device::Device;
use crate::error::Result;
use crate::{attend, data};
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct Attend<O: Args> {
    /// Weights: checkpoint.safetensors or teacher.safetensors of a run, or published ones (.pth, timm, Hugging Face)
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// A picture file, any size
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Folder for the pictures
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Shorter side the image is resized to, pixels; 0 = the run's global crop
    #[arg(long, default_value_t = 0)]
    size: usize,
    /// Part of a head's attention mass that its mask keeps
    #[arg(long, default_value_t = 0.6)]
    keep: f64,
    #[command(flatten)]
    shared: Shared<O>,
}

pub fn run<D: Device>(args: Attend<D::Options>) -> Result<u8> {
    start::<D>(&args.shared)?;
    let (config, weights) = backbone(&args.checkpoint, "teacher")?;
    let image = data::decode(&args.image, config.decode())?;
    attend::draw::<D>(&args.shared.device, &config, &weights, &image, args.size, args.keep, &args.out)?;
    Ok(0)
}
