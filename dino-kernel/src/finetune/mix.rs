//! MixUp (Zhang et al. 2018), CutMix (Yun et al. 2019) and label smoothing, as DeiT has them (timm's `Mixup`, a choice a batch): image i
//! of a batch is mixed with image n - 1 - i, and its target with that one's target.
//!
//! MixUp: x_i <- s x_i + (1 - s) x_j. CutMix: a box of x_j is pasted into x_i, and s is the part of the area that stays x_i's. In both
//! s ~ Beta(alpha, alpha), CutMix's then corrected to the box that fits into the image; t_i <- s t_i + (1 - s) t_j.

use crate::real::Real;
use crate::rng::Rng;

/// How batches are mixed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// Alpha of MixUp; 0 = off. DeiT: 0.8.
    pub mixup: f64,
    /// Alpha of CutMix; 0 = off. DeiT: 1.
    pub cutmix: f64,
    /// Probability that a batch is mixed at all. DeiT: 1.
    pub prob: f64,
    /// Probability of CutMix where both are on. DeiT: 0.5.
    pub switch: f64,
}

/// What was drawn for a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mixed {
    /// Images stay as they are.
    Apart,
    /// MixUp; the number is the part of an image's own.
    Blend(f64),
    /// CutMix: the box that is another image's, in pixels.
    Paste {
        /// First row.
        top: usize,
        /// First column.
        left: usize,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
}

/// A sample of the gamma distribution (Marsaglia and Tsang 2000), scale 1.
fn gamma(rng: &mut Rng, shape: f64) -> f64 {
    if shape < 1.0 {
        let u = 1.0 - rng.uniform();
        return gamma(rng, shape + 1.0) * libm::pow(u, 1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / libm::sqrt(9.0 * d);
    loop {
        let x = rng.normal();
        let v = libm::pow(1.0 + c * x, 3.0);
        let u = 1.0 - rng.uniform();
        if v > 0.0 && libm::log(u) < 0.5 * x * x + d - d * v + d * libm::log(v) {
            return d * v;
        }
    }
}

/// A sample of Beta(alpha, alpha), alpha > 0.
fn beta(rng: &mut Rng, alpha: f64) -> f64 {
    let (a, b) = (gamma(rng, alpha), gamma(rng, alpha));
    // At a tiny alpha, where the distribution is 0 or 1, both may underflow.
    if a + b > 0.0 { a / (a + b) } else { 1.0 }
}

impl Mix {
    /// Draws for a batch of images of (height, width).
    pub fn draw(&self, rng: &mut Rng, [height, width]: [usize; 2]) -> Mixed {
        let Mix { mixup, cutmix, prob, switch } = *self;
        if (mixup == 0.0 && cutmix == 0.0) || !rng.chance(prob) {
            return Mixed::Apart;
        }
        let paste = match (mixup > 0.0, cutmix > 0.0) {
            (true, true) => rng.chance(switch),
            (_, paste) => paste,
        };
        if !paste {
            return Mixed::Blend(beta(rng, mixup));
        }
        let ratio = libm::sqrt(1.0 - beta(rng, cutmix));
        let mut cut = |side: usize| {
            let half = (side as f64 * ratio) as usize / 2;
            let center = rng.below(side as u32) as usize;
            let (from, to) = (center.saturating_sub(half), (center + half).min(side));
            (from, to - from)
        };
        let ((top, height), (left, width)) = (cut(height), cut(width));
        Mixed::Paste { top, left, height, width }
    }
}

impl Mixed {
    /// The part of an image that is its own, for images of (height, width).
    pub fn share(&self, [rows, cols]: [usize; 2]) -> f64 {
        match *self {
            Mixed::Apart => 1.0,
            Mixed::Blend(share) => share,
            Mixed::Paste { height, width, .. } => 1.0 - (height * width) as f64 / (rows * cols) as f64,
        }
    }

    /// Mixes a batch (images, channels, height, width) of so many images, each of whose channels has (height, width).
    pub fn apply<T: Real>(&self, pixels: &mut [T], images: usize, [rows, cols]: [usize; 2]) {
        let len = pixels.len() / images.max(1);
        for i in 0..images / 2 {
            let (front, back) = pixels.split_at_mut((images - 1 - i) * len);
            let (x, y) = (&mut front[i * len..][..len], &mut back[..len]);
            match *self {
                Mixed::Apart => return,
                Mixed::Blend(share) => {
                    let (own, other) = (T::of(share), T::of(1.0 - share));
                    for (x, y) in x.iter_mut().zip(y) {
                        (*x, *y) = (own * *x + other * *y, own * *y + other * *x);
                    }
                }
                Mixed::Paste { top, left, height, width } => {
                    for (x, y) in x.chunks_mut(rows * cols).zip(y.chunks_mut(rows * cols)) {
                        for row in top..top + height {
                            let at = row * cols + left..row * cols + left + width;
                            x[at.clone()].swap_with_slice(&mut y[at]);
                        }
                    }
                }
            }
        }
    }
}

/// The targets (images, classes) of a batch with these labels, mixed by `share` and smoothed: a class that is not the label's has
/// smoothing / classes.
pub fn targets<T: Real>(out: &mut [T], labels: &[u32], classes: usize, share: f64, smoothing: f64) {
    let off = smoothing / classes as f64;
    for (row, (own, other)) in out.chunks_mut(classes).zip(labels.iter().zip(labels.iter().rev())) {
        for (class, t) in row.iter_mut().enumerate() {
            let part = |label: u32, share: f64| if class == label as usize { share * (1.0 - smoothing) } else { 0.0 };
            *t = T::of(off + part(*own, share) + part(*other, 1.0 - share));
        }
    }
}
