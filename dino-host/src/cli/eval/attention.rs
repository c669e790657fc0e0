//! `eval attention`.

use crate::cli::shared::{Source, Which, network, open, start};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::attention;
use clap::Args;

#[derive(Args)]
pub struct Attention<O: Args> {
    #[command(flatten)]
    source: Source<O>,
    /// Whose attention [default: teacher with --checkpoint, else random]
    #[arg(long)]
    which: Option<Which>,
    /// Part of a head's attention mass that its mask keeps
    #[arg(long, default_value_t = 0.6)]
    keep: f64,
}

pub fn run<D: Device>(args: Attention<D::Options>) -> Result<u8> {
    start::<D>(&args.source.shared)?;
    let trained = args.source.checkpoint.is_some();
    let which = args.which.unwrap_or(if trained { Which::Teacher } else { Which::Random });
    let (config, weights) = network::<D>(&args.source, which)?;
    let weights =
        weights.ok_or_else(|| Error::new("pixels do not attend").hint("--which teacher, student or random"))?;
    let splits = open(&args.source.data, &config)?;
    let jaccard = attention::evaluate::<D>(&args.source.shared.device, &config, &weights, &*splits.test, args.keep)?;
    let name = format!("{which:?}").to_lowercase();
    if args.source.json {
        println!("{}", serde_json::json!({"which": name, "keep": args.keep, "jaccard": jaccard}));
    } else {
        println!("Jaccard index of attention masks with the objects, {name}, {} images", splits.test.len());
        jaccard.heads.iter().enumerate().for_each(|(h, j)| println!("head {h}: {j:.3}"));
        println!("best head of every image: {:.3}", jaccard.best);
    }
    Ok(0)
}
