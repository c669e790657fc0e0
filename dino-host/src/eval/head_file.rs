//! A linear classifier in a file: `linear.weight` (classes, width) and `linear.bias` (classes) as the published heads call them. Ours are
//! safetensors files whose header records how the features were made and what the classes are called; those of others, of `torch.save`
//! too, record neither.

use super::linear::Head;
use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use crate::weights::{File, plain};
use ndarray::Array2;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// Where the numbers of the mean patch token are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// After those of the class tokens: c0, c1, ..., m0, m1, ... Ours, also where the file does not record it.
    #[default]
    Concatenated,
    /// Between those of the one class token: c0, m0, c1, m1, ... The published code stacks the two tokens on a new last axis.
    Alternating,
}

/// What the header records about a head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Last blocks whose class tokens are concatenated.
    pub blocks: usize,
    /// Whether the mean patch token of the last block is there too.
    pub mean_patch: bool,
    /// Where the numbers of the mean patch token are.
    #[serde(default)]
    pub order: Order,
    /// Names of the classes, in the order of the rows.
    pub classes: Vec<String>,
}

/// The names under which weights are searched for, behind any prefix: ours and the published ones first, then what others' classifiers
/// are called.
const NAMES: [&str; 4] = ["linear", "fc", "head", "classifier"];
/// Dictionaries around a layer that has no name of its own.
const AROUND: [&str; 3] = ["state_dict.", "model_state_dict.", "model."];
/// The entry of the header's metadata.
const ABOUT: &str = "linear_probe";

/// Writes a head.
///
/// # Errors
/// The file cannot be written.
pub fn save(path: &Path, head: &Head, about: &About) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::new(format!("cannot write {}: {e}", path.display()));
    let bytes = |x: &mut dyn Iterator<Item = &f32>| x.flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (weight, bias) = (bytes(&mut head.weight.iter()), bytes(&mut head.bias.iter()));
    let view = |shape: Vec<usize>, data| TensorView::new(Dtype::F32, shape, data).map_err(|e| failed(&e));
    let (classes, width) = head.weight.dim();
    let tensors =
        [("linear.weight", view(vec![classes, width], &weight)?), ("linear.bias", view(vec![classes], &bias)?)];
    // One entry: the library's order of several is not the same from run to run.
    let about = serde_json::to_string(about).map_err(|e| failed(&e))?;
    let metadata = HashMap::from([(ABOUT.to_string(), about)]);
    let file = safetensors::serialize(tensors, Some(metadata)).map_err(|e| failed(&e))?;
    write_atomically(path, |f| f.write_all(&file))
}

/// Reads a head and, where the file records it, how its features are made. Files of others need not.
///
/// # Errors
/// The file cannot be read, has no weight of two axes, or its biases, header or class names do not fit it.
pub fn load(path: &Path) -> Result<(Head, Option<About>)> {
    let name = path.display();
    let bytes = std::fs::read(path).map_err(|e| bad(path, e.to_string()))?;
    let file = File::parse(name.to_string(), bytes).map_err(|e| {
        let what = e.message.strip_prefix(&format!("cannot read the weights {name}: ")).unwrap_or(&e.message);
        bad(path, what.to_owned())
    })?;
    let weight = weight(&file).map_err(|what| bad(path, what))?;
    let &[classes, width] = file.tensors[weight].shape.as_slice() else {
        return Err(bad(path, format!("{weight} has the shape {:?}", file.tensors[weight].shape)));
    };
    if classes == 0 || width == 0 {
        return Err(bad(path, format!("{weight} has the shape {:?}", file.tensors[weight].shape)));
    }
    let numbers = |key: &str| file.values(key).map_err(|e| bad(path, e.message));
    // A classifier without biases has none in its file.
    let key = format!("{}bias", weight.strip_suffix("weight").unwrap_or_default());
    let bias = match file.tensors.get(&key) {
        Some(bias) if bias.shape == [classes] => numbers(&key)?,
        Some(bias) => return Err(bad(path, format!("{classes} rows of weights, biases of shape {:?}", bias.shape))),
        None => vec![0.0; classes],
    };
    let weight = Array2::from_shape_vec((classes, width), numbers(weight)?).map_err(|e| bad(path, e.to_string()))?;
    let about: Option<About> = match file.metadata.get(ABOUT) {
        Some(text) => Some(serde_json::from_str(text).map_err(|e| bad(path, format!("its {ABOUT}: {e}")))?),
        None => None,
    };
    match &about {
        Some(a) if a.classes.len() != classes => {
            Err(Error::new(format!("{name} names {} classes and has {classes} rows", a.classes.len()))
                .hint("it was changed after it was written; train it again with --save"))
        }
        _ => Ok((Head { weight, bias }, about)),
    }
}

/// The key of the weights, or what is wrong.
fn weight(file: &File) -> std::result::Result<&str, String> {
    for name in NAMES {
        let key = format!(".{name}.weight");
        let fit: Vec<&String> = file.tensors.keys().filter(|k| format!(".{}", plain(k)).ends_with(&key)).collect();
        match fit[..] {
            [] => continue,
            [one] => return Ok(one),
            [first, second, ..] => return Err(format!("it has {} heads, {first}, {second}, ...", fit.len())),
        }
    }
    let bare = |key: &str| {
        let mut name = plain(key);
        while let Some(inner) = AROUND.iter().find_map(|around| name.strip_prefix(around)) {
            name = inner.to_owned();
        }
        name == "weight"
    };
    let found = file.tensors.keys().find(|key| bare(key));
    found.map(String::as_str).ok_or_else(|| format!("no linear.weight among its {} tensors", file.tensors.len()))
}

fn bad(path: &Path, what: String) -> Error {
    Error::new(format!("cannot read the head {}: {what}", path.display())).hint(
        "a head is a safetensors file or one of torch.save with linear.weight (classes, numbers an image) and linear.bias",
    )
}

/// Brings a head whose class and mean patch numbers alternate to this program's order, one after the other.
pub fn from_alternating(head: &Head) -> Head {
    let width = head.weight.ncols() / 2;
    let weight = Array2::from_shape_fn(head.weight.dim(), |(row, j)| {
        head.weight[[row, if j < width { 2 * j } else { 2 * (j - width) + 1 }]]
    });
    Head { weight, bias: head.bias.clone() }
}

/// For every class of a set the row of a head: by name where the file names them, otherwise one to one.
///
/// # Errors
/// The numbers of classes differ, or the head does not know one of `names`.
pub fn rows(path: &Path, head: &Head, about: Option<&About>, names: &[String]) -> Result<Vec<u32>> {
    let rows = head.bias.len();
    let Some(about) = about else {
        return match names.len() {
            n if n == rows => Ok((0..rows as u32).collect()),
            n => Err(Error::new(format!("{} has {rows} classes, the set {n}", path.display()))
                .hint("its rows are taken for the set's classes in their order, so there must be as many")),
        };
    };
    let at: HashMap<&String, u32> = about.classes.iter().zip(0..).collect();
    let row = |name: &String| {
        at.get(name).copied().ok_or_else(|| {
            Error::new(format!("{} does not know the class {name}", path.display())).hint(format!(
                "it was trained for {} classes: {}",
                rows,
                brief(&about.classes)
            ))
        })
    };
    names.iter().map(row).collect()
}

fn brief(names: &[String]) -> String {
    let more = if names.len() > 5 { ", ..." } else { "" };
    format!("{}{more}", names.iter().take(5).cloned().collect::<Vec<_>>().join(", "))
}
