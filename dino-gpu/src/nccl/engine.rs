//! What hosts exchange, by way of their GPUs: for processes that this program or torchrun has started, which have no MPI.

use super::library::{self, Comm, UniqueId};
use crate::cuda::{Buffer, Card, Event, Pinned, Stream};
use dino_host::dist::launch::Launch;
use dino_host::dist::{Engine, PATIENCE, messages, start};
use dino_host::error::{Error, Result};
use dino_kernel::group::{GroupError, ProcessGroup};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes that go at once: longer exchanges go in pieces.
const STAGED: usize = 4 << 20;
/// Whoever waits for longer notes it, for the others to read.
const NOTED: Duration = Duration::from_secs(1);
/// The file with the id, in the folder of the rendezvous.
const ID: &str = "nccl-id";

/// All processes of the launch. They move bytes on a stream and a communicator of their own, so that the host can exchange something while
/// its GPU is at work.
pub struct Nccl {
    comm: Comm,
    stream: Stream,
    done: Event,
    /// What goes, and what comes: on the host, where copies from and to other memory would wait without end, and on the GPU.
    pinned: [Pinned; 2],
    staged: [Buffer; 2],
    rendezvous: PathBuf,
    patience: Duration,
    /// All ranks are done.
    left: bool,
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} (NCCL)", self.comm.rank(), self.comm.size())
    }
}

/// Rank 0's id, by a file.
fn first_id(folder: &Path, rank: usize) -> Result<UniqueId> {
    let (path, aside) = (folder.join(ID), folder.join("nccl-id.new"));
    if rank == 0 {
        // Of a launch before this one, if anything.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name == ID || name.to_string_lossy().starts_with("waits-") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let id = UniqueId::new()?;
        let written = std::fs::write(&aside, id.bytes()).and_then(|()| std::fs::rename(&aside, &path));
        return written.map(|()| id).map_err(|e| Error::new(format!("cannot write {}: {e}", path.display())));
    }
    let started = Instant::now();
    loop {
        if let Some(id) = std::fs::read(&path).ok().and_then(|bytes| UniqueId::from_bytes(&bytes)) {
            return Ok(id);
        }
        if started.elapsed() > PATIENCE {
            let waited = PATIENCE.as_secs() / 60;
            return Err(Error::new(format!("rank 0 wrote no {} for {waited} minutes", path.display()))
                .hint(format!("{} names a folder that all processes see", start::RENDEZVOUS)));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Nccl {
    /// Joins the processes of a launch that brings no MPI; the GPU of this one is chosen.
    ///
    /// # Errors
    /// There is no NCCL, the processes do not find each other, or two of them have the same GPU.
    pub fn join(launch: &Launch) -> Result<Nccl> {
        let Some((rank, size)) = launch.place else {
            return Err(Error::new(format!("{} does not state which process this is", launch.by.name())));
        };
        Card::get()?;
        let rendezvous = start::rendezvous(launch)?;
        let comm = Comm::join(first_id(&rendezvous, rank)?, rank, size, PATIENCE)?;
        if rank == 0 {
            // All have it: another launch does not find it.
            let _ = std::fs::remove_file(rendezvous.join(ID));
        }
        let pinned = [Pinned::new(STAGED / 4)?, Pinned::new(STAGED / 4)?];
        let staged = [Buffer::new(STAGED)?, Buffer::new(STAGED)?];
        let (stream, done) = (Stream::new()?, Event::new()?);
        Ok(Nccl { comm, stream, done, pinned, staged, rendezvous, patience: PATIENCE, left: false })
    }

    /// Bytes go to the GPU, through `work`, and as many as `back` has come from there.
    fn through(&mut self, own: &[u8], back: &mut [u8], work: impl FnOnce(&Nccl, [u64; 2]) -> Result<()>) {
        let [from, to] = [self.staged[0].at, self.staged[1].at];
        self.pinned[0].bytes_mut()[..own.len()].copy_from_slice(own);
        let moved = Card::get().and_then(|_| {
            // SAFETY: pinned, of at least those bytes, and left alone until the wait is over.
            unsafe { self.stream.upload(from, self.pinned[0].address(), own.len())? };
            work(self, [to, from])?;
            // SAFETY: as above.
            unsafe { self.stream.download(self.pinned[1].address(), to, back.len())? };
            self.stream.record(&self.done)?;
            self.wait()
        });
        match moved {
            Ok(true) => back.copy_from_slice(&self.pinned[1].bytes_mut()[..back.len()]),
            Ok(false) => self.give_up(),
            // The memory of an exchange is the library's until it is done, which it may never be.
            Err(e) => messages::end(self.comm.rank(), self.comm.size(), &e),
        }
    }

    /// Waits for what is queued, as long as ranks may take to come; false if that was not enough.
    fn wait(&self) -> Result<bool> {
        if self.comm.wait(&self.done, self.patience.min(NOTED))? {
            return Ok(true);
        }
        let note = self.note(self.comm.rank());
        let _ = std::fs::write(&note, "");
        let came = self.comm.wait(&self.done, self.patience.saturating_sub(NOTED))?;
        if came {
            let _ = std::fs::remove_file(&note);
        }
        Ok(came)
    }

    /// Where a rank notes that it waits. (In which exchange may differ: one may have what another still waits for.)
    fn note(&self, rank: usize) -> PathBuf {
        self.rendezvous.join(format!("waits-{rank}"))
    }

    /// Names the ranks that have not come, which NCCL does not know, and ends this process. The first of those that wait prints.
    fn give_up(&mut self) -> ! {
        std::thread::sleep(2 * NOTED); // one may have come just now
        let (missing, waiting): (Vec<usize>, Vec<usize>) =
            (0..self.comm.size()).partition(|rank| !self.note(*rank).exists());
        if waiting.first().is_some_and(|first| *first != self.comm.rank()) {
            std::thread::sleep(2 * NOTED);
            std::process::exit(2);
        }
        let who = if missing.is_empty() { "no rank has gone on".into() } else { messages::have_not_come(missing) };
        let why = Error::new(format!("{who} for {} s", self.patience.as_secs()))
            .hint("it hangs, or its machine cannot be reached; --rank-timeout sets how long is waited");
        messages::end(self.comm.rank(), self.comm.size(), &why)
    }

    /// Bytes of a part that go at once.
    fn piece(&self) -> usize {
        STAGED / self.comm.size()
    }
}

impl Engine for Nccl {
    fn library(&self) -> String {
        library::version().map_or("NCCL".into(), |version| format!("NCCL {version}"))
    }

    fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    fn abort(&mut self, code: u8) {
        std::process::exit(code.into()); // whoever started this process ends the others
    }

    fn finish(&mut self) {
        self.left = true;
        if self.comm.rank() == 0 {
            let _ = std::fs::remove_dir_all(&self.rendezvous);
        }
    }
}

impl ProcessGroup for Nccl {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn size(&self) -> usize {
        self.comm.size()
    }

    fn gather(&mut self, all: &mut [u8]) -> Result<(), GroupError> {
        let (rank, size) = (self.rank(), self.size());
        let (len, piece) = (all.len() / size, self.piece());
        let mut back = vec![0; size * piece.min(len)];
        for at in (0..len).step_by(piece) {
            let n = piece.min(len - at);
            let back = &mut back[..size * n];
            let own = all[rank * len + at..][..n].to_vec();
            self.through(&own, back, |of, [to, from]| of.comm.gather(&of.stream, to, from, n));
            for (peer, part) in back.chunks(n).enumerate() {
                all[peer * len + at..][..n].copy_from_slice(part);
            }
        }
        Ok(())
    }

    fn exchange(&mut self, to: &mut [u8], from: &[u8]) -> Result<(), GroupError> {
        let size = self.size();
        let (len, piece) = (from.len() / size, self.piece());
        let mut back = vec![0; size * piece.min(len)];
        for at in (0..len).step_by(piece) {
            let n = piece.min(len - at);
            let back = &mut back[..size * n];
            let own: Vec<u8> = (0..size).flat_map(|peer| from[peer * len + at..][..n].iter().copied()).collect();
            self.through(&own, back, |of, [to, from]| of.comm.exchange(&of.stream, to, from, n));
            for (peer, part) in back.chunks(n).enumerate() {
                to[peer * len + at..][..n].copy_from_slice(part);
            }
        }
        Ok(())
    }

    fn broadcast(&mut self, x: &mut [u8]) -> Result<(), GroupError> {
        for part in x.chunks_mut(STAGED) {
            let own = part.to_vec();
            let n = own.len();
            self.through(&own, part, |of, [to, from]| {
                of.stream.copy(to, from, n)?;
                of.comm.broadcast(&of.stream, to, n)
            });
        }
        Ok(())
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // All ranks of a machine close together. On the way out of an error the others may never come.
        if !self.left {
            self.comm.abort();
        }
    }
}
