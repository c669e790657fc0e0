//! A residual network's configuration.

use super::{Source, eval_view, head, normalization};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::Report;
use dino_kernel::model::resnet::{MAX_BLOCKS, MAX_STAGES};

/// The configuration that the shapes make. Strides and the max pool are in no shape: a filter of 7 x 7 has them as torchvision has, one of
/// 3 x 3 has neither, unless the file states its own.
pub(super) fn config(source: Source, report: &mut Report) -> Result<Config> {
    let Source { file, side, .. } = source;
    let refuse = |what: String| {
        Error::new(format!("{} is no residual network of this program: {what}", file.name))
            .hint("torchvision's networks of basic or bottleneck blocks are read")
    };
    let Some(&[stem_width, channels, kernel, _]) = source.shape("conv1.weight") else {
        return Err(refuse(format!("its first convolution has the shape {:?}", source.shape("conv1.weight"))));
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
    if let Some(size) = stated("global-size") {
        (config.global_size, config.local_size) = (size, (size / 7 * 3).max(1));
    }
    head(&mut config, source).map_err(refuse)?;
    normalization(&mut config, &settings, side, report);
    if config.clone().resolve().is_ok_and(|c| c.resnet().is_some_and(|resnet| resnet.stem.width != stem_width)) {
        return Err(refuse(format!("its first convolution gives {stem_width} channels")));
    }
    Ok(config)
}
