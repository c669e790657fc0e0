//! `log.jsonl`, the numbers of a run.

use crate::data::Unreadable;
use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use crate::io::json::number;
use crate::train::clock::Clock;
use crate::train::tensorboard::{self, Events};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// `log.jsonl`: one object a line, flushed line by line, and beside it the same for TensorBoard.
///
/// Every row also has `time`, seconds since 1970, and `seconds`, those that the run has gone on for, breaks left out.
pub struct Log {
    path: PathBuf,
    file: File,
    events: Events,
    /// How long the run had gone on when the log was opened.
    before: f64,
    opened: Instant,
}

impl Log {
    /// Opens the log of a run that has done `steps` steps, dropping rows from beyond them (of a run that was killed after its last
    /// checkpoint). `steps` = 0 starts an empty one. `keep` gets every other row and decides whether it stays.
    ///
    /// # Errors
    /// The log or the event file beside it cannot be read or written.
    pub fn open(path: &Path, steps: u64, mut keep: impl FnMut(&Value) -> bool) -> Result<Log> {
        let cannot = |e: std::io::Error| Error::new(format!("cannot write {}: {e}", path.display()));
        let (mut kept, mut events, mut before) = (Vec::new(), Vec::new(), 0.0);
        if steps > 0 && path.exists() {
            for line in BufReader::new(File::open(path).map_err(cannot)?).lines() {
                // A torn last line is a row from beyond the checkpoint as well.
                let Ok(line) = line else { break };
                let Ok(value) = serde_json::from_str::<Value>(&line) else { break };
                if value["step"].as_u64().is_some_and(|s| s < steps) && keep(&value) {
                    before = value["seconds"].as_f64().unwrap_or(before);
                    events.extend(tensorboard::record(&value));
                    kept.push(line);
                }
            }
        }
        write_atomically(path, |f| kept.iter().try_for_each(|line| writeln!(f, "{line}")))?;
        let file = OpenOptions::new().append(true).open(path).map_err(cannot)?;
        // Not kept as it was but made again, so that it can hold nothing that the log does not.
        let events = Events::create(&path.with_file_name(tensorboard::FILE), [events])?;
        Ok(Log { path: path.to_owned(), file, events, before, opened: Instant::now() })
    }

    /// The same for a run that may go on: `clock` learns what its evaluations took, `unreadable` which images are known to be. Where its
    /// last epoch is `open`, that epoch's row is dropped, for it is evaluated once more. `each` gets the rows that stay.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn go_on(
        path: &Path,
        steps: u64,
        open: bool,
        clock: &mut Clock,
        unreadable: &Unreadable,
        mut each: impl FnMut(&Value),
    ) -> Result<Log> {
        let mut before = 0.0;
        Log::open(path, steps, |row| {
            let seconds = row["seconds"].as_f64().unwrap_or(before);
            match row["kind"].as_str() {
                Some("epoch") if open && row["step"].as_u64() == Some(steps - 1) => return false,
                Some("epoch") => {
                    clock.evaluation_took(Duration::try_from_secs_f64(seconds - before).unwrap_or_default());
                }
                Some("unreadable") => unreadable.know(row["part"].as_str() == Some("test"), row["image"].as_str()),
                _ => (),
            }
            before = seconds;
            each(row);
            true
        })
    }

    /// How long the run has gone on for, breaks left out.
    pub fn seconds(&self) -> f64 {
        self.before + self.opened.elapsed().as_secs_f64()
    }

    /// Appends a row.
    ///
    /// # Errors
    /// The row cannot be written to either file.
    pub fn row(&mut self, mut row: Value) -> Result<()> {
        let thousandths = |x: f64| number((1e3 * x).round() / 1e3);
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        row["time"] = thousandths(time.as_secs_f64());
        row["seconds"] = thousandths(self.seconds());
        let line = format!("{row}\n");
        self.file
            .write_all(line.as_bytes())
            .map_err(|e| Error::new(format!("cannot write {}: {e}", self.path.display())))?;
        self.events.append(&tensorboard::record(&row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    #[test]
    fn rows_beyond_the_checkpoint_and_torn_lines_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let mut log = Log::open(&path, 0, |_| true).unwrap();
        for step in 0..4 {
            log.row(json!({"kind": "step", "step": step, "loss": number(f64::NAN)})).unwrap();
        }
        drop(log);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"kind\": \"st").unwrap();
        let mut seen = Vec::new();
        let mut log = Log::open(&path, 3, |row| {
            seen.push(row["step"].as_u64());
            true
        })
        .unwrap();
        log.row(json!({"kind": "epoch", "step": 2})).unwrap();
        assert_eq!(seen, [Some(0), Some(1), Some(2)]);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("null") && text.ends_with("}\n"), "{text}");
        // Time goes on where the run was stopped, and a clock has been read.
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |key: &str| rows.iter().map(|r| r[key].as_f64().unwrap()).collect::<Vec<_>>();
        assert_eq!(rows[3]["kind"], "epoch");
        assert!(of("seconds").is_sorted() && of("time").is_sorted() && of("time")[0] > 1e9, "{text}");
    }
}
