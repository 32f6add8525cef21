//! Python's pickles, read without Python: what checkpoints of PyTorch and the properties of nnU-Net's preprocessed cases
//! are written in.
//!
//! A pickle is a program for a stack machine that may call any function of any module. Here it builds a tree of plain
//! data, and what it would call is only written down: [`Value::object`] gives the name and the arguments, and the few that
//! are known (tensors, NumPy's arrays and numbers) are read from these. Nothing that a file says is ever run.

mod numpy;
mod reader;
mod value;
mod writer;

pub use numpy::Array;
pub use reader::parse;
pub use value::{Pickle, Value};
pub use writer::PickleWriter;
