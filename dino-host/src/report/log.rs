//! The rows of a log, as much of them as a report needs, read line by line: a long run's log has millions.

use crate::error::Error;
use crate::train::collapse::CollapseDetector;
use crate::train::metrics::{self, ENTROPY, LOSS, LOSS_MINUS_LN_K, METRICS};
use dino_kernel::objective::Divergence;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Rows of tables and lists that are shown at most.
pub const LISTED: usize = 100;

/// A line of the log. What is missing or null is `None`.
#[derive(serde::Deserialize)]
struct Line {
    kind: String,
    step: u64,
    epoch: Option<u64>,
    seconds: Option<f64>,
    time: Option<f64>,
    train_loss: Option<f64>,
    knn_top1: Option<f64>,
    knn_top1_student: Option<f64>,
    feature_rank: Option<f64>,
    feature_width: Option<usize>,
    cosine_spread: Option<f64>,
    knn_pixels: Option<f64>,
    knn_before: Option<f64>,
    verdict: Option<String>,
    image: Option<String>,
    error: Option<String>,
    #[serde(flatten)]
    metrics: Metrics,
}

/// The metrics of a step's row; other keys are skipped.
struct Metrics([Option<f64>; METRICS.len()]);

impl<'de> Deserialize<'de> for Metrics {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Metrics, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Metrics;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a row of the log")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut row: A) -> Result<Metrics, A::Error> {
                let mut found = [None; METRICS.len()];
                while let Some(key) = row.next_key::<Cow<str>>()? {
                    match metrics::column(&key) {
                        Some(column) => found[column] = row.next_value()?,
                        None => drop(row.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Metrics(found))
            }
        }
        from.deserialize_map(Keys)
    }
}

/// An epoch's row.
pub struct Epoch {
    pub step: u64,
    pub epoch: u64,
    pub loss: Option<f64>,
    pub teacher: Option<f64>,
    pub student: Option<f64>,
    pub rank: Option<f64>,
    /// Columns of the features, and the standard deviation of their cosines.
    pub width: Option<usize>,
    pub spread: Option<f64>,
    pub verdict: String,
}

#[derive(Default)]
pub struct Rows {
    /// Step, and a number a column, NaN where there is none.
    pub steps: Vec<(u64, [f32; METRICS.len()])>,
    pub epochs: Vec<Epoch>,
    /// Image and why it could not be read, of the first [`LISTED`].
    pub unreadable: Vec<(String, String)>,
    /// How many could not be read.
    pub unreadable_count: usize,
    /// Lines that are no rows: torn or damaged.
    pub bad_lines: usize,
    /// Seconds that the run had gone on for, at its last row.
    pub seconds: Option<f64>,
    /// When the run began, in seconds since 1970.
    pub begun: Option<f64>,
    /// ln K, as the rows have it.
    pub ln_k: Option<f64>,
    /// k-NN of pixels and of the teacher before training, as the run measured them.
    pub pixels: Option<f64>,
    pub before: Option<f64>,
}

impl Rows {
    /// Reads a log. Lines that cannot be parsed are counted.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(path: &Path) -> Result<Rows, Error> {
        let bad = |e: std::io::Error| {
            Error::new(format!("cannot read {}: {e}", path.display()))
                .hint("report takes the folder of a run, as `train --out` named it")
        };
        let (mut rows, mut reader) = (Rows::default(), BufReader::new(File::open(path).map_err(bad)?));
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).map_err(bad)? > 0 {
            match serde_json::from_slice(&line) {
                Ok(row) => rows.take(row),
                Err(_) => rows.bad_lines += line.iter().any(|b| !b.is_ascii_whitespace()) as usize,
            }
            line.clear();
        }
        rows.settle();
        Ok(rows)
    }

    /// In the order of steps, each once: of a step that was taken again, after a crash or in a copied log, the last row counts.
    fn settle(&mut self) {
        fn last_of_each<T>(rows: &mut Vec<T>, key: impl Fn(&T) -> u64) {
            if rows.is_sorted_by(|a, b| key(a) < key(b)) {
                return;
            }
            // Stable: the last row of a step stays its last, and, reversed, is the one that is kept.
            rows.sort_by_key(|row| key(row));
            rows.reverse();
            rows.dedup_by_key(|row| key(row));
            rows.reverse();
        }
        last_of_each(&mut self.steps, |row| row.0);
        last_of_each(&mut self.epochs, |row| row.step);
    }

    fn take(&mut self, l: Line) {
        self.seconds = l.seconds.or(self.seconds);
        self.begun = self.begun.or(l.time.zip(l.seconds).map(|(time, seconds)| time - seconds));
        match l.kind.as_str() {
            "step" => {
                let Metrics(found) = l.metrics;
                let ln_k = || Some(found[LOSS]? - found[LOSS_MINUS_LN_K]?);
                self.ln_k = self.ln_k.or_else(ln_k);
                self.steps.push((l.step, found.map(|x| x.map_or(f32::NAN, |x| x as f32))));
            }
            "epoch" => self.epochs.push(Epoch {
                step: l.step,
                epoch: l.epoch.unwrap_or(self.epochs.len() as u64),
                loss: l.train_loss,
                teacher: l.knn_top1,
                student: l.knn_top1_student,
                rank: l.feature_rank,
                width: l.feature_width,
                spread: l.cosine_spread,
                verdict: l.verdict.unwrap_or_default(),
            }),
            "baseline" => (self.pixels, self.before) = (l.knn_pixels, l.knn_before),
            "unreadable" => {
                self.unreadable_count += 1;
                if self.unreadable.len() < LISTED {
                    self.unreadable.push((l.image.unwrap_or_default(), l.error.unwrap_or_default()));
                }
            }
            _ => (),
        }
    }

    /// Steps of an epoch, if one was finished.
    pub fn per_epoch(&self) -> Option<f64> {
        self.epochs.first().map(|e| (e.step + 1) as f64 / (e.epoch + 1) as f64)
    }

    /// The watch of training over these rows.
    pub fn watch(&self, divergence: Divergence, prototypes: usize) -> CollapseDetector {
        let mut detector = CollapseDetector::new(prototypes);
        for (_, row) in &self.steps {
            if row[ENTROPY].is_finite() && row[LOSS].is_finite() {
                detector.step(divergence, row[LOSS] as f64, row[ENTROPY] as f64);
            }
        }
        detector
    }

    /// Mean of the last numbers of a column, at most `count`; those that are none are left out.
    pub fn tail(&self, column: usize, count: usize) -> Option<f64> {
        let last: Vec<f64> =
            self.steps.iter().rev().map(|r| r.1[column] as f64).filter(|x| x.is_finite()).take(count).collect();
        (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::metrics::GRAD_NORM;

    fn read(lines: &[String]) -> Rows {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        Rows::read(file.path()).unwrap()
    }

    #[test]
    fn a_step_that_was_taken_again_counts_once_and_rows_come_in_the_order_of_steps() {
        let step = |n: u64, loss: f64| format!(r#"{{"kind": "step", "step": {n}, "loss": {loss}}}"#);
        let epoch = |n: u64, loss: f64| {
            format!(r#"{{"kind": "epoch", "step": {n}, "epoch": {}, "train_loss": {loss}}}"#, n / 2)
        };
        let lines = [
            step(0, 9.0),
            step(1, 8.0),
            epoch(1, 8.5),
            step(2, 7.0),
            step(3, 6.0),
            epoch(3, 6.5),
            // From the checkpoint of step 2 on again.
            step(2, 5.0),
            step(3, 4.0),
            epoch(3, 4.5),
            step(4, 3.0),
            // Two logs in one.
            step(1, 2.0),
        ];
        let rows = read(&lines);
        let steps: Vec<(u64, f32)> = rows.steps.iter().map(|row| (row.0, row.1[LOSS])).collect();
        assert_eq!(steps, [(0, 9.0), (1, 2.0), (2, 5.0), (3, 4.0), (4, 3.0)]);
        let epochs: Vec<_> = rows.epochs.iter().map(|row| (row.step, row.loss)).collect();
        assert_eq!(epochs, [(1, Some(8.5)), (3, Some(4.5))]);
        assert_eq!(rows.tail(LOSS, 2), Some(3.5));
    }

    #[test]
    fn what_is_no_number_is_a_gap_and_what_is_no_row_is_counted() {
        let lines = [
            r#"{"kind": "step", "step": 0, "loss": null, "grad_norm": 1e300}"#,
            r#"{"kind": "step", "step": 1, "loss": NaN}"#,
            r#"{"kind": "step", "step": 2, "loss": 2.0, "loss_minus_ln_k": -3.5}"#,
            r#"{"kind": "step", "step": 3, "loss": 1e999}"#,
            r#"{"kind": "step", "step": -1, "loss": 1.0}"#,
            "\0\0\0",
            "",
            r#"{"kind": "other", "step": 9}"#,
        ];
        let rows = read(&lines.map(String::from));
        assert_eq!((rows.steps.len(), rows.bad_lines), (2, 4));
        assert!(rows.steps[0].1[LOSS].is_nan() && rows.steps[0].1[GRAD_NORM].is_infinite());
        assert_eq!((rows.tail(LOSS, 9), rows.tail(GRAD_NORM, 9), rows.ln_k), (Some(2.0), None, Some(5.5)));
    }

    #[test]
    fn of_many_unreadable_images_the_first_are_named_and_all_counted() {
        let line = |i: usize| format!(r#"{{"kind": "unreadable", "step": 0, "image": "{i}.png", "error": "torn"}}"#);
        let rows = read(&(0..1000).map(line).collect::<Vec<_>>());
        assert_eq!((rows.unreadable.len(), rows.unreadable_count), (LISTED, 1000));
        assert_eq!(rows.unreadable[99], ("99.png".into(), "torn".into()));
    }
}
