//! Compares GPU results with the CPU and PyTorch. One test program, because it takes long to build.

mod infer;
mod operations;
mod reference;
mod step;
