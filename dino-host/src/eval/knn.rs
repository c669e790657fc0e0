//! The published weighted k-nearest-neighbors vote (official `eval_knn.py`): rows l2-normalized, cosine similarity, the k most
//! similar bank rows vote for their class with weight exp(similarity / T).
//!
//! Only classes with a vote are answers: a query whose class none of its k neighbors has is wrong in top-5 too, however few classes
//! there are. Votes are compared by their logarithms, which hold at any temperature.

use crate::dist::Group;
use crate::error::{Error, Result};
use crate::linalg::gemm::{View, sgemm};
use crate::linalg::rows::at_least;
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;
use std::cmp::Ordering;

/// The published temperature.
pub const TEMPERATURE: f64 = 0.07;

/// The vote's outcome for one k.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Score {
    /// Neighbors that vote.
    pub k: usize,
    /// Percent of queries whose class has the most votes.
    pub top1: f64,
    /// Percent whose class is among the five with most votes, and has one.
    pub top5: f64,
}

/// Neighbors of every query, most similar first.
pub struct Neighbors {
    k: usize,
    /// (queries, k).
    pub similarities: Vec<f32>,
    /// (queries, k): rows of the bank.
    pub indices: Vec<u32>,
}

/// Each row divided by its length (at least 1e-12, as torch's `normalize`); a zero row stays zero.
pub fn normalize(mut x: Array2<f32>) -> Array2<f32> {
    for mut row in x.axis_iter_mut(Axis(0)) {
        let length = row.iter().map(|&v| v as f64 * v as f64).sum::<f64>().sqrt().max(1e-12);
        match length as f32 {
            // Finite numbers whose length is none in f32.
            f32::INFINITY => row.mapv_inplace(|v| (v as f64 / length) as f32),
            length => row.mapv_inplace(|v| v / length),
        }
    }
    x
}

/// Queries a task takes at most: the bank is packed once for all of them.
const BLOCK: usize = 512;
/// Bank rows a matmul takes at once: the similarities of a block stay in the cache.
const TILE: usize = 512;
/// How many candidates a query gathers before it drops all but the best `k`: so many times `k`, and no fewer than 64.
const GATHER: usize = 4;

/// The `k` rows of `bank` most similar to each row of `queries` (fewer if the bank has fewer); both normalized. Among equals the
/// earlier row comes first, so the answer does not depend on how the work is cut.
pub fn neighbors(bank: ArrayView2<f32>, queries: ArrayView2<f32>, k: usize) -> Neighbors {
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
                sgemm(&mut s, TILE, View::rows(q, d), View::transposed(part, d), [rows, d, cols], false);
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
    Neighbors { k, similarities, indices }
}

/// The same by processes that all have bank and queries: each searches for its part of the queries, and all have all neighbors.
///
/// # Errors
/// The group fails.
pub fn neighbors_shared(bank: ArrayView2<f32>, queries: ArrayView2<f32>, k: usize, group: &Group) -> Result<Neighbors> {
    let own = group.part_of(queries.nrows());
    let Neighbors { k, similarities, indices } = neighbors(bank, queries.slice(s![own, ..]), k);
    Ok(Neighbors { k, similarities: group.concat(similarities)?, indices: group.concat(indices)? })
}

/// The `k` rows most similar to each row of a normalized set, the row itself left out (fewer if there are fewer others).
pub fn leave_one_out(rows: ArrayView2<f32>, k: usize) -> Neighbors {
    let n = rows.nrows();
    let k = k.min(n.saturating_sub(1));
    let found = neighbors(rows, rows, k + 1);
    let (mut similarities, mut indices) = (Vec::with_capacity(n * k), Vec::with_capacity(n * k));
    for q in 0..n {
        // With many equal rows the row itself need not be among its k + 1 nearest: then the last one goes.
        let all = (q * found.k..(q + 1) * found.k).filter(|&j| found.indices[j] as usize != q).take(k);
        all.for_each(|j| {
            similarities.push(found.similarities[j]);
            indices.push(found.indices[j]);
        });
    }
    Neighbors { k, similarities, indices }
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

impl Neighbors {
    /// How many rows asked.
    fn queries(&self) -> usize {
        self.indices.len() / self.k.max(1)
    }

    /// The rows nearest to query `q`, and how similar they are, the most similar first.
    pub fn of(&self, q: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let near = q * self.k..(q + 1) * self.k;
        self.indices[near.clone()].iter().map(|&row| row as usize).zip(self.similarities[near].iter().copied())
    }

    /// The classes that the nearest `k` of query `q` vote for, most votes first, among classes with equal votes the first, each with
    /// the logarithm of its votes less the query's largest similarity / T: of a class whose largest similarity is m
    ///
    /// (m - largest) / T + ln sum of exp((s - m) / T)
    pub fn answers(&self, q: usize, labels: &[u32], k: usize, temperature: f64) -> Vec<(u32, f64)> {
        let near = q * self.k..q * self.k + k.min(self.k);
        let mut voters: Vec<(u32, f64)> =
            near.map(|j| (labels[self.indices[j] as usize], self.similarities[j] as f64)).collect();
        let largest = voters.first().map_or(0.0, |v| v.1);
        // Stable: within a class the most similar stays first.
        voters.sort_by_key(|v| v.0);
        let votes = |of: &[(u32, f64)]| {
            let (class, most) = of[0];
            let sum: f64 = of.iter().map(|v| libm::exp((v.1 - most) / temperature)).sum();
            // However small, it is a vote.
            (class, ((most - largest) / temperature).max(f64::MIN) + libm::log(sum))
        };
        let mut answers: Vec<(u32, f64)> = voters.chunk_by(|a, b| a.0 == b.0).map(votes).collect();
        answers.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        answers
    }
}

/// The class with most votes of the nearest `k`, a query; among classes with equal votes the first.
pub fn predict(found: &Neighbors, bank_labels: &[u32], k: usize, temperature: f64) -> Vec<u32> {
    let first = |q| found.answers(q, bank_labels, k, temperature).first().map_or(0, |answer| answer.0);
    (0..found.queries()).into_par_iter().map(first).collect()
}

/// How often an image of a class (row) was taken for a class (column): (classes, classes), rows summing to the images of the class.
pub fn confusion(predicted: &[u32], labels: &[u32], classes: usize) -> Array2<u64> {
    let mut counts = Array2::zeros((classes, classes));
    for (&p, &l) in predicted.iter().zip(labels) {
        counts[[l as usize, p as usize]] += 1;
    }
    counts
}

/// Checks the temperature of the vote.
///
/// # Errors
/// No vote can be weighted by it; the hint names the `published` one.
pub fn check_temperature(temperature: f64, published: f64) -> Result<()> {
    match temperature > 0.0 && temperature.is_finite() {
        true => Ok(()),
        false => Err(Error::new(format!("--temperature {temperature} makes no sense"))
            .hint(format!("a number above 0; published: {published}"))),
    }
}

/// Top-1 and top-5 of the vote, in percent, for every k. Among classes with equal votes the first counts. Processes that all have bank and
/// queries share the search ([`neighbors_shared`]), and all have the scores.
///
/// # Errors
/// The temperature is refused, the bank or the queries are empty, features are not finite, or the group fails.
pub fn evaluate(
    bank: Array2<f32>,
    bank_labels: &[u32],
    queries: Array2<f32>,
    labels: &[u32],
    ks: &[usize],
    temperature: f64,
    group: &Group,
) -> Result<Vec<Score>> {
    check_temperature(temperature, TEMPERATURE)?;
    if bank.nrows() == 0 || queries.nrows() == 0 {
        return Err(Error::new(format!(
            "k-NN needs images on both sides: {} in the bank, {} queries",
            bank.nrows(),
            queries.nrows()
        )));
    }
    if let Some(row) = bank.rows().into_iter().chain(queries.rows()).position(|r| r.iter().any(|x| !x.is_finite())) {
        return Err(Error::new(format!("the features in row {row} are not finite")).hint("are the weights valid?"));
    }
    let most = ks.iter().copied().max().unwrap_or(0);
    let found = neighbors_shared(normalize(bank).view(), normalize(queries).view(), most, group)?;
    Ok(scores(&found, bank_labels, labels, ks, temperature))
}

/// The same of neighbors that have been found: at least as many as the largest k, or all there are.
pub fn scores(found: &Neighbors, bank_labels: &[u32], labels: &[u32], ks: &[usize], temperature: f64) -> Vec<Score> {
    let score = |&k: &usize| {
        let rank = |(q, label): (usize, &u32)| {
            let answers = found.answers(q, bank_labels, k, temperature);
            answers.iter().position(|answer| answer.0 == *label)
        };
        let ranks: Vec<Option<usize>> = labels.par_iter().enumerate().map(rank).collect();
        let within = |n: usize| ranks.iter().flatten().filter(|rank| **rank < n).count();
        let percent = |n: usize| 100.0 * n as f64 / labels.len().max(1) as f64;
        Score { k, top1: percent(within(1)), top5: percent(within(5)) }
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
        let found = neighbors(bank.view(), circle(&[4.0, 100.0, 170.0, 50.0]).view(), 9);
        let labels = [1, 1, 0, 2];
        assert_eq!(predict(&found, &labels, 1, 0.07), [1, 0, 2, 1]);
        assert_eq!(confusion(&[1, 0, 2, 1], &[1, 0, 0, 2], 3), array![[1, 0, 1], [0, 1, 0], [0, 1, 0]]);
        // At a temperature so high that every vote weighs the same, all four vote and class 1 has two of them.
        assert_eq!(predict(&found, &labels, 4, 1e9), [1, 1, 1, 1]);
        // Equal votes: the first class. Classes without rows are none of them.
        let twins = neighbors(circle(&[0.0, 0.0]).view(), circle(&[0.0]).view(), 2);
        assert_eq!(predict(&twins, &[3, 2], 2, 0.07), [2]);
    }

    /// Sums of exp(similarity / T), as in the formula.
    fn plain_votes(found: &Neighbors, labels: &[u32], q: usize, temperature: f64) -> Vec<(u32, f64)> {
        let mut votes = std::collections::BTreeMap::new();
        for j in q * found.k..(q + 1) * found.k {
            *votes.entry(labels[found.indices[j] as usize]).or_insert(0.0) +=
                libm::exp(found.similarities[j] as f64 / temperature);
        }
        votes.into_iter().collect()
    }

    #[test]
    fn votes_are_those_of_the_formula_and_hold_at_any_temperature() {
        // Similarities of both signs; class 1 has the most alike row, class 4 the most rows, class 2 the least alike.
        let bank = circle(&[10.0, 40.0, 41.0, 42.0, 43.0, 170.0, 175.0]);
        let labels = [1, 4, 4, 4, 4, 2, 3];
        let found = neighbors(bank.view(), circle(&[0.0, 100.0]).view(), 7);
        for temperature in [0.01, 0.07, 1.0, 50.0] {
            for q in 0..2 {
                let mut want = plain_votes(&found, &labels, q, temperature);
                want.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                let largest = found.similarities[q * 7] as f64;
                for (got, want) in found.answers(q, &labels, 7, temperature).iter().zip(want) {
                    let log = got.1 + largest / temperature;
                    assert!(got.0 == want.0 && (log - libm::log(want.1)).abs() < 1e-12 * log.abs().max(1.0));
                }
            }
        }
        let order = |q, temperature| found.answers(q, &labels, 7, temperature).iter().map(|a| a.0).collect::<Vec<_>>();
        // Low: by the most alike row of each class, and none is lost, though exp(-1e6) is 0 and exp(1e6) infinite.
        for temperature in [1e-6, 1e-12, 1e-300] {
            assert_eq!(order(0, temperature)[..2], [1, 4], "{temperature}");
            assert_eq!(order(0, temperature).len(), 4, "{temperature}");
        }
        assert_eq!(order(0, 1e-6), [1, 4, 2, 3]);
        // High: by the number of rows, and among equal numbers by similarity as long as f64 shows it.
        for q in 0..2 {
            assert_eq!(order(q, 1e6)[0], 4);
        }
        assert_eq!(order(0, 1e6), [4, 1, 2, 3]);
        // Only negative similarities.
        let away = neighbors(circle(&[180.0, 170.0, 150.0]).view(), circle(&[0.0]).view(), 3);
        assert!(away.similarities.iter().all(|s| *s < 0.0));
        for temperature in [1e-6, 0.07] {
            let found: Vec<u32> = away.answers(0, &[0, 1, 2], 3, temperature).iter().map(|a| a.0).collect();
            assert_eq!(found, [2, 1, 0], "{temperature}");
        }
        for bad in [0.0, -0.07, f64::NAN, f64::INFINITY] {
            assert!(
                evaluate(bank.clone(), &labels, circle(&[0.0]), &[1], &[1], bad, &Group::default()).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn classes_without_a_vote_are_no_answers() {
        let found = neighbors(circle(&[0.0, 5.0, 50.0]).view(), circle(&[1.0]).view(), 3);
        let top5 = |label: u32, k| scores(&found, &[6, 5, 9], &[label], &[k], 0.07)[0].top5;
        // The two nearest are of the classes 6 and 5; of ten classes ranks three to five stay empty.
        assert_eq!([5, 6, 0, 9].map(|label| top5(label, 2)), [100.0, 100.0, 0.0, 0.0]);
        assert_eq!((top5(9, 3), top5(6, 1), top5(5, 1)), (100.0, 100.0, 0.0));
        // Six classes with a vote: the last one is no longer among five.
        let found = neighbors(circle(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).view(), circle(&[0.0]).view(), 6);
        let six = scores(&found, &[0, 1, 2, 3, 4, 5], &[5], &[6], 0.07);
        assert_eq!((six[0].top1, six[0].top5), (0.0, 0.0));
    }

    #[test]
    fn rows_of_any_length_and_of_none() {
        let long = normalize(array![[3e38f32, 3e38], [0.0, 0.0], [1e-30, 0.0], [1e-9, 0.0]]);
        let root = 0.5f32.sqrt();
        assert!((long[[0, 0]] - root).abs() < 1e-6 && (long[[0, 1]] - root).abs() < 1e-6, "{long}");
        assert_eq!(long.row(1), array![0.0, 0.0]);
        assert_eq!(long[[3, 0]], 1.0);
        assert!(long.iter().all(|x| x.is_finite()));
        // All features zero: every similarity is zero, and the first rows are the neighbors.
        let (bank, queries, alone) = (Array2::zeros((4, 3)), Array2::zeros((2, 3)), Group::default());
        let zero = evaluate(bank, &[1, 0, 0, 1], queries, &[1, 0], &[1, 99], 0.07, &alone);
        let zero = zero.unwrap();
        assert_eq!((zero[0].top1, zero[0].top5), (50.0, 50.0));
        assert_eq!((zero[1].top1, zero[1].top5), (50.0, 100.0));
    }

    #[test]
    fn a_row_is_never_its_own_neighbor() {
        let found = leave_one_out(circle(&[0.0, 1.0, 40.0, 42.5]).view(), 2);
        assert_eq!(found.indices, [1, 2, 0, 2, 3, 1, 2, 1]);
        // Five equal rows: each has the first others, although rows 3 and 4 are not among their own nearest three.
        let found = leave_one_out(circle(&[7.0; 5]).view(), 2);
        assert_eq!(found.indices, [1, 2, 0, 2, 0, 1, 0, 1, 0, 1]);
        // More neighbors than there are others, and a set of one.
        assert_eq!(leave_one_out(circle(&[0.0, 5.0]).view(), 10).indices, [1, 0]);
        assert_eq!(leave_one_out(circle(&[0.0]).view(), 10).indices.len(), 0);
    }
}
