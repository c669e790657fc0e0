//! Masks carried from frame to frame by the likeness of patches (official `eval_video_segmentation.py`, the protocol of Jabri et al.,
//! "Space-Time Correspondence as a Contrastive Random Walk", 2020).
//!
//! A patch t of a new frame takes the classes m_s of the patches s most like it in the context (the first frame and the last few):
//!
//! m_t = sum over s of w_ts m_s / sum over s of w_ts,   w_ts = exp(cos(x_t, x_s) / T)
//!
//! over the `top` largest w_ts with s at most `radius` rows and columns away. Ties with the last of them count as well.

use super::any_size::bilinear;
use crate::image::masks::Mask;
use crate::linalg::gemm::{View, sgemm};
use crate::linalg::rows::at_least;
use rayon::prelude::*;
use std::collections::VecDeque;
use std::ops::Range;

/// The published numbers by default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// Frames before this one in the context, besides the first.
    pub previous: usize,
    /// Rows and columns, in patches, that a source may be away; 0: any.
    pub radius: usize,
    /// Sources of a patch.
    pub top: usize,
    /// Of the softmax over the sources.
    pub temperature: f64,
}

impl Default for Params {
    fn default() -> Params {
        Params { previous: 7, radius: 12, top: 5, temperature: 0.1 }
    }
}

/// A frame of the context: tokens (patches, C) of unit length, classes (patches, classes).
struct Frame {
    tokens: Vec<f32>,
    classes: Vec<f32>,
}

/// The context of a video; it holds the features of `previous` + 1 frames.
pub struct Propagation {
    params: Params,
    grid: [usize; 2],
    classes: usize,
    first: Frame,
    last: VecDeque<Frame>,
}

/// Rows and columns of patches that share one matmul with all sources that any of them may have. Matmuls of fewer rows would spend
/// more time packing their factors than multiplying.
const ROWS: usize = 4;
const COLUMNS: usize = 32;

impl Propagation {
    /// From the first frame: tokens (patches, C) and the class of every patch, below `classes`. `params.top` is 1 or more.
    pub fn new(params: Params, grid: [usize; 2], tokens: Vec<f32>, first: &[u8], classes: usize) -> Propagation {
        let mut one_hot = vec![0.0; first.len() * classes];
        for (row, &id) in one_hot.chunks_mut(classes).zip(first) {
            row[id as usize] = 1.0;
        }
        let first = Frame { tokens: unit_rows(tokens, grid), classes: one_hot };
        Propagation { params, grid, classes, first, last: VecDeque::new() }
    }

    /// The classes (patches, classes) of the next frame, from its tokens (patches, C). Each row sums to 1.
    ///
    /// Costs 2 C multiplications and additions a patch, context frame and patch of the window, that widened by `ROWS` - 1 rows and
    /// `COLUMNS` - 1 columns: with the published numbers on 60 x 104 patches of 384 (ViT-S/8) 60 GFLOP a frame, against 240 without a
    /// window.
    pub fn next(&mut self, tokens: Vec<f32>) -> &[f32] {
        let [height, width] = self.grid;
        let tokens = unit_rows(tokens, self.grid);
        let mut classes = vec![0.0; height * width * self.classes];
        let bands = classes.par_chunks_mut(ROWS * width * self.classes).enumerate();
        bands.for_each(|(band, out)| self.band(band * ROWS, &tokens, out));
        // With none before it, only the first frame is ever looked at; this one is kept to be given out.
        if self.last.len() > self.params.previous.saturating_sub(1) {
            self.last.pop_front();
        }
        self.last.push_back(Frame { tokens, classes });
        &self.last.back().expect("just kept").classes
    }

    /// The first frame and the last ones.
    fn context(&self) -> impl Iterator<Item = &Frame> {
        std::iter::once(&self.first).chain(self.last.iter().take(self.params.previous))
    }

    /// Classes (rows, width, classes) of the rows of patches from `top` on, up to [`ROWS`].
    fn band(&self, top: usize, tokens: &[f32], out: &mut [f32]) {
        let [height, width] = self.grid;
        let c = tokens.len() / (height * width);
        let radius = if self.params.radius == 0 { height.max(width) } else { self.params.radius };
        let reach = |at: usize, n: usize, all: usize| at.saturating_sub(radius)..at.saturating_add(n + radius).min(all);
        let bottom = (top + ROWS).min(height);
        let rows = reach(top, bottom - top, height);
        let (mut a, mut b, mut likeness) = (Vec::new(), Vec::new(), Vec::new());
        for left in (0..width).step_by(COLUMNS) {
            let right = (left + COLUMNS).min(width);
            let columns = reach(left, right - left, width);
            gather(&mut a, tokens, c, width, top..bottom, left..right);
            let (targets, sources) = (a.len() / c, rows.len() * columns.len());
            likeness.resize(targets * sources, 0.0);
            let mut best: Vec<Best> = (0..targets).map(|_| Best::new(self.params.top)).collect();
            for (f, frame) in self.context().enumerate() {
                gather(&mut b, &frame.tokens, c, width, rows.clone(), columns.clone());
                sgemm(&mut likeness, sources, View::rows(&a, c), View::transposed(&b, c), [targets, c, sources], false);
                for (t, (line, best)) in likeness.chunks(sources).zip(&mut best).enumerate() {
                    let (y, x) = (top + t / (right - left), left + t % (right - left));
                    let window = reach(x, 1, width);
                    for row in reach(y, 1, height) {
                        let from = (row - rows.start) * columns.len() + window.start - columns.start;
                        let least = best.least;
                        at_least(&line[from..from + window.len()], least, &mut |i, s| {
                            best.push(s, f, row * width + window.start + i)
                        });
                        best.trim();
                    }
                }
            }
            for (t, best) in best.into_iter().enumerate() {
                let patch = t / (right - left) * width + left + t % (right - left);
                self.mix(best.done(), &mut out[patch * self.classes..][..self.classes]);
            }
        }
    }

    /// The weighted mean of the sources' classes.
    fn mix(&self, sources: Vec<(f32, u32, u32)>, out: &mut [f32]) {
        let frames: Vec<&Frame> = self.context().collect();
        let top = sources.first().map_or(0.0, |s| s.0) as f64;
        // Less the largest, which changes no ratio and keeps any temperature in range.
        let weight = |s: f32| libm::exp((s as f64 - top) / self.params.temperature);
        let total: f64 = sources.iter().map(|s| weight(s.0)).sum();
        let mut sums = vec![0.0f64; self.classes];
        for &(likeness, frame, patch) in &sources {
            let classes = &frames[frame as usize].classes[patch as usize * self.classes..][..self.classes];
            sums.iter_mut().zip(classes).for_each(|(sum, &x)| *sum += weight(likeness) * x as f64);
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = (sum / total) as f32);
    }
}

/// The most alike sources of a patch so far: likeness, frame, patch.
struct Best {
    top: usize,
    /// Nothing below it is of interest any more.
    least: f32,
    /// How many are gathered before the list is cut.
    limit: usize,
    found: Vec<(f32, u32, u32)>,
}

impl Best {
    fn new(top: usize) -> Best {
        Best { top, least: f32::NEG_INFINITY, limit: 4 * top + 32, found: Vec::new() }
    }

    fn push(&mut self, likeness: f32, frame: usize, patch: usize) {
        self.found.push((likeness, frame as u32, patch as u32));
    }

    /// Drops what is below the `top`-th; those equal to it stay.
    fn cut(&mut self) {
        if self.found.len() > self.top {
            self.least = self.found.select_nth_unstable_by(self.top - 1, |a, b| b.0.total_cmp(&a.0)).1.0;
            self.found.retain(|s| s.0 >= self.least);
        }
    }

    fn trim(&mut self) {
        if self.found.len() > self.limit {
            self.cut();
            self.limit = self.limit.max(2 * self.found.len());
        }
    }

    /// By falling likeness; equals in the order of frame and patch, so that sums do not depend on how they were found.
    fn done(mut self) -> Vec<(f32, u32, u32)> {
        self.cut();
        self.found.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        self.found
    }
}

/// The tokens of a rectangle of patches, one after the other.
fn gather(to: &mut Vec<f32>, tokens: &[f32], c: usize, width: usize, rows: Range<usize>, columns: Range<usize>) {
    to.clear();
    rows.for_each(|y| to.extend_from_slice(&tokens[(y * width + columns.start) * c..(y * width + columns.end) * c]));
}

/// Every row of a patch divided by its length (at least 1e-12, as torch's `normalize`).
fn unit_rows(mut tokens: Vec<f32>, grid: [usize; 2]) -> Vec<f32> {
    let c = tokens.len() / (grid[0] * grid[1]);
    tokens.par_chunks_mut(c).for_each(|row| {
        let length = row.iter().map(|&x| x as f64 * x as f64).sum::<f64>().sqrt().max(1e-12) as f32;
        row.iter_mut().for_each(|x| *x /= length);
    });
    tokens
}

/// The object at every pixel of the frame, `to` = (height, width), from `classes` (patches, n): each class enlarged by the patch
/// (bilinear) and scaled to 0 ..= 1, the largest taken (of equals the first), and the nearest pixel of that.
///
/// A class that is the same everywhere is left as it is; the published code divides it by zero.
pub fn segment(classes: &[f32], n: usize, grid: [usize; 2], patch: usize, to: [usize; 2]) -> Mask {
    let [height, width] = [grid[0] * patch, grid[1] * patch];
    let planes: Vec<f32> = (0..n).flat_map(|k| classes.iter().skip(k).step_by(n).copied()).collect();
    let step = 1.0 / patch as f64;
    let mut planes = bilinear(&planes, grid, [height, width], [step, step]);
    for plane in planes.chunks_mut(height * width) {
        let (least, most) = plane.iter().fold((f32::MAX, f32::MIN), |(a, b), &x| (a.min(x), b.max(x)));
        if most > 0.0 && most > least {
            let range = most - least;
            plane.iter_mut().for_each(|x| *x = (*x - least) / range);
        }
    }
    let mut ids = vec![0u8; height * width];
    let mut best = planes[..height * width].to_vec();
    for (k, plane) in planes.chunks(height * width).enumerate().skip(1) {
        for (i, &x) in plane.iter().enumerate() {
            if x > best[i] {
                (best[i], ids[i]) = (x, k as u8);
            }
        }
    }
    Mask { width, height, ids }.resized(to[1], to[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A patch that moves to the right by one column a frame, alone in its likeness.
    #[test]
    fn a_mask_follows_what_it_lies_on() {
        let grid = [3, 8];
        let frame = |x: usize| -> Vec<f32> {
            (0..24).flat_map(|i| if i == 8 + x { [1.0, 0.0] } else { [0.0, 1.0 + i as f32] }).collect()
        };
        let first: Vec<u8> = (0..24).map(|i| (i == 9) as u8).collect();
        let mut p = Propagation::new(Params { radius: 2, previous: 1, ..Params::default() }, grid, frame(1), &first, 2);
        for x in 2..7 {
            let classes = p.next(frame(x)).to_vec();
            let object: Vec<usize> = (0..24).filter(|i| classes[2 * i + 1] > 0.5).collect();
            assert_eq!(object, [8 + x], "column {x}");
            assert!(classes.chunks(2).all(|c| (c[0] + c[1] - 1.0).abs() < 1e-6));
            assert_eq!(segment(&classes, 2, grid, 2, [3, 8]).ids.iter().filter(|id| **id == 1).count(), 1);
        }
        // Out of reach of the first frame and with no other, it is lost.
        let mut p = Propagation::new(Params { radius: 2, previous: 0, ..Params::default() }, grid, frame(1), &first, 2);
        assert_eq!(p.next(frame(6))[2 * 14 + 1], 0.0);
    }

    /// All patches alike: every one of the window is a tie with the fifth, so all count alike.
    #[test]
    fn ties_all_count() {
        let grid = [1, 40];
        let first: Vec<u8> = (0..40).map(|i| (i < 20) as u8).collect();
        let mut p = Propagation::new(Params { radius: 0, ..Params::default() }, grid, vec![1.0; 80], &first, 2);
        assert!(p.next(vec![1.0; 80]).iter().all(|x| (x - 0.5).abs() < 1e-6));
        let mut p = Propagation::new(Params { radius: 3, ..Params::default() }, grid, vec![1.0; 80], &first, 2);
        let classes = p.next(vec![1.0; 80]).to_vec();
        // Of the columns 16 ..= 22, four are the object's.
        assert!((classes[2 * 19 + 1] - 4.0 / 7.0).abs() < 1e-6);
    }

    /// Against the formula in f64 with its logarithms, from temperatures that keep the most alike source alone to those that weigh all
    /// alike, and with likenesses of both signs.
    #[test]
    fn weights_hold_at_any_temperature() {
        let grid = [1, 3];
        let token = |degrees: f32| [degrees.to_radians().cos(), degrees.to_radians().sin()];
        let tokens = |degrees: [f32; 3]| degrees.iter().flat_map(|&d| token(d)).collect::<Vec<f32>>();
        for (from, to) in [([0.0, 50.0, 100.0], [20.0, 70.0, 160.0]), ([180.0, 190.0, 200.0], [0.0, 10.0, 20.0])] {
            for temperature in [1e-300, 1e-6, 0.1, 1.0, 1e6, 1e300] {
                let params = Params { top: 3, radius: 0, temperature, ..Params::default() };
                let mut p = Propagation::new(params, grid, tokens(from), &[0, 1, 2], 3);
                for (t, found) in p.next(tokens(to)).chunks(3).enumerate() {
                    let alike: Vec<f64> = (0..3).map(|s| ((to[t] - from[s]) as f64).to_radians().cos()).collect();
                    let log: Vec<f64> = alike.iter().map(|a| a / temperature).collect();
                    let most = log.iter().copied().fold(f64::MIN, f64::max);
                    // Infinite where all are: there the most alike has everything.
                    let weight = |s: usize| if log[s] == most { 1.0 } else { libm::exp(log[s] - most) };
                    let total: f64 = (0..3).map(weight).sum();
                    for s in 0..3 {
                        let want = weight(s) / total;
                        let bound = 1e-5 + (1e-6 / temperature).min(0.1);
                        assert!(
                            (found[s] as f64 - want).abs() < bound,
                            "T {temperature}, {t}, {s}: {found:?}, not {want}"
                        );
                    }
                    assert!((found.iter().sum::<f32>() - 1.0).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn a_class_that_is_the_same_everywhere_makes_no_nan() {
        let none = segment(&[1.0, 0.0, 1.0, 0.0], 2, [1, 2], 4, [4, 8]);
        assert!(none.ids.iter().all(|id| *id == 0));
        let all = segment(&[0.0, 1.0, 0.0, 1.0], 2, [1, 2], 4, [4, 8]);
        assert!(all.ids.iter().all(|id| *id == 1));
    }
}
