//! What a run prints while it goes on.

use crate::io::output;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Where a run that is one of several draws its bar, and what its lines begin with.
#[derive(Clone)]
pub struct Shared {
    /// The bars of all.
    pub bars: MultiProgress,
    /// The run's name.
    pub label: String,
}

/// A progress bar on a terminal, plain lines otherwise.
pub struct Screen {
    bar: Option<ProgressBar>,
    shared: Option<Shared>,
    total: u64,
    started: Instant,
    first: u64,
    spoke: Instant,
}

impl Screen {
    /// `visible`: of several processes one alone draws.
    pub fn new(total: u64, done: u64, shared: Option<Shared>, visible: bool) -> Screen {
        let bar = (visible && (std::io::stderr().is_terminal() && !output::is_quiet())).then(|| {
            let bar = ProgressBar::new(total).with_position(done);
            let style = ProgressStyle::with_template("{prefix}{bar:30} {pos}/{len} steps, {eta} left, {msg}");
            let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            match &shared {
                Some(Shared { bars, label }) => bars.add(bar.with_prefix(format!("{label}: "))),
                None => bar,
            }
        });
        Screen { bar, shared, total, started: Instant::now(), first: done, spoke: Instant::now() }
    }

    pub fn step(&mut self, done: u64, epoch: u64, epochs: u64, loss: f64, rate: f64, wait: f64) {
        let message = format!(
            "epoch {}/{epochs}, loss {loss:.4}, {rate:.0} images/s, data wait {:.0} %",
            epoch + 1,
            100.0 * wait
        );
        match &self.bar {
            Some(bar) => {
                bar.set_message(message);
                bar.set_position(done);
            }
            None if self.spoke.elapsed() > Duration::from_secs(20) => {
                self.spoke = Instant::now();
                let pace = self.started.elapsed().as_secs_f64() / (done - self.first) as f64;
                let left = pace * (self.total - done) as f64;
                self.print(&format!("step {done}/{}, {message}, {left:.0} s left", self.total));
            }
            None => (),
        }
    }

    pub fn print(&mut self, text: &str) {
        match (&self.shared, &self.bar) {
            (Some(Shared { bars, label }), _) => bars.suspend(|| errln!("{label}: {text}")),
            (None, Some(bar)) => bar.suspend(|| errln!("{text}")),
            (None, None) => errln!("{text}"),
        }
    }

    pub fn finish(&mut self) {
        match (&self.shared, &self.bar) {
            (Some(_), Some(bar)) => bar.finish_and_clear(),
            (None, Some(bar)) => bar.finish(),
            (_, None) => (),
        }
    }
}
