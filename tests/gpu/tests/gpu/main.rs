//! What a GPU computes, against the CPU and PyTorch. One program, for building it takes long.

mod infer;
mod operations;
mod reference;
mod step;
