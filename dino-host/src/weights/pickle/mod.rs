//! A reader of pickles that executes nothing: what `torch.save` writes, as plain values.
//!
//! A pickle is a program for a stack machine whose `GLOBAL` and `REDUCE` call any Python function by name. Here nothing is ever called:
//! the few names on the list below mean a tensor or a dictionary, and every other one makes an object that has its name and, where the
//! pickle sets one, a state, and does nothing. Names that are not known are listed ([`Pickle::passed_over`]). Values are in one arena and
//! refer to each other by index, so that no pickle, however it refers to itself, takes more memory than a fixed multiple of its bytes,
//! more time than a pass over them, or any depth of the stack.

mod values;

pub use values::{Dtype, Id, Known, Object, Storage, Tensor, Value};

use crate::error::{Error, Result};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::rc::Rc;
use values::known;

/// Most values of a pickle: a full checkpoint of the largest published model has about ten thousand.
const MOST_VALUES: usize = 1 << 22;
/// Most axes of a tensor.
const MOST_AXES: usize = 8;
/// Most names that are listed as passed over.
const MOST_NAMES: usize = 1000;
/// Longest name that is kept of what is passed over, bytes.
const LONGEST: usize = 100;

/// A pickle that has been read.
#[derive(Clone, Debug)]
pub struct Pickle {
    /// All values; an [`Id`] is an index into them.
    pub values: Vec<Value>,
    /// The index of the outermost one.
    pub root: Id,
    /// Bytes it took.
    pub used: usize,
    /// Names of functions and classes that were not called and that nothing is known of.
    pub passed_over: BTreeSet<String>,
    /// Where the bytes of texts and of bytes are stored, those of texts before they became UTF-8.
    pub raw: HashMap<Id, Range<usize>>,
}

impl Pickle {
    /// Reads the pickle at the front of `bytes`; the error is one line without the file's name.
    ///
    /// # Errors
    /// The bytes end too early, or an opcode is unknown, misplaced or too large.
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

    /// The outermost value.
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

    /// What is above the last mark.
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
        // ('module', class, its file, its source), of full modules before 1.6.
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
mod tests;
