//! The command `eval retrieval`.

use super::probe::{one_class, seen};
use crate::cli::shared::{Source, Which, networks, open, settle_view, start_shared};
use crate::config::Config;
use crate::data::{self, Dataset, Unreadable};
use crate::device::Device;
use crate::dist::Group;
use crate::error::{Error, Result};
use crate::eval::any_size::AnySize;
use crate::eval::ranking::{Protocol, Scores};
use crate::eval::retrieval::{self, Files, GroundTruth};
use crate::image::Decode;
use crate::image::augment::EvalView;
use crate::inference::features::{Extractor, Features};
use crate::io::progress::Progress;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Retrieval<O: Args> {
    #[command(flatten)]
    pub(super) source: Source<O>,
    /// Whose class tokens, a list for one table [default: teacher with --checkpoint, else random]
    #[arg(long, value_delimiter = ',')]
    which: Vec<Which>,
    /// Ranks k of the precision at k, a list
    #[arg(long, value_delimiter = ',', default_value = "1,5,10")]
    k: Vec<usize>,
    /// Use entire images, whose longer side is at most this many pixels [default: the square evaluation view of the run;
    /// 224 with --ground-truth]
    #[arg(long)]
    size: Option<usize>,
    /// Add the tokens of three scales: 1, 0.71, 0.5 (needs --size or --ground-truth)
    #[arg(long)]
    multi_scale: bool,
    /// Search for every test image among the other test images, instead of in the train part
    #[arg(long)]
    leave_one_out: bool,
    /// Ground truth of revisited Oxford or Paris as JSON (imlist, qimlist, gnd); --data is the folder of the images
    #[arg(long, value_name = "FILE.json")]
    ground_truth: Option<PathBuf>,
    /// Do not cut query images to their boxes
    #[arg(long)]
    whole_queries: bool,
}

/// Runs the command `eval retrieval`; returns the exit code.
///
/// # Errors
/// The device, the weights, the data set or the ground truth are not usable, or an option is outside its range.
pub fn run<D: Device>(mut args: Retrieval<D::Options>, group: &Group) -> Result<u8> {
    start_shared::<D>(&mut args.source.shared, group)?;
    if args.k.contains(&0) || args.k.is_empty() {
        return Err(Error::new("--k is above 0").hint("published: --k 1,5,10"));
    }
    if args.multi_scale && args.size.is_none() && args.ground_truth.is_none() {
        return Err(Error::new("--multi-scale needs entire images, and --size is not given")
            .hint("for example --size 224 --multi-scale"));
    }
    let truth = args.ground_truth.as_deref().map(GroundTruth::read).transpose()?;
    let (mut config, networks) = networks::<D>(&args.source, &args.which)?;
    if args.size.is_some() || truth.is_some() {
        config = config.decoding_whole();
    }
    let mut tables = Vec::new();
    // None where entire images are taken at a size of their own.
    let mut view = None;
    let (bank, queries) = match &truth {
        Some(truth) => {
            let root = Path::new(&args.source.data);
            let size = args.size.unwrap_or(224);
            let paths = |names: &[String]| names.iter().map(|n| retrieval::file(root, n)).collect::<Result<Vec<_>>>();
            // Boxes are in the pixels of the files as they are stored; the bank is seen as the queries are.
            let how = Decode { orient: config.decode().orient && args.whole_queries, ..config.decode() };
            let bank = Files { paths: paths(&truth.imlist)?, boxes: Vec::new(), how };
            let boxes = truth.gnd.iter().map(|g| g.bbx.filter(|_| !args.whole_queries)).collect();
            let queries = Files { paths: paths(&truth.qimlist)?, boxes, how };
            let all: Vec<_> = truth.gnd.iter().map(|g| g.truth.clone()).collect();
            // A row is matched to an image by its index, so none may be left out.
            let unreadable = Unreadable::new(true);
            for (name, weights) in &networks {
                let take = |set: &dyn Dataset| tokens::<D>(&args, &config, weights, set, &unreadable, Some(size));
                let scores = retrieval::by_truth(take(&bank)?.rows, take(&queries)?.rows, &all, &args.k)?;
                for (protocol, scores) in Protocol::ALL.iter().zip(scores) {
                    tables.push((name.clone(), format!("{protocol:?}").to_lowercase(), scores));
                }
            }
            (bank.len(), queries.len())
        }
        None => {
            let splits = open(&args.source.data, &config)?;
            if args.size.is_none() {
                view = Some(settle_view(&mut config, &*splits.train, args.source.checkpoint.is_some()));
            }
            let (queries, unreadable) = (&*splits.test, args.source.tolerance.unreadable());
            let bank = if args.leave_one_out { queries } else { &*splits.train };
            let unlabelled = || {
                Error::new(format!("{} has no labels", args.source.data))
                    .hint("class folders give labels, or --ground-truth")
            };
            if bank.classes().is_empty() || queries.classes().is_empty() {
                return Err(unlabelled());
            }
            if let Some(class) = data::only_class(&splits) {
                return Err(one_class(&args.source.data, class));
            }
            for (name, weights) in &networks {
                let take = |set: &dyn Dataset| tokens::<D>(&args, &config, weights, set, &unreadable, args.size);
                let found = take(queries)?;
                let of_bank = if args.leave_one_out {
                    Features { rows: found.rows.clone(), images: found.images.clone() }
                } else {
                    take(bank)?
                };
                let (bank_labels, labels) = of_bank.labels(bank).zip(found.labels(queries)).ok_or_else(unlabelled)?;
                let scores =
                    retrieval::by_class(of_bank.rows, &bank_labels, found.rows, &labels, args.leave_one_out, &args.k)?;
                tables.push((name.clone(), "class".into(), scores));
            }
            unreadable.print();
            (bank.len(), queries.len())
        }
    };
    print(&args, (&config, view), [bank, queries], &tables);
    Ok(0)
}

/// Class tokens: of the square evaluation view, or of entire images.
fn tokens<D: Device>(
    args: &Retrieval<D::Options>,
    config: &Config,
    weights: &[f32],
    set: &dyn Dataset,
    unreadable: &Unreadable,
    size: Option<usize>,
) -> Result<Features> {
    let options = &args.source.shared.device;
    let mut progress = Progress::new(set.len(), "images");
    match size {
        None => {
            let mut extractor = Extractor::<D>::new(options, config, weights)?;
            extractor.share(&args.source.shared.group);
            let found = extractor.run(set, unreadable, |_| progress.tick())?;
            unreadable.collect_at_first(&args.source.shared.group, set, set)?;
            Ok(found)
        }
        Some(size) => {
            let mut network = AnySize::<D>::new(options, config, weights);
            let group = &args.source.shared.group;
            let tick = || progress.tick();
            let found = retrieval::tokens(&mut network, config, set, unreadable, size, args.multi_scale, group, tick)?;
            unreadable.collect_at_first(group, set, set)?;
            Ok(found)
        }
    }
}

fn print<O: Args>(
    args: &Retrieval<O>,
    (config, view): (&Config, Option<EvalView>),
    [bank, queries]: [usize; 2],
    tables: &[(String, String, Scores)],
) {
    if args.source.json {
        let rows: Vec<_> = tables
            .iter()
            .map(|(name, protocol, s)| json!({"which": name, "protocol": protocol, "queries": s.queries, "map": s.map, "precision": s.precision}))
            .collect();
        let view = view.map(EvalView::name);
        outln!("{}", json!({"bank": bank, "queries": queries, "eval_view": view, "k": args.k, "scores": rows}));
        return;
    }
    outln!("Retrieval, bank {bank}, queries {queries}, percent");
    view.iter().for_each(|view| outln!("{}", seen(config, *view)));
    let ks: String = args.k.iter().map(|k| format!(" {:>8}", format!("mP@{k}"))).collect();
    outln!("{:<10} {:<8} {:>8} {:>8}{ks}", "", "", "queries", "mAP");
    for (name, protocol, s) in tables {
        let precision: String = s.precision.iter().map(|p| format!(" {:>8.2}", 100.0 * p)).collect();
        outln!("{name:<10} {protocol:<8} {:>8} {:>8.2}{precision}", s.queries, 100.0 * s.map);
    }
}
