//! The command `eval attention`.

use crate::cli::shared::{Source, Which, networks, open, start};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::any_size::AnySize;
use crate::eval::attention::{self, Jaccard};
use crate::eval::outlines;
use crate::inference::features::truncate;
use crate::inference::require;
use crate::io::progress::Progress;
use clap::Args;
use dino_kernel::model::Gives;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub struct Attention<O: Args> {
    #[command(flatten)]
    source: Source<O>,
    /// Whose attention, a list for one table [default: teacher with --checkpoint, else random]
    #[arg(long, value_delimiter = ',')]
    which: Vec<Which>,
    /// Part of a head's attention mass that its mask keeps
    #[arg(long, default_value_t = 0.6)]
    keep: f64,
    /// The block whose class token attends: 1 is the first [default: the last]
    #[arg(long)]
    block: Option<usize>,
    /// Folder of images, of any sizes (needs --masks; --data is not used then)
    #[arg(long, value_name = "DIR", requires = "masks")]
    images: Option<PathBuf>,
    /// Folder of their objects' masks: PNG files of the same names, in the same folders; 0 is the background, 255 beside other numbers
    /// is not scored
    #[arg(long, value_name = "DIR", requires = "images")]
    masks: Option<PathBuf>,
    /// With --images: shorter side that they are resized to, pixels
    #[arg(long, default_value_t = 480)]
    size: usize,
    /// With --images: take only every N-th image, as the frames of a video are much alike
    #[arg(long, default_value_t = 1)]
    every: usize,
}

/// Runs the command `eval attention`; returns the exit code.
///
/// # Errors
/// The device, the weights or the images and masks are not usable, or an option is outside its range.
pub fn run<D: Device>(args: Attention<D::Options>) -> Result<u8> {
    start::<D>(&args.source.shared)?;
    attention::check_keep(args.keep)?;
    if args.every == 0 {
        return Err(Error::new("--every 0 takes no image").hint("--every 1 takes all"));
    }
    let options = &args.source.shared.device;
    let (config, networks) = networks::<D>(&args.source, &args.which)?;
    let config = config.decoding_whole();
    require(&config.table().backbone, Gives { tokens: true, attention: true })?;
    let block = args.block.unwrap_or(config.depth);
    let pairs = match args.images.as_deref().zip(args.masks.as_deref()) {
        None => None,
        Some((images, masks)) => {
            let all = outlines::pairs(images, masks)?;
            Some(all.into_iter().step_by(args.every).collect::<Vec<_>>())
        }
    };
    let mut progress = Progress::new(pairs.as_ref().map_or(0, Vec::len) * networks.len(), "images");
    let mut rows: Vec<(String, Jaccard)> = Vec::new();
    let mut images = 0;
    for (name, weights) in &networks {
        let (short, weights) = truncate(&config, weights, block)?;
        let (jaccard, count) = match &pairs {
            Some(pairs) => {
                let mut network = AnySize::<D>::new(options, &short, &weights);
                outlines::evaluate(&mut network, &short, pairs, args.size, args.keep, || progress.tick())?
            }
            None => {
                let splits = open(&args.source.data, &config)?;
                let found = attention::evaluate::<D>(options, &short, &weights, &*splits.test, args.keep)?;
                (found, splits.test.len())
            }
        };
        images = count;
        rows.push((name.clone(), jaccard));
    }
    if let Some(without) = pairs.map(|pairs| pairs.len() - images).filter(|n| *n > 0) {
        errln!("note: {without} masks have no object and are left out");
    }
    if args.source.json {
        let networks: Vec<_> = rows.iter().map(|(name, j)| json!({"which": name, "jaccard": j})).collect();
        outln!("{}", json!({"keep": args.keep, "block": block, "images": images, "networks": networks}));
        return Ok(0);
    }
    outln!(
        "Jaccard index of attention masks with the objects, {images} images, block {block}, {} of the mass",
        args.keep
    );
    let heads: String = (0..config.heads).map(|h| format!(" {:>7}", format!("head {h}"))).collect();
    outln!("{:<10}{heads} {:>16} {:>20}", "", "best fixed head", "best of every image");
    for (name, j) in &rows {
        let heads: String = j.heads.iter().map(|x| format!(" {x:>7.3}")).collect();
        outln!("{name:<10}{heads} {:>12.3} (#{}) {:>19.3}", j.mean_best_head, j.best_head, j.best);
    }
    Ok(0)
}
