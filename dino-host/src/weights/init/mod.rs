//! A run that starts from weights: student and teacher alike. A family of networks has a file here, and an arm in [`start`].

mod vit;

use super::entries::{Entry, entries};
use super::{Options, Weights, open};
use crate::config::Config;
use crate::error::{Error, Result};
use clap::ValueEnum;
use dino_kernel::init;
use dino_kernel::model::Backbone;
use dino_kernel::params::Part;
use serde_json::{Value, json};
use std::path::Path;

/// What becomes of the file's projection head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Head {
    /// It is taken if there is one, and must fit
    #[default]
    Keep,
    /// As many of its prototypes as the run has, drawn ones beyond
    Fit,
    /// A drawn one
    Fresh,
}

/// Where a run starts.
#[derive(Clone, Debug)]
pub struct Start {
    /// In the table's layout.
    pub weights: Vec<f32>,
    /// For run.json.
    pub record: Value,
    /// What to tell the user.
    pub said: Vec<String>,
}

/// The initial weights of a run of `config` from a file: its teacher, if it has two networks. `channels`: whether another number of
/// channels is asked for. `network`: the words under which the weights are stored, if the file does not have them alone.
///
/// # Errors
/// The file cannot be read or does not fit, its shape is not the run's, its channels differ without `channels`, or its head does not fit.
pub fn start(file: &Path, network: Option<&str>, config: &Config, wanted: Head, channels: bool) -> Result<Start> {
    let (heads, called) = (Some(config.heads), network.map(str::to_owned));
    let options = Options { head: wanted != Head::Fresh, called, heads, allow_extra: true, ..Options::default() };
    let given = open(file, &options)?.strict()?;
    let mut said = given.report.notes.clone();
    if !given.heads_stated {
        said.push(format!("the file does not say how many attention heads it has: {} as the run", config.heads));
    }
    let mut weights = match (given.config.table().backbone, config.table().backbone) {
        (Backbone::Vit(a), Backbone::Vit(b)) => vit::start(file, &given, config, channels, [&a, &b], &mut said)?,
        _ => {
            return Err(Error::new(format!("{} and the run have backbones of different families", file.display()))
                .hint("weights of a ViT start a ViT: a fitting --arch, or another file"));
        }
    };
    let head = head(&mut weights, &given, config, wanted)?;
    said.push(head.clone());
    let record = json!({
        "file": file.display().to_string(), "dialect": given.report.naming.name(), "container": given.report.container, "head": head,
    });
    Ok(Start { weights, record, said })
}

/// Refuses another number of channels, unless it is asked for.
fn same_channels(file: &Path, has: usize, wants: usize, asked: bool) -> Result<()> {
    if has == wants || asked {
        return Ok(());
    }
    Err(Error::new(format!("{} has {has} channels, the run {wants}", file.display()))
        .hint("--init-channels adds or repeats their weights"))
}

/// A run's network as it is drawn, and where it has each of its backbone's tensors.
fn drawn(config: &Config) -> (Vec<f32>, Vec<Entry>) {
    let table = config.table();
    let mut weights = vec![0.0; table.len()];
    init::weights(&mut weights, &table, config.seed, config.init_std);
    (weights, entries(&table).into_iter().filter(|entry| entry.part == Part::Backbone).collect())
}

/// That the run normalizes pixels in another way than the weights are used to.
fn note_normalization(given: &Config, config: &Config, said: &mut Vec<String>) {
    if given.mean != config.mean || given.std != config.std {
        said.push(
            "the run normalises pixels with other means or deviations than the weights had: --mean, --std".into(),
        );
    }
}

/// Fills in the head. Returns what was done.
fn head(weights: &mut [f32], given: &Weights, config: &Config, wanted: Head) -> Result<String> {
    let Some(values) = &given.head else {
        return Ok(match wanted {
            Head::Fresh => "the projection head is drawn anew".into(),
            _ => "the file has no projection head: it is drawn anew".into(),
        });
    };
    let (from, to) = (given.config.table(), config.table());
    let (a, b) = (from.head, to.head);
    let trunk = |h: &dino_kernel::model::Head| {
        (h.layers, if h.layers > 1 { h.hidden } else { 0 }, h.bottleneck, h.batch_norm, h.weight_norm)
    };
    if trunk(&a) != trunk(&b) || (a.prototypes != b.prototypes && wanted == Head::Keep) {
        let words = |h: &dino_kernel::model::Head| {
            format!(
                "--head-layers {} --hidden {} --bottleneck {} --out-dim {}{}{}",
                h.layers,
                h.hidden,
                h.bottleneck,
                h.prototypes,
                if h.batch_norm { " --use-bn-in-head" } else { "" },
                match h.weight_norm {
                    normalized if normalized == (h.bottleneck > 0) => String::new(),
                    normalized => format!(" --weight-norm {normalized}"),
                }
            )
        };
        let mut hint = format!("--init-head fresh draws one, or give the run its shape: {}", words(&a));
        if trunk(&a) == trunk(&b) {
            hint = format!("--init-head fit takes what fits, fresh draws one, --out-dim {} keeps it", a.prototypes);
        }
        return Err(Error::new(format!(
            "the file's projection head does not fit: {}, the run has {}",
            words(&a),
            words(&b)
        ))
        .hint(hint));
    }
    // Running statistics of the head's batch norms are read by nothing, and begin anew; so does a predictor.
    let targets = entries(&to.of_teacher()).into_iter().filter(|entry| entry.part == Part::Head && !entry.buffer);
    let targets = targets.map(|entry| entry.at);
    for (t, range) in super::write::head(&given.config, values).iter().zip(targets) {
        // Rows are prototypes, the first axis; of the linear layers there are as many.
        let n = t.values.len().min(range.len());
        weights[range][..n].copy_from_slice(&t.values[..n]);
    }
    Ok(match (a.prototypes, b.prototypes) {
        (a, b) if a == b => "the projection head is the file's".into(),
        (a, b) if a > b => format!("the projection head is the file's, with the first {b} of its {a} prototypes"),
        (a, b) => format!("the projection head is the file's, with {} drawn prototypes after its {a}", b - a),
    })
}
