//! Which inputs make each output of one axis, and by how much.

use super::Filter;

pub const FRACTION: u32 = 22;

/// The weights of one axis in 22-bit fixed point.
#[derive(Default)]
pub struct Taps {
    /// First input, first weight and number of weights of each output.
    spans: Vec<(usize, usize, usize)>,
    weights: Vec<i32>,
    exact: Vec<f64>,
}

impl Taps {
    /// For the outputs `from .. from + count` of an axis that goes from `n_in` to `n_out` pixels.
    pub fn fill(&mut self, n_in: usize, n_out: usize, from: usize, count: usize, filter: Filter) {
        self.spans.clear();
        self.weights.clear();
        let scale = n_in as f64 / n_out as f64;
        let widen = scale.max(1.0);
        let (reach, shrink) = (filter.radius() * widen, 1.0 / widen);
        for o in from..from + count {
            let center = (o as f64 + 0.5) * scale;
            let low = (center - reach + 0.5).max(0.0) as usize;
            let high = ((center + reach + 0.5) as usize).min(n_in);
            self.exact.clear();
            self.exact.extend((low..high).map(|i| filter.at((i as f64 - center + 0.5) * shrink)));
            // At the border the kernel is cut off: what is left is scaled back to one.
            let sum: f64 = self.exact.iter().sum();
            self.spans.push((low, self.weights.len(), high - low));
            self.weights.extend(self.exact.iter().map(|w| {
                let fixed = w / sum * (1u32 << FRACTION) as f64;
                (fixed + if fixed < 0.0 { -0.5 } else { 0.5 }) as i32
            }));
        }
    }

    /// The number of outputs.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// The outputs in order: first input, weights.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.spans.iter().map(|&(low, at, n)| (low, &self.weights[at..at + n]))
    }

    /// The inputs that any output needs.
    pub fn needed(&self) -> std::ops::Range<usize> {
        let low = self.spans.iter().map(|s| s.0).min().unwrap_or(0);
        low..self.spans.iter().map(|s| s.0 + s.2).max().unwrap_or(low)
    }
}
