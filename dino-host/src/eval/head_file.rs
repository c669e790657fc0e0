//! A linear classifier in a safetensors file: `linear.weight` (classes, width) and `linear.bias` (classes) as the published heads
//! call them, and in the header how the features were made and what the classes are called.

use super::linear::Head;
use crate::error::{Error, Result};
use crate::log::write_atomically;
use ndarray::Array2;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// What the header says about a head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Last blocks whose class tokens are concatenated.
    pub blocks: usize,
    /// Whether the mean patch token of the last block follows.
    pub mean_patch: bool,
    /// Names of the classes, in the order of the rows.
    pub classes: Vec<String>,
}

/// Under which keys weights are looked for, with and without `module.` before: ours and the published ones first, then what others'
/// classifiers are called.
const NAMES: [&str; 5] = ["linear", "fc", "head", "classifier", ""];
/// The entry of the header's metadata.
const ABOUT: &str = "linear_probe";

/// Writes a head.
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

/// Reads a head and, where the file says it, how its features are made. Files of others need not say.
pub fn load(path: &Path) -> Result<(Head, Option<About>)> {
    let name = path.display();
    let bytes = std::fs::read(path).map_err(|e| bad(path, e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(path, format!("{e}, {} bytes", bytes.len())))?;
    let keys = NAMES.iter().flat_map(|name| ["", "module."].map(|prefix| format!("{prefix}{name}")));
    let key = |stem: &str, what: &str| if stem.is_empty() { what.into() } else { format!("{stem}.{what}") };
    let (stem, weight) = keys
        .map(|stem| stem.trim_end_matches('.').to_string())
        .find_map(|stem| Some((stem.clone(), file.tensor(&key(&stem, "weight")).ok()?)))
        .ok_or_else(|| bad(path, format!("no linear.weight among its {} tensors", file.len())))?;
    let numbers = |tensor: &TensorView, key: &str| {
        if tensor.dtype() != Dtype::F32 {
            return Err(bad(path, format!("{key} is {:?}, not F32", tensor.dtype())));
        }
        let values: Vec<f32> = tensor.data().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        match values.iter().all(|x| x.is_finite()) {
            true => Ok(values),
            false => Err(bad(path, format!("{key} is not finite"))),
        }
    };
    let &[classes, width] = weight.shape() else {
        return Err(bad(path, format!("{} has the shape {:?}", key(&stem, "weight"), weight.shape())));
    };
    if classes == 0 || width == 0 {
        return Err(bad(path, format!("{} has the shape {:?}", key(&stem, "weight"), weight.shape())));
    }
    // A classifier without biases has none in its file.
    let bias = match file.tensor(&key(&stem, "bias")) {
        Ok(bias) if bias.shape() == [classes] => numbers(&bias, &key(&stem, "bias"))?,
        Ok(bias) => return Err(bad(path, format!("{classes} rows of weights, biases of shape {:?}", bias.shape()))),
        Err(_) => vec![0.0; classes],
    };
    let weight = numbers(&weight, &key(&stem, "weight"))?;
    let weight = Array2::from_shape_vec((classes, width), weight).map_err(|e| bad(path, e.to_string()))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(path, e.to_string()))?;
    let about: Option<About> = match header.metadata().as_ref().and_then(|m| m.get(ABOUT)) {
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

fn bad(path: &Path, what: String) -> Error {
    Error::new(format!("cannot read the head {}: {what}", path.display()))
        .hint("a head is a safetensors file with linear.weight (classes, numbers an image) and linear.bias, in F32")
}

/// For every class of a set the row of a head: by name where the file names them, otherwise one to one.
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
