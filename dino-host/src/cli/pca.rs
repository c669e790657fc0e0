//! The command `pca`.

use super::shared::{Shared, Tolerance, backbone, start};
use crate::data::files::Files;
use crate::device::Device;
use crate::error::Result;
use crate::inference::dense::DenseExtractor;
use crate::inference::require;
use crate::viz::pca;
use clap::Args;
use dino_kernel::model::Gives;
use std::path::PathBuf;

#[derive(Args)]
pub struct Pca<O: Args> {
    /// checkpoint.safetensors or teacher.safetensors of a run
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// Images of any size, folders of images, or patterns such as 'a/*.jpg'; all share their colors
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    image: Vec<PathBuf>,
    /// Folder to write the figures to; each of several images gets a folder of its own in it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Whose weights: teacher or student
    #[arg(long, default_value = "teacher", value_parser = ["teacher", "student"])]
    which: String,
    /// Use the network whose tensor names begin with this prefix instead: `backbone`, `state_dict_ema`
    #[arg(long, value_name = "PREFIX", conflicts_with = "which")]
    network: Option<String>,
    /// After which block, counted from 1 [default: the last]; the final norm follows
    #[arg(long, value_name = "N")]
    block: Option<usize>,
    /// Shorter side the image is resized to, pixels; 0 = the run's global crop
    #[arg(long, default_value_t = 0)]
    size: usize,
    /// Split the patches in two by the first component, and color the part with fewer border patches by its own components
    #[arg(long)]
    foreground: bool,
    /// Print pca.json
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    shared: Shared<O>,
    #[command(flatten)]
    tolerance: Tolerance,
}

/// Runs the command `pca`; returns the exit code.
///
/// # Errors
/// The device, the weights or the images are not usable, or the figures cannot be written.
pub fn run<D: Device>(args: Pca<D::Options>) -> Result<u8> {
    start::<D>(&args.shared)?;
    let (config, weights) = backbone(&args.checkpoint, &args.which, args.network.as_deref())?;
    let config = config.decoding_whole();
    require(&config.table().backbone, Gives { tokens: true, attention: false })?;
    let unreadable = args.tolerance.unreadable();
    let mut extractor = DenseExtractor::<D>::new(&args.shared.device, &config, &weights, args.block, args.size)?;
    let files = Files::open(&args.image, config.decode())?;
    let drawn = pca::draw(&mut extractor, &files, &unreadable, args.foreground, &args.out);
    unreadable.print();
    let found = drawn?;
    if args.json {
        outln!("{found}");
    }
    let percent = |i: usize| 100.0 * found["explained_variance_ratio"][i].as_f64().unwrap_or(0.0);
    errln!(
        "{} patches of {} images; red, green and blue hold {:.1}, {:.1} and {:.1} % of the variance: {}",
        found["foreground_patches"],
        found["images"].as_array().map_or(0, Vec::len),
        percent(0),
        percent(1),
        percent(2),
        args.out.join("sheet-*.png").display()
    );
    Ok(0)
}
