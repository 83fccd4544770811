//! Why weights cannot be read or written. Each message says which file, which tensor, what was
//! expected and what was found, and ends with a hint.

use super::chunk::Digest;
use flotilla_shared::units::Bytes;
use flotilla_shared::{SpecError, TensorSlice};
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why weights cannot be read.
#[derive(Debug, Error)]
pub enum WeightError {
    #[error("{slice}: {reason}")]
    Card { slice: TensorSlice, reason: String },

    #[error("cannot {doing} {}: {source}\nhint: {}", path.display(), io_hint(source))]
    Io { doing: &'static str, path: PathBuf, source: io::Error },

    #[error("{} is not a regular file\nhint: give a folder as downloaded from Hugging Face", path.display())]
    NotAFile { path: PathBuf },

    #[error("{} has {found} bytes, expected at most {max}\nhint: this is not the file that its name says", path.display())]
    TooLong { path: PathBuf, found: u64, max: u64 },

    #[error("{}: {source}", path.display())]
    Config { path: PathBuf, source: SpecError },

    #[error("{}: {what} {found}, expected {expected}\nhint: {hint}", path.display())]
    Field { path: PathBuf, what: &'static str, found: String, expected: String, hint: &'static str },

    #[error("{} is not readable as {what}: {source}\nhint: download this file again", path.display())]
    Json { path: PathBuf, what: &'static str, source: serde_json::Error },

    #[error(
        "{} has neither model.safetensors.index.json nor model.safetensors\n\
         hint: download the *.safetensors files beside config.json, not those under original/ or metal/",
        dir.display()
    )]
    NoWeights { dir: PathBuf },

    #[error(
        "{}: weight_map puts {tensor} into {file:?}, expected the name of a file in the same folder\n\
         hint: do not use this checkpoint, its index points outside its folder",
        index.display()
    )]
    OutsideFolder { index: PathBuf, tensor: String, file: String },

    #[error("{}: {fault}\nhint: {}", file.display(), fault.hint())]
    Shard { file: PathBuf, fault: Box<ShardFault> },

    #[error("{}: tensor {tensor} is missing{}\nhint: download the checkpoint again, or check config.json", file.display(), found_in(elsewhere))]
    Missing { file: PathBuf, tensor: String, elsewhere: Option<String> },

    #[error("{}: unexpected tensor {tensor}\nhint: the model of config.json has no such tensor; only MXFP4 checkpoints as published are read", file.display())]
    Unexpected { file: PathBuf, tensor: String },

    #[error("{}: tensor {tensor} is also in {other}\nhint: download the checkpoint again", file.display())]
    Twice { file: PathBuf, tensor: String, other: String },

    #[error("{}: tensor {tensor} has dtype {found}, expected {expected}\nhint: only MXFP4 checkpoints with BF16 dense weights, as published, are read", file.display())]
    Dtype { file: PathBuf, tensor: String, expected: &'static str, found: String },

    #[error("{}: tensor {tensor} has shape {found:?}, expected {expected:?}\nhint: config.json and the weights are not of the same model", file.display())]
    Shape { file: PathBuf, tensor: String, expected: Vec<usize>, found: Vec<usize> },

    #[error("{} is not empty\nhint: name a new folder, nothing is overwritten", dir.display())]
    NotEmpty { dir: PathBuf },

    #[error(
        "no model is called {name:?}: known are gpt-oss-120b and gpt-oss-20b, and there is no file or folder of that name\nhint: name one of these, a checkpoint's folder, or its config.json"
    )]
    UnknownModel { name: String },

    #[error("cannot take {} of memory for {slice}: {source}\nhint: this device has less free memory than it offered", Bytes(*bytes as u64))]
    Memory { slice: TensorSlice, bytes: usize, source: io::Error },

    #[error(
        "{slice}: the chunk at byte {offset} arrived damaged {times} times: blake3 is {found}, expected {expected}\nhint: check the memory of both machines and the network between them"
    )]
    Damaged { slice: TensorSlice, offset: usize, times: u32, expected: Digest, found: Digest },

    /// A source that lives elsewhere (a stream) failed in its own way.
    #[error(transparent)]
    Source(Box<dyn std::error::Error + Send + Sync>),
}

/// What is wrong with one safetensors file, before its tensors are compared with the model's.
#[derive(Debug, Error)]
pub enum ShardFault {
    #[error("the file has {found} bytes, expected at least the 8 that give the header's length")]
    Short { found: u64 },
    #[error("the header claims {found} bytes, expected 2 to {max}")]
    HeaderLength { found: u64, max: u64 },
    #[error("the header claims {header} bytes, and the file ends after {left}")]
    HeaderCut { header: u64, left: u64 },
    #[error("the header is not JSON: {0}")]
    HeaderJson(serde_json::Error),
    #[error("the header's entry of {tensor} is not a tensor: {source}")]
    Entry { tensor: String, source: serde_json::Error },
    #[error(
        "tensor {tensor} begins at byte {found} of the data, expected {expected}, where the one before it ends"
    )]
    Offsets { tensor: String, expected: usize, found: usize },
    #[error("tensor {tensor} has {found} bytes, expected {expected} for {dtype} {shape:?}")]
    Size { tensor: String, expected: String, found: String, dtype: String, shape: Vec<usize> },
    #[error("the tensors need {expected} bytes behind the header, and the file has {found}")]
    Length { expected: usize, found: usize },
}

impl ShardFault {
    fn hint(&self) -> &'static str {
        match self {
            ShardFault::Short { .. } | ShardFault::HeaderCut { .. } | ShardFault::Length { .. } => {
                "the download is incomplete or not of this file, fetch it again"
            }
            ShardFault::HeaderLength { .. } | ShardFault::HeaderJson(_) => {
                "this is no safetensors file (a Git LFS pointer, perhaps), fetch it again"
            }
            _ => "the file is damaged, fetch it again",
        }
    }
}

fn io_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "the download is incomplete, or the path is wrong",
        io::ErrorKind::PermissionDenied => "give this user the right to it",
        io::ErrorKind::StorageFull => "free some space, or name another disk",
        _ => "check the disk and the path",
    }
}

fn found_in(elsewhere: &Option<String>) -> String {
    elsewhere.as_ref().map_or(String::new(), |file| format!(" (it is in {file})"))
}
