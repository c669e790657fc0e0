//! The command `eval logistic`.

use super::probe::{Detail, Subject, detail_json, labels, print_baseline, print_detail};
use crate::cli::shared::{Source, Which, start_shared};
use crate::device::Device;
use crate::dist::Group;
use crate::error::{Error, Result};
use crate::eval::logistic::{self, Few, Outcome, Recipe, Scale, mean_std};
use crate::eval::scores::{self, Baseline, ClassScores, Labels};
use crate::io::progress::Progress;
use clap::Args;
use rayon::prelude::*;
use serde_json::json;
use std::sync::Mutex;

#[derive(Args)]
pub struct Logistic<O: Args> {
    #[command(flatten)]
    pub(super) source: Source<O>,
    /// Whose features [default: teacher with --checkpoint, else pixels]
    #[arg(long)]
    which: Option<Which>,
    /// Labeled images of every class, a list
    #[arg(long, value_delimiter = ',')]
    shots: Vec<usize>,
    /// Part of every class that has labels, a list [default without --shots: 0.01,0.1]
    #[arg(long, value_delimiter = ',')]
    fraction: Vec<f64>,
    /// Number of random draws of those images; the mean and standard deviation over them are printed
    #[arg(long, default_value_t = 5)]
    draws: u32,
    /// How features are preprocessed
    #[arg(long, default_value = "l2")]
    scale: Scale,
    /// Strengths of the penalty l2/2 |W|^2 on the mean loss; of several, cross-validation within the drawn images chooses
    #[arg(long, value_delimiter = ',', default_values_t = logistic::GRID)]
    l2: Vec<f64>,
    /// The solver stops when no element of the gradient is larger
    #[arg(long, default_value_t = 1e-5)]
    stop: f64,
    /// Most steps of the solver
    #[arg(long, default_value_t = 1000)]
    iterations: usize,
    #[command(flatten)]
    detail: Detail,
}

/// Runs the command `eval logistic`; returns the exit code.
///
/// # Errors
/// The device, the weights or the labeled data set are not usable, an option is outside its range, or a class has too few images for a
/// draw.
pub fn run<D: Device>(mut args: Logistic<D::Options>, group: &Group) -> Result<u8> {
    start_shared::<D>(&mut args.source.shared, group)?;
    // The probe's here; of use to a backbone only where it is drawn by it.
    let (trained, flags) = (args.source.checkpoint.is_some(), &mut args.source.model.flags);
    let seed = if trained { flags.seed.take() } else { flags.seed };
    let recipe = Recipe {
        scale: args.scale,
        l2: args.l2.clone(),
        stop: args.stop,
        most: args.iterations,
        seed: seed.unwrap_or(0),
    };
    recipe.check()?;
    let few = protocols(&args)?;
    let subject = Subject::<D>::open(&args.source, args.which)?;
    let (train, test) = (&*subject.splits.train, &*subject.splits.test);
    let mut extractor = subject.extractor(1, false)?;
    let (bank, queries) = (subject.features(&mut extractor, train)?, subject.features(&mut extractor, test)?);
    scores::check(bank.rows.view(), "training")?;
    scores::check(queries.rows.view(), "test")?;
    let data = &args.source.data;
    let labels = Labels::new(train.classes(), &labels(&bank, train, data)?, &labels(&queries, test, data)?);
    let (classes, width) = (labels.classes.len(), bank.rows.ncols());
    // Whatever is wrong with a draw is reported before the first is solved.
    let mut all = Vec::new();
    for few in few {
        let draw = |n| logistic::draw(&labels.train, &labels.classes, few, recipe.seed, n);
        let mut draws = (0..args.draws).map(draw).collect::<Result<Vec<_>>>()?;
        draws.dedup(); // of the full set there is one
        all.push((few, draws));
    }
    let progress = Mutex::new(Progress::new(all.iter().map(|(_, draws)| draws.len()).sum(), "draws"));
    let mut rows = Vec::new();
    for (few, draws) in all {
        let solve = |drawn: &Vec<usize>| {
            let (bank, queries) = (bank.rows.view(), queries.rows.view());
            let found = logistic::outcome(bank, &labels.train, drawn, queries, &labels.test, classes, &recipe);
            progress.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).tick();
            found
        };
        rows.push((few, draws.par_iter().map(solve).collect::<Vec<Outcome>>()));
    }
    // Class by class, all draws of the last protocol together.
    let (last, outcomes) = rows.last().ok_or_else(nothing)?;
    let predicted: Vec<u32> = outcomes.iter().flat_map(|o| o.predicted.iter().copied()).collect();
    let class_scores = ClassScores::new(&predicted, &labels.test.repeat(outcomes.len()), &labels.classes);
    let baseline = Baseline::new(&labels);
    if args.source.json {
        let protocol = |(few, outcomes): &(Few, Vec<Outcome>)| {
            let of = |f: fn(&Outcome) -> f64| mean_std(&outcomes.iter().map(f).collect::<Vec<_>>());
            let ([top1, top1_std], [top5, top5_std]) = (of(|o| o.top1), of(|o| o.top5));
            json!({
                "labelled": few, "top1": top1, "top1_std": top1_std, "top5": top5, "top5_std": top5_std,
                "draws": outcomes,
            })
        };
        let mut json = json!({
            "which": subject.name(), "width": width, "eval_view": subject.view.name(), "train": labels.train.len(), "test": labels.test.len(),
            "recipe": recipe, "results": rows.iter().map(protocol).collect::<Vec<_>>(), "shown": last,
        });
        let detail = detail_json(&class_scores, &labels.classes, &baseline);
        json.as_object_mut().into_iter().for_each(|o| o.extend(detail.as_object().cloned().unwrap_or_default()));
        outln!("{json}");
        return Ok(0);
    }
    let (name, scale) = (subject.name(), format!("{:?}", args.scale).to_lowercase());
    let (of, on) = (labels.train.len(), labels.test.len());
    outln!("logistic regression, {name}, {width} numbers an image (scale {scale}), drawn from {of}, evaluated on {on}");
    outln!("{}", subject.seen());
    print_rows(&rows, &recipe);
    print_baseline(&baseline, labels.count(&labels.train).iter().filter(|n| **n > 0).count());
    print_detail(&args.detail, &class_scores, &labels.classes, &format!("labeled {last}, all draws together"));
    Ok(0)
}

/// One line for each protocol, and notes on its draws.
fn print_rows(rows: &[(Few, Vec<Outcome>)], recipe: &Recipe) {
    outln!(
        "{:>10} {:>8} {:>6} {:>16} {:>16}  penalty l2, {}",
        "labeled",
        "images",
        "draws",
        "top-1 %",
        "top-5 %",
        if recipe.l2.len() > 1 { "by cross-validation" } else { "as given" }
    );
    for (few, outcomes) in rows {
        let of = |f: fn(&Outcome) -> f64| mean_std(&outcomes.iter().map(f).collect::<Vec<_>>());
        let ([top1, top1_std], [top5, top5_std]) = (of(|o| o.top1), of(|o| o.top5));
        let mut l2: Vec<f64> = outcomes.iter().map(|o| o.l2).collect();
        l2.sort_by(f64::total_cmp);
        l2.dedup();
        let l2: Vec<String> = l2.iter().map(|l2| format!("{l2:e}")).collect();
        outln!(
            "{:>10} {:>8} {:>6} {:>16} {:>16}  {}",
            few.to_string(),
            outcomes.first().map_or(0, |o| o.images),
            outcomes.len(),
            format!("{top1:.2} ± {top1_std:.2}"),
            format!("{top5:.2} ± {top5_std:.2}"),
            l2.join(" "),
        );
    }
    let stray = rows.iter().flat_map(|(_, o)| o).filter(|o| !o.converged);
    let worst = stray.clone().map(|o| o.gradient).fold(0.0, f64::max);
    if worst > 0.0 {
        outln!("{} draws ended with a gradient up to {worst:.1e}, above --stop {:.1e}", stray.count(), recipe.stop);
    }
    if rows.iter().flat_map(|(_, o)| o).any(|o| !o.chosen) && recipe.l2.len() > 1 {
        outln!("one image a class leaves nothing to choose a penalty by: {:e} is taken there", logistic::FALLBACK);
    }
}

fn protocols<O: Args>(args: &Logistic<O>) -> Result<Vec<Few>> {
    if args.draws == 0 {
        return Err(nothing());
    }
    if args.shots.contains(&0) {
        return Err(Error::new("--shots 0 leaves nothing to learn from").hint("at least one image a class"));
    }
    if let Some(f) = args.fraction.iter().find(|f| !(**f > 0.0 && **f <= 1.0)) {
        return Err(Error::new(format!("--fraction {f} makes no sense"))
            .hint("parts of every class, above 0 and up to 1; published: 0.01 and 0.1"));
    }
    let default = args.shots.is_empty() && args.fraction.is_empty();
    let fractions = if default { &[0.01, 0.1][..] } else { &args.fraction };
    let shots = args.shots.iter().map(|&n| Few::Shots(n));
    Ok(shots.chain(fractions.iter().map(|&f| Few::Fraction(f))).collect())
}

fn nothing() -> Error {
    Error::new("--draws 0 draws nothing").hint("the default is --draws 5")
}
