//! A reader of pickles that executes nothing: what `torch.save` writes, as plain values.
//!
//! A pickle is a program for a stack machine whose `GLOBAL` and `REDUCE` call any Python function by name. Here nothing is ever called:
//! the few names on the list below mean a tensor or a dictionary, and every other one makes an object that has its name and, where the
//! pickle sets one, a state, and does nothing. Names that are not known are listed ([`Pickle::passed_over`]). Values lie in one arena and
//! refer to each other by index, so that no pickle, however it refers to itself, takes more memory than a fixed multiple of its bytes,
//! more time than a pass over them, or any depth of the stack.

use crate::error::{Error, Result};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::rc::Rc;

/// Most values of a pickle: a full checkpoint of the largest published model has about ten thousand.
const MOST_VALUES: usize = 1 << 22;
/// Most axes of a tensor.
const MOST_AXES: usize = 8;
/// Most names that are listed as passed over.
const MOST_NAMES: usize = 1000;
/// Longest name that is kept of what is passed over, bytes.
const LONGEST: usize = 100;

/// Index of a value.
pub type Id = usize;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Called, it is a dictionary.
    Dict,
    /// `torch._utils._rebuild_tensor_v2` or its elder.
    Tensor,
    /// `torch._utils._rebuild_tensor_v3`: of bytes without a type, which follows.
    TypedTensor,
    /// `torch._utils._rebuild_parameter`, with a state or without: its first argument.
    Parameter,
    /// `torch._tensor._rebuild_from_type_v2`: a function, a type, the function's arguments, a state. A tensor with attributes.
    FromType,
    /// The type of a storage.
    Storage(Dtype),
    /// The type of an element.
    Element(Dtype),
    /// A name that makes an object without any effect.
    Inert,
}

/// Types of elements. Those that are no real numbers are kept apart from the rest by their name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    /// Its name, and bytes of an element.
    Other(&'static str, usize),
}

impl Dtype {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F64 => 8,
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::Other(_, bytes) => bytes,
        }
    }

    /// The field's name.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F64 => "float64",
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::BF16 => "bfloat16",
            Dtype::Other(name, _) => name,
        }
    }
}

/// The list, and whether a name beside it is worth a word: those of numbers, dates, paths and layers are not.
fn known(module: &str, name: &str) -> (Known, bool) {
    let found = match (module, name) {
        ("collections", "OrderedDict" | "defaultdict") => Known::Dict,
        ("__builtin__" | "builtins", "dict") => Known::Dict,
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Known::Tensor,
        ("torch._utils", "_rebuild_tensor_v3") => Known::TypedTensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Known::Parameter,
        ("torch._tensor", "_rebuild_from_type" | "_rebuild_from_type_v2") => Known::FromType,
        ("torch.storage", "UntypedStorage") => Known::Storage(Dtype::Other("bytes", 1)),
        ("torch" | "torch.cuda", _) if name.ends_with("Storage") => storage(name).map_or(Known::Inert, Known::Storage),
        ("torch", _) => element(name).map_or(Known::Inert, Known::Element),
        _ => Known::Inert,
    };
    let plain = match module {
        "__builtin__" | "builtins" => {
            ["set", "frozenset", "complex", "bytearray", "slice", "range", "list", "tuple", "object"].contains(&name)
        }
        "torch" => ["Size", "device", "strided", "Tensor", "float", "double", "half", "long", "int"].contains(&name),
        "collections" => ["Counter", "deque"].contains(&name),
        "torch.torch_version" | "torch.nn.parameter" | "argparse" | "datetime" | "decimal" | "fractions" | "uuid" => {
            true
        }
        "pathlib" | "pathlib._local" | "numpy.dtypes" => true,
        "numpy.core.multiarray" | "numpy._core.multiarray" => ["scalar", "_reconstruct"].contains(&name),
        "numpy.core.numeric" | "numpy._core.numeric" => name == "_frombuffer",
        "numpy" => ["dtype", "ndarray"].contains(&name),
        "_codecs" => name == "encode",
        "torch.serialization" => name == "_get_layout",
        _ => module.starts_with("torch.nn.modules.") || module == "__torch__" || module.starts_with("__torch__."),
    };
    (found, found == Known::Inert && !plain)
}

/// Types that have a storage of their own: `torch.float32` and `torch.FloatStorage`.
const STORAGES: [(&str, &str, Dtype); 17] = [
    ("DoubleStorage", "float64", Dtype::F64),
    ("FloatStorage", "float32", Dtype::F32),
    ("HalfStorage", "float16", Dtype::F16),
    ("BFloat16Storage", "bfloat16", Dtype::BF16),
    ("LongStorage", "int64", Dtype::Other("int64", 8)),
    ("IntStorage", "int32", Dtype::Other("int32", 4)),
    ("ShortStorage", "int16", Dtype::Other("int16", 2)),
    ("CharStorage", "int8", Dtype::Other("int8", 1)),
    ("ByteStorage", "uint8", Dtype::Other("uint8", 1)),
    ("BoolStorage", "bool", Dtype::Other("bool", 1)),
    ("ComplexDoubleStorage", "complex128", Dtype::Other("complex128", 16)),
    ("ComplexFloatStorage", "complex64", Dtype::Other("complex64", 8)),
    ("QInt8Storage", "qint8", Dtype::Other("qint8", 1)),
    ("QUInt8Storage", "quint8", Dtype::Other("quint8", 1)),
    ("QInt32Storage", "qint32", Dtype::Other("qint32", 4)),
    ("QUInt4x2Storage", "quint4x2", Dtype::Other("quint4x2", 1)),
    ("QUInt2x4Storage", "quint2x4", Dtype::Other("quint2x4", 1)),
];

/// Types without one.
const OTHERS: [(&str, usize); 10] = [
    ("uint16", 2),
    ("uint32", 4),
    ("uint64", 8),
    ("complex32", 4),
    ("float8_e4m3fn", 1),
    ("float8_e5m2", 1),
    ("float8_e4m3fnuz", 1),
    ("float8_e5m2fnuz", 1),
    ("float8_e8m0fnu", 1),
    ("float4_e2m1fn_x2", 1),
];

fn storage(name: &str) -> Option<Dtype> {
    STORAGES.iter().find(|row| row.0 == name).map(|row| row.2)
}

/// A type of elements by its name in `torch`.
fn element(name: &str) -> Option<Dtype> {
    let other = OTHERS.iter().find(|(other, _)| *other == name).map(|&(name, bytes)| Dtype::Other(name, bytes));
    STORAGES.iter().find(|row| row.1 == name).map(|row| row.2).or(other)
}

/// A stretch of a storage, which lies elsewhere in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    pub dtype: Dtype,
    /// Its name in the file.
    pub key: String,
    /// First element, and how many.
    pub at: usize,
    pub len: usize,
}

/// A tensor's place in a storage. Nothing has been checked against the storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub storage: Storage,
    /// First element.
    pub offset: usize,
    pub shape: Vec<usize>,
    /// Elements between neighbours along every axis.
    pub strides: Vec<usize>,
}

/// What a pickle is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// A whole number of more than 64 bits, in its little-endian bytes.
    Long(Vec<u8>),
    Float(f64),
    Text(String),
    /// Bytes, forgotten.
    Bytes,
    /// A list, tuple or set.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Known, Rc<str>),
    Storage(Storage),
    Tensor(Tensor),
    Object(Object),
}

/// What a call of a name, or an object of a class, became.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// The name.
    pub name: Rc<str>,
    /// What was set in it, as in a dictionary.
    pub items: Vec<(Id, Id)>,
    /// What it was built from: of most objects a dictionary of its attributes.
    pub state: Option<Id>,
}

/// A pickle that has been read.
#[derive(Clone, Debug)]
pub struct Pickle {
    pub values: Vec<Value>,
    pub root: Id,
    /// Bytes it took.
    pub used: usize,
    /// Names of functions and classes that were not called and that nothing is known of.
    pub passed_over: BTreeSet<String>,
    /// Where the bytes of texts and of bytes lie, those of texts before they became UTF-8.
    pub raw: HashMap<Id, Range<usize>>,
}

impl Pickle {
    /// Reads the pickle at the front of `bytes`; the error is one line without the file's name.
    pub fn read(bytes: &[u8]) -> Result<Pickle> {
        let mut m = Machine {
            bytes,
            at: 0,
            values: vec![],
            stack: vec![],
            marks: vec![],
            memo: HashMap::new(),
            copied: 0,
            passed_over: BTreeSet::new(),
            raw: HashMap::new(),
        };
        loop {
            let op = m.byte()?;
            if op == b'.' {
                let root = m.pop()?;
                return Ok(Pickle { values: m.values, root, used: m.at, passed_over: m.passed_over, raw: m.raw });
            }
            m.step(op)?;
        }
    }

    pub fn root(&self) -> &Value {
        &self.values[self.root]
    }

    /// The text at an index.
    pub fn text(&self, id: Id) -> Option<&str> {
        if let Value::Text(text) = &self.values[id] { Some(text) } else { None }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    /// Pairs that were copied from lists: a list may be named again and again.
    copied: usize,
    passed_over: BTreeSet<String>,
    raw: HashMap<Id, Range<usize>>,
}

fn broken(what: impl std::fmt::Display) -> Error {
    Error::new(format!("its pickle is damaged: {what}")).hint("copy or download the file again")
}

impl<'a> Machine<'a> {
    fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        let left = &self.bytes[self.at..];
        let n = usize::try_from(n).ok().filter(|n| *n <= left.len());
        let n = n.ok_or_else(|| broken(format!("it ends early, after {} bytes", self.bytes.len())))?;
        self.at += n;
        Ok(&left[..n])
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian number of `n` bytes, at most 8.
    fn number(&mut self, n: u64) -> Result<u64> {
        Ok(self.take(n)?.iter().rev().fold(0, |x, b| x << 8 | u64::from(*b)))
    }

    fn line(&mut self) -> Result<&'a str> {
        let left = &self.bytes[self.at..];
        let n = left.iter().position(|b| *b == b'\n').ok_or_else(|| broken("a line has no end"))?;
        self.at += n + 1;
        std::str::from_utf8(&left[..n]).map_err(|_| broken("a line is not text"))
    }

    fn text(&mut self, n: u64) -> Result<()> {
        // Surrogates, which Python writes in its own way, become question marks: no key of a tensor has any.
        let text = String::from_utf8_lossy(self.take(n)?).into_owned();
        self.raw.insert(self.values.len(), self.at - n as usize..self.at);
        self.push(Value::Text(text))
    }

    fn push(&mut self, value: Value) -> Result<()> {
        if self.values.len() == MOST_VALUES {
            return Err(Error::new(format!("its pickle has more than {MOST_VALUES} values"))
                .hint("torch.save(model.state_dict(), ...) writes the tensors alone"));
        }
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(broken(format!("nothing to take at byte {}", self.at)));
        }
        self.stack.pop().ok_or_else(|| broken("nothing to take"))
    }

    fn top(&mut self) -> Result<Id> {
        let id = self.pop()?;
        self.stack.push(id);
        Ok(id)
    }

    /// What lies above the last mark.
    fn marked(&mut self) -> Result<Vec<Id>> {
        let from = self.marks.pop().ok_or_else(|| broken(format!("no mark at byte {}", self.at)))?;
        Ok(self.stack.split_off(from))
    }

    fn tuple(&mut self, n: usize) -> Result<()> {
        let mut items = vec![0; n];
        for item in items.iter_mut().rev() {
            *item = self.pop()?;
        }
        self.push(Value::Sequence(items))
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<()> {
        let id = self.top()?;
        match &mut self.values[id] {
            Value::Sequence(list) => list.extend(items),
            Value::Object(_) => (),
            _ => return Err(broken("something is appended to what is no list")),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Id>) -> Result<()> {
        let id = self.top()?;
        match &mut self.values[id] {
            Value::Dict(pairs) | Value::Object(Object { items: pairs, .. }) => {
                pairs.extend(items.as_chunks::<2>().0.iter().map(|[k, v]| (*k, *v)));
            }
            _ => return Err(broken("an item is set in what is no dictionary")),
        }
        Ok(())
    }

    fn remember(&mut self, key: u64) -> Result<()> {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<()> {
        let id = *self.memo.get(&key).ok_or_else(|| broken(format!("it recalls {key}, which it never stored")))?;
        self.stack.push(id);
        if self.stack.len() > MOST_VALUES {
            return Err(broken("its stack grows without end"));
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        // What is shown fits a line, whatever the file holds.
        let full: String = format!("{module}.{name}").chars().flat_map(char::escape_default).take(LONGEST).collect();
        let (known, unknown) = known(module, name);
        if unknown && self.passed_over.len() < MOST_NAMES {
            self.passed_over.insert(full.clone());
        }
        self.push(Value::Global(known, full.into()))
    }

    /// An object that does nothing.
    fn object(&mut self, name: Rc<str>) -> Result<()> {
        self.push(Value::Object(Object { name, items: vec![], state: None }))
    }

    /// A call. Nothing is called.
    fn reduce(&mut self) -> Result<()> {
        let (args, function) = (self.pop()?, self.pop()?);
        self.call(function, args)
    }

    /// What a call of `function` is: a tensor, a dictionary, or an object that does nothing.
    fn call(&mut self, function: Id, args: Id) -> Result<()> {
        let (known, name) = match &self.values[function] {
            Value::Global(known, name) => (*known, name.clone()),
            Value::Object(o) => (Known::Inert, o.name.clone()),
            _ => (Known::Inert, "a call of what is no name".into()),
        };
        let items = match &self.values[args] {
            Value::Sequence(items) => items.as_slice(),
            _ => return Err(broken("a call without its arguments")),
        };
        match known {
            Known::Dict => {
                let pairs = self.pairs(items);
                self.copied += pairs.len();
                if self.copied > MOST_VALUES {
                    return Err(broken("its dictionaries are copies of each other"));
                }
                self.push(Value::Dict(pairs))
            }
            Known::Parameter => match items.first() {
                Some(&tensor) if matches!(self.values[tensor], Value::Tensor(_)) => {
                    self.stack.push(tensor);
                    Ok(())
                }
                _ => self.object(name),
            },
            Known::FromType => match *items {
                // The function is one that makes a tensor, or the object has its name: one step, whatever the pickle holds.
                [function, _, args, ..] => match self.values[function] {
                    Value::Global(Known::Tensor | Known::TypedTensor | Known::Parameter, _) => {
                        self.call(function, args)
                    }
                    Value::Global(_, ref name) => {
                        let name = name.clone();
                        self.object(name)
                    }
                    _ => self.object(name),
                },
                _ => self.object(name),
            },
            Known::Tensor | Known::TypedTensor => match self.tensor(items, known == Known::TypedTensor) {
                Some(tensor) => self.push(Value::Tensor(tensor)),
                None => self.object(name),
            },
            Known::Storage(_) | Known::Element(_) | Known::Inert => self.object(name),
        }
    }

    /// The pairs that an ordered dictionary of old is made of: one list of lists of two.
    fn pairs(&self, args: &[Id]) -> Vec<(Id, Id)> {
        let Some(Value::Sequence(rows)) = args.first().map(|&id| &self.values[id]) else { return vec![] };
        let pair = |&row: &Id| match &self.values[row] {
            Value::Sequence(two) if two.len() == 2 => Some((two[0], two[1])),
            _ => None,
        };
        rows.iter().filter_map(pair).collect()
    }

    /// (storage, offset, size, stride, …), for a storage of bytes (…, requires_grad, hooks, type) after them.
    fn tensor(&self, items: &[Id], typed: bool) -> Option<Tensor> {
        let [storage, offset, size, stride] = *items.first_chunk::<4>()?;
        let Value::Storage(storage) = &self.values[storage] else { return None };
        let mut storage = storage.clone();
        if typed {
            let Value::Global(Known::Element(dtype), _) = self.values[*items.get(6)?] else { return None };
            if !storage.at.is_multiple_of(dtype.bytes()) {
                return None;
            }
            (storage.at, storage.len) = (storage.at / dtype.bytes(), storage.len / dtype.bytes());
            storage.dtype = dtype;
        }
        let sizes = |id: Id| match &self.values[id] {
            Value::Sequence(ids) if ids.len() <= MOST_AXES => ids.iter().map(|&id| self.size(id)).collect(),
            _ => None,
        };
        let (shape, strides): (Vec<usize>, Vec<usize>) = (sizes(size)?, sizes(stride)?);
        let tensor = Tensor { storage, offset: self.size(offset)?, shape, strides };
        (tensor.shape.len() == tensor.strides.len()).then_some(tensor)
    }

    fn size(&self, id: Id) -> Option<usize> {
        if let Value::Int(n) = self.values[id] { n.try_into().ok() } else { None }
    }

    /// ('storage', type, key, location, elements[, view]); a view is (key, first element, elements) or none.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let read = || {
            let Value::Sequence(items) = &self.values[id] else { return None };
            let [word, kind, key, _, len] = *items.first_chunk::<5>()?;
            let (Value::Text(word), Value::Global(Known::Storage(dtype), _)) = (&self.values[word], &self.values[kind])
            else {
                return None;
            };
            let Value::Text(key) = &self.values[key] else { return None };
            let (mut at, mut len) = (0, self.size(len)?);
            if let Some(Value::Sequence(view)) = items.get(5).map(|&id| &self.values[id]) {
                (at, len) = (self.size(*view.get(1)?)?, self.size(*view.get(2)?)?);
            }
            // Every tensor carries its storage's key along: it must not be long.
            (word == "storage" && key.len() < 100).then(|| Storage { dtype: *dtype, key: key.clone(), at, len })
        };
        if let Some(storage) = read() {
            return self.push(Value::Storage(storage));
        }
        // ('module', class, its file, its source), of whole modules before 1.6.
        if let Value::Sequence(items) = &self.values[id]
            && let [word, class, ..] = **items
            && matches!(&self.values[word], Value::Text(word) if word == "module")
        {
            self.stack.push(class);
            return Ok(());
        }
        self.object("an object from outside the file".into())
    }

    /// An object of a class, from its arguments.
    fn new_object(&mut self, class: Id) -> Result<()> {
        match &self.values[class] {
            Value::Global(Known::Dict, _) => self.push(Value::Dict(vec![])),
            Value::Global(_, name) => self.object(name.clone()),
            _ => self.object("an object of what is no name".into()),
        }
    }

    /// Sets the state of an object; that of a dictionary (a state dictionary's `_metadata`) or of anything else is not looked at.
    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        let id = self.top()?;
        if let Value::Object(object) = &mut self.values[id] {
            object.state = Some(state);
        }
        Ok(())
    }

    fn whole(&mut self, bytes: &[u8]) -> Result<()> {
        let value = if bytes.len() > 8 {
            Value::Long(bytes.to_vec())
        } else {
            // Two's complement, its sign in the last byte.
            let fill = if bytes.last().is_some_and(|b| *b >= 0x80) { 0xff } else { 0 };
            let mut all = [fill; 8];
            all[..bytes.len()].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(all))
        };
        self.push(value)
    }

    fn step(&mut self, op: u8) -> Result<()> {
        match op {
            0x80 => {
                let protocol = self.byte()?;
                if protocol > 5 {
                    return Err(broken(format!("protocol {protocol} is not known")));
                }
                Ok(())
            }
            0x95 => self.take(8).map(|_| ()), // a frame's length
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(|_| ()),
            b'1' => self.marked().map(|_| ()),
            b'2' => {
                let id = self.top()?;
                self.stack.push(id);
                Ok(())
            }
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' => {
                let n = self.number(4)? as u32 as i32;
                self.push(Value::Int(n.into()))
            }
            b'K' => {
                let n = self.number(1)?;
                self.push(Value::Int(n as i64))
            }
            b'M' => {
                let n = self.number(2)?;
                self.push(Value::Int(n as i64))
            }
            b'I' | b'L' => {
                let line = self.line()?;
                let value = match line.trim_end_matches('L') {
                    "00" if op == b'I' => Value::Bool(false),
                    "01" if op == b'I' => Value::Bool(true),
                    // More digits than a number of 64 bits has: nobody's size.
                    digits if digits.len() > 18 && digits.bytes().all(|b| b.is_ascii_digit() || b == b'-') => {
                        digits.parse().map_or(Value::Long(vec![]), Value::Int)
                    }
                    digits => Value::Int(digits.parse().map_err(|_| broken("a number is no number"))?),
                };
                self.push(value)
            }
            0x8a | 0x8b => {
                let n = self.number(if op == 0x8a { 1 } else { 4 })?;
                let bytes = self.take(n)?;
                self.whole(bytes)
            }
            b'F' => {
                let x = self.line()?.parse().map_err(|_| broken("a number is no number"))?;
                self.push(Value::Float(x))
            }
            b'G' => {
                let x = f64::from_bits(self.number(8)?.swap_bytes());
                self.push(Value::Float(x))
            }
            b'X' | b'T' => self.number(4).and_then(|n| self.text(n)),
            0x8c | b'U' => self.number(1).and_then(|n| self.text(n)),
            0x8d => self.number(8).and_then(|n| self.text(n)),
            b'V' | b'S' => {
                let text = self.line()?.trim_matches(if op == b'S' { '\'' } else { '\0' }).to_string();
                self.push(Value::Text(text))
            }
            b'B' | b'C' | 0x8e | 0x96 => {
                let n = self.number(match op {
                    b'B' => 4,
                    b'C' => 1,
                    _ => 8,
                })?;
                self.take(n)?;
                self.raw.insert(self.values.len(), self.at - n as usize..self.at);
                self.push(Value::Bytes)
            }
            b'}' => self.push(Value::Dict(vec![])),
            b']' | b')' | 0x8f => self.push(Value::Sequence(vec![])),
            b't' | b'l' | 0x91 => {
                let items = self.marked()?;
                self.push(Value::Sequence(items))
            }
            0x85 => self.tuple(1),
            0x86 => self.tuple(2),
            0x87 => self.tuple(3),
            b'd' => {
                let items = self.marked()?;
                self.push(Value::Dict(vec![]))?;
                self.set(items)
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])
            }
            b'e' | 0x90 => {
                let items = self.marked()?;
                self.extend(items)
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])
            }
            b'u' => {
                let items = self.marked()?;
                self.set(items)
            }
            b'q' => self.number(1).and_then(|key| self.remember(key)),
            b'r' => self.number(4).and_then(|key| self.remember(key)),
            0x94 => self.remember(self.memo.len() as u64),
            b'p' => {
                let key = self.line()?.parse().map_err(|_| broken("a number is no number"))?;
                self.remember(key)
            }
            b'h' => self.number(1).and_then(|key| self.recall(key)),
            b'j' => self.number(4).and_then(|key| self.recall(key)),
            b'g' => {
                let key = self.line()?.parse().map_err(|_| broken("a number is no number"))?;
                self.recall(key)
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(name), Value::Text(module)) = (&self.values[name], &self.values[module]) else {
                    return Err(broken("a name is no text"));
                };
                let (name, module) = (name.clone(), module.clone());
                self.global(&module, &name)
            }
            b'R' => self.reduce(),
            0x81 => {
                let (_args, class) = (self.pop()?, self.pop()?);
                self.new_object(class)
            }
            0x92 => {
                let (_named, _args, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.new_object(class)
            }
            b'o' => {
                let items = self.marked()?;
                let class = *items.first().ok_or_else(|| broken("an object without a class"))?;
                self.new_object(class)
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                self.marked()?;
                self.global(module, name)?;
                let class = self.pop()?;
                self.new_object(class)
            }
            b'b' => self.build(),
            b'Q' => self.persistent(),
            b'P' => {
                self.line()?;
                self.object("an object from outside the file".into())
            }
            // A name by its number in a registry of the program that wrote it.
            0x82..=0x84 => {
                self.number(1 << (op - 0x82))?;
                self.push(Value::Global(Known::Inert, "a registered extension".into()))
            }
            // A buffer that travels beside the pickle, and the same one made read-only.
            0x97 => self.push(Value::Bytes),
            0x98 => self.top().map(|_| ()),
            _ => Err(broken(format!("0x{op:02x} at byte {} is no instruction", self.at - 1))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(bytes: &[u8]) -> String {
        let text = Pickle::read(bytes).unwrap_err().to_string();
        assert_eq!(text.lines().count(), 2, "{text}");
        text
    }

    /// Each of these runs a command, or reads an attribute, when Python loads it. Here it is an object that does nothing, and is named.
    #[test]
    fn names_that_do_something_do_nothing_and_are_named() {
        for (bytes, name) in [
            (&b"\x80\x02cposix\nsystem\nq\x00X\x02\x00\x00\x00idq\x01\x85q\x02Rq\x03."[..], "posix.system"),
            (b"cos\nsystem\n(S'id'\ntR.", "os.system"),
            (b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.", "__builtin__.eval"),
            (
                b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x8c\x04exec\x93\x8c\x01x\x85R.",
                "builtins.exec",
            ),
            (
                b"\x80\x02cbuiltins\ngetattr\nctorch._utils\n_rebuild_parameter\nX\x0b\x00\x00\x00__globals__\x86R.",
                "builtins.getattr",
            ),
            (
                b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n)R.",
                "torch._utils._rebuild_tensor_v2.__globals__",
            ),
            (b"\x80\x02ctorch.serialization\nload\n)R.", "torch.serialization.load"),
            (b"\x80\x02cvision_transformer\nVisionTransformer\n)\x81}b.", "vision_transformer.VisionTransformer"),
            (b"\x80\x02ctorch\nload\n)R.", "torch.load"),
            (b"(ios\nsystem\n.", "os.system"),
            (b"(cos\nsystem\nX\x02\x00\x00\x00ido.", "os.system"),
            (b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.", "os.system"),
            // A function that is said to make a tensor.
            (b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN)}tR.", "os.system"),
        ] {
            let read = Pickle::read(bytes).unwrap();
            let Value::Object(object) = read.root() else { panic!("{name}: {:?}", read.root()) };
            assert_eq!((&*object.name, read.passed_over.first().map(String::as_str)), (name, Some(name)));
            assert_eq!(read.passed_over.len(), 1, "{name}");
        }
        // In the state of a harmless object, and in its arguments.
        for bytes in [
            &b"\x80\x02cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00acos\nsystem\nsb."[..],
            b"\x80\x02cargparse\nNamespace\ncos\nsystem\n(tR\x85R.",
        ] {
            let read = Pickle::read(bytes).unwrap();
            assert!(matches!(read.root(), Value::Object(o) if &*o.name == "argparse.Namespace"), "{:?}", read.root());
            assert_eq!(read.passed_over.into_iter().collect::<Vec<_>>(), ["os.system"]);
        }
        // Known names in the wrong place, persistent objects, extensions and buffers from outside: nothing, and nothing to name.
        for bytes in [
            &b"\x80\x02cargparse\nNamespace\n)\x81)R."[..],
            b"\x80\x02ctorch\nFloatStorage\n)R.",
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
            b"\x80\x02ctorch._utils\n_rebuild_parameter\n(NtR.",
            b"\x80\x02X\x01\x00\x00\x00aQ.",
            b"Pfile\n.",
            b"\x80\x02\x82\x01)R.",
            b"\x80\x02\x84\x01\x00\x00\x00)\x81.",
        ] {
            let read = Pickle::read(bytes).unwrap();
            assert!(matches!(read.root(), Value::Object(_)) && read.passed_over.is_empty(), "{:?}", read.root());
        }
        assert_eq!(Pickle::read(b"\x80\x05\x97\x98.").unwrap().root(), &Value::Bytes);
        // However many names there are, some thousand short ones are kept.
        let many: Vec<u8> = (0..5000).flat_map(|i| format!("c{}\n{i}\n0", "m".repeat(300)).into_bytes()).collect();
        let read = Pickle::read(&[&many[..], b"N."].concat()).unwrap();
        assert!(read.passed_over.iter().all(|name| name.len() <= LONGEST) && read.passed_over.len() <= MOST_NAMES);
    }

    #[test]
    fn no_pickle_takes_more_than_its_bytes_allow() {
        // Texts, bytes and numbers that say they are huge.
        for bytes in [
            &b"\x80\x02X\xff\xff\xff\xffabc."[..],
            b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.",
            b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
            b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
            b"\x80\x02\x8a\xffabc.",
        ] {
            assert!(said(bytes).contains("ends early"));
        }
        // A list that holds itself, and lists of lists whose expansion would have 2^200 elements.
        let own = Pickle::read(b"\x80\x02]q\x00h\x00ah\x00a.").unwrap();
        assert_eq!(own.root(), &Value::Sequence(vec![0, 0]));
        let mut bomb = b"\x80\x02]q\x00".to_vec();
        (0..200u8).for_each(|i| bomb.extend([b']', b'q', i + 1, b'h', i, b'a', b'h', i, b'a']));
        bomb.push(b'.');
        assert_eq!(Pickle::read(&bomb).unwrap().values.len(), 201);
        // A million brackets deep, and a stack of recalled values.
        let deep = [vec![b'('; 1 << 20], vec![b't'; 1 << 20], vec![b'.']].concat();
        assert!(matches!(Pickle::read(&deep).unwrap().root(), Value::Sequence(_)));
        let many = [b"\x80\x02Nq\x00".to_vec(), b"h\x00".repeat(MOST_VALUES), vec![b'.']].concat();
        assert!(said(&many).contains("without end"));
        assert!(said(&vec![b'N'; MOST_VALUES + 1]).contains("more than"));
    }

    #[test]
    fn damaged_pickles_are_said_to_be() {
        let whole = b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00bG?\xf0\x00\x00\x00\x00\x00\x00u.";
        let read = Pickle::read(whole).unwrap();
        assert_eq!(read.used, whole.len());
        let Value::Dict(pairs) = read.root() else { panic!("{:?}", read.root()) };
        let seen: Vec<_> = pairs.iter().map(|(k, v)| (read.text(*k).unwrap(), &read.values[*v])).collect();
        assert_eq!(seen, [("a", &Value::Int(1)), ("b", &Value::Float(1.0))]);
        for n in 0..whole.len() {
            said(&whole[..n]);
        }
        for bytes in [
            &b"."[..],
            b"(.",
            b"t.",
            b"\x80\x09.",
            b"a.",
            b"NNa.",
            b"NNs.",
            b"h\x00.",
            b"\xff.",
            b"R.",
            b"NNR.",
            b"(0.",
        ] {
            said(bytes);
        }
        for (bytes, n) in [
            (&b"\x8a\x00."[..], 0),
            (b"\x8a\x01\xff.", -1),
            (b"\x8a\x02\x00\x01.", 256),
            (b"J\xfe\xff\xff\xff.", -2),
            (b"L-7L\n.", -7),
        ] {
            assert_eq!(Pickle::read(bytes).unwrap().root(), &Value::Int(n));
        }
    }
}
