//! The command `eval linear`.

use super::probe::{Detail, Subject, detail_json, labels, print_baseline, print_detail};
use crate::cli::shared::{Source, Which, start_shared};
use crate::config::Config;
use crate::data::order::order;
use crate::device::Device;
use crate::dist::Group;
use crate::error::{Error, Result};
use crate::eval::augmented::Augmented;
use crate::eval::head_file::{self, About, Order};
use crate::eval::linear::{self, Head, Heads, Recipe, Score};
use crate::eval::scores::{self, Baseline, ClassScores, Labels, best as class_of, rank};
use crate::image::augment::EvalView;
use crate::inference::features::{Extractor, Features};
use crate::io::progress::Progress;
use clap::Args;
use ndarray::{Array2, Axis};
use serde_json::json;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Linear<O: Args> {
    #[command(flatten)]
    pub(super) source: Source<O>,
    /// Whose features [default: teacher with --checkpoint, else pixels]
    #[arg(long)]
    which: Option<Which>,
    /// Use the class tokens of the last N blocks, concatenated [default: 4, or all of a shallower network]
    #[arg(long)]
    blocks: Option<usize>,
    /// Add the mean patch token of the last block (published for ViT-B, with --blocks 1)
    #[arg(long)]
    mean_patch: bool,
    /// Learning rates per 256 images of a batch, a list, all trained at once; --lr names one (published: 0.001), --epochs [100] and
    /// --batch [128] are the probe's
    #[arg(long, value_delimiter = ',', default_values_t = linear::RATES)]
    rates: Vec<f64>,
    /// Train on random crops and mirror images, new ones every epoch: the backbone runs every epoch, as published. Otherwise features of
    /// evaluation views are computed once
    #[arg(long)]
    augmented: bool,
    /// Whether the best rate is chosen on a tenth of the training images, left out for it, rather than on those that are reported, as
    /// published; the head is then trained once more on all of them with that rate. What the model's --choose-on is here.
    #[arg(skip)]
    on_train_split: bool,
    /// Write the best head, as safetensors
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Evaluate this head instead of training one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["save", "augmented", "choose_on", "rates"])]
    evaluate: Option<PathBuf>,
    #[command(flatten)]
    detail: Detail,
}

/// Runs the command `eval linear`; returns the exit code.
///
/// # Errors
/// The device, the weights, the labeled data set or the head file are not usable, an option is outside its range, or every learning
/// rate diverged.
pub fn run<D: Device>(mut args: Linear<D::Options>, group: &Group) -> Result<u8> {
    start_shared::<D>(&mut args.source.shared, group)?;
    // Keys of a run that are the probe's here; a backbone has no use for them, but for the seed if it is drawn by it.
    let trained = args.source.checkpoint.is_some();
    let flags = &mut args.source.model.flags;
    if let Some(part) = flags.choose_on.take() {
        args.on_train_split = Config { choose_on: part, ..Config::published() }.resolve()?.chooses_on_training_images();
    }
    let recipe = Recipe {
        epochs: flags.epochs.take().unwrap_or(100) as usize,
        batch: flags.batch.take().unwrap_or(128),
        rates: flags.lr.take().map_or(args.rates.clone(), |lr| vec![lr]),
        seed: if trained { flags.seed.take() } else { flags.seed }.unwrap_or(0),
    };
    recipe.check()?;
    match args.evaluate.clone() {
        Some(file) => evaluate::<D>(&args, &file),
        None => train::<D>(&args, &recipe),
    }
}

fn train<D: Device>(args: &Linear<D::Options>, recipe: &Recipe) -> Result<u8> {
    let subject = Subject::<D>::open(&args.source, args.which)?;
    let blocks = subject.blocks(args.blocks, args.mean_patch)?;
    let (train, test, data) = (&*subject.splits.train, &*subject.splits.test, &args.source.data);
    let mut extractor = subject.extractor(blocks, args.mean_patch)?;
    let queries = subject.features(&mut extractor, test)?;
    scores::check(queries.rows.view(), "test")?;
    let test_labels = labels(&queries, test, data)?;
    if args.augmented && extractor.is_none() {
        return Err(Error::new("--augmented runs the backbone every epoch, and pixels have none")
            .hint("--which random, teacher or student"));
    }
    // Evaluation views of the training images: all there is to learn from, or, with --augmented, only those left out to choose by.
    let held = held_out(train.len(), args, recipe.seed)?;
    let cached = match args.augmented {
        true => None,
        false => {
            let bank = subject.features(&mut extractor, train)?;
            scores::check(bank.rows.view(), "training")?;
            let of_bank = labels(&bank, train, data)?;
            Some((bank, of_bank))
        }
    };
    let mut fit = |held: &HashSet<usize>, recipe: &Recipe| match &cached {
        None => augmented(&subject, &mut extractor, &test_labels, held, recipe, data),
        Some((bank, of_bank)) => {
            let labels = Labels::new(train.classes(), of_bank, &test_labels);
            let (out, stay): (Vec<usize>, Vec<usize>) =
                (0..bank.images.len()).partition(|&row| held.contains(&bank.images[row]));
            let pick =
                |rows: &[usize]| (bank.rows.select(Axis(0), rows), rows.iter().map(|&r| labels.train[r]).collect());
            let (stay, stay_labels): (Array2<f32>, Vec<u32>) = pick(&stay);
            scores::check(stay.view(), "training")?;
            let mut progress = Progress::new(recipe.epochs, "epochs");
            let classes = labels.classes.len();
            let heads = linear::train(stay.view(), &stay_labels, classes, recipe, || progress.tick());
            let held = pick(&out);
            Ok((heads, labels, held))
        }
    };
    let (heads, labels, held_rows) = fit(&held, recipe)?;
    let scores = heads.evaluate(queries.rows.view(), &labels.test);
    let chosen_by = match args.on_train_split {
        false => None,
        true => {
            scores::check(held_rows.0.view(), "left-out training")?;
            Some(heads.evaluate(held_rows.0.view(), &held_rows.1))
        }
    };
    let best = linear::best(chosen_by.as_deref().unwrap_or(&scores));
    let diverged = || {
        Error::new(format!("no learning rate of {:?} gave finite numbers", recipe.rates))
            .hint("--rates with smaller ones")
    };
    if !scores[best].loss.is_finite() {
        return Err(diverged());
    }
    // What was left out to choose by is learned from as well, once that is done.
    let (head, again) = match chosen_by {
        None => (heads.head(best), None),
        Some(_) => {
            let one = Recipe { rates: vec![recipe.rates[best]], ..recipe.clone() };
            let (heads, ..) = fit(&HashSet::new(), &one)?;
            let score = heads.evaluate(queries.rows.view(), &labels.test).remove(0);
            if !score.loss.is_finite() {
                return Err(diverged());
            }
            (heads.head(0), Some(score))
        }
    };
    if let Some(path) = args.save.as_ref().filter(|_| args.source.shared.group.is_first()) {
        let (mean_patch, order) = (args.mean_patch, Order::Concatenated);
        let about = About { blocks, mean_patch, order, classes: labels.classes.clone() };
        head_file::save(path, &head, &about)?;
        errln!("the head of rate {} is in {}", recipe.rates[best], path.display());
    }
    let grid = Grid { recipe, scores: &scores, held: chosen_by.as_deref(), left_out: held_rows.1.len(), again, best };
    print(args, &subject, (blocks, args.mean_patch), &labels, &queries, &head, Some(grid))
}

/// Training images that are left out to choose a rate by: a tenth, one at least.
fn held_out<O: Args>(images: usize, args: &Linear<O>, seed: u64) -> Result<HashSet<usize>> {
    if !args.on_train_split {
        return Ok(Default::default());
    }
    if images < 2 {
        return Err(Error::new(format!("--choose-on train-split needs two training images, there are {images}"))
            .hint("--choose-on test"));
    }
    let order = order(images, seed, u32::MAX as u64); // of an epoch that never comes
    Ok(order[..(images / 10).max(1)].iter().map(|&i| i as usize).collect())
}

type Trained = (Heads, Labels, (Array2<f32>, Vec<u32>));

/// A head for every rate, on other crops every epoch.
fn augmented<D: Device>(
    subject: &Subject<D>,
    extractor: &mut Option<Extractor<D>>,
    test_labels: &[u32],
    held: &HashSet<usize>,
    recipe: &Recipe,
    data: &str,
) -> Result<Trained> {
    let train = &*subject.splits.train;
    let all: Option<Vec<u32>> = (0..train.len()).map(|i| train.label(i)).collect();
    let all = all.ok_or_else(|| super::probe::unlabelled(data))?;
    let labels = Labels::new(train.classes(), &all, test_labels);
    let stay: Vec<u32> = (0..train.len()).filter(|i| !held.contains(i)).map(|i| i as u32).collect();
    let mut out: Vec<u32> = held.iter().map(|&i| i as u32).collect();
    out.sort_unstable();
    let Some(extractor) = extractor else { return Err(Error::new("pixels have no backbone")) };
    let mut heads = Heads::new(&recipe.rates, labels.classes.len(), extractor.width(), recipe.seed);
    let mut progress = Progress::new(recipe.epochs * stay.len(), "images");
    // The crops have the size of evaluation views, and are taken as they are.
    extractor.set_view(EvalView::Whole);
    for epoch in 0..recipe.epochs {
        let order: Vec<u32> =
            order(stay.len(), recipe.seed, epoch as u64).into_iter().map(|i| stay[i as usize]).collect();
        // As many full batches at a time as keep the features of a set of any size in memory.
        for images in order.chunks(recipe.batch.saturating_mul(4096usize.div_ceil(recipe.batch))) {
            let (seed, side) = (recipe.seed, subject.config.global_size);
            let crops = Augmented { set: train, images, side, seed, epoch: Some(epoch as u32) };
            let found = extractor.run(&crops, &subject.unreadable, |_| progress.tick())?;
            subject.unreadable.print();
            scores::check(found.rows.view(), "training")?;
            let here: Vec<u32> = found.images.iter().map(|&i| labels.train[images[i] as usize]).collect();
            let in_order: Vec<u32> = (0..here.len() as u32).collect();
            heads.steps(found.rows.view(), &here, &in_order, recipe.batch, recipe.factor(epoch));
        }
    }
    // Those left out are evaluated as the test images are.
    extractor.set_view(subject.view);
    let mut left = (Array2::zeros((0, extractor.width())), Vec::new());
    if !out.is_empty() {
        let part = Augmented { set: train, images: &out, side: 0, seed: 0, epoch: None };
        let found = extractor.run(&part, &subject.unreadable, |_| ())?;
        left.1 = found.images.iter().map(|&i| labels.train[out[i] as usize]).collect();
        left.0 = found.rows;
    }
    Ok((heads, labels, left))
}

/// Evaluates a head that was trained before, here or elsewhere.
fn evaluate<D: Device>(args: &Linear<D::Options>, file: &Path) -> Result<u8> {
    let (mut head, about) = head_file::load(file)?;
    let subject = Subject::<D>::open(&args.source, args.which)?;
    // How its features were made is known of our own.
    let pixels = subject.weights.is_none();
    let of_file = about.as_ref().filter(|_| !pixels);
    let mean_patch = args.mean_patch || of_file.is_some_and(|a| a.mean_patch);
    let blocks = subject.blocks(args.blocks.or(of_file.map(|a| a.blocks)), mean_patch)?;
    let (train, test, data) = (&*subject.splits.train, &*subject.splits.test, &args.source.data);
    let mut extractor = subject.extractor(blocks, mean_patch)?;
    let takes = head.weight.ncols();
    if let Some(extractor) = &extractor
        && extractor.width() != takes
    {
        let width = extractor.width();
        return Err(Error::new(format!(
            "{} takes {takes} numbers an image, this network gives {width}",
            file.display()
        ))
        .hint(format!(
            "now --blocks {blocks}, mean patch {mean_patch}, each token {} wide",
            subject.config.embed_dim
        )));
    }
    // Of a file that does not state its order, that of the published heads, which are of one block.
    let order = match &about {
        Some(about) => about.order,
        None if mean_patch && blocks == 1 => {
            errln!(
                "note: {} does not state the order of its inputs: the published order is used, class token and mean patch token interleaved",
                file.display()
            );
            Order::Alternating
        }
        None => Order::Concatenated,
    };
    if order == Order::Alternating && !pixels {
        head = head_file::from_alternating(&head);
    }
    let queries = subject.features(&mut extractor, test)?;
    scores::check(queries.rows.view(), "test")?;
    if queries.rows.ncols() != takes {
        let width = queries.rows.ncols();
        return Err(Error::new(format!("{} takes {takes} numbers an image, pixels are {width}", file.display()))
            .hint("--global-size changes how many pixels there are"));
    }
    // Classes of the set that occur, by the head's rows.
    let found = Labels::new(train.classes(), &[], &labels(&queries, test, data)?);
    let names = if about.is_some() { &found.classes } else { train.classes() };
    let rows = head_file::rows(file, &head, about.as_ref(), names)?;
    let row_of = |name: &String| names.iter().position(|n| n == name).map(|i| rows[i]);
    let classes = about.map_or_else(|| train.classes().to_vec(), |a| a.classes);
    let to_rows: Vec<u32> = found.classes.iter().filter_map(row_of).collect();
    let all = (0..train.len()).filter_map(|i| row_of(&train.classes()[train.label(i)? as usize])).collect();
    let labels = Labels { classes, train: all, test: found.test.iter().map(|&l| to_rows[l as usize]).collect() };
    print(args, &subject, (blocks, mean_patch), &labels, &queries, &head, None)
}

/// The results of a grid of rates.
struct Grid<'a> {
    recipe: &'a Recipe,
    /// On the reported images.
    scores: &'a [Score],
    /// On those left out to choose by, if there are such.
    held: Option<&'a [Score]>,
    /// How many those are.
    left_out: usize,
    /// The result of the best rate, trained once more on all training images, where some had been left out.
    again: Option<Score>,
    best: usize,
}

fn print<D: Device>(
    args: &Linear<D::Options>,
    subject: &Subject<D>,
    (blocks, mean_patch): (usize, bool),
    labels: &Labels,
    queries: &Features,
    head: &Head,
    grid: Option<Grid>,
) -> Result<u8> {
    let logits = head.logits(queries.rows.view());
    let rows: Vec<&[f32]> = logits.rows().into_iter().filter_map(|row| row.to_slice()).collect();
    let predicted: Vec<u32> = rows.iter().map(|row| class_of(row)).collect();
    let within_five = rows.iter().zip(&labels.test).filter(|&(row, &l)| rank(row, l as usize) < 5).count();
    let top5 = 100.0 * within_five as f64 / labels.test.len().max(1) as f64;
    let class_scores = ClassScores::new(&predicted, &labels.test, &labels.classes);
    let baseline = Baseline::new(labels);
    let (name, width, chosen_on) =
        (subject.name(), queries.rows.ncols(), if args.on_train_split { "train-split" } else { "test" });
    if args.source.json {
        let mut json = json!({
            "which": name, "width": width, "eval_view": subject.view.name(), "blocks": blocks, "mean_patch": mean_patch, "augmented": args.augmented,
            "train": labels.train.len(), "test": labels.test.len(), "top1": class_scores.top1, "top5": top5,
        });
        if let Some(grid) = grid {
            json["recipe"] = json!(grid.recipe);
            json["grid"] = json!(grid.scores);
            json["chosen_on"] = json!(chosen_on);
            json["chosen_by"] = json!(grid.held);
            json["left_out"] = json!(grid.left_out);
            json["trained_again"] = json!(grid.again);
            json["lr"] = json!(grid.recipe.rates[grid.best]);
        }
        let detail = detail_json(&class_scores, &labels.classes, &baseline);
        json.as_object_mut().into_iter().for_each(|o| o.extend(detail.as_object().cloned().unwrap_or_default()));
        outln!("{json}");
        return Ok(0);
    }
    let tokens = match (&subject.weights, mean_patch) {
        (None, _) => String::new(),
        (_, false) => format!(" (class tokens of {blocks} blocks)"),
        (_, true) => format!(" (class tokens of {blocks} blocks, mean patch)"),
    };
    outln!("linear probe, {name}, {width} numbers an image{tokens}, evaluated on {}", labels.test.len());
    outln!("{}", subject.seen());
    match grid {
        None => outln!("top-1 {:.2} %, top-5 {top5:.2} %", class_scores.top1),
        Some(grid) => {
            let views = if args.augmented { "random crops, others every epoch" } else { "cached features" };
            let Recipe { epochs, batch, .. } = grid.recipe;
            let all = labels.train.len();
            match grid.left_out {
                0 => outln!("{all} training images, {views}, {epochs} epochs of batch {batch}"),
                n => outln!("{} of {all} training images, {views}, {epochs} epochs of batch {batch}", all - n),
            }
            let held = grid.held.map_or("", |_| "  left out %");
            outln!("{:>8} {:>8} {:>8} {:>10}{held}", "lr", "top-1 %", "top-5 %", "loss");
            for (i, s) in grid.scores.iter().enumerate() {
                let loss = if s.loss.is_finite() { format!("{:.4}", s.loss) } else { "diverged".into() };
                let held = grid.held.map_or(String::new(), |h| format!(" {:>11.2}", h[i].top1));
                let mark = if i == grid.best { "  best" } else { "" };
                outln!("{:>8} {:>8.2} {:>8.2} {loss:>10}{held}{mark}", s.lr, s.top1, s.top5);
            }
            match &grid.again {
                None if grid.scores.len() > 1 => outln!(
                    "the rate was chosen on the images that are reported; --choose-on train-split leaves some of the training images out for it"
                ),
                None => (),
                Some(again) => outln!(
                    "the rate was chosen on a tenth of the training images, left out for it; trained once more with {} on all {all}: \
                     top-1 {:.2} %, top-5 {:.2} %",
                    again.lr,
                    again.top1,
                    again.top5
                ),
            }
            if grid.scores.len() > 2 && (grid.best == 0 || grid.best + 1 == grid.scores.len()) {
                outln!("the best rate is at an end of the grid: --rates can go on beyond it");
            }
        }
    }
    print_baseline(&baseline, labels.count(&labels.train).iter().filter(|n| **n > 0).count());
    print_detail(&args.detail, &class_scores, &labels.classes, "the best head");
    Ok(0)
}
