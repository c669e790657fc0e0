//! Exchanges of all ranks by messages from each rank to each: what engines do that have no others, or want to know for whom they wait.

use std::fmt::Display;

/// Moves parts of memory between ranks.
pub trait Messages {
    /// This process's number, and how many there are.
    fn place(&self) -> (usize, usize);

    /// Receives these parts from other ranks and sends them those, at most one of each to and from a rank. Returns when that is done; where
    /// it cannot be done, this process ends.
    fn transfer<'a>(
        &mut self,
        receives: impl Iterator<Item = (usize, &'a mut [u8])>,
        sends: impl Iterator<Item = (usize, &'a [u8])>,
    );

    /// As [`dino_kernel::group::ProcessGroup::gather`].
    fn gather_messages(&mut self, all: &mut [u8]) {
        let (rank, size) = self.place();
        let len = all.len() / size;
        if len == 0 {
            return;
        }
        let (before, rest) = all.split_at_mut(rank * len);
        let (own, after) = rest.split_at_mut(len);
        let own: &[u8] = own;
        let receives = before.chunks_mut(len).enumerate().chain((rank + 1..).zip(after.chunks_mut(len)));
        let sends = (0..size).filter(|to| *to != rank).map(|to| (to, own));
        self.transfer(receives, sends);
    }

    /// As [`dino_kernel::group::ProcessGroup::exchange`].
    fn exchange_messages(&mut self, to: &mut [u8], from: &[u8]) {
        let (rank, size) = self.place();
        let len = from.len() / size;
        if len == 0 {
            return;
        }
        to[rank * len..][..len].copy_from_slice(&from[rank * len..][..len]);
        let receives = to.chunks_mut(len).enumerate().filter(|(peer, _)| *peer != rank);
        let sends = from.chunks(len).enumerate().filter(|(peer, _)| *peer != rank);
        self.transfer(receives, sends);
    }

    /// As [`dino_kernel::group::ProcessGroup::broadcast`]. Every rank gets a part, and gives it to all others: rank 0 sends all bytes once,
    /// however many ranks there are. What cannot be cut equally goes to all from rank 0.
    fn broadcast_messages(&mut self, x: &mut [u8]) {
        let (rank, size) = self.place();
        let len = x.len() / size;
        let (parts, rest) = x.split_at_mut(len * size);
        if rank == 0 {
            self.transfer(std::iter::empty(), parts.chunks(len.max(1)).enumerate().skip(1));
            self.transfer(std::iter::empty(), (1..size).map(|to| (to, &*rest)).filter(|_| !rest.is_empty()));
        } else {
            let own = [(0, &mut parts[rank * len..][..len])];
            self.transfer(own.into_iter().filter(|_| len > 0), std::iter::empty());
            let rest = [(0, rest)];
            self.transfer(rest.into_iter().filter(|(_, rest)| !rest.is_empty()), std::iter::empty());
        }
        self.gather_messages(parts);
    }
}

/// Prints why this rank cannot go on; all others may be silent.
pub fn report(rank: usize, size: usize, why: &dyn Display) {
    crate::io::output::print_again();
    errln!("rank {rank} of {size}: {why}");
}

/// Ends this process, which waits for others in vain; whoever started it ends them.
pub fn end(rank: usize, size: usize, why: &dyn Display) -> ! {
    report(rank, size, why);
    std::process::exit(2)
}

/// Names ranks that have not come.
pub fn have_not_come(missing: impl IntoIterator<Item = usize>) -> String {
    let mut ranks: Vec<usize> = missing.into_iter().collect();
    ranks.sort_unstable();
    ranks.dedup();
    let ranks: Vec<String> = ranks.iter().map(usize::to_string).collect();
    match &ranks[..] {
        [one] => format!("rank {one} has not come"),
        several => format!("ranks {} have not come", several.join(", ")),
    }
}
