//! A residual network's configuration.

use super::{Source, eval_view, head, normalization};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{Naming, Report, Side};
use dino_kernel::model::resnet::{Block, MAX_BLOCKS, MAX_STAGES};
use serde_json::{Value, json};

/// What a file that is refused might be instead.
const READS: &str = "torchvision's networks of basic or bottleneck blocks are read";

/// The configuration that the shapes make. Strides and the max pool are in no shape: a filter of 7 x 7 has them as torchvision has, one of
/// 3 x 3 has neither, unless the file states its own.
pub(super) fn config(source: Source, report: &mut Report) -> Result<Config> {
    let Source { file, side, .. } = source;
    let refuse =
        |what: String| Error::new(format!("{} is no residual network of this program: {what}", file.name)).hint(READS);
    let Some(&[stem_width, channels, kernel, _]) = source.shape("conv1.weight") else {
        return Err(refuse(match source.shape("conv1.weight") {
            Some(shape) => format!("its first convolution has the shape {shape:?}"),
            None => "it has no first convolution".into(),
        }));
    };
    let stem = match kernel {
        7 => "7x7",
        3 => "3x3",
        _ => return Err(refuse(format!("its first filter has a side of {kernel}"))),
    };
    let block = if source.shape("layer1.0.conv3.weight").is_some() { "bottleneck" } else { "basic" };
    let (mut widths, mut blocks) = (vec![], vec![]);
    for stage in 1..=MAX_STAGES {
        let width = |block: usize| source.shape(&format!("layer{stage}.{block}.conv1.weight"))?.first().copied();
        let Some(first) = width(0) else { break };
        widths.push(first);
        blocks.push((0..MAX_BLOCKS).take_while(|block| width(*block).is_some()).count());
    }
    if widths.is_empty() {
        return Err(refuse("it has no blocks under layer1".into()));
    }
    // Relatives that differ in their shapes alone.
    let first = |name: &str, axis: usize| source.shape(name).and_then(|shape| shape.get(axis)).copied();
    let grouped = first("layer1.0.conv2.weight", 1).is_some_and(|inp| inp < widths[0] && inp > 0);
    if grouped && first("layer1.0.conv2.weight", 0) == Some(widths[0]) {
        return Err(refuse("its convolutions are grouped (ResNeXt, RegNet)".into()));
    }
    let out = first("layer1.0.conv3.weight", 0);
    if out.is_some() && out == widths[0].checked_mul(2) {
        return Err(refuse("its bottlenecks give twice their width (a wide network), not four times".into()));
    }
    let settings = source.settings().map_err(refuse)?;
    let arch = match (block, &widths[..], &blocks[..], stem) {
        ("basic", [64, 128, 256, 512], [2, 2, 2, 2], "7x7") => "resnet18",
        ("basic", [64, 128, 256, 512], [3, 4, 6, 3], "7x7") => "resnet34",
        ("bottleneck", [64, 128, 256, 512], [3, 4, 6, 3], "7x7") => "resnet50",
        _ => "resnet_small",
    };
    let stated = |key: &str| settings[key].as_u64().and_then(|n| usize::try_from(n).ok());
    let mut config = Config {
        arch: arch.into(),
        block_kind: block.into(),
        stem: stem.into(),
        stem_stride: stated("stem-stride").unwrap_or(0),
        widths,
        stage_blocks: blocks,
        channels,
        eval_view: eval_view(&settings),
        ..Config::published()
    };
    if let Some(size) = stated("global-size").or_else(|| image_size(side)) {
        (config.global_size, config.local_size) = (size, (size / 7 * 3).max(1));
    }
    head(&mut config, source).map_err(refuse)?;
    beside(&config, stem_width, side, report)?;
    normalization(&mut config, &settings, side, report);
    if config.clone().resolve().is_ok_and(|c| c.resnet().is_some_and(|resnet| resnet.stem.width != stem_width)) {
        return Err(refuse(format!(
            "its first convolution gives {stem_width} channels, its first stage has another width"
        )));
    }
    Ok(config)
}

/// Side of the images that a network was trained on, as Hugging Face and timm state it beside its weights.
fn image_size(side: &Side) -> Option<usize> {
    let (size, cut) = (&side.preprocessor["size"], &side.preprocessor["crop_size"]);
    let timm = &side.config["pretrained_cfg"]["input_size"][2];
    let stated = [&cut["height"], cut, &size["shortest_edge"], &size["height"], size, timm];
    stated.into_iter().find_map(Value::as_u64).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0)
}

/// A config.json beside a file of Hugging Face's must state what the shapes do, and strides where this program has them.
fn beside(config: &Config, stem_width: usize, side: &Side, report: &Report) -> Result<()> {
    if report.naming != Naming::Hf {
        return Ok(());
    }
    let (bottleneck, stages) = (config.block_kind == "bottleneck", config.widths.iter());
    let expansion = if bottleneck { Block::Bottleneck.expansion() } else { 1 };
    let sizes: Vec<usize> = stages.map(|width| width.saturating_mul(expansion)).collect();
    let tensors = [
        ("embedding_size", json!(stem_width)),
        ("num_channels", json!(config.channels)),
        ("depths", json!(config.stage_blocks)),
        ("hidden_sizes", json!(sizes)),
        ("layer_type", json!(config.block_kind)),
    ];
    let states = |key: &str| Some(&side.config[key]).filter(|stated| !stated.is_null());
    if let Some((key, have)) = tensors.iter().find(|(key, have)| states(key).is_some_and(|stated| stated != have)) {
        let stated = &side.config[*key];
        return Err(Error::new(format!(
            "config.json beside {} states {key} {stated}, its tensors {have}",
            report.file
        ))
        .hint("do the two belong together?"));
    }
    let strides = [("downsample_in_bottleneck", bottleneck), ("downsample_in_first_stage", true)];
    let other = strides.into_iter().find(|(key, matters)| *matters && side.config[*key] == json!(true));
    let act = states("hidden_act").filter(|act| **act != json!("relu"));
    let what = match (other, act) {
        (Some((key, _)), _) => format!("{key} true"),
        (None, Some(act)) => format!("hidden_act {act}"),
        (None, None) => return Ok(()),
    };
    Err(Error::new(format!("config.json beside {} states {what}", report.file)).hint(
        "this program's residual networks have relu, the stride on the 3 x 3 convolution and none in the first stage, \
         as torchvision's",
    ))
}
