//! Several processes of this program on one machine, started by the program itself: one for each GPU, without a launcher.
//!
//! The first process starts the others, hands signals on to them and waits. They are known by variables of the environment, as those of
//! other launchers are ([`super::launch`]), and end with the process that has started them.

use super::launch::{Launch, Launcher};
use crate::error::{Error, Result};
use std::path::PathBuf;

/// The variable with a process's number.
pub const RANK: &str = "DINO_RANK";
/// The variable with how many there are.
pub const RANKS: &str = "DINO_RANKS";
/// The variable with the folder in which processes that share no MPI find each other.
pub const RENDEZVOUS: &str = "DINO_RENDEZVOUS";

/// The folder in which the processes of a launch without MPI find each other: the same one for all of them, and for no other launch.
///
/// # Errors
/// They are on several machines and no folder is named that all of them see, or it cannot be made.
pub fn rendezvous(launch: &Launch) -> Result<PathBuf> {
    let var = |name: &str| std::env::var(name).ok();
    let named = std::env::var_os(RENDEZVOUS).map(PathBuf::from);
    #[cfg(unix)]
    let parent = Some(std::os::unix::process::parent_id());
    #[cfg(not(unix))]
    let parent: Option<u32> = None;
    let folder = match (launch.by, named, parent.filter(|_| on_one_machine())) {
        (Launcher::Own, Some(folder), _) => return Ok(folder),
        (_, Some(folder), _) => {
            // What distinguishes one launch from the next; torchrun counts the starts of one.
            let of = ["TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"]
                .map(|name| var(name).unwrap_or_default());
            folder.join(format!("dino-{}", of.join("-").replace(['/', ' '], "_")))
        }
        (_, None, Some(parent)) => {
            let restart = var("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
            std::env::temp_dir().join(format!("dino-{parent}-{restart}"))
        }
        (_, None, None) => {
            return Err(Error::new(format!("started by {} on several machines", launch.by.name())).hint(format!(
                "{RENDEZVOUS}=DIR names a folder that all of them see, a new one for every start, where the processes find each other"
            )));
        }
    };
    let mut make = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut make, 0o700); // what is written there lets a process join
    make.recursive(true).create(&folder).map_err(|e| {
        Error::new(format!("cannot make the folder {}: {e}", folder.display()))
            .hint(format!("{RENDEZVOUS} names another"))
    })?;
    Ok(folder)
}

/// Whether torchrun's processes are all on one machine, as it states.
pub fn on_one_machine() -> bool {
    let var = |name: &str| std::env::var(name).ok();
    var("LOCAL_WORLD_SIZE") == var("WORLD_SIZE")
}

/// Runs this process's command line as `count` processes, until all have ended; returns the exit code. One that fails is named by its
/// own message, and the others end with it.
///
/// # Errors
/// They cannot be started.
#[cfg(unix)]
pub fn start(count: usize) -> Result<u8> {
    unix::start(count)
}

/// This process ends when the one that has started it does.
#[cfg(unix)]
pub fn end_with_parent() {
    std::thread::spawn(|| {
        // The parent writes nothing; its end closes the pipe.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        errln!("the process that has started this one has ended, and so does this one");
        std::process::exit(2);
    });
}

/// There are no signals to hand on: not on this system.
///
/// # Errors
/// Always.
#[cfg(not(unix))]
pub fn start(_count: usize) -> Result<u8> {
    Err(Error::new("several processes are started on Unix only").hint("--gpus with one card"))
}

#[cfg(unix)]
mod unix {
    use super::{Error, RANK, RANKS, RENDEZVOUS, Result};
    use crate::io::signals;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command, ExitStatus, Stdio};
    use std::time::{Duration, Instant};

    /// What a run that was asked to stop exits with.
    const INTERRUPTED: i32 = 130;
    /// How long the others may take to end when one has failed: they may wait for it in vain.
    const AFTER_FAILURE: Duration = Duration::from_secs(3);
    /// The same when it was the first one, which prints for all: there is nothing more to hear.
    const AFTER_FIRST: Duration = Duration::from_millis(100);
    /// The same when one has stopped because it was asked to: so were they.
    const AFTER_STOP: Duration = Duration::from_secs(60);

    pub fn start(count: usize) -> Result<u8> {
        let failed = |what: &str, e: std::io::Error| Error::new(format!("cannot start {count} processes: {what}: {e}"));
        let folder = tempfile::Builder::new().prefix("dino-").tempdir().map_err(|e| failed("no folder for them", e))?;
        // Before any of them is there: a signal that comes meanwhile is handed on.
        let mut signals = signals::hear().map_err(|e| failed("signals cannot be handed on", e))?;
        let program = std::env::current_exe().map_err(|e| failed("the program's own path", e))?;
        let mut running = Running(Vec::new());
        for rank in 0..count {
            let child = Command::new(&program)
                .args(std::env::args_os().skip(1))
                .envs([(RANK, rank.to_string()), (RANKS, count.to_string())])
                .env(RENDEZVOUS, folder.path())
                .stdin(Stdio::piped()) // its end is that of this process
                .process_group(0) // Ctrl-C comes here, and is handed on once
                .spawn();
            running.0.push((rank, child.map_err(|e| failed(&program.display().to_string(), e))?));
        }
        let (mut code, mut deadline, mut killed, mut handed_on) = (0, None, false, Vec::new());
        while !running.0.is_empty() {
            for signal in signals.pending() {
                running.signal(signal);
                handed_on.push(signal);
            }
            for (rank, status) in running.ended() {
                let asked = status.signal().is_some_and(|signal| handed_on.contains(&signal));
                let of_one = if asked { INTERRUPTED } else { explained(rank, status, count, killed) };
                if (rank, of_one) == (0, 0) {
                    deadline.get_or_insert(Instant::now() + AFTER_STOP); // it is done last
                }
                if of_one != 0 && (code == 0 || (code == INTERRUPTED && of_one != INTERRUPTED)) {
                    let wait = match (of_one, rank) {
                        (INTERRUPTED, _) => AFTER_STOP,
                        (_, 0) => AFTER_FIRST,
                        _ => AFTER_FAILURE,
                    };
                    (code, deadline) = (of_one, Some(Instant::now() + wait));
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                running.signal(libc::SIGKILL);
                killed = true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(u8::try_from(code).unwrap_or(2))
    }

    /// A process's exit code; one that was killed has printed nothing, so this is said for it.
    fn explained(rank: usize, status: ExitStatus, count: usize, killed: bool) -> i32 {
        match (status.code(), status.signal()) {
            (Some(code), _) => code,
            (None, signal) => {
                if !killed {
                    let signal = signal.map_or("an unknown signal".into(), |signal| format!("signal {signal}"));
                    errln!("rank {rank} of {count} was ended by {signal}; the others end too");
                }
                2
            }
        }
    }

    /// The processes that have not ended, with their ranks. None stays behind.
    struct Running(Vec<(usize, Child)>);

    impl Running {
        fn signal(&self, signal: i32) {
            for (_, child) in &self.0 {
                // SAFETY: a process that was started here and has not been waited for: its number is no other's.
                unsafe { libc::kill(child.id() as i32, signal) };
            }
        }

        /// Those that have ended since the last call.
        fn ended(&mut self) -> Vec<(usize, ExitStatus)> {
            let mut found = Vec::new();
            self.0.retain_mut(|(rank, child)| match child.try_wait() {
                Ok(Some(status)) => {
                    found.push((*rank, status));
                    false
                }
                _ => true,
            });
            found
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.signal(libc::SIGKILL);
            self.0.iter_mut().for_each(|(_, child)| _ = child.wait());
        }
    }
}
