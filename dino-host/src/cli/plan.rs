//! The command `plan`.

use super::shared::{Limit, Model, Shared, sized, threads};
use crate::device::Device;
use crate::error::Result;
use crate::planning::exchange::Ranks;
use crate::planning::inspect;
use clap::Args;

#[derive(Args)]
pub struct Plan<O: Args> {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    limit: Limit,
    #[command(flatten)]
    ranks: Ranks,
    #[command(flatten)]
    shared: Shared<O>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Whose bytes: this program's device, by name
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

/// Runs the command `plan`; returns the exit code.
///
/// # Errors
/// `--device` names another device, the configuration is not valid, or no micro-batch fits `--mem-limit`.
pub fn run<D: Device>(mut args: Plan<D::Options>) -> Result<u8> {
    if args.model.lists_presets() {
        return Ok(0);
    }
    args.device.as_deref().map_or(Ok(()), inspect::check_kind::<D>)?;
    threads(args.shared.threads)?;
    args.ranks.check()?;
    let ranks = args.ranks.ranks.unwrap_or(1);
    args.model.shard_for(ranks)?;
    let options = &args.shared.device;
    let config = sized::<D>(options, &args.model, &args.limit, None, ranks)?;
    inspect::print::<D>(options, &config, &args.ranks, args.json)?;
    Ok(0)
}
