//! `plan`.

use super::shared::{Limit, Model, sized};
use crate::device::Device;
use crate::error::Result;
use crate::inspect;
use clap::Args;

#[derive(Args)]
pub struct Plan<O: Args> {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    limit: Limit,
    #[command(flatten)]
    options: O,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Whose bytes: this program's device, by name
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

pub fn run<D: Device>(args: Plan<D::Options>) -> Result<u8> {
    args.device.as_deref().map_or(Ok(()), inspect::check_kind::<D>)?;
    let config = sized::<D>(&args.options, &args.model, &args.limit, None)?;
    inspect::print::<D>(&args.options, &config, args.json)?;
    Ok(0)
}
