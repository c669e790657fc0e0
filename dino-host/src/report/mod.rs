//! A run on one page: HTML that holds its figures and charts itself and asks for nothing else.
//!
//! `log` reads the rows, `evidence` gathers what needs weights and images, `chart` and `page` write.

pub(crate) mod chart;
mod confusion;
mod evidence;
pub(crate) mod log;
pub(crate) mod page;
mod tuning;

use crate::config::Config;
use crate::data::Splits;
use crate::device::Device;
use crate::error::Result;
use crate::io::atomic::write_atomically;
use crate::train::tensorboard::{self, Events};
use crate::train::{LOG, MANIFEST};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

/// Writes the report of the run in `dir` to `out`. `open` opens the run's data, from what its manifest names; `most`: images that the
/// evidence is made of at most. Equal folders and data give equal bytes. Returns what to tell the user.
///
/// # Errors
/// The run has no log that can be read, or `out` cannot be written. Data that cannot be opened is no error.
pub fn write<D: Device>(
    options: &D::Options,
    dir: &Path,
    out: &Path,
    most: usize,
    open: impl FnOnce(Option<&str>, Option<&Config>) -> Result<Splits>,
) -> Result<String> {
    let text = std::fs::read_to_string(dir.join(MANIFEST)).unwrap_or_default();
    let manifest: Value = serde_json::from_str(&text).unwrap_or_default();
    if manifest["finetune"].is_object() {
        let (html, missing) = tuning::page(dir, &manifest)?;
        return written(out, &html, &missing);
    }
    let rows = log::Rows::read(&dir.join(LOG))?;
    let config: Option<Config> = serde_json::from_value(manifest["config"].clone()).ok();
    let splits = open(manifest["data"].as_str(), config.as_ref());
    let last = rows.epochs.last().map(|e| e.epoch);
    let evidence = evidence::gather::<D>(options, dir, last, splits, most);
    let name = dir.display().to_string();
    let page =
        page::Page { name: &name, rows: &rows, manifest: &manifest, config: config.as_ref(), evidence: &evidence };
    let html = page.write();
    written(out, &html, &evidence.missing)
}

/// Writes a page; returns what to tell the user.
fn written(out: &Path, html: &str, missing: &[String]) -> Result<String> {
    write_atomically(out, |f| f.write_all(html.as_bytes()))?;
    let mut message = format!("{} ({} KB)", out.display(), html.len().div_ceil(1000));
    missing.iter().for_each(|m| message += &format!("\nnot shown: {m}"));
    Ok(message)
}

/// For a run from before there were event files: writes one. A report goes on without it.
///
/// # Errors
/// The folder cannot be written.
pub fn events(dir: &Path) -> Result<()> {
    let path = dir.join(tensorboard::FILE);
    if path.exists() {
        return Ok(());
    }
    let Ok(file) = std::fs::File::open(dir.join(LOG)) else { return Ok(()) };
    // A line that cannot be read is passed over, as the report does.
    let rows = BufReader::new(file).split(b'\n').map_while(|line| line.ok());
    let records = rows.filter_map(|line| Some(tensorboard::record(&serde_json::from_slice::<Value>(&line).ok()?)));
    Events::create(&path, records).map(drop)
}
