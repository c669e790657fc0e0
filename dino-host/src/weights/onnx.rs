//! A backbone as an ONNX model.
//!
//! Input `pixels` (batch, channels, height, width), normalized as the metadata state (`mean`, `std`, of values in 0 to 1). Outputs
//! `features` (batch, C), the class token, and `tokens` (batch, 1 + patches, C), both after the final norm. The number of images is free;
//! height and width are fixed or free too ([`Size`]). Weights have their published names and shapes.
//!
//! Operator set 17: the first with LayerNormalization, and read by every runtime since 2022. Gelu came with 20, so it is written out
//! with Erf, which is what the published network computes.

use super::proto::Message;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use dino_kernel::backend::Grid;
use dino_kernel::crops::Group;
use dino_kernel::model::{Backbone, Vit};
use dino_kernel::ops::position::{self, Interpolation};
use dino_kernel::params::Part;
use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::Path;

/// The images that a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// These alone; the position table is resized for them now. A runtime optimizes such a graph best.
    Fixed {
        /// Pixels.
        height: usize,
        /// Pixels.
        width: usize,
    },
    /// Any of at least a patch: the graph resizes the position table itself, by the rule of `--position-resize`.
    Free,
}

const OPSET: i64 = 17;
/// The version of the format that belongs to that operator set.
const IR: i64 = 8;
/// Protocol Buffers ends here.
const MOST: usize = (1 << 31) - (1 << 20);
const FLOAT: i64 = 1;
const INT64: i64 = 7;
const DOUBLE: i64 = 11;

/// Writes the model of a backbone, `weights` in the table's layout.
///
/// # Errors
/// A fixed size holds no patch, the model would be larger than an ONNX file can be, or the file cannot be written.
pub fn write(path: &Path, config: &Config, weights: &[f32], size: Size) -> Result<()> {
    if !matches!(config.table().backbone, Backbone::Vit(_)) {
        return Err(Error::new("only a ViT has an ONNX graph").hint("--to official or --to timm writes the weights"));
    }
    let patch = config.patch_size;
    if let Size::Fixed { height, width } = size
        && height.min(width) < patch
    {
        return Err(Error::new(format!("images of {width} x {height} pixels hold no patch of {patch}"))
            .hint(format!("sides of {patch} pixels or more")));
    }
    let mut g = Graph { eps: config.norm_eps as f32, ..Graph::default() };
    network(&mut g, config, weights, size);
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
        .bytes(14, property("std", format!("{:?}", config.std)))
        .bytes(14, property("patch_size", patch.to_string()))
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

/// A constant of the graph, written when it is due: only one is ever held twice.
struct Tensor<'a> {
    head: Message,
    raw: Raw<'a>,
}

enum Raw<'a> {
    Weights(&'a [f32]),
    Bytes(Vec<u8>),
}

impl Tensor<'_> {
    fn raw_len(&self) -> usize {
        match &self.raw {
            Raw::Weights(values) => size_of_val(*values),
            Raw::Bytes(bytes) => bytes.len(),
        }
    }

    /// The initializer's own header, within the graph's.
    fn before(&self) -> [Message; 2] {
        let head = Message(self.head.0.clone()).length(9, self.raw_len());
        [Message::new().length(5, head.0.len() + self.raw_len()), head]
    }

    fn len(&self) -> usize {
        self.before().iter().map(|m| m.0.len()).sum::<usize>() + self.raw_len()
    }

    fn write(&self, file: &mut impl Write) -> std::io::Result<()> {
        self.before().iter().try_for_each(|m| file.write_all(m.as_ref()))?;
        match &self.raw {
            Raw::Weights(values) => values.iter().try_for_each(|x| file.write_all(&x.to_le_bytes())),
            Raw::Bytes(bytes) => file.write_all(bytes),
        }
    }
}

/// A graph in the making. Values are known by name.
#[derive(Default)]
struct Graph<'a> {
    nodes: Message,
    tensors: Vec<Tensor<'a>>,
    known: HashMap<Vec<u8>, String>,
    count: usize,
    /// What LayerNorms add to the variance.
    eps: f32,
}

impl<'a> Graph<'a> {
    /// Appends a node with one output, whose name it returns.
    fn op(&mut self, kind: &str, inputs: &[&str], attributes: &[Message]) -> String {
        self.count += 1;
        let output = format!("{}_{}", kind.to_lowercase(), self.count);
        self.named(&output, kind, inputs, attributes);
        output
    }

    fn named(&mut self, output: &str, kind: &str, inputs: &[&str], attributes: &[Message]) {
        let node = inputs.iter().fold(Message::new(), |node, input| node.bytes(1, input));
        let node = node.bytes(2, output).bytes(3, output).bytes(4, kind);
        let node = attributes.iter().fold(node, |node, attribute| node.bytes(5, attribute));
        self.nodes = std::mem::take(&mut self.nodes).bytes(1, node);
    }

    fn tensor(&mut self, name: &str, kind: i64, shape: &[usize], raw: Raw<'a>) {
        let head = shape.iter().fold(Message::new(), |head, &n| head.int(1, n as i64)).int(2, kind).bytes(8, name);
        self.tensors.push(Tensor { head, raw });
    }

    /// A small constant; equal ones are stored once.
    fn constant(&mut self, kind: i64, shape: &[usize], bytes: Vec<u8>) -> String {
        let key = [format!("{kind}{shape:?}").as_bytes(), &bytes].concat();
        if let Some(name) = self.known.get(&key) {
            return name.clone();
        }
        let name = format!("constant_{}", self.known.len());
        self.tensor(&name, kind, shape, Raw::Bytes(bytes));
        self.known.insert(key, name.clone());
        name
    }

    fn float(&mut self, value: f32) -> String {
        self.constant(FLOAT, &[], value.to_le_bytes().to_vec())
    }

    fn doubles(&mut self, shape: &[usize], values: &[f64]) -> String {
        self.constant(DOUBLE, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    fn ints(&mut self, values: &[i64]) -> String {
        self.constant(INT64, &[values.len()], values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Element `i` along `axis`, the axis gone.
    fn pick(&mut self, x: &str, i: i64, axis: i64) -> String {
        let i = self.constant(INT64, &[], i.to_le_bytes().to_vec());
        self.op("Gather", &[x, &i], &[int("axis", axis)])
    }

    fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.op("Reshape", &[x, &shape], &[])
    }

    fn transpose(&mut self, x: &str, order: &[i64]) -> String {
        self.op("Transpose", &[x], &[ints("perm", order)])
    }

    fn cast(&mut self, x: &str, kind: i64) -> String {
        self.op("Cast", &[x], &[int("to", kind)])
    }

    fn unsqueeze(&mut self, x: &str, axes: &[i64]) -> String {
        let axes = self.ints(axes);
        self.op("Unsqueeze", &[x, &axes], &[])
    }

    /// x w^T + b of the layer `name`. (Runtimes fold the transposition of a constant.)
    fn linear(&mut self, x: &str, name: &str) -> String {
        let w = self.transpose(&format!("{name}.weight"), &[1, 0]);
        let y = self.op("MatMul", &[x, &w], &[]);
        self.op("Add", &[&y, &format!("{name}.bias")], &[])
    }

    fn layernorm(&mut self, output: Option<&str>, x: &str, name: &str) -> String {
        let (w, b) = (format!("{name}.weight"), format!("{name}.bias"));
        let attributes = [int("axis", -1), float("epsilon", self.eps)];
        match output {
            None => self.op("LayerNormalization", &[x, &w, &b], &attributes),
            Some(output) => {
                self.named(output, "LayerNormalization", &[x, &w, &b], &attributes);
                output.into()
            }
        }
    }
}

fn int(name: &str, value: i64) -> Message {
    Message::new().bytes(1, name).int(3, value).int(20, 2)
}

fn float(name: &str, value: f32) -> Message {
    Message::new().bytes(1, name).float(2, value).int(20, 1)
}

fn ints(name: &str, values: &[i64]) -> Message {
    values.iter().fold(Message::new().bytes(1, name), |m, &v| m.int(8, v)).int(20, 7)
}

/// An input or output: its name, and of every axis its length or its name.
fn value(name: &str, axes: &[std::result::Result<usize, &str>]) -> Message {
    let shape = axes.iter().fold(Message::new(), |shape, axis| {
        shape.bytes(
            1,
            match axis {
                Ok(len) => Message::new().int(1, *len as i64),
                Err(name) => Message::new().bytes(2, name),
            },
        )
    });
    Message::new().bytes(1, name).bytes(2, Message::new().bytes(1, Message::new().int(1, FLOAT).bytes(2, shape)))
}

/// The shape, which [`write`] has found to be a ViT's.
fn vit(config: &Config) -> Vit {
    let Backbone::Vit(vit) = config.table().backbone else { unreachable!("refused before") };
    vit
}

/// The full network, as `dino_kernel::model::vit` has it.
fn network<'a>(g: &mut Graph<'a>, config: &Config, weights: &'a [f32], size: Size) {
    let table = config.table();
    let (vit, c) = (vit(config), config.embed_dim as i64);
    table.visit(|spec| {
        let name = spec.name.to_string();
        // Resized ones are written below.
        if spec.part == Part::Backbone && (name != "pos_embed" || size == Size::Free) {
            g.tensor(&name, FLOAT, spec.shape(), Raw::Weights(&weights[spec.at.range()]));
        }
    });
    let (patch, [height, width]) = (
        vit.patch,
        match size {
            Size::Fixed { height, width } => [Ok(height), Ok(width)],
            Size::Free => [Err("height"), Err("width")],
        },
    );

    let patches = [ints("kernel_shape", &[patch as i64; 2]), ints("strides", &[patch as i64; 2])];
    let grid = g.op("Conv", &["pixels", "patch_embed.proj.weight", "patch_embed.proj.bias"], &patches);
    let x = g.reshape(&grid, &[0, c, -1]);
    let x = g.transpose(&x, &[0, 2, 1]);
    let shape = g.op("Shape", &["pixels"], &[]);
    let (from, to) = (g.ints(&[0]), g.ints(&[1]));
    let images = g.op("Slice", &[&shape, &from, &to], &[]);
    let rest = g.ints(&[1, c]);
    let one = g.op("Concat", &[&images, &rest], &[int("axis", 0)]);
    let class = g.op("Expand", &["cls_token", &one], &[]);
    let x = g.op("Concat", &[&class, &x], &[int("axis", 1)]);
    let positions = match size {
        Size::Free => free_positions(g, &vit, &grid),
        Size::Fixed { height, width } => {
            let group = Group { count: 1, height, width };
            let raw = fixed_positions(config, weights, group);
            let [rows, cols] = group.grid(patch);
            g.tensor("pos_embed", FLOAT, &[1, 1 + rows * cols, vit.dim], raw);
            "pos_embed".into()
        }
    };
    let mut x = g.op("Add", &[&x, &positions], &[]);

    for i in 0..vit.depth {
        let of = |leaf: &str| format!("blocks.{i}.{leaf}");
        let y = g.layernorm(None, &x, &of("norm1"));
        let y = attention(g, &y, &of("attn"), vit.heads, vit.dim);
        x = g.op("Add", &[&x, &y], &[]);
        let y = g.layernorm(None, &x, &of("norm2"));
        let y = g.linear(&y, &of("mlp.fc1"));
        let y = gelu(g, &y);
        let y = g.linear(&y, &of("mlp.fc2"));
        x = g.op("Add", &[&x, &y], &[]);
    }
    g.layernorm(Some("tokens"), &x, "norm");
    let first = g.constant(INT64, &[], 0i64.to_le_bytes().to_vec());
    g.named("features", "Gather", &["tokens", &first], &[int("axis", 1)]);

    let tokens = match size {
        Size::Fixed { height, width } => Ok(1 + (height / patch) * (width / patch)),
        Size::Free => Err("tokens"),
    };
    let dim = Ok(vit.dim);
    g.nodes = std::mem::take(&mut g.nodes)
        .bytes(2, "dino")
        .bytes(11, value("pixels", &[Err("batch"), Ok(vit.channels), height, width]))
        .bytes(12, value("features", &[Err("batch"), dim]))
        .bytes(12, value("tokens", &[Err("batch"), tokens, dim]));
}

fn attention(g: &mut Graph, x: &str, name: &str, heads: usize, dim: usize) -> String {
    let each = dim / heads;
    let qkv = g.linear(x, &format!("{name}.qkv"));
    let qkv = g.reshape(&qkv, &[0, 0, 3, heads as i64, each as i64]);
    let qkv = g.transpose(&qkv, &[2, 0, 3, 1, 4]); // (3, batch, heads, tokens, D)
    let [q, k, v] = [0, 1, 2].map(|i| g.pick(&qkv, i, 0));
    let scale = g.float((each as f64).powf(-0.5) as f32);
    let q = g.op("Mul", &[&q, &scale], &[]);
    let k = g.transpose(&k, &[0, 1, 3, 2]);
    let p = g.op("MatMul", &[&q, &k], &[]);
    let p = g.op("Softmax", &[&p], &[int("axis", -1)]);
    let y = g.op("MatMul", &[&p, &v], &[]);
    let y = g.transpose(&y, &[0, 2, 1, 3]);
    let y = g.reshape(&y, &[0, 0, dim as i64]);
    g.linear(&y, &format!("{name}.proj"))
}

/// x (1 + erf(x / sqrt 2)) / 2.
fn gelu(g: &mut Graph, x: &str) -> String {
    let [root, one, half] = [std::f32::consts::FRAC_1_SQRT_2, 1.0, 0.5].map(|v| g.float(v));
    let y = g.op("Mul", &[x, &root], &[]);
    let y = g.op("Erf", &[&y], &[]);
    let y = g.op("Add", &[&y, &one], &[]);
    let y = g.op("Mul", &[x, &y], &[]);
    g.op("Mul", &[&y, &half], &[])
}

/// The class token's position and the others' for one size of images.
fn fixed_positions<'a>(config: &Config, weights: &'a [f32], group: Group) -> Raw<'a> {
    let (table, mut all) = (config.table(), &weights[..0]);
    table.visit(|spec| {
        if spec.name.to_string() == "pos_embed" {
            all = &weights[spec.at.range()];
        }
    });
    let (vit, c) = (vit(config), config.embed_dim);
    let (side, to) = (vit.image / vit.patch, group.grid(vit.patch));
    if position::is_native(group, vit.patch, side) {
        return Raw::Weights(all);
    }
    let [rows, cols] = to.map(|n| {
        let mut m = vec![0.0f32; n * side];
        position::matrix(&mut m, side, n, Some(vit.positions));
        m
    });
    let mut y = vec![0.0; to[0] * to[1] * c];
    position::forward(&mut y, &all[c..], &rows, &cols, Grid { from: [side; 2], to, cols: c });
    Raw::Bytes(all[..c].iter().chain(&y).flat_map(|x| x.to_le_bytes()).collect())
}

/// The same for any size, by the graph: the two small matrices of `dino_kernel::ops::position`, in doubles as there, and their
/// matmuls with the table.
fn free_positions(g: &mut Graph, vit: &Vit, grid: &str) -> String {
    let (side, c) = (vit.image / vit.patch, vit.dim as i64);
    let shape = g.op("Shape", &[grid], &[]);
    let [rows, cols] = [2, 3].map(|axis| g.pick(&shape, axis, 0));
    let pixels = g.op("Shape", &["pixels"], &[]);
    let [height, width] = [2, 3].map(|axis| g.pick(&pixels, axis, 0));
    // The table is used as it is where the image is square and has as many patches.
    let patches = g.op("Mul", &[&rows, &cols], &[]);
    let own = g.constant(INT64, &[], ((side * side) as i64).to_le_bytes().to_vec());
    let [square, many] = [[&height, &width], [&patches, &own]].map(|[a, b]| g.op("Equal", &[a, b], &[]));
    let native = g.op("And", &[&square, &many], &[]);
    let [rows, cols] = [rows, cols].map(|n| position_matrix(g, &n, side, vit.positions, &native));

    let [zero, one, end, axis] = [[0], [1], [i64::MAX], [1]].map(|v| g.ints(&v));
    let class = g.op("Slice", &["pos_embed", &zero, &one, &axis], &[]);
    let table = g.op("Slice", &["pos_embed", &one, &end, &axis], &[]);
    let y = g.reshape(&table, &[side as i64, -1]);
    let y = g.op("MatMul", &[&rows, &y], &[]); // (rows, side C)
    let y = g.reshape(&y, &[-1, side as i64, c]);
    let y = g.op("MatMul", &[&cols, &y], &[]); // (rows, cols, C)
    let y = g.reshape(&y, &[1, -1, c]);
    g.op("Concat", &[&class, &y], &[int("axis", 1)])
}

/// (n, side): bicubic weights, a = -0.75, taps clamped at the edge; the identity where `native`.
fn position_matrix(g: &mut Graph, n: &str, side: usize, interpolation: Interpolation, native: &str) -> String {
    const A: f64 = -0.75;
    let scalar = |g: &mut Graph, x: f64| g.doubles(&[], &[x]);
    let [zero, one, half, sides, last] = [0.0, 1.0, 0.5, side as f64, side as f64 - 1.0].map(|x| scalar(g, x));
    let n = g.cast(n, DOUBLE);
    let i = g.op("Range", &[&zero, &n, &one], &[]);
    let offset = scalar(g, if interpolation == Interpolation::Published { 0.1 } else { 0.0 });
    let stretched = g.op("Add", &[&n, &offset], &[]);
    let source = g.op("Add", &[&i, &half], &[]);
    let source = g.op("Mul", &[&source, &sides], &[]);
    let source = g.op("Div", &[&source, &stretched], &[]);
    let source = g.op("Sub", &[&source, &half], &[]);
    let base = g.op("Floor", &[&source], &[]);
    let t = g.op("Sub", &[&source, &base], &[]);
    let [base, t] = [base, t].map(|x| g.unsqueeze(&x, &[1]));
    // The four taps, and of each distance x the polynomial ((a3 x + a2) x + a1) x + a0: far, near, near, far.
    let taps = g.doubles(&[4], &[-1.0, 0.0, 1.0, 2.0]);
    let x = g.op("Sub", &[&t, &taps], &[]);
    let x = g.op("Abs", &[&x], &[]);
    let coefficients = [[A, A + 2.0], [-5.0 * A, -(A + 3.0)], [8.0 * A, 0.0], [-4.0 * A, 1.0]]
        .map(|[far, near]| [far, near, near, far]);
    let mut weight = g.doubles(&[4], &coefficients[0]);
    for more in &coefficients[1..] {
        let more = g.doubles(&[4], more);
        weight = g.op("Mul", &[&weight, &x], &[]);
        weight = g.op("Add", &[&weight, &more], &[]);
    }
    let at = g.op("Add", &[&base, &taps], &[]);
    let at = g.op("Clip", &[&at, &zero, &last], &[]);
    // Scattered over the table's side, and the taps added up.
    let places: Vec<f64> = (0..side).map(|i| i as f64).collect();
    let places = g.doubles(&[side], &places);
    let [at, weight] = [at, weight].map(|x| g.unsqueeze(&x, &[2]));
    let here = g.op("Equal", &[&at, &places], &[]);
    let here = g.cast(&here, DOUBLE);
    let m = g.op("Mul", &[&here, &weight], &[]);
    let axis = g.ints(&[1]);
    let m = g.op("ReduceSum", &[&m, &axis], &[int("keepdims", 0)]);
    let rows = g.unsqueeze(&i, &[1]);
    let identity = g.op("Equal", &[&rows, &places], &[]);
    let identity = g.cast(&identity, DOUBLE);
    let m = g.op("Where", &[native, &identity, &m], &[]);
    g.cast(&m, FLOAT)
}
