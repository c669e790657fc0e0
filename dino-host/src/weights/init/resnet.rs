//! A residual network that starts from another one's weights and running statistics.

use super::{Numbers, channels, drawn, note_normalization, same_channels};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{Weights, write};
use dino_kernel::model::ResNet;
use std::path::Path;

/// The run's network with the file's backbone, of shapes `a` (the file's) and `b` (the run's). Channels are repeated or added; what was
/// done is appended to `notes`.
///
/// # Errors
/// The shapes differ in more than the channels and the image, or the channels do without `asked`.
pub(super) fn start(
    file: &Path,
    given: &Weights,
    config: &Config,
    asked: bool,
    [a, b]: [&ResNet; 2],
    notes: &mut Vec<String>,
) -> Result<Numbers> {
    // The stride of a stem is in no tensor: that of the run is taken.
    let (mut like, stem) = (*a, a.stem);
    (like.image, like.channels, like.stem.stride) = (b.image, b.channels, b.stem.stride);
    if like != *b {
        return Err(Error::new(format!(
            "the run does not have the shape of {}: that has {}, the run {}",
            file.display(),
            flags(&given.config),
            flags(config)
        ))
        .hint(format!("give the run its shape: {}", flags(&given.config))));
    }
    same_channels(file, a.channels, b.channels, asked)?;
    if stem.stride != b.stem.stride {
        notes.push(format!(
            "the run's first convolution has the stride {}, the weights are used to {}: --stem-stride",
            b.stem.stride, stem.stride
        ));
    }
    let ((mut weights, mut buffers), targets) = drawn(config);
    for (t, to) in write::backbone(&given.config, &given.backbone).iter().zip(targets) {
        assert_eq!(t.name, to.name, "networks of one depth have one order of tensors");
        let target = if to.buffer { &mut buffers[to.at] } else { &mut weights[to.at] };
        match t.name.as_str() {
            "conv1.weight" => channels(target, t.values, stem.kernel * stem.kernel, [a.channels, b.channels]),
            _ => target.copy_from_slice(t.values),
        }
    }
    if a.channels != b.channels {
        notes.push(format!("weights of the first convolution of {} channels serve {}", a.channels, b.channels));
    }
    note_normalization(&given.config, config, notes);
    Ok((weights, buffers))
}

/// The flags that give a run the shape of a residual network.
pub(super) fn flags(config: &Config) -> String {
    let presets = [ResNet::RESNET_18, ResNet::RESNET_34, ResNet::RESNET_50];
    let shape = |r: &ResNet| (r.stages().to_vec(), r.block, r.stem.kernel);
    let preset = config.resnet().and_then(|r| presets.iter().position(|preset| shape(preset) == shape(&r)));
    if let Some(i) = preset {
        return format!("--arch {}", ["resnet18", "resnet34", "resnet50"][i]);
    }
    let list = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
    format!(
        "--arch resnet_small --widths {} --stage-blocks {} --block-kind {} --stem {} --stem-stride {}",
        list(&config.widths),
        list(&config.stage_blocks),
        config.block_kind,
        config.stem,
        config.stem_stride
    )
}
