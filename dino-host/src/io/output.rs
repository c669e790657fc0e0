//! The only code that writes to stdout and stderr.
//!
//! Messages (`errln!`, on stderr) may have no reader: a terminal that was closed, `2>&1 | head`, a full disk. The work goes on,
//! and [`messages_lost`] reports why they were lost. Results (`outln!`, on stdout) are what a command is run for: [`finish`] gives
//! an error where one could not be written, but for a reader that went away, which has what it wanted.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};

/// Why writing to a stream ended, once it has.
struct Stream(Mutex<Option<(ErrorKind, String)>>);

/// Another process prints for this one.
static SILENT: AtomicBool = AtomicBool::new(false);

/// From now on nothing is written: of several processes one prints.
pub fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

/// From now on it is written again: this one has an error of its own.
pub fn print_again() {
    SILENT.store(false, Ordering::Relaxed);
}

/// Only results and errors are wanted.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether messages are left out from now on; results and errors are not.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether they are.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

static MESSAGES: Stream = Stream(Mutex::new(None));
static RESULTS: Stream = Stream(Mutex::new(None));

impl Stream {
    /// Writes unless an earlier write failed: half a table after a gap would look like a full one.
    fn write(&self, to: &mut dyn Write, text: &str) {
        if SILENT.load(Ordering::Relaxed) {
            return;
        }
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.is_none()
            && let Err(e) = write_all(to, text.as_bytes())
        {
            *failed = Some((e.kind(), e.to_string()));
        }
    }

    fn failed(&self) -> Option<(ErrorKind, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A reader that is slow is waited for, also where it made the stream non-blocking (terminals share that flag).
fn write_all(to: &mut dyn Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => (),
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => return Err(e),
        }
    }
    flush(to)
}

fn flush(to: &mut dyn Write) -> io::Result<()> {
    loop {
        match to.flush() {
            Err(e) if e.kind() == ErrorKind::Interrupted => (),
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
            done => return done,
        }
    }
}

/// A line to stderr that tells of an error; `failln!` formats it.
pub fn failure(line: Arguments) {
    MESSAGES.write(&mut io::stderr(), &format!("{line}\n"));
}

/// A line to stderr; `errln!` formats it.
pub fn message(line: Arguments) {
    if is_quiet() {
        return;
    }
    MESSAGES.write(&mut io::stderr(), &format!("{line}\n"));
}

/// A line to stdout; `outln!` formats it.
pub fn result(line: Arguments) {
    RESULTS.write(&mut io::stdout(), &format!("{line}\n"));
}

/// Why messages are no longer written, if so.
pub fn messages_lost() -> Option<String> {
    MESSAGES.failed().map(|(_, why)| why)
}

/// To be called when a command has written all its results.
///
/// # Errors
/// A result that could not be written, but for a pipe whose reader went away.
pub fn finish() -> Result<()> {
    match RESULTS.failed() {
        Some((kind, why)) if kind != ErrorKind::BrokenPipe => {
            Err(Error::new(format!("cannot write the results to stdout: {why}"))
                .hint("is there space left on the disk? Run it again"))
        }
        _ => Ok(()),
    }
}

/// Writes a line to stderr, where a message that cannot be written stops nothing.
#[macro_export]
macro_rules! errln {
    ($($token:tt)*) => { $crate::io::output::message(format_args!($($token)*)) };
}

/// Writes a line about an error to stderr, also where messages are not wanted.
#[macro_export]
macro_rules! failln {
    ($($token:tt)*) => { $crate::io::output::failure(format_args!($($token)*)) };
}

/// Writes a line of a command's results to stdout.
#[macro_export]
macro_rules! outln {
    ($($token:tt)*) => { $crate::io::output::result(format_args!($($token)*)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a few bytes at a time, fails at times, and for good after `space` bytes.
    struct Rough {
        taken: Vec<u8>,
        space: usize,
        calls: usize,
    }

    impl Write for Rough {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            match self.calls % 3 {
                0 => return Err(ErrorKind::WouldBlock.into()),
                1 => return Err(ErrorKind::Interrupted.into()),
                _ => (),
            }
            let n = bytes.len().min(3).min(self.space - self.taken.len());
            if n == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.taken.extend(&bytes[..n]);
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_stream_is_waited_for_and_a_failed_one_left_alone() {
        let stream = Stream(Mutex::new(None));
        let mut to = Rough { taken: Vec::new(), space: 20, calls: 0 };
        stream.write(&mut to, "twelve bytes");
        assert_eq!(to.taken, b"twelve bytes");
        assert!(stream.failed().is_none());
        stream.write(&mut to, "twelve bytes");
        assert_eq!(stream.failed().unwrap().0, ErrorKind::StorageFull);
        to.space = 100;
        stream.write(&mut to, "late");
        assert_eq!(to.taken, b"twelve bytestwelve b", "nothing follows a gap");
    }
}
