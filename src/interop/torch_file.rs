//! PyTorch's file format (`torch.save` since 1.6): a zip archive with a pickle, `data.pkl`, that describes tensors, and
//! one entry with the bytes of each storage, `data/N`. Nothing is compressed.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::InteropError;
use super::pickle::{Pickle, Value, parse};
use nnunet_core::fsio::{self, PartialFile};

/// Size limit for `data.pkl`, above that of any checkpoint.
const MAX_PICKLE: u64 = 64 << 20;

/// Alignment of storages; PyTorch aligns them for memory mapping.
const ALIGNMENT: u16 = 64;

/// Opened file.
pub struct TorchFile {
    archive: ZipArchive<BufReader<File>>,
    /// Folder within the archive that contains all entries.
    root: String,
    file_len: u64,
}

/// Tensor in C order, converted to `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Location of the elements of a tensor.
struct TensorLayout<'a> {
    /// Name of the storage's entry below `data/`.
    key: &'a str,
    element: ElementType,
    /// Number of elements of the storage.
    storage_len: usize,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// Types of the elements of a tensor.
#[derive(Clone, Copy)]
enum ElementType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
}

impl TorchFile {
    /// Opens a file and parses its pickle; storages are not read yet.
    ///
    /// # Errors
    /// Returns an error if the file is missing or damaged, or not in PyTorch's current format.
    pub fn open(path: &Path) -> Result<(Self, Pickle), InteropError> {
        let fail = |defect: String| InteropError::new(path, defect);
        let file = File::open(path).map_err(|error| fail(error.to_string()))?;
        let file_len = file.metadata().map_err(|error| fail(error.to_string()))?.len();
        let archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
            fail(format!(
                "not a complete PyTorch file ({error}); files from before PyTorch 1.6 must be loaded and saved again"
            ))
        })?;
        let description =
            archive.file_names().find(|name| name.split_once('/').is_some_and(|(_, file)| file == "data.pkl"));
        let description = description.ok_or_else(|| fail("not a PyTorch file: the archive has no data.pkl".into()))?;
        let root = description.trim_end_matches("data.pkl").to_owned();
        let mut this = Self { archive, root, file_len };
        if this.entry("byteorder", 16).is_ok_and(|order| order == b"big") {
            return Err(fail("was saved on a big-endian machine, which is not supported".into()));
        }
        let pickle = this.entry("data.pkl", MAX_PICKLE).and_then(|bytes| parse(&bytes)).map_err(fail)?;
        Ok((this, pickle))
    }

    /// Reads a tensor with any strides; module parameters are supported, too.
    ///
    /// # Errors
    /// Returns an error if the value is not a tensor, if its type is not supported, or if its storage is incomplete.
    pub fn tensor(&mut self, value: Value) -> Result<Tensor, String> {
        let layout = TensorLayout::from_value(value)?;
        let len = layout.checked_len()?;
        let width = layout.element.width();
        let bytes = (layout.storage_len as u64).saturating_mul(width as u64);
        let storage = self.entry(&format!("data/{}", layout.key), bytes)?;
        if storage.len() as u64 != bytes {
            return Err(format!("storage {} has {} bytes instead of {bytes}", layout.key, storage.len()));
        }
        let at = |index: usize| layout.element.value(&storage[index * width..][..width]);
        let values = match len == 0 || layout.is_contiguous() {
            true => (layout.offset..layout.offset + len).map(at).collect(),
            false => layout.indices(len).map(at).collect(),
        };
        Ok(Tensor { shape: layout.shape, values })
    }

    /// Reads an entry of at most `limit` bytes.
    fn entry(&mut self, name: &str, limit: u64) -> Result<Vec<u8>, String> {
        let name = format!("{}{name}", self.root);
        let mut entry = self.archive.by_name(&name).map_err(|error| format!("entry {name}: {error}"))?;
        if entry.compression() != CompressionMethod::Stored {
            return Err(format!("entry {name} is compressed, which PyTorch does not do"));
        }
        let size = entry.size();
        if size > limit.min(self.file_len) {
            return Err(format!("entry {name} declares {size} bytes, over the size limit"));
        }
        let mut bytes = Vec::with_capacity(size as usize);
        // Reading to the end verifies the checksum.
        entry.read_to_end(&mut bytes).map_err(|error| format!("entry {name}: {error}"))?;
        Ok(bytes)
    }
}

impl<'a> TensorLayout<'a> {
    fn from_value(value: Value<'a>) -> Result<Self, String> {
        let object = value.object().ok_or_else(|| format!("is {}, not a tensor", value.kind()))?;
        match object.name {
            // The first argument of a parameter is its tensor, which must not be a parameter again.
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                let inner = object.arguments.first::<1>().map(|[tensor]| tensor);
                match inner
                    .filter(|inner| inner.object().is_some_and(|inner| inner.name == "torch._utils._rebuild_tensor_v2"))
                {
                    Some(tensor) => Self::from_value(tensor),
                    None => Err("is a parameter without a tensor".into()),
                }
            }
            "torch._utils._rebuild_tensor_v2" => {
                Self::from_arguments(object.arguments).ok_or_else(|| "has a damaged description".to_owned())?
            }
            _ => Err(format!("is {}, not a tensor", value.kind())),
        }
    }

    /// Parses `(storage, offset, shape, strides, ...)`, where the storage is `("storage", type, key, device, length)`.
    fn from_arguments(arguments: Value<'a>) -> Option<Result<Self, String>> {
        let [storage, offset, shape, strides] = arguments.first()?;
        let [_, kind, key, _, storage_len] = storage.persistent()?.first()?;
        let element = match ElementType::from_storage_type(kind.name()?) {
            Ok(element) => element,
            Err(defect) => return Some(Err(defect)),
        };
        Some(Ok(Self {
            key: key.text()?,
            element,
            storage_len: storage_len.index()?,
            offset: offset.index()?,
            shape: shape.indices()?,
            strides: strides.indices()?,
        }))
    }

    /// Returns the number of elements after checking that all are within the storage. A tensor with more elements than
    /// its storage repeats some, which weights never do.
    fn checked_len(&self) -> Result<usize, String> {
        let Self { shape, strides, .. } = self;
        let outside = || format!("shape {shape:?} with strides {strides:?} reaches beyond its storage");
        let len = shape.iter().try_fold(1usize, |len, extent| len.checked_mul(*extent)).ok_or_else(outside)?;
        if shape.len() != strides.len() || len > self.storage_len {
            return Err(outside());
        }
        if len == 0 {
            return Ok(0);
        }
        let last = shape
            .iter()
            .zip(strides)
            .try_fold(self.offset, |last, (extent, stride)| last.checked_add((extent - 1).checked_mul(*stride)?));
        last.filter(|last| *last < self.storage_len).map(|_| len).ok_or_else(outside)
    }

    /// Returns whether the elements of a non-empty tensor are contiguous.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(extent, stride)| {
            let matches = *extent == 1 || *stride == expected;
            expected *= extent;
            matches
        })
    }

    /// Iterates over the storage indices of the elements in C order.
    fn indices(&self, len: usize) -> impl Iterator<Item = usize> {
        (0..len).map(|mut number| {
            let mut index = self.offset;
            for (extent, stride) in self.shape.iter().zip(&self.strides).rev() {
                index += number % extent * stride;
                number /= extent;
            }
            index
        })
    }
}

impl ElementType {
    fn from_storage_type(name: &str) -> Result<Self, String> {
        Ok(match name {
            "torch.DoubleStorage" => Self::F64,
            "torch.FloatStorage" => Self::F32,
            "torch.HalfStorage" => Self::F16,
            "torch.BFloat16Storage" => Self::Bf16,
            "torch.LongStorage" => Self::I64,
            "torch.IntStorage" => Self::I32,
            "torch.ShortStorage" => Self::I16,
            "torch.CharStorage" => Self::I8,
            "torch.ByteStorage" | "torch.BoolStorage" => Self::U8,
            other => return Err(format!("is of the type {other}, which is not supported")),
        })
    }

    /// Returns the bytes per element.
    fn width(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 => 1,
        }
    }

    /// Decodes an element from [`ElementType::width`] little-endian bytes.
    fn value(self, bytes: &[u8]) -> f32 {
        fn word<const N: usize>(bytes: &[u8]) -> [u8; N] {
            std::array::from_fn(|index| bytes[index])
        }
        match self {
            Self::F64 => f64::from_le_bytes(word(bytes)) as f32,
            Self::F32 => f32::from_le_bytes(word(bytes)),
            Self::F16 => half::f16::from_le_bytes(word(bytes)).to_f32(),
            Self::Bf16 => half::bf16::from_le_bytes(word(bytes)).to_f32(),
            Self::I64 => i64::from_le_bytes(word(bytes)) as f32,
            Self::I32 => i32::from_le_bytes(word(bytes)) as f32,
            Self::I16 => i16::from_le_bytes(word(bytes)).into(),
            Self::I8 => i8::from_le_bytes(word(bytes)).into(),
            Self::U8 => bytes[0].into(),
        }
    }
}

/// Writes a file for `torch.load`: the pickle and the storages of its tensors, which are `f32` and named by their
/// index.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn write(path: &Path, pickle: &[u8], storages: &[&[f32]]) -> Result<(), InteropError> {
    let fill = |file: &mut BufWriter<&mut PartialFile>| {
        let mut archive = ZipWriter::new(file);
        let mut add = |name: &str, contents: &[u8]| {
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .large_file(u32::try_from(contents.len()).is_err())
                .with_alignment(ALIGNMENT);
            archive.start_file(format!("archive/{name}"), options)?;
            archive.write_all(contents)
        };
        add("data.pkl", pickle)?;
        add("byteorder", b"little")?;
        for (number, values) in storages.iter().enumerate() {
            add(&format!("data/{number}"), &little_endian(values))?;
        }
        add("version", b"3\n")?;
        archive.finish()?;
        Ok(())
    };
    fsio::write_atomically(path, fill).map_err(|error| InteropError::new(path, format!("cannot be written: {error}")))
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
