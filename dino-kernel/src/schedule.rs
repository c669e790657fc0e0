//! The published schedules (official `utils.py`, `main_dino.py`), as functions of the step or the epoch, in f64.

use core::f64::consts::PI;

/// A cosine from `base` to `end` over `steps`, after `warmup` steps of a line from `start` to `base` with both ends included: the
/// base is reached at the last warm-up step and once more at the first step of the cosine. `end` itself is never reached.
/// A run shorter than its warm-up simply stops on the line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cosine {
    /// Value at step 0, if there is a warm-up.
    pub start: f64,
    /// Value at which the cosine begins.
    pub base: f64,
    /// Value that it comes near.
    pub end: f64,
    /// Steps of the warm-up.
    pub warmup: u64,
    /// Steps of the run, the warm-up included.
    pub steps: u64,
}

impl Cosine {
    /// Without warm-up.
    pub const fn new(base: f64, end: f64, steps: u64) -> Cosine {
        Cosine { start: base, base, end, warmup: 0, steps }
    }

    /// The value at step `i`, from 0.
    pub fn at(&self, i: u64) -> f64 {
        if i < self.warmup {
            if self.warmup == 1 {
                return self.start;
            }
            return self.start + (self.base - self.start) * i as f64 / (self.warmup - 1) as f64;
        }
        let (done, all) = ((i - self.warmup) as f64, self.steps.saturating_sub(self.warmup).max(1) as f64);
        self.end + 0.5 * (self.base - self.end) * (1.0 + libm::cos(PI * done / all))
    }
}

/// The teacher's temperature in an epoch: a line from `warmup` to `end` over `epochs` epochs, `end` being reached in the last of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TeacherTemp {
    /// Temperature of epoch 0.
    pub warmup: f64,
    /// Temperature from the last of `epochs` on.
    pub end: f64,
    /// Epochs of the warm-up.
    pub epochs: u64,
}

impl TeacherTemp {
    /// The value in `epoch`, from 0.
    pub fn at(&self, epoch: u64) -> f64 {
        if epoch >= self.epochs {
            self.end
        } else if self.epochs == 1 {
            self.warmup
        } else {
            self.warmup + (self.end - self.warmup) * epoch as f64 / (self.epochs - 1) as f64
        }
    }
}
