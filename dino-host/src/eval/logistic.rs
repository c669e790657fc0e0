//! Low-shot: multinomial logistic regression on the frozen features of a few labeled images.
//!
//! Minimized over the weights W (classes, width) and biases b:
//!
//!   f(W, b) = 1/n sum_i -log softmax(W x_i + b)\[y_i\]  +  l2/2 |W|^2
//!
//! that is scikit-learn's `LogisticRegression` with C = 1 / (l2 n). Biases are not penalized. The search ends when no element of the
//! gradient is above `stop` in size; f is l2-strongly convex in W, so that |W - optimum| <= |gradient| / l2.

use super::lbfgs::minimize;
use super::scores::rank;
use crate::error::{Error, Result};
use crate::linalg::gemm::{self, View};
use crate::linalg::rows;
use clap::ValueEnum;
use dino_kernel::rng::{Kind, Rng};
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use serde::Serialize;

/// Strengths of the penalty that are tried by default.
pub const GRID: [f64; 6] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1];
/// Where there is nothing to choose by (a single image of every class): of unit features, a weak penalty.
pub const FALLBACK: f64 = 1e-3;
/// Parts of a cross-validation.
const FOLDS: usize = 5;
/// Multiplications of a matmul from which it is worth more than one thread.
const LARGE: usize = 1 << 23;
/// The `block`s of the generator: which images are drawn, and in which part of the cross-validation they are.
const DRAW: u32 = 16;
const FOLD: u32 = 17;

/// What is done to features first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Every row divided by its length
    L2,
    /// Every column to mean 0 and deviation 1 over the images drawn
    Standard,
    /// As they are
    None,
}

/// How many labeled images there are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Few {
    /// So many of every class.
    Shots(usize),
    /// This part of every class, to the nearest, and one at least.
    Fraction(f64),
}

impl std::fmt::Display for Few {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Few::Shots(n) => write!(f, "{n} a class"),
            Few::Fraction(part) => write!(f, "{} %", 100.0 * part),
        }
    }
}

/// How the regression is solved.
#[derive(Clone, Debug, Serialize)]
pub struct Recipe {
    /// What is done to features first.
    pub scale: Scale,
    /// Strengths of the penalty; of several, cross-validation within the drawn images chooses.
    pub l2: Vec<f64>,
    /// Largest element of the gradient at the end.
    pub stop: f64,
    /// Steps at most.
    pub most: usize,
    /// Of the draws.
    pub seed: u64,
}

impl Recipe {
    /// Checks the options.
    ///
    /// # Errors
    /// There is no strength of the penalty or one that makes no sense, or the search would never end.
    pub fn check(&self) -> Result<()> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if self.l2.is_empty() || !self.l2.iter().all(|&x| positive(x)) {
            return Err(Error::new(format!("--l2 {:?} makes no sense", self.l2))
                .hint("strengths above 0: without a penalty separable images have no optimum"));
        }
        if !positive(self.stop) || self.most == 0 {
            return Err(Error::new(format!("--stop {} with --iterations {} never ends well", self.stop, self.most))
                .hint("the default is --stop 1e-5 --iterations 1000"));
        }
        Ok(())
    }
}

/// A solved regression.
#[derive(Clone, Debug)]
pub struct Fit {
    /// (classes, width)
    pub weight: Array2<f64>,
    /// (classes)
    pub bias: Vec<f64>,
    /// f there.
    pub loss: f64,
    /// Largest element of its gradient there.
    pub gradient: f64,
    /// Steps taken.
    pub iterations: usize,
}

/// Solves for rows `x` (images, width) with labels below `classes`, each of which occurs (one that does not has no optimum: its bias
/// would fall for ever). Starts from `start`, or from zero.
pub fn fit(x: ArrayView2<f32>, labels: &[u32], classes: usize, l2: f64, recipe: &Recipe, start: Option<&Fit>) -> Fit {
    let ((n, width), x) = (x.dim(), x.as_standard_layout());
    let x = x.as_slice().unwrap_or(&[]);
    let size = classes * width;
    let begin = match start {
        Some(fit) => fit.weight.iter().chain(&fit.bias).copied().collect(),
        None => vec![0.0; size + classes],
    };
    let (mut weights, mut dy) = (vec![0.0f32; size + classes], vec![0.0f32; n * classes]);
    let (mut losses, mut dw) = (vec![0.0f32; n], vec![0.0f32; size + classes]);
    // Many small problems are solved side by side, each on one thread; a large one on all. The bits are the same.
    let large = n * size > LARGE;
    let matmul = if large { gemm::matmul } else { gemm::sgemm };
    let block = if large { n.div_ceil(rayon::current_num_threads()) } else { n }.max(1);
    let f = |at: &[f64], g: &mut [f64]| {
        weights.iter_mut().zip(at).for_each(|(w, &x)| *w = x as f32);
        let (w, b) = weights.split_at(size);
        matmul(&mut dy, classes, View::rows(x, width), View::transposed(w, width), [n, width, classes], false);
        let to_probabilities = |y: &mut [f32], lse: &mut [f32], labels: &[u32]| {
            rows::add_bias(y, b);
            let own: Vec<f32> = y.chunks(classes).zip(labels).map(|(y, &l)| y[l as usize]).collect();
            rows::softmax(y, classes, classes, 1.0, lse, 1);
            lse.iter_mut().zip(own).for_each(|(lse, own)| *lse -= own);
            y.chunks_mut(classes).zip(labels).for_each(|(p, &l)| p[l as usize] -= 1.0);
        };
        match large {
            false => to_probabilities(&mut dy, &mut losses, labels),
            true => {
                let blocks = dy.par_chunks_mut(block * classes).zip(losses.par_chunks_mut(block));
                blocks.zip(labels.par_chunks(block)).for_each(|((y, losses), l)| to_probabilities(y, losses, l));
            }
        }
        let loss: f64 = losses.iter().map(|&l| l as f64).sum();
        let (to_w, to_b) = dw.split_at_mut(size);
        matmul(to_w, width, View::transposed(&dy, classes), View::rows(x, width), [classes, n, width], false);
        to_b.fill(0.0);
        rows::column_sums(to_b, &dy, classes);
        let part = 1.0 / n as f64;
        let penalty: f64 = at[..size].iter().map(|w| w * w).sum();
        g.iter_mut().zip(&dw).for_each(|(g, &d)| *g = part * d as f64);
        g.iter_mut().zip(&at[..size]).for_each(|(g, w)| *g += l2 * w);
        part * loss + l2 / 2.0 * penalty
    };
    let found = minimize(begin, recipe.stop, recipe.most, f);
    Fit {
        weight: Array2::from_shape_vec((classes, width), found.x[..size].to_vec()).expect("as many"),
        bias: found.x[size..].to_vec(),
        loss: found.value,
        gradient: found.gradient,
        iterations: found.iterations,
    }
}

impl Fit {
    /// Logits (images, classes).
    pub fn logits(&self, x: ArrayView2<f32>) -> Array2<f32> {
        let weight = self.weight.mapv(|w| w as f32);
        let bias = self.bias.iter().map(|&b| b as f32).collect();
        super::linear::Head { weight, bias }.logits(x)
    }
}

/// The images of a draw, ascending: `few` of every class that occurs. Draws differ in `draw`.
///
/// # Errors
/// A class has fewer images than are drawn of each.
pub fn draw(labels: &[u32], names: &[String], few: Few, seed: u64, draw: u32) -> Result<Vec<usize>> {
    let mut drawn = Vec::new();
    for (class, mut images) in by_class(labels, names.len()).into_iter().enumerate().filter(|(_, i)| !i.is_empty()) {
        let count = match few {
            Few::Shots(n) if n > images.len() => {
                return Err(Error::new(format!("--shots {n}: class {} has {} images", names[class], images.len()))
                    .hint(format!("--shots {} or fewer, or --fraction", least(labels, names.len()))));
            }
            Few::Shots(n) => n,
            Few::Fraction(part) => ((images.len() as f64 * part).round() as usize).clamp(1, images.len()),
        };
        shuffle(&mut images, Rng::new(seed, draw, class as u32, 0, Kind::Shuffle, DRAW));
        drawn.extend(&images[..count]);
    }
    drawn.sort_unstable();
    Ok(drawn)
}

/// Images of the rarest class that occurs.
fn least(labels: &[u32], classes: usize) -> usize {
    by_class(labels, classes).iter().map(Vec::len).filter(|n| *n > 0).min().unwrap_or(0)
}

fn by_class(labels: &[u32], classes: usize) -> Vec<Vec<usize>> {
    let mut images = vec![Vec::new(); classes];
    labels.iter().enumerate().for_each(|(i, &l)| images[l as usize].push(i));
    images
}

fn shuffle(items: &mut [usize], mut rng: Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, rng.below(i as u32 + 1) as usize);
    }
}

/// What one draw gave.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Labelled images.
    pub images: usize,
    /// Penalty, and whether cross-validation chose it.
    pub l2: f64,
    /// Chosen among several by cross-validation.
    pub chosen: bool,
    /// Percent of the evaluated images.
    pub top1: f64,
    /// Percent of the evaluated images.
    pub top5: f64,
    /// Steps to the optimum.
    pub iterations: usize,
    /// Largest element of the gradient there.
    pub gradient: f64,
    /// Whether that is below the stop.
    pub converged: bool,
    /// What every evaluated image was taken for.
    #[serde(skip)]
    pub predicted: Vec<u32>,
}

/// One draw: `drawn` of the training images are learned from, all of `test` evaluated. Labels are below `classes`; a class of which
/// nothing was drawn cannot be recognized.
pub fn outcome(
    train: ArrayView2<f32>,
    labels: &[u32],
    drawn: &[usize],
    test: ArrayView2<f32>,
    test_labels: &[u32],
    classes: usize,
    recipe: &Recipe,
) -> Outcome {
    let mut known: Vec<u32> = drawn.iter().map(|&i| labels[i]).collect();
    known.sort_unstable();
    known.dedup();
    let y: Vec<u32> = drawn.iter().map(|&i| known.partition_point(|&k| k < labels[i]) as u32).collect();
    let (x, test) = scaled(recipe.scale, train.select(Axis(0), drawn), test.to_owned());
    let (l2, chosen) = match recipe.l2[..] {
        [l2] => (l2, false),
        _ => choose(x.view(), &y, known.len(), recipe).map_or((FALLBACK, false), |l2| (l2, true)),
    };
    let fit = fit(x.view(), &y, known.len(), l2, recipe, None);
    // Back among all classes, of which the unknown ones have no chance.
    let mut logits = Array2::from_elem((test.nrows(), classes), f32::NEG_INFINITY);
    let found = fit.logits(test.view());
    known.iter().enumerate().for_each(|(k, &c)| logits.column_mut(c as usize).assign(&found.column(k)));
    let (mut right, mut five) = (0, 0);
    for (row, &label) in logits.rows().into_iter().zip(test_labels) {
        let known = row[label as usize] > f32::NEG_INFINITY;
        let rank = rank(row.as_slice().unwrap_or(&[]), label as usize);
        right += (known && rank == 0) as usize;
        five += (known && rank < 5) as usize;
    }
    let percent = |n: usize| 100.0 * n as f64 / test_labels.len().max(1) as f64;
    Outcome {
        images: drawn.len(),
        l2,
        chosen,
        top1: percent(right),
        top5: percent(five),
        iterations: fit.iterations,
        gradient: fit.gradient,
        converged: fit.gradient <= recipe.stop,
        predicted: logits.rows().into_iter().map(|r| super::scores::best(r.as_slice().unwrap_or(&[]))).collect(),
    }
}

/// The penalty with the lowest mean cross-entropy on images left out, in five parts in which every class is spread evenly. An image
/// that is the only one of its class is never left out; none where that is true of all.
fn choose(x: ArrayView2<f32>, labels: &[u32], classes: usize, recipe: &Recipe) -> Option<f64> {
    let mut part = vec![None; labels.len()];
    let mut at = 0;
    for (class, mut images) in by_class(labels, classes).into_iter().enumerate().filter(|(_, i)| i.len() > 1) {
        shuffle(&mut images, Rng::new(recipe.seed, 0, class as u32, 0, Kind::Shuffle, FOLD));
        for i in images {
            part[i] = Some(at % FOLDS);
            at += 1;
        }
    }
    // A class with fewer images than parts has at most one in any, one with more loses no more than a part: all stay known.
    let mut grid = recipe.l2.clone();
    grid.sort_by(|a, b| b.total_cmp(a));
    let folds: Vec<Vec<f64>> = (0..FOLDS.min(at))
        .into_par_iter()
        .map(|fold| {
            let (out, stay): (Vec<usize>, Vec<usize>) = (0..labels.len()).partition(|&i| part[i] == Some(fold));
            let pick = |rows: &[usize]| (x.select(Axis(0), rows), rows.iter().map(|&i| labels[i]).collect::<Vec<_>>());
            let ((a, a_labels), (b, b_labels)) = (pick(&stay), pick(&out));
            let mut last: Option<Fit> = None;
            let of = |&l2: &f64| {
                let fit = fit(a.view(), &a_labels, classes, l2, recipe, last.as_ref());
                let logits = fit.logits(b.view());
                last = Some(fit);
                let loss = |(row, &l): (ndarray::ArrayView1<f32>, &u32)| {
                    super::linear::cross_entropy(row.as_slice().unwrap_or(&[]), l as usize)
                };
                logits.rows().into_iter().zip(&b_labels).map(loss).sum::<f64>()
            };
            grid.iter().map(of).collect()
        })
        .collect();
    let total = |k: usize| folds.iter().map(|f| f[k]).sum::<f64>();
    let best = (0..grid.len()).min_by(|&a, &b| total(a).total_cmp(&total(b)))?;
    (at > 0).then(|| grid[best])
}

/// Both sides by the drawn images alone.
fn scaled(how: Scale, mut x: Array2<f32>, mut test: Array2<f32>) -> (Array2<f32>, Array2<f32>) {
    match how {
        Scale::None => (x, test),
        Scale::L2 => (super::knn::normalize(x), super::knn::normalize(test)),
        Scale::Standard => {
            let n = x.nrows() as f64;
            for (mut a, mut b) in x.columns_mut().into_iter().zip(test.columns_mut()) {
                let mean = a.iter().map(|&v| v as f64).sum::<f64>() / n;
                let var = a.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n;
                // A column that does not vary carries nothing: it becomes zero.
                let by = if var > 0.0 { 1.0 / var.sqrt() } else { 0.0 };
                let to = |v: f32| ((v as f64 - mean) * by) as f32;
                a.mapv_inplace(to);
                b.mapv_inplace(to);
            }
            (x, test)
        }
    }
}

/// Mean and standard deviation (of a sample; 0 of a single number).
pub fn mean_std(x: &[f64]) -> [f64; 2] {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n.max(1.0);
    let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    [mean, var.sqrt()]
}
