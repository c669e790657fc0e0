//! Weights for other programs: safetensors under the published names, timm's or Hugging Face's, or an array a tensor.

use super::infer::SETTINGS;
use super::names::to_hf;
use super::{Naming, Weights};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use crate::io::npy;
use crate::weights::checkpoint::{self, Out, Progress};
use dino_kernel::params::Part;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// A tensor of a backbone or a head.
#[derive(Clone, Debug, PartialEq)]
pub struct Named<'a> {
    /// The published key, `blocks.3.attn.qkv.weight` or `head.mlp.0.weight`.
    pub name: String,
    /// As the table has it.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: &'a [f32],
}

/// The tensors of a backbone (`weights` in the table's layout) in the published order.
pub fn backbone<'a>(config: &Config, weights: &'a [f32]) -> Vec<Named<'a>> {
    let mut all = vec![];
    config.table().visit(|spec| {
        if spec.part == Part::Backbone {
            let values = &weights[spec.at.range()];
            all.push(Named { name: spec.name.to_string(), shape: spec.shape().to_vec(), values });
        }
    });
    all
}

/// The tensors of a projection head, laid out as the table behind the backbone.
pub fn head<'a>(config: &Config, weights: &'a [f32]) -> Vec<Named<'a>> {
    let (table, mut all) = (config.table(), vec![]);
    table.visit(|spec| {
        if spec.part != Part::Backbone {
            let values = &weights[spec.at.0.at - table.backbone_len()..][..spec.at.len()];
            all.push(Named { name: spec.name.to_string(), shape: spec.shape().to_vec(), values });
        }
    });
    all
}

/// Writes safetensors with a program's names: a file, or Hugging Face's folder. Equal weights give equal bytes. Returns the lines to print.
///
/// # Errors
/// These names have no place for a projection head, or a file cannot be written.
pub fn safetensors(naming: Naming, weights: &Weights, out: &Path) -> Result<Vec<String>> {
    let config = &weights.config;
    let mut tensors: Vec<(String, Out)> = vec![];
    let prefix = match (&weights.head, naming) {
        (None, _) => "",
        (Some(_), Naming::Official) => "backbone.",
        (Some(_), Naming::Own) => "teacher.backbone.",
        (Some(_), _) => {
            return Err(Error::new(format!("{}'s model has no place for a projection head", naming.name()))
                .hint("leave --head out, or use --to official"));
        }
    };
    for t in backbone(config, &weights.backbone) {
        if naming == Naming::Hf {
            // Query, key and value are stored one below the other.
            let names = to_hf(&t.name);
            let mut shape = t.shape;
            shape[0] /= names.len();
            for (name, values) in names.into_iter().zip(t.values.chunks(shape.iter().product())) {
                tensors.push((name, Out { shape: shape.clone(), values: values.to_vec() }));
            }
        } else {
            tensors.push((format!("{prefix}{}", t.name), Out { shape: t.shape, values: t.values.to_vec() }));
        }
    }
    for t in weights.head.iter().flat_map(|h| head(config, h)) {
        let name = if naming == Naming::Own { format!("teacher.{}", t.name) } else { t.name };
        tensors.push((name, Out { shape: t.shape, values: t.values.to_vec() }));
    }
    // What the names and shapes do not tell, for when it is read again here; other programs do not read it.
    let settings = json!({
        "heads": config.heads, "mean": config.mean, "std": config.std, "position-resize": config.position_resize,
        "eval-view": config.eval_view,
        "norm-eps": config.norm_eps,
    });
    let foreign = || BTreeMap::from([("format", "pt".to_string()), (SETTINGS, settings.to_string())]);
    match naming {
        Naming::Own => {
            checkpoint::write(out, tensors, checkpoint::metadata(config, Progress::default()))?;
            Ok(vec![format!("written: {}", out.display())])
        }
        Naming::Official | Naming::Timm => {
            checkpoint::write(out, tensors, foreign())?;
            Ok(vec![format!("written: {}", out.display())])
        }
        Naming::Hf => {
            folder(out)?;
            checkpoint::write(&out.join("model.safetensors"), tensors, foreign())?;
            let (model, pixels) = hugging_face(config);
            write_atomically(&out.join("config.json"), |f| writeln!(f, "{model:#}"))?;
            write_atomically(&out.join("preprocessor_config.json"), |f| writeln!(f, "{pixels:#}"))?;
            let mut said = vec![format!(
                "written: {} with config.json, layer_norm_eps {:e}",
                out.join("model.safetensors").display(),
                config.norm_eps
            )];
            said.push("there is no pooler in it: ViTModel.from_pretrained(DIR, add_pooling_layer=False)".into());
            if config.position_resize != "size" {
                said.push(
                    "other image sizes: Hugging Face resizes positions to a size, this network was trained with the \
                     published rule (+0.1), so features there differ a little"
                        .into(),
                );
            }
            Ok(said)
        }
    }
}

/// Hugging Face's config.json and preprocessor_config.json.
fn hugging_face(config: &Config) -> (serde_json::Value, serde_json::Value) {
    let model = json!({
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
    (model, pixels)
}

/// Writes a folder with one array a tensor, `NAME.npy` of f32.
///
/// # Errors
/// The folder or a file cannot be written.
pub fn npy(weights: &Weights, out: &Path) -> Result<Vec<String>> {
    folder(out)?;
    let mut all = backbone(&weights.config, &weights.backbone);
    all.extend(weights.head.iter().flat_map(|h| head(&weights.config, h)));
    for t in &all {
        let bytes: Vec<u8> = t.values.iter().flat_map(|x| x.to_le_bytes()).collect();
        write_atomically(&out.join(format!("{}.npy", t.name)), |f| {
            f.write_all(&npy::header(&t.shape))?;
            f.write_all(&bytes)
        })?;
    }
    Ok(vec![format!("written: {} arrays in {}", all.len(), out.display())])
}

fn folder(out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)
        .map_err(|e| Error::new(format!("cannot make the folder {}: {e}", out.display())).hint("OUT names a folder"))
}
