//! Cards: that they are found, opened and compiled for; and every kernel against what it should compute.
//!
//! All of it runs on the emulated card, which is a libcuda and an NVRTC of our own that run kernels on the
//! processor; with FLOTILLA_TEST_DEVICE=cuda, on the machine's first card.

mod attention;
mod collective;
mod cut;
mod dense;
mod dense_library;
mod device;
mod experts;
mod missing;
mod norm;
mod planted;
mod reader;
mod recut;
mod route;
mod sample;
mod step;
mod support;
mod synthetic;
