//! Ranks that are threads of one process: what tests hold the other engines to.

use dino_kernel::group::{GroupError, ProcessGroup, add_by_halves};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

/// One thread's membership. A thread that drops it has left: whoever waits for it, or asks for another sum, gets an error.
#[derive(Debug)]
pub struct Member {
    rank: usize,
    size: usize,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    round: Mutex<Round>,
    changed: Condvar,
}

/// A sum that ranks come to one after another, and the one before it.
#[derive(Debug, Default)]
struct Round {
    /// Rank by rank, as far as they have come.
    parts: Vec<f32>,
    /// How many have come.
    came: usize,
    /// The last sum. All have copied it when the next one is formed, for all must have come again.
    total: Vec<f32>,
    /// How many sums were formed.
    formed: u64,
    failure: Option<GroupError>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Ends the group, if nothing has before.
    fn fail(&self, round: &mut Round, e: GroupError) -> GroupError {
        self.changed.notify_all();
        *round.failure.get_or_insert(e)
    }
}

/// The members of a group of `size`, rank by rank.
pub fn group(size: usize) -> Vec<Member> {
    let shared = Arc::<Shared>::default();
    (0..size).map(|rank| Member { rank, size, shared: shared.clone() }).collect()
}

/// Runs `work` as every rank of a group of `ranks`, each on a thread and with a rayon pool of `threads` of its own: a rank that waits
/// for the others holds up none of them. Results are rank by rank; an error is that rank's panic.
pub fn run<R: Send>(ranks: usize, threads: usize, work: impl Fn(Member) -> R + Sync) -> Vec<thread::Result<R>> {
    let work = &work;
    thread::scope(|scope| {
        let start = |member| {
            scope.spawn(move || {
                let pool =
                    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
                pool.install(|| work(member))
            })
        };
        let running: Vec<_> = group(ranks).into_iter().map(start).collect();
        running.into_iter().map(|rank| rank.join()).collect()
    })
}

impl ProcessGroup for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&mut self, x: &mut [f32]) -> Result<(), GroupError> {
        let (rank, len) = (self.rank, x.len());
        let mut round = self.shared.lock();
        if let Some(e) = round.failure {
            return Err(e);
        }
        if round.came == 0 {
            round.parts.resize(self.size * len, 0.0);
        } else if round.parts.len() != self.size * len {
            let others = round.parts.len() / self.size;
            return Err(self.shared.fail(&mut round, GroupError::Disagree { rank, len, others }));
        }
        round.parts[rank * len..][..len].copy_from_slice(x);
        round.came += 1;
        if round.came == self.size {
            add_by_halves(&mut round.parts, len);
            let Round { parts, total, .. } = &mut *round;
            std::mem::swap(parts, total);
            (round.came, round.formed) = (0, round.formed + 1);
            self.shared.changed.notify_all();
        } else {
            let before = round.formed;
            let waiting = |round: &mut Round| round.formed == before && round.failure.is_none();
            round = self.shared.changed.wait_while(round, waiting).unwrap_or_else(|e| e.into_inner());
            if round.formed == before {
                return Err(round.failure.expect("nobody waits for less"));
            }
        }
        x.copy_from_slice(&round.total[..len]);
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut round = self.shared.lock();
        self.shared.fail(&mut round, GroupError::Lost { rank: self.rank });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers whose sum depends on the order.
    fn numbers(rank: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| ((rank * 7919 + i * 104_729) % 1009) as f32 * 10f32.powi((rank + i) as i32 % 7 - 3)).collect()
    }

    #[test]
    fn every_rank_has_the_sum_by_halves_however_long_it_is() {
        for size in [1, 2, 3, 4, 7] {
            let found = run(size, 1, |mut member| {
                let rank = member.rank();
                [1000, 0, 3, 1001, 1].map(|len| {
                    let mut x = numbers(rank, len);
                    member.sum(&mut x).expect("all ranks live");
                    x
                })
            });
            for found in found {
                for found in found.expect("no rank panics") {
                    let mut all: Vec<f32> = (0..size).flat_map(|rank| numbers(rank, found.len())).collect();
                    add_by_halves(&mut all, found.len());
                    assert!(found == all[..found.len()], "{size} ranks");
                }
            }
        }
    }

    #[test]
    fn ranks_that_do_not_agree_or_are_gone_are_an_error_for_all() {
        let found = run(3, 1, |mut member| {
            let mut x = vec![1.0; if member.rank() == 2 { 5 } else { 4 }];
            [member.sum(&mut x), member.sum(&mut x)]
        });
        let found: Vec<_> = found.into_iter().map(|found| found.expect("no rank panics")).collect();
        for rank in &found {
            assert!(matches!(rank[0], Err(GroupError::Disagree { .. })), "{rank:?}");
            assert_eq!((rank[0], rank), (rank[1], &found[0]));
        }
        let found = run(3, 1, |mut member| (member.rank() != 1).then(|| member.sum(&mut [1.0])));
        for (rank, found) in found.into_iter().enumerate() {
            let found = found.expect("no rank panics");
            assert_eq!(found, (rank != 1).then_some(Err(GroupError::Lost { rank: 1 })));
        }
    }
}
