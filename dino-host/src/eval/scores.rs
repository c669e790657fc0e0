//! What predictions are worth: the share that is right, class by class, which class is taken for which, and what guessing would give.

use super::knn::confusion;
use crate::error::{Error, Result};
use ndarray::ArrayView2;
use serde::Serialize;

/// Confusion matrices of more classes are left out: their square is more than a reader or a file can take.
pub const MOST_CLASSES: usize = 2000;

/// The classes that occur in either part, and the labels renumbered to them.
///
/// A list of files may number its classes up to a million and use three of them: nothing here is sized by the names alone.
pub struct Labels {
    /// Their names, in the set's order.
    pub classes: Vec<String>,
    /// Of what is learned from.
    pub train: Vec<u32>,
    /// Of what is evaluated.
    pub test: Vec<u32>,
}

impl Labels {
    /// `names` of all classes of the set; labels are below their number.
    pub fn new(names: &[String], train: &[u32], test: &[u32]) -> Labels {
        let mut present: Vec<u32> = train.iter().chain(test).copied().collect();
        present.sort_unstable();
        present.dedup();
        let classes = present.iter().map(|&c| names.get(c as usize).cloned().unwrap_or(c.to_string())).collect();
        let number = |labels: &[u32]| labels.iter().map(|l| present.partition_point(|p| p < l) as u32).collect();
        Labels { classes, train: number(train), test: number(test) }
    }

    /// Images of a class among `labels`, for every class.
    pub fn count(&self, labels: &[u32]) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        labels.iter().for_each(|&l| counts[l as usize] += 1);
        counts
    }
}

/// One class' share of right answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PerClass {
    /// Its name.
    pub class: String,
    /// Evaluated images of it.
    pub images: u64,
    /// Those taken for what they are.
    pub right: u64,
    /// Percent; none without images.
    pub top1: Option<f64>,
}

/// Predictions against labels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassScores {
    /// Percent that is right.
    pub top1: f64,
    /// Mean of the classes' shares, percent: what `top1` would be were all classes equally frequent.
    pub mean_class: f64,
    /// In the order of the classes.
    pub per_class: Vec<PerClass>,
    /// (class, taken for): images. None for more than 2000 classes.
    pub confusion: Option<Vec<Vec<u64>>>,
}

impl ClassScores {
    /// Both below `classes.len()`, and as many of one as of the other.
    pub fn new(predicted: &[u32], labels: &[u32], classes: &[String]) -> ClassScores {
        let (mut images, mut right) = (vec![0u64; classes.len()], vec![0u64; classes.len()]);
        for (p, &l) in predicted.iter().zip(labels) {
            images[l as usize] += 1;
            right[l as usize] += (*p == l) as u64;
        }
        let percent = |right: u64, images: u64| (images > 0).then(|| 100.0 * right as f64 / images as f64);
        let row = |(class, (&images, &right)): (&String, (&u64, &u64))| {
            let class = class.clone();
            PerClass { class, images, right, top1: percent(right, images) }
        };
        let per_class: Vec<PerClass> = classes.iter().zip(images.iter().zip(&right)).map(row).collect();
        let shares: Vec<f64> = per_class.iter().filter_map(|c| c.top1).collect();
        let small = classes.len() <= MOST_CLASSES;
        let rows = |counts: ndarray::Array2<u64>| counts.rows().into_iter().map(|r| r.to_vec()).collect();
        ClassScores {
            top1: percent(right.iter().sum(), labels.len() as u64).unwrap_or(0.0),
            mean_class: shares.iter().sum::<f64>() / shares.len().max(1) as f64,
            per_class,
            confusion: small.then(|| rows(confusion(predicted, labels, classes.len()))),
        }
    }
}

/// What can be had without looking at an image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Baseline {
    /// Percent right when every image is taken for the class that the training images have most often (among equals the first).
    pub majority: f64,
    /// That class.
    pub majority_class: String,
    /// Percent right when classes of the training images are guessed, all equally likely.
    pub chance: f64,
}

impl Baseline {
    /// Of these labels.
    pub fn new(labels: &Labels) -> Baseline {
        let (train, test) = (labels.count(&labels.train), labels.count(&labels.test));
        let most = (0..train.len()).rev().max_by_key(|&c| train[c]).unwrap_or(0);
        let all = labels.test.len().max(1) as f64;
        let known = train.iter().filter(|n| **n > 0).count();
        let guessable: usize = (0..train.len()).filter(|&c| train[c] > 0).map(|c| test[c]).sum();
        Baseline {
            majority: 100.0 * test.get(most).copied().unwrap_or(0) as f64 / all,
            majority_class: labels.classes.get(most).cloned().unwrap_or_default(),
            chance: 100.0 * guessable as f64 / all / known.max(1) as f64,
        }
    }
}

/// Classes that are ahead of `label`: those with higher scores, and earlier ones with the same. A label whose score is not a number
/// comes last.
pub fn rank(scores: &[f32], label: usize) -> usize {
    let own = scores[label];
    let behind = |c: usize, x: f32| x < own || (x == own && c >= label);
    scores.iter().enumerate().filter(|&(c, &x)| c != label && !behind(c, x)).count()
}

/// The class with the highest score, among equals the first.
pub fn best(scores: &[f32]) -> u32 {
    (0..scores.len()).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap_or(0) as u32
}

/// Features that a classifier can work on: finite, and at least one row.
///
/// # Errors
/// There are no rows, or one is not finite; `what` names the set.
pub fn check(rows: ArrayView2<f32>, what: &str) -> Result<()> {
    if rows.nrows() == 0 {
        return Err(Error::new(format!("there are no {what} images"))
            .hint("a single image cannot be evaluated; pass more images, or a set with train and test parts"));
    }
    match rows.rows().into_iter().position(|row| row.iter().any(|x| !x.is_finite())) {
        None => Ok(()),
        Some(row) => Err(Error::new(format!("the features of {what} image {row} are not finite"))
            .hint("are the weights valid? --which random shows whether they are the cause")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("c{i}")).collect()
    }

    #[test]
    fn shares_by_hand() {
        let class_scores = ClassScores::new(&[0, 0, 1, 2], &[0, 1, 1, 0], &names(4));
        assert_eq!(class_scores.top1, 50.0);
        assert_eq!(
            class_scores.per_class.iter().map(|c| c.top1).collect::<Vec<_>>(),
            [Some(50.0), Some(50.0), None, None]
        );
        assert_eq!(class_scores.mean_class, 50.0);
        assert_eq!(class_scores.confusion.unwrap(), [[1, 0, 1, 0], [1, 1, 0, 0], [0; 4], [0; 4]]);
        // The rare class is missed: the mean over classes shows it, the share of images hardly.
        let class_scores = ClassScores::new(&[0; 10], &[0, 0, 0, 0, 0, 0, 0, 0, 0, 1], &names(2));
        assert_eq!((class_scores.top1, class_scores.mean_class), (90.0, 50.0));
        assert!(ClassScores::new(&[0], &[0], &names(2001)).confusion.is_none());
    }

    #[test]
    fn classes_that_do_not_occur_are_left_out() {
        let labels = Labels::new(&names(1_000_000), &[7, 999_999, 7], &[42, 7]);
        assert_eq!(labels.classes, ["c7", "c42", "c999999"]);
        assert_eq!((labels.train.as_slice(), labels.test.as_slice()), (&[0, 2, 0][..], &[1, 0][..]));
        let baseline = Baseline::new(&labels);
        // Class 42 is unknown to whoever learns from the training images, and is never guessed.
        assert_eq!((baseline.majority, baseline.majority_class.as_str(), baseline.chance), (50.0, "c7", 25.0));
    }

    #[test]
    fn ranks_count_equal_earlier_classes_and_not_numbers() {
        assert_eq!([0, 1, 2, 3].map(|l| rank(&[0.5, 2.0, 0.5, -1.0], l)), [1, 0, 2, 3]);
        assert_eq!([0, 1].map(|l| rank(&[f32::NAN, 1.0], l)), [1, 1]);
        assert_eq!((best(&[1.0, 3.0, 3.0]), best(&[])), (1, 0));
    }
}
