//! How far a long command is: a bar on a terminal, a line now and then otherwise.

use crate::io::output;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Counts things up to a total.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// What is counted, in the plural.
    what: &'static str,
    done: usize,
    total: usize,
    started: Instant,
    spoke: Instant,
}

impl Progress {
    /// `what`: what is counted, in the plural.
    pub fn new(total: usize, what: &'static str) -> Progress {
        let bar = (std::io::stderr().is_terminal() && !output::is_quiet()).then(|| {
            let style =
                ProgressStyle::with_template(&format!("{{bar:30}} {{pos}}/{{len}} {what}, {{per_sec}}, {{eta}} left"));
            ProgressBar::new(total as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress { bar, what, done: 0, total, started: Instant::now(), spoke: Instant::now() }
    }

    /// One more is done.
    pub fn tick(&mut self) {
        self.done += 1;
        match &self.bar {
            Some(bar) => bar.inc(1),
            None if self.spoke.elapsed() > Duration::from_secs(20) => {
                self.spoke = Instant::now();
                let (done, total, what) = (self.done, self.total, self.what);
                let rate = done as f64 / self.started.elapsed().as_secs_f64();
                let left = total.saturating_sub(done) as f64 / rate;
                errln!("{done} of {total} {what}, {rate:.1} {what}/s, {left:.0} s left");
            }
            None => (),
        }
    }
}
