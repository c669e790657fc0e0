//! A vision transformer's configuration.

use super::{Source, eval_view, head, normalization};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{Naming, Report, SHOWN, Side};
use dino_kernel::ops::layernorm::EPS;
use serde_json::Value;

/// The LayerNorm epsilon of Hugging Face's ViTConfig where a config.json does not state it.
const HF_EPS: f64 = 1e-12;

/// The configuration that the shapes make, and whether the file stated how many attention heads there are.
pub(super) fn config(source: Source, report: &mut Report) -> Result<(Config, bool)> {
    let Source { file, keys, side, options } = source;
    let shape = |name: &str| source.shape(name);
    let refuse = |what: String| {
        Error::new(format!("{} is no vision transformer of this program: {what}", file.name))
            .hint("plain vision transformers with a class token, learned positions and square patches are read")
    };
    let (class, patch, positions) = (shape("cls_token"), shape("patch_embed.proj.weight"), shape("pos_embed"));
    if class.is_none() && (patch.is_some() || positions.is_some()) {
        return Err(refuse("it has no class token".into()));
    }
    let (Some(class), Some(patch), Some(positions)) = (class, patch, positions) else {
        let seen: Vec<&str> = file.tensors.keys().take(SHOWN).map(String::as_str).collect();
        let none = "none of a class token, patches and positions under names of ";
        return Err(refuse(format!("{none}{}; it begins with {}", report.naming.name(), seen.join(", "))));
    };
    let (&[1, 1, dim], &[_, channels, side_p, other], &[1, tokens, _]) = (class, patch, positions) else {
        return Err(refuse(format!("class token {class:?}, patches {patch:?}, positions {positions:?}")));
    };
    let cells = tokens.saturating_sub(1);
    let grid = cells.isqrt();
    if side_p != other || side_p == 0 || dim == 0 {
        return Err(refuse(format!("its patches have the shape {patch:?}")));
    }
    if grid == 0 || grid * grid != cells {
        return Err(refuse(format!("{tokens} positions are not a class token's and a square's")));
    }
    let blocks = keys.keys().filter_map(|p| p.name.strip_prefix("blocks.")?.split('.').next()?.parse::<usize>().ok());
    let depth = blocks.max().map_or(0, |last| last.saturating_add(1));
    if depth == 0 || depth > keys.len() {
        return Err(refuse(format!("its {} tensors are not those of {depth} blocks", keys.len())));
    }
    let mlp = shape("blocks.0.mlp.fc1.weight").and_then(|s| s.first().copied()).unwrap_or(4 * dim);
    let settings = source.settings().map_err(refuse)?;
    let whole = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    let stated = whole(&settings["heads"]).or(whole(&side.config["num_attention_heads"]));
    let heads = match stated.or(options.heads) {
        Some(heads) => heads,
        None if dim.is_multiple_of(64) => dim / 64,
        None => {
            return Err(Error::new(format!(
                "{} does not state how many attention heads its width of {dim} has",
                file.name
            ))
            .hint("--heads N: `dino-host convert` writes it into the file"));
        }
    };
    let global_size =
        grid.checked_mul(side_p).ok_or_else(|| refuse(format!("its patches have the shape {patch:?}")))?;
    let mut config = Config {
        arch: match dim {
            192 => "vit_tiny",
            768 => "vit_base",
            _ => "vit_small",
        }
        .into(),
        patch_size: side_p,
        embed_dim: dim,
        depth,
        heads,
        mlp_ratio: mlp_ratio(mlp, dim),
        channels,
        global_size,
        eval_view: eval_view(&settings),
        // As large beside the global crops as the published ones, in full patches.
        local_size: (global_size / 7 * 3 / side_p).max(1) * side_p,
        position_resize: position_resize(report.naming).into(),
        ..Config::published()
    };
    head(&mut config, source).map_err(refuse)?;
    beside(&mut config, side, mlp, report)?;
    normalization(&mut config, &settings, side, report);
    if let Some(eps) = settings["norm-eps"].as_f64() {
        config.norm_eps = eps;
    }
    if let Some(rule) = settings["position-resize"].as_str() {
        config.position_resize = rule.into();
    }
    note_positions(report, &config.position_resize);
    Ok((config, stated.is_some()))
}

/// The ratio that makes `mlp` of `dim`, though it is cut to an integer.
fn mlp_ratio(mlp: usize, dim: usize) -> f64 {
    let ratio = mlp as f64 / dim as f64;
    if (dim as f64 * ratio) as usize == mlp { ratio } else { ratio.next_up() }
}

/// How the program of these names resizes positions, as the key `position-resize` has it. (timm's own way, smoothed and with a = -0.5,
/// is not offered: it was never what such weights were trained with.)
fn position_resize(naming: Naming) -> &'static str {
    if naming == Naming::Hf { "size" } else { "published" }
}

/// How positions will be resized, where the program that the weights come from does it in another way.
fn note_positions(report: &mut Report, rule: &str) {
    match (report.naming, rule) {
        (Naming::Hf, "size") => report.notes.push(
            "positions are resized as Hugging Face does (position-resize size); the published program adds 0.1".into(),
        ),
        (Naming::Timm, _) => report.notes.push(
            "positions are resized as the published program does (position-resize published); timm smooths them".into(),
        ),
        _ => (),
    }
}

/// A config.json beside the file must state what the shapes do; where its program computes otherwise, that is a note.
fn beside(config: &mut Config, side: &Side, mlp: usize, report: &mut Report) -> Result<()> {
    if report.naming != Naming::Hf {
        return Ok(());
    }
    if side.config.is_null() {
        report
            .notes
            .push("there is no config.json beside it: heads are taken to be 64 wide, layer_norm_eps 1e-12".into());
        config.norm_eps = HF_EPS;
        return Ok(());
    }
    let bad = |key: &str, stated: &Value, have: &dyn std::fmt::Display| {
        Error::new(format!("config.json beside {} states {key} {stated}, its tensors {have}", report.file))
            .hint("do the two belong together?")
    };
    let sizes = [
        ("hidden_size", config.embed_dim),
        ("num_hidden_layers", config.depth),
        ("intermediate_size", mlp),
        ("image_size", config.global_size),
        ("patch_size", config.patch_size),
        ("num_channels", config.channels),
    ];
    for (key, have) in sizes {
        if let Some(stated) = side.config[key].as_u64()
            && stated != have as u64
        {
            return Err(bad(key, &side.config[key], &have));
        }
    }
    if let Some(act) = side.config["hidden_act"].as_str().filter(|act| *act != "gelu") {
        return Err(Error::new(format!("config.json beside {} states hidden_act {act:?}", report.file))
            .hint("this program's networks have the exact gelu"));
    }
    config.norm_eps = side.config["layer_norm_eps"].as_f64().unwrap_or(HF_EPS);
    if config.norm_eps != EPS {
        report.notes.push(format!(
            "LayerNorms add {:e} to the variance as its config.json states (norm-eps); the published program adds 1e-6",
            config.norm_eps
        ));
    }
    Ok(())
}
