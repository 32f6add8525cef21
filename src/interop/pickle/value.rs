//! Values of a parsed pickle, with NumPy scalars and arrays decoded.

use serde_json::{Map, Number};

/// Index of a node in its pickle.
pub(super) type NodeId = u32;

/// Parsed pickle. Its values refer to each other by index, because a value may occur in several places, even inside
/// itself.
#[derive(Debug)]
pub struct Pickle {
    pub(super) nodes: Vec<Node>,
    pub(super) root: NodeId,
}

#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// Lists and sets.
    List(Vec<NodeId>),
    Tuple(Vec<NodeId>),
    /// Dictionaries, including `OrderedDict`s.
    Dict(Vec<(NodeId, NodeId)>),
    /// `module.name` of a class or function.
    Name(String),
    /// Reference to an object outside the pickle: a PyTorch storage.
    Persistent(NodeId),
    /// Recorded call `name(*arguments)`, with the state to set on its result.
    Object {
        name: String,
        arguments: NodeId,
        state: Option<NodeId>,
    },
}

/// A value of a pickle.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a> {
    pickle: &'a Pickle,
    id: NodeId,
}

/// Recorded call, which is never executed.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// Name `module.name` of the called function.
    pub name: &'a str,
    pub arguments: Value<'a>,
    /// Argument of the result's `__setstate__`.
    pub state: Option<Value<'a>>,
}

/// Limits of a conversion to JSON, above those of any plans or `dataset.json`: values that are referenced many times
/// could otherwise expand beyond the memory.
const MAX_JSON_VALUES: usize = 1 << 20;
const MAX_JSON_DEPTH: usize = 32;

impl Pickle {
    /// Returns the top-level value.
    pub fn root(&self) -> Value<'_> {
        Value { pickle: self, id: self.root }
    }
}

impl<'a> Value<'a> {
    fn node(self) -> &'a Node {
        &self.pickle.nodes[self.id as usize]
    }

    fn with(self, id: NodeId) -> Self {
        Self { id, ..self }
    }

    /// Returns an entry of a dictionary; for duplicate keys, the last one, as in Python.
    pub fn get(self, key: &str) -> Option<Self> {
        let (_, value) = self.entries()?.filter(|(name, _)| name.text() == Some(key)).last()?;
        Some(value)
    }

    /// Iterates over keys and values of a dictionary.
    pub fn entries(self) -> Option<impl Iterator<Item = (Self, Self)>> {
        match self.node() {
            Node::Dict(entries) => Some(entries.iter().map(move |(key, value)| (self.with(*key), self.with(*value)))),
            _ => None,
        }
    }

    /// Iterates over the values of a list or tuple.
    pub fn items(self) -> Option<impl ExactSizeIterator<Item = Self>> {
        match self.node() {
            Node::List(items) | Node::Tuple(items) => Some(items.iter().map(move |item| self.with(*item))),
            _ => None,
        }
    }

    /// Returns the first `N` values of a list or tuple with at least `N` values.
    pub fn first<const N: usize>(self) -> Option<[Self; N]> {
        let items: Vec<_> = self.items()?.take(N).collect();
        items.try_into().ok()
    }

    pub fn text(self) -> Option<&'a str> {
        match self.node() {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn bytes(self) -> Option<&'a [u8]> {
        match self.node() {
            Node::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub fn bool(self) -> Option<bool> {
        match self.node() {
            Node::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub fn is_none(self) -> bool {
        matches!(self.node(), Node::None)
    }

    /// Returns an integer of Python or NumPy.
    pub fn int(self) -> Option<i64> {
        match self.node() {
            Node::Int(value) => Some(*value),
            _ => scalar(self)?.int(),
        }
    }

    /// Returns a non-negative integer.
    pub fn index(self) -> Option<usize> {
        usize::try_from(self.int()?).ok()
    }

    /// Returns a number of Python or NumPy as f64.
    pub fn float(self) -> Option<f64> {
        match self.node() {
            Node::Int(value) => Some(*value as f64),
            Node::Float(value) => Some(*value),
            _ => Some(scalar(self)?.float()),
        }
    }

    /// Returns a list or tuple of non-negative integers.
    pub fn indices(self) -> Option<Vec<usize>> {
        self.items()?.map(Self::index).collect()
    }

    /// Returns `module.name` of a class or function.
    pub fn name(self) -> Option<&'a str> {
        match self.node() {
            Node::Name(name) => Some(name),
            _ => None,
        }
    }

    /// Returns the ID of a reference to an object outside the pickle.
    pub fn persistent(self) -> Option<Self> {
        match self.node() {
            Node::Persistent(id) => Some(self.with(*id)),
            _ => None,
        }
    }

    /// Returns a recorded call.
    pub fn object(self) -> Option<Object<'a>> {
        match self.node() {
            Node::Object { name, arguments, state } => {
                Some(Object { name, arguments: self.with(*arguments), state: state.map(|state| self.with(state)) })
            }
            _ => None,
        }
    }

    /// Describes the type of the value for messages.
    pub fn kind(self) -> String {
        match self.node() {
            Node::None => "None".into(),
            Node::Bool(_) => "a boolean".into(),
            Node::Int(_) | Node::Float(_) => "a number".into(),
            Node::Text(_) => "a string".into(),
            Node::Bytes(_) => "bytes".into(),
            Node::List(_) => "a list".into(),
            Node::Tuple(_) => "a tuple".into(),
            Node::Dict(_) => "a dictionary".into(),
            Node::Name(name) => format!("the name {name}"),
            Node::Persistent(_) => "a storage".into(),
            Node::Object { name, .. } => format!("a call of {name}, which is not executed"),
        }
    }

    /// Converts the value to JSON: tuples become lists, keys become strings.
    ///
    /// # Errors
    /// Returns an error if it contains values without a JSON equivalent, or if it is larger than any plans.
    pub fn to_json(self) -> Result<serde_json::Value, String> {
        self.json(MAX_JSON_DEPTH, &mut 0)
    }

    fn json(self, depth: usize, count: &mut usize) -> Result<serde_json::Value, String> {
        *count += 1;
        if depth == 0 || *count > MAX_JSON_VALUES {
            return Err("is larger or deeper than any plans or dataset.json".into());
        }
        Ok(match self.node() {
            Node::None => serde_json::Value::Null,
            Node::Bool(value) => (*value).into(),
            Node::Int(value) => (*value).into(),
            Node::Text(text) => text.as_str().into(),
            Node::List(items) | Node::Tuple(items) => {
                items.iter().map(|item| self.with(*item).json(depth - 1, count)).collect::<Result<_, _>>()?
            }
            Node::Dict(entries) => {
                let mut map = Map::new();
                for (key, value) in entries {
                    map.insert(self.with(*key).json_key()?, self.with(*value).json(depth - 1, count)?);
                }
                map.into()
            }
            _ => match (self.int(), self.float()) {
                (Some(value), _) => value.into(),
                (None, Some(value)) => Number::from_f64(value).ok_or("contains a non-finite number")?.into(),
                (None, None) => return Err(format!("contains {}", self.kind())),
            },
        })
    }

    fn json_key(self) -> Result<String, String> {
        match (self.text(), self.int()) {
            (Some(text), _) => Ok(text.to_owned()),
            (None, Some(number)) => Ok(number.to_string()),
            (None, None) => Err(format!("contains {} as a key", self.kind())),
        }
    }
}

/// NumPy array: shape and elements in memory order.
#[derive(Clone, Debug)]
pub struct Array<'a> {
    pub shape: Vec<usize>,
    /// Whether the array is in Fortran order (first index varies fastest).
    pub is_fortran: bool,
    pub elements: Elements<'a>,
}

/// Elements of one of NumPy's number types, little-endian.
#[derive(Clone, Copy, Debug)]
pub struct Elements<'a> {
    kind: ElementKind,
    size: usize,
    bytes: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum ElementKind {
    Bool,
    Signed,
    Unsigned,
    Float,
}

impl Elements<'_> {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.size
    }

    /// Returns element `index` as f64; integers above 2^53 lose precision.
    pub fn float(&self, index: usize) -> f64 {
        match (self.kind, self.size) {
            (ElementKind::Float, 8) => f64::from_bits(self.word(index)),
            (ElementKind::Float, 4) => f32::from_bits(self.word(index) as u32).into(),
            (ElementKind::Float, _) => half::f16::from_bits(self.word(index) as u16).into(),
            (ElementKind::Signed, _) => self.signed(index) as f64,
            (ElementKind::Unsigned | ElementKind::Bool, _) => self.word(index) as f64,
        }
    }

    /// Returns element `index` if the type is an integer and the value fits into i64.
    pub fn int(&self, index: usize) -> Option<i64> {
        match self.kind {
            ElementKind::Float => None,
            ElementKind::Signed => Some(self.signed(index)),
            ElementKind::Unsigned | ElementKind::Bool => i64::try_from(self.word(index)).ok(),
        }
    }

    fn word(&self, index: usize) -> u64 {
        let mut word = [0; 8];
        word[..self.size].copy_from_slice(&self.bytes[index * self.size..][..self.size]);
        u64::from_le_bytes(word)
    }

    fn signed(&self, index: usize) -> i64 {
        let unused = 64 - 8 * self.size as u32;
        (self.word(index) << unused) as i64 >> unused
    }
}

/// NumPy scalar, stored as one element.
#[derive(Clone, Copy)]
pub(super) struct Scalar<'a>(Elements<'a>);

impl Scalar<'_> {
    pub(super) fn int(self) -> Option<i64> {
        self.0.int(0)
    }

    pub(super) fn float(self) -> f64 {
        self.0.float(0)
    }
}

/// Decodes a scalar: `numpy.core.multiarray.scalar(dtype, bytes)`.
pub(super) fn scalar<'a>(value: Value<'a>) -> Option<Scalar<'a>> {
    let object = value.object()?;
    if !is_multiarray(object.name, "scalar") {
        return None;
    }
    let [dtype, bytes] = object.arguments.first()?;
    let elements = elements(dtype, bytes.bytes()?)?;
    (elements.len() == 1).then_some(Scalar(elements))
}

impl<'a> Array<'a> {
    /// Decodes an array: `numpy.core.multiarray._reconstruct(...)` with the state `(version, shape, dtype, order,
    /// bytes)`. Returns `None` for any other value and for an inconsistent array.
    pub fn from_value(value: Value<'a>) -> Option<Self> {
        let object = value.object()?;
        if !is_multiarray(object.name, "_reconstruct") {
            return None;
        }
        let [_, shape, dtype, is_fortran, bytes] = object.state?.first()?;
        let shape = shape.indices()?;
        let elements = elements(dtype, bytes.bytes()?)?;
        let len = shape.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent))?;
        (elements.len() == len).then_some(Self { shape, is_fortran: is_fortran.bool()?, elements })
    }

    /// Returns element `(row, column)` of a two-dimensional array.
    pub fn at(&self, row: usize, column: usize) -> Option<f64> {
        let [rows, columns] = self.shape[..] else { return None };
        if row >= rows || column >= columns {
            return None;
        }
        Some(self.elements.float(if self.is_fortran { row + column * rows } else { row * columns + column }))
    }
}

/// Checks a function name of the module, which was renamed in NumPy 2.
fn is_multiarray(name: &str, function: &str) -> bool {
    ["numpy.core.multiarray", "numpy._core.multiarray"]
        .iter()
        .any(|module| name.strip_prefix(module).and_then(|rest| rest.strip_prefix('.')) == Some(function))
}

/// Decodes elements; `dtype` is `numpy.dtype(name, ...)` with the state `(version, byte order, ...)`.
fn elements<'a>(dtype: Value, bytes: &'a [u8]) -> Option<Elements<'a>> {
    let dtype = dtype.object().filter(|object| object.name == "numpy.dtype")?;
    let [name] = dtype.arguments.first()?;
    let (kind, size) = match name.text()? {
        "b1" => (ElementKind::Bool, 1),
        "i1" => (ElementKind::Signed, 1),
        "i2" => (ElementKind::Signed, 2),
        "i4" => (ElementKind::Signed, 4),
        "i8" => (ElementKind::Signed, 8),
        "u1" => (ElementKind::Unsigned, 1),
        "u2" => (ElementKind::Unsigned, 2),
        "u4" => (ElementKind::Unsigned, 4),
        "u8" => (ElementKind::Unsigned, 8),
        "f2" => (ElementKind::Float, 2),
        "f4" => (ElementKind::Float, 4),
        "f8" => (ElementKind::Float, 8),
        _ => return None,
    };
    let order = dtype.state.and_then(|state| state.first::<2>()).and_then(|[_, order]| order.text());
    (order != Some(">") && bytes.len().is_multiple_of(size)).then_some(Elements { kind, size, bytes })
}
