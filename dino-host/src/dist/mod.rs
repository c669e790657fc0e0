//! Processes that share every batch: how they find each other, and what they exchange.
//!
//! A [`Group`] is built once, when the program begins, from what a launcher left in the environment ([`launch`]); alone it holds nothing.
//! An [`Engine`] ([`mpi`], [`sockets`], a device's own, in tests [`threads`]) moves bytes; what is made of them is written here, once for
//! all engines.

pub mod launch;
pub mod messages;
#[cfg(unix)]
pub mod mpi;
pub mod sockets;
pub mod start;
pub mod threads;

use crate::error::{Error, Result};
use bytemuck::Pod;
use dino_kernel::group::{GroupError, ProcessGroup, sum_scratch};
use launch::Launch;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a rank may take to come before the others give up.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Numbers that go from one rank to another at once in a sum, where all ranks are on one machine: they stay in a cache.
const NEAR: usize = 1 << 16;
/// Numbers that a rank sends at once to all others where they are not: over a network a message costs more than the cache is worth.
const FAR: usize = 1 << 24;

/// Numbers of scratch that a sum over so many ranks takes, on one machine or several.
pub fn scratch_len(ranks: usize, machines: usize) -> usize {
    match (ranks, machines) {
        (1, _) => 0,
        (_, 1) => sum_scratch(ranks).max(ranks * NEAR),
        _ => sum_scratch(ranks).max(FAR),
    }
}

/// A process's membership in a group, by any engine: alone, unless a launcher started several. Copies are of the same membership.
#[derive(Clone, Debug, Default)]
pub struct Group {
    rank: usize,
    shared: Option<Arc<Shared>>,
}

#[derive(Debug)]
struct Shared {
    size: usize,
    inner: Mutex<Inner>,
    /// All ranks have the same error: they end together.
    together: AtomicBool,
    place: Place,
}

#[derive(Debug)]
struct Inner {
    engine: Box<dyn Engine>,
    patience: Duration,
    /// Of sums.
    scratch: Vec<f32>,
}

/// What moves bytes between processes, and what else a launcher's library does.
pub trait Engine: ProcessGroup + fmt::Debug + Send {
    /// Name and version of the library, for logs.
    fn library(&self) -> String;

    /// How long a rank may take to come from now on.
    fn set_patience(&mut self, _patience: Duration) {}

    /// Leaves the group, when all ranks do.
    fn finish(&mut self) {}

    /// Ends the processes of all ranks, where the engine can; where it cannot, whoever started them does, once this one has ended.
    fn abort(&mut self, _code: u8) {}
}

/// Where the ranks of a group are.
#[derive(Clone, Debug, Default)]
struct Place {
    /// Names of the machines, rank by rank.
    hosts: Vec<String>,
    /// Ranks that use the same cores as this one, it included.
    sharing: usize,
    /// Cores that this process may use.
    cores: usize,
}

impl Place {
    fn machines(&self) -> usize {
        let mut hosts: Vec<&String> = self.hosts.iter().collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts.len().max(1)
    }
}

/// An error on its way to another rank.
type Sent = (String, Option<String>);

impl From<threads::Member> for Group {
    fn from(member: threads::Member) -> Group {
        let place = Place { hosts: vec![String::new(); member.size()], sharing: 1, cores: 1 };
        Group::new(Box::new(member), place)
    }
}

impl Group {
    fn new(engine: Box<dyn Engine>, place: Place) -> Group {
        let (rank, size) = (engine.rank(), engine.size());
        let scratch = vec![0.0; scratch_len(size, place.machines())];
        let inner = Mutex::new(Inner { engine, patience: PATIENCE, scratch });
        Group { rank, shared: Some(Arc::new(Shared { size, inner, together: AtomicBool::new(false), place })) }
    }

    /// The group of the processes that a launcher has started with this one; alone where none has. `other` joins those of a launcher that
    /// brings no MPI.
    ///
    /// # Errors
    /// The launcher's library cannot be opened, or belongs to another launcher, or `other` fails.
    #[cfg(unix)]
    pub fn join(other: impl FnOnce(&Launch) -> Result<Box<dyn Engine>>) -> Result<Group> {
        let Some(launch) = launch::from_environment() else { return Ok(Group::default()) };
        if let Some((rank, size)) = launch.place.filter(|(rank, size)| rank >= size) {
            let message = format!("{} calls this process {rank} of {size}", launch.by.name());
            return Err(Error::new(message).hint(format!("they are numbered from 0; {}", launch.by.hint())));
        }
        let mut engine: Box<dyn Engine> = if launch.by.brings_mpi() {
            let named = std::env::var("DINO_MPI").ok();
            let by = launch.by.name();
            let mpi = mpi::Mpi::join(&launch, named.as_deref(), PATIENCE).map_err(|e| {
                Error::new(format!("started by {by}, but its library cannot be joined: {e}")).hint(launch.by.hint())
            })?;
            Box::new(mpi)
        } else {
            if launch.by == launch::Launcher::Own {
                start::end_with_parent();
            }
            other(&launch)?
        };
        if engine.size() == 1 {
            engine.finish();
            return Ok(Group::default());
        }
        // Where the ranks are is gathered by the group itself, which does not know it yet.
        let rank = engine.rank();
        let mut group = Group::new(engine, Place { hosts: Vec::new(), sharing: 1, cores: 1 });
        let (host, cores) = (crate::io::host(), allowed_cores());
        let all: Vec<(String, String)> = group.gather_each(&(host, cores))?;
        let place = Place {
            sharing: all.iter().filter(|other| **other == all[rank]).count(),
            hosts: all.into_iter().map(|(host, _)| host).collect(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        };
        let shared = group.shared.as_mut().and_then(Arc::get_mut).expect("there is one copy so far");
        let inner = shared.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        inner.scratch.resize(scratch_len(shared.size, place.machines()), 0.0);
        shared.place = place;
        Ok(group)
    }

    /// Alone: there is no engine for this system.
    ///
    /// # Errors
    /// A launcher started several processes.
    #[cfg(not(unix))]
    pub fn join(_other: impl FnOnce(&Launch) -> Result<Box<dyn Engine>>) -> Result<Group> {
        match launch::from_environment() {
            None => Ok(Group::default()),
            Some(launch) => Err(Error::new(format!("started by {}, and MPI is used on Unix only", launch.by.name()))
                .hint("start it without a launcher")),
        }
    }

    /// This process's number.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.shared.as_ref().map_or(1, |shared| shared.size)
    }

    /// Whether this is the process that prints, logs, draws and saves.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// What the group is, for the first line of a run and for `run.json`; none alone.
    pub fn description(&self) -> Option<String> {
        let shared = self.shared.as_ref()?;
        let engine = lock(shared).engine.library();
        let machines = shared.place.machines();
        let many = if machines == 1 { "" } else { "s" };
        Some(format!("{} processes on {machines} machine{many}, {engine}", shared.size))
    }

    /// The threads of this process where so many are asked for; 0 asks for one a core that is its own.
    pub fn threads(&self, asked: usize) -> usize {
        match &self.shared {
            Some(shared) if asked == 0 => (shared.place.cores / shared.place.sharing).max(1),
            _ => asked,
        }
    }

    /// What to know about the cores, if anything: launchers may leave a process one of many.
    pub fn note(&self) -> Option<String> {
        let place = &self.shared.as_ref()?.place;
        let host = place.hosts.get(self.rank)?;
        let (here, all) = (place.hosts.iter().filter(|other| *other == host).count(), online_cores());
        (place.cores == 1 && all > here).then(|| {
            format!("every process may use one of {all} cores only; mpirun --bind-to none leaves it all of them")
        })
    }

    /// This rank's part of so many things: consecutive ones, as many as the others have, or one more.
    pub fn part_of(&self, count: usize) -> Range<usize> {
        let at = |rank: usize| count / self.size() * rank + (count % self.size()).min(rank);
        at(self.rank)..at(self.rank + 1)
    }

    /// This rank's number among those of its machine.
    pub fn local_rank(&self) -> usize {
        let Some(shared) = &self.shared else { return 0 };
        let hosts = &shared.place.hosts;
        hosts[..self.rank].iter().filter(|host| **host == hosts[self.rank]).count()
    }

    /// How long a rank may take to come from now on.
    pub fn set_patience(&self, patience: Duration) {
        self.with(|inner| {
            inner.patience = patience;
            inner.engine.set_patience(patience);
        });
    }

    /// How long a rank may take to come.
    pub fn patience(&self) -> Duration {
        self.shared.as_ref().map_or(PATIENCE, |shared| lock(shared).patience)
    }

    fn with(&self, work: impl FnOnce(&mut Inner)) {
        if let Some(shared) = &self.shared {
            work(&mut lock(shared));
        }
    }

    /// Exchanges through the engine, if there is one.
    fn exchange(&self, exchange: impl FnOnce(&mut Inner) -> Result<(), GroupError>) -> Result<(), GroupError> {
        self.shared.as_ref().map_or(Ok(()), |shared| exchange(&mut lock(shared)))
    }

    /// `x` becomes the sum of every rank's, the same bits on all of them ([`ProcessGroup::sum`]).
    ///
    /// # Errors
    /// A rank is gone, or brings another length.
    pub fn sum(&self, x: &mut [f32]) -> Result<(), GroupError> {
        self.exchange(|Inner { engine, scratch, .. }| engine.sum(x, scratch))
    }

    /// `all`, one part of equal length a rank, of which this rank's is set, becomes all ranks'.
    ///
    /// # Errors
    /// As [`Group::sum`].
    pub fn gather(&self, all: &mut [u8]) -> Result<(), GroupError> {
        self.exchange(|inner| inner.engine.gather(all))
    }

    /// The same with an error for the user.
    ///
    /// # Errors
    /// As [`Group::sum`].
    pub fn gather_parts(&self, all: &mut [u8]) -> Result<()> {
        self.gather(all).map_err(|e| self.explain(e))
    }

    /// `x` becomes rank 0's.
    ///
    /// # Errors
    /// As [`Group::sum`].
    pub fn broadcast(&self, x: &mut [u8]) -> Result<()> {
        self.exchange(|inner| inner.engine.broadcast(x)).map_err(|e| self.explain(e))
    }

    /// What every rank brings, rank by rank.
    ///
    /// # Errors
    /// As [`Group::sum`].
    pub fn gather_each<T: Serialize + DeserializeOwned>(&self, own: &T) -> Result<Vec<T>> {
        let parts = self.gather_bytes(&serde_json::to_vec(own).expect("plain data"))?;
        let read = |part: Vec<u8>| serde_json::from_slice(&part);
        parts
            .into_iter()
            .map(|part| read(part).map_err(|e| Error::new(format!("what another rank sent cannot be read: {e}"))))
            .collect()
    }

    /// What all ranks have, one after another.
    ///
    /// # Errors
    /// As [`Group::sum`].
    pub fn concat<T: Pod>(&self, own: Vec<T>) -> Result<Vec<T>> {
        if self.shared.is_none() {
            return Ok(own);
        }
        let parts = self.gather_bytes(bytemuck::cast_slice(&own))?;
        Ok(parts.iter().flat_map(|part| bytemuck::pod_collect_to_vec::<u8, T>(part)).collect())
    }

    /// Bytes of every rank, as many as each has.
    fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut lens = vec![0u64; self.size()];
        lens[self.rank] = own.len() as u64;
        self.gather_parts(bytemuck::cast_slice_mut(&mut lens))?;
        let most = lens.iter().max().map_or(0, |len| *len as usize);
        let mut all = vec![0; most * lens.len()];
        all[self.rank * most..][..own.len()].copy_from_slice(own);
        self.gather_parts(&mut all)?;
        Ok(lens.iter().enumerate().map(|(rank, len)| all[rank * most..][..*len as usize].to_vec()).collect())
    }

    /// What rank 0 makes, on all ranks; where it cannot, its error on all of them.
    ///
    /// # Errors
    /// Rank 0's, or those of [`Group::sum`].
    pub fn from_first<T: Serialize + DeserializeOwned>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.shared.is_none() {
            return make();
        }
        let mut bytes = Vec::new();
        let mut made = None;
        if self.is_first() {
            let mut found = make();
            let sent = |found: &Result<T>| {
                let sent: Result<&T, Sent> = found.as_ref().map_err(|e| (e.message.clone(), e.hint.clone()));
                serde_json::to_vec(&sent)
            };
            // A path that is no text, perhaps.
            bytes = sent(&found).unwrap_or_else(|e| {
                found = Err(Error::new(format!("it cannot be sent to other processes: {e}")));
                sent(&found).expect("an error is text")
            });
            made = Some(found);
        }
        let mut len = [bytes.len() as u64];
        self.broadcast(bytemuck::cast_slice_mut(&mut len))?;
        bytes.resize(len[0] as usize, 0);
        self.broadcast(&mut bytes)?;
        let found = made.unwrap_or_else(|| {
            let sent: Result<T, Sent> = serde_json::from_slice(&bytes)
                .map_err(|e| Error::new(format!("what rank 0 sent cannot be read: {e}")))?;
            sent.map_err(|(message, hint)| Error { message, hint })
        });
        found.inspect_err(|_| self.end_together())
    }

    /// This rank's result, if all ranks have one; else the error of the first that has none, on all ranks.
    ///
    /// # Errors
    /// A rank's, which is named, or those of [`Group::sum`].
    pub fn all<T>(&self, own: Result<T>) -> Result<T> {
        if self.shared.is_none() {
            return own;
        }
        let mut failed = vec![0u8; self.size()];
        failed[self.rank] = own.is_err() as u8;
        self.gather_parts(&mut failed)?;
        if !failed.contains(&1) {
            return own;
        }
        let sent: Option<Sent> = own.err().map(|e| (e.message, e.hint));
        let sent = self.gather_each(&sent)?;
        self.end_together();
        let first = sent.into_iter().enumerate().find_map(|(rank, sent)| Some((rank, sent?)));
        Err(match first {
            Some((rank, (message, hint))) => Error { message: self.named(rank, message), hint },
            None => Error::new("a rank failed"),
        })
    }

    /// A message with the rank that it comes from; alone, the message.
    pub fn named(&self, rank: usize, message: String) -> String {
        match &self.shared {
            None => message,
            Some(shared) if shared.place.hosts[rank].is_empty() => format!("rank {rank}: {message}"),
            Some(shared) => format!("rank {rank} on {}: {message}", shared.place.hosts[rank]),
        }
    }

    /// From now on all ranks are on their way to the same end.
    pub fn end_together(&self) {
        if let Some(shared) = &self.shared {
            shared.together.store(true, Ordering::Relaxed);
        }
    }

    /// Whether all ranks have the same error.
    pub fn ends_together(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.together.load(Ordering::Relaxed))
    }

    /// Leaves the group, when all ranks do, at the end of a process whose exit status is `code`. A library that does not let it go is left
    /// behind.
    pub fn finish(&self, code: u8) {
        if self.shared.is_some() {
            thread::spawn(move || {
                thread::sleep(LEAVING);
                errln!(
                    "the processes' library did not end within {} s: what was to be done is done, and the process ends",
                    LEAVING.as_secs()
                );
                exit_at_once(code);
            });
        }
        self.with(|inner| inner.engine.finish());
    }

    /// Ends the processes of all ranks.
    pub fn abort(&self, code: u8) {
        self.with(|inner| inner.engine.abort(code));
    }

    /// What a user reads where the group has failed.
    pub fn explain(&self, e: GroupError) -> Error {
        Error::new(format!("{e}; rank {} of {} cannot go on without it", self.rank, self.size()))
            .hint("the rank that is named reports what went wrong first")
    }
}

/// How long leaving may take. MPICH 4.0 over UCX may wait for ever on a busy machine: one process is in the launcher's barrier already and
/// no longer answers the other, which is still closing its connections.
const LEAVING: Duration = Duration::from_secs(10);

/// Ends the process without the exit handlers of a library that hangs.
fn exit_at_once(code: u8) {
    // SAFETY: what is not written to files and streams is lost, and by now nothing is left.
    #[cfg(unix)]
    unsafe {
        libc::_exit(code.into())
    }
    #[cfg(not(unix))]
    std::process::exit(code.into())
}

fn lock(shared: &Shared) -> MutexGuard<'_, Inner> {
    shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The cores of this machine.
#[cfg(unix)]
fn online_cores() -> usize {
    // SAFETY: the call reads a number of the system.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}

#[cfg(not(unix))]
fn online_cores() -> usize {
    1
}

/// The cores that this process may use, as the system writes them; the same text on ranks that share them.
#[cfg(unix)]
fn allowed_cores() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.map_or(String::new(), |list| list.trim().to_owned())
}
