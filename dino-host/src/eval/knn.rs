//! The published weighted k-nearest-neighbours vote (official `eval_knn.py`): rows l2-normalised, cosine similarity, the k most
//! similar bank rows vote for their class with weight exp(similarity / T).

use crate::cpu::gemm::{View, sgemm};
use crate::cpu::rows::at_least;
use crate::error::{Error, Result};
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use std::cmp::Ordering;

/// The vote's outcome for one k.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Score {
    pub k: usize,
    /// Percent of queries whose class has the most votes.
    pub top1: f64,
    /// Percent whose class is among the five with most votes.
    pub top5: f64,
}

/// Neighbours of every query, most similar first.
pub struct Neighbours {
    k: usize,
    /// (queries, k).
    pub similarities: Vec<f32>,
    /// (queries, k): rows of the bank.
    pub indices: Vec<u32>,
}

/// Each row divided by its length; a zero row stays zero.
pub fn normalise(mut x: Array2<f32>) -> Array2<f32> {
    for mut row in x.axis_iter_mut(Axis(0)) {
        let length = row.iter().map(|&v| v as f64 * v as f64).sum::<f64>().sqrt().max(1e-12) as f32;
        row.mapv_inplace(|v| v / length);
    }
    x
}

/// Queries a task takes at most: the bank is packed once for all of them.
const BLOCK: usize = 512;
/// Bank rows a product takes at once: the similarities of a block stay in the cache.
const TILE: usize = 512;
/// How many candidates a query gathers before it drops all but the best `k`: so many times `k`, and no fewer than 64.
const GATHER: usize = 4;

/// The `k` rows of `bank` most similar to each row of `queries` (fewer if the bank has fewer); both normalised. Among equals the
/// earlier row comes first, so the answer does not depend on how the work is cut.
pub fn neighbours(bank: ArrayView2<f32>, queries: ArrayView2<f32>, k: usize) -> Neighbours {
    let (d, k) = (bank.ncols(), k.min(bank.nrows()));
    let bank = bank.as_standard_layout();
    let queries = queries.as_standard_layout();
    let (bank, queries) = (bank.as_slice().unwrap_or(&[]), queries.as_slice().unwrap_or(&[]));
    let mut all: Vec<(Vec<f32>, Vec<u32>)> = Vec::new();
    let block = queries.len().div_ceil(d.max(1)).div_ceil(rayon::current_num_threads()).clamp(32, BLOCK);
    queries
        .par_chunks(block * d)
        .map(|q| {
            let rows = q.len() / d;
            let mut s = vec![0.0; rows * TILE];
            // The candidates, and the least similarity that is still of interest.
            let most = (GATHER * k).max(64);
            let mut best: Vec<(Vec<(f32, u32)>, f32)> = vec![(Vec::new(), f32::NEG_INFINITY); rows];
            for (tile, part) in bank.chunks(TILE * d).enumerate() {
                let cols = part.len() / d;
                sgemm(&mut s, TILE, View::rows(q, d), View::transposed(part, d), [rows, d, cols], 0.0);
                for (row, (best, least)) in s.chunks(TILE).zip(&mut best) {
                    at_least(&row[..cols], *least, &mut |i, s| best.push((s, (tile * TILE + i) as u32)));
                    if best.len() > most {
                        *least = keep(best, k);
                    }
                }
            }
            for (best, _) in &mut best {
                keep(best, k);
                best.sort_unstable_by(order);
            }
            best.into_iter().flat_map(|(best, _)| best).unzip()
        })
        .collect_into_vec(&mut all);
    let (mut similarities, mut indices) = (Vec::new(), Vec::new());
    for (s, i) in all {
        similarities.extend(s);
        indices.extend(i);
    }
    Neighbours { k, similarities, indices }
}

/// The `k` rows most similar to each row of a normalised set, the row itself left out (fewer if there are fewer others).
pub fn leave_one_out(rows: ArrayView2<f32>, k: usize) -> Neighbours {
    let n = rows.nrows();
    let k = k.min(n.saturating_sub(1));
    let found = neighbours(rows, rows, k + 1);
    let (mut similarities, mut indices) = (Vec::with_capacity(n * k), Vec::with_capacity(n * k));
    for q in 0..n {
        // With many equal rows the row itself need not be among its k + 1 nearest: then the last one goes.
        let all = (q * found.k..(q + 1) * found.k).filter(|&j| found.indices[j] as usize != q).take(k);
        all.for_each(|j| {
            similarities.push(found.similarities[j]);
            indices.push(found.indices[j]);
        });
    }
    Neighbours { k, similarities, indices }
}

/// The more similar first; among equals the earlier row.
fn order(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Drops all but the `k` best, and gives the least similarity among them, if there are so many.
fn keep(best: &mut Vec<(f32, u32)>, k: usize) -> f32 {
    if best.len() < k || k == 0 {
        best.truncate(k);
        return f32::NEG_INFINITY;
    }
    let least = best.select_nth_unstable_by(k - 1, order).1.0;
    best.truncate(k);
    least
}

impl Neighbours {
    /// Votes (queries, classes) of the nearest `k`.
    pub fn votes(&self, labels: &[u32], k: usize, temperature: f64, classes: usize) -> Array2<f64> {
        let mut votes = Array2::zeros((self.indices.len() / self.k.max(1), classes));
        for (q, mut row) in votes.axis_iter_mut(Axis(0)).enumerate() {
            for j in q * self.k..q * self.k + k.min(self.k) {
                row[labels[self.indices[j] as usize] as usize] += libm::exp(self.similarities[j] as f64 / temperature);
            }
        }
        votes
    }
}

/// The class with most votes of the nearest `k`, a query; among classes with equal votes the first. `bank_labels` are below `classes`.
pub fn predict(found: &Neighbours, bank_labels: &[u32], k: usize, temperature: f64, classes: usize) -> Vec<u32> {
    let votes = found.votes(bank_labels, k, temperature, classes);
    let first_best = |row: ndarray::ArrayView1<f64>| {
        let best = (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
        best.unwrap_or(0) as u32
    };
    votes.rows().into_iter().map(first_best).collect()
}

/// How often an image of a class (row) was taken for a class (column): (classes, classes), rows summing to the images of the class.
pub fn confusion(predicted: &[u32], labels: &[u32], classes: usize) -> Array2<u64> {
    let mut counts = Array2::zeros((classes, classes));
    for (&p, &l) in predicted.iter().zip(labels) {
        counts[[l as usize, p as usize]] += 1;
    }
    counts
}

/// Top-1 and top-5 of the vote, in percent, for every k. Among classes with equal votes the first counts.
pub fn evaluate(
    bank: Array2<f32>,
    bank_labels: &[u32],
    queries: Array2<f32>,
    labels: &[u32],
    ks: &[usize],
    temperature: f64,
) -> Result<Vec<Score>> {
    if bank.nrows() == 0 || queries.nrows() == 0 {
        return Err(Error::new(format!(
            "k-NN needs images on both sides: {} in the bank, {} queries",
            bank.nrows(),
            queries.nrows()
        )));
    }
    if let Some(row) = bank.rows().into_iter().chain(queries.rows()).position(|r| r.iter().any(|x| !x.is_finite())) {
        return Err(Error::new(format!("the features in row {row} are not finite")).hint("are the weights sound?"));
    }
    let classes = bank_labels.iter().chain(labels).max().map_or(0, |&c| c as usize + 1);
    let most = ks.iter().copied().max().unwrap_or(0);
    let found = neighbours(normalise(bank).view(), normalise(queries).view(), most);
    Ok(scores(&found, bank_labels, labels, ks, temperature, classes))
}

/// The same of neighbours that have been found: at least as many as the largest k, or all there are. Labels are below `classes`.
pub fn scores(
    found: &Neighbours,
    bank_labels: &[u32],
    labels: &[u32],
    ks: &[usize],
    temperature: f64,
    classes: usize,
) -> Vec<Score> {
    let score = |&k: &usize| {
        let votes = found.votes(bank_labels, k, temperature, classes);
        let (mut top1, mut top5) = (0usize, 0usize);
        for (row, &label) in votes.rows().into_iter().zip(labels) {
            let own = row[label as usize];
            let ahead = |(c, &v): (usize, &f64)| v > own || (v == own && c < label as usize);
            let rank = row.iter().enumerate().filter(|&x| ahead(x)).count();
            top1 += (rank == 0) as usize;
            top5 += (rank < 5) as usize;
        }
        let percent = |n: usize| 100.0 * n as f64 / labels.len().max(1) as f64;
        Score { k, top1: percent(top1), top5: percent(top5) }
    };
    ks.iter().map(score).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Rows on the circle, so that similarities are cosines of differences of angles.
    fn circle(degrees: &[f32]) -> Array2<f32> {
        let at = |(i, j): (usize, usize)| {
            let a = degrees[i].to_radians();
            if j == 0 { a.cos() } else { a.sin() }
        };
        Array2::from_shape_fn((degrees.len(), 2), at)
    }

    #[test]
    fn predictions_and_confusion_by_hand() {
        let bank = circle(&[0.0, 10.0, 90.0, 180.0]);
        let found = neighbours(bank.view(), circle(&[4.0, 100.0, 170.0, 50.0]).view(), 9);
        let labels = [1, 1, 0, 2];
        assert_eq!(predict(&found, &labels, 1, 0.07, 3), [1, 0, 2, 1]);
        assert_eq!(confusion(&[1, 0, 2, 1], &[1, 0, 0, 2], 3), array![[1, 0, 1], [0, 1, 0], [0, 1, 0]]);
        // At a temperature so high that every vote weighs the same, all four vote and class 1 has two of them.
        assert_eq!(predict(&found, &labels, 4, 1e9, 3), [1, 1, 1, 1]);
        // Equal votes: the first class. Classes without rows are none of them.
        let twins = neighbours(circle(&[0.0, 0.0]).view(), circle(&[0.0]).view(), 2);
        assert_eq!(predict(&twins, &[3, 2], 2, 0.07, 5), [2]);
    }

    #[test]
    fn a_row_is_never_its_own_neighbour() {
        let found = leave_one_out(circle(&[0.0, 1.0, 40.0, 42.5]).view(), 2);
        assert_eq!(found.indices, [1, 2, 0, 2, 3, 1, 2, 1]);
        // Five equal rows: each has the first others, although rows 3 and 4 are not among their own nearest three.
        let found = leave_one_out(circle(&[7.0; 5]).view(), 2);
        assert_eq!(found.indices, [1, 2, 0, 2, 0, 1, 0, 1, 0, 1]);
        // More neighbours than there are others, and a set of one.
        assert_eq!(leave_one_out(circle(&[0.0, 5.0]).view(), 10).indices, [1, 0]);
        assert_eq!(leave_one_out(circle(&[0.0]).view(), 10).indices.len(), 0);
    }
}
