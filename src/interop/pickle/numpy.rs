//! NumPy's numbers and arrays, as pickles hold them.

use super::Value;

/// An array: its extents, and its elements as they lie in memory.
#[derive(Clone, Debug)]
pub struct Array<'a> {
    pub shape: Vec<usize>,
    /// Whether the first index is the one that runs fastest.
    pub is_fortran: bool,
    pub elements: Elements<'a>,
}

/// Numbers of one of NumPy's types, little-endian.
#[derive(Clone, Copy, Debug)]
pub struct Elements<'a> {
    kind: Kind,
    size: usize,
    bytes: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Bool,
    Signed,
    Unsigned,
    Float,
}

impl Elements<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.size
    }

    /// Element `index` as a number; whole numbers beyond 2^53 lose digits.
    pub fn float(&self, index: usize) -> f64 {
        match (self.kind, self.size) {
            (Kind::Float, 8) => f64::from_bits(self.word(index)),
            (Kind::Float, 4) => f32::from_bits(self.word(index) as u32).into(),
            (Kind::Float, _) => half::f16::from_bits(self.word(index) as u16).into(),
            (Kind::Signed, _) => self.signed(index) as f64,
            (Kind::Unsigned | Kind::Bool, _) => self.word(index) as f64,
        }
    }

    /// Element `index`, if it is of a type of whole numbers and not beyond the range.
    pub fn int(&self, index: usize) -> Option<i64> {
        match self.kind {
            Kind::Float => None,
            Kind::Signed => Some(self.signed(index)),
            Kind::Unsigned | Kind::Bool => i64::try_from(self.word(index)).ok(),
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

/// The only element of a scalar.
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

/// A number: `numpy.core.multiarray.scalar(dtype, bytes)`.
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
    /// Reads an array: `numpy.core.multiarray._reconstruct(...)` with the state `(version, shape, dtype, order, bytes)`.
    /// `None` for anything else, and for an array whose parts contradict each other.
    pub fn of(value: Value<'a>) -> Option<Self> {
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

    /// Element `(row, column)` of an array of two dimensions.
    pub fn at(&self, row: usize, column: usize) -> Option<f64> {
        let [rows, columns] = self.shape[..] else { return None };
        if row >= rows || column >= columns {
            return None;
        }
        Some(self.elements.float(if self.is_fortran { row + column * rows } else { row * columns + column }))
    }
}

/// The module was renamed in NumPy 2.
fn is_multiarray(name: &str, function: &str) -> bool {
    ["numpy.core.multiarray", "numpy._core.multiarray"]
        .iter()
        .any(|module| name.strip_prefix(module).and_then(|rest| rest.strip_prefix('.')) == Some(function))
}

/// `dtype` is `numpy.dtype(name, ...)` with the state `(version, byte order, ...)`.
fn elements<'a>(dtype: Value, bytes: &'a [u8]) -> Option<Elements<'a>> {
    let dtype = dtype.object().filter(|object| object.name == "numpy.dtype")?;
    let [name] = dtype.arguments.first()?;
    let (kind, size) = match name.text()? {
        "b1" => (Kind::Bool, 1),
        "i1" => (Kind::Signed, 1),
        "i2" => (Kind::Signed, 2),
        "i4" => (Kind::Signed, 4),
        "i8" => (Kind::Signed, 8),
        "u1" => (Kind::Unsigned, 1),
        "u2" => (Kind::Unsigned, 2),
        "u4" => (Kind::Unsigned, 4),
        "u8" => (Kind::Unsigned, 8),
        "f2" => (Kind::Float, 2),
        "f4" => (Kind::Float, 4),
        "f8" => (Kind::Float, 8),
        _ => return None,
    };
    let order = dtype.state.and_then(|state| state.first::<2>()).and_then(|[_, order]| order.text());
    (order != Some(">") && bytes.len().is_multiple_of(size)).then_some(Elements { kind, size, bytes })
}
