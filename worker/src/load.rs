//! Fills a rank's weights from the coordinator's stream: every slice is checksummed, and a broken
//! stream is taken up again where it broke.

use crate::link::{Client, WorkerError};
use flotilla_engine::weights::RankWeights;
use flotilla_proto::{slice_digest, wire};
use flotilla_shared::{Assignment, Loading, TensorSlice};
use tokio_stream::StreamExt;
use tracing::warn;

/// Times that a stream without progress is taken up again.
const RETRIES_MAX: usize = 3;

/// Where a load stands: the next byte that is wanted.
struct Cursor {
    slices: Vec<TensorSlice>,
    slice: usize,
    offset: usize,
    hasher: blake3::Hasher,
    loading: Loading,
}

/// Streams every slice of the assignment into `weights`; `report` is told after each chunk.
pub async fn stream_weights(
    client: &mut Client,
    assignment: &Assignment,
    weights: &mut RankWeights,
    mut report: impl FnMut(Loading),
) -> Result<(), WorkerError> {
    let slices = assignment.plan.slices(&assignment.spec, assignment.rank);
    let bytes_total = slices.iter().map(|slice| slice.bytes() as u64).sum();
    let mut cursor = Cursor {
        slices,
        slice: 0,
        offset: 0,
        hasher: blake3::Hasher::new(),
        loading: Loading { bytes_done: 0, bytes_total },
    };
    let mut retries = 0;
    while cursor.slice < cursor.slices.len() {
        let before = cursor.loading.bytes_done;
        match stream_from(client, assignment, weights, &mut cursor, &mut report).await {
            Ok(()) => {}
            Err(error) if retries < RETRIES_MAX => {
                warn!(%error, slice = cursor.slice, offset = cursor.offset, "weight stream broke, going on");
            }
            Err(error) => return Err(error),
        }
        retries = if cursor.loading.bytes_done > before { 0 } else { retries + 1 };
    }
    Ok(())
}

/// One Fetch from the cursor on, until the stream ends.
async fn stream_from(
    client: &mut Client,
    assignment: &Assignment,
    weights: &mut RankWeights,
    cursor: &mut Cursor,
    report: &mut impl FnMut(Loading),
) -> Result<(), WorkerError> {
    let request = wire::FetchRequest {
        epoch: assignment.epoch.0,
        rank: assignment.rank.0.into(),
        slice: cursor.slice as u32,
        offset: cursor.offset as u64,
    };
    let mut chunks = client.fetch(request).await?.into_inner();
    while let Some(chunk) = chunks.next().await {
        cursor.take(chunk?, weights)?;
        report(cursor.loading);
    }
    if cursor.slice < cursor.slices.len() {
        return Err(WorkerError::Weights(format!(
            "the stream ended at slice {} of {}",
            cursor.slice,
            cursor.slices.len()
        )));
    }
    Ok(())
}

impl Cursor {
    /// Checks that the chunk is the wanted one, copies it, and at a slice's end compares the digest.
    fn take(&mut self, chunk: wire::SliceChunk, weights: &mut RankWeights) -> Result<(), WorkerError> {
        let digest = slice_digest(&chunk.digest)?;
        let slice = self.slices.get(self.slice).cloned();
        let slice = slice.ok_or_else(|| WorkerError::Weights("more slices came than the plan has".into()))?;
        if (chunk.slice as usize, chunk.offset as usize) != (self.slice, self.offset) {
            return Err(WorkerError::Weights(format!(
                "{slice}: byte {} of slice {} came, byte {} of slice {} comes next",
                chunk.offset, chunk.slice, self.offset, self.slice
            )));
        }
        let end = self.offset + chunk.data.len();
        if end > slice.bytes() || digest.is_some() != (end == slice.bytes()) {
            return Err(WorkerError::Weights(format!(
                "{slice}: has {} bytes, a chunk reaches byte {end} with{} digest",
                slice.bytes(),
                if digest.is_some() { "" } else { "out" },
            )));
        }
        weights.buffer_mut(self.slice)[self.offset..end].copy_from_slice(&chunk.data);
        self.hasher.update(&chunk.data);
        self.loading.bytes_done += chunk.data.len() as u64;
        self.offset = end;
        if let Some(expected) = digest {
            self.finish_slice(expected)
                .map_err(|problem| WorkerError::Weights(format!("{slice}: {problem}")))?;
        }
        Ok(())
    }

    /// A slice whose digest differs is wanted again from its first byte.
    fn finish_slice(&mut self, expected: [u8; 32]) -> Result<(), String> {
        let found = self.hasher.finalize();
        self.hasher.reset();
        let bytes = std::mem::take(&mut self.offset) as u64;
        if found != blake3::Hash::from_bytes(expected) {
            self.loading.bytes_done -= bytes;
            let expected = blake3::Hash::from_bytes(expected);
            return Err(format!("checksum mismatch: expected {expected}, found {found}"));
        }
        self.slice += 1;
        Ok(())
    }
}
