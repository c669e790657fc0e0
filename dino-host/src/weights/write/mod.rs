//! Weights for other programs: safetensors under the published names, timm's or Hugging Face's, or an array a tensor. What Hugging Face
//! stores beside them differs from family to family: each has a file here, and an arm in [`safetensors()`].

mod resnet;
mod vit;

use super::entries::entries;
use super::infer::SETTINGS;
use super::names::Family;
use super::{Classifier, Naming, Weights, classifier};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use crate::io::npy;
use crate::weights::checkpoint::{self, Out, Progress};
use dino_kernel::model::Backbone;
use dino_kernel::params::Part;
use safetensors::tensor::{Dtype, View};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
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

/// A tensor on its way to a file.
enum Written {
    /// A parameter or running statistics.
    Numbers(Out),
    /// How many batches a batch norm has seen: PyTorch's files have the number, an int64, and no feature depends on it. It is 0 here.
    Counter,
}

impl View for Written {
    fn dtype(&self) -> Dtype {
        match self {
            Written::Numbers(out) => out.dtype(),
            Written::Counter => Dtype::I64,
        }
    }
    fn shape(&self) -> &[usize] {
        match self {
            Written::Numbers(out) => out.shape(),
            Written::Counter => &[],
        }
    }
    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Written::Numbers(out) => out.data(),
            Written::Counter => Cow::Borrowed(&[0; 8]),
        }
    }
    fn data_len(&self) -> usize {
        match self {
            Written::Numbers(out) => out.data_len(),
            Written::Counter => 8,
        }
    }
}

/// Makes a configuration of Hugging Face's one of an image classification model.
fn name_classes(model: &mut Value, architecture: &str, classifier: &Classifier) {
    let numbered = || classifier.classes.iter().enumerate();
    let names: Map<_, _> = numbered().map(|(i, name)| (i.to_string(), json!(name))).collect();
    let numbers: Map<_, _> = numbered().map(|(i, name)| (name.clone(), json!(i))).collect();
    model["architectures"] = json!([architecture]);
    model["id2label"] = json!(names);
    model["label2id"] = json!(numbers);
}

/// The tensors of a backbone (`weights` in the table's layout) in the published order.
pub fn backbone<'a>(config: &Config, weights: &'a [f32]) -> Vec<Named<'a>> {
    let table = config.table();
    let all = entries(&table).into_iter().filter(|entry| entry.part == Part::Backbone);
    all.map(|entry| Named { values: &weights[entry.in_part(&table)], name: entry.name, shape: entry.shape }).collect()
}

/// The tensors of a projection head (its `weights` in the table's layout), a predictor left out.
pub fn head<'a>(config: &Config, weights: &'a [f32]) -> Vec<Named<'a>> {
    let table = config.table().of_teacher();
    let all = entries(&table).into_iter().filter(|entry| entry.part == Part::Head);
    all.map(|entry| Named { values: &weights[entry.in_part(&table)], name: entry.name, shape: entry.shape }).collect()
}

/// Writes safetensors with a program's names: a file, or Hugging Face's folder. Equal weights give equal bytes. Returns the lines to print.
///
/// # Errors
/// These names have no place for a projection head, or a file cannot be written.
pub fn safetensors(naming: Naming, weights: &Weights, out: &Path) -> Result<Vec<String>> {
    let config = &weights.config;
    let mut tensors: Vec<(String, Written)> = vec![];
    let prefix = match (&weights.head, naming) {
        (None, _) => "",
        (Some(_), Naming::Official) => "backbone.",
        (Some(_), Naming::Own) => "teacher.backbone.",
        (Some(_), _) => {
            return Err(Error::new(format!("{}'s model has no place for a projection head", naming.name()))
                .hint("leave --head out, or use --to official"));
        }
    };
    let shape = config.table().backbone;
    let family = Family::of(&shape);
    // Hugging Face's models with a classifier hold the network as an attribute.
    let prefix = match (&weights.classifier, naming) {
        (Some(_), Naming::Hf) => family.names().attribute,
        _ => prefix,
    };
    if let (Backbone::ResNet(resnet), Naming::Hf) = (&shape, naming) {
        resnet::check(resnet)?;
    }
    for t in backbone(config, &weights.backbone) {
        // Of several names, each has an equal part of the rows.
        let names = (family.names().spelled)(naming, &t.name);
        let mut shape = t.shape;
        shape[0] /= names.len();
        for (name, values) in names.into_iter().zip(t.values.chunks(shape.iter().product())) {
            let counter = name.strip_suffix("running_var").map(|norm| format!("{prefix}{norm}num_batches_tracked"));
            tensors.extend(counter.filter(|_| naming != Naming::Own).map(|counter| (counter, Written::Counter)));
            let out = Out { shape: shape.clone(), values: values.to_vec() };
            tensors.push((format!("{prefix}{name}"), Written::Numbers(out)));
        }
    }
    for t in weights.head.iter().flat_map(|h| head(config, h)) {
        let name = if naming == Naming::Own { format!("teacher.{}", t.name) } else { t.name };
        tensors.push((name, Written::Numbers(Out { shape: t.shape, values: t.values.to_vec() })));
    }
    if let Some(Classifier { classes, weight, bias }) = &weights.classifier {
        let [weight_name, bias_name] = classifier::names(family, naming);
        let shape = vec![classes.len(), weight.len() / classes.len()];
        tensors.push((weight_name.into(), Written::Numbers(Out { shape, values: weight.clone() })));
        let bias = Out { shape: vec![classes.len()], values: bias.clone() };
        tensors.push((bias_name.into(), Written::Numbers(bias)));
    }
    // What the names and shapes do not tell, for when it is read again here; other programs do not read it.
    let mut settings = json!({
        "heads": config.heads, "mean": config.mean, "std": config.std, "position-resize": config.position_resize,
        "eval-view": config.eval_view,
        "norm-eps": config.norm_eps,
    });
    if weights.head.is_some() {
        settings["activation"] = config.activation.clone().into();
        settings["l2-norm"] = config.l2_norm.or(true).into();
        settings["bottleneck"] = config.bottleneck.into();
    }
    if family == Family::ResNet {
        settings["stem-stride"] = config.stem_stride.into();
        settings["global-size"] = config.global_size.into();
    }
    if let Some(Classifier { classes, .. }) = &weights.classifier {
        settings["classes"] = json!(classes);
    }
    let foreign = || BTreeMap::from([("format", "pt".to_string()), (SETTINGS, settings.to_string())]);
    match naming {
        Naming::Own => {
            let mut metadata = checkpoint::metadata(config, Progress::default());
            if let Some(Classifier { classes, .. }) = &weights.classifier {
                metadata.insert(classifier::RECORD, classifier::record(classes));
            }
            checkpoint::write(out, tensors, metadata)?;
            Ok(vec![format!("written: {}", out.display())])
        }
        Naming::Official | Naming::Timm => {
            checkpoint::write(out, tensors, foreign())?;
            Ok(vec![format!("written: {}", out.display())])
        }
        Naming::Hf => {
            folder(out)?;
            let model = out.join("model.safetensors");
            checkpoint::write(&model, tensors, foreign())?;
            let classifier = weights.classifier.as_ref();
            match &shape {
                Backbone::Vit(_) => vit::hugging_face(config, classifier, out, &model),
                Backbone::ResNet(resnet) => resnet::hugging_face(config, resnet, classifier, out, &model),
            }
        }
    }
}

/// Writes a folder with one array a tensor, `NAME.npy` of f32.
///
/// # Errors
/// The folder or a file cannot be written.
pub fn npy(weights: &Weights, out: &Path) -> Result<Vec<String>> {
    folder(out)?;
    let mut all = backbone(&weights.config, &weights.backbone);
    all.extend(weights.head.iter().flat_map(|h| head(&weights.config, h)));
    if let Some(Classifier { classes, weight, bias }) = &weights.classifier {
        let names = classifier::names(Family::of(&weights.config.table().backbone), Naming::Official);
        let shapes = [vec![classes.len(), weight.len() / classes.len()], vec![classes.len()]];
        let tensors = names.into_iter().zip(shapes).zip([weight, bias]);
        all.extend(tensors.map(|((name, shape), values)| Named { name: name.into(), shape, values }));
    }
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
