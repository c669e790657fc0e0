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
    let entire = config.eval_view() == Some(EvalView::Whole);
    let pixels = json!({
        "crop_pct": if entire { 1.0 } else { 0.875 },
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": config.mean,
        "image_processor_type": "ConvNextImageProcessor",
        "image_std": config.std,
        "resample": 3,
        "rescale_factor": 1.0 / 255.0,
        "size": {"shortest_edge": config.global_size},
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
