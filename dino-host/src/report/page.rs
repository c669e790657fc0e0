//! The page: what was gathered, as HTML that needs nothing but itself.

use super::chart::short;
use super::evidence::Evidence;
use super::log::*;
use crate::config::Config;
use crate::train::metrics::*;
use crate::train::verdict::{Level, Signs};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dino_kernel::objective::Objective;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

/// Text from outside with its control characters made visible. The template sees to it that it opens no tag and ends no attribute.
pub fn visible(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// Bytes as a `data:` address of a PNG image.
pub(super) fn data(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

/// An argument of a command line, quoted as a shell needs it.
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+@%".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.into()
    } else {
        format!("'{}'", argument.replace('\'', "'\\''"))
    }
}

/// A command line as a shell takes it.
pub fn shell_line<'a>(arguments: impl IntoIterator<Item = &'a str>) -> String {
    arguments.into_iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// The command of the manifest, or, for a run from before it was recorded, one that names every key.
pub fn command(manifest: &Value) -> Option<String> {
    let arguments: Vec<&str> = manifest["command"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !arguments.is_empty() {
        return Some(shell_line(arguments));
    }
    let keys = manifest["config"].as_object()?;
    let mut line = format!("dino-host train --data {}", quoted(manifest["data"].as_str()?));
    for (key, value) in keys {
        let values: Vec<String> = match value {
            Value::Array(all) => all.iter().map(plain).collect(),
            one => vec![plain(one)],
        };
        let _ = write!(line, " --{key} {}", quoted(&values.join(",")));
    }
    Some(line)
}

pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

pub(super) fn percent(x: Option<f64>) -> String {
    x.map_or("—".into(), |x| format!("{x:.1} %"))
}

pub(super) fn number(x: Option<f64>) -> String {
    x.map_or("—".into(), |x| format!("{x:.4}"))
}

/// A page with this body: what it shows is in it, and nothing else is loaded. `again`: seconds after which it is.
pub fn framed(title: &str, again: Option<u32>, body: Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                meta http-equiv="Content-Security-Policy" content={
                    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
                };
                @if let Some(seconds) = again { meta http-equiv="refresh" content=(seconds); }
                link rel="icon" href="data:,";
                title { (visible(title)) }
                style { (PreEscaped(include_str!("page.css"))) }
            }
            body {
                (body)
                script { (PreEscaped(include_str!("page.js"))) }
            }
        }
    };
    page.into_string()
}

/// What the page is made of.
pub struct Page<'a> {
    pub name: &'a str,
    pub rows: &'a Rows,
    pub manifest: &'a Value,
    pub config: Option<&'a Config>,
    pub evidence: &'a Evidence,
    /// Seconds after which a browser is to ask for it again, of a run that goes on.
    pub again: Option<u32>,
}

impl Page<'_> {
    pub fn write(&self) -> String {
        let body = html! {
            (self.top())
            (self.charts())
            (self.gallery())
            @if let Some(maps) = &self.evidence.maps { (maps.draw()) }
            (self.neighbors())
            (self.classes())
            (self.confusion())
            (self.mistakes())
            (self.epochs())
            (self.rest())
        };
        framed(&format!("DINO run {}", self.name), self.again.filter(|_| !self.is_done()), body)
    }

    pub(super) fn ln_k(&self) -> Option<f64> {
        self.config.map(|c| (c.out_dim as f64).ln()).or(self.rows.ln_k)
    }

    /// What the run's student learns; the published objective where that is not known.
    pub(super) fn objective(&self) -> Objective {
        self.config.map_or(Objective::PUBLISHED, |c| c.objective())
    }

    /// k-NN of pixels, percent: as the run measured it, or the report.
    pub(super) fn pixels(&self) -> Option<f64> {
        self.rows.pixels.or(self.evidence.pixels)
    }

    /// k-NN of the network before training, percent.
    pub(super) fn untrained(&self) -> Option<f64> {
        self.rows.before.or(self.evidence.random)
    }

    fn top(&self) -> Markup {
        let text = |key: &str| self.manifest[key].as_str().map(visible);
        let of = |set: &str| self.manifest[set]["images"].as_u64();
        let (total, done) = (self.total(), self.steps());
        let (level, summary, why) = self.verdict();
        html! {
            h1 { "DINO run " (visible(self.name)) }
            @if let (Some(data), Some(device), Some(train)) = (text("data"), text("device"), of("train")) {
                p.soft { (train) " training and " (of("test").unwrap_or(0)) " test images of " (data) ", on " (device) }
            }
            div.verdict.bad[level == Level::Bad].weak[level == Level::Weak] {
                b { (summary) } " " (visible(&why))
                @if let Some(total) = total.filter(|t| done < *t) {
                    p {
                        "The log ends after step " (done) " of " (total) ": "
                        "the run was interrupted, or is still going on."
                    }
                }
            }
            dl.facts {
                @for (name, value, note) in self.facts() {
                    div { dt { (name) } dd { (value) small { (note) } } }
                }
            }
        }
    }

    /// Steps that the run is to have.
    fn total(&self) -> Option<u64> {
        let total = self.config.zip(self.rows.per_epoch().or_else(|| self.per_epoch()));
        total.map(|(c, n)| (c.epochs as f64 * n) as u64)
    }

    fn is_done(&self) -> bool {
        self.total().is_some_and(|total| self.steps() >= total)
    }

    /// Steps that the log has.
    fn steps(&self) -> u64 {
        self.rows.steps.last().map_or(0, |r| r.0 + 1)
    }

    /// The number of steps that represent the end of the run: an epoch's.
    fn last_epoch(&self) -> usize {
        self.rows.per_epoch().map_or(100, |n| n as usize).max(1)
    }

    /// How the run does, in a word, and the numbers that it rests on.
    fn verdict(&self) -> (Level, String, String) {
        let (rows, last, objective) = (self.rows, self.last_epoch(), self.objective());
        if rows.steps.is_empty() {
            return (Level::Bad, "No step was logged.".into(), "There is nothing to evaluate yet.".into());
        }
        if rows.tail(LOSS, last).is_none() {
            let why = "Every number of the log is missing or not finite.";
            return (Level::Bad, "No finite loss.".into(), why.into());
        }
        let Some(ln_k) = self.ln_k() else {
            return (Level::Weak, "No verdict.".into(), "The log has no ln K, and the run no configuration.".into());
        };
        let watch = rows.watch(objective.divergence, ln_k.exp().round() as usize);
        let scored = rows.epochs.iter().rev().find(|e| e.rank.is_some());
        let total = self.config.zip(rows.per_epoch().or_else(|| self.per_epoch()));
        let verdict = Signs {
            health: watch.health(),
            means: watch.means(),
            ln_k,
            targets: objective.targets,
            divergence: objective.divergence,
            done: total.map_or(1.0, |(c, n)| self.steps() as f64 / (c.epochs as f64 * n)),
            rank: scored.and_then(|e| e.rank),
            width: scored.and_then(|e| e.width).unwrap_or(0),
            spread: scored.and_then(|e| e.spread),
            teacher: scored.and_then(|e| e.teacher),
            student: scored.and_then(|e| e.student),
            pixels: self.pixels(),
            before: self.untrained(),
            asked: self.asked(),
        }
        .verdict();
        let why = match verdict.change.as_str() {
            "" => format!("{}.", verdict.because),
            change => format!("{}. What to change: {change}.", verdict.because),
        };
        (verdict.level, capital(verdict.name), why)
    }

    /// Test images that a vote during training asked.
    fn asked(&self) -> usize {
        let of = |set: &str| self.manifest[set]["images"].as_u64().unwrap_or(0) as usize;
        self.config.map_or(of("test"), |c| c.knn_images.of(of("train"), of("test"))[1])
    }

    /// The numbers at the top: name, value and note.
    fn facts(&self) -> Vec<(&'static str, String, String)> {
        let (rows, last) = (self.rows, self.last_epoch());
        let mut facts = Vec::new();
        let best = rows
            .epochs
            .iter()
            .filter(|e| e.teacher.is_some())
            .max_by(|a, b| a.teacher.unwrap_or(0.0).total_cmp(&b.teacher.unwrap_or(0.0)));
        let scored = |f: fn(&Epoch) -> Option<f64>| rows.epochs.iter().rev().find_map(f);
        if let Some(best) = best {
            let note = format!("best {} after epoch {}", percent(best.teacher), best.epoch + 1);
            facts.push(("k-NN, teacher", percent(scored(|e| e.teacher)), note));
        }
        if let Some(student) = scored(|e| e.student) {
            facts.push(("k-NN, student", percent(Some(student)), "at the same time".into()));
        }
        if let Some(pixels) = self.pixels() {
            let note = format!("untrained network {}", percent(self.untrained()));
            facts.push(("k-NN, pixels", percent(Some(pixels)), note));
        }
        if let (Some(loss), Some(ln_k)) = (rows.tail(LOSS, last), self.ln_k()) {
            let entropy = rows.tail(ENTROPY, last).map_or("—".into(), short);
            let note = format!("ln K = {ln_k:.3}, teacher entropy {entropy}");
            facts.push(("Loss at the end", format!("{loss:.3}"), note));
        }
        if let Some(rate) = rows.tail(IMAGES_PER_SECOND, usize::MAX) {
            let wait = rows.tail(DATA_WAIT, usize::MAX).unwrap_or(0.0) * 100.0;
            let note = format!("{wait:.1} % of the time waiting for data");
            facts.push(("Images per second", format!("{rate:.0}"), note));
        }
        let time = rows.seconds.map_or("time not logged".into(), |t| match t {
            t if t < 120.0 => format!("in {t:.0} s"),
            t if t < 7200.0 => format!("in {:.0} minutes", t / 60.0),
            t => format!("in {:.1} hours", t / 3600.0),
        });
        facts.push(("Steps", self.steps().to_string(), time));
        if let Some(begun) = rows.begun.and_then(|t| Duration::try_from_secs_f64(t).ok()) {
            let text = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + begun).to_string();
            let (date, time) = text.split_once('T').unwrap_or((&text, ""));
            let version =
                self.manifest["version"].as_str().map_or(String::new(), |v| format!(", version {}", visible(v)));
            facts.push(("Begun", date.into(), format!("{} UTC{version}", time.trim_end_matches('Z'))));
        }
        if let Some(config) = self.config {
            let table = config.table();
            let millions = |n: usize| if n < 100_000 { format!("{n}") } else { format!("{:.2} M", n as f64 / 1e6) };
            let note = format!(
                "of {}, {} with the head; {} numbers an image",
                visible(&config.arch),
                millions(table.len()),
                table.backbone.dim()
            );
            facts.push(("Parameters", millions(table.backbone_len()), note));
        }
        facts
    }

    /// Of an epoch that has not come to its end: from the manifest.
    fn per_epoch(&self) -> Option<f64> {
        Some((self.manifest["train"]["images"].as_u64()? / self.config?.batch.max(1) as u64) as f64)
    }

    fn epochs(&self) -> Markup {
        let all = &self.rows.epochs;
        if all.is_empty() {
            return html! {};
        }
        let every = all.len().div_ceil(LISTED);
        let names = ["epoch", "loss", "k-NN teacher", "k-NN student", "feature rank", "verdict"];
        let listed = all.iter().enumerate().filter(|(i, _)| (i + 1) % every == 0 || i + 1 == all.len()).map(|x| x.1);
        html! {
            h2 { "Numbers" }
            details {
                summary { "Epoch by epoch" }
                div.wide {
                    table {
                        thead { tr { @for name in names { th { (name) } } } }
                        tbody {
                            @for e in listed {
                                tr {
                                    td { (e.epoch + 1) }
                                    td { (number(e.loss)) }
                                    td { (percent(e.teacher)) }
                                    td { (percent(e.student)) }
                                    td { (e.rank.map_or("—".into(), |r| format!("{r:.1}"))) }
                                    td { (visible(&e.verdict)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn rest(&self) -> Markup {
        let (rows, m) = (self.rows, self.manifest);
        let mut missing = self.evidence.missing.clone();
        if rows.bad_lines > 0 {
            missing.push(format!("{} lines of the log could not be read.", rows.bad_lines));
        }
        if m.is_null() {
            missing.push("The manifest, run.json: there is none that can be read.".into());
        }
        html! {
            @if !missing.is_empty() {
                h2 { "Not shown" }
                ul { @for m in &missing { li { (visible(m)) } } }
            }
            @if !rows.unreadable.is_empty() {
                h2 { "Unreadable images" }
                p { (rows.unreadable_count) " were left out." }
                div.wide {
                    table.text {
                        tbody {
                            @for (image, error) in &rows.unreadable {
                                tr { th scope="row" { (visible(image)) } td { (visible(error)) } }
                            }
                        }
                    }
                }
            }
            @if let Some(command) = command(m) {
                h2 { "The same again" }
                pre { (visible(&command)) }
            }
            (self.settings())
        }
    }
}

/// With a capital at the start and a full stop at the end.
fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().into_iter().flat_map(char::to_uppercase).chain(chars).chain(['.']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_cannot_become_markup_and_bytes_become_base64() {
        let text = visible("<script>'\"&\n");
        // A single quote may be in an attribute: the template puts those into double quotes.
        let safe = "&lt;script&gt;'&quot;&amp;\u{fffd}";
        assert_eq!(html! { p title=(text) { (text) } }.0, format!(r#"<p title="{safe}">{safe}</p>"#));
        // RFC 4648, section 10.
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(data(bytes.as_bytes()), format!("data:image/png;base64,{text}"));
        }
    }

    #[test]
    fn commands_are_quoted_or_made_of_the_keys() {
        let recorded = json!({"command": ["dino-host", "train", "--data", "my images/it's"]});
        assert_eq!(command(&recorded).unwrap(), r"dino-host train --data 'my images/it'\''s'");
        let old = json!({"command": null, "data": "builtin", "config": {"batch": 8, "mean": [0.5, 0.25]}});
        assert_eq!(command(&old).unwrap(), "dino-host train --data builtin --batch 8 --mean 0.5,0.25");
        assert_eq!(command(&Value::Null), None);
    }
}
