//! A backbone as an ONNX model.
//!
//! Input `pixels` (batch, channels, height, width), normalized as the metadata state (`mean`, `std`, of values in 0 to 1). Outputs of a
//! vision transformer: `features` (batch, C), the class token, and `tokens` (batch, 1 + patches, C), both after the final norm. Outputs of
//! a residual network: `features` (batch, C), the average over the last map, and `map` (batch, C, rows, columns) itself. The number of
//! images is free; height and width are fixed or free too ([`Size`]). Weights have their published names and shapes.
//!
//! Operator set 17: the first with LayerNormalization, and read by every runtime since 2022. Gelu came with 20, so it is written out
//! with Erf, which is what the published network computes.
//!
//! A family of networks has a file here, and an arm in [`write()`].

mod graph;
mod proto;
mod resnet;
mod vit;

use super::names::Family;
use super::{Classifier, Naming, classifier};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use dino_kernel::model::Backbone;
use graph::{FLOAT, Graph, Raw, int, value};
use proto::Message;
use std::io::{BufWriter, Write};
use std::path::Path;

/// The images that a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// These alone; the position table of a ViT is resized for them now. A runtime optimizes such a graph best.
    Fixed {
        /// Pixels.
        height: usize,
        /// Pixels.
        width: usize,
    },
    /// Any of at least a patch, of a ResNet any: the graph of a ViT resizes its position table itself, by the rule of `--position-resize`.
    Free,
}

const OPSET: i64 = 17;
/// The version of the format that belongs to that operator set.
const IR: i64 = 8;
/// Most pixels of an image of a fixed size: a side of 4096.
const PIXELS: usize = 1 << 24;
/// Protocol Buffers ends here.
const MOST: usize = (1 << 31) - (1 << 20);

/// Writes the model of a backbone, `weights` in the table's layout, with the running statistics of a residual network.
///
/// # Errors
/// A fixed size holds no patch or no pixel or too many, the model would be larger than an ONNX file can be, or the file cannot be written.
pub fn write(path: &Path, config: &Config, weights: &[f32], size: Size) -> Result<()> {
    write_classifier(path, config, weights, None, size)
}

/// The same with a classifier: a further output `logits` (batch, classes), and the names of the classes in the metadata.
///
/// # Errors
/// As [`write()`].
pub fn write_classifier(
    path: &Path,
    config: &Config,
    weights: &[f32],
    classifier: Option<&Classifier>,
    size: Size,
) -> Result<()> {
    if let Size::Fixed { height, width } = size
        && !(1..=PIXELS).contains(&height.saturating_mul(width))
    {
        return Err(Error::new(format!("images of {width} x {height} pixels have none, or more than {PIXELS}"))
            .hint("without --height and --width a model takes any size"));
    }
    let mut g = Graph::new(config.norm_eps as f32);
    let table = config.table();
    match &table.backbone {
        Backbone::Vit(vit) => vit::network(&mut g, vit, &table, weights, size)?,
        Backbone::ResNet(resnet) => resnet::network(&mut g, resnet, &table, weights, size),
    }
    if let Some(classifier) = classifier {
        logits(&mut g, Family::of(&table.backbone), classifier);
    }
    let tensors: usize = g.tensors.iter().map(|t| t.len()).sum();
    let length = g.nodes.0.len() + tensors;
    if length > MOST {
        return Err(Error::new(format!("the model would take {length} bytes, and an ONNX file holds 2 GB"))
            .hint("convert --to official writes safetensors of any size"));
    }
    let property = |key: &str, value: String| Message::new().bytes(1, key).bytes(2, value);
    let model = Message::new()
        .int(1, IR)
        .bytes(2, "dino-host")
        .bytes(3, env!("CARGO_PKG_VERSION"))
        .bytes(8, Message::new().bytes(1, "").int(2, OPSET))
        .bytes(14, property("mean", format!("{:?}", config.mean)))
        .bytes(14, property("std", format!("{:?}", config.std)));
    let model = g.properties.iter().fold(model, |model, (key, value)| model.bytes(14, property(key, value.clone())));
    let model = model
        .bytes(14, property("config", serde_json::to_string(config).expect("a configuration is plain data")))
        .length(7, length);
    write_atomically(path, |file| {
        let mut file = BufWriter::new(file);
        file.write_all(model.as_ref())?;
        file.write_all(g.nodes.as_ref())?;
        g.tensors.iter().try_for_each(|t| t.write(&mut file))?;
        file.flush()
    })
}

/// The classifier on the features.
fn logits<'a>(g: &mut Graph<'a>, family: Family, classifier: &'a Classifier) {
    let Classifier { classes, weight, bias } = classifier;
    let [w, b] = classifier::names(family, Naming::Official);
    g.tensor(w, FLOAT, &[classes.len(), weight.len() / classes.len()], Raw::Weights(weight));
    g.tensor(b, FLOAT, &[classes.len()], Raw::Weights(bias));
    g.named("logits", "Gemm", &["features", w, b], &[int("transB", 1)]);
    g.nodes = std::mem::take(&mut g.nodes).bytes(12, value("logits", &[Err("batch"), Ok(classes.len())]));
    g.properties.push(("classes", serde_json::json!(classes).to_string()));
}
