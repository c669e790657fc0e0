//! The log as an event file of TensorBoard's: the scalars of every row of `log.jsonl`, under `train/`, `eval/` and `speed/`.
//!
//! A file is records: length (u64), its checksum, the data, their checksum, all little-endian; the checksum is `masked`
//! (TensorFlow's `record_writer`). Data is an `Event` in protocol buffers' wire format (`event.proto`, `summary.proto`), of which
//! these fields are used: Event { 1: wall_time f64, 2: step i64, 3: file_version, 5: Summary { 1: Value { 1: tag, 2: simple_value f32 } } }.

use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use crate::train::metrics::{METRICS, Metric};
use crc::{CRC_32_ISCSI, Crc};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Readers search for `tfevents` in the name and usually find a time and a host behind it. Here it is always the same, so that a
/// folder never holds two files of one run.
pub const FILE: &str = "events.out.tfevents.0.dino";

/// CRC-32C (Castagnoli).
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Of a step's row, beside its metrics: key and tag of its scalar.
const STEP: [(&str, &str); 1] = [("seconds", "speed/seconds")];
/// The same of an epoch's row.
const EPOCH: [(&str, &str); 7] = [
    ("train_loss", "train/epoch_loss"),
    ("knn_top1", "eval/knn_teacher"),
    ("knn_top1_student", "eval/knn_student"),
    ("feature_rank", "eval/feature_rank"),
    ("top1", "eval/top1"),
    ("top5", "eval/top5"),
    ("test_loss", "eval/loss"),
];

/// A checksum of a checksum is not one: so TensorFlow rotates it and adds a constant.
fn masked(data: &[u8]) -> u32 {
    CRC.checksum(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A field of a message: its number and how it is written (0 varint, 1 eight bytes, 2 with a length, 5 four bytes), then its bytes.
fn field(to: &mut Vec<u8>, number: u64, how: u64, bytes: &[u8]) {
    varint(to, number << 3 | how);
    if how == 2 {
        varint(to, bytes.len() as u64);
    }
    to.extend_from_slice(bytes);
}

fn varint(to: &mut Vec<u8>, mut x: u64) {
    while x > 0x7f {
        to.push(x as u8 | 0x80);
        x >>= 7;
    }
    to.push(x as u8);
}

/// A record of one event; the last field is given by its number.
fn event(time: f64, step: u64, number: u64, content: &[u8]) -> Vec<u8> {
    let (mut data, mut steps) = (Vec::new(), Vec::new());
    field(&mut data, 1, 1, &time.to_le_bytes());
    varint(&mut steps, step);
    field(&mut data, 2, 0, &steps);
    field(&mut data, number, 2, content);
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), &data, &masked(&data).to_le_bytes()].concat()
}

/// The record of a row of the log; nothing for a row without numbers to draw. Rows from before the log had times are at 1970.
pub fn record(row: &Value) -> Vec<u8> {
    let (metrics, tags): (&[Metric], &[_]) = match row["kind"].as_str() {
        Some("step") => (&METRICS, &STEP),
        Some("epoch") => (&[], &EPOCH),
        _ => return Vec::new(),
    };
    let mut summary = Vec::new();
    for (key, tag) in metrics.iter().map(|metric| (metric.key, metric.tag)).chain(tags.iter().copied()) {
        if let Some(x) = row[key].as_f64() {
            let mut value = Vec::new();
            field(&mut value, 1, 2, tag.as_bytes());
            field(&mut value, 2, 5, &(x as f32).to_le_bytes());
            field(&mut summary, 1, 2, &value);
        }
    }
    let (time, step) = (row["time"].as_f64().unwrap_or(0.0), row["step"].as_u64().unwrap_or(0));
    if summary.is_empty() { summary } else { event(time, step, 5, &summary) }
}

/// An event file that rows are appended to.
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Writes a file anew: its head, and the `records` of the rows that are there already, which are written as they come.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create<R: AsRef<[u8]>>(path: &Path, records: impl IntoIterator<Item = R>) -> Result<Events> {
        write_atomically(path, |f| {
            let mut f = BufWriter::new(f);
            f.write_all(&event(0.0, 0, 3, b"brain.Event:2"))?;
            records.into_iter().try_for_each(|record| f.write_all(record.as_ref()))?;
            f.flush()
        })?;
        let file = OpenOptions::new().append(true).open(path);
        let file = file.map_err(|e| Error::new(format!("cannot write {}: {e}", path.display())))?;
        Ok(Events { path: path.to_owned(), file })
    }

    /// Appends a record.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, record: &[u8]) -> Result<()> {
        let done = self.file.write_all(record);
        done.map_err(|e| Error::new(format!("cannot write {}: {e}", self.path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn checksums_are_the_known_ones() {
        // RFC 3720, appendix B.4, and the usual check of the nine digits.
        assert_eq!(CRC.checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(CRC.checksum(&[0xff; 32]), 0x62a8_ab43);
        // 0x8a9136aa rotated right by 15 bits is 0x6d551522.
        assert_eq!(masked(&[0; 32]), 0x0fd7fffa);
        assert_eq!(CRC.checksum(b"123456789"), 0xe306_9283);
    }

    /// The bytes of a record, written out.
    #[test]
    fn a_record_by_hand() {
        let got = record(&json!({"kind": "epoch", "step": 300, "time": 2.0, "knn_top1": 1.0, "train_loss": null}));
        let value = [&[0x0a, 16][..], b"eval/knn_teacher", &[0x15, 0, 0, 0x80, 0x3f]].concat();
        let summary = [&[0x0a, value.len() as u8][..], &value].concat();
        let data = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0, 0x40][..], // 2.0
            &[0x10, 0xac, 0x02],                    // 300 = 2 * 128 + 44
            &[0x2a, summary.len() as u8],
            &summary,
        ]
        .concat();
        assert_eq!((got[0] as usize, got.len()), (data.len(), 8 + 4 + data.len() + 4));
        assert_eq!(got[12..got.len() - 4], data);
        assert!(record(&json!({"kind": "epoch", "step": 1})).is_empty());
        assert!(record(&json!({"kind": "unreadable", "step": 1, "count": 1})).is_empty());
        assert!(record(&json!([1])).is_empty());
    }
}
