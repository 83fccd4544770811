//! Cards: that they are found, opened and compiled for; and every kernel against what it should compute.
//!
//! All of it runs on the emulated card, which is a libcuda and an NVRTC of our own that run kernels on the
//! processor; with FLOTILLA_TEST_DEVICE=cuda, on the machine's first card.

mod collective;
mod device;
mod missing;
mod support;
