//! Is the run healthy? The two collapses of the paper (section 5.3) told apart.
//!
//! Without centering one prototype takes everything (teacher entropy -> 0); without sharpening the output becomes uniform (entropy ->
//! ln K). In both the teacher's output is the same whatever its input, so KL = cross-entropy - entropy -> 0 while the loss looks steady.

use crate::eval::knn::normalize;
use dino_kernel::objective::{Divergence, Targets};
use ndarray::{Array2, Axis, s};

/// What is wrong, if anything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Neither collapse is seen.
    Healthy,
    /// Every output is close to uniform.
    Uniform,
    /// Every output falls on the same few prototypes.
    OneDimensional,
}

impl Health {
    /// For logs.
    pub const fn name(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Uniform => "uniform collapse",
            Health::OneDimensional => "one-dimensional collapse",
        }
    }

    /// What it means.
    pub const fn meaning(self) -> &'static str {
        match self {
            Health::Healthy => "the teacher tells images apart again",
            Health::Uniform => {
                "the teacher's output is almost uniform, so the student learns nothing (uniform collapse)"
            }
            Health::OneDimensional => {
                "the teacher gives every image the same few prototypes (one-dimensional collapse)"
            }
        }
    }

    /// What to do, in a run with this kind of targets.
    pub const fn remedy(self, targets: Targets) -> &'static str {
        match (self, targets) {
            (Health::Healthy, _) => "",
            (Health::Uniform, _) => {
                "lower --teacher-temp, lower --lr, raise --freeze-last-layer or use fewer prototypes (--out-dim)"
            }
            (Health::OneDimensional, Targets::Centered { .. }) => {
                "check --center-momentum (0.9), raise --teacher-temp or lower --lr"
            }
            (Health::OneDimensional, Targets::Plain) => {
                "nothing keeps it from that with --targets none; --targets center does"
            }
            (Health::OneDimensional, Targets::SinkhornKnopp { .. }) => {
                "raise --batch, raise --teacher-temp or lower --lr"
            }
        }
    }

    /// Both.
    pub fn explanation(self, targets: Targets) -> String {
        match self.remedy(targets) {
            "" => self.meaning().into(),
            remedy => format!("{}: {remedy}", self.meaning()),
        }
    }
}

/// Teacher entropy and KL, means over the last steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Means {
    /// Teacher entropy.
    pub entropy: f64,
    /// KL; with the squared error what stands for it.
    pub kl: f64,
    /// Steps that were seen.
    pub steps: u64,
}

impl Means {
    /// Whether they are means over enough steps to rest on.
    pub fn are_settled(&self) -> bool {
        self.steps >= u64::from(PATIENCE)
    }

    /// Whether the KL is below a hundredth of ln K: it carries nothing about the image then; healthy runs stay an order above it.
    pub fn are_flat(&self, ln_k: f64) -> bool {
        self.kl < 0.01 * ln_k
    }
}

/// Watches teacher entropy and KL over the last steps.
#[derive(Clone, Debug)]
pub struct CollapseDetector {
    ln_k: f64,
    /// Exponential means, once there is a first value.
    mean: Option<Means>,
    /// Steps in a row that appeared as `suspect`.
    streak: u32,
    suspect: Health,
    health: Health,
    /// Steps that were seen when the health last changed.
    changed: u64,
}

/// Steps over which the means run, and for which a suspicion must hold.
pub const PATIENCE: u32 = 30;

impl CollapseDetector {
    /// For K prototypes.
    pub fn new(prototypes: usize) -> CollapseDetector {
        let ln_k = libm::log(prototypes as f64);
        CollapseDetector { ln_k, mean: None, streak: 0, suspect: Health::Healthy, health: Health::Healthy, changed: 0 }
    }

    /// Takes in a step's loss, of this kind, and teacher entropy; returns the health when it changes.
    ///
    /// The squared error of softmax outputs is measured by their own size: sum q^2 is at least exp(-entropy). One that is a hundredth of it
    /// stands for a KL of a hundredth of ln K.
    pub fn step(&mut self, divergence: Divergence, loss: f64, entropy: f64) -> Option<Health> {
        let kl = match divergence {
            Divergence::CrossEntropy => loss - entropy,
            Divergence::SquaredError => self.ln_k * loss * entropy.exp(),
        };
        let rate = 2.0 / (PATIENCE as f64 + 1.0);
        let Means { entropy: h, kl: d, steps } = self.mean.unwrap_or(Means { entropy, kl, steps: 0 });
        let (h, d) = (h + rate * (entropy - h), d + rate * (kl - d));
        let mean = Means { entropy: h, kl: d, steps: steps + 1 };
        self.mean = Some(mean);
        let flat = mean.are_flat(self.ln_k);
        let now = match () {
            _ if flat && h > 0.97 * self.ln_k => Health::Uniform,
            _ if flat && h < 0.05 * self.ln_k => Health::OneDimensional,
            _ => Health::Healthy,
        };
        self.streak = if now == self.suspect { self.streak.saturating_add(1) } else { 1 };
        self.suspect = now;
        let changed = self.streak >= PATIENCE && now != self.health;
        changed.then(|| {
            self.health = now;
            self.changed = steps + 1;
            now
        })
    }

    /// Entropy and KL over the last steps, none before the first.
    pub fn means(&self) -> Option<Means> {
        self.mean
    }

    /// Steps that were seen when the health last changed.
    pub fn changed(&self) -> u64 {
        self.changed
    }

    /// The health as of the last step.
    pub fn health(&self) -> Health {
        self.health
    }
}

/// How many directions the features use: (tr S)^2 / tr(S^2) of their covariance S, between 1 and the width. Rows are samples.
pub fn effective_rank(features: &Array2<f32>) -> f64 {
    let Some(mean) = features.mean_axis(Axis(0)) else { return 0.0 };
    let centered = features - &mean;
    let covariance = centered.t().dot(&centered);
    let trace: f64 = covariance.diag().iter().map(|&x| x as f64).sum();
    let square: f64 = covariance.iter().map(|&x| x as f64 * x as f64).sum();
    if square > 0.0 { trace * trace / square } else { 0.0 }
}

/// Rows whose cosines are looked at, at most: one in so many of a larger set.
const MOST_ROWS: usize = 20_000;

/// Standard deviation of the cosines between two rows, over all pairs (a row with itself among them): of unit rows the mean of the cosine is
/// |m|^2, and that of its square the sum of squares of x^T x / n.
pub fn cosine_spread(features: &Array2<f32>) -> f64 {
    let step = features.nrows().div_ceil(MOST_ROWS).max(1);
    let unit = normalize(features.slice(s![..;step, ..]).to_owned());
    let Some(mean) = unit.mean_axis(Axis(0)) else { return 0.0 };
    let n = unit.nrows() as f64;
    let square: f64 = unit.t().dot(&unit).iter().map(|&x| (x as f64 / n).powi(2)).sum();
    let mean: f64 = mean.iter().map(|&x| x as f64 * x as f64).sum();
    (square - mean * mean).max(0.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(entropy: f64, kl: f64) -> Health {
        let mut detector = CollapseDetector::new(1024);
        (0..200).for_each(|_| {
            detector.step(Divergence::CrossEntropy, entropy + kl, entropy);
        });
        detector.health()
    }

    #[test]
    fn collapses_are_told_apart_and_health_is_not_disturbed() {
        assert_eq!(run(6.92, 0.001), Health::Uniform);
        assert_eq!(run(0.01, 0.001), Health::OneDimensional);
        assert_eq!(run(4.0, 1.5), Health::Healthy);
        // Early in a healthy run the entropy is close to ln K, but images still differ.
        assert_eq!(run(6.8, 0.5), Health::Healthy);
    }

    /// Two outputs that are one-hot on different prototypes are 2 apart; uniform ones have squares of 1 / K in all.
    #[test]
    fn squared_errors_show_the_same_collapses() {
        let run = |entropy: f64, loss: f64| {
            let mut detector = CollapseDetector::new(1024);
            (0..200).for_each(|_| {
                detector.step(Divergence::SquaredError, loss, entropy);
            });
            detector.health()
        };
        assert_eq!(run(6.92, 1e-7), Health::Uniform);
        assert_eq!(run(0.01, 0.001), Health::OneDimensional);
        assert_eq!(run(0.01, 0.5), Health::Healthy);
        assert_eq!(run(6.8, 0.0005), Health::Healthy);
    }

    #[test]
    fn what_to_do_fits_the_targets() {
        let none = Health::OneDimensional.explanation(Targets::Plain);
        assert!(none.contains("--targets center does") && !none.contains("--center-momentum"));
        let centered = Health::OneDimensional.explanation(Targets::Centered { momentum: 0.9 });
        assert!(centered.contains("--center-momentum"));
    }

    #[test]
    fn cosines_spread_as_they_do_pair_by_pair() {
        let x = Array2::from_shape_fn((40, 5), |(i, j)| ((i * 7 + j * j * 3) % 11) as f32 - 3.0);
        let unit = normalize(x.clone());
        let cosines: Vec<f64> = (0..40 * 40).map(|k| unit.row(k / 40).dot(&unit.row(k % 40)) as f64).collect();
        let mean = cosines.iter().sum::<f64>() / 1600.0;
        let want = (cosines.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / 1600.0).sqrt();
        assert!((cosine_spread(&x) - want).abs() < 1e-6, "{} {want}", cosine_spread(&x));
        let alike = Array2::from_shape_fn((400, 8), |(i, j)| 1.0 + 1e-4 * ((i * j) % 7) as f32);
        assert!(cosine_spread(&alike) < 1e-6);
    }

    #[test]
    fn rank_counts_directions() {
        let spread = Array2::from_shape_fn((400, 8), |(i, j)| if i % 8 == j { 1.0 } else { 0.0 });
        let line = Array2::from_shape_fn((400, 8), |(i, j)| i as f32 * (j as f32 + 1.0));
        assert!((effective_rank(&spread) - 7.0).abs() < 0.1, "{}", effective_rank(&spread));
        assert!((effective_rank(&line) - 1.0).abs() < 1e-3);
    }
}
