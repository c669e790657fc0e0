//! A linear classifier behind a backbone: what it is called in files, and the names of its classes.

use super::checkpoint::Checkpoint;
use super::file::File;
use super::infer::SETTINGS;
use super::names::Family;
use super::networks::{Network, plain};
use super::{Naming, Side, bared, wrappers};
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// How a classifier is called where it is left out.
pub(super) const HARMLESS: &str = "a classifier";
/// Tensors that it is made of.
pub(super) const NAMES: usize = 2;
/// The entry of a checkpoint's header: the names of the classes.
pub(crate) const RECORD: &str = "classifier";

/// Weight and bias under which classifiers are stored: timm's and DeiT's, torchvision's, Hugging Face's two.
const SPELLED: [[&str; NAMES]; 4] = [
    ["head.weight", "head.bias"],
    ["fc.weight", "fc.bias"],
    ["classifier.weight", "classifier.bias"],
    ["classifier.1.weight", "classifier.1.bias"],
];

/// A linear classifier on a backbone's output row.
#[derive(Clone, Debug, PartialEq)]
pub struct Classifier {
    /// Names of the classes.
    pub classes: Vec<String>,
    /// (classes, C).
    pub weight: Vec<f32>,
    /// (classes).
    pub bias: Vec<f32>,
}

/// What a program calls the classifier's weight and bias behind a network of this family.
pub(crate) fn names(family: Family, naming: Naming) -> [&'static str; NAMES] {
    match (naming, family) {
        (Naming::Hf, Family::Vit) => SPELLED[2],
        (Naming::Hf, Family::ResNet) => SPELLED[3],
        (_, Family::Vit) => SPELLED[0],
        (_, Family::ResNet) => SPELLED[1],
    }
}

/// Whether a tensor is called as one of a classifier's.
pub(super) fn is_name(name: &str) -> bool {
    SPELLED.iter().flatten().any(|spelled| *spelled == name)
}

/// What a checkpoint of this program records of the classes.
pub(crate) fn record(classes: &[String]) -> String {
    json!({"classes": classes}).to_string()
}

/// The names of `count` classes as JSON gives them: a list, or Hugging Face's object from number to name.
fn classes(found: &Value, count: usize) -> Option<Vec<String>> {
    let text = |v: &Value| v.as_str().map(String::from);
    let names: Option<Vec<String>> = match found {
        Value::Array(all) => all.iter().map(text).collect(),
        Value::Object(all) => (0..count).map(|i| all.get(&i.to_string()).and_then(text)).collect(),
        _ => None,
    };
    names.filter(|names| names.len() == count)
}

impl Classifier {
    /// That of a checkpoint of this program; none of a checkpoint without one.
    ///
    /// # Errors
    /// Its header does not name the classes, or a tensor is missing, misshapen or not finite.
    pub(super) fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Option<Classifier>> {
        let Some(text) = checkpoint.recorded.get(RECORD) else { return Ok(None) };
        let recorded: Value = serde_json::from_str(text).unwrap_or_default();
        let count = recorded["classes"].as_array().map_or(0, Vec::len);
        let classes = classes(&recorded["classes"], count).filter(|names| !names.is_empty()).ok_or_else(|| {
            Error::new("the checkpoint's classifier has no names of classes")
                .hint("its header was changed after the fine-tuning; train it again")
        })?;
        let backbone = checkpoint.config.table().backbone;
        let [weight, bias] = names(Family::of(&backbone), Naming::Own);
        let weight = checkpoint.tensor(weight, &[count, backbone.dim()])?;
        Ok(Some(Classifier { classes, weight, bias: checkpoint.tensor(bias, &[count])? }))
    }

    /// That of a foreign file, inside or beside its network, on rows of `dim` numbers; none where nothing of that shape is there.
    /// Without names of classes their numbers are taken.
    ///
    /// # Errors
    /// A tensor cannot be read.
    pub(super) fn of_file(file: &File, side: &Side, network: &Network, dim: usize) -> Result<Option<Classifier>> {
        let around = wrappers(network.family);
        let outer = around.into_iter().find_map(|prefix| network.path.strip_suffix(prefix)).unwrap_or(&network.path);
        let key_of = |wanted: &str| {
            let is = |key: &&String| {
                let name = plain(key);
                let inside = name.strip_prefix(&network.path).or(name.strip_prefix(outer));
                inside.is_some_and(|inside| bared(inside, around) == wanted)
            };
            file.tensors.keys().find(is)
        };
        for spelled in SPELLED {
            let [Some(weight), Some(bias)] = spelled.map(key_of) else { continue };
            let shape = |key: &String| file.tensors[key].shape.as_slice();
            let &[count, width] = shape(weight) else { continue };
            if width != dim || count == 0 || shape(bias) != [count] {
                continue;
            }
            let settings = file.metadata.get(SETTINGS).and_then(|text| serde_json::from_str::<Value>(text).ok());
            let settings = settings.unwrap_or_default();
            let stated = [&settings["classes"], &side.config["id2label"], &side.config["label_names"]];
            let classes = stated.into_iter().find_map(|found| classes(found, count));
            let classes = classes.unwrap_or_else(|| (0..count).map(|i| i.to_string()).collect());
            return Ok(Some(Classifier { classes, weight: file.values(weight)?, bias: file.values(bias)? }));
        }
        Ok(None)
    }
}
