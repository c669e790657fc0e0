//! The command `neighbours`.

use super::shared::{Source, Which, network, open, settle_view, start};
use crate::data::files::Files;
use crate::data::{Dataset, Splits};
use crate::device::Device;
use crate::error::Result;
use crate::inference::features::{self, Extractor};
use crate::io::progress::Progress;
use crate::viz::neighbors::{self, Ask, Kinds, Members};
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct Neighbours<O: Args> {
    #[command(flatten)]
    source: Source<O>,
    /// Whose features [default: teacher with --checkpoint, else pixels]
    #[arg(long)]
    which: Option<Which>,
    /// Folder to write the contact sheets and neighbours.json to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Neighbors of a query
    #[arg(long, default_value_t = 10)]
    k: usize,
    /// Number of queries: images of the test part, spread evenly over the classes; in a set without one, images of the set, each
    /// among all others
    #[arg(long, default_value_t = 12, value_name = "N")]
    queries: usize,
    /// Draw the queries at random by this seed
    #[arg(long, value_name = "N")]
    choose: Option<u64>,
    /// Use these images as queries instead: files, folders or patterns
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with = "choose")]
    image: Vec<PathBuf>,
    /// Draw a second row for every query: its neighbors by pixels
    #[arg(long)]
    pixels: bool,
}

/// Runs the command `neighbours`; returns the exit code.
///
/// # Errors
/// The device, the weights or the images are not usable, or the contact sheets cannot be written.
pub fn run<D: Device>(args: Neighbours<D::Options>) -> Result<u8> {
    start::<D>(&args.source.shared)?;
    let trained = args.source.checkpoint.is_some();
    let which = args.which.unwrap_or(if trained { Which::Teacher } else { Which::Pixels });
    let (mut config, weights) = network::<D>(&args.source, which)?;
    let splits = open(&args.source.data, &config)?;
    settle_view(&mut config, &*splits.train, trained);
    let unreadable = args.source.tolerance.unreadable();
    let files = Files::open(&args.image, config.decode())?;
    let Splits { train, test, held_out, .. } = &splits;
    // What was held out of training for want of a test part belongs to the bank as well: then each image is asked among all others.
    let parts: [&dyn Dataset; 2] = [&**train, &**test];
    let bank = Members::all(if *held_out { &parts } else { &parts[..1] });
    let asked = Members::of(&**test, &neighbors::choose(&**test, args.queries, args.choose));
    let (queries, chosen): (Option<&dyn Dataset>, _) = match (args.image.is_empty(), held_out) {
        (false, _) => (Some(&files), Vec::new()),
        (true, true) => (None, neighbors::choose(&bank, args.queries, args.choose)),
        (true, false) => (Some(&asked), Vec::new()),
    };
    let name = format!("{which:?}").to_lowercase();
    let mut kinds: Kinds = Vec::new();
    if let Some(weights) = &weights {
        let mut extractor = Extractor::<D>::new(&args.source.shared.device, &config, weights)?;
        let unreadable = &unreadable;
        let features = move |set: &dyn Dataset| {
            let mut progress = Progress::new(set.len(), "images");
            extractor.run(set, unreadable, |_| progress.tick())
        };
        kinds.push((&name, Box::new(features)));
    }
    if args.pixels || weights.is_none() {
        kinds.push(("pixels", Box::new(|set: &dyn Dataset| features::pixels(set, &unreadable, &config))));
    }
    let ask = Ask { k: args.k, bank: &bank, queries, chosen };
    let drawn = neighbors::draw(&ask, kinds, &unreadable, &args.out);
    unreadable.print();
    let found = drawn?;
    if args.source.json {
        outln!("{found}");
    }
    errln!(
        "{} rows of {} neighbors among {} images: {}; names and similarities in neighbours.json",
        found["rows"].as_array().map_or(0, Vec::len),
        args.k.min(bank.len() - queries.is_none() as usize),
        bank.len(),
        args.out.join("sheet-*.png").display()
    );
    Ok(0)
}
