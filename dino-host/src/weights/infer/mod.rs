//! The architecture of a foreign file, read off the shapes of its tensors and off what is stored beside it. A family of networks has a
//! file here, and an arm in [`config`].

mod resnet;
mod vit;

use super::names::{Family, TensorPart};
use super::{File, Keys, Options, Report, Side};
use crate::config::{Config, Switch};
use crate::error::{Error, Result};
use crate::image::augment::EvalView;
use serde_json::Value;

/// A foreign file's own settings, in the metadata of what [`super::write`] writes.
pub(super) const SETTINGS: &str = "dino-host";

/// What an architecture is read off.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) file: &'a File,
    /// Its tensors by their published names.
    pub(super) keys: &'a Keys,
    pub(super) side: &'a Side,
    pub(super) options: &'a Options,
}

impl<'a> Source<'a> {
    /// The shape of the tensor of that published name, if the file has it.
    fn shape(&self, name: &str) -> Option<&'a [usize]> {
        let key = self.keys.get(&TensorPart { name: name.into(), third: None })?;
        Some(self.file.tensors[key].shape.as_slice())
    }

    /// The file's own settings, or null; the error is what is wrong with them.
    fn settings(&self) -> Result<Value, String> {
        match self.file.metadata.get(SETTINGS) {
            Some(text) => serde_json::from_str(text).map_err(|e| format!("its header's {SETTINGS}: {e}")),
            None => Ok(Value::Null),
        }
    }
}

/// The configuration that a file's shapes make, and whether the file stated how many attention heads there are.
pub(super) fn config(family: Family, source: Source, report: &mut Report) -> Result<(Config, bool)> {
    let (config, heads_stated) = match family {
        Family::Vit => vit::config(source, report)?,
        Family::ResNet => (resnet::config(source, report)?, true),
    };
    let name = &source.file.name;
    let config =
        config.resolve().map_err(|e| Error::new(format!("{name}: {}", e.message)).hint(e.hint.unwrap_or_default()))?;
    Ok((config, heads_stated))
}

/// Published weights are evaluated as they were published; files of this program state it themselves since there is the key.
fn eval_view(settings: &Value) -> String {
    match settings {
        Value::Null => EvalView::ResizeCrop.name().into(),
        settings => settings["eval-view"].as_str().map_or(Config::published().eval_view, String::from),
    }
}

/// Means and deviations of the channels, as the file or those beside it name them.
fn normalization(config: &mut Config, settings: &Value, side: &Side, report: &mut Report) {
    let numbers = |v: &Value| -> Option<Vec<f64>> { v.as_array()?.iter().map(Value::as_f64).collect() };
    let sources = [
        (numbers(&settings["mean"]), numbers(&settings["std"])),
        (numbers(&side.preprocessor["image_mean"]), numbers(&side.preprocessor["image_std"])),
        (numbers(&side.config["pretrained_cfg"]["mean"]), numbers(&side.config["pretrained_cfg"]["std"])),
    ];
    if let Some((mean, std)) = sources.into_iter().find_map(|(mean, std)| Some((mean?, std?))) {
        (config.mean, config.std) = (mean, std);
    } else {
        report.notes.push("pixels are normalised with the published means and deviations: the file names none".into());
    }
}

/// The projection head's shape, where there is one. What shapes do not tell is as published, unless the file's own settings state it.
fn head(config: &mut Config, source: Source) -> Result<(), String> {
    let shape = |name: &str| source.shape(name);
    let (directions, prototypes) = (shape("head.last_layer.weight_v"), shape("head.last_layer.weight"));
    let Some(&[prototypes, cols]) = directions.or(prototypes) else { return Ok(()) };
    // A batch norm is in the list after its linear layer, and has a weight too; an activation has none.
    let normed = |i: usize| shape(&format!("head.mlp.{}.weight", 3 * i + 1)).is_some();
    config.use_bn_in_head = normed(0);
    let step = if config.use_bn_in_head { 3 } else { 2 };
    let linear = |i: usize| shape(&format!("head.mlp.{}.weight", step * i));
    let layers = (0..16).take_while(|i| linear(*i).is_some()).count();
    let settings = source.settings()?;
    // Without a bottleneck an activation follows every layer of the list, and the prototypes are one more.
    let follows = config.use_bn_in_head && normed(layers.saturating_sub(1));
    let bottleneck = layers > 0 && !follows && settings["bottleneck"] != 0;
    (config.out_dim, config.bottleneck) = (prototypes, if bottleneck { cols } else { 0 });
    config.head_layers = if bottleneck { layers } else { layers + 1 };
    if let (true, Some(&[hidden, _])) = (config.head_layers > 1, linear(0)) {
        config.hidden = hidden;
    }
    config.weight_norm = Switch::Set(directions.is_some());
    config.l2_norm = settings["l2-norm"].as_bool().map_or(Switch::Auto, Switch::Set);
    if let Some(activation) = settings["activation"].as_str() {
        config.activation = activation.into();
    }
    Ok(())
}
