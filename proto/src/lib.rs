//! The wire between coordinator and workers: the generated client and server, and the one place where
//! wire types and [`flotilla_shared`] types turn into each other. No prost type is seen past the two
//! shells' gRPC files.
#![forbid(unsafe_code)]

mod convert;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;

pub use convert::{
    Fetch, Hello, WireError, chunk_digest, measured, measured_from, ready, released, released_from,
};

/// Generated from `flotilla/v1/worker.proto`.
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub mod wire {
    tonic::include_proto!("flotilla.v1");
}

/// Version of the protocol; a worker and a coordinator that differ refuse each other at Hello.
pub const PROTOCOL: u32 = 9;

/// Bytes of one message at most, both ways.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
