//! A CUDA card: finding the libraries, opening the card, compiling kernels for it, measuring it.
//!
//! Nothing of CUDA is needed to build this program or to start it. The libraries are opened when a card
//! is asked for; whatever is missing then is a [`CudaError`] that says how to get it, and never a panic.
//! Only this folder and the code beside a kernel speak to cudarc; no type of cudarc leaves the engine.

mod cache;
pub mod card;
pub mod compile;
pub mod cublas;
mod driver;
pub mod error;
mod found;
mod launch;
pub mod library;
pub mod measure;
pub mod nccl;
mod nvrtc;
mod places;
mod resources;
mod sum;
mod trial;

pub use cache::keep_in;
pub use card::{Card, CardFacts};
pub use compile::{Module, Source};
pub use cublas::CublasLt;
pub use driver::{DriverFacts, NEEDED, card_count, driver_facts};
pub use error::{CudaError, Version};
pub use found::{Found, found};
pub use launch::{Launch, Launcher};
pub use library::{Library, Opened, search_first};
pub use nccl::Nccl;
pub use nvrtc::Nvrtc;
pub use places::PATH_VARIABLE;
pub use resources::Resources;
pub use sum::DeviceSum;
pub use trial::{TRIAL_VARIABLE, Trial};
