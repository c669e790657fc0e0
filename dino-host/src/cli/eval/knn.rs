//! `eval knn`.

use crate::cli::shared::{Source, Which, network, open, start};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::knn;
use crate::features::{self, Extractor};
use clap::Args;

#[derive(Args)]
pub struct Knn<O: Args> {
    #[command(flatten)]
    source: Source<O>,
    /// Neighbours, a list
    #[arg(long, value_delimiter = ',', default_value = "10,20,100,200")]
    k: Vec<usize>,
    #[arg(long, default_value_t = 0.07)]
    temperature: f64,
    /// Whose features [default: teacher with --checkpoint, else pixels]
    #[arg(long)]
    which: Option<Which>,
}

pub fn run<D: Device>(args: Knn<D::Options>) -> Result<u8> {
    start::<D>(&args.source.shared)?;
    if args.k.contains(&0) || args.k.is_empty() || !(args.temperature > 0.0 && args.temperature.is_finite()) {
        return Err(
            Error::new("--k and --temperature are above 0").hint("published: --k 10,20,100,200 --temperature 0.07")
        );
    }
    let trained = args.source.checkpoint.is_some();
    let which = args.which.unwrap_or(if trained { Which::Teacher } else { Which::Pixels });
    let (mut config, weights) = network::<D>(&args.source, which)?;
    let splits = open(&args.source.data, &config)?;
    let unlabelled = || Error::new(format!("{} has no labels", args.source.data)).hint("class folders give labels");
    if splits.train.classes().is_empty() || splits.test.classes().is_empty() {
        return Err(unlabelled());
    }
    let (train, test, faults) = (&*splits.train, &*splits.test, args.source.tolerance.faults());
    // The preset may enlarge small images for its patches; pixels by themselves are taken as they are, unless a size was asked for.
    if which == Which::Pixels && !trained && args.source.model.named()?.global_size.is_none() {
        match faults.image(train, 0)? {
            Some(first) if first.width == first.height => {
                config.global_size = config.global_size.min(first.width);
            }
            _ => (),
        }
    }
    let (bank, queries) = match weights {
        None => (features::pixels(train, &faults, &config)?, features::pixels(test, &faults, &config)?),
        Some(weights) => {
            let mut extractor = Extractor::<D>::new(&args.source.shared.device, &config, &weights)?;
            (extractor.run(train, &faults, |_| ())?, extractor.run(test, &faults, |_| ())?)
        }
    };
    faults.say();
    let (bank_labels, labels) = bank.labels(train).zip(queries.labels(test)).ok_or_else(unlabelled)?;
    let width = bank.rows.ncols();
    let scores = knn::evaluate(bank.rows, &bank_labels, queries.rows, &labels, &args.k, args.temperature)?;
    let name = format!("{which:?}").to_lowercase();
    if args.source.json {
        let json = serde_json::json!({
            "which": name, "bank": bank_labels.len(), "queries": labels.len(), "width": width,
            "temperature": args.temperature, "scores": scores,
        });
        println!("{json}");
    } else {
        println!("k-NN, {name}, {width} numbers an image, bank {}, queries {}", bank_labels.len(), labels.len());
        println!("{:>6} {:>8} {:>8}", "k", "top-1 %", "top-5 %");
        scores.iter().for_each(|s| println!("{:>6} {:>8.2} {:>8.2}", s.k, s.top1, s.top5));
    }
    Ok(0)
}
