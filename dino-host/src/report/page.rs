//! The page: what was gathered, as HTML that needs nothing but itself.

use super::chart::{Chart, Line, short};
use super::evidence::Evidence;
use super::html::escape;
use super::log::*;
use crate::config::Config;
use crate::train::collapse::Verdict;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::fmt::Write;

/// Classes of which a matrix is drawn.
const MATRIX: usize = 20;

/// Bytes as a `data:` address of a PNG picture.
fn data(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

/// A word of a command line as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// The command of the manifest, or, for a run from before it was recorded, one that names every key.
pub fn command(manifest: &Value) -> Option<String> {
    let words: Vec<&str> = manifest["command"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !words.is_empty() {
        return Some(words.into_iter().map(quoted).collect::<Vec<_>>().join(" "));
    }
    let keys = manifest["config"].as_object()?;
    let mut line = format!("dino-host train --data {}", quoted(manifest["data"].as_str()?));
    for (key, value) in keys {
        let words: Vec<String> = match value {
            Value::Array(all) => all.iter().map(plain).collect(),
            one => vec![plain(one)],
        };
        let _ = write!(line, " --{key} {}", quoted(&words.join(",")));
    }
    Some(line)
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

fn percent(x: Option<f64>) -> String {
    x.map_or("—".into(), |x| format!("{x:.1} %"))
}

fn number(x: Option<f64>) -> String {
    x.map_or("—".into(), |x| format!("{x:.4}"))
}

/// What the page is made of.
pub struct Page<'a> {
    pub name: &'a str,
    pub rows: &'a Rows,
    pub manifest: &'a Value,
    pub config: Option<&'a Config>,
    pub evidence: &'a Evidence,
}

impl Page<'_> {
    pub fn write(&self) -> String {
        let body = [
            self.top(),
            self.charts(),
            self.gallery(),
            self.neighbours(),
            self.confusion(),
            self.epochs(),
            self.rest(),
        ];
        format!(
            "<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>\
             <meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
             script-src 'unsafe-inline'\"><link rel=icon href='data:,'><title>DINO run {}</title>\n<style>\n{}</style></head><body>\n{}<script>\n{}</script>\n\
             </body></html>\n",
            escape(self.name),
            include_str!("page.css"),
            body.concat(),
            include_str!("page.js")
        )
    }

    fn ln_k(&self) -> Option<f64> {
        self.config.map(|c| (c.out_dim as f64).ln()).or(self.rows.ln_k)
    }

    fn top(&self) -> String {
        let (rows, ln_k) = (self.rows, self.ln_k());
        let mut s = format!("<h1>DINO run {}</h1>\n", escape(self.name));
        let text = |key: &str| self.manifest[key].as_str().map(escape);
        let of = |set: &str| self.manifest[set]["images"].as_u64();
        if let (Some(data), Some(device), Some(train)) = (text("data"), text("device"), of("train")) {
            let _ = writeln!(
                s,
                "<p class=soft>{train} training and {} test images of {data}, on {device}</p>",
                of("test").unwrap_or(0)
            );
        }
        let verdict = ln_k.map_or(Verdict::Healthy, |ln_k| rows.verdict(ln_k.exp().round() as usize));
        // About an epoch, or what there is of one.
        let last = rows.per_epoch().map_or(100, |n| n as usize).max(1);
        let (loss, entropy, kl) = (rows.tail(LOSS, last), rows.tail(ENTROPY, last), rows.tail(KL, last));
        let (class, word, why) = match verdict {
            _ if rows.steps.is_empty() => ("bad", "No step was logged.", "There is nothing to judge yet.".to_string()),
            _ if loss.is_none() => {
                ("bad", "No finite loss.", "Every number of the log is missing or not finite.".to_string())
            }
            Verdict::Healthy => ("", "Healthy.", {
                let share = kl.zip(ln_k).map_or(String::new(), |(kl, ln_k)| {
                    format!(" KL is {} of at most ln K = {}.", short(kl), short(ln_k))
                });
                format!("The teacher tells images apart: no sign of collapse.{share}")
            }),
            Verdict::Uniform => ("bad", "Uniform collapse.", capital(verdict.words())),
            Verdict::OneDimensional => ("bad", "One-dimensional collapse.", capital(verdict.words())),
        };
        let _ = writeln!(s, "<div class='verdict {class}'><b>{word}</b> {}", escape(&why));
        let total =
            self.config.zip(rows.per_epoch().or_else(|| self.per_epoch())).map(|(c, n)| (c.epochs as f64 * n) as u64);
        let done = rows.steps.last().map_or(0, |r| r.0 + 1);
        if let Some(total) = total.filter(|t| done < *t) {
            let _ = write!(
                s,
                "<p>The log ends after step {done} of {total}: the run was interrupted, or is still going on.</p>"
            );
        }
        s += "</div>\n<dl class=facts>";
        let mut fact = |name: &str, value: String, note: String| {
            let _ = write!(s, "<div><dt>{name}</dt><dd>{value}<small>{}</small></dd></div>", escape(&note));
        };
        let best = rows
            .epochs
            .iter()
            .filter(|e| e.teacher.is_some())
            .max_by(|a, b| a.teacher.unwrap_or(0.0).total_cmp(&b.teacher.unwrap_or(0.0)));
        let judged = |f: fn(&Epoch) -> Option<f64>| rows.epochs.iter().rev().find_map(f);
        if let Some(best) = best {
            let note = format!("best {} after epoch {}", percent(best.teacher), best.epoch);
            fact("k-NN, teacher", percent(judged(|e| e.teacher)), note);
        }
        if let Some(student) = judged(|e| e.student) {
            fact("k-NN, student", percent(Some(student)), "at the same time".into());
        }
        if let Some(pixels) = self.evidence.pixels {
            fact("k-NN, pixels", percent(Some(pixels)), format!("untrained network {}", percent(self.evidence.random)));
        }
        if let (Some(loss), Some(ln_k)) = (loss, ln_k) {
            fact(
                "Loss at the end",
                format!("{loss:.3}"),
                format!("ln K = {ln_k:.3}, teacher entropy {}", entropy.map_or("—".into(), short)),
            );
        }
        if let Some(rate) = rows.tail(RATE, usize::MAX) {
            let wait = rows.tail(WAIT, usize::MAX).unwrap_or(0.0) * 100.0;
            fact("Images per second", format!("{rate:.0}"), format!("{wait:.1} % of the time waiting for data"));
        }
        let time = rows.seconds.map_or("time not logged".into(), |t| match t {
            t if t < 120.0 => format!("in {t:.0} s"),
            t if t < 7200.0 => format!("in {:.0} minutes", t / 60.0),
            t => format!("in {:.1} hours", t / 3600.0),
        });
        fact("Steps", done.to_string(), time);
        s + "</dl>\n"
    }

    /// Of an epoch that has not come to its end: from the manifest.
    fn per_epoch(&self) -> Option<f64> {
        Some((self.manifest["train"]["images"].as_u64()? / self.config?.batch.max(1) as u64) as f64)
    }

    fn charts(&self) -> String {
        let rows = self.rows;
        let per_epoch = rows.per_epoch().filter(|_| rows.epochs.len() > 1);
        let along = if per_epoch.is_some() { "epochs done" } else { "step" };
        let x = |step: u64| per_epoch.map_or(step as f64, |n| (step + 1) as f64 / n);
        let line = |name, column: usize| {
            let points = rows.steps.iter().map(|r| (x(r.0), r.1[column] as f64)).collect();
            Line { name, points, dots: false }
        };
        let judged = |name, f: fn(&Epoch) -> Option<f64>| {
            let points = rows.epochs.iter().filter_map(|e| Some((x(e.step), f(e)?))).collect();
            Line { name, points, dots: true }
        };
        let chart = |title, unit, lines, marks| Chart { title, unit, along, lines, marks }.draw();
        let ln_k = || self.ln_k().map(|y| ("ln K".to_string(), y)).into_iter().collect::<Vec<_>>();
        let known = [("pixels", self.evidence.pixels), ("untrained", self.evidence.random)];
        let baselines = known.into_iter().filter_map(|(name, y)| Some((name.to_string(), y?))).collect();
        let mut wait = line("", WAIT);
        wait.points.iter_mut().for_each(|p| p.1 *= 100.0);
        let charts = [
            chart("Loss", "nats", vec![line("loss", LOSS)], ln_k()),
            chart(
                "k-NN accuracy",
                "%, k = 20",
                vec![judged("teacher", |e| e.teacher), judged("student", |e| e.student)],
                baselines,
            ),
            chart("Teacher entropy and KL", "nats", vec![line("entropy", ENTROPY), line("KL", KL)], ln_k()),
            chart("Feature rank", "directions", vec![judged("", |e| e.rank)], vec![]),
            chart("Gradient norm", "", vec![line("", GRAD)], vec![]),
            chart("Throughput", "images per second", vec![line("", RATE)], vec![]),
            chart("Waiting for data", "% of a step", vec![wait], vec![]),
            chart("Learning rate", "", vec![line("", LR)], vec![]),
            chart("Weight decay", "", vec![line("", WD)], vec![]),
            chart("Teacher momentum", "", vec![line("", MOMENTUM)], vec![]),
            chart("Teacher temperature", "", vec![line("", TEMP)], vec![]),
        ]
        .concat();
        if charts.is_empty() {
            return "<p>There are no numbers to draw.</p>\n".into();
        }
        format!(
            "<h2>Training</h2>\n<div class=charts>\n{charts}</div>\n<p class=soft>Lines are means of neighbouring steps, bands their least and greatest.</p>\n"
        )
    }

    fn gallery(&self) -> String {
        let e = self.evidence;
        if e.gallery.is_empty() {
            return String::new();
        }
        let of = escape(&e.image_names.join(", "));
        let mut s = String::from(
            "<h2>What the teacher attends to</h2>\n<p class=soft>Mean attention of the last block's class token, for the same images \
             as training goes on; light is most.</p>\n<div class=gallery>",
        );
        let images = e.images.iter().map(|png| ("the images".to_string(), png, format!("Images: {of}")));
        let drawn = e.gallery.iter().map(|(when, png)| (when.clone(), png, format!("Attention {when}, over: {of}")));
        for (when, png, alt) in images.chain(drawn) {
            let when = escape(&when);
            let _ = writeln!(
                s,
                "<figure><img alt='{alt}' src='{}'><figcaption><small>{when}</small></figcaption></figure>",
                data(png)
            );
        }
        s + "</div>\n"
    }

    fn neighbours(&self) -> String {
        let lines = &self.evidence.neighbours;
        if lines.is_empty() {
            return String::new();
        }
        let mut s = String::from(
            "<h2>Nearest neighbours</h2>\n<p class=soft>Test images, and the training images whose features are most similar (cosine). \
             A full green frame: of the same class; a dashed red one: of another.</p>\n",
        );
        for line in lines {
            s += "<div class=near>";
            for (i, shown) in line.iter().enumerate() {
                let (class, name) = (escape(shown.class.as_deref().unwrap_or("")), escape(&shown.name));
                let (kind, alt, said) = match (i, shown.same) {
                    (0, _) => ("query", format!("Query: {class} {name}"), String::new()),
                    (_, Some(true)) => {
                        ("same", format!("Same class: {class} {name}"), format!("{:.2}", shown.similarity))
                    }
                    (_, Some(false)) => {
                        ("other", format!("Other class: {class} {name}"), format!("{:.2}", shown.similarity))
                    }
                    _ => ("", name, format!("{:.2}", shown.similarity)),
                };
                let png = data(&shown.png);
                let _ = write!(
                    s,
                    "<figure class='{kind}'><img alt='{alt}' src='{png}'><figcaption>{class} {said}</figcaption></figure>"
                );
            }
            s += "</div>\n";
        }
        s
    }

    fn confusion(&self) -> String {
        let e = self.evidence;
        let Some(counts) = &e.confusion else { return String::new() };
        let [bank, asked, train, test] = e.sizes;
        let part = if bank < train || asked < test {
            format!(", {bank} of {train} and {asked} of {test} images")
        } else {
            String::new()
        };
        let mut s = format!(
            "<h2>Confusion of the k-NN vote</h2>\n<p class=soft>k = 20, teacher, top-1 {}{part}. ",
            percent(e.teacher)
        );
        let name = |c: usize| escape(e.classes.get(c).map_or("?", String::as_str));
        if e.classes.len() <= MATRIX {
            s += "Rows are what an image is, columns what it was taken for.</p>\n<div class=wide><table class=confusion><thead><tr><th scope=col>class</th>";
            (0..e.classes.len()).for_each(|c| s += &format!("<th scope=col>{}</th>", name(c)));
            s += "</tr></thead><tbody>";
            for (c, row) in counts.rows().into_iter().enumerate() {
                let sum = row.sum().max(1) as f64;
                let _ = write!(s, "<tr><th scope=row>{}</th>", name(c));
                for n in row {
                    let _ = write!(s, "<td style='background:rgba(var(--tint),{:.2})'>{n}</td>", 0.6 * *n as f64 / sum);
                }
                s += "</tr>";
            }
        } else {
            s += "The commonest mistakes.</p>\n<div class=wide><table><thead><tr><th>is</th><th>taken for</th><th>images</th></tr></thead><tbody>";
            let mut wrong: Vec<_> = counts.indexed_iter().filter(|((a, b), n)| a != b && **n > 0).collect();
            wrong.sort_by_key(|((a, b), n)| (u64::MAX - **n, *a, *b));
            for ((a, b), n) in wrong.into_iter().take(20) {
                let _ = write!(s, "<tr><th scope=row>{}</th><td>{}</td><td>{n}</td></tr>", name(a), name(b));
            }
        }
        s + "</tbody></table></div>\n"
    }

    fn epochs(&self) -> String {
        let all = &self.rows.epochs;
        if all.is_empty() {
            return String::new();
        }
        let every = all.len().div_ceil(LISTED);
        let mut s = String::from(
            "<h2>Numbers</h2>\n<details><summary>Epoch by epoch</summary><div class=wide><table><thead><tr><th>epoch</th><th>loss</th>\
             <th>k-NN teacher</th><th>k-NN student</th><th>feature rank</th><th>verdict</th></tr></thead><tbody>",
        );
        for e in all.iter().enumerate().filter(|(i, _)| (i + 1) % every == 0 || i + 1 == all.len()).map(|x| x.1) {
            let (teacher, student, rank) =
                (percent(e.teacher), percent(e.student), e.rank.map_or("—".into(), |r| format!("{r:.1}")));
            let _ = write!(
                s,
                "<tr><td>{}</td><td>{}</td><td>{teacher}</td><td>{student}</td><td>{rank}</td><td>{}</td></tr>",
                e.epoch,
                number(e.loss),
                escape(&e.verdict)
            );
        }
        s + "</tbody></table></div></details>\n"
    }

    fn rest(&self) -> String {
        let (rows, m) = (self.rows, self.manifest);
        let mut s = String::new();
        let mut missing = self.evidence.missing.clone();
        if rows.bad_lines > 0 {
            missing.push(format!("{} lines of the log could not be read.", rows.bad_lines));
        }
        if m.is_null() {
            missing.push("The manifest, run.json: there is none that can be read.".into());
        }
        if !missing.is_empty() {
            s += "<h2>Not shown</h2>\n<ul>";
            missing.iter().for_each(|m| s += &format!("<li>{}</li>", escape(m)));
            s += "</ul>\n";
        }
        if !rows.unreadable.is_empty() {
            let _ = write!(
                s,
                "<h2>Unreadable images</h2>\n<p>{} were left out.</p><div class=wide><table class=text><tbody>",
                rows.unreadable_count
            );
            for (image, error) in &rows.unreadable {
                let _ = write!(s, "<tr><th scope=row>{}</th><td>{}</td></tr>", escape(image), escape(error));
            }
            s += "</tbody></table></div>\n";
        }
        if let Some(command) = command(m) {
            let _ = write!(s, "<h2>The same again</h2>\n<pre>{}</pre>\n", escape(&command));
        }
        let Some(all) = m.as_object() else { return s };
        s += "<h2>Manifest</h2>\n<dl class=keys>";
        let mut row = |key: &str, value: &Value| {
            let text = match value {
                Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(", "),
                one => plain(one),
            };
            let text = if text.chars().count() > 400 { text.chars().take(400).chain(['…']).collect() } else { text };
            let _ = write!(s, "<div><dt>{}</dt><dd>{}</dd></div>", escape(key), escape(&text));
        };
        for (key, value) in all.iter().filter(|(k, v)| *k != "command" && *k != "config" && !v.is_null()) {
            match value.as_object() {
                Some(inner) => inner.iter().for_each(|(k, v)| row(&format!("{key} {k}"), v)),
                None => row(key, value),
            }
        }
        m["config"].as_object().into_iter().flatten().for_each(|(k, v)| row(k, v));
        s + "</dl>\n"
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
        assert_eq!(escape("<script>'\"&\n"), "&lt;script&gt;&#39;&quot;&amp;\u{fffd}");
        // RFC 4648, section 10.
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(data(bytes.as_bytes()), format!("data:image/png;base64,{text}"));
        }
    }

    #[test]
    fn commands_are_quoted_or_made_of_the_keys() {
        let recorded = json!({"command": ["dino-host", "train", "--data", "my pictures/it's"]});
        assert_eq!(command(&recorded).unwrap(), r"dino-host train --data 'my pictures/it'\''s'");
        let old = json!({"command": null, "data": "builtin", "config": {"batch": 8, "mean": [0.5, 0.25]}});
        assert_eq!(command(&old).unwrap(), "dino-host train --data builtin --batch 8 --mean 0.5,0.25");
        assert_eq!(command(&Value::Null), None);
    }
}
