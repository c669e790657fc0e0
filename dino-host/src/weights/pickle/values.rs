//! What a pickle is made of: values, the names that mean something, and types of elements.

use std::rc::Rc;

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
    /// f64.
    F64,
    /// f32.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
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

/// The list, and whether a name beside it is worth a note: those of numbers, dates, paths and layers are not.
pub(super) fn known(module: &str, name: &str) -> (Known, bool) {
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

/// A range of a storage, which is stored elsewhere in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its name in the file.
    pub key: String,
    /// First element, and how many.
    pub at: usize,
    /// Elements.
    pub len: usize,
}

/// A tensor's place in a storage. Nothing has been checked against the storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Where its elements are.
    pub storage: Storage,
    /// First element.
    pub offset: usize,
    /// Elements along every axis.
    pub shape: Vec<usize>,
    /// Elements between neighbors along every axis.
    pub strides: Vec<usize>,
}

/// What a pickle is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Python's `None`.
    None,
    /// A bool.
    Bool(bool),
    /// An integer of up to 64 bits.
    Int(i64),
    /// An integer of more than 64 bits, in its little-endian bytes.
    Long(Vec<u8>),
    /// A float.
    Float(f64),
    /// A str.
    Text(String),
    /// Bytes, forgotten.
    Bytes,
    /// A list, tuple or set.
    Sequence(Vec<Id>),
    /// A dictionary: keys and values, in order.
    Dict(Vec<(Id, Id)>),
    /// A function or class: what is known of it, and its name.
    Global(Known, Rc<str>),
    /// A storage.
    Storage(Storage),
    /// A tensor.
    Tensor(Tensor),
    /// Any other object.
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
