//! NumPy scalars and arrays in pickles.

use super::Value;

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
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.size
    }

    /// Returns element `index` as f64; integers above 2^53 lose precision.
    pub fn float(&self, index: usize) -> f64 {
        match (self.kind, self.size) {
            (Kind::Float, 8) => f64::from_bits(self.word(index)),
            (Kind::Float, 4) => f32::from_bits(self.word(index) as u32).into(),
            (Kind::Float, _) => half::f16::from_bits(self.word(index) as u16).into(),
            (Kind::Signed, _) => self.signed(index) as f64,
            (Kind::Unsigned | Kind::Bool, _) => self.word(index) as f64,
        }
    }

    /// Returns element `index` if the type is an integer and the value fits into i64.
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
