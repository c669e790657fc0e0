//! What Hugging Face stores beside the weights of a vision transformer.

use crate::config::Config;
use crate::error::Result;
use crate::io::atomic::write_atomically;
use crate::weights::Classifier;
use serde_json::json;
use std::io::Write;
use std::path::Path;

/// Writes config.json and preprocessor_config.json into `out`, the folder of the `weights`; with a classifier those of an image
/// classification model. Returns the lines to print.
///
/// # Errors
/// A file cannot be written.
pub(super) fn hugging_face(
    config: &Config,
    classifier: Option<&Classifier>,
    out: &Path,
    weights: &Path,
) -> Result<Vec<String>> {
    let mut model = json!({
        "architectures": ["ViTModel"],
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": config.embed_dim,
        "image_size": config.global_size,
        "initializer_range": config.init_std,
        "intermediate_size": config.mlp(),
        "layer_norm_eps": config.norm_eps,
        "model_type": "vit",
        "num_attention_heads": config.heads,
        "num_channels": config.channels,
        "num_hidden_layers": config.depth,
        "patch_size": config.patch_size,
        "qkv_bias": true,
    });
    if let Some(classifier) = classifier {
        super::name_classes(&mut model, "ViTForImageClassification", classifier);
    }
    let pixels = json!({
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": config.mean,
        "image_processor_type": "ViTImageProcessor",
        "image_std": config.std,
        "resample": 3,
        "rescale_factor": 1.0 / 255.0,
        "size": {"height": config.global_size, "width": config.global_size},
    });
    write_atomically(&out.join("config.json"), |f| writeln!(f, "{model:#}"))?;
    write_atomically(&out.join("preprocessor_config.json"), |f| writeln!(f, "{pixels:#}"))?;
    let mut lines = vec![
        format!("written: {} with config.json, layer_norm_eps {:e}", weights.display(), config.norm_eps),
        match classifier {
            None => "there is no pooler in it: ViTModel.from_pretrained(DIR, add_pooling_layer=False)".into(),
            Some(_) => "with its classifier: ViTForImageClassification.from_pretrained(DIR)".into(),
        },
    ];
    if config.position_resize != "size" {
        lines.push(
            "other image sizes: Hugging Face resizes positions to a size, this network was trained with the published \
             rule (+0.1), so features there differ a little"
                .into(),
        );
    }
    Ok(lines)
}
