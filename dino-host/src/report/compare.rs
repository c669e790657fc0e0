//! Several runs on one page: their curves over each other, the settings that differ, and what came of them.

use super::chart::{Chart, Line};
use super::log::{Epoch, Rows};
use super::page::{framed, number, percent, visible};
use super::settings::text;
use crate::error::Result;
use crate::train::metrics::{ENTROPY, KL, LOSS};
use crate::train::{LOG, MANIFEST};
use maud::{Markup, html};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A run of the comparison.
struct Run {
    name: String,
    rows: Rows,
    config: Value,
}

impl Run {
    fn read(dir: &Path) -> Result<Run> {
        let manifest = std::fs::read_to_string(dir.join(MANIFEST)).unwrap_or_default();
        let manifest: Value = serde_json::from_str(&manifest).unwrap_or_default();
        Ok(Run {
            name: dir.display().to_string(),
            rows: Rows::read(&dir.join(LOG))?,
            config: manifest["config"].clone(),
        })
    }

    /// A line over the epochs that are done, or over steps until one is.
    fn line(&self, points: impl Iterator<Item = (u64, f64)>, dots: bool) -> Line {
        let per_epoch = self.rows.per_epoch();
        let x = |step: u64| per_epoch.map_or(step as f64, |n| (step + 1) as f64 / n);
        Line { name: self.name.clone().into(), points: points.map(|(step, y)| (x(step), y)).collect(), dots }
    }

    fn scored(&self, of: fn(&Epoch) -> Option<f64>) -> Line {
        self.line(self.rows.epochs.iter().filter_map(|e| Some((e.step, of(e)?))), true)
    }

    fn steps(&self, column: usize) -> Line {
        self.line(self.rows.steps.iter().map(|row| (row.0, row.1[column] as f64)), false)
    }

    /// The last number of an epoch's row.
    fn last(&self, of: fn(&Epoch) -> Option<f64>) -> Option<f64> {
        self.rows.epochs.iter().rev().find_map(of)
    }
}

/// The page of the runs in `dirs`.
///
/// # Errors
/// A run has no log that can be read.
pub fn page(dirs: &[PathBuf]) -> Result<String> {
    let runs = dirs.iter().map(|dir| Run::read(dir)).collect::<Result<Vec<_>>>()?;
    let chart = |title, unit, lines: Vec<Line>, wide| {
        Chart { title, unit, along: "epochs done", lines, marks: Vec::new(), wide }.draw()
    };
    let scored = |of: fn(&Epoch) -> Option<f64>| runs.iter().map(|run| run.scored(of)).collect::<Vec<_>>();
    let steps = |column: usize| runs.iter().map(|run| run.steps(column)).collect::<Vec<_>>();
    let body = html! {
        h1 { (runs.len()) " runs" }
        (results(&runs))
        h2 { "Training" }
        div.charts.full { (chart("k-NN accuracy of the teacher", "%, k = 20", scored(|e| e.teacher), true)) }
        div.charts {
            (chart("Loss", "nats", steps(LOSS), false))
            (chart("Teacher entropy", "nats", steps(ENTROPY), false))
            (chart("KL", "nats", steps(KL), false))
            (chart("Feature rank", "directions", scored(|e| e.rank), false))
            (chart("Spread of cosines", "between images", scored(|e| e.spread), false))
        }
        (settings(&runs))
    };
    Ok(framed(&format!("DINO, {} runs", runs.len()), None, body))
}

fn results(runs: &[Run]) -> Markup {
    let names = [
        "run",
        "epochs",
        "seconds",
        "k-NN teacher",
        "k-NN student",
        "pixels",
        "before training",
        "feature rank",
        "loss",
        "verdict",
    ];
    html! {
        div.wide {
            table.text {
                thead { tr { @for name in names { th { (name) } } } }
                tbody {
                    @for run in runs {
                        @let rows = &run.rows;
                        @let last = rows.epochs.last();
                        tr {
                            th scope="row" { (visible(&run.name)) }
                            td { (last.map_or(0, |e| e.epoch + 1)) }
                            td { (rows.seconds.map_or("—".into(), |s| format!("{s:.0}"))) }
                            td { (percent(run.last(|e| e.teacher))) }
                            td { (percent(run.last(|e| e.student))) }
                            td { (percent(rows.pixels)) }
                            td { (percent(rows.before)) }
                            td { (run.last(|e| e.rank).map_or("—".into(), |r| format!("{r:.1}"))) }
                            td { (number(last.and_then(|e| e.loss))) }
                            td { (visible(last.map_or("", |e| &e.verdict))) }
                        }
                    }
                }
            }
        }
    }
}

/// The keys that do not have the same value in all runs.
fn settings(runs: &[Run]) -> Markup {
    let keys: BTreeSet<&String> =
        runs.iter().flat_map(|run| run.config.as_object().into_iter().flat_map(|map| map.keys())).collect();
    let differ: Vec<_> = keys
        .into_iter()
        .filter(|key| runs.iter().any(|run| run.config[key.as_str()] != runs[0].config[key.as_str()]))
        .collect();
    html! {
        h2 { "Settings that differ" }
        @if differ.is_empty() {
            p { "None: all keys are the same." }
        } @else {
            div.wide {
                table.text {
                    thead { tr { th { "key" } @for run in runs { th { (visible(&run.name)) } } } }
                    tbody {
                        @for key in differ {
                            tr {
                                th scope="row" { "--" (visible(key)) }
                                @for run in runs {
                                    @let value = &run.config[key.as_str()];
                                    td { @if value.is_null() { "—" } @else { (visible(&text(value))) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
