//! A run that starts from weights: student and teacher alike.

use super::{Options, Weights, open};
use crate::config::Config;
use crate::error::{Error, Result};
use clap::ValueEnum;
use dino_kernel::backend::Grid;
use dino_kernel::init;
use dino_kernel::model::{Backbone, Vit};
use dino_kernel::ops::position;
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
    let (from, to) = (given.config.table(), config.table());
    let (Backbone::Vit(a), Backbone::Vit(b)) = (from.backbone, to.backbone) else {
        return Err(Error::new(format!("{} and the run have backbones of different kinds", file.display()))
            .hint("weights of a ViT start a ViT: a fitting --arch, or another file"));
    };
    same_shape(file, &a, &b)?;
    if a.channels != b.channels && !channels {
        let (has, wants) = (a.channels, b.channels);
        return Err(Error::new(format!("{} has {has} channels, the run {wants}", file.display()))
            .hint("--init-channels adds or repeats their weights"));
    }
    let mut weights = vec![0.0; to.len()];
    init::weights(&mut weights, &to, config.seed, config.init_std);
    let mut targets = vec![];
    to.visit(|spec| targets.push((spec.name.to_string(), spec.at.range())));
    for (t, (name, range)) in super::write::backbone(&given.config, &given.backbone).iter().zip(&targets) {
        assert_eq!(t.name, *name, "networks of one depth have one order of tensors");
        let target = &mut weights[range.clone()];
        match name.as_str() {
            "pos_embed" => positions(target, t.values, &a, &b),
            "patch_embed.proj.weight" => patches(target, t.values, &a, &b),
            _ => target.copy_from_slice(t.values),
        }
    }
    if a.side() != b.side() {
        said.push(format!(
            "positions are resized from {0} x {0} to {1} x {1} (position-resize {2})",
            a.side(),
            b.side(),
            config.position_resize
        ));
    }
    if a.channels != b.channels {
        said.push(format!("patch weights of {} channels serve {}", a.channels, b.channels));
    }
    if given.config.mean != config.mean || given.config.std != config.std {
        said.push(
            "the run normalises pixels with other means or deviations than the weights had: --mean, --std".into(),
        );
    }
    if given.config.norm_eps != config.norm_eps {
        let [run, file] = [config.norm_eps, given.config.norm_eps];
        said.push(format!(
            "the run's LayerNorms add {run:e} to the variance, the weights' added {file:e}: --norm-eps {file:e}"
        ));
    }
    let head = head(&mut weights, &given, config, wanted)?;
    said.push(head.clone());
    let record = json!({
        "file": file.display().to_string(), "dialect": given.report.naming.name(), "container": given.report.container, "head": head,
    });
    Ok(Start { weights, record, said })
}

/// Everything but the grid and the channels must agree.
fn same_shape(file: &Path, from: &Vit, to: &Vit) -> Result<()> {
    let rows = [
        ("embed-dim", from.dim, to.dim),
        ("depth", from.depth, to.depth),
        ("heads", from.heads, to.heads),
        ("patch-size", from.patch, to.patch),
    ];
    let mut differ: Vec<_> = rows.into_iter().filter(|(_, a, b)| a != b).collect();
    if from.mlp * to.dim != to.mlp * from.dim {
        differ.push(("mlp", from.mlp, to.mlp));
    }
    if differ.is_empty() {
        return Ok(());
    }
    let said: Vec<String> = differ.iter().map(|(key, a, b)| format!("{key} {a}, not {b}")).collect();
    let flags: Vec<String> = differ
        .iter()
        .map(|(key, a, _)| match *key {
            "mlp" => format!("--mlp-ratio {}", from.mlp as f64 / from.dim as f64),
            key => format!("--{key} {a}"),
        })
        .collect();
    Err(Error::new(format!("the run does not have the shape of {}: that has {}", file.display(), said.join(", ")))
        .hint(format!("give the run its shape: {}", flags.join(" "))))
}

/// The class token's position, and the grid's by the run's rule.
fn positions(to: &mut [f32], from: &[f32], a: &Vit, b: &Vit) {
    let (class, grid) = from.split_at(a.dim);
    to[..a.dim].copy_from_slice(class);
    let [n, m] = [a.side(), b.side()];
    let mut matrix = vec![0.0; m * n];
    position::matrix(&mut matrix, n, m, (n != m).then_some(b.positions));
    let sizes = Grid { from: [n, n], to: [m, m], cols: a.dim };
    position::forward(&mut to[a.dim..], grid, &matrix, &matrix, sizes);
}

/// Patch weights (C, channels, p, p) for another number of channels. To one, their sum: a gray image gives what its colored copy gave.
/// To more, the old ones again, each divided by how often it is used, so that equal channels give the same again; to fewer, the first
/// ones times old / new.
fn patches(to: &mut [f32], from: &[f32], a: &Vit, b: &Vit) {
    let area = a.patch * a.patch;
    let (old, new) = (a.channels, b.channels);
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
    let trunk = |h: &dino_kernel::model::Head| (h.layers, if h.layers > 1 { h.hidden } else { 0 }, h.bottleneck);
    if trunk(&a) != trunk(&b) || (a.prototypes != b.prototypes && wanted == Head::Keep) {
        let words = |h: &dino_kernel::model::Head| {
            format!(
                "--head-layers {} --hidden {} --bottleneck {} --out-dim {}",
                h.layers, h.hidden, h.bottleneck, h.prototypes
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
    let mut targets = vec![];
    to.visit(|spec| targets.extend((spec.part != Part::Backbone).then(|| spec.at.range())));
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
        let vit = |channels| Vit { patch: 1, channels, dim: 2, ..Vit::TINY_16 };
        let old = [1.0f32, 2.0, 4.0, -1.0, 0.5, 8.0];
        for (n, first) in [
            (1, vec![7.0]),
            (2, vec![1.5, 3.0]),
            (3, vec![1.0, 2.0, 4.0]),
            (4, vec![0.5, 2.0, 4.0, 0.5]),
            (6, vec![0.5, 1.0, 2.0, 0.5, 1.0, 2.0]),
        ] {
            let mut new = vec![0.0; 2 * n];
            patches(&mut new, &old, &vit(3), &vit(n));
            assert_eq!(new[..n], first[..], "{n} channels");
        }
        let mut gray = vec![0.0; 3 * 2];
        patches(&mut gray, &[3.0, 6.0], &vit(1), &vit(3));
        assert_eq!(gray, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
    }
}
