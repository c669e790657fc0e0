//! The command `features`.

use super::shared::{Shared, Tolerance, backbone, open, settle_view, start_shared};
use crate::config::Config;
use crate::device::Device;
use crate::dist::Group;
use crate::error::Result;
use crate::inference::export;
use crate::inference::features::{Extractor, Tokens};
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct Features<O: Args> {
    /// Weights: checkpoint.safetensors or teacher.safetensors of a run, or published ones (.pth, timm, Hugging Face)
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// Images, as `train` takes them, or `builtin`
    #[arg(long, value_name = "PATH")]
    data: String,
    /// Folder for the array and the list of images
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Whose weights: teacher or student
    #[arg(long, default_value = "teacher", value_parser = ["teacher", "student"])]
    which: String,
    /// Use the network whose tensor names begin with this prefix instead: `backbone`, `state_dict_ema`
    #[arg(long, value_name = "PREFIX", conflicts_with = "which")]
    network: Option<String>,
    #[arg(long, default_value = "class")]
    tokens: Tokens,
    /// How images become the squares that the network takes: resize-crop, whole or auto [default: as recorded with the weights]
    #[arg(long)]
    eval_view: Option<String>,
    #[arg(long, default_value = "npy")]
    format: export::Format,
    #[command(flatten)]
    pub(super) shared: Shared<O>,
    #[command(flatten)]
    tolerance: Tolerance,
}

/// Runs the command `features`; returns the exit code.
///
/// # Errors
/// The device, the weights or the data set are not usable, or the output cannot be written.
pub fn run<D: Device>(mut args: Features<D::Options>, group: &Group) -> Result<u8> {
    start_shared::<D>(&mut args.shared, group)?;
    let (mut config, weights) = backbone(&args.checkpoint, &args.which, args.network.as_deref())?;
    if let Some(view) = args.eval_view {
        config = Config { eval_view: view, ..config }.resolve()?;
    }
    let (splits, unreadable) = (open(&args.data, &config)?, args.tolerance.unreadable());
    settle_view(&mut config, &*splits.train, true);
    let mut extractor = Extractor::<D>::of(args.tokens, &args.shared.device, &config, &weights)?;
    extractor.share(group);
    if !group.is_first() {
        // The first process writes, and reports what could not be read; the others compute their part.
        for set in [&*splits.train, &*splits.test] {
            extractor.each(set, &unreadable, |_, _| Ok(()))?;
        }
        return unreadable.collect_at_first(group, &*splits.train, &*splits.test).map(|()| 0);
    }
    let written = export::write(&mut extractor, &config, args.tokens, &splits, &unreadable, args.format, &args.out);
    if written.is_ok() {
        unreadable.collect_at_first(group, &*splits.train, &*splits.test)?;
    }
    unreadable.print();
    errln!("{}", written?);
    Ok(0)
}
