//! Golden tensors: `X.safetensors` with `X.json` beside it, and the pass rules that the latter states for every tensor.
//!
//! The folder is `tests/golden`, or `tests/cases` for what that one has no room for, or `$DINO_FIXTURES` if set (where it has the file, for
//! those of `tests/cases`): a second set with other shapes, seeds and hyper-parameters runs through the same tests, so nothing here or in
//! the tests knows a size.

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A tensor of any type; every value of every stored type is exact in f64.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// All elements, row-major.
    pub data: Vec<f64>,
}

impl Tensor {
    /// As sizes or indices.
    pub fn sizes(&self) -> Vec<usize> {
        self.data.iter().map(|&x| x as usize).collect()
    }

    /// The only element.
    pub fn scalar(&self) -> f64 {
        assert_eq!(self.data.len(), 1, "a scalar has one element");
        self.data[0]
    }

    /// Length of the last axis.
    pub fn last(&self) -> usize {
        *self.shape.last().expect("a tensor with an axis")
    }

    /// The product of all axes but the last.
    pub fn rows(&self) -> usize {
        self.data.len() / self.last()
    }
}

/// One golden file, and what has been compared with it so far.
pub struct Fixture {
    name: String,
    tensors: BTreeMap<String, Tensor>,
    info: Value,
    compared: RefCell<BTreeMap<String, f64>>,
}

/// The difference that is largest in proportion to what is allowed; NaN counts as largest.
struct Worst {
    at: usize,
    error: f64,
    ratio: f64,
}

impl Worst {
    fn of(errors: impl Iterator<Item = (usize, f64, f64)>) -> Worst {
        let mut worst = Worst { at: 0, error: 0.0, ratio: 0.0 };
        for (at, error, allowed) in errors {
            let ratio = if error == 0.0 { 0.0 } else { error / allowed };
            if ratio > worst.ratio || ratio.is_nan() {
                worst = Worst { at, error, ratio };
                if ratio.is_nan() {
                    break;
                }
            }
        }
        worst
    }
}

/// The file of this name.
fn path(file: &str) -> PathBuf {
    let [golden, cases] = ["golden", "cases"].map(|f| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(f).join(file));
    let given = std::env::var_os("DINO_FIXTURES").map(|folder| PathBuf::from(folder).join(file));
    match given {
        // A file that the folder does not have is this repository's, if it has one that is not golden.
        Some(given) if given.exists() || !cases.exists() => given,
        _ if cases.exists() => cases,
        _ => golden,
    }
}

fn numbers(name: &str, dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b) as f64).collect(),
        Dtype::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
        Dtype::I32 => bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b) as f64).collect(),
        Dtype::U8 => bytes.iter().map(|&b| b as f64).collect(),
        other => panic!("{name}: unexpected type {other:?}"),
    }
}

impl Fixture {
    /// Reads `name`.safetensors and `name`.json.
    pub fn open(name: &str) -> Fixture {
        let read = |ending: &str| {
            let path = path(&format!("{name}.{ending}"));
            std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let bytes = read("safetensors");
        let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{name}.safetensors: {e}"));
        let tensors = file
            .iter()
            .map(|(key, view)| {
                let data = numbers(key, view.dtype(), view.data());
                (key.to_string(), Tensor { shape: view.shape().to_vec(), data })
            })
            .collect();
        let info = serde_json::from_slice(&read("json")).unwrap_or_else(|e| panic!("{name}.json: {e}"));
        Fixture { name: name.to_string(), tensors, info, compared: RefCell::default() }
    }

    /// The same; none where the set of fixtures has no such file.
    pub fn find(name: &str) -> Option<Fixture> {
        path(&format!("{name}.safetensors")).exists().then(|| Fixture::open(name))
    }

    /// The tensor of this name, which the file has.
    pub fn get(&self, key: &str) -> &Tensor {
        self.tensors.get(key).unwrap_or_else(|| panic!("{}: no tensor {key:?}", self.name))
    }

    /// Whether the file has a tensor of this name.
    pub fn has(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }

    /// Names of all tensors, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What follows `prefix` and precedes `suffix` in the names that have both.
    pub fn between(&self, prefix: &str, suffix: &str) -> Vec<&str> {
        self.keys().filter_map(|k| k.strip_prefix(prefix)?.strip_suffix(suffix)).collect()
    }

    /// The file's own settings.
    pub fn meta(&self, key: &str) -> &Value {
        &self.info["meta"][key]
    }

    /// A number that the json states of a tensor.
    pub fn note(&self, key: &str, field: &str) -> Option<f64> {
        self.info["tensors"][key][field].as_f64()
    }

    /// A text that the json states of a tensor.
    pub fn text(&self, key: &str, field: &str) -> &str {
        self.info["tensors"][key][field].as_str().unwrap_or_else(|| panic!("{}: no {field} of {key:?}", self.name))
    }

    fn atol(&self, key: &str) -> f64 {
        self.note(key, "atol").unwrap_or_else(|| panic!("{}: {key:?} is no golden output", self.name))
    }

    fn check_len(&self, key: &str, got: usize) {
        let want = self.get(key);
        assert_eq!(
            got,
            want.data.len(),
            "{}: {key}: number of elements; the golden shape is {:?}",
            self.name,
            want.shape
        );
    }

    fn record(&self, key: &str, ratio: f64) {
        let mut compared = self.compared.borrow_mut();
        let worst = compared.entry(key.to_string()).or_insert(0.0);
        *worst = worst.max(ratio);
    }

    fn compare(&self, key: &str, what: &str, want: &[f64], got: &[f64], worst: Worst, allowed: f64) {
        assert!(
            worst.ratio <= 1.0,
            "{}: {key}{what}: element {}: got {:e}, golden {:e}, error {:.3e}, allowed {allowed:.1e}",
            self.name,
            worst.at,
            got[worst.at],
            want[worst.at],
            worst.error,
        );
        self.record(key, worst.ratio);
    }

    /// max |got - golden| <= atol; where the json states `row_rtol`, the rows differ by orders of magnitude and each row
    /// is also held to that part of its own largest element.
    pub fn assert_golden<T: Copy + Into<f64>>(&self, key: &str, got: &[T]) {
        let (want, atol) = (self.get(key), self.atol(key));
        self.check_len(key, got.len());
        let got: Vec<f64> = got.iter().map(|&x| x.into()).collect();
        let errors = |allowed: f64| (0..got.len()).map(move |i| (i, allowed));
        let error = |i: usize| (got[i] - want.data[i]).abs();
        let worst = Worst::of(errors(atol).map(|(i, allowed)| (i, error(i), allowed)));
        self.compare(key, "", &want.data, &got, worst, atol);
        if let Some(rtol) = self.note(key, "row_rtol") {
            for (row, values) in want.data.chunks(want.last()).enumerate() {
                let allowed = rtol * values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                let first = row * want.last();
                let worst = Worst::of((first..first + values.len()).map(|i| (i, error(i), allowed)));
                self.compare(key, &format!(" row {row}"), &want.data, &got, worst, allowed);
            }
        }
    }

    /// The rule for parameters after AdamW: the update's relative L2 error, with `atol` as the second fence; rows without a true
    /// gradient (the key third of a qkv bias) are left out of both and held to `key_bias_atol`.
    pub fn assert_parameter<T: Copy + Into<f64>>(&self, key: &str, init: &Tensor, got: &[T]) {
        let Some(most) = self.note(key, "update_rel_l2") else {
            return self.assert_golden(key, got);
        };
        let (want, atol) = (self.get(key), self.atol(key));
        self.check_len(key, got.len());
        let got: Vec<f64> = got.iter().map(|&x| x.into()).collect();
        let note = &self.info["tensors"][key];
        let noise = match note["key_bias_rows"].as_array() {
            Some(rows) => rows[0].as_u64().unwrap() as usize..rows[1].as_u64().unwrap() as usize,
            None => 0..0,
        };
        let per_row = got.len() / want.shape[0];
        let (mut difference, mut update) = (0.0, 0.0);
        for i in (0..got.len()).filter(|i| !noise.contains(&(i / per_row))) {
            difference += (got[i] - want.data[i]).powi(2);
            update += (want.data[i] - init.data[i]).powi(2);
        }
        let relative = (difference / update).sqrt();
        assert!(
            relative <= most,
            "{}: {key}: the update's relative L2 error is {relative:.3e}, allowed {most:.1e}",
            self.name
        );
        self.record(key, relative / most);
        let near = self.note(key, "qv_atol").unwrap_or(atol);
        let far = self.note(key, "key_bias_atol").unwrap_or(atol);
        for (what, inside, allowed) in [("", false, near), (" (key bias)", true, far)] {
            let elements = (0..got.len()).filter(|i| noise.contains(&(i / per_row)) == inside);
            let worst = Worst::of(elements.map(|i| (i, (got[i] - want.data[i]).abs(), allowed)));
            self.compare(key, what, &want.data, &got, worst, allowed);
        }
    }

    /// Golden outputs whose names start with one of `prefixes`.
    pub fn outputs(&self, prefixes: &[&str]) -> BTreeSet<String> {
        let stated = self.info["tensors"].as_object().expect("the json lists its tensors");
        let golden = stated.iter().filter(|(_, note)| note.get("atol").is_some()).map(|(key, _)| key);
        golden.filter(|key| prefixes.iter().any(|p| key.starts_with(p))).cloned().collect()
    }

    /// Fails unless every golden output under `prefixes` has been compared, but for those in `skip` (prefix, why), which are
    /// printed; prints how near the comparisons came to their tolerances.
    pub fn finish(&self, test: &str, prefixes: &[&str], skip: &[(&str, &str)]) {
        let compared = self.compared.borrow();
        let mut left = self.outputs(prefixes);
        left.retain(|key| !compared.contains_key(key));
        for (prefix, why) in skip {
            let before = left.len();
            left.retain(|key| !key.starts_with(prefix));
            println!("SKIPPED {}: {} tensors {prefix}*: {why}", self.name, before - left.len());
        }
        assert!(left.is_empty(), "{}: nothing was compared with {left:?}", self.name);
        assert!(!compared.is_empty(), "{}: nothing was compared at all", self.name);
        let mut worst: Vec<_> = compared.iter().collect();
        worst.sort_by(|a, b| b.1.total_cmp(a.1));
        let list: Vec<String> = worst.iter().take(4).map(|(key, ratio)| format!("{key} {ratio:.3}")).collect();
        println!("{test}: {}: {} tensors; error / tolerance: {}", self.name, compared.len(), list.join(", "));
    }
}
