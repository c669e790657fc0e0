//! What came of the variants: read from the logs of their runs, as a table and as JSON.

use super::comparisons::Paper;
use crate::io::json::number;
use crate::report::log::Rows;
use crate::train::metrics::IMAGES_PER_SECOND;
use crate::train::{BEFORE_FAILURE, LOG};
use serde_json::{Value, json};
use std::path::Path;

/// What came of one run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// k-NN top-1 of the teacher, percent, at the end.
    pub teacher: Option<f64>,
    /// The same of the student.
    pub student: Option<f64>,
    /// Directions that the teacher's features use.
    pub rank: Option<f64>,
    /// What the watch for collapse reports, or why the run ended early.
    pub health: String,
    /// Images trained on per second.
    pub rate: Option<f64>,
    /// How long it took, evaluation and what ran beside it included.
    pub seconds: Option<f64>,
    /// Epochs done, and the teacher's k-NN after them.
    pub curve: Vec<(f64, f64)>,
}

impl Outcome {
    /// From the folder of a run; none where it has not ended an epoch.
    pub fn read(folder: &Path) -> Option<Outcome> {
        let rows = Rows::read(&folder.join(LOG)).ok()?;
        let scored = |f: fn(&crate::report::log::Epoch) -> Option<f64>| rows.epochs.iter().rev().find_map(f);
        let last = rows.epochs.last();
        let failed = folder.join(BEFORE_FAILURE).exists();
        if last.is_none() && !failed {
            return None;
        }
        Some(Outcome {
            teacher: scored(|e| e.teacher),
            student: scored(|e| e.student),
            rank: scored(|e| e.rank),
            health: if failed { "not finite".into() } else { last.map_or_else(String::new, |e| e.verdict.clone()) },
            seconds: rows.seconds,
            rate: rows.tail(IMAGES_PER_SECOND, usize::MAX),
            curve: rows.epochs.iter().filter_map(|e| Some(((e.epoch + 1) as f64, e.teacher?))).collect(),
        })
    }
}

/// Mean, least and greatest of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub mean: f64,
    pub least: f64,
    pub greatest: f64,
}

impl Spread {
    /// Of the numbers that are there.
    pub fn of(numbers: impl Iterator<Item = Option<f64>>) -> Option<Spread> {
        let found: Vec<f64> = numbers.flatten().collect();
        (!found.is_empty()).then(|| Spread {
            mean: found.iter().sum::<f64>() / found.len() as f64,
            least: found.iter().copied().fold(f64::INFINITY, f64::min),
            greatest: found.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }

    /// The mean, and the ends where they differ.
    pub fn text(of: Option<Spread>) -> String {
        match of {
            None => "—".into(),
            Some(s) if s.least == s.greatest => format!("{:.1}", s.mean),
            Some(s) => format!("{:.1} ({:.1} to {:.1})", s.mean, s.least, s.greatest),
        }
    }

    fn json(of: Option<Spread>) -> Value {
        of.map_or(
            Value::Null,
            |s| json!({"mean": number(s.mean), "least": number(s.least), "greatest": number(s.greatest)}),
        )
    }
}

/// A line of the table: a variant, over its seeds.
pub struct Line {
    /// Its flags.
    pub name: String,
    /// Whether it is the base.
    pub base: bool,
    /// What the paper reports of it.
    pub paper: Paper,
    /// Of the seeds that have ended an epoch.
    pub outcomes: Vec<Outcome>,
    /// Runs that are not finished.
    pub open: usize,
}

impl Line {
    /// Over its seeds.
    pub fn spread(&self, f: impl Fn(&Outcome) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.outcomes.iter().map(f))
    }

    /// What the seeds have come to, the most frequent first to be named.
    pub fn health(&self) -> String {
        let mut kinds: Vec<(&str, usize)> = Vec::new();
        for outcome in &self.outcomes {
            match kinds.iter_mut().find(|kind| kind.0 == outcome.health) {
                Some(kind) => kind.1 += 1,
                None => kinds.push((&outcome.health, 1)),
            }
        }
        kinds.sort_by_key(|kind| std::cmp::Reverse(kind.1));
        let of = self.outcomes.len();
        let mut parts: Vec<String> = match kinds.as_slice() {
            [(kind, _)] => vec![kind.to_string()],
            kinds => kinds.iter().map(|(kind, count)| format!("{kind} ({count} of {of})")).collect(),
        };
        if self.open > 0 {
            parts.push(format!("{} not finished", self.open));
        }
        parts.join(", ")
    }

    /// The teacher's k-NN after every epoch that all seeds have ended, as the mean over them.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let Some(first) = self.outcomes.first() else { return Vec::new() };
        let at = |x: f64| {
            let found: Option<Vec<f64>> =
                self.outcomes.iter().map(|o| o.curve.iter().find(|p| p.0 == x).map(|p| p.1)).collect();
            found.map(|ys| (x, ys.iter().sum::<f64>() / ys.len() as f64))
        };
        first.curve.iter().filter_map(|p| at(p.0)).collect()
    }

    /// Its cells: name, teacher, student, rank, health, images per second, seconds, the paper's figure.
    pub fn cells(&self) -> [String; 8] {
        let rate = self.spread(|o| o.rate).map_or("—".into(), |s| format!("{:.0}", s.mean));
        let seconds = self.spread(|o| o.seconds).map_or("—".into(), |s| format!("{:.0}", s.mean));
        let name = if self.base { format!("{} (base)", self.name) } else { self.name.clone() };
        [
            name.trim().into(),
            Spread::text(self.spread(|o| o.teacher)),
            Spread::text(self.spread(|o| o.student)),
            Spread::text(self.spread(|o| o.rank)),
            self.health(),
            rate,
            seconds,
            self.paper.text(),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "flags": self.name,
            "base": self.base,
            "knn_top1": Spread::json(self.spread(|o| o.teacher)),
            "knn_top1_student": Spread::json(self.spread(|o| o.student)),
            "feature_rank": Spread::json(self.spread(|o| o.rank)),
            "verdicts": self.outcomes.iter().map(|o| o.health.clone()).collect::<Vec<_>>(),
            "images_per_second": Spread::json(self.spread(|o| o.rate)),
            "seconds": Spread::json(self.spread(|o| o.seconds)),
            "not_finished": self.open,
            "paper": match self.paper {
                Paper::Knn(x) => json!({"knn_top1": x}),
                Paper::Linear(x) => json!({"linear_top1": x}),
                Paper::Silent => Value::Null,
            },
        })
    }
}

/// The heads of the columns.
pub const COLUMNS: [&str; 8] =
    ["variant", "teacher k-NN, %", "student k-NN, %", "feature rank", "verdict", "images/s", "seconds", "paper, %"];

/// A comparison's lines.
pub struct Table {
    /// What is compared.
    pub name: String,
    /// Where the paper's figures are from; none where the comparison is not the paper's.
    pub paper: Option<&'static str>,
    /// The variants.
    pub lines: Vec<Line>,
}

impl Table {
    /// As Markdown, which is also read well on a terminal.
    pub fn text(&self) -> String {
        let rows: Vec<[String; 8]> =
            std::iter::once(COLUMNS.map(String::from)).chain(self.lines.iter().map(Line::cells)).collect();
        let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
        let widths: [usize; 8] = std::array::from_fn(width);
        let line = |cells: &[String; 8]| {
            let padded: Vec<String> = cells
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())))
                .collect();
            format!("| {} |\n", padded.join(" | "))
        };
        let rule = widths.map(|width| "-".repeat(width));
        let paper = self.paper.map_or_else(String::new, |source| format!(" (paper: {source})"));
        let mut text = format!("{}{paper}\n\n{}{}", self.name, line(&rows[0]), line(&rule));
        rows[1..].iter().for_each(|row| text += &line(row));
        text
    }

    /// For programs: every number, and the paper's.
    pub fn json(&self) -> Value {
        json!({
            "row": self.name,
            "source": self.paper,
            "variants": self.lines.iter().map(Line::json).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(teacher: f64, health: &str) -> Outcome {
        let curve = vec![(1.0, teacher / 2.0), (2.0, teacher)];
        Outcome { teacher: Some(teacher), health: health.into(), curve, ..Outcome::default() }
    }

    #[test]
    fn seeds_are_averaged_and_their_spread_is_there() {
        let outcomes = vec![outcome(70.0, "healthy"), outcome(74.0, "healthy"), outcome(10.5, "uniform collapse")];
        let mut line = Line { name: "--loss mse".into(), base: false, paper: Paper::Knn(52.6), outcomes, open: 0 };
        let cells = line.cells();
        assert_eq!(cells[1], "51.5 (10.5 to 74.0)");
        assert_eq!(cells[2], "—");
        assert_eq!(cells[4], "healthy (2 of 3), uniform collapse (1 of 3)");
        assert_eq!(cells[7], "52.6");
        assert_eq!(line.curve(), [(1.0, 25.75), (2.0, 51.5)]);
        line.outcomes[1].curve.pop();
        line.open = 1;
        assert_eq!(line.curve(), [(1.0, 25.75)], "an epoch that one seed has not ended is no mean over the seeds");
        assert!(line.health().ends_with("1 not finished"));
        let text = Table { name: "loss".into(), paper: None, lines: vec![line] }.text();
        assert!(
            text.lines().skip(2).all(|row| row.chars().count() == text.lines().nth(2).unwrap().chars().count()),
            "{text}"
        );
    }
}
