//! Weights on disk, from a seed, and in a rank's memory, over their public interface.

mod golden;
mod identity;
mod kept;
mod malformed;
mod rank;
mod small;
mod synthetic;
