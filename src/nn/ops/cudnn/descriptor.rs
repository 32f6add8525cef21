//! Descriptors of the graph API. Every object is a descriptor: created, given attributes and finalized.

use std::ffi::{c_int, c_void};
use std::ptr;

use super::library::{CallError, Cudnn, Pointer};

/// `cudnnBackendDescriptorType_t`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Convolution = 1,
    Engine = 2,
    EngineConfig = 3,
    EngineHeuristics = 4,
    ExecutionPlan = 5,
    Forward = 10,
    BackwardFilter = 11,
    BackwardData = 12,
    OperationGraph = 15,
    VariantPack = 16,
    Tensor = 17,
}

/// `cudnnBackendAttributeName_t`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Name {
    ConvolutionComputeType = 100,
    ConvolutionMode = 101,
    ConvolutionDilations = 102,
    ConvolutionStrides = 103,
    ConvolutionPostPaddings = 104,
    ConvolutionPrePaddings = 105,
    ConvolutionSpatialDims = 106,
    HeuristicsMode = 200,
    HeuristicsGraph = 201,
    HeuristicsResults = 202,
    ConfigEngine = 300,
    PlanHandle = 400,
    PlanConfig = 401,
    PlanWorkspace = 402,
    ForwardAlpha = 700,
    ForwardBeta = 701,
    ForwardConvolution = 702,
    ForwardW = 703,
    ForwardX = 704,
    ForwardY = 705,
    DataAlpha = 706,
    DataBeta = 707,
    DataConvolution = 708,
    DataW = 709,
    DataX = 710,
    DataY = 711,
    FilterAlpha = 712,
    FilterBeta = 713,
    FilterConvolution = 714,
    FilterW = 715,
    FilterX = 716,
    FilterY = 717,
    GraphHandle = 800,
    GraphOperations = 801,
    TensorAlignment = 900,
    TensorType = 901,
    TensorDimensions = 902,
    TensorStrides = 903,
    TensorId = 906,
    PackIds = 1000,
    PackPointers = 1001,
    PackWorkspace = 1003,
    EngineIndex = 1301,
    EngineNotes = 1303,
}

/// `cudnnBackendAttributeType_t`.
#[derive(Clone, Copy, Debug)]
enum AttributeType {
    Handle = 0,
    DataType = 1,
    Int64 = 3,
    Float = 4,
    VoidPointer = 6,
    ConvolutionMode = 7,
    HeuristicsMode = 8,
    NumericalNote = 11,
    Descriptor = 15,
}

/// Value of an attribute.
pub(super) enum Value<'a> {
    Handle(Pointer),
    /// `cudnnDataType_t`.
    DataType(c_int),
    Ints(&'a [i64]),
    Float(f32),
    Pointers(&'a [Pointer]),
    /// `cudnnConvolutionMode_t`.
    ConvolutionMode(c_int),
    /// `cudnnBackendHeurMode_t`.
    HeuristicsMode(c_int),
    Descriptors(&'a [&'a Descriptor]),
}

/// A backend descriptor. Descriptors it refers to must outlive it.
pub(super) struct Descriptor {
    library: &'static Cudnn,
    pub(super) handle: Pointer,
}

// SAFETY: a descriptor may be used from any thread, but not concurrently.
unsafe impl Send for Descriptor {}

type Result<T, E = CallError> = std::result::Result<T, E>;

impl Descriptor {
    /// Creates a descriptor without attributes.
    pub(super) fn new(library: &'static Cudnn, kind: Kind) -> Result<Self> {
        let mut handle = ptr::null_mut();
        // SAFETY: the out-pointer is valid.
        let code = unsafe { (library.functions.cudnnBackendCreateDescriptor)(kind as c_int, &mut handle) };
        library.check("cudnnBackendCreateDescriptor", code)?;
        Ok(Self { library, handle })
    }

    /// Creates a descriptor with attributes and finalizes it.
    pub(super) fn with(library: &'static Cudnn, kind: Kind, attributes: &[(Name, Value)]) -> Result<Self> {
        let descriptor = Self::new(library, kind)?;
        for (name, value) in attributes {
            descriptor.set(*name, value)?;
        }
        // SAFETY: the handle is alive.
        let code = unsafe { (library.functions.cudnnBackendFinalize)(descriptor.handle) };
        library.check("cudnnBackendFinalize", code)?;
        Ok(descriptor)
    }

    fn set(&self, name: Name, value: &Value) -> Result<()> {
        match value {
            Value::Handle(handle) => self.set_array(name, AttributeType::Handle, &[*handle]),
            Value::DataType(data_type) => self.set_array(name, AttributeType::DataType, &[*data_type]),
            Value::Ints(values) => self.set_array(name, AttributeType::Int64, values),
            Value::Float(value) => self.set_array(name, AttributeType::Float, &[*value]),
            Value::Pointers(pointers) => self.set_array(name, AttributeType::VoidPointer, pointers),
            Value::ConvolutionMode(mode) => self.set_array(name, AttributeType::ConvolutionMode, &[*mode]),
            Value::HeuristicsMode(mode) => self.set_array(name, AttributeType::HeuristicsMode, &[*mode]),
            Value::Descriptors(descriptors) => {
                let handles: Vec<Pointer> = descriptors.iter().map(|descriptor| descriptor.handle).collect();
                self.set_array(name, AttributeType::Descriptor, &handles)
            }
        }
    }

    fn set_array<T>(&self, name: Name, kind: AttributeType, values: &[T]) -> Result<()> {
        let (set, data) = (self.library.functions.cudnnBackendSetAttribute, values.as_ptr().cast::<c_void>());
        // SAFETY: `values` has the stated number of values of this type.
        let code = unsafe { set(self.handle, name as c_int, kind as c_int, values.len() as i64, data) };
        self.library.check("cudnnBackendSetAttribute", code)
    }

    /// Reads an integer attribute.
    pub(super) fn int(&self, name: Name) -> Result<i64> {
        let mut value = [0i64];
        self.get(name, AttributeType::Int64, &mut value)?;
        Ok(value[0])
    }

    /// Reads the `cudnnBackendNumericalNote_t`s of an engine.
    pub(super) fn numerical_notes(&self) -> Result<Vec<c_int>> {
        // More than the number of notes defined.
        let mut notes = [0; 32];
        let count = self.get(Name::EngineNotes, AttributeType::NumericalNote, &mut notes)?;
        Ok(notes[..count].to_vec())
    }

    /// Reads at most `limit` descriptors of an attribute.
    pub(super) fn descriptors(&self, name: Name, kind: Kind, limit: usize) -> Result<Vec<Self>> {
        let mut count = 0i64;
        let get = self.library.functions.cudnnBackendGetAttribute;
        let kind_of_attribute = AttributeType::Descriptor as c_int;
        // SAFETY: only the number of elements is queried.
        let code = unsafe { get(self.handle, name as c_int, kind_of_attribute, 0, &mut count, ptr::null_mut()) };
        self.library.check("cudnnBackendGetAttribute", code)?;
        let count = limit.min(count.max(0) as usize);
        let descriptors = (0..count).map(|_| Self::new(self.library, kind)).collect::<Result<Vec<_>>>()?;
        let mut handles: Vec<Pointer> = descriptors.iter().map(|descriptor| descriptor.handle).collect();
        // cuDNN fills the descriptors passed to it.
        let filled = self.get(name, AttributeType::Descriptor, &mut handles)?;
        Ok(descriptors.into_iter().take(filled).collect())
    }

    fn get<T>(&self, name: Name, kind: AttributeType, values: &mut [T]) -> Result<usize> {
        let (mut count, room) = (0i64, values.len() as i64);
        let (get, data) = (self.library.functions.cudnnBackendGetAttribute, values.as_mut_ptr().cast::<c_void>());
        // SAFETY: `values` has room for the stated number of values of this type.
        let code = unsafe { get(self.handle, name as c_int, kind as c_int, room, &mut count, data) };
        self.library.check("cudnnBackendGetAttribute", code)?;
        Ok(count.clamp(0, room) as usize)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once. An error on destruction cannot be handled.
        unsafe { (self.library.functions.cudnnBackendDestroyDescriptor)(self.handle) };
    }
}
