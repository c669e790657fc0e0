//! The graph of an ONNX model in the making: nodes, constants, inputs and outputs.

use super::proto::Message;
use std::collections::HashMap;
use std::io::Write;

pub(super) const FLOAT: i64 = 1;
pub(super) const INT64: i64 = 7;
pub(super) const DOUBLE: i64 = 11;

/// A constant of the graph, written when it is due: only one is ever held twice.
pub(super) struct Tensor<'a> {
    head: Message,
    raw: Raw<'a>,
}

pub(super) enum Raw<'a> {
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

    pub(super) fn len(&self) -> usize {
        self.before().iter().map(|m| m.0.len()).sum::<usize>() + self.raw_len()
    }

    pub(super) fn write(&self, file: &mut impl Write) -> std::io::Result<()> {
        self.before().iter().try_for_each(|m| file.write_all(m.as_ref()))?;
        match &self.raw {
            Raw::Weights(values) => values.iter().try_for_each(|x| file.write_all(&x.to_le_bytes())),
            Raw::Bytes(bytes) => file.write_all(bytes),
        }
    }
}

/// A graph in the making. Values are known by name.
#[derive(Default)]
pub(super) struct Graph<'a> {
    pub(super) nodes: Message,
    pub(super) tensors: Vec<Tensor<'a>>,
    /// What the metadata state of the network, beside what they state of every one.
    pub(super) properties: Vec<(&'static str, String)>,
    known: HashMap<Vec<u8>, String>,
    count: usize,
    /// What LayerNorms add to the variance.
    eps: f32,
}

impl<'a> Graph<'a> {
    /// An empty one, whose LayerNorms add `eps` to the variance.
    pub(super) fn new(eps: f32) -> Graph<'a> {
        Graph { eps, ..Graph::default() }
    }

    /// Appends a node with one output, whose name it returns.
    pub(super) fn op(&mut self, kind: &str, inputs: &[&str], attributes: &[Message]) -> String {
        self.count += 1;
        let output = format!("{}_{}", kind.to_lowercase(), self.count);
        self.named(&output, kind, inputs, attributes);
        output
    }

    pub(super) fn named(&mut self, output: &str, kind: &str, inputs: &[&str], attributes: &[Message]) {
        let node = inputs.iter().fold(Message::new(), |node, input| node.bytes(1, input));
        let node = node.bytes(2, output).bytes(3, output).bytes(4, kind);
        let node = attributes.iter().fold(node, |node, attribute| node.bytes(5, attribute));
        self.nodes = std::mem::take(&mut self.nodes).bytes(1, node);
    }

    pub(super) fn tensor(&mut self, name: &str, kind: i64, shape: &[usize], raw: Raw<'a>) {
        let head = shape.iter().fold(Message::new(), |head, &n| head.int(1, n as i64)).int(2, kind).bytes(8, name);
        self.tensors.push(Tensor { head, raw });
    }

    /// A small constant; equal ones are stored once.
    pub(super) fn constant(&mut self, kind: i64, shape: &[usize], bytes: Vec<u8>) -> String {
        let key = [format!("{kind}{shape:?}").as_bytes(), &bytes].concat();
        if let Some(name) = self.known.get(&key) {
            return name.clone();
        }
        let name = format!("constant_{}", self.known.len());
        self.tensor(&name, kind, shape, Raw::Bytes(bytes));
        self.known.insert(key, name.clone());
        name
    }

    pub(super) fn float(&mut self, value: f32) -> String {
        self.constant(FLOAT, &[], value.to_le_bytes().to_vec())
    }

    pub(super) fn doubles(&mut self, shape: &[usize], values: &[f64]) -> String {
        self.constant(DOUBLE, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    pub(super) fn ints(&mut self, values: &[i64]) -> String {
        self.constant(INT64, &[values.len()], values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Element `i` along `axis`, the axis gone.
    pub(super) fn pick(&mut self, x: &str, i: i64, axis: i64) -> String {
        let i = self.constant(INT64, &[], i.to_le_bytes().to_vec());
        self.op("Gather", &[x, &i], &[int("axis", axis)])
    }

    pub(super) fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.op("Reshape", &[x, &shape], &[])
    }

    pub(super) fn transpose(&mut self, x: &str, order: &[i64]) -> String {
        self.op("Transpose", &[x], &[ints("perm", order)])
    }

    pub(super) fn cast(&mut self, x: &str, kind: i64) -> String {
        self.op("Cast", &[x], &[int("to", kind)])
    }

    pub(super) fn unsqueeze(&mut self, x: &str, axes: &[i64]) -> String {
        let axes = self.ints(axes);
        self.op("Unsqueeze", &[x, &axes], &[])
    }

    /// x w^T + b of the layer `name`. (Runtimes fold the transposition of a constant.)
    pub(super) fn linear(&mut self, x: &str, name: &str) -> String {
        let w = self.transpose(&format!("{name}.weight"), &[1, 0]);
        let y = self.op("MatMul", &[x, &w], &[]);
        self.op("Add", &[&y, &format!("{name}.bias")], &[])
    }

    pub(super) fn layernorm(&mut self, output: Option<&str>, x: &str, name: &str) -> String {
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

pub(super) fn int(name: &str, value: i64) -> Message {
    Message::new().bytes(1, name).int(3, value).int(20, 2)
}

pub(super) fn float(name: &str, value: f32) -> Message {
    Message::new().bytes(1, name).float(2, value).int(20, 1)
}

pub(super) fn ints(name: &str, values: &[i64]) -> Message {
    values.iter().fold(Message::new().bytes(1, name), |m, &v| m.int(8, v)).int(20, 7)
}

/// An input or output: its name, and of every axis its length or its name.
pub(super) fn value(name: &str, axes: &[std::result::Result<usize, &str>]) -> Message {
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
