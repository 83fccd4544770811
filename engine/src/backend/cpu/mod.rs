//! The CPU backend: the embedded default, and the specification of the CUDA one.

pub mod kernels;
