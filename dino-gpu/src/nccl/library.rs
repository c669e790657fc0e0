//! NCCL's functions, and the communicator of a process's GPU with the GPUs of the other processes.
//!
//! Every call queues work on a stream; nothing waits but the start. NCCL moves bytes and adds nothing: sums are formed by this program, in
//! an order that depends on no library.

use crate::cuda::libraries::{Wanted, functions};
use crate::cuda::{Event, Stream};
use dino_host::dist::messages;
use dino_host::error::{Error, Result};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

/// Where NCCL is, if not where it is looked for: the variable that names the file.
pub const VARIABLE: &str = "DINO_NCCL";

static NAMED: OnceLock<PathBuf> = OnceLock::new();

/// Takes NCCL from this file. Only before its first use; false if it was too late.
pub fn use_library(path: PathBuf) -> bool {
    NAMED.set(path).is_ok()
}

/// What rank 0 makes, and all ranks begin with.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId([u8; UniqueId::LEN]);

impl UniqueId {
    /// Its bytes.
    pub const LEN: usize = 128;

    /// A new one, for one communicator.
    ///
    /// # Errors
    /// There is no NCCL, or it fails.
    pub fn new() -> Result<UniqueId> {
        let (f, mut id) = (functions()?, UniqueId([0; UniqueId::LEN]));
        // SAFETY: writes one id.
        f.check(unsafe { (f.unique_id)(&mut id) })?;
        Ok(id)
    }

    /// From its bytes; none where they are too few or too many.
    pub fn from_bytes(bytes: &[u8]) -> Option<UniqueId> {
        bytes.try_into().ok().map(UniqueId)
    }

    /// To be sent to the other ranks.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A handle or a pointer of the library.
type P = *mut c_void;

// Since NCCL 2.13.
functions! {
    fn version = ncclGetVersion(*mut c_int) -> c_int;
    fn unique_id = ncclGetUniqueId(*mut UniqueId) -> c_int;
    fn init_rank = ncclCommInitRank(*mut P, c_int, UniqueId, c_int) -> c_int;
    fn destroy = ncclCommDestroy(P) -> c_int;
    fn abort = ncclCommAbort(P) -> c_int;
    fn async_error = ncclCommGetAsyncError(P, *mut c_int) -> c_int;
    fn all_gather = ncclAllGather(P, P, usize, c_int, P, P) -> c_int;
    fn broadcast = ncclBroadcast(P, P, usize, c_int, c_int, P, P) -> c_int;
    fn send = ncclSend(P, usize, c_int, c_int, P, P) -> c_int;
    fn receive = ncclRecv(P, usize, c_int, c_int, P, P) -> c_int;
    fn group_start = ncclGroupStart() -> c_int;
    fn group_end = ncclGroupEnd() -> c_int;
    fn error_text = ncclGetErrorString(c_int) -> *const c_char;
    fn last_error = ncclGetLastError(P) -> *const c_char;
}

// Numbers of nccl.h. Everything goes as bytes.
const BYTES: c_int = 1;
const IN_PROGRESS: c_int = 7;

impl Functions {
    fn check(&self, status: c_int) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        let text = |at: *const c_char| {
            // SAFETY: the library's texts end with 0 and stay.
            if at.is_null() { "".into() } else { unsafe { CStr::from_ptr(at) }.to_string_lossy() }
        };
        // SAFETY: both only return a text.
        let (what, last) = unsafe { (text((self.error_text)(status)), text((self.last_error)(null_mut()))) };
        let more = if last.is_empty() { String::new() } else { format!(" ({})", last.trim()) };
        Err(Error::new(format!("NCCL: {what}{more}"))
            .hint("NCCL_DEBUG=WARN prints what it knows; where a rank has ended, its own message is first"))
    }
}

fn functions() -> Result<&'static Functions> {
    static FUNCTIONS: OnceLock<std::result::Result<Functions, String>> = OnceLock::new();
    let load = || {
        let named = NAMED.get().cloned();
        Functions::load(Wanted { variable: VARIABLE, named, files: &["libnccl.so.2"], wheels: &["nccl/lib"] })
    };
    FUNCTIONS.get_or_init(load).as_ref().map_err(|why| {
        Error::new(format!("several GPUs need NCCL, and there is none ({why})"))
            .hint(format!("{VARIABLE}=FILE names libnccl.so.2, which is in the CUDA toolkit's repositories and in PyPI's nvidia-nccl-cu13"))
    })
}

/// Such as 2.27.5.
///
/// # Errors
/// There is no NCCL, or it fails.
pub fn version() -> Result<String> {
    let (f, mut v) = (functions()?, 0);
    // SAFETY: writes one number.
    f.check(unsafe { (f.version)(&mut v) })?;
    Ok(format!("{}.{}.{}", v / 10000, v / 100 % 100, v % 100))
}

/// How long a wait for other ranks asks without pause.
const BUSY: Duration = Duration::from_millis(2);
/// How often it asks then, and how often it asks whether they are still there.
const PAUSE: Duration = Duration::from_micros(100);
const LOOK: Duration = Duration::from_millis(50);

/// The GPUs of all processes of a group, a rank each. Addresses are in device memory, and what is queued follows the stream's order.
pub struct Comm {
    functions: &'static Functions,
    raw: P,
    rank: usize,
    size: usize,
}

// SAFETY: NCCL's communicators may be used from any thread, one at a time.
unsafe impl Send for Comm {}

impl Comm {
    /// Waits for all ranks; this thread has the GPU's context. The library itself waits without end, so the process ends where they do not
    /// come for so long.
    ///
    /// # Errors
    /// There is no NCCL, or two ranks have the same GPU.
    pub fn join(id: UniqueId, rank: usize, size: usize, patience: Duration) -> Result<Comm> {
        let (functions, mut raw) = (functions()?, null_mut());
        let (joined, waiting) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if waiting.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
                let waited = patience.as_secs();
                messages::end(
                    rank,
                    size,
                    &Error::new(format!("the GPUs of all ranks have not been joined for {waited} s")),
                );
            }
        });
        // SAFETY: writes the new handle.
        let status = unsafe { (functions.init_rank)(&mut raw, size as c_int, id, rank as c_int) };
        drop(joined);
        functions.check(status)?;
        Ok(Comm { functions, raw, rank, size })
    }

    /// This process's number.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// `to` has a part of so many bytes a rank, and gets every rank's from where its `from` is: for the own one, perhaps where it goes.
    ///
    /// # Errors
    /// NCCL fails to queue it.
    pub fn gather(&self, stream: &Stream, to: u64, from: u64, bytes: usize) -> Result<()> {
        let (f, stream) = (self.functions, stream.raw().cast());
        // SAFETY: a live communicator and stream; the callers' spans are inside their buffers.
        f.check(unsafe { (f.all_gather)(from as P, to as P, bytes, BYTES, self.raw, stream) })
    }

    /// `to` and `from` have a part of so many bytes a rank: part r of `from` goes to rank r, and comes to be its part of this rank's
    /// number.
    ///
    /// # Errors
    /// As [`Comm::gather`].
    pub fn exchange(&self, stream: &Stream, to: u64, from: u64, bytes: usize) -> Result<()> {
        let (f, stream) = (self.functions, stream.raw().cast());
        self.together(|_| {
            (0..self.size).try_for_each(|peer| {
                let at = (peer * bytes) as u64;
                // SAFETY: as above.
                f.check(unsafe { (f.send)((from + at) as P, bytes, BYTES, peer as c_int, self.raw, stream) })?;
                // SAFETY: as above.
                f.check(unsafe { (f.receive)((to + at) as P, bytes, BYTES, peer as c_int, self.raw, stream) })
            })
        })
    }

    /// The calls of `work` go as one exchange.
    ///
    /// # Errors
    /// One of them fails to be queued.
    pub fn together(&self, work: impl FnOnce(&Comm) -> Result<()>) -> Result<()> {
        let f = self.functions;
        // SAFETY: begins a list of calls.
        f.check(unsafe { (f.group_start)() })?;
        let queued = work(self);
        // SAFETY: ends the list, also where a call failed.
        let ended = f.check(unsafe { (f.group_end)() });
        queued.and(ended)
    }

    /// So many bytes become rank 0's.
    ///
    /// # Errors
    /// As [`Comm::gather`].
    pub fn broadcast(&self, stream: &Stream, at: u64, bytes: usize) -> Result<()> {
        let (f, stream) = (self.functions, stream.raw().cast());
        // SAFETY: as above.
        f.check(unsafe { (f.broadcast)(at as P, at as P, bytes, BYTES, 0, self.raw, stream) })
    }

    /// Waits for an event that other ranks' work may be in front of; false if it has not come after so long. Work of a rank that is gone
    /// never ends, so the device alone is not asked.
    ///
    /// # Errors
    /// The device fails, or NCCL has noticed that a rank is gone.
    pub fn wait(&self, event: &Event, patience: Duration) -> Result<bool> {
        let (started, mut looked) = (Instant::now(), Instant::now());
        while !event.is_done()? {
            let waited = started.elapsed();
            if waited > patience {
                return Ok(false);
            }
            if looked.elapsed() > LOOK {
                self.check()?;
                looked = Instant::now();
            }
            if waited > BUSY {
                std::thread::sleep(PAUSE);
            } else {
                std::thread::yield_now();
            }
        }
        // What was waited for may have ended because a rank is gone.
        self.check().map(|()| true)
    }

    /// Whether all is well, here and elsewhere.
    ///
    /// # Errors
    /// A call that was queued has failed since, or a rank is gone.
    pub fn check(&self) -> Result<()> {
        let (f, mut status) = (self.functions, 0);
        // SAFETY: a live communicator; writes one number.
        f.check(unsafe { (f.async_error)(self.raw, &mut status) })?;
        if status == IN_PROGRESS { Ok(()) } else { f.check(status) }
    }

    /// Ends what waits for a rank that is gone. Nothing can be queued afterwards.
    pub fn abort(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: a live communicator, which is not used again.
            unsafe { (self.functions.abort)(self.raw) };
            self.raw = null_mut();
        }
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: made above, destroyed once; whoever has it waits for its streams first.
            unsafe { (self.functions.destroy)(self.raw) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NVIDIA's own library opens, has every function, and makes an id, on a machine without a GPU too.
    #[test]
    fn the_real_library_gives_its_version_and_an_id() {
        let Some(file) = std::env::var_os("DINO_REAL_NCCL") else {
            return eprintln!(
                "SKIPPED the_real_library_gives_its_version_and_an_id: DINO_REAL_NCCL names no libnccl.so.2"
            );
        };
        assert!(use_library(file.into()));
        let version = version().expect("it opens");
        assert!(version.starts_with("2."), "{version}");
        let ids = [0; 2].map(|_| UniqueId::new().expect("it needs no GPU for an id").bytes().to_vec());
        assert!(ids[0] != ids[1] && ids[0].iter().any(|byte| *byte != 0));
        assert!(UniqueId::from_bytes(&ids[0]).is_some() && UniqueId::from_bytes(&ids[0][1..]).is_none());
        println!("NCCL {version}");
    }
}
