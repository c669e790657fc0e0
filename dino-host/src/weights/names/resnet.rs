//! What a residual network's tensors are called: torchvision's names, which are the published ones, this program's and timm's too.

use super::{Names, Naming, TensorPart};

/// A residual network's.
pub static NAMES: Names = Names {
    // Not the stem's: a block has a `conv1` and a `bn1` as well.
    marks: &[("layer1.0.conv1.weight", 0), ("layer1.0.bn1.running_mean", 1), ("layer1.0.conv2.weight", 2)],
    attribute: "resnet.",
    reads: "it reads torchvision's residual networks of basic or bottleneck blocks, as DINO's ResNet-50 is",
    is_hf: |name| name.starts_with("embedder.embedder.") || name.starts_with("encoder.stages."),
    published: |naming, name| (naming != Naming::Hf).then(|| TensorPart { name: name.into(), third: None }),
    spelled: |naming, name| if naming == Naming::Hf { vec![] } else { vec![name.into()] },
    is_ours,
    foreign,
};

fn is_ours(name: &str) -> bool {
    let Some((unit, leaf)) = name.rsplit_once('.') else { return false };
    let unit = match unit.strip_prefix("layer").and_then(|rest| rest.splitn(3, '.').nth(2)) {
        Some(inside) => inside,
        None => unit,
    };
    let norm = matches!(leaf, "weight" | "bias" | "running_mean" | "running_var");
    match unit {
        "conv1" | "conv2" | "conv3" | "downsample.0" => leaf == "weight",
        "bn1" | "bn2" | "bn3" | "downsample.1" => norm,
        _ => false,
    }
}

fn foreign(name: &str) -> Option<&'static str> {
    let parts = |word: &str| name.split('.').any(|part| part == word);
    Some(if parts("se") || parts("attn") {
        "attention in its blocks"
    } else if parts("aa") || parts("drop_block") {
        "other filters between its convolutions"
    } else {
        return None;
    })
}
