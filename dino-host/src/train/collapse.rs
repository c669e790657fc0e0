//! Is the run healthy? The two collapses of the paper (section 5.3) told apart.
//!
//! Without centering one prototype takes everything (teacher entropy -> 0); without sharpening the output becomes uniform (entropy ->
//! ln K). In both the teacher's output is the same whatever its input, so KL = cross-entropy - entropy -> 0 while the loss looks steady.

use dino_kernel::objective::{Divergence, Targets};
use ndarray::{Array2, Axis};

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

    /// What it means and what to do, in a run with this kind of targets.
    pub const fn explanation(self, targets: Targets) -> &'static str {
        match (self, targets) {
            (Health::Healthy, _) => "the teacher tells images apart again",
            (Health::Uniform, _) => {
                "the teacher's output is almost uniform, so the student learns nothing (uniform collapse): \
                 lower --teacher-temp, lower --lr, raise --freeze-last-layer or use fewer prototypes (--out-dim)"
            }
            (Health::OneDimensional, Targets::Centered { .. }) => {
                "the teacher gives every image the same few prototypes (one-dimensional collapse): \
                 check --center-momentum (0.9), raise --teacher-temp or lower --lr"
            }
            (Health::OneDimensional, Targets::Plain) => {
                "the teacher gives every image the same few prototypes (one-dimensional collapse): \
                 nothing keeps it from that with --targets none; --targets center does"
            }
            (Health::OneDimensional, Targets::SinkhornKnopp { .. }) => {
                "the teacher gives every image the same few prototypes (one-dimensional collapse): \
                 raise --batch, raise --teacher-temp or lower --lr"
            }
        }
    }
}

/// Watches teacher entropy and KL over the last steps.
#[derive(Clone, Debug)]
pub struct CollapseDetector {
    ln_k: f64,
    /// Exponential means of entropy and KL, once there is a first value.
    mean: Option<(f64, f64)>,
    /// Steps in a row that appeared as `suspect`.
    streak: u32,
    suspect: Health,
    health: Health,
}

/// Steps over which the means run, and for which a suspicion must hold.
const PATIENCE: u32 = 30;

impl CollapseDetector {
    /// For K prototypes.
    pub fn new(prototypes: usize) -> CollapseDetector {
        let ln_k = libm::log(prototypes as f64);
        CollapseDetector { ln_k, mean: None, streak: 0, suspect: Health::Healthy, health: Health::Healthy }
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
        let (h, d) = self.mean.unwrap_or((entropy, kl));
        let (h, d) = (h + rate * (entropy - h), d + rate * (kl - d));
        self.mean = Some((h, d));
        // A KL of a hundredth of ln K carries nothing about the image; healthy runs stay an order above it.
        let flat = d < 0.01 * self.ln_k;
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
            now
        })
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
    fn rank_counts_directions() {
        let spread = Array2::from_shape_fn((400, 8), |(i, j)| if i % 8 == j { 1.0 } else { 0.0 });
        let line = Array2::from_shape_fn((400, 8), |(i, j)| i as f32 * (j as f32 + 1.0));
        assert!((effective_rank(&spread) - 7.0).abs() < 0.1, "{}", effective_rank(&spread));
        assert!((effective_rank(&line) - 1.0).abs() < 1e-3);
    }
}
