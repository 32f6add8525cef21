//! Values of a parsed pickle.

use serde_json::{Map, Number};

use super::numpy;

/// Index of a node in its pickle.
pub(super) type Id = u32;

/// Parsed pickle. Its values refer to each other by index, because a value may occur in several places, even inside
/// itself.
#[derive(Debug)]
pub struct Pickle {
    pub(super) nodes: Vec<Node>,
    pub(super) root: Id,
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
    List(Vec<Id>),
    Tuple(Vec<Id>),
    /// Dictionaries, including `OrderedDict`s.
    Dict(Vec<(Id, Id)>),
    /// `module.name` of a class or function.
    Name(String),
    /// Reference to an object outside the pickle: a PyTorch storage.
    Persistent(Id),
    /// Recorded call `name(*arguments)`, with the state to set on its result.
    Object {
        name: String,
        arguments: Id,
        state: Option<Id>,
    },
}

/// A value of a pickle.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a> {
    pickle: &'a Pickle,
    id: Id,
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

    fn with(self, id: Id) -> Self {
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
            _ => numpy::scalar(self)?.int(),
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
            _ => Some(numpy::scalar(self)?.float()),
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
