//! Wire to domain and back. Everything that arrives is checked here: what is missing, out of range or
//! too long is an error that names the message and the field.

mod assignment;
mod fetch;
mod held;
mod hello;
mod holders;
mod link_test;
mod links;
mod loading;
mod slice;
mod spec;
mod step;

pub use fetch::Fetch;
pub use held::{released, released_from};
pub use hello::Hello;
pub use link_test::{measured, measured_from};
pub use links::ready;

use crate::wire;
use flotilla_shared::{BackendKind, KvDtype};
use std::ops::Range;
use thiserror::Error;

/// Why a message is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("malformed message: {field} {problem}")]
pub struct WireError {
    /// `Message.field`
    pub field: &'static str,
    pub problem: String,
}

fn wrong(field: &'static str, problem: impl Into<String>) -> WireError {
    WireError { field, problem: problem.into() }
}

fn need<T>(value: Option<T>, field: &'static str) -> Result<T, WireError> {
    value.ok_or_else(|| wrong(field, "is missing"))
}

fn narrow<T: TryFrom<u64>>(value: u64, field: &'static str) -> Result<T, WireError> {
    T::try_from(value).map_err(|_| wrong(field, format!("is {value}, past its type's range")))
}

fn range(value: Option<wire::Range>, field: &'static str) -> Result<Range<usize>, WireError> {
    let wire::Range { start, end } = need(value, field)?;
    if start > end {
        return Err(wrong(field, format!("is {start}..{end}, which runs backwards")));
    }
    Ok(narrow(start, field)?..narrow(end, field)?)
}

fn to_range(range: &Range<usize>) -> Option<wire::Range> {
    Some(wire::Range { start: range.start as u64, end: range.end as u64 })
}

fn exactly_32(bytes: &[u8], field: &'static str) -> Result<[u8; 32], WireError> {
    bytes.try_into().map_err(|_| wrong(field, format!("has {} bytes, expected 32", bytes.len())))
}

/// The digest of a chunk: exactly 32 bytes.
pub fn chunk_digest(digest: &[u8]) -> Result<[u8; 32], WireError> {
    exactly_32(digest, "SliceChunk.digest")
}

fn to_backend(kind: BackendKind) -> wire::Backend {
    match kind {
        BackendKind::Cpu => wire::Backend::Cpu,
        BackendKind::Cuda => wire::Backend::Cuda,
    }
}

fn backend(value: i32, field: &'static str) -> Result<BackendKind, WireError> {
    match wire::Backend::try_from(value) {
        Ok(wire::Backend::Cpu) => Ok(BackendKind::Cpu),
        Ok(wire::Backend::Cuda) => Ok(BackendKind::Cuda),
        Err(_) => Err(wrong(field, format!("is {value}, which no backend has"))),
    }
}

fn to_kv_dtype(kv: KvDtype) -> wire::KvDtype {
    match kv {
        KvDtype::F32 => wire::KvDtype::F32,
        KvDtype::F16 => wire::KvDtype::F16,
        KvDtype::Bf16 => wire::KvDtype::Bf16,
    }
}

fn kv_dtype(value: i32, field: &'static str) -> Result<KvDtype, WireError> {
    match wire::KvDtype::try_from(value) {
        Ok(wire::KvDtype::F32) => Ok(KvDtype::F32),
        Ok(wire::KvDtype::F16) => Ok(KvDtype::F16),
        Ok(wire::KvDtype::Bf16) => Ok(KvDtype::Bf16),
        Err(_) => Err(wrong(field, format!("is {value}, which no cache has"))),
    }
}
