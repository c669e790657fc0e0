//! The architecture of a foreign file, read off the shapes of its tensors and off what is stored beside it.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::image::augment::EvalView;
use crate::weights::names::{Naming, TensorPart};
use crate::weights::{File, Keys, Options, Report, Side};
use dino_kernel::ops::layernorm::EPS;
use serde_json::Value;

/// The LayerNorm epsilon of Hugging Face's ViTConfig where a config.json does not state it.
const HF_EPS: f64 = 1e-12;

/// A foreign file's own settings, in the metadata of what [`crate::weights::write`] writes.
pub(in crate::weights) const SETTINGS: &str = "dino-host";

/// The configuration that a file's shapes make, and whether the file stated how many attention heads there are.
pub(in crate::weights) fn config(
    file: &File,
    keys: &Keys,
    side: &Side,
    options: &Options,
    report: &mut Report,
) -> Result<(Config, bool)> {
    let shape = |name: &str| {
        let key = keys.get(&TensorPart { name: name.into(), third: None })?;
        Some(file.tensors[key].shape.as_slice())
    };
    let refuse = |what: String| {
        Error::new(format!("{} is no vision transformer of this program: {what}", file.name))
            .hint("plain vision transformers with a class token, learned positions and square patches are read")
    };
    let (class, patch, positions) = (shape("cls_token"), shape("patch_embed.proj.weight"), shape("pos_embed"));
    if class.is_none() && (patch.is_some() || positions.is_some()) {
        return Err(refuse("it has no class token".into()));
    }
    let (Some(class), Some(patch), Some(positions)) = (class, patch, positions) else {
        let seen: Vec<&str> = file.tensors.keys().take(crate::weights::SHOWN).map(String::as_str).collect();
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
    let settings: Value = match file.metadata.get(SETTINGS) {
        Some(text) => serde_json::from_str(text).map_err(|e| refuse(format!("its header's {SETTINGS}: {e}")))?,
        None => Value::Null,
    };
    let whole = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    let stated = whole(&settings["heads"]).or(whole(&side.config["num_attention_heads"]));
    let heads = match stated.or(options.heads) {
        Some(heads) => heads,
        None if dim.is_multiple_of(64) => dim / 64,
        None => {
            return Err(Error::new(format!(
                "{} does not say how many attention heads its width of {dim} has",
                file.name
            ))
            .hint("--heads N: `dino-host convert` writes it into the file"));
        }
    };
    let global_size =
        grid.checked_mul(side_p).ok_or_else(|| refuse(format!("its patches have the shape {patch:?}")))?;
    let published = Config::published();
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
        // Published weights are evaluated as they were published; files of this program state it themselves since there is the key.
        eval_view: match &settings {
            Value::Null => EvalView::ResizeCrop.name().into(),
            settings => settings["eval-view"].as_str().map_or(published.eval_view.clone(), String::from),
        },
        // As large beside the global crops as the published ones, in full patches.
        local_size: (global_size / 7 * 3 / side_p).max(1) * side_p,
        position_resize: report.naming.position_resize().into(),
        ..published
    };
    head(&mut config, &shape, options.head).map_err(refuse)?;
    beside(&mut config, side, mlp, report)?;
    normalization(&mut config, &settings, side, report);
    if let Some(eps) = settings["norm-eps"].as_f64() {
        config.norm_eps = eps;
    }
    if let Some(rule) = settings["position-resize"].as_str() {
        config.position_resize = rule.into();
    }
    note_positions(report, &config.position_resize);
    let name = &file.name;
    let config =
        config.resolve().map_err(|e| Error::new(format!("{name}: {}", e.message)).hint(e.hint.unwrap_or_default()))?;
    Ok((config, stated.is_some()))
}

/// The ratio that makes `mlp` of `dim`, though it is cut to an integer.
fn mlp_ratio(mlp: usize, dim: usize) -> f64 {
    let ratio = mlp as f64 / dim as f64;
    if (dim as f64 * ratio) as usize == mlp { ratio } else { ratio.next_up() }
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

/// Means and deviations of the channels, as the file or those beside it name them.
fn normalization(config: &mut Config, settings: &Value, side: &Side, report: &mut Report) {
    let numbers = |v: &Value| -> Option<Vec<f64>> { v.as_array()?.iter().map(Value::as_f64).collect() };
    let sources = [
        (numbers(&settings["mean"]), numbers(&settings["std"])),
        (numbers(&side.preprocessor["image_mean"]), numbers(&side.preprocessor["image_std"])),
        (numbers(&side.config["pretrained_cfg"]["mean"]), numbers(&side.config["pretrained_cfg"]["std"])),
    ];
    if let Some((mean, std)) = sources.into_iter().find_map(|(mean, std)| Some((mean?, std?))) {
        (config.mean, config.std) = (mean, std);
    } else {
        report.notes.push("pixels are normalised with the published means and deviations: the file names none".into());
    }
}

/// The projection head's sizes, where there is one.
fn head<'a>(config: &mut Config, shape: &impl Fn(&str) -> Option<&'a [usize]>, wanted: bool) -> Result<(), String> {
    let Some(&[prototypes, bottleneck]) = shape("head.last_layer.weight_v") else { return Ok(()) };
    if shape("head.mlp.1.weight").is_some() {
        return match wanted {
            true => Err("its projection head has batch norms".into()),
            false => Ok(()),
        };
    }
    let linear =
        |i: usize| shape(&format!("head.mlp.{}.weight", 2 * i)).or(shape("head.mlp.weight").filter(|_| i == 0));
    let layers = (0..16).take_while(|i| linear(*i).is_some()).count();
    (config.out_dim, config.bottleneck, config.head_layers) = (prototypes, bottleneck, layers);
    if let (true, Some(&[hidden, _])) = (layers > 1, linear(0)) {
        config.hidden = hidden;
    }
    Ok(())
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
    let bad = |key: &str, said: &Value, have: &dyn std::fmt::Display| {
        Error::new(format!("config.json beside {} says {key} {said}, its tensors {have}", report.file))
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
        if let Some(said) = side.config[key].as_u64()
            && said != have as u64
        {
            return Err(bad(key, &side.config[key], &have));
        }
    }
    if let Some(act) = side.config["hidden_act"].as_str().filter(|act| *act != "gelu") {
        return Err(Error::new(format!("config.json beside {} says hidden_act {act:?}", report.file))
            .hint("this program's networks have the exact gelu"));
    }
    config.norm_eps = side.config["layer_norm_eps"].as_f64().unwrap_or(HF_EPS);
    if config.norm_eps != EPS {
        report.notes.push(format!(
            "LayerNorms add {:e} to the variance as its config.json says (norm-eps); the published program adds 1e-6",
            config.norm_eps
        ));
    }
    Ok(())
}
