//! Parser and writer of Python pickles, the format of PyTorch's checkpoints and of the properties of nnU-Net's
//! preprocessed cases.
//!
//! A pickle is a program for a stack machine that may call any function of any module. This parser builds a tree of
//! plain data and only records calls: [`Value::object`] returns name and arguments of a call, from which the supported
//! ones (tensors, NumPy arrays and scalars) are decoded. Nothing in a file is ever executed.

mod numpy;
mod reader;
mod value;
mod writer;

pub use numpy::Array;
pub use reader::parse;
pub use value::{Pickle, Value};
pub use writer::PickleWriter;
