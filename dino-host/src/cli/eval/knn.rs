//! The command `eval knn`.

use super::probe::{Detail, Subject, detail_json, labels, print_baseline, print_detail, unlabelled};
use crate::cli::shared::{Source, Which, start_shared};
use crate::data::Dataset;
use crate::device::Device;
use crate::dist::Group;
use crate::error::{Error, Result};
use crate::eval::knn::{self, Score};
use crate::eval::scores::{self, Baseline, ClassScores, Labels};
use clap::{Args, ValueEnum};
use ndarray::{Array2, Axis, concatenate};
use serde_json::{Value, json};

#[derive(Args)]
pub struct Knn<O: Args> {
    #[command(flatten)]
    pub(super) source: Source<O>,
    /// Number of neighbors k, a list
    #[arg(long, value_delimiter = ',', default_value = "10,20,100,200")]
    k: Vec<usize>,
    #[arg(long, default_value_t = knn::TEMPERATURE)]
    temperature: f64,
    /// Whose features, a list for one table [default: teacher with --checkpoint, else pixels]
    #[arg(long, value_delimiter = ',')]
    which: Vec<Which>,
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

/// The k whose predictions are shown class by class, where it is among those requested: the published best.
const SHOWN: usize = 20;

/// The result of the vote for one network, or for pixels.
struct Vote {
    name: String,
    /// Numbers an image.
    width: usize,
    labels: Labels,
    /// How images were preprocessed, by name and as text.
    view: &'static str,
    seen: String,
    scores: Vec<Score>,
    /// At [`SHOWN`], or the first k requested.
    class_scores: ClassScores,
}

/// Runs the command `eval knn`; returns the exit code.
///
/// # Errors
/// The device, the weights or the labeled data set are not usable, or an option is outside its range.
pub fn run<D: Device>(mut args: Knn<D::Options>, group: &Group) -> Result<u8> {
    start_shared::<D>(&mut args.source.shared, group)?;
    if args.k.contains(&0) || args.k.is_empty() {
        return Err(Error::new("--k is above 0").hint("published: --k 10,20,100,200"));
    }
    knn::check_temperature(args.temperature, knn::TEMPERATURE)?;
    let first = args.which.first().copied();
    let mut subject = match args.leave_one_out {
        Some(Part::Train) => Subject::<D>::of_training_part(&args.source, first)?,
        _ => Subject::<D>::open(&args.source, first)?,
    };
    let mut votes = vec![vote::<D>(&args, &subject)?];
    for &which in args.which.iter().skip(1) {
        subject = subject.switch_to(&args.source, which)?;
        votes.push(vote::<D>(&args, &subject)?);
    }
    if args.source.json {
        let results: Vec<_> = votes.iter().map(|vote| json(&args, vote)).collect();
        match &results[..] {
            [only] => outln!("{only}"),
            _ => outln!("{}", json!({"results": results})),
        }
    } else {
        print(&args, &votes);
    }
    Ok(0)
}

/// Lets the neighbors of every image vote.
fn vote<D: Device>(args: &Knn<D::Options>, subject: &Subject<D>) -> Result<Vote> {
    let (train, test) = (&*subject.splits.train, &*subject.splits.test);
    let mut extractor = subject.extractor(1, false)?;
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
                .hint("--leave-one-out evaluates a set on itself"));
            }
            scores::check(bank.view(), "training")?;
            scores::check(queries.view(), "test")?;
            let labels = Labels::new(train.classes(), &bank_labels, &query_labels);
            let width = bank.ncols();
            let (bank, queries) = (knn::normalize(bank), knn::normalize(queries));
            let group = &args.source.shared.group;
            (knn::neighbors_shared(bank.view(), queries.view(), most, group)?, labels, width)
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
            scores::check(rows.view(), "the")?;
            let (labels, width) = (Labels::new(train.classes(), &all, &all), rows.ncols());
            (knn::leave_one_out(knn::normalize(rows).view(), most), labels, width)
        }
    };
    let classes = labels.classes.len();
    if classes == 0 {
        return Err(unlabelled(&args.source.data));
    }
    let scores = knn::scores(&found, &labels.train, &labels.test, &args.k, args.temperature);
    let predicted = knn::predict(&found, &labels.train, shown(args), args.temperature);
    let class_scores = ClassScores::new(&predicted, &labels.test, &labels.classes);
    let (name, view, seen) = (subject.name(), subject.view.name(), subject.seen());
    Ok(Vote { name, width, labels, view, seen, scores, class_scores })
}

/// The k of predictions that are shown class by class.
fn shown<O: Args>(args: &Knn<O>) -> usize {
    if args.k.contains(&SHOWN) { SHOWN } else { args.k[0] }
}

fn json<O: Args>(args: &Knn<O>, vote: &Vote) -> Value {
    let Vote { name, width, labels, view, scores, class_scores, .. } = vote;
    let mut json = json!({
        "which": name, "bank": labels.train.len(), "queries": labels.test.len(), "width": width,
        "eval_view": view, "temperature": args.temperature, "scores": scores,
        "leave_one_out": args.leave_one_out.is_some(), "shown_k": shown(args),
    });
    let detail = detail_json(class_scores, &labels.classes, &Baseline::new(labels));
    json.as_object_mut().into_iter().for_each(|o| o.extend(detail.as_object().cloned().unwrap_or_default()));
    json
}

fn print<O: Args>(args: &Knn<O>, votes: &[Vote]) {
    let (labels, alone) = (&votes[0].labels, args.leave_one_out.is_some());
    let (bank, queries) = (labels.train.len(), labels.test.len());
    match (votes, alone) {
        ([Vote { name, width, .. }], false) => {
            outln!("k-NN, {name}, {width} numbers an image, bank {bank}, queries {queries}");
        }
        ([Vote { name, width, .. }], true) => {
            outln!("k-NN, leave-one-out, {name}, {width} numbers an image, {bank} images");
        }
        (_, false) => outln!("k-NN, bank {bank}, queries {queries}"),
        (_, true) => outln!("k-NN, leave-one-out, {bank} images"),
    }
    if let [Vote { scores, seen, .. }] = votes {
        outln!("{:>6} {:>8} {:>8}", "k", "top-1 %", "top-5 %");
        scores.iter().for_each(|s| outln!("{:>6} {:>8.2} {:>8.2}", s.k, s.top1, s.top5));
        outln!("{seen}");
    } else {
        outln!("{:<8} {:>6} {:>8} {:>8}", "", "k", "top-1 %", "top-5 %");
        for Vote { name, scores, .. } in votes {
            scores.iter().for_each(|s| outln!("{name:<8} {:>6} {:>8.2} {:>8.2}", s.k, s.top1, s.top5));
        }
        votes.iter().for_each(|v| outln!("{}: {} numbers an image, {}", v.name, v.width, v.seen));
    }
    let voters = bank - alone as usize;
    if args.k.iter().any(|k| *k > voters) {
        outln!("an image has {voters} others to vote: all of them do where k is larger");
    }
    let single = labels.count(&labels.train).iter().filter(|n| **n == 1).count();
    if alone && single > 0 {
        outln!("{single} classes have one image, which no other can name");
    }
    print_baseline(&Baseline::new(labels), labels.count(&labels.train).iter().filter(|n| **n > 0).count());
    for Vote { name, labels, class_scores, .. } in votes {
        let name = if votes.len() > 1 { format!("{name}, ") } else { String::new() };
        print_detail(&args.detail, class_scores, &labels.classes, &format!("{name}k = {}", shown(args)));
    }
}
