//! The backends, side by side under the same file names.

pub mod cpu;
