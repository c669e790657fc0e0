//! `--time-limit`: when a run must stop in order to have saved in time.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// A time as people write it: `3h55m`, `90m`, seconds (`3600`), and as Slurm does, `3:55:00`, `1-02:00:00`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Duration);

impl FromStr for Limit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Limit> {
        let bad = |what: &str| {
            Error::new(format!("{text:?} is no time{what}")).hint("3h55m, 90m, 3600 (seconds), 3:55:00 or 1-02:00:00")
        };
        let text = text.trim();
        let found = if text.contains(':') || text.contains('-') {
            slurm(text)
        } else if let Ok(seconds) = text.parse() {
            Some(Duration::from_secs(seconds))
        } else {
            humantime::parse_duration(text).ok()
        };
        match found {
            Some(Duration::ZERO) => Err(bad(" to train in")),
            Some(found) => Ok(Limit(found)),
            None if text.matches(':').count() == 1 && !text.contains('-') => Err(bad(": hours or minutes first?")),
            None => Err(bad("")),
        }
    }
}

/// `H:MM:SS`, `D-H`, `D-H:MM`, `D-H:MM:SS`. (`A:B` alone is minutes and seconds to Slurm and hours and minutes to many a reader.)
fn slurm(text: &str) -> Option<Duration> {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (days, clock) = match text.split_once('-') {
        Some((days, clock)) => (Some(number(days)?), clock),
        None => (None, text),
    };
    let parts: Option<Vec<u64>> = clock.split(':').map(number).collect();
    let (hours, minutes, seconds) = match (days, &parts?[..]) {
        (_, &[h, m, s]) => (h, m, s),
        (Some(_), &[h, m]) => (h, m, 0),
        (Some(_), &[h]) => (h, 0, 0),
        _ => return None,
    };
    let hours = days.unwrap_or(0).checked_mul(24)?.checked_add(hours)?;
    let seconds = hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?.checked_add(seconds)?;
    Some(Duration::from_secs(seconds))
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// What the steps of a run, saving it and the end of an epoch take, and how much time is left for them.
pub struct Clock {
    started: Instant,
    limit: Option<Limit>,
    /// The longest of the last steps.
    step: Duration,
    /// The longest save.
    save: Duration,
    /// The longest evaluation at an epoch's end, as far as it is known.
    evaluating: Duration,
}

impl Clock {
    /// `started`: since when the time counts.
    pub fn new(started: Instant, limit: Option<Limit>) -> Clock {
        Clock { started, limit, step: Duration::ZERO, save: Duration::ZERO, evaluating: Duration::ZERO }
    }

    /// The limit, if there is one.
    pub fn limit(&self) -> Option<Limit> {
        self.limit
    }

    /// A step took this long. One that was slow for once is forgotten by and by.
    pub fn step_took(&mut self, time: Duration) {
        self.step = time.max(self.step.mul_f64(0.95));
    }

    pub fn save_took(&mut self, time: Duration) {
        self.save = self.save.max(time);
    }

    pub fn evaluation_took(&mut self, time: Duration) {
        self.evaluating = self.evaluating.max(time);
    }

    /// How long a step takes.
    pub fn step(&self) -> Duration {
        self.step
    }

    /// How long an evaluation takes, as far as it is known.
    pub fn evaluating(&self) -> Duration {
        self.evaluating
    }

    /// Whether there is no time left for another step, what is queued before it (`queue` steps), and a save.
    pub fn no_time_for_a_step(&self, queue: u32) -> bool {
        self.short_of(self.step * (queue + 1) + self.save)
    }

    /// Whether there is no time left for the end of an epoch: evaluation, a numbered checkpoint and a save. `guess`: how long it
    /// takes if that is not known.
    pub fn no_time_for_evaluation(&self, guess: Duration) -> bool {
        let evaluating = if self.evaluating.is_zero() { guess } else { self.evaluating };
        self.short_of(evaluating.saturating_add(self.save * 2))
    }

    /// A quarter more is reckoned with, and a hundredth of the limit, half a minute at most.
    fn short_of(&self, needed: Duration) -> bool {
        self.limit.is_some_and(|Limit(limit)| {
            let spare = (limit / 100).min(Duration::from_secs(30));
            self.started.elapsed() + needed.mul_f64(1.25) + spare > limit
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_people_write_them() {
        for (text, seconds) in [
            ("3h55m", 14_100),
            ("3h 55m", 14_100),
            ("90m", 5400),
            ("90min", 5400),
            ("3600s", 3600),
            ("3600", 3600),
            ("2d", 172_800),
            ("3:55:00", 14_100),
            ("03:55:00", 14_100),
            ("0:90:00", 5400),
            ("1-02:00:00", 93_600),
            ("1-02:30", 95_400),
            ("1-2", 93_600),
            (" 10m ", 600),
        ] {
            assert_eq!(text.parse::<Limit>().unwrap(), Limit(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "", "0", "0s", "0:00:00", "3:55", "1:2:3:4", "-5", "1-", "-", ":", "h", "3x", "1e3", "-1h", "3h-5m",
            "+1:00:00",
        ] {
            let refused = text.parse::<Limit>().unwrap_err();
            assert!(refused.hint.is_some(), "{text}: {refused}");
        }
        let endless = u64::MAX;
        assert!(format!("{endless}-00:00:00").parse::<Limit>().is_err());
        assert!(format!("{endless}:00:00").parse::<Limit>().is_err());
        assert_eq!("3h55m".parse::<Limit>().unwrap().to_string(), "3h 55m");
    }

    #[test]
    fn what_is_printed_is_read() {
        for seconds in [1, 59, 3600, 86_399, 31_557_600, 1 << 40, u64::MAX] {
            let limit = Limit(Duration::from_secs(seconds));
            assert_eq!(limit.to_string().parse::<Limit>().unwrap(), limit);
        }
    }

    #[test]
    fn time_runs_short_before_it_is_over() {
        let seconds = Duration::from_secs;
        let mut clock = Clock::new(Instant::now(), Some(Limit(seconds(1000))));
        clock.step_took(seconds(100));
        clock.save_took(seconds(100));
        assert!(!clock.no_time_for_a_step(2) && !clock.no_time_for_evaluation(seconds(1)));
        assert!(clock.no_time_for_evaluation(seconds(900)));
        clock.evaluation_took(seconds(700));
        assert!(clock.no_time_for_evaluation(Duration::ZERO));
        clock.save_took(seconds(600));
        assert!(clock.no_time_for_a_step(2));
        let mut free = Clock::new(Instant::now(), None);
        free.step_took(seconds(1 << 40));
        assert!(!free.no_time_for_a_step(2));
    }

    #[test]
    fn a_slow_step_is_forgotten() {
        let mut clock = Clock::new(Instant::now(), None);
        clock.step_took(Duration::from_secs(100));
        (0..200).for_each(|_| clock.step_took(Duration::from_secs(1)));
        assert_eq!(clock.step, Duration::from_secs(1));
    }
}
