//! What Hugging Face stores beside the weights of a residual network.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::image::augment::EvalView;
use crate::io::atomic::write_atomically;
use crate::weights::Classifier;
use dino_kernel::model::ResNet;
use dino_kernel::model::resnet::{Block, Stem};
use serde_json::json;
use std::io::Write;
use std::path::Path;

/// Refuses a network that Hugging Face's ResNet cannot be: its stem is torchvision's alone.
///
/// # Errors
/// The stem is another one.
pub(super) fn check(resnet: &ResNet) -> Result<()> {
    if resnet.stem == Stem::published(resnet.stem.width) {
        return Ok(());
    }
    let Stem { kernel, stride, .. } = resnet.stem;
    Err(Error::new(format!(
        "Hugging Face's ResNet has a stem of 7 x 7 with stride 2 and a max pool, this one {kernel} x {kernel} with stride {stride}"
    ))
    .hint("--to official, --to timm and --to onnx write any stem"))
}

/// The part that a square of side `size` is of a shorter side of `short` pixels, so that size / part, cut to an integer, is `short`.
fn crop_pct(size: usize, short: usize) -> f64 {
    let part = size as f64 / short as f64;
    if (size as f64 / part) as usize == short { part } else { size as f64 / (short as f64 + 0.5) }
}

/// Writes config.json and preprocessor_config.json into `out`, the folder of the `weights`; with a classifier those of an image
/// classification model. Returns the lines to print.
///
/// # Errors
/// A file cannot be written.
pub(super) fn hugging_face(
    config: &Config,
    resnet: &ResNet,
    classifier: Option<&Classifier>,
    out: &Path,
    weights: &Path,
) -> Result<Vec<String>> {
    let stages = resnet.stages();
    let sizes: Vec<usize> = stages.iter().map(|stage| stage.width * resnet.block.expansion()).collect();
    let mut model = json!({
        "architectures": ["ResNetModel"],
        "depths": config.stage_blocks,
        "downsample_in_bottleneck": false,
        "downsample_in_first_stage": false,
        "embedding_size": resnet.stem.width,
        "hidden_act": "relu",
        "hidden_sizes": sizes,
        "layer_type": if resnet.block == Block::Bottleneck { "bottleneck" } else { "basic" },
        "model_type": "resnet",
        "num_channels": config.channels,
    });
    if let Some(classifier) = classifier {
        super::name_classes(&mut model, "ResNetForImageClassification", classifier);
    }
    // The processor that resizes to size / crop_pct and cuts the middle out, as torchvision evaluates.
    let size = config.global_size;
    let short = config.eval_view().unwrap_or(EvalView::ResizeCrop).short(size);
    let pixels = json!({
        "crop_pct": crop_pct(size, short),
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": config.mean,
        "image_processor_type": "ConvNextImageProcessor",
        "image_std": config.std,
        "resample": 3,
        "rescale_factor": 1.0 / 255.0,
        "size": {"shortest_edge": size},
    });
    write_atomically(&out.join("config.json"), |f| writeln!(f, "{model:#}"))?;
    write_atomically(&out.join("preprocessor_config.json"), |f| writeln!(f, "{pixels:#}"))?;
    Ok(vec![
        format!("written: {} with config.json", weights.display()),
        match classifier {
            None => "ResNetModel.from_pretrained(DIR).eval(): its pooler_output are the features".into(),
            Some(_) => "with its classifier: ResNetForImageClassification.from_pretrained(DIR).eval()".into(),
        },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_side_is_ours_at_every_size() {
        assert_eq!((crop_pct(224, 256), crop_pct(40, 40)), (0.875, 1.0));
        for size in 1..2048 {
            let short = EvalView::ResizeCrop.short(size);
            assert_eq!((size as f64 / crop_pct(size, short)) as usize, short, "{size}");
        }
    }
}
