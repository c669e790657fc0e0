//! A run that starts from weights: student and teacher alike. A family of networks has a file here, and an arm in [`start`].

mod resnet;
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
    /// Running statistics and the like, in the table's layout of buffers; empty for a network without any.
    pub buffers: Vec<f32>,
    /// For run.json.
    pub record: Value,
    /// What to tell the user.
    pub notes: Vec<String>,
}

/// The initial weights of a run of `config` from a file: its teacher, if it has two networks. `channels`: whether another number of
/// channels is asked for. `network`: the words under which the weights are stored, if the file does not have them alone.
///
/// # Errors
/// The file cannot be read or does not fit, its shape is not the run's, its channels differ without `channels`, or its head does not fit.
pub fn start(file: &Path, network: Option<&str>, config: &Config, wanted: Head, channels: bool) -> Result<Start> {
    let (heads, called) = (Some(config.heads).filter(|n| *n > 0), network.map(str::to_owned));
    let options = Options { head: wanted != Head::Fresh, called, heads, allow_extra: true, ..Options::default() };
    let given = open(file, &options)?.strict()?;
    let mut notes = given.report.notes.clone();
    if !given.heads_stated {
        notes.push(format!("the file does not state how many attention heads it has: {} as the run", config.heads));
    }
    let (mut weights, buffers) = match (given.config.table().backbone, config.table().backbone) {
        (Backbone::Vit(a), Backbone::Vit(b)) => vit::start(file, &given, config, channels, [&a, &b], &mut notes)?,
        (Backbone::ResNet(a), Backbone::ResNet(b)) => {
            resnet::start(file, &given, config, channels, [&a, &b], &mut notes)?
        }
        (Backbone::Vit(a), Backbone::ResNet(_)) => {
            return Err(Error::new(format!("{} is a vision transformer, the run has a ResNet", file.display())).hint(
                format!("--arch {} with --patch-size {} fits, or weights of a ResNet", given.config.arch, a.patch),
            ));
        }
        (Backbone::ResNet(_), Backbone::Vit(_)) => {
            return Err(Error::new(format!("{} is a ResNet, the run has a vision transformer", file.display()))
                .hint(format!("{} fits, or weights of a vision transformer", resnet::flags(&given.config))));
        }
    };
    let head = head(&mut weights, &given, config, wanted)?;
    notes.push(head.clone());
    let record = json!({
        "file": file.display().to_string(), "dialect": given.report.naming.name(), "container": given.report.container, "head": head,
    });
    Ok(Start { weights, buffers, record, notes })
}

/// Refuses another number of channels, unless it is asked for.
fn same_channels(file: &Path, has: usize, wants: usize, asked: bool) -> Result<()> {
    if has == wants || asked {
        return Ok(());
    }
    Err(Error::new(format!("{} has {has} channels, the run {wants}", file.display()))
        .hint("--init-channels adds or repeats their weights"))
}

/// A run's weights and buffers, each in the table's layout.
type Numbers = (Vec<f32>, Vec<f32>);

/// A run's network as it is drawn, and where it has each of its backbone's tensors.
fn drawn(config: &Config) -> (Numbers, Vec<Entry>) {
    let table = config.table();
    let (mut weights, mut buffers) = (vec![0.0; table.len()], vec![0.0; table.buffers_len()]);
    init::weights(&mut weights, &table, config.seed, config.init_std);
    table.visit_buffers(|b| buffers[b.at.range()].fill(b.value as f32));
    ((weights, buffers), entries(&table).into_iter().filter(|entry| entry.part == Part::Backbone).collect())
}

/// Weights of a first convolution (C, channels, height, width), `area` = height * width, of `old` channels for `new` ones. To one, their
/// sum: a gray image gives what its colored copy gave. To more, the old ones again, each divided by how often it is used, so that equal
/// channels give the same again; to fewer, the first ones times old / new.
fn channels(to: &mut [f32], from: &[f32], area: usize, [old, new]: [usize; 2]) {
    for (to, from) in to.chunks_mut(new * area).zip(from.chunks(old * area)) {
        for (c, plane) in to.chunks_mut(area).enumerate() {
            for (i, x) in plane.iter_mut().enumerate() {
                *x = if old == new {
                    from[c * area + i]
                } else if new == 1 {
                    (0..old).map(|k| f64::from(from[k * area + i])).sum::<f64>() as f32
                } else {
                    let uses = (new - 1 - c % old) / old + 1;
                    let scale = if new < old { old as f64 / new as f64 } else { 1.0 / uses as f64 };
                    (f64::from(from[(c % old) * area + i]) * scale) as f32
                };
            }
        }
    }
}

/// That the run normalizes pixels in another way than the weights are used to.
fn note_normalization(given: &Config, config: &Config, notes: &mut Vec<String>) {
    if given.mean != config.mean || given.std != config.std {
        notes.push(
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Equal channels give the same sum through the weights of one channel, and of more.
    #[test]
    fn channels_keep_what_equal_channels_give() {
        let old = [1.0f32, 2.0, 4.0, -1.0, 0.5, 8.0];
        for (n, first) in [
            (1, vec![7.0]),
            (2, vec![1.5, 3.0]),
            (3, vec![1.0, 2.0, 4.0]),
            (4, vec![0.5, 2.0, 4.0, 0.5]),
            (6, vec![0.5, 1.0, 2.0, 0.5, 1.0, 2.0]),
        ] {
            let mut new = vec![0.0; 2 * n];
            channels(&mut new, &old, 1, [3, n]);
            assert_eq!(new[..n], first[..], "{n} channels");
        }
        let mut gray = vec![0.0; 3 * 2];
        channels(&mut gray, &[3.0, 6.0], 1, [1, 3]);
        assert_eq!(gray, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
    }
}
