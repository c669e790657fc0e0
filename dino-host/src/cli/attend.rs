//! The command `attend`.

use super::shared::{Shared, Tolerance, backbone, start};
use crate::data::files::Files;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::inference::dense::DenseExtractor;
use crate::inference::{require, require_map};
use crate::viz::animation::Format;
use crate::viz::attention::{self, Kind, Part};
use crate::viz::video::{self, Range, Show, Style};
use clap::{Args, ValueEnum};
use dino_kernel::model::Gives;
use std::path::PathBuf;

#[derive(Args)]
pub struct Attend<O: Args> {
    /// Weights: checkpoint.safetensors or teacher.safetensors of a run, or published ones (.pth, timm, Hugging Face)
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// Images of any size, folders of images, or patterns such as 'a/*.jpg'
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present = "frames", conflicts_with = "frames")]
    image: Vec<PathBuf>,
    /// Frames of a video, as a folder or a pattern, sorted by name; --animate makes one video of them instead of figures
    #[arg(long, value_name = "PATH", requires = "animate")]
    frames: Option<PathBuf>,
    /// Format of the video
    #[arg(long, value_name = "FORMAT", requires = "frames", conflicts_with = "image")]
    animate: Option<Format>,
    /// Frames of the video a second
    #[arg(long, default_value_t = 30, value_name = "N")]
    fps: u16,
    /// Which attention the colors of the video range over, from the least to the greatest
    #[arg(long, default_value = "film")]
    range: Range,
    /// What every frame of the video shows
    #[arg(long, default_value = "mean")]
    show: Show,
    /// Folder to write the figures to; each of several images gets a folder of its own in it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Whose weights: teacher or student
    #[arg(long, default_value = "teacher", value_parser = ["teacher", "student"])]
    which: String,
    /// Use the network whose tensor names begin with this prefix instead: `backbone`, `state_dict_ema`
    #[arg(long, value_name = "PREFIX", conflicts_with = "which")]
    network: Option<String>,
    /// Whose class token, counted from 1 [default: the last block]
    #[arg(long, value_name = "N")]
    block: Option<usize>,
    /// Draw the class activation of the last feature map of a ResNet, which has no attention: Eigen-CAM, which needs no classifier
    #[arg(long, conflicts_with_all = ["frames", "block"])]
    cam: bool,
    /// Shorter side the image is resized to, pixels; 0 = the run's global crop
    #[arg(long, default_value_t = 0)]
    size: usize,
    /// Part of a head's attention mass that its mask keeps
    #[arg(long, default_value_t = 0.6)]
    keep: f64,
    /// What to write, a list [default: everything; with --animate, npy keeps the numbers too]
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    write: Vec<Part>,
    #[command(flatten)]
    shared: Shared<O>,
    #[command(flatten)]
    tolerance: Tolerance,
}

/// Runs the command `attend`; returns the exit code.
///
/// # Errors
/// The device is not there, the weights or images cannot be read or do not fit the options, or the output cannot be written.
pub fn run<D: Device>(args: Attend<D::Options>) -> Result<u8> {
    start::<D>(&args.shared)?;
    let (config, weights) = backbone(&args.checkpoint, &args.which, args.network.as_deref())?;
    let config = config.decoding_whole();
    match args.cam {
        true => require_map(&config.table().backbone)?,
        false => require(&config.table().backbone, Gives { tokens: true, attention: true })?,
    }
    if args.cam && args.write.contains(&Part::Heads) {
        return Err(Error::new("--write heads draws a color a head, and a class activation has no heads")
            .hint("--write overlay,mask and the like, or leave it out"));
    }
    let unreadable = args.tolerance.unreadable();
    let mut extractor = DenseExtractor::<D>::new(&args.shared.device, &config, &weights, args.block, args.size)?;
    if let (Some(frames), Some(format)) = (args.frames, args.animate) {
        let keep_numbers = args.write.is_empty() || args.write.contains(&Part::Npy);
        let Attend { fps, range, show, keep, .. } = args;
        let style = Style { format, fps, range, show, keep, keep_numbers };
        let files = Files::open(&[frames], config.decode())?;
        let drawn = video::draw(&mut extractor, &files, &unreadable, style, &args.out);
        unreadable.print();
        errln!("{}", drawn?);
        return Ok(0);
    }
    let parts = if args.write.is_empty() { Part::value_variants() } else { &args.write };
    let files = Files::open(&args.image, config.decode())?;
    let kind = if args.cam { Kind::Activation } else { Kind::Heads };
    let drawn = attention::draw(&mut extractor, kind, &files, &unreadable, args.keep, parts, &args.out);
    unreadable.print();
    errln!("{}", drawn?);
    Ok(0)
}
