//! Writes a checkpoint folder in the published layout from any source: to test with, to measure
//! against other servers, and to put a synthetic model on disk. Streams; holds a few megabytes.

use super::config::GenerationConfig;
use super::{WeightError, WeightSource};
use flotilla_shared::tensor::TensorId;
use flotilla_shared::{ModelSpec, TensorInfo, TensorSlice};
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Tensor bytes of a shard at most, as published; a tensor that is larger alone has a shard of its own.
pub const SHARD_BYTES_MAX: u64 = 5_000_000_000;

const READ_BYTES: usize = 8 << 20;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub shards: usize,
    /// Of all tensors.
    pub bytes: u64,
}

/// Writes the model of `source` into the new or empty folder `dir`, with `config_json` as it stands.
///
/// `progress` is told (bytes done, bytes in all). The index is written last: a folder that was cut off
/// does not open.
pub fn write_checkpoint(
    dir: &Path,
    source: &dyn WeightSource,
    config_json: &str,
    generation: &GenerationConfig,
    shard_bytes_max: u64,
    mut progress: impl FnMut(u64, u64),
) -> Result<Written, WeightError> {
    let spec = source.spec();
    assert_eq!(
        ModelSpec::from_config_json(config_json).ok().as_ref(),
        Some(spec),
        "the config is that of the source"
    );
    create_empty(dir)?;
    let shards = shards(spec, shard_bytes_max);
    let total: u64 = shards.iter().flatten().map(TensorInfo::bytes).sum();
    write(&dir.join("config.json"), config_json)?;
    write(&dir.join("generation_config.json"), &generation.to_json())?;
    let mut weight_map = Map::new();
    let mut done = 0;
    for (number, tensors) in shards.iter().enumerate() {
        // Counted from 0, so that the last is one less than their number: as published.
        let name = format!("model-{number:05}-of-{:05}.safetensors", shards.len() - 1);
        write_shard(&dir.join(&name), source, tensors, |bytes| {
            done += bytes;
            progress(done, total);
        })?;
        weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(name))));
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    write(&dir.join("model.safetensors.index.json"), &format!("{index:#}\n"))?;
    Ok(Written { shards: shards.len(), bytes: total })
}

fn create_empty(dir: &Path) -> Result<(), WeightError> {
    let failed = |source| WeightError::Io { doing: "create", path: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    if fs::read_dir(dir).map_err(failed)?.next().is_some() {
        return Err(WeightError::NotEmpty { dir: dir.to_owned() });
    }
    Ok(())
}

/// The tensors of each shard, in the order of the forward.
fn shards(spec: &ModelSpec, bytes_max: u64) -> Vec<Vec<TensorInfo>> {
    let mut shards: Vec<Vec<TensorInfo>> = Vec::new();
    let mut left = 0;
    for tensor in TensorId::all(spec).map(|tensor| tensor.info(spec)) {
        let bytes = tensor.bytes();
        match shards.last_mut() {
            Some(shard) if bytes <= left => shard.push(tensor),
            _ => {
                left = bytes_max.max(bytes);
                shards.push(vec![tensor]);
            }
        }
        left -= bytes;
    }
    shards
}

fn write_shard(
    path: &Path,
    source: &dyn WeightSource,
    tensors: &[TensorInfo],
    mut progress: impl FnMut(u64),
) -> Result<(), WeightError> {
    let failed = |source| failed_write(path, source);
    let mut file = File::create_new(path).map_err(failed)?;
    file.write_all(&header(tensors)).map_err(failed)?;
    let mut buffer = Vec::new();
    for tensor in tensors {
        let slice = TensorSlice::whole(tensor.id, source.spec());
        let len = slice.bytes();
        for offset in (0..len).step_by(READ_BYTES) {
            buffer.resize(READ_BYTES.min(len - offset), 0);
            source.read(&slice, offset, &mut buffer)?;
            file.write_all(&buffer).map_err(failed)?;
            progress(buffer.len() as u64);
        }
    }
    Ok(())
}

/// Length and JSON, padded with spaces so that the data begins at a multiple of 8.
fn header(tensors: &[TensorInfo]) -> Vec<u8> {
    let mut entries = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.bytes();
        let (dtype, shape) = (tensor.dtype.name(), &tensor.shape);
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        entries.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut json = Value::from(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    [&(json.len() as u64).to_le_bytes()[..], &json].concat()
}

fn write(path: &Path, text: &str) -> Result<(), WeightError> {
    fs::write(path, text).map_err(|source| failed_write(path, source))
}

fn failed_write(path: &Path, source: std::io::Error) -> WeightError {
    WeightError::Io { doing: "write", path: PathBuf::from(path), source }
}
