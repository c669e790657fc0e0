//! What a fine-tuned network is worth on the test part.

use crate::data::Dataset;
use crate::error::Result;
use crate::eval::linear::Head;
use crate::eval::scores::{ClassScores, best, check, rank};
use crate::inference::features::Features;
use crate::weights::Classifier;
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

/// Scores of predictions, as `scores.json` has them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Scores {
    /// The epoch after which they were taken.
    pub epoch: u64,
    /// Images that were evaluated.
    pub images: usize,
    /// Percent.
    pub top1: f64,
    /// Percent.
    pub top5: f64,
    /// Mean cross-entropy, nats.
    pub loss: f64,
    /// Mean of the classes' top-1, percent.
    pub mean_class: f64,
    pub classes: Vec<String>,
    /// (class, taken for): images. None for more than 2000 classes.
    pub confusion: Option<Vec<Vec<u64>>>,
}

/// Logits (images, classes) of rows of features.
pub fn logits(classifier: &Classifier, rows: ArrayView2<f32>) -> Array2<f32> {
    let width = classifier.weight.len() / classifier.classes.len().max(1);
    let weight = Array2::from_shape_vec((classifier.classes.len(), width), classifier.weight.clone());
    Head { weight: weight.expect("a row a class"), bias: classifier.bias.clone() }.logits(rows)
}

/// Probabilities of a row of logits.
pub fn probabilities(row: &[f32]) -> Vec<f64> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let terms: Vec<f64> = row.iter().map(|x| libm::exp(*x as f64 - most)).collect();
    let sum: f64 = terms.iter().sum();
    terms.into_iter().map(|x| x / sum).collect()
}

/// Scores the features of a set whose image `i` has the label `labels[i]`.
///
/// # Errors
/// There are no features, or they are not finite.
pub fn score(epoch: u64, classifier: &Classifier, found: &Features, labels: &[u32]) -> Result<Scores> {
    check(found.rows.view(), "test")?;
    let labels: Vec<u32> = found.images.iter().map(|&i| labels[i]).collect();
    let logits = logits(classifier, found.rows.view());
    let rows = || logits.rows().into_iter().map(|row| row.to_vec());
    let predicted: Vec<u32> = rows().map(|row| best(&row)).collect();
    let within_five = rows().zip(&labels).filter(|(row, l)| rank(row, **l as usize) < 5).count();
    let loss: f64 = rows().zip(&labels).map(|(row, l)| -libm::log(probabilities(&row)[*l as usize].max(1e-300))).sum();
    let ClassScores { top1, mean_class, confusion, .. } = ClassScores::new(&predicted, &labels, &classifier.classes);
    let images = labels.len();
    Ok(Scores {
        epoch,
        images,
        top1,
        top5: 100.0 * within_five as f64 / images as f64,
        loss: loss / images as f64,
        mean_class,
        classes: classifier.classes.clone(),
        confusion,
    })
}

/// The labels of a full set; none where an image has none.
pub fn labels(set: &dyn Dataset) -> Option<Vec<u32>> {
    (0..set.len()).map(|i| set.label(i)).collect()
}
