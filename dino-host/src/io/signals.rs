//! Signals that ask a run to save and stop.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Two signals within this time are one request, unless somebody presses Ctrl-C: what hangs up or ends a job often sends two.
const ONE_REQUEST: Duration = Duration::from_secs(1);

/// What a signal does, given when the first one came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Save,
    EndAtOnce,
    Nothing,
}

fn answer(since_first: Option<Duration>, keyboard: bool) -> Answer {
    match since_first {
        None => Answer::Save,
        Some(since) if keyboard || since > ONE_REQUEST => Answer::EndAtOnce,
        Some(_) => Answer::Nothing,
    }
}

/// Sets `stop` and prints so at the first signal; the second one ends the program with 130.
fn receive(name: &str, keyboard: bool, first: &mut Option<Instant>, stop: &AtomicBool) {
    match answer(first.map(|first| first.elapsed()), keyboard) {
        Answer::Save => {
            *first = Some(Instant::now());
            stop.store(true, Relaxed);
            errln!("{name}: stopping after this step; once more to stop at once");
        }
        Answer::EndAtOnce => std::process::exit(130),
        Answer::Nothing => (),
    }
}

/// The signals that ask a run to stop: Ctrl-C, the end of a session, and what Slurm and others send before the time is over.
#[cfg(unix)]
const ALL: [(i32, &str); 6] = {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU};
    [
        (SIGINT, "SIGINT"),
        (SIGTERM, "SIGTERM"),
        (SIGHUP, "SIGHUP"),
        (SIGUSR1, "SIGUSR1"),
        (SIGUSR2, "SIGUSR2"),
        (SIGXCPU, "SIGXCPU"),
    ]
};

/// From now on these signals come here, and have no other meaning. One that was ignored when the program began, as under `nohup`, stays
/// ignored.
///
/// # Errors
/// The system refuses.
#[cfg(unix)]
pub fn hear() -> std::io::Result<signal_hook::iterator::Signals> {
    signal_hook::iterator::Signals::new(ALL.map(|(signal, _)| signal).into_iter().filter(|signal| !is_ignored(*signal)))
}

/// From now on a signal that asks a run to stop sets `stop` ([`hear`]).
///
/// To be called once in a process; where the system refuses, signals keep their usual meaning.
#[cfg(unix)]
pub fn watch(stop: &'static AtomicBool) {
    let Ok(mut signals) = hear() else { return };
    std::thread::spawn(move || {
        let mut first = None;
        for signal in signals.forever() {
            let name = ALL.iter().find(|(known, _)| *known == signal).map_or("a signal", |(_, name)| name);
            receive(name, signal == signal_hook::consts::SIGINT, &mut first, stop);
        }
    });
}

/// Whether a signal is ignored at present.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let mut found = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call only writes the present one, completely unless it fails, to memory made for it.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), found.as_mut_ptr()) == 0
            && found.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// From now on Ctrl-C and what ends a console program set `stop`.
#[cfg(not(unix))]
pub fn watch(stop: &'static AtomicBool) {
    let mut first = None;
    // This fails only if a handler is set already; the usual meaning stays.
    let _ = ctrlc::set_handler(move || receive("Ctrl-C", true, &mut first, stop));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_request_ends_the_program_and_an_echo_of_the_first_does_not() {
        assert_eq!(answer(None, false), Answer::Save);
        assert_eq!(answer(Some(Duration::from_millis(50)), false), Answer::Nothing);
        assert_eq!(answer(Some(Duration::from_millis(50)), true), Answer::EndAtOnce);
        assert_eq!(answer(Some(Duration::from_secs(3)), false), Answer::EndAtOnce);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_ignored_is_known() {
        // Rust's runtime ignores SIGPIPE; nobody ignores SIGURG.
        assert!(is_ignored(libc::SIGPIPE) && !is_ignored(libc::SIGURG) && !is_ignored(12345));
    }
}
