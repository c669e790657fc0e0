//! A run's log, read for its report: whatever is there, however the run ended.

use crate::error::{Error, Result};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// The rows of a `log.jsonl` by kind, in their order.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    pub steps: Vec<Value>,
    pub epochs: Vec<Value>,
    pub unreadable: Vec<Value>,
    /// Lines that are no JSON: a run that was killed leaves its last line torn.
    pub torn: usize,
}

impl Rows {
    /// Errors: the file cannot be read, or holds no step.
    pub fn read(path: &Path) -> Result<Rows> {
        let cannot = |e: &dyn std::fmt::Display| {
            Error::new(format!("cannot read {}: {e}", path.display())).hint("report takes the folder of a run")
        };
        let mut rows = Rows::default();
        for line in BufReader::new(File::open(path).map_err(|e| cannot(&e))?).split(b'\n') {
            let line = line.map_err(|e| cannot(&e))?;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match serde_json::from_slice::<Value>(&line) {
                Ok(row) if row["kind"] == "step" => rows.steps.push(row),
                Ok(row) if row["kind"] == "epoch" => rows.epochs.push(row),
                Ok(row) if row["kind"] == "unreadable" => rows.unreadable.push(row),
                Ok(_) => (),
                Err(_) => rows.torn += 1,
            }
        }
        match rows.steps.is_empty() {
            true => Err(cannot(&"it has no step of a run yet")),
            false => Ok(rows),
        }
    }
}

/// (step, value) of the rows that have a number under `key`.
pub fn series(rows: &[Value], key: &str) -> Vec<[f64; 2]> {
    rows.iter().filter_map(|row| Some([row["step"].as_f64()?, row[key].as_f64()?])).collect()
}

/// The last number under `key`.
pub fn last(rows: &[Value], key: &str) -> Option<f64> {
    rows.iter().rev().find_map(|row| row[key].as_f64())
}

/// The middle one of the numbers under `key`.
pub fn median(rows: &[Value], key: &str) -> Option<f64> {
    let mut values: Vec<f64> = rows.iter().filter_map(|row| row[key].as_f64()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_lines_and_missing_numbers_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let rows = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Rows::read(&path)
        };
        let step = |i: usize, loss: &str| format!("{{\"kind\":\"step\",\"step\":{i},\"loss\":{loss}}}\n");
        let text = format!("{}{}{}\n{{\"kind\":\"st", step(0, "3.0"), step(1, "null"), step(2, "1.0"));
        let found = rows(&text).unwrap();
        assert_eq!((found.steps.len(), found.epochs.len(), found.torn), (3, 0, 1));
        assert_eq!(series(&found.steps, "loss"), [[0.0, 3.0], [2.0, 1.0]]);
        assert_eq!((last(&found.steps, "loss"), median(&found.steps, "loss")), (Some(1.0), Some(3.0)));
        assert_eq!((last(&found.steps, "other"), median(&found.steps, "other")), (None, None));
        for empty in ["", "\n", "{\"kind\":\"st", "{\"kind\":\"epoch\",\"step\":1}\n", "\u{0}\n"] {
            assert!(rows(empty).unwrap_err().to_string().contains("no step"), "{empty:?}");
        }
    }
}
