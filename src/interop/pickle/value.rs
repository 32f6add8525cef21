//! What a pickle holds.

use serde_json::{Map, Number};

use super::numpy;

/// Number of a node in its pickle.
pub(super) type Id = u32;

/// A parsed pickle. Its values refer to each other by number, as a pickle may name a value in several places, itself
/// included.
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
    /// Also of sets.
    List(Vec<Id>),
    Tuple(Vec<Id>),
    /// Also of `OrderedDict`s.
    Dict(Vec<(Id, Id)>),
    /// `module.name` of a class or function.
    Name(String),
    /// What a number outside the pickle stands for: a storage of PyTorch's.
    Persistent(Id),
    /// What `name(*arguments)` would be, with the state it would be given afterwards.
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

/// A call that a pickle asks for, and that is not made.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// `module.name` of what would be called.
    pub name: &'a str,
    pub arguments: Value<'a>,
    /// What the result's `__setstate__` would be given.
    pub state: Option<Value<'a>>,
}

/// As many values, and as deep, as no plans or `dataset.json` have: a value that is named often can stand for more of them
/// than memory holds.
const MAX_JSON_VALUES: usize = 1 << 20;
const MAX_JSON_DEPTH: usize = 32;

impl Pickle {
    /// The value of the whole pickle.
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

    /// The entry of a dictionary; the last, as in Python, where several have this key.
    pub fn get(self, key: &str) -> Option<Self> {
        let (_, value) = self.entries()?.filter(|(name, _)| name.text() == Some(key)).last()?;
        Some(value)
    }

    /// Keys and values of a dictionary.
    pub fn entries(self) -> Option<impl Iterator<Item = (Self, Self)>> {
        match self.node() {
            Node::Dict(entries) => Some(entries.iter().map(move |(key, value)| (self.with(*key), self.with(*value)))),
            _ => None,
        }
    }

    /// The values of a list or tuple.
    pub fn items(self) -> Option<impl ExactSizeIterator<Item = Self>> {
        match self.node() {
            Node::List(items) | Node::Tuple(items) => Some(items.iter().map(move |item| self.with(*item))),
            _ => None,
        }
    }

    /// A list or tuple of exactly `N` values, or the first `N` of a longer one.
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

    /// A whole number, of Python's or NumPy's.
    pub fn int(self) -> Option<i64> {
        match self.node() {
            Node::Int(value) => Some(*value),
            _ => numpy::scalar(self)?.int(),
        }
    }

    /// A number that counts or indexes.
    pub fn index(self) -> Option<usize> {
        usize::try_from(self.int()?).ok()
    }

    /// A number, of Python's or NumPy's.
    pub fn float(self) -> Option<f64> {
        match self.node() {
            Node::Int(value) => Some(*value as f64),
            Node::Float(value) => Some(*value),
            _ => Some(numpy::scalar(self)?.float()),
        }
    }

    /// A list or tuple of numbers that count or index.
    pub fn indices(self) -> Option<Vec<usize>> {
        self.items()?.map(Self::index).collect()
    }

    /// `module.name` of a class or function.
    pub fn name(self) -> Option<&'a str> {
        match self.node() {
            Node::Name(name) => Some(name),
            _ => None,
        }
    }

    /// What stands for something outside the pickle.
    pub fn persistent(self) -> Option<Self> {
        match self.node() {
            Node::Persistent(id) => Some(self.with(*id)),
            _ => None,
        }
    }

    /// A call that is not made.
    pub fn object(self) -> Option<Object<'a>> {
        match self.node() {
            Node::Object { name, arguments, state } => {
                Some(Object { name, arguments: self.with(*arguments), state: state.map(|state| self.with(state)) })
            }
            _ => None,
        }
    }

    /// What it is, for messages.
    pub fn kind(self) -> String {
        match self.node() {
            Node::None => "None".into(),
            Node::Bool(_) => "a truth value".into(),
            Node::Int(_) | Node::Float(_) => "a number".into(),
            Node::Text(_) => "a string".into(),
            Node::Bytes(_) => "bytes".into(),
            Node::List(_) => "a list".into(),
            Node::Tuple(_) => "a tuple".into(),
            Node::Dict(_) => "a dictionary".into(),
            Node::Name(name) => format!("the name {name}"),
            Node::Persistent(_) => "a storage".into(),
            Node::Object { name, .. } => format!("the result of calling {name}, which is not called"),
        }
    }

    /// The value as JSON: tuples become lists, keys strings.
    ///
    /// # Errors
    /// It holds what JSON cannot, or is larger than any plans are.
    pub fn to_json(self) -> Result<serde_json::Value, String> {
        self.json(MAX_JSON_DEPTH, &mut 0)
    }

    fn json(self, depth: usize, count: &mut usize) -> Result<serde_json::Value, String> {
        *count += 1;
        if depth == 0 || *count > MAX_JSON_VALUES {
            return Err("is larger or deeper than plans and descriptions of datasets are".into());
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
                (None, Some(value)) => Number::from_f64(value).ok_or("holds a number that is not finite")?.into(),
                (None, None) => return Err(format!("holds {}", self.kind())),
            },
        })
    }

    fn json_key(self) -> Result<String, String> {
        match (self.text(), self.int()) {
            (Some(text), _) => Ok(text.to_owned()),
            (None, Some(number)) => Ok(number.to_string()),
            (None, None) => Err(format!("holds {} as a key", self.kind())),
        }
    }
}
