//! Ranks that MPI's launcher has started, on one machine or many. MPI moves bytes from rank to rank, and nothing else: sums are formed by
//! [`ProcessGroup::sum`], so that every library gives the same bits.
//!
//! Messages go from each rank to each, rather than by MPI's collective calls: so a rank that waits knows for whom, and can name it.

mod library;

use super::Engine;
use super::launch::Launch;
use super::messages::{self, Messages, have_not_come};
use dino_kernel::group::{GroupError, ProcessGroup};
use library::{Calls, Code, Request};
use std::fmt;
use std::time::{Duration, Instant};

/// A count is an `int`: more bytes go in several messages.
const MOST: usize = 1 << 30;
/// For so long a rank that waits asks without pause: a sum over processes of one machine takes less.
const BUSY: Duration = Duration::from_millis(20);
/// Then it asks so often, and leaves the core to others.
const PAUSE: Duration = Duration::from_micros(50);
/// What the ranks beside the first one wait longer: where it can name who is missing, it does.
const GRACE: Duration = Duration::from_secs(5);
/// For so long what was printed may stay unread, and what was read takes to be passed on, before all processes are ended.
const UNREAD: Duration = Duration::from_secs(2);
const PASSED_ON: Duration = Duration::from_millis(100);

/// All processes of the launch.
pub struct Mpi {
    calls: Box<dyn Calls>,
    library: String,
    rank: usize,
    size: usize,
    /// How long a rank may take to come.
    patience: Duration,
    /// The library has been left.
    left: bool,
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} ({})", self.rank, self.size, self.library)
    }
}

/// A message under way, from or to another rank.
struct Pending {
    peer: usize,
    request: Request,
}

impl Mpi {
    /// Opens the launcher's library, or the one that is `named`, joins, and makes sure that it is the launcher's.
    ///
    /// # Errors
    /// The library cannot be opened or started, or it belongs to another launcher.
    pub fn join(launch: &Launch, named: Option<&str>, patience: Duration) -> Result<Mpi, String> {
        let names = named.map_or(library::names(launch.by).to_vec(), |name| vec![name]);
        let mut missing = Vec::new();
        let opened = names.into_iter().find_map(|name| match library::open(name) {
            Ok(calls) => Some((name, calls)),
            Err(e) => {
                missing.push(e);
                None
            }
        });
        let Some((name, calls)) = opened else { return Err(missing.join("; ")) };
        calls.start().map_err(|e| format!("{name}: {e}"))?;
        let (rank, size) = calls.place();
        let library = calls.version();
        let mut mpi = Mpi { calls, library, rank, size, patience, left: false };
        match launch.place {
            Some((own, all)) if (own, all) != (rank, size) => {
                let by = launch.by.name();
                mpi.finish(); // alone, or with others that find the same
                Err(format!(
                    "{by} calls this process {own} of {all}, {name} calls it {rank} of {size}: it belongs to another launcher"
                ))
            }
            _ => Ok(mpi),
        }
    }

    /// The value of a call; where it failed, the end of all processes.
    fn valid<T>(&mut self, called: Result<T, Code>) -> T {
        match called {
            Ok(value) => value,
            Err(Code(code)) => self.end(&format!("{} could not move what ranks exchange (error {code})", self.library)),
        }
    }

    /// Names the ranks that have not come, and ends all processes.
    fn give_up(&mut self, pending: &[Pending]) -> ! {
        let who = have_not_come(pending.iter().map(|message| message.peer));
        let waited = humantime::format_duration(self.patience);
        self.end(&format!(
            "{who} for {waited}: it hangs, or its machine cannot be reached (--rank-timeout sets how long is waited)"
        ))
    }

    fn end(&mut self, why: &str) -> ! {
        messages::report(self.rank, self.size, &why);
        self.abort(2);
        std::process::exit(2) // MPI_Abort does not come back
    }
}

impl Engine for Mpi {
    fn library(&self) -> String {
        self.library.clone()
    }

    fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    fn finish(&mut self) {
        self.left = true;
        self.calls.finish();
    }

    fn abort(&mut self, code: u8) {
        self.left = true;
        wait_until_read();
        self.calls.abort(code);
    }
}

/// Waits a moment for the launcher to read what was printed: MPICH's drops what is still in the pipe when it hears of an abort, and that
/// is the reason for the abort (on a busy machine, one time in fifty).
fn wait_until_read() {
    let started = Instant::now();
    let mut unread: libc::c_int = 0;
    // SAFETY: the call writes one number, how many bytes of a pipe are still to be read.
    while unsafe { libc::ioctl(libc::STDERR_FILENO, libc::FIONREAD, &raw mut unread) } == 0
        && unread > 0
        && started.elapsed() < UNREAD
    {
        std::thread::sleep(PAUSE);
    }
    std::thread::sleep(PASSED_ON);
}

impl Messages for Mpi {
    fn place(&self) -> (usize, usize) {
        (self.rank, self.size)
    }

    /// It returns only when that is done, for until then the library works on the memory; where it cannot be done, it ends all processes.
    fn transfer<'a>(
        &mut self,
        receives: impl Iterator<Item = (usize, &'a mut [u8])>,
        sends: impl Iterator<Item = (usize, &'a [u8])>,
    ) {
        let mut pending = Vec::new();
        for (from, part) in receives {
            for piece in part.chunks_mut(MOST) {
                // SAFETY: the piece is borrowed for longer than this function runs, and it is not left before the request is done.
                let begun = unsafe { self.calls.receive(piece.as_mut_ptr(), piece.len(), from) };
                pending.push(Pending { peer: from, request: self.valid(begun) });
            }
        }
        for (to, part) in sends {
            for piece in part.chunks(MOST) {
                // SAFETY: as above.
                let begun = unsafe { self.calls.send(piece.as_ptr(), piece.len(), to) };
                pending.push(Pending { peer: to, request: self.valid(begun) });
            }
        }
        let started = Instant::now();
        let patience = if self.rank == 0 { self.patience } else { self.patience + GRACE };
        loop {
            let mut i = 0;
            while i < pending.len() {
                let done = self.calls.is_done(&mut pending[i].request);
                if self.valid(done) {
                    pending.swap_remove(i);
                } else {
                    i += 1;
                }
            }
            if pending.is_empty() {
                return;
            }
            let waited = started.elapsed();
            if waited > patience {
                self.give_up(&pending);
            } else if waited > BUSY {
                std::thread::sleep(PAUSE);
            } else {
                std::thread::yield_now(); // more ranks than cores: the other one may be waiting for this one's
            }
        }
    }
}

impl ProcessGroup for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&mut self, all: &mut [u8]) -> Result<(), GroupError> {
        self.gather_messages(all);
        Ok(())
    }

    fn exchange(&mut self, to: &mut [u8], from: &[u8]) -> Result<(), GroupError> {
        self.exchange_messages(to, from);
        Ok(())
    }

    fn broadcast(&mut self, x: &mut [u8]) -> Result<(), GroupError> {
        self.broadcast_messages(x);
        Ok(())
    }
}

impl Drop for Mpi {
    /// Others may never come to their end of the run: they are told, rather than waited for.
    fn drop(&mut self) {
        if !self.left {
            self.abort(if std::thread::panicking() { 101 } else { 2 });
        }
    }
}
