//! The linear probe (official `eval_linear.py`): one linear layer on frozen features, trained by SGD with momentum, for an entire
//! grid of learning rates at once.
//!
//! The heads of the grid are side by side as one layer of (rates x classes) outputs, so that a step is one matmul forward and one
//! backward whatever the number of rates, and the features are read (or the backbone run) once for all of them. They start alike
//! and see the same batches, and none knows of the others: each is what it would be alone.

use super::scores::rank;
use crate::data::order::order;
use crate::error::{Error, Result};
use crate::linalg::{gemm, rows};
use dino_kernel::rng::{Kind, Rng};
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use serde::Serialize;

/// The grid that is tried by default; published for ViT-S: 0.001. Times batch / 256.
pub const RATES: [f64; 13] = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0];
/// Published.
const MOMENTUM: f32 = 0.9;
/// Standard deviation of the first weights; published.
const STD: f64 = 0.01;
/// Rows that are scored at once.
const BLOCK: usize = 1024;
/// The `block` of the generator for first weights: none of a network's tensors has it.
const ORDINAL: u32 = 4095;

/// How a probe is trained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// Passes over the images; published: 100.
    pub epochs: usize,
    /// Images a step; the last one of an epoch takes what is left. Published default: 128 a card.
    pub batch: usize,
    /// Learning rates for a batch of 256.
    pub rates: Vec<f64>,
    /// Of the first weights and of the order of images.
    pub seed: u64,
}

impl Recipe {
    /// Checks the options.
    ///
    /// # Errors
    /// A number of them makes no training possible: no images a step, no rate or one that is not above 0.
    pub fn check(&self) -> Result<()> {
        let fail = |what: String, hint: &str| Err(Error::new(what).hint(hint));
        if self.epochs == 0 || self.batch == 0 {
            return fail(
                format!("--epochs {} and --batch {} make no steps", self.epochs, self.batch),
                "published: --epochs 100 --batch 128",
            );
        }
        match self.rates.iter().find(|r| !(r.is_finite() && **r > 0.0)) {
            Some(rate) => fail(format!("--lr {rate} makes no sense"), "learning rates are above 0; published: 0.001"),
            None if self.rates.is_empty() => fail("--lr names no learning rate".into(), "published: --lr 0.001"),
            None => Ok(()),
        }
    }

    /// What a rate is multiplied by in an epoch: batch / 256, cosine to 0, one value an epoch as published.
    pub fn factor(&self, epoch: usize) -> f64 {
        let angle = std::f64::consts::PI * epoch as f64 / self.epochs as f64;
        self.batch as f64 / 256.0 * (1.0 + libm::cos(angle)) / 2.0
    }
}

/// The heads of a grid in training.
pub struct Heads {
    rates: Vec<f64>,
    classes: usize,
    width: usize,
    /// (rates, classes, width)
    weight: Vec<f32>,
    /// (rates, classes)
    bias: Vec<f32>,
    /// Of `weight` and `bias`.
    momentum: [Vec<f32>; 2],
}

/// A trained layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// (classes, width)
    pub weight: Array2<f32>,
    /// (classes)
    pub bias: Vec<f32>,
}

/// What a head is worth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Learning rate for a batch of 256.
    pub lr: f64,
    /// Percent of images whose class has the highest logit.
    pub top1: f64,
    /// Percent whose class is among the five highest.
    pub top5: f64,
    /// Mean cross-entropy; not finite where the rate was too high.
    #[serde(serialize_with = "crate::eval::linear::finite")]
    pub loss: f64,
}

/// JSON knows no infinities: null.
pub(crate) fn finite<S: serde::Serializer>(x: &f64, to: S) -> std::result::Result<S::Ok, S::Error> {
    x.is_finite().then_some(*x).serialize(to)
}

impl Heads {
    /// Weights N(0, 0.01^2), the same for every rate, biases 0.
    pub fn new(rates: &[f64], classes: usize, width: usize, seed: u64) -> Heads {
        let number = |i: usize| (STD * Rng::new(seed, 0, i as u32, 0, Kind::Init, ORDINAL).normal()) as f32;
        let first: Vec<f32> = (0..classes * width).into_par_iter().map(number).collect();
        let head = Head { weight: Array2::from_shape_vec((classes, width), first).expect("as many"), bias: vec![] };
        Heads::from(rates, &Head { bias: vec![0.0; classes], ..head })
    }

    /// Every head starts from `first`.
    pub fn from(rates: &[f64], first: &Head) -> Heads {
        let (classes, width) = first.weight.dim();
        let weight: Vec<f32> = first.weight.iter().copied().collect();
        let n = rates.len();
        Heads {
            rates: rates.to_vec(),
            classes,
            width,
            weight: weight.repeat(n),
            bias: first.bias.repeat(n),
            momentum: [vec![0.0; n * classes * width], vec![0.0; n * classes]],
        }
    }

    /// (rows, rates, classes) of `x` (rows, width).
    fn logits(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len() / self.width * self.bias.len()];
        gemm::linear(&mut y, x, &self.weight, &self.bias, self.width);
        y
    }

    /// One step of SGD with momentum on the mean cross-entropy of a batch, `x` (rows, width); rates times `factor`.
    pub fn step(&mut self, x: &[f32], labels: &[u32], factor: f64) {
        if labels.is_empty() {
            return;
        }
        let (classes, outputs) = (self.classes, self.bias.len());
        let mut dy = self.logits(x);
        let part = 1.0 / labels.len() as f32;
        // d loss / d logits = (softmax - one-hot) / rows.
        dy.par_chunks_mut(outputs).zip(labels).for_each(|(row, &label)| {
            rows::softmax(row, classes, classes, 1.0, &mut vec![0.0; outputs / classes], 1);
            row.iter_mut().skip(label as usize).step_by(classes).for_each(|p| *p -= 1.0);
            row.iter_mut().for_each(|p| *p *= part);
        });
        // Momentum without dampening, m = 0.9 m + gradient: the gradient is added where it is needed.
        let [weight, bias] = &mut self.momentum;
        weight.par_chunks_mut(1 << 14).for_each(|m| rows::scale(m, MOMENTUM));
        rows::scale(bias, MOMENTUM);
        gemm::weight_gradient(weight, bias, &dy, x, self.width);
        let update = |w: &mut [f32], m: &[f32], rate: f64| {
            let rate = (rate * factor) as f32;
            w.iter_mut().zip(m).for_each(|(w, m)| *w -= rate * m);
        };
        let one = classes * self.width;
        let heads = self.weight.par_chunks_mut(one).zip(weight.par_chunks(one)).zip(&self.rates);
        heads.for_each(|((w, m), &rate)| update(w, m, rate));
        let heads = self.bias.chunks_mut(classes).zip(bias.chunks(classes)).zip(&self.rates);
        heads.for_each(|((b, m), &rate)| update(b, m, rate));
    }

    /// The steps of the images in `order`, `batch` at a time.
    pub fn steps(&mut self, x: ArrayView2<f32>, labels: &[u32], order: &[u32], batch: usize, factor: f64) {
        let (mut rows, mut here) = (Vec::with_capacity(batch * self.width), Vec::with_capacity(batch));
        for images in order.chunks(batch) {
            rows.clear();
            images.iter().for_each(|&i| rows.extend(x.row(i as usize)));
            here.clear();
            here.extend(images.iter().map(|&i| labels[i as usize]));
            self.step(&rows, &here, factor);
        }
    }

    /// What every head is worth on these images.
    pub fn evaluate(&self, x: ArrayView2<f32>, labels: &[u32]) -> Vec<Score> {
        let n = self.rates.len();
        let x = x.as_standard_layout();
        let (x, mut sums) = (x.as_slice().unwrap_or(&[]), vec![[0.0f64; 3]; n]);
        for (x, labels) in x.chunks(BLOCK * self.width).zip(labels.chunks(BLOCK)) {
            let logits = self.logits(x);
            let of_row = |(row, &label): (&[f32], &u32)| -> Vec<[f64; 3]> {
                let of_head = |y: &[f32]| {
                    let rank = rank(y, label as usize);
                    [(rank == 0) as u8 as f64, (rank < 5) as u8 as f64, cross_entropy(y, label as usize)]
                };
                row.chunks(self.classes).map(of_head).collect()
            };
            let found: Vec<Vec<[f64; 3]>> = logits.par_chunks(self.bias.len()).zip(labels).map(of_row).collect();
            // Added in the order of the images.
            for (sum, one) in found.iter().flat_map(|row| (0..n).zip(row)) {
                (0..3).for_each(|k| sums[sum][k] += one[k]);
            }
        }
        let all = labels.len().max(1) as f64;
        let score = |(&lr, s): (&f64, &[f64; 3])| {
            let [top1, top5, loss] = s.map(|s| s / all);
            Score { lr, top1: 100.0 * top1, top5: 100.0 * top5, loss }
        };
        self.rates.iter().zip(&sums).map(score).collect()
    }

    /// The head of one rate.
    pub fn head(&self, i: usize) -> Head {
        let (one, c) = (self.classes * self.width, self.classes);
        let weight = self.weight[i * one..(i + 1) * one].to_vec();
        Head {
            weight: Array2::from_shape_vec((c, self.width), weight).expect("as many"),
            bias: self.bias[i * c..(i + 1) * c].to_vec(),
        }
    }
}

/// log sum exp(y) - y of the label, in f64.
pub(super) fn cross_entropy(y: &[f32], label: usize) -> f64 {
    let top = y.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = y.iter().map(|&y| libm::exp(y as f64 - top)).sum();
    top + libm::log(sum) - y[label] as f64
}

/// Trains the heads of a recipe on cached features, (images, width) and a label below `classes` each. `tick` is called once an epoch.
pub fn train(x: ArrayView2<f32>, labels: &[u32], classes: usize, recipe: &Recipe, mut tick: impl FnMut()) -> Heads {
    let mut heads = Heads::new(&recipe.rates, classes, x.ncols(), recipe.seed);
    for epoch in 0..recipe.epochs {
        let order = order(labels.len(), recipe.seed, epoch as u64);
        heads.steps(x, labels, &order, recipe.batch, recipe.factor(epoch));
        tick();
    }
    heads
}

/// The best of a grid: the highest top-1, among equals the lower loss, then the first.
pub fn best(scores: &[Score]) -> usize {
    let order = |&a: &usize, &b: &usize| {
        let (a, b) = (&scores[a], &scores[b]);
        a.top1.total_cmp(&b.top1).then(b.loss.total_cmp(&a.loss))
    };
    (0..scores.len()).rev().max_by(order).unwrap_or(0)
}

impl Head {
    /// Logits (images, classes).
    pub fn logits(&self, x: ArrayView2<f32>) -> Array2<f32> {
        let (classes, width) = self.weight.dim();
        let x = x.as_standard_layout();
        let weight = self.weight.as_standard_layout();
        let mut y = vec![0.0; x.nrows() * classes];
        gemm::linear(&mut y, x.as_slice().unwrap_or(&[]), weight.as_slice().unwrap_or(&[]), &self.bias, width);
        Array2::from_shape_vec((x.nrows(), classes), y).expect("a row an image")
    }
}
