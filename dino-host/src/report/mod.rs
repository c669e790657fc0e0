//! A run on one page: HTML that holds its figures and charts itself and asks for nothing else.
//!
//! `log` reads the rows, `evidence` gathers what needs weights and images, `chart` and `page` write.

pub(crate) mod chart;
mod compare;
mod confusion;
mod curves;
mod evidence;
pub(crate) mod log;
pub(crate) mod page;
mod pictures;
mod scatter;
mod settings;
mod tuning;

use crate::config::Config;
use crate::data::Splits;
use crate::device::Device;
use crate::error::Result;
use crate::io::atomic::write_atomically;
use crate::report::evidence::Evidence;
use crate::train::tensorboard::{self, Events};
use crate::train::{LOG, MANIFEST};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
    let run = Run::read(dir);
    if run.manifest["finetune"].is_object() {
        let (html, missing) = tuning::page(dir, &run.manifest)?;
        return written(out, &html, &missing);
    }
    let rows = log::Rows::read(&dir.join(LOG))?;
    let evidence = run.evidence::<D>(options, &rows, most, open);
    written(out, &run.page(&rows, &evidence, None), &evidence.missing)
}

/// A run's folder, and its manifest as it is now.
struct Run {
    dir: PathBuf,
    manifest: Value,
    config: Option<Config>,
}

impl Run {
    fn read(dir: &Path) -> Run {
        let text = std::fs::read_to_string(dir.join(MANIFEST)).unwrap_or_default();
        let manifest: Value = serde_json::from_str(&text).unwrap_or_default();
        let config = serde_json::from_value(manifest["config"].clone()).ok();
        Run { dir: dir.into(), manifest, config }
    }

    fn evidence<D: Device>(
        &self,
        options: &D::Options,
        rows: &log::Rows,
        most: usize,
        open: impl FnOnce(Option<&str>, Option<&Config>) -> Result<Splits>,
    ) -> Evidence {
        let splits = open(self.manifest["data"].as_str(), self.config.as_ref());
        evidence::gather::<D>(options, &self.dir, rows.epochs.last().map(|e| e.epoch), splits, most)
    }

    /// `again`: seconds after which a browser is to ask for the page once more.
    fn page(&self, rows: &log::Rows, evidence: &Evidence, again: Option<u32>) -> String {
        let (name, config) = (self.dir.display().to_string(), self.config.as_ref());
        page::Page { name: &name, rows, manifest: &self.manifest, config, evidence, again }.write()
    }
}

/// The page of a run that goes on: curves as of now, and what needs the network as of a while ago.
pub struct Live {
    dir: PathBuf,
    most: usize,
    /// As of so many epochs, gathered then, in so long.
    known: Option<(usize, Instant, Duration, Evidence)>,
}

/// Seconds after which the page is asked for again.
const AGAIN: u32 = 10;

impl Live {
    /// Of the run in `dir`; `most`: images that the evidence is made of at most.
    pub fn new(dir: PathBuf, most: usize) -> Live {
        Live { dir, most, known: None }
    }

    /// The page as of now. What needs the network is gathered anew after an epoch, and takes no more than a tenth of the time.
    ///
    /// # Errors
    /// The run has no log that can be read.
    pub fn page<D: Device>(
        &mut self,
        options: &D::Options,
        open: impl FnOnce(Option<&str>, Option<&Config>) -> Result<Splits>,
    ) -> Result<String> {
        let run = Run::read(&self.dir);
        if run.manifest["finetune"].is_object() {
            return tuning::page(&self.dir, &run.manifest).map(|(html, _)| html);
        }
        let rows = log::Rows::read(&self.dir.join(LOG))?;
        let epochs = rows.epochs.len();
        let fresh = self.known.as_ref().is_some_and(|(of, at, took, _)| *of == epochs || at.elapsed() < 10 * *took);
        if !fresh {
            let started = Instant::now();
            let evidence = run.evidence::<D>(options, &rows, self.most, open);
            self.known = Some((epochs, Instant::now(), started.elapsed(), evidence));
        }
        let (.., evidence) = self.known.as_ref().expect("it was gathered");
        Ok(run.page(&rows, evidence, Some(AGAIN)))
    }
}

/// Writes the page of several runs, over each other, to `out`. Returns what to tell the user.
///
/// # Errors
/// A run has no log that can be read, or `out` cannot be written.
pub fn compare(dirs: &[PathBuf], out: &Path) -> Result<String> {
    written(out, &compare::page(dirs)?, &[])
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
