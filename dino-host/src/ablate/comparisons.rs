//! What is compared: the rows of the paper's tables and figures, each as variants of one configuration.
//!
//! The paper's figures are those of ViT-S/16 on ImageNet. A variant is a few keys, which a user can give to `train` as well. Sizes that
//! depend on the scale (batch, prototypes) are the same parts of the base's as the paper's are of its own.

use crate::config::{Config, Flags, parse_toml};
use crate::error::{Error, Result};
use clap::ValueEnum;
use std::path::Path;

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// Where the teacher comes from (figure 6)
    Teacher,
    /// What keeps the teacher's output from collapsing, with and without an average for a teacher (table 15, section 5.3)
    Targets,
    /// Cross-entropy or squared error (table 7)
    Loss,
    /// How slowly the teacher follows the student (table 7)
    Momentum,
    /// Momentum of the center (appendix D)
    CenterMomentum,
    /// Local crops (table 7, table 8)
    MultiCrop,
    /// An MLP behind the student's head (table 7)
    Predictor,
    /// Depth of the head, its bottleneck, batch norms, activation (table 13, appendix C)
    Head,
    /// Number of prototypes (appendix C)
    Prototypes,
    /// Temperature of the teacher (appendix D)
    Temperature,
    /// Images of a step (table 9)
    Batch,
    /// Where the scales of global and local crops meet (table 14, appendix E)
    Crops,
}

/// Variants that are put side by side.
#[derive(Debug)]
pub struct Comparison {
    /// A row's name, or a file's.
    pub name: String,
    /// Where the paper's figures are from, and what they are of.
    pub paper: Option<&'static str>,
    /// What is compared. One that equals the base is the base with its paper's figure.
    pub variants: Vec<Variant>,
}

impl Comparison {
    /// A row of the paper.
    ///
    /// # Errors
    /// A variant's keys cannot be read.
    pub fn of(row: Row, base: &Config) -> Result<Comparison> {
        Ok(Comparison { name: row.name(), paper: Some(row.source()), variants: row.variants(base)? })
    }

    /// Variants of one's own, from a TOML file: a table each, whose name is that of its folder and whose keys are the
    /// configuration's. They come in the order of their names.
    ///
    /// # Errors
    /// The file cannot be read or is no TOML, a name is no plain one, or a key or value is not known.
    pub fn from_file(path: &Path) -> Result<Comparison> {
        const HINT: &str = "a table for each variant: [NAME], then its keys, such as lr = 0.01";
        let file = path.display().to_string();
        let bad = |e: String| Error::new(format!("{file}: {e}")).hint(HINT);
        let tables: toml::Table = parse_toml(&file, &Config::text(path)?, HINT)?;
        let mut variants = Vec::new();
        for (name, keys) in tables {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            // The tables are called ablate.md and the like.
            if !name.chars().all(plain) || [".", "ablate."].iter().any(|own| name.starts_with(own)) || name.is_empty() {
                return Err(bad(format!(
                    "{name:?} is no name for a folder beside the tables: letters, digits, dashes and underscores"
                )));
            }
            if !keys.is_table() {
                return Err(bad(format!("{name} = {keys} is in no variant's table")));
            }
            let keys = toml::to_string(&keys).map_err(|e| bad(format!("{name}: {e}")))?;
            let variant =
                Variant::new(keys.trim_end(), Paper::Silent).map_err(|e| bad(format!("{name}: {}", e.message)))?;
            variants.push(Variant { name: format!("{name}: {}", variant.name), folder: name, ..variant });
        }
        if variants.is_empty() {
            return Err(bad("no variant is in it".into()));
        }
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        Ok(Comparison { name, paper: None, variants })
    }
}

/// What the paper reports of a variant, in percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Paper {
    /// Top-1 of the k-NN vote.
    Knn(f64),
    /// Top-1 of a linear classifier.
    Linear(f64),
    /// Nothing.
    Silent,
}

impl Paper {
    /// For a table: the number, marked where it is not of k-NN.
    pub fn text(self) -> String {
        match self {
            Paper::Knn(x) => format!("{x:.1}"),
            Paper::Linear(x) => format!("{x:.1} linear"),
            Paper::Silent => String::new(),
        }
    }
}

/// Some keys with other values than the base has.
#[derive(Clone, Debug)]
pub struct Variant {
    /// The keys.
    pub flags: Flags,
    /// The same as on a command line.
    pub name: String,
    /// Of its runs, in the comparisons' folder.
    pub folder: String,
    /// What the paper reports.
    pub paper: Paper,
}

impl Variant {
    /// From keys in TOML.
    fn new(keys: &str, paper: Paper) -> Result<Variant> {
        let flags = Config::parse("a variant", keys)?;
        let arguments = |line: &str| {
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            let value = value.replace(['"', '[', ']', ','], " ");
            let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
            format!("--{} {value}", key.trim())
        };
        let name = keys.lines().map(arguments).collect::<Vec<_>>().join(" ");
        let folder = name.trim_start_matches('-').replace(" --", " ").replace(' ', "-");
        Ok(Variant { flags, name, folder, paper })
    }
}

impl Row {
    /// As `--rows` takes it.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().into())
    }

    /// Where the paper's figures are from, and what they are of.
    pub fn source(self) -> &'static str {
        match self {
            Row::Teacher => "figure 6, 300 epochs",
            Row::Targets => "table 15, 300 epochs, a linear classifier",
            Row::Loss | Row::Momentum | Row::Predictor => "table 7, 300 epochs",
            Row::CenterMomentum | Row::Temperature => "appendix D, 100 epochs",
            Row::MultiCrop => "table 7, 300 epochs, crops of 96 pixels",
            Row::Head => "table 13 (K = 4096) and appendix C, 100 epochs; it counts the prototypes as a layer",
            Row::Prototypes => "appendix C, 100 epochs, K = 1024 to 262144",
            Row::Batch => "table 9, 100 epochs, no local crops, batches of 128 to 1024",
            Row::Crops => "appendix E, 100 epochs",
        }
    }

    /// The variants. One that equals the base is the base with its paper's figure.
    ///
    /// # Errors
    /// A variant's keys cannot be read.
    pub fn variants(self, base: &Config) -> Result<Vec<Variant>> {
        use Paper::{Knn, Linear, Silent};
        let all =
            |rows: Vec<(String, Paper)>| rows.into_iter().map(|(keys, paper)| Variant::new(&keys, paper)).collect();
        let list = |rows: &[(&str, Paper)]| all(rows.iter().map(|(keys, paper)| (keys.to_string(), *paper)).collect());
        match self {
            Row::Teacher => list(&[
                ("teacher = \"ema\"", Knn(72.8)),
                ("teacher = \"previous-epoch\"", Knn(66.6)),
                ("teacher = \"previous-iteration\"", Knn(0.1)),
                ("teacher = \"student\"", Knn(0.1)),
                ("teacher = \"frozen\"", Silent),
            ]),
            Row::Targets => list(&[
                ("targets = \"center\"", Linear(76.1)),
                ("targets = \"sinkhorn-knopp\"", Linear(76.0)),
                ("targets = \"softmax-batch\"", Linear(75.8)),
                ("targets = \"none\"", Silent),
                ("teacher = \"student\"\ntargets = \"center\"", Linear(0.1)),
                ("teacher = \"student\"\ntargets = \"sinkhorn-knopp\"", Linear(71.8)),
                ("teacher = \"student\"\ntargets = \"softmax-batch\"", Linear(72.2)),
            ]),
            Row::Loss => list(&[("loss = \"cross-entropy\"", Knn(72.8)), ("loss = \"mse\"", Knn(52.6))]),
            Row::Momentum => {
                // From a momentum to that of the base's end, and never down.
                let from = |m: f64, paper| {
                    let end = base.momentum_teacher_end.max(m);
                    (format!("momentum-teacher = {m:?}\nmomentum-teacher-end = {end:?}"), paper)
                };
                let student = ("teacher = \"student\"".into(), Knn(0.1));
                let rows = [(0.5, Silent), (0.9, Silent), (0.99, Silent), (0.996, Knn(72.8))];
                all([student].into_iter().chain(rows.map(|(m, paper)| from(m, paper))).collect())
            }
            Row::CenterMomentum => list(&[
                ("center-momentum = 0.0", Knn(69.1)),
                ("center-momentum = 0.9", Knn(69.7)),
                ("center-momentum = 0.99", Knn(69.4)),
                ("center-momentum = 0.999", Knn(0.1)),
            ]),
            Row::MultiCrop => list(&[
                ("local-crops-number = 0", Knn(67.9)),
                ("local-crops-number = 2", Silent),
                ("local-crops-number = 6", Knn(72.7)),
            ]),
            Row::Predictor => list(&[("predictor = false", Knn(72.8)), ("predictor = true", Knn(71.8))]),
            Row::Head => list(&[
                ("head-layers = 1", Knn(62.2)),
                ("head-layers = 2", Knn(68.0)),
                ("head-layers = 3", Knn(69.3)),
                ("bottleneck = 0\nhead-layers = 1", Knn(61.6)),
                ("bottleneck = 0\nhead-layers = 2", Knn(62.9)),
                ("bottleneck = 0\nhead-layers = 3", Knn(0.1)),
                ("bottleneck = 0\nhead-layers = 4", Knn(0.1)),
                ("use-bn-in-head = true", Knn(68.6)),
                ("activation = \"relu\"", Knn(68.9)),
            ]),
            Row::Prototypes => {
                let part =
                    |num: usize, den: usize, paper| (format!("out-dim = {}", base.out_dim * num / den), Knn(paper));
                all(vec![part(1, 64, 67.8), part(1, 16, 69.3), part(1, 4, 69.2), part(1, 1, 69.7), part(4, 1, 69.1)])
            }
            Row::Temperature => {
                let fixed = |t: f64| format!("teacher-temp = {t:?}\nwarmup-teacher-temp = {t:?}");
                let rows = [(0.001, 43.9), (0.02, 66.7), (0.04, 69.6), (0.06, 68.7), (0.08, 0.1)];
                all(rows.map(|(t, paper)| (fixed(t), Knn(paper))).into())
            }
            Row::Batch => {
                let part = |den: usize, paper| (format!("batch = {}", base.batch / den), Knn(paper));
                all(vec![part(8, 57.9), part(4, 59.1), part(2, 59.6), part(1, 59.9)])
            }
            Row::Crops => {
                let meet = |s: f64| format!("global-crops-scale = [{s:?}, 1.0]\nlocal-crops-scale = [0.05, {s:?}]");
                let rows = [(0.08, 65.6), (0.16, 68.0), (0.24, 69.7), (0.32, 69.8), (0.48, 69.5)];
                all(rows.map(|(s, paper)| (meet(s), Knn(paper))).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_is_a_configuration_and_has_a_name_of_its_own() {
        let base = Config { batch: 64, out_dim: 1024, ..Config::small() };
        for row in Row::value_variants() {
            let variants = row.variants(&base).unwrap();
            for (i, variant) in variants.iter().enumerate() {
                let mut config = base.clone();
                config.set(&variant.flags);
                config.resolve().unwrap_or_else(|e| panic!("{}: {e}", variant.name));
                assert!(variants[..i].iter().all(|other| other.folder != variant.folder), "{}", variant.name);
                let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
                assert!(variant.folder.chars().all(plain), "{}", variant.folder);
            }
        }
        let crops = Row::Crops.variants(&base).unwrap();
        assert_eq!(crops[0].name, "--global-crops-scale 0.08 1.0 --local-crops-scale 0.05 0.08");
        assert_eq!(crops[0].folder, "global-crops-scale-0.08-1.0-local-crops-scale-0.05-0.08");
    }
}
