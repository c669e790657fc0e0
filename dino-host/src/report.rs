//! `report`: what a run did and what its features can do, on one page that needs nothing else.
//!
//! From the run's folder: `run.json`, `log.jsonl`, `gallery/`, `teacher.safetensors`; from the data, where they can be opened: nearest
//! neighbours and the confusion matrix. What is missing is said on the page. The same folder and data give the same bytes.

pub mod chart;
pub mod evidence;
pub mod log;
pub mod page;

use crate::error::{Error, Result};
use crate::train::{LOG, MANIFEST};
use chart::{Chart, Line, number};
use log::{Rows, last, median, series};
use page::{escape, picture, section, table};
use serde_json::Value;
use std::path::Path;

/// The page of the run in `dir`; `evidence` as [`evidence::gather`] gives it, or why there is none.
pub fn page(dir: &Path, evidence: std::result::Result<evidence::Evidence, Error>) -> Result<String> {
    let rows = Rows::read(&dir.join(LOG))?;
    let manifest = manifest(&dir.join(MANIFEST))?;
    let missing = evidence.as_ref().err().map(|e| e.to_string());
    let evidence = evidence.unwrap_or_default();
    let name = dir
        .canonicalize()
        .unwrap_or(dir.to_owned())
        .file_name()
        .map_or("run".into(), |n| n.to_string_lossy().into_owned());
    let missing = missing.map_or(String::new(), |why| {
        format!("<p class=\"soft\">Left out, for they need the data and the teacher: {}</p>", escape(&why))
    });
    let body = [
        format!("<h1>{}</h1>\n", escape(&name)),
        summary(&rows, &manifest, &evidence),
        section("Training", &charts(&rows, &manifest, &evidence)),
        section("Attention of the teacher", &gallery(dir)),
        section("Nearest neighbours", &(neighbours(&evidence) + &missing)),
        section("Confusion", &confusion(&evidence)),
        section("Images that could not be read", &unreadable(&rows)),
        section("Command", &command(&manifest)),
        section("Manifest", &manifest_table(&manifest)),
    ];
    Ok(page::document(&format!("{name}: DINO"), &body.concat()))
}

fn manifest(path: &Path) -> Result<Value> {
    let bad = |what: String| {
        Error::new(format!("cannot read {}: {what}", path.display())).hint("report takes the folder of a run")
    };
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| bad(e.to_string()))
}

/// ln K, if the manifest has K.
fn ln_k(manifest: &Value) -> Option<f64> {
    manifest["config"]["out-dim"].as_f64().filter(|k| *k >= 1.0).map(f64::ln)
}

/// Steps of the whole run, if the manifest tells.
fn planned(manifest: &Value) -> Option<u64> {
    let batch = manifest["config"]["batch"].as_u64().filter(|b| *b > 0)?;
    Some(manifest["train"]["images"].as_u64()? / batch * manifest["config"]["epochs"].as_u64()?)
}

fn last_step(rows: &Rows) -> u64 {
    last(&rows.steps, "step").unwrap_or(0.0) as u64
}

/// The verdict in words, and the numbers that matter.
fn summary(rows: &Rows, manifest: &Value, evidence: &evidence::Evidence) -> String {
    let verdict = rows.epochs.iter().rev().find_map(|row| row["verdict"].as_str());
    let (done, planned) = (last_step(rows) + 1, planned(manifest));
    let state = match planned {
        Some(all) if done >= all => "The run is finished".to_string(),
        Some(all) => format!("The run stands at step {done} of {all}"),
        None => format!("The run has done {done} steps"),
    };
    let judged = match verdict {
        Some("healthy") => {
            "<span class=\"good\">healthy</span>: the teacher tells images apart and its output is sharp".into()
        }
        Some(other) => format!("<span class=\"bad\">{}</span>", escape(other)),
        None => "no epoch is over yet, so there is no verdict".to_string(),
    };
    let mut out = format!("<p class=\"verdict\">{} — {judged}.</p>\n<div class=\"facts\">", escape(&state));
    let mut fact = |value: Option<String>, name: &str| {
        if let Some(value) = value {
            out += &format!("<div class=\"fact\"><b>{}</b><small>{}</small></div>", escape(&value), escape(name));
        }
    };
    let loss = last(&rows.epochs, "train_loss").or(last(&rows.steps, "loss"));
    let loss_name = ln_k(manifest).map_or("loss".into(), |k| format!("loss of the last epoch; ln K is {}", number(k)));
    fact(loss.map(number), &loss_name);
    let knn = series(&rows.epochs, "knn_top1");
    let best = knn.iter().map(|p| p[1]).max_by(f64::total_cmp);
    fact(knn.last().map(|p| format!("{:.2} %", p[1])), "teacher, k-NN top-1");
    fact(best.filter(|b| knn.last().is_some_and(|l| l[1] < *b)).map(|b| format!("{b:.2} %")), "its best");
    fact(last(&rows.epochs, "knn_top1_student").map(|v| format!("{v:.2} %")), "student, k-NN top-1");
    fact(evidence.random.map(|v| format!("{v:.2} %")), "random weights, k-NN top-1");
    fact(median(&rows.steps, "images_per_second").map(|v| format!("{v:.0}")), "images a second, in the middle");
    fact(median(&rows.steps, "data_wait").map(|v| format!("{:.0} %", 100.0 * v)), "of a step spent waiting for data");
    fact(last(&rows.steps, "seconds").map(duration), "of training");
    out + "</div>\n"
}

fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..120 => format!("{s} s"),
        120..7200 => format!("{} min", s / 60),
        _ => format!("{} h {} min", s / 3600, s / 60 % 60),
    }
}

fn charts(rows: &Rows, manifest: &Value, evidence: &evidence::Evidence) -> String {
    let step = |name, key| Line { name, points: series(&rows.steps, key), dots: false };
    let epoch = |name, key| Line { name, points: series(&rows.epochs, key), dots: true };
    let of = |title, unit, lines| Chart { title, unit, lines, levels: Vec::new(), from_zero: true };
    let ln_k: Vec<(String, f64)> = ln_k(manifest).map(|k| ("ln K".into(), k)).into_iter().collect();
    let mut wait = step("waiting", "data_wait");
    wait.points.iter_mut().for_each(|p| p[1] *= 100.0);
    let random = evidence.random.map(|v| ("random weights".to_string(), v));
    let all = [
        Chart {
            levels: ln_k.clone(),
            from_zero: false,
            ..of("Loss", "cross-entropy, nats", vec![step("loss", "loss")])
        },
        Chart {
            levels: ln_k,
            ..of(
                "Teacher entropy and KL",
                "nats; both near 0 or entropy at ln K is collapse",
                vec![step("entropy", "teacher_entropy"), step("KL", "kl")],
            )
        },
        Chart {
            levels: random.into_iter().collect(),
            ..of(
                "k-NN",
                "top-1, percent, k = 20",
                vec![epoch("teacher", "knn_top1"), epoch("student", "knn_top1_student")],
            )
        },
        of("Rank of the features", "effective number of directions", vec![epoch("rank", "feature_rank")]),
        of("Learning rate", "", vec![step("learning rate", "lr")]),
        Chart { from_zero: false, ..of("Teacher temperature", "", vec![step("temperature", "teacher_temp")]) },
        Chart { from_zero: false, ..of("Teacher momentum", "", vec![step("momentum", "momentum")]) },
        of("Weight decay", "", vec![step("weight decay", "wd")]),
        of("Gradient norm", "before clipping", vec![step("norm", "grad_norm")]),
        of("Norm of the centre", "", vec![step("norm", "center_norm")]),
        of("Throughput", "images a second", vec![step("images/s", "images_per_second")]),
        of("Data wait", "percent of a step", vec![wait]),
    ];
    let end = last_step(rows) as f64;
    let torn = match rows.torn {
        0 => String::new(),
        n => format!("<p class=\"soft\">{n} lines of the log are torn and were passed over.</p>"),
    };
    format!("<div class=\"grid-of\">\n{}</div>\n{torn}", all.iter().map(|c| c.html(end)).collect::<String>())
}

/// The strips that training drew, in their order.
fn gallery(dir: &Path) -> String {
    let folder = dir.join("gallery");
    let strip = |file: &str, title: &str| {
        let png = std::fs::read(folder.join(file)).ok().filter(|bytes| bytes.starts_with(b"\x89PNG"))?;
        Some(format!("<div><h3>{}</h3>{}</div>", escape(title), picture(&png, &format!("attention, {title}"))))
    };
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return "<p class=\"soft\">The run has no gallery folder: it was made by a version that drew none.</p>".into();
    };
    let mut epochs: Vec<(u64, String)> = entries
        .flatten()
        .filter_map(|e| {
            let file = e.file_name().into_string().ok()?;
            Some((file.strip_prefix("epoch")?.strip_suffix(".png")?.parse().ok()?, file))
        })
        .collect();
    epochs.sort();
    let first = [("images.png", "images"), ("start.png", "before the first step")].map(|(f, t)| strip(f, t));
    let later = epochs.iter().map(|(epoch, file)| strip(file, &format!("after epoch {epoch}")));
    let strips: String = first.into_iter().chain(later).flatten().collect();
    match strips.is_empty() {
        true => "<p class=\"soft\">The gallery folder holds no picture.</p>".into(),
        false => format!(
            "<p class=\"soft\">What the class token of the last block attends to, mean over heads: dark is least, yellow most.</p><div class=\"strips\">{strips}</div>"
        ),
    }
}

fn neighbours(evidence: &evidence::Evidence) -> String {
    if evidence.neighbours.is_empty() {
        return String::new();
    }
    let strips: String = evidence
        .neighbours
        .iter()
        .map(|(name, png)| {
            format!(
                "<div>{}<small>{}</small></div>",
                picture(png, &format!("{name} and its nearest neighbours")),
                escape(name)
            )
        })
        .collect();
    let frames = if evidence.labelled { " Green frames are of the query's class, red ones of another." } else { "" };
    format!(
        "<p class=\"soft\">Left: an image of the test part. Right: the nearest of the training part by the teacher's class token.{frames}{}</p><div class=\"strips\">{strips}</div>",
        escape(&evidence.note)
    )
}

/// As a table for up to so many classes, as a list of the most frequent mistakes beyond.
const CLASSES: usize = 20;

fn confusion(evidence: &evidence::Evidence) -> String {
    let Some(counts) = &evidence.confusion else { return String::new() };
    let (classes, n) = (&evidence.classes, counts.nrows());
    let total = |row: usize| counts.row(row).sum().max(1);
    let note = format!(
        "<p class=\"soft\">The k-NN vote (k = 20) of the teacher: a row a true class, a column what it was taken for, in percent of the row.{}</p>",
        escape(&evidence.note)
    );
    if n <= CLASSES {
        let head: String = classes.iter().map(|c| format!("<th scope=\"col\">{}</th>", escape(c))).collect();
        let rows: String = (0..n)
            .map(|r| {
                let cells: String = (0..n)
                    .map(|c| {
                        let share = counts[[r, c]] as f64 / total(r) as f64;
                        let text = if counts[[r, c]] == 0 { String::new() } else { format!("{:.0}", 100.0 * share) };
                        let colour = if r == c { "--c0" } else { "--c1" };
                        let tint = (55.0 * share).round();
                        format!(
                            "<td style=\"background:color-mix(in srgb,var({colour}) {tint}%,transparent)\">{text}</td>"
                        )
                    })
                    .collect();
                format!("<tr><th scope=\"row\">{}</th>{cells}</tr>", escape(&classes[r]))
            })
            .collect();
        return format!(
            "{note}<div class=\"wide\"><table class=\"confusion\"><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        );
    }
    let mut mistakes: Vec<(u64, usize, usize)> = (0..n)
        .flat_map(|r| (0..n).map(move |c| (r, c)))
        .filter(|&(r, c)| r != c && counts[[r, c]] > 0)
        .map(|(r, c)| (counts[[r, c]], r, c))
        .collect();
    mistakes.sort_by_key(|&(count, r, c)| (std::cmp::Reverse(count), r, c));
    let rows: Vec<(String, String)> = mistakes
        .iter()
        .take(CLASSES)
        .map(|&(count, r, c)| {
            let share = 100.0 * count as f64 / total(r) as f64;
            (format!("{} taken for {}", classes[r], classes[c]), format!("{count} images, {share:.0} % of the class"))
        })
        .collect();
    format!(
        "<p class=\"soft\">The k-NN vote (k = 20) of the teacher, {n} classes: its most frequent mistakes.{}</p>{}",
        escape(&evidence.note),
        table(&rows)
    )
}

fn unreadable(rows: &Rows) -> String {
    let shown: Vec<(String, String)> = rows
        .unreadable
        .iter()
        .take(100)
        .map(|row| {
            let text = |key: &str| row[key].as_str().map_or_else(|| row[key].to_string(), str::to_owned);
            (text("image"), text("error"))
        })
        .collect();
    match rows.unreadable.len() {
        0 => String::new(),
        n if n > shown.len() => format!("{}<p class=\"soft\">The first {} of {n}.</p>", table(&shown), shown.len()),
        _ => table(&shown),
    }
}

fn command(manifest: &Value) -> String {
    let said = |key: &str| {
        let words = manifest[key].as_array()?.iter().map(|w| w.as_str().map(quoted)).collect::<Option<Vec<_>>>()?;
        (!words.is_empty()).then(|| format!("<pre>{}</pre>", escape(&words.join(" "))))
    };
    let resumed =
        said("resumed_with").map_or(String::new(), |c| format!("<p class=\"soft\">Last gone on with by</p>{c}"));
    match said("command") {
        Some(command) => command + &resumed,
        None => "<p class=\"soft\">run.json has no command: the run was begun by a version that did not record it.</p>"
            .into(),
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// `run.json`, flat, without the lists of classes.
fn manifest_table(manifest: &Value) -> String {
    fn flat(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flat(&name, value, out);
            }),
            Value::Array(items) if prefix.ends_with("classes") => out.push((prefix.into(), items.len().to_string())),
            Value::Null => (),
            Value::String(text) => out.push((prefix.into(), text.clone())),
            other => out.push((prefix.into(), other.to_string())),
        }
    }
    let mut rows = Vec::new();
    flat("", manifest, &mut rows);
    rows.retain(|(name, _)| name != "command" && name != "resumed_with");
    rows.iter_mut().for_each(|(name, _)| *name = name.strip_prefix("config.").unwrap_or(name).into());
    format!("<div class=\"columns\">{}</div>", table(&rows))
}
