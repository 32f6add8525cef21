//! `Cuda` runs the reference implementations on Burn's own kernels.

impl super::NnOps for burn::backend::Cuda {}
