//! What a residual network's tensors are called: torchvision's names, which are the published ones, this program's and timm's too, and
//! Hugging Face's.

use super::{Names, Naming, TensorPart};

/// A residual network's.
pub static NAMES: Names = Names {
    // Not the stem's: a block has a `conv1` and a `bn1` as well.
    marks: &[
        ("layer1.0.conv1.weight", 0),
        ("layer1.0.bn1.running_mean", 1),
        ("layer1.0.conv2.weight", 2),
        ("encoder.stages.0.layers.0.layer.0.convolution.weight", 0),
        ("encoder.stages.0.layers.0.layer.0.normalization.running_mean", 1),
        ("encoder.stages.0.layers.0.layer.1.convolution.weight", 2),
    ],
    attribute: "resnet.",
    reads: "it reads torchvision's residual networks of basic or bottleneck blocks, as DINO's ResNet-50 is",
    is_hf: |name| name.starts_with("embedder.embedder.") || name.starts_with("encoder.stages."),
    published,
    spelled,
    is_ours,
    foreign,
};

fn published(naming: Naming, name: &str) -> Option<TensorPart> {
    let name = if naming == Naming::Hf { from_hf(name)? } else { name.into() };
    Some(TensorPart { name, third: None })
}

fn spelled(naming: Naming, name: &str) -> Vec<String> {
    match naming {
        Naming::Hf => to_hf(name).into_iter().collect(),
        Naming::Official | Naming::Timm | Naming::Own => vec![name.into()],
    }
}

/// Which tensor of ours Hugging Face calls `name`: `encoder.stages.1.layers.0.layer.2.convolution.weight` is
/// `layer2.0.conv3.weight`.
fn from_hf(name: &str) -> Option<String> {
    let number = |text: &str| text.parse::<usize>().ok();
    let parts: Vec<&str> = name.split('.').collect();
    let (at, unit, kind, leaf) = match parts[..] {
        ["embedder", "embedder", kind, leaf] => (String::new(), Some(1), kind, leaf),
        ["encoder", "stages", stage, "layers", block, "layer", unit, kind, leaf] => {
            let at = format!("layer{}.{}.", number(stage)?.checked_add(1)?, number(block)?);
            (at, Some(number(unit)?.checked_add(1)?), kind, leaf)
        }
        ["encoder", "stages", stage, "layers", block, "shortcut", kind, leaf] => {
            (format!("layer{}.{}.", number(stage)?.checked_add(1)?, number(block)?), None, kind, leaf)
        }
        _ => return None,
    };
    match (kind, unit) {
        ("convolution", Some(unit)) => Some(format!("{at}conv{unit}.{leaf}")),
        ("normalization", Some(unit)) => Some(format!("{at}bn{unit}.{leaf}")),
        ("convolution", None) => Some(format!("{at}downsample.0.{leaf}")),
        ("normalization", None) => Some(format!("{at}downsample.1.{leaf}")),
        _ => None,
    }
}

/// What Hugging Face calls a tensor of ours.
fn to_hf(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let kind = |unit: &str| if unit.starts_with("conv") { "convolution" } else { "normalization" };
    // Of `conv2` or `bn2`, counted from 1 here and from 0 there.
    let unit = |unit: &str| unit.trim_start_matches(char::is_alphabetic).parse::<usize>().ok()?.checked_sub(1);
    match parts[..] {
        [stem, leaf] => Some(format!("embedder.embedder.{}.{leaf}", kind(stem))),
        [stage, block, "downsample", i, leaf] => {
            let kind = if i == "0" { "convolution" } else { "normalization" };
            Some(format!("encoder.stages.{}.layers.{block}.shortcut.{kind}.{leaf}", unit(stage)?))
        }
        [stage, block, inside, leaf] => Some(format!(
            "encoder.stages.{}.layers.{block}.layer.{}.{}.{leaf}",
            unit(stage)?,
            unit(inside)?,
            kind(inside)
        )),
        _ => None,
    }
}

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
    let stem = |unit: &str| name.strip_prefix(unit).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    Some(if parts("se") || parts("attn") || parts("attention") {
        "attention in its blocks"
    } else if parts("aa") || parts("drop_block") {
        "other filters between its convolutions"
    } else if stem("conv1.") || stem("bn1.") {
        "several convolutions before its stages (a deep stem)"
    } else if name.contains("downsample.2.") {
        "an average pool in its shortcuts"
    } else {
        return None;
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::weights::entries::entries;
    use dino_kernel::params::Part;

    #[test]
    fn every_tensor_has_a_hugging_face_name_that_leads_back() {
        for (arch, names, last) in [
            ("resnet50", 265, "encoder.stages.3.layers.2.layer.2.normalization.running_var"),
            ("resnet18", 100, "encoder.stages.3.layers.1.layer.1.normalization.running_var"),
        ] {
            let table = Config { arch: arch.into(), ..Config::published() }.resolve().unwrap().table();
            let all: Vec<String> =
                entries(&table).into_iter().filter(|e| e.part == Part::Backbone).map(|e| e.name).collect();
            let hf: Vec<String> = all.iter().map(|name| to_hf(name).unwrap()).collect();
            let back: Vec<String> = hf.iter().map(|name| from_hf(name).unwrap()).collect();
            assert_eq!((back, hf.len()), (all, names), "{arch}");
            assert_eq!((hf[0].as_str(), hf[hf.len() - 1].as_str()), ("embedder.embedder.convolution.weight", last));
        }
        let shortcut = "encoder.stages.1.layers.0.shortcut.normalization.bias";
        assert_eq!(to_hf("layer2.0.downsample.1.bias").as_deref(), Some(shortcut));
        for none in ["encoder.stages.x.layers.0.shortcut.convolution.weight", "encoder.stages.0", "pooler.weight"] {
            assert_eq!(from_hf(none), None, "{none}");
        }
        let most = format!("encoder.stages.{}.layers.0.shortcut.convolution.weight", usize::MAX);
        assert_eq!(from_hf(&most), None);
    }
}
