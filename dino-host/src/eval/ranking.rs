//! How well a ranking finds what belongs together, as the revisited Oxford and Paris benchmark measures it (Radenović et al.,
//! "Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking", CVPR 2018; `revisitop/python/evaluate.py`).

use std::collections::HashSet;

/// Average precision from the ranks (from 0, ascending) of the images that belong to the query, of which there are `positives`: the
/// area below precision over recall by trapezoids, a step of 1 / positives for every one that was found,
///
/// AP = sum over j of (j / r_j + (j + 1) / (r_j + 1)) / (2 positives), with j / r_j = 1 where r_j = 0.
pub fn average_precision(ranks: &[usize], positives: usize) -> f64 {
    let of = |(j, &rank): (usize, &usize)| {
        let before = if rank == 0 { 1.0 } else { j as f64 / rank as f64 };
        before + (j + 1) as f64 / (rank + 1) as f64
    };
    if positives == 0 { 0.0 } else { ranks.iter().enumerate().map(of).sum::<f64>() / (2.0 * positives as f64) }
}

/// Precision among the first k. As published, k is cut to the rank (from 1) of the last positive, so that a query with few of them
/// can reach 1. `ranks` as in [`average_precision`].
pub fn precision_at(ranks: &[usize], k: usize) -> f64 {
    let Some(last) = ranks.last() else { return 0.0 };
    let k = k.min(last + 1);
    ranks.iter().filter(|r| **r < k).count() as f64 / k as f64
}

/// Ranks of the positives in a ranking (row numbers, the most alike first), junk taken out as though it were not there.
pub fn ranks(ranking: &[u32], positive: impl Fn(u32) -> bool, junk: impl Fn(u32) -> bool) -> Vec<usize> {
    let kept = ranking.iter().filter(|i| !junk(**i));
    kept.enumerate().filter(|(_, i)| positive(**i)).map(|(rank, _)| rank).collect()
}

/// Means over the queries that have something to find.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Scores {
    /// Queries that have a positive.
    pub queries: usize,
    /// Mean average precision, 0 to 1.
    pub map: f64,
    /// For every k asked for.
    pub precision: Vec<f64>,
}

impl Scores {
    /// Of the queries' ranks and numbers of positives; those without positives do not count.
    pub fn of(queries: impl IntoIterator<Item = (Vec<usize>, usize)>, ks: &[usize]) -> Scores {
        let mut scores = Scores { precision: vec![0.0; ks.len()], ..Scores::default() };
        for (ranks, positives) in queries.into_iter().filter(|q| q.1 > 0) {
            scores.queries += 1;
            scores.map += average_precision(&ranks, positives);
            scores.precision.iter_mut().zip(ks).for_each(|(sum, &k)| *sum += precision_at(&ranks, k));
        }
        let n = scores.queries.max(1) as f64;
        scores.map /= n;
        scores.precision.iter_mut().for_each(|p| *p /= n);
        scores
    }
}

/// What belongs to a query of the revisited benchmark, as rows of the database.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
pub struct Truth {
    /// Positives that are easy to see.
    pub easy: HashSet<u32>,
    /// Positives that are hard to see.
    pub hard: HashSet<u32>,
    /// Images that count neither way.
    pub junk: HashSet<u32>,
}

/// Which of them are to be found; the rest of the three counts as junk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Easy positives alone.
    Easy,
    /// Easy and hard positives.
    Medium,
    /// Hard positives alone.
    Hard,
}

impl Protocol {
    /// All three, in the published order.
    pub const ALL: [Protocol; 3] = [Protocol::Easy, Protocol::Medium, Protocol::Hard];

    /// Ranks of the positives, and how many there are.
    pub fn ranks(self, ranking: &[u32], truth: &Truth) -> (Vec<usize>, usize) {
        let (easy, hard) = (self != Protocol::Hard, self != Protocol::Easy);
        let positive = |i: u32| easy && truth.easy.contains(&i) || hard && truth.hard.contains(&i);
        let known = |i: u32| truth.easy.contains(&i) || truth.hard.contains(&i) || truth.junk.contains(&i);
        let all = truth.easy.union(&truth.hard).filter(|i| positive(**i)).count();
        (ranks(ranking, positive, |i| known(i) && !positive(i)), all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_by_hand() {
        assert_eq!(average_precision(&[0, 1, 2], 3), 1.0);
        // One positive at rank two: (0 + 1/2) / 2.
        assert_eq!(average_precision(&[1], 1), 0.25);
        // Found one of two.
        assert_eq!(average_precision(&[0], 2), 0.5);
        assert_eq!((average_precision(&[], 2), average_precision(&[], 0)), (0.0, 0.0));
        assert_eq!((precision_at(&[0, 2, 9], 1), precision_at(&[0, 2, 9], 5)), (1.0, 0.4));
        // Two positives, both found: ten ranks hold no more.
        assert_eq!(precision_at(&[0, 1], 10), 1.0);
        assert_eq!(precision_at(&[], 5), 0.0);
    }

    #[test]
    fn junk_is_as_though_it_were_not_there() {
        let truth = Truth { easy: [3, 4].into(), hard: [5].into(), junk: [6].into() };
        let ranking = [6, 3, 5, 1, 4, 2];
        assert_eq!(Protocol::Easy.ranks(&ranking, &truth), (vec![0, 2], 2));
        assert_eq!(Protocol::Medium.ranks(&ranking, &truth), (vec![0, 1, 3], 3));
        assert_eq!(Protocol::Hard.ranks(&ranking, &truth), (vec![0], 1));
        let none = Scores::of([(vec![], 0), (vec![0], 1)], &[1, 5]);
        assert_eq!((none.queries, none.map, none.precision), (1, 1.0, vec![1.0, 1.0]));
    }
}
