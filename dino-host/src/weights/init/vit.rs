//! A vision transformer that starts from another one's weights.

use super::{Numbers, drawn, note_normalization, same_channels};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{Weights, write};
use dino_kernel::backend::Grid;
use dino_kernel::model::Vit;
use dino_kernel::ops::position;
use std::path::Path;

/// The run's network with the file's backbone, of shapes `a` (the file's) and `b` (the run's). Positions are resized and channels repeated
/// or added; what was done is appended to `notes`.
pub(super) fn start(
    file: &Path,
    given: &Weights,
    config: &Config,
    channels: bool,
    [a, b]: [&Vit; 2],
    notes: &mut Vec<String>,
) -> Result<Numbers> {
    same_shape(file, a, b)?;
    same_channels(file, a.channels, b.channels, channels)?;
    let ((mut weights, buffers), targets) = drawn(config);
    for (t, to) in write::backbone(&given.config, &given.backbone).iter().zip(targets) {
        assert_eq!(t.name, to.name, "networks of one depth have one order of tensors");
        let target = &mut weights[to.at];
        match t.name.as_str() {
            "pos_embed" => positions(target, t.values, a, b),
            "patch_embed.proj.weight" => {
                super::channels(target, t.values, a.patch * a.patch, [a.channels, b.channels]);
            }
            _ => target.copy_from_slice(t.values),
        }
    }
    if a.side() != b.side() {
        notes.push(format!(
            "positions are resized from {0} x {0} to {1} x {1} (position-resize {2})",
            a.side(),
            b.side(),
            config.position_resize
        ));
    }
    if a.channels != b.channels {
        notes.push(format!("patch weights of {} channels serve {}", a.channels, b.channels));
    }
    note_normalization(&given.config, config, notes);
    if given.config.norm_eps != config.norm_eps {
        let [run, file] = [config.norm_eps, given.config.norm_eps];
        notes.push(format!(
            "the run's LayerNorms add {run:e} to the variance, the weights' added {file:e}: --norm-eps {file:e}"
        ));
    }
    Ok((weights, buffers))
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
    let keys: Vec<String> = differ.iter().map(|(key, a, b)| format!("{key} {a}, not {b}")).collect();
    let flags: Vec<String> = differ
        .iter()
        .map(|(key, a, _)| match *key {
            "mlp" => format!("--mlp-ratio {}", from.mlp as f64 / from.dim as f64),
            key => format!("--{key} {a}"),
        })
        .collect();
    Err(Error::new(format!("the run does not have the shape of {}: that has {}", file.display(), keys.join(", ")))
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
