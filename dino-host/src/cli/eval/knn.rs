//! `eval knn`.

use super::probe::{Detail, Subject, detail_json, labels, print_baseline, print_detail, unlabelled};
use crate::cli::shared::{Source, Which, start};
use crate::data::Dataset;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::judged::{self, Baseline, Judged, Labels};
use crate::eval::knn;
use clap::{Args, ValueEnum};
use ndarray::{Array2, Axis, concatenate};

#[derive(Args)]
pub struct Knn<O: Args> {
    #[command(flatten)]
    source: Source<O>,
    /// Neighbours, a list
    #[arg(long, value_delimiter = ',', default_value = "10,20,100,200")]
    k: Vec<usize>,
    #[arg(long, default_value_t = knn::TEMPERATURE)]
    temperature: f64,
    /// Whose features [default: teacher with --checkpoint, else pixels]
    #[arg(long)]
    which: Option<Which>,
    /// Every image votes on every other, none on itself: for sets too small to be cut in two, or without a test part. PART is train,
    /// test or all of both
    #[arg(long, value_name = "PART", num_args = 0..=1, default_missing_value = "all")]
    leave_one_out: Option<Part>,
    #[command(flatten)]
    detail: Detail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Train,
    Test,
    All,
}

/// The k whose predictions are shown class by class, where it is among those asked for: the published best.
const SHOWN: usize = 20;

pub fn run<D: Device>(args: Knn<D::Options>) -> Result<u8> {
    start::<D>(&args.source.shared)?;
    if args.k.contains(&0) || args.k.is_empty() {
        return Err(Error::new("--k is above 0").hint("published: --k 10,20,100,200"));
    }
    knn::check_temperature(args.temperature, knn::TEMPERATURE)?;
    let subject = match args.leave_one_out {
        Some(Part::Train) => Subject::of_training_part::<D>(&args.source, args.which)?,
        _ => Subject::open::<D>(&args.source, args.which)?,
    };
    let (train, test) = (&*subject.splits.train, &*subject.splits.test);
    let mut extractor = subject.extractor::<D>(&args.source.shared.device, 1, false)?;
    let mut of = |set: &dyn Dataset| -> Result<(Array2<f32>, Vec<u32>)> {
        let found = subject.features(&mut extractor, set)?;
        let labels = labels(&found, set, &args.source.data)?;
        Ok((found.rows, labels))
    };
    let most = args.k.iter().copied().max().unwrap_or(0);
    let (found, labels, width) = match args.leave_one_out {
        None => {
            let ((bank, bank_labels), (queries, query_labels)) = (of(train)?, of(test)?);
            if bank.is_empty() || queries.is_empty() {
                return Err(Error::new(format!(
                    "k-NN needs images on both sides: {} in the bank, {} queries",
                    bank.nrows(),
                    queries.nrows()
                ))
                .hint("--leave-one-out judges a set by itself"));
            }
            judged::check(bank.view(), "training")?;
            judged::check(queries.view(), "test")?;
            let labels = Labels::new(train.classes(), &bank_labels, &query_labels);
            let width = bank.ncols();
            (knn::neighbours(knn::normalise(bank).view(), knn::normalise(queries).view(), most), labels, width)
        }
        Some(part) => {
            let (rows, all) = match part {
                Part::Train => of(train)?,
                Part::Test => of(test)?,
                Part::All => {
                    let ((a, mut a_labels), (b, b_labels)) = (of(train)?, of(test)?);
                    a_labels.extend(b_labels);
                    (concatenate(Axis(0), &[a.view(), b.view()]).map_err(|e| Error::new(e.to_string()))?, a_labels)
                }
            };
            if rows.nrows() < 2 {
                return Err(Error::new(format!("leave-one-out needs two images, there are {}", rows.nrows()))
                    .hint("--leave-one-out all takes those of both parts"));
            }
            judged::check(rows.view(), "the")?;
            let (labels, width) = (Labels::new(train.classes(), &all, &all), rows.ncols());
            (knn::leave_one_out(knn::normalise(rows).view(), most), labels, width)
        }
    };
    let classes = labels.classes.len();
    if classes == 0 {
        return Err(unlabelled(&args.source.data));
    }
    let scores = knn::scores(&found, &labels.train, &labels.test, &args.k, args.temperature);
    let k = if args.k.contains(&SHOWN) { SHOWN } else { args.k[0] };
    let predicted = knn::predict(&found, &labels.train, k, args.temperature);
    let judged = Judged::new(&predicted, &labels.test, &labels.classes);
    let baseline = Baseline::new(&labels);
    let alone = args.leave_one_out.is_some();
    let (name, bank) = (subject.name(), labels.train.len());
    let voters = bank - alone as usize;
    if args.source.json {
        let mut json = serde_json::json!({
            "which": name, "bank": bank, "queries": labels.test.len(), "width": width,
            "eval_view": subject.view.name(),
            "temperature": args.temperature, "scores": scores, "leave_one_out": alone, "shown_k": k,
        });
        let detail = detail_json(&judged, &labels.classes, &baseline);
        json.as_object_mut().into_iter().for_each(|o| o.extend(detail.as_object().cloned().unwrap_or_default()));
        outln!("{json}");
        return Ok(0);
    }
    match alone {
        false => outln!("k-NN, {name}, {width} numbers an image, bank {bank}, queries {}", labels.test.len()),
        true => outln!("k-NN, leave-one-out, {name}, {width} numbers an image, {bank} images"),
    }
    outln!("{:>6} {:>8} {:>8}", "k", "top-1 %", "top-5 %");
    scores.iter().for_each(|s| outln!("{:>6} {:>8.2} {:>8.2}", s.k, s.top1, s.top5));
    outln!("{}", subject.seen());
    if most > voters {
        outln!("an image has {voters} others to vote: all of them do where k is larger");
    }
    let single = labels.count(&labels.train).iter().filter(|n| **n == 1).count();
    if alone && single > 0 {
        outln!("{single} classes have one image, which no other can name");
    }
    print_baseline(&baseline, labels.count(&labels.train).iter().filter(|n| **n > 0).count());
    print_detail(&args.detail, &judged, &labels.classes, &format!("k = {k}"));
    Ok(0)
}
