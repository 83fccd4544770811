//! One safetensors file: 8 bytes of header length, a JSON header, the tensors' bytes. Mapped, its
//! header checked against its length; which tensors a model wants is not known here.
//!
//! Not done: reading with pread, which would answer a file cut short *after* it was opened with an
//! error; under a mapping that is a SIGBUS. Checkpoints are not edited in place.

use super::error::{ShardFault, WeightError};
use memmap2::{Advice, Mmap};
use safetensors::tensor::TensorInfo;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The longest header that is read; that of gpt-oss-120b in one file has 0.1 MB.
const HEADER_BYTES_MAX: u64 = 16 << 20;
const LENGTH_BYTES: usize = 8;

pub(super) struct Shard {
    pub(super) path: PathBuf,
    /// Offsets are from the file's beginning.
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    map: Mmap,
}

impl Shard {
    pub(super) fn open(path: PathBuf) -> Result<Self, WeightError> {
        let map = map(&path)?;
        match header(&map) {
            Ok(tensors) => Ok(Shard { path, tensors, map }),
            Err(fault) => Err(WeightError::Shard { file: path, fault: Box::new(fault) }),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets the kernel begin to read: the disk is asked for much at once, and not only when it is touched.
    pub(super) fn will_read(&self, bytes: Range<usize>) {
        // Advice: where it is not taken, reading is only slower.
        let _ = self.map.advise_range(Advice::WillNeed, bytes.start, bytes.len());
    }
}

fn map(path: &Path) -> Result<Mmap, WeightError> {
    let failed = |doing| move |source| WeightError::Io { doing, path: path.to_owned(), source };
    // Asked before opening: to open a pipe would wait for its other end.
    if !fs::metadata(path).map_err(failed("open"))?.is_file() {
        return Err(WeightError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(failed("open"))?;
    // SAFETY: the mapping is read-only, and checkpoints are not written while they are served.
    let map = unsafe { Mmap::map(&file) }.map_err(failed("map"))?;
    // Every reader goes forward, once; if the kernel does not take the advice, reading is only slower.
    let _ = map.advise(Advice::Sequential);
    Ok(map)
}

/// The tensors of a file by name: contiguous from the header to the end, each as long as its shape says.
fn header(file: &[u8]) -> Result<BTreeMap<String, TensorInfo>, ShardFault> {
    let length = file.first_chunk::<LENGTH_BYTES>().ok_or(ShardFault::Short { found: file.len() as u64 })?;
    let length = u64::from_le_bytes(*length);
    if !(2..=HEADER_BYTES_MAX).contains(&length) {
        return Err(ShardFault::HeaderLength { found: length, max: HEADER_BYTES_MAX });
    }
    let (rest, start) = (&file[LENGTH_BYTES..], length as usize);
    let text = rest.get(..start).ok_or(ShardFault::HeaderCut { header: length, left: rest.len() as u64 })?;
    let mut entries: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(text).map_err(ShardFault::HeaderJson)?;
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
    if data_bytes != rest.len() - start {
        return Err(ShardFault::Length { expected: data_bytes, found: rest.len() - start });
    }
    let base = LENGTH_BYTES + start;
    let in_file = |mut info: TensorInfo| {
        info.data_offsets = (base + info.data_offsets.0, base + info.data_offsets.1);
        info
    };
    Ok(tensors.into_iter().map(|(name, info)| (name, in_file(info))).collect())
}

/// For fuzzers.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(file: &[u8]) {
    let Ok(tensors) = header(file) else { return };
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
