//! Ranks that a launcher without MPI has started (torchrun), without GPUs: every two of them are connected by TCP.
//!
//! They find each other by a folder ([`super::start::rendezvous`]), in which each writes where it listens. As with MPI, this engine moves bytes
//! and adds nothing.

use super::launch::Launch;
use super::messages::{self, Messages, have_not_come};
use super::{Engine, PATIENCE, start};
use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use dino_kernel::group::{GroupError, ProcessGroup};
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For so long a rank that waits asks without pause; then so often.
const BUSY: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_micros(50);
/// What the ranks beside the first one wait longer: where it can name who is missing, it does.
const GRACE: Duration = Duration::from_secs(5);

/// All processes of the launch.
pub struct Sockets {
    rank: usize,
    /// Connections, rank by rank; none to itself.
    peers: Vec<Option<TcpStream>>,
    patience: Duration,
    rendezvous: PathBuf,
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} (TCP)", self.rank, self.peers.len())
    }
}

/// A number that nobody guesses: whoever connects shows that it has read it in the folder.
fn secret() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Where a rank writes where it listens.
fn place_of(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("rank-{rank}"))
}

impl Sockets {
    /// Joins the processes of the launch.
    ///
    /// # Errors
    /// The processes do not find each other, or cannot be connected.
    pub fn join(launch: &Launch) -> Result<Sockets> {
        let Some((rank, size)) = launch.place else {
            return Err(Error::new(format!("{} does not state which process this is", launch.by.name())));
        };
        let rendezvous = start::rendezvous(launch)?;
        let failed =
            |what: String, e: std::io::Error| Error::new(format!("processes cannot be connected: {what}: {e}"));
        // Of one machine's processes no other machine can be one.
        let (bind, host) = match start::on_one_machine() {
            true => ("127.0.0.1", "127.0.0.1".to_owned()),
            false => ("0.0.0.0", crate::io::host()),
        };
        let listener = TcpListener::bind((bind, 0)).map_err(|e| failed("no port".into(), e))?;
        let port = listener.local_addr().map_err(|e| failed("no port".into(), e))?.port();
        let secret = secret();
        write_atomically(&place_of(&rendezvous, rank), |f| writeln!(f, "{host} {port} {secret}"))?;
        let started = Instant::now();
        let late = |missing: usize| {
            let waited = humantime::format_duration(PATIENCE);
            Error::new(format!("{} for {waited}", have_not_come([missing])))
                .hint(format!("{} names a folder that all processes see", start::RENDEZVOUS))
        };
        let mut peers: Vec<Option<TcpStream>> = (0..size).map(|_| None).collect();
        // Each connects to those before it, and is connected to by those after it.
        for (peer, stream) in peers.iter_mut().enumerate().take(rank) {
            *stream = Some(loop {
                if let Some(stream) = connect(&place_of(&rendezvous, peer), rank) {
                    break stream;
                }
                if started.elapsed() > PATIENCE {
                    return Err(late(peer));
                }
                std::thread::sleep(Duration::from_millis(20));
            });
        }
        listener.set_nonblocking(true).map_err(|e| failed("waiting".into(), e))?;
        while let Some(missing) = (rank + 1..size).find(|peer| peers[*peer].is_none()) {
            match listener.accept() {
                Ok((stream, _)) => {
                    if let Some(peer) = welcome(&stream, secret).filter(|peer| (rank + 1..size).contains(peer)) {
                        peers[peer] = Some(stream);
                    }
                }
                Err(_) if started.elapsed() > PATIENCE => return Err(late(missing)),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        for stream in peers.iter().flatten() {
            stream
                .set_nodelay(true)
                .and_then(|()| stream.set_nonblocking(true))
                .map_err(|e| failed("a socket".into(), e))?;
        }
        let _ = std::fs::remove_file(place_of(&rendezvous, rank));
        Ok(Sockets { rank, peers, patience: PATIENCE, rendezvous })
    }

    fn end(&self, why: &str) -> ! {
        messages::end(self.rank, self.peers.len(), &why)
    }
}

/// A connection to the rank that has written this file, if it is there: it gets the number that it has written, and this rank.
fn connect(file: &Path, rank: usize) -> Option<TcpStream> {
    let text = std::fs::read_to_string(file).ok()?;
    let mut fields = text.split_whitespace();
    let (host, port, secret) =
        (fields.next()?, fields.next()?.parse::<u16>().ok()?, fields.next()?.parse::<u64>().ok()?);
    let mut stream = TcpStream::connect((host, port)).ok()?;
    stream.write_all(&[secret.to_le_bytes(), (rank as u64).to_le_bytes()].concat()).ok()?;
    let mut answer = [0];
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.read_exact(&mut answer).ok()?; // nothing comes of one that listens no more, or to others
    stream.set_read_timeout(None).ok()?;
    Some(stream)
}

/// The rank of whoever has connected, if it knows the number.
fn welcome(mut stream: &TcpStream, secret: u64) -> Option<usize> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut numbers = [[0; 8]; 2];
    for number in &mut numbers {
        stream.read_exact(number).ok()?;
    }
    let [known, rank] = numbers.map(u64::from_le_bytes);
    if known != secret {
        return None;
    }
    stream.write_all(&[1]).ok()?;
    stream.set_read_timeout(None).ok()?;
    usize::try_from(rank).ok()
}

/// A message under way: its length, and its bytes.
struct Pending<T> {
    peer: usize,
    head: [u8; 8],
    bytes: T,
    /// Of both together.
    done: usize,
}

impl<T: AsRef<[u8]>> Pending<T> {
    fn is_done(&self) -> bool {
        self.done == 8 + self.bytes.as_ref().len()
    }
}

impl Messages for Sockets {
    fn place(&self) -> (usize, usize) {
        (self.rank, self.peers.len())
    }

    fn transfer<'a>(
        &mut self,
        receives: impl Iterator<Item = (usize, &'a mut [u8])>,
        sends: impl Iterator<Item = (usize, &'a [u8])>,
    ) {
        let head = |bytes: &[u8]| (bytes.len() as u64).to_le_bytes();
        let mut receives: Vec<_> =
            receives.map(|(peer, bytes)| Pending { peer, head: [0; 8], bytes, done: 0 }).collect();
        let mut sends: Vec<_> =
            sends.map(|(peer, bytes)| Pending { peer, head: head(bytes), bytes, done: 0 }).collect();
        let patience = if self.rank == 0 { self.patience } else { self.patience + GRACE };
        let mut moved_at = Instant::now();
        while !receives.is_empty() || !sends.is_empty() {
            let mut moved = 0;
            for message in &mut sends {
                let from =
                    if message.done < 8 { &message.head[message.done..] } else { &message.bytes[message.done - 8..] };
                moved += self.step(message.peer, |mut stream| stream.write(from), &mut message.done);
            }
            for message in &mut receives {
                let in_head = message.done < 8;
                let to =
                    if in_head { &mut message.head[message.done..] } else { &mut message.bytes[message.done - 8..] };
                moved += self.step(message.peer, |mut stream| stream.read(to), &mut message.done);
                if in_head && message.done == 8 {
                    let (len, want) = (u64::from_le_bytes(message.head), message.bytes.len());
                    if len != want as u64 {
                        let peer = message.peer;
                        self.end(&format!("rank {peer} brings {len} bytes, {want} are waited for"));
                    }
                }
            }
            sends.retain(|message| !message.is_done());
            receives.retain(|message| !message.is_done());
            let waited = moved_at.elapsed();
            if moved > 0 {
                moved_at = Instant::now();
            } else if waited > patience {
                let missing = receives.iter().map(|m| m.peer).chain(sends.iter().map(|m| m.peer));
                let (who, waited) = (have_not_come(missing), humantime::format_duration(self.patience));
                self.end(&format!(
                    "{who} for {waited}: it hangs, or its machine cannot be reached (--rank-timeout sets how long is waited)"
                ));
            } else if waited > BUSY {
                std::thread::sleep(PAUSE);
            } else {
                std::thread::yield_now();
            }
        }
    }
}

impl Sockets {
    /// Reads or writes what can be moved at once, and counts it.
    fn step(&self, peer: usize, work: impl FnOnce(&TcpStream) -> std::io::Result<usize>, done: &mut usize) -> usize {
        let Some(stream) = &self.peers[peer] else { return 0 };
        use ErrorKind::*;
        match work(stream) {
            Ok(n @ 1..) => {
                *done += n;
                n
            }
            Err(e) if matches!(e.kind(), WouldBlock | Interrupted) => 0,
            Ok(_) => self.end(&format!("rank {peer} has left")),
            Err(e) if matches!(e.kind(), ConnectionReset | ConnectionAborted | BrokenPipe) => {
                self.end(&format!("rank {peer} has left"))
            }
            Err(e) => self.end(&format!("rank {peer} cannot be reached: {e}")),
        }
    }
}

impl Engine for Sockets {
    fn library(&self) -> String {
        "TCP".into()
    }

    fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    fn finish(&mut self) {
        if self.rank == 0 {
            let _ = std::fs::remove_dir(&self.rendezvous); // unless it is the user's own, with something in it
        }
    }

    fn abort(&mut self, code: u8) {
        std::process::exit(code.into()); // whoever started this process ends the others
    }
}

impl ProcessGroup for Sockets {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.peers.len()
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
