//! Ranks that are threads of one process: what tests hold the other engines to.

use super::Engine;
use dino_kernel::group::{GroupError, ProcessGroup};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

/// One thread's membership. A thread that drops it has left: whoever waits for it, or asks for another exchange, gets an error.
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

/// An exchange that ranks come to one after another, and the one before it.
#[derive(Debug, Default)]
struct Round {
    /// What the ranks that have come bring, and who they are.
    parts: Vec<(usize, Vec<u8>)>,
    /// What all brought to the last exchange, rank by rank. All have read it when the next one is complete, for all must have come again.
    complete: Vec<Vec<u8>>,
    /// How many exchanges were complete.
    count: u64,
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

impl Member {
    /// Brings `own`, waits for what all others bring, and reads it.
    fn meet(&mut self, own: &[u8], read: impl FnOnce(&[Vec<u8>])) -> Result<(), GroupError> {
        let (rank, len) = (self.rank, own.len());
        let mut round = self.shared.lock();
        if let Some(e) = round.failure {
            return Err(e);
        }
        if let Some(others) = round.parts.first().map(|(_, part)| part.len()).filter(|others| *others != len) {
            return Err(self.shared.fail(&mut round, GroupError::Disagree { rank, len, others }));
        }
        round.parts.push((rank, own.to_vec()));
        if round.parts.len() == self.size {
            let mut parts = std::mem::take(&mut round.parts);
            parts.sort_unstable_by_key(|(rank, _)| *rank);
            round.complete = parts.into_iter().map(|(_, part)| part).collect();
            round.count += 1;
            self.shared.changed.notify_all();
        } else {
            let before = round.count;
            let waiting = |round: &mut Round| round.count == before && round.failure.is_none();
            round = self.shared.changed.wait_while(round, waiting).unwrap_or_else(|e| e.into_inner());
            if round.count == before {
                return Err(round.failure.expect("nobody waits for less"));
            }
        }
        read(&round.complete);
        Ok(())
    }
}

// Threads leave when they drop their membership, and wait as long as it takes.
impl Engine for Member {
    fn library(&self) -> String {
        "threads".into()
    }
}

impl ProcessGroup for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&mut self, all: &mut [u8]) -> Result<(), GroupError> {
        let len = all.len() / self.size;
        let own = all[self.rank * len..][..len].to_vec();
        self.meet(&own, |parts| {
            (0..parts.len()).for_each(|from| all[from * len..][..len].copy_from_slice(&parts[from]));
        })
    }

    fn exchange(&mut self, to: &mut [u8], from: &[u8]) -> Result<(), GroupError> {
        let (rank, len) = (self.rank, from.len() / self.size);
        self.meet(from, |parts| {
            (0..parts.len()).for_each(|i| to[i * len..][..len].copy_from_slice(&parts[i][rank * len..][..len]));
        })
    }

    fn broadcast(&mut self, x: &mut [u8]) -> Result<(), GroupError> {
        let own = x.to_vec();
        self.meet(&own, |parts| x.copy_from_slice(&parts[0]))
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
    use dino_kernel::group::{add_by_halves, sum_scratch};

    /// Numbers whose sum depends on the order.
    fn numbers(rank: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| ((rank * 7919 + i * 104_729) % 1009) as f32 * 10f32.powi((rank + i) as i32 % 7 - 3)).collect()
    }

    /// Every rank's sums of numbers of these lengths, with so much more scratch than the least.
    fn sums(size: usize, lens: &[usize], more: usize) -> Vec<Vec<Vec<f32>>> {
        let found = run(size, 1, |mut member| {
            let mut scratch = vec![f32::NAN; sum_scratch(size) + more];
            let sum = |&len: &usize| {
                let mut x = numbers(member.rank(), len);
                member.sum(&mut x, &mut scratch).expect("all ranks live");
                x
            };
            lens.iter().map(sum).collect()
        });
        found.into_iter().map(|found| found.expect("no rank panics")).collect()
    }

    #[test]
    fn every_rank_has_the_sum_by_halves_however_long_it_is() {
        for (size, more) in [(1, 0), (2, 0), (3, 1), (4, 5000), (7, 99)] {
            for found in sums(size, &[1000, 0, 3, 5001, 1024, 1025, 1], more) {
                for found in found {
                    let mut all: Vec<f32> = (0..size).flat_map(|rank| numbers(rank, found.len())).collect();
                    add_by_halves(&mut all, found.len());
                    assert!(found == all[..found.len()], "{size} ranks, {} numbers", found.len());
                }
            }
        }
    }

    #[test]
    fn parts_come_to_the_rank_they_are_for() {
        let found = run(3, 1, |mut member| {
            let rank = member.rank() as u8;
            let from: Vec<u8> = (0..3u8).flat_map(|to| [10 * rank + to, 100 + 10 * rank + to]).collect();
            let mut to = [0; 6];
            member.exchange(&mut to, &from).expect("all ranks live");
            let mut all = [0; 3];
            all[rank as usize] = rank + 1;
            member.gather(&mut all).expect("all ranks live");
            let mut first = [rank + 7; 2];
            member.broadcast(&mut first).expect("all ranks live");
            assert_eq!(first, [7; 2]);
            (to, all)
        });
        for (rank, found) in found.into_iter().enumerate() {
            let (to, all) = found.expect("no rank panics");
            let rank = rank as u8;
            assert_eq!(to, [rank, 100 + rank, 10 + rank, 110 + rank, 20 + rank, 120 + rank]);
            assert_eq!(all, [1, 2, 3]);
        }
    }

    #[test]
    fn ranks_that_do_not_agree_or_are_gone_are_an_error_for_all() {
        let found = run(3, 1, |mut member| {
            let mut all = vec![1; if member.rank() == 2 { 6 } else { 3 }];
            [member.gather(&mut all), member.gather(&mut all)]
        });
        let found: Vec<_> = found.into_iter().map(|found| found.expect("no rank panics")).collect();
        for rank in &found {
            assert!(matches!(rank[0], Err(GroupError::Disagree { .. })), "{rank:?}");
            assert_eq!((rank[0], rank), (rank[1], &found[0]));
        }
        let found = run(3, 1, |mut member| (member.rank() != 1).then(|| member.gather(&mut [1; 3])));
        for (rank, found) in found.into_iter().enumerate() {
            let found = found.expect("no rank panics");
            assert_eq!(found, (rank != 1).then_some(Err(GroupError::Lost { rank: 1 })));
        }
    }
}
