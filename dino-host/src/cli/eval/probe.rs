//! What the evaluations by labels share: features of both parts, and how they print what was right.

use crate::cli::shared::{Source, Which, network, open, settle_view};
use crate::config::Config;
use crate::data::{self, Dataset, Splits, Unreadable};
use crate::device::Device;
use crate::dist::Group;
use crate::error::{Error, Result};
use crate::eval::scores::{Baseline, ClassScores};
use crate::image::augment::EvalView;
use crate::inference::features::{self, Extractor, Features, first_readable};
use crate::io::progress::Progress;
use clap::Args;
use dino_kernel::model::Backbone;
use serde_json::{Value, json};
use std::path::Path;

/// Classes whose confusion matrix still fits a screen.
const WIDE: usize = 20;
/// The most frequent confusions that are listed where it does not.
const LISTED: usize = 20;

#[derive(Args)]
pub struct Detail {
    /// Print the accuracy of every class
    #[arg(long)]
    pub per_class: bool,
    /// Print which class was predicted for which: the confusion matrix, or above 20 classes the most frequent confusions
    #[arg(long)]
    pub confusion: bool,
}

/// A network or pixels, and the data set whose features are extracted.
pub struct Subject<D: Device> {
    pub which: Which,
    pub config: Config,
    /// How images of both parts become evaluation views.
    pub view: EvalView,
    /// None for pixels.
    pub weights: Option<Vec<f32>>,
    pub splits: Splits,
    pub unreadable: Unreadable,
    /// The device's flags, and who shares the work.
    device: D::Options,
    group: Group,
}

impl<D: Device> Subject<D> {
    /// Opens the weights and the set, both parts of which must have labels, of two classes at least.
    ///
    /// # Errors
    /// The weights or the set cannot be opened, a part has no labels, or all labels are of one class.
    pub fn open(source: &Source<D::Options>, which: Option<Which>) -> Result<Self> {
        let subject = Self::of_training_part(source, which)?;
        if subject.splits.test.classes().is_empty() {
            return Err(Error::new(format!("the test part of {} has no labels that fit its training part", source.data))
                .hint("eval knn --leave-one-out train evaluates the training part on itself; a list of labels beside the images is read too"));
        }
        Ok(subject)
    }

    /// The same where the test part may be without labels.
    ///
    /// # Errors
    /// The weights or the set cannot be opened, the training part has no labels, or all labels are of one class.
    pub fn of_training_part(source: &Source<D::Options>, which: Option<Which>) -> Result<Self> {
        let which = which.unwrap_or_else(|| match source.checkpoint {
            Some(_) => Which::Teacher,
            None => {
                errln!(
                    "note: no network was asked, so these are pixels; --checkpoint names one, --which random draws one"
                );
                Which::Pixels
            }
        });
        let (config, weights) = network::<D>(source, which)?;
        let splits = open(&source.data, &config)?;
        if splits.train.classes().is_empty() {
            return Err(unlabelled(&source.data));
        }
        // A single image has an error of its own.
        let several = splits.train.len() + splits.test.len() > 1;
        if let Some(class) = data::only_class(&splits).filter(|_| several) {
            return Err(one_class(&source.data, class));
        }
        Self::of(source, which, config, weights, splits, source.tolerance.unreadable())
    }

    /// The features of another network, or pixels, of the same images.
    ///
    /// # Errors
    /// The weights cannot be opened, or the configuration contradicts the flags.
    pub fn switch_to(self, source: &Source<D::Options>, which: Which) -> Result<Self> {
        let (config, weights) = network::<D>(source, which)?;
        Self::of(source, which, config, weights, self.splits, self.unreadable)
    }

    fn of(
        source: &Source<D::Options>,
        which: Which,
        mut config: Config,
        weights: Option<Vec<f32>>,
        splits: Splits,
        unreadable: Unreadable,
    ) -> Result<Self> {
        let trained = source.checkpoint.is_some();
        // The preset may enlarge small images for its patches; pixels by themselves are taken as they are, unless a size was requested.
        if which == Which::Pixels && !trained && source.model.named()?.global_size.is_none() {
            match first_readable(&*splits.train) {
                Some(first) if first.width == first.height => {
                    config.global_size = config.global_size.min(first.width);
                }
                _ => (),
            }
        }
        let view = settle_view(&mut config, &*splits.train, trained);
        let (device, group) = (source.shared.device.clone(), source.shared.group.clone());
        Ok(Subject { which, config, view, weights, splits, unreadable, device, group })
    }

    pub fn name(&self) -> String {
        format!("{:?}", self.which).to_lowercase()
    }

    /// What a table prints about the size of the images.
    pub fn seen(&self) -> String {
        seen(&self.config, self.view)
    }

    /// How many last blocks: so many, or by default the published four, of a shallower network all.
    ///
    /// # Errors
    /// More blocks than the network has, none, or an option of networks given for pixels.
    pub fn blocks(&self, asked: Option<usize>, mean_patch: bool) -> Result<usize> {
        let (backbone, has) = (self.config.table().backbone, self.config.table().backbone.blocks());
        match asked {
            Some(_) if self.weights.is_none() => {
                Err(Error::new("--blocks means nothing for pixels").hint("--which random, teacher or student"))
            }
            None if self.weights.is_none() && mean_patch => {
                Err(Error::new("--mean-patch means nothing for pixels").hint("--which random, teacher or student"))
            }
            Some(n) if n == 0 || n > has => Err(match backbone {
                Backbone::Vit(_) => Error::new(format!("--blocks {n}: this network has {has}"))
                    .hint("published: 4 for ViT-S, 1 with --mean-patch for ViT-B"),
                Backbone::ResNet(_) => {
                    Error::new(format!("--blocks {n}: a ResNet has the average over its last map alone"))
                        .hint("leave it out, as published, or --blocks 1")
                }
            }),
            Some(n) => Ok(n),
            None => Ok(has.min(4)),
        }
    }

    /// A network to run; none for pixels.
    ///
    /// # Errors
    /// The options do not fit the network, or the device cannot hold it.
    pub fn extractor(&self, blocks: usize, mean_patch: bool) -> Result<Option<Extractor<D>>> {
        let Some(weights) = &self.weights else { return Ok(None) };
        let mut extractor = Extractor::last_blocks(blocks, mean_patch, &self.device, &self.config, weights)?;
        extractor.share(&self.group);
        Ok(Some(extractor))
    }

    /// Features of evaluation views.
    ///
    /// # Errors
    /// An image cannot be read under `--strict`, features are not finite, or the device reports an error.
    pub fn features(&self, extractor: &mut Option<Extractor<D>>, set: &dyn Dataset) -> Result<Features> {
        let found = match extractor {
            None => features::pixels(set, &self.unreadable, &self.config),
            Some(extractor) => {
                let mut progress = Progress::new(set.len(), "images");
                let found = extractor.run(set, &self.unreadable, |_| progress.tick())?;
                self.unreadable.collect_at_first(&self.group, set, set)?;
                Ok(found)
            }
        };
        self.unreadable.print();
        found
    }
}

/// What a table prints about the size of the images.
pub fn seen(config: &Config, view: EvalView) -> String {
    let size = config.global_size;
    match view {
        EvalView::Whole => format!("entire images at {size} x {size} pixels"),
        EvalView::ResizeCrop => {
            format!("images resized to {} pixels, {size} x {size} cut out (resize-crop)", view.short(size))
        }
    }
}

/// With one class every prediction is right, whatever the features are.
pub fn one_class(data: &str, class: &str) -> Error {
    let hint = match data::several_below(Path::new(data)) {
        Some(below) => format!("--data {} has several folders, which are taken for classes", below.display()),
        None => {
            "two class folders or more, or a list with labels; the commands neighbours and pca need no labels".into()
        }
    };
    Error::new(format!("{data} has one class, {class}: there is nothing to tell it from")).hint(hint)
}

pub fn unlabelled(data: &str) -> Error {
    Error::new(format!("{data} has no labels"))
        .hint("class folders give labels, or a list beside the images: labels.csv with the columns file and label")
}

/// The labels of the images that could be read.
///
/// # Errors
/// The set has no labels.
pub fn labels(of: &Features, set: &dyn Dataset, data: &str) -> Result<Vec<u32>> {
    of.labels(set).ok_or_else(|| unlabelled(data))
}

/// What `--json` prints of predictions, beside the command's own.
pub fn detail_json(class_scores: &ClassScores, classes: &[String], baseline: &Baseline) -> Value {
    json!({
        "classes": classes, "baseline": baseline, "mean_class": class_scores.mean_class,
        "per_class": class_scores.per_class, "confusion": class_scores.confusion,
    })
}

/// Rows for the table: the accuracy without any features.
pub fn print_baseline(baseline: &Baseline, classes: usize) {
    let Baseline { majority, majority_class, chance } = baseline;
    outln!("always {majority_class}: {majority:.2} %; guessing among {classes} classes: {chance:.2} %");
}

/// The requested details of the classes; `of`: whose predictions these are.
pub fn print_detail(detail: &Detail, class_scores: &ClassScores, classes: &[String], of: &str) {
    let width = classes.iter().map(|c| c.chars().count()).max().unwrap_or(0).clamp(5, 30);
    if detail.per_class {
        outln!("\nper class, {of}, mean {:.2} %", class_scores.mean_class);
        outln!("{:width$} {:>8} {:>8} {:>8}", "class", "images", "right", "top-1 %");
        for c in &class_scores.per_class {
            let top1 = c.top1.map_or("-".into(), |t| format!("{t:.2}"));
            outln!("{:width$} {:>8} {:>8} {top1:>8}", c.class, c.images, c.right);
        }
    }
    let Some(counts) = class_scores.confusion.as_ref().filter(|_| detail.confusion) else { return };
    if classes.len() <= WIDE {
        outln!("\nconfusion, {of}: rows are the classes, columns what they were taken for");
        let most = counts.iter().flatten().max().map_or(1, |n| n.to_string().len()).max(2);
        let numbers: String = (0..classes.len()).map(|c| format!(" {c:>most$}")).collect();
        outln!("{:>2} {:width$}{numbers}", "", "");
        for (c, (name, row)) in classes.iter().zip(counts).enumerate() {
            let row: String = row.iter().map(|n| format!(" {n:>most$}")).collect();
            outln!("{c:>2} {name:width$}{row}");
        }
        return;
    }
    let mut pairs: Vec<(u64, usize, usize)> = Vec::new();
    for (c, row) in counts.iter().enumerate() {
        pairs.extend(row.iter().enumerate().filter(|&(p, &n)| p != c && n > 0).map(|(p, &n)| (n, c, p)));
    }
    pairs.sort_by_key(|&(n, c, p)| (std::cmp::Reverse(n), c, p));
    outln!("\nmost frequent confusions, {of}, {} of {}", pairs.len().min(LISTED), pairs.len());
    for (n, c, p) in pairs.into_iter().take(LISTED) {
        let images = class_scores.per_class[c].images;
        outln!("{:width$} taken for {:width$} {n:>6} of {images:>6}", classes[c], classes[p]);
    }
}
