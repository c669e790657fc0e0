//! The page of a fine-tuning: its curves, its epochs, its confusion matrix.

use super::chart::{Chart, Line};
use super::confusion::{MATRIX, table};
use super::page::{command, framed, number, percent, plain, visible};
use crate::error::{Error, Result};
use crate::finetune::{SCORES, Scores};
use crate::train::LOG;
use maud::{Markup, html};
use ndarray::Array2;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Epochs of the table, spread over the run.
const LISTED: usize = 200;

/// The rows of a log, and how many lines are none.
fn rows(path: &Path) -> Result<(Vec<Value>, usize)> {
    let text = fs::read(path).map_err(|e| {
        Error::new(format!("cannot read {}: {e}", path.display()))
            .hint("report takes the folder of a run, as `finetune --out` named it")
    })?;
    let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let parsed: Vec<Option<Value>> = lines.map(|line| serde_json::from_slice(line).ok()).collect();
    let bad = parsed.iter().filter(|row| row.is_none()).count();
    Ok((parsed.into_iter().flatten().collect(), bad))
}

/// A line through the numbers `key` of rows of a kind, over epochs.
fn line(name: &'static str, rows: &[Value], kind: &str, key: &str, per_epoch: f64) -> Line {
    let of_kind = rows.iter().filter(|row| row["kind"] == kind);
    let points = of_kind.filter_map(|row| Some(((row["step"].as_f64()? + 1.0) / per_epoch, row[key].as_f64()?)));
    Line { name: name.into(), points: points.collect(), dots: kind == "epoch" }
}

/// The page of the fine-tuning in `dir`, whose `run.json` is `manifest`; and what is not shown.
///
/// # Errors
/// The run has no log that can be read.
pub fn page(dir: &Path, manifest: &Value) -> Result<(String, Vec<String>)> {
    let (rows, bad) = rows(&dir.join(LOG))?;
    let text = fs::read_to_string(dir.join(SCORES)).unwrap_or_default();
    let scores: Option<Scores> = serde_json::from_str(&text).ok();
    let epochs: Vec<&Value> = rows.iter().filter(|row| row["kind"] == "epoch").collect();
    let mut missing = Vec::new();
    if scores.is_none() {
        missing.push(format!("Scores and confusion: no epoch has been evaluated, or {SCORES} cannot be read."));
    }
    if bad > 0 {
        missing.push(format!("{bad} lines of the log could not be read."));
    }
    let name = visible(&dir.display().to_string());
    let body = html! {
        (top(&name, manifest, scores.as_ref(), &epochs))
        (charts(&rows, &epochs))
        @if let Some(scores) = &scores { (confusion(scores)) }
        (numbers(&epochs))
        (rest(manifest, &missing))
    };
    Ok((framed(&format!("Fine-tuning {name}"), None, body), missing))
}

fn top(name: &str, m: &Value, scores: Option<&Scores>, epochs: &[&Value]) -> Markup {
    let of = |part: &str| m[part]["images"].as_u64().unwrap_or(0);
    let text = |value: &Value| visible(value.as_str().unwrap_or("?"));
    let total = m["finetune"]["epochs"].as_u64();
    let best = epochs
        .iter()
        .filter_map(|row| row["top1"].as_f64())
        .fold(None, |a: Option<f64>, x| Some(a.map_or(x, |a| a.max(x))));
    html! {
        h1 { "Fine-tuning " (name) }
        p.soft {
            (of("train")) " training and " (of("test")) " test images of " (text(&m["data"])) ", on " (text(&m["device"]))
            ", from " (text(&m["start"]["which"])) " of " (text(&m["start"]["file"]))
        }
        @if let Some(total) = total.filter(|total| (epochs.len() as u64) < *total) {
            div.verdict.bad { b { "Not finished." } " " (epochs.len()) " of " (total) " epochs are evaluated." }
        }
        @if let Some(s) = scores {
            dl.facts {
                @for (what, value, note) in [
                    ("top-1", percent(Some(s.top1)), format!("best {} over epochs", percent(best))),
                    ("top-5", percent(Some(s.top5)), format!("of {} images", s.images)),
                    ("mean of classes", percent(Some(s.mean_class)), format!("{} classes", s.classes.len())),
                    ("test loss", number(Some(s.loss)), "nats".into()),
                ] {
                    div { dt { (what) } dd { (value) small { (note) } } }
                }
            }
        }
    }
}

fn charts(rows: &[Value], epochs: &[&Value]) -> Markup {
    let per_epoch = match epochs.first() {
        Some(row) => (row["step"].as_f64().unwrap_or(0.0) + 1.0) / (row["epoch"].as_f64().unwrap_or(0.0) + 1.0),
        None => 1.0,
    };
    let of = |name, kind: &str, key: &str| line(name, rows, kind, key, per_epoch);
    let along = if epochs.is_empty() { "step" } else { "epoch" };
    let chart = |title, unit, lines| Chart { title, unit, along, lines, marks: Vec::new(), wide: false };
    let all = [
        chart("Loss", "nats", vec![of("train", "step", "loss"), of("test", "epoch", "test_loss")]),
        chart("Accuracy on the test part", "%", vec![of("top-1", "epoch", "top1"), of("top-5", "epoch", "top5")]),
        chart("Learning rate", "", vec![of("rate", "step", "lr")]),
        chart("Gradient norm", "", vec![of("norm", "step", "grad_norm")]),
    ];
    html! { h2 { "Curves" } div.charts { @for chart in &all { (chart.draw()) } } }
}

fn confusion(s: &Scores) -> Markup {
    let Some(rows) = &s.confusion else { return html! {} };
    let counts = rows.iter().flatten().copied().collect();
    let Ok(counts) = Array2::from_shape_vec((rows.len(), rows.len()), counts) else { return html! {} };
    html! {
        h2 { "Confusion" }
        p.soft {
            "After epoch " (s.epoch) ", " (s.images) " test images. "
            @if s.classes.len() <= MATRIX { "Rows are what an image is, columns what it was taken for." }
            @else { "The commonest mistakes." }
        }
        (table(&s.classes, &counts))
    }
}

fn numbers(epochs: &[&Value]) -> Markup {
    let every = epochs.len().div_ceil(LISTED).max(1);
    let listed = epochs.iter().enumerate().filter(|(i, _)| (i + 1) % every == 0 || i + 1 == epochs.len()).map(|x| x.1);
    html! {
        h2 { "Numbers" }
        details {
            summary { "Epoch by epoch" }
            div.wide {
                table {
                    thead { tr { @for name in ["epoch", "loss", "test loss", "top-1", "top-5"] { th { (name) } } } }
                    tbody {
                        @for row in listed {
                            tr {
                                td { (plain(&row["epoch"])) }
                                td { (number(row["train_loss"].as_f64())) }
                                td { (number(row["test_loss"].as_f64())) }
                                td { (percent(row["top1"].as_f64())) }
                                td { (percent(row["top5"].as_f64())) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn rest(m: &Value, missing: &[String]) -> Markup {
    let keys = |part: &str| {
        let all = m[part].as_object().into_iter().flatten();
        all.filter(|(_, v)| !v.is_null()).map(|(k, v)| (visible(k), visible(&plain(v)))).collect::<Vec<_>>()
    };
    html! {
        @if !missing.is_empty() {
            h2 { "Not shown" }
            ul { @for m in missing { li { (visible(m)) } } }
        }
        @if let Some(command) = command(m) {
            h2 { "The same again" }
            pre { (visible(&command)) }
        }
        h2 { "Recipe and backbone" }
        dl.keys {
            @for (key, value) in keys("finetune").into_iter().chain(keys("config")) { div { dt { (key) } dd { (value) } } }
        }
    }
}
