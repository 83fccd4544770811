//! One safetensors file: 8 bytes of header length, a JSON header, the tensors' bytes. Its header is checked
//! against its length; which tensors a model wants is not known here, nor where the file lies.

use super::error::{ShardFault, WeightError};
use super::files::{FileBytes, Files};
use safetensors::tensor::TensorInfo;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The longest header that is read; that of gpt-oss-120b in one file has 0.1 MB.
const HEADER_BYTES_MAX: u64 = 16 << 20;
const LENGTH_BYTES: usize = 8;

pub(super) struct Shard {
    pub(super) path: PathBuf,
    /// Offsets are from the file's beginning.
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    pub(super) bytes: Box<dyn FileBytes>,
}

impl Shard {
    pub(super) fn open(files: &dyn Files, name: &str) -> Result<Self, WeightError> {
        let (path, bytes) = (files.path(name), files.open(name)?);
        match header(&*bytes)? {
            Ok(tensors) => Ok(Shard { path, tensors, bytes }),
            Err(fault) => Err(WeightError::Shard { file: path, fault: Box::new(fault) }),
        }
    }
}

type Tensors = BTreeMap<String, TensorInfo>;

/// The tensors of a file by name, or what is wrong with it; an error if it cannot be read.
fn header(file: &dyn FileBytes) -> Result<Result<Tensors, ShardFault>, WeightError> {
    let mut length = [0; LENGTH_BYTES];
    if file.len() < LENGTH_BYTES {
        return Ok(Err(ShardFault::Short { found: file.len() as u64 }));
    }
    file.read(0, &mut length)?;
    let (length, left) = (u64::from_le_bytes(length), file.len() - LENGTH_BYTES);
    if !(2..=HEADER_BYTES_MAX).contains(&length) {
        return Ok(Err(ShardFault::HeaderLength { found: length, max: HEADER_BYTES_MAX }));
    }
    if length > left as u64 {
        return Ok(Err(ShardFault::HeaderCut { header: length, left: left as u64 }));
    }
    let mut text = vec![0; length as usize];
    file.read(LENGTH_BYTES, &mut text)?;
    Ok(tensors(&text, left - text.len()))
}

/// Contiguous from the header to the end, each as long as its shape says.
fn tensors(header: &[u8], data: usize) -> Result<Tensors, ShardFault> {
    let mut entries: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(ShardFault::HeaderJson)?;
    entries.remove("__metadata__");
    let mut tensors = Vec::with_capacity(entries.len());
    for (tensor, entry) in entries {
        match serde_json::from_value::<TensorInfo>(entry) {
            Ok(info) => tensors.push((tensor, info)),
            Err(source) => return Err(ShardFault::Entry { tensor, source }),
        }
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let data_bytes = contiguous(&tensors)?;
    if data_bytes != data {
        return Err(ShardFault::Length { expected: data_bytes, found: data });
    }
    let base = LENGTH_BYTES + header.len();
    let in_file = |mut info: TensorInfo| {
        info.data_offsets = (base + info.data_offsets.0, base + info.data_offsets.1);
        info
    };
    Ok(tensors.into_iter().map(|(name, info)| (name, in_file(info))).collect())
}

/// For fuzzers.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(file: &[u8]) {
    let Ok(Ok(tensors)) = header(&file.to_vec()) else { return };
    for info in tensors.values() {
        let (start, end) = info.data_offsets;
        assert!(start <= end && end <= file.len(), "{info:?} reaches out of {} bytes", file.len());
    }
}

/// Bytes of all tensors, which come in order of their offsets, without hole or overlap.
fn contiguous(tensors: &[(String, TensorInfo)]) -> Result<usize, ShardFault> {
    let mut end_before = 0;
    for (name, info) in tensors {
        let (start, end) = info.data_offsets;
        if start != end_before {
            return Err(ShardFault::Offsets { tensor: name.clone(), expected: end_before, found: start });
        }
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &n| bits.checked_mul(n));
        let bytes = bits.filter(|bits| bits % 8 == 0).map(|bits| bits / 8);
        let found = end.checked_sub(start);
        if bytes.is_none() || found != bytes {
            return Err(ShardFault::Size {
                tensor: name.clone(),
                expected: bytes.map_or("a number that exists".into(), |bytes| bytes.to_string()),
                found: found.map_or("less than 0".into(), |bytes| bytes.to_string()),
                dtype: info.dtype.to_string(),
                shape: info.shape.clone(),
            });
        }
        end_before = end;
    }
    Ok(end_before)
}
