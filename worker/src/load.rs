//! Fills a rank's weights from the coordinator's stream: every slice is checksummed, and a broken
//! stream is taken up again where it broke.

use crate::error::WorkerError;
use crate::link::Client;
use flotilla_engine::weights::WeightSink;
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
    weights: &mut dyn WeightSink,
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
    weights.finish()?;
    Ok(())
}

/// One Fetch from the cursor on, until the stream ends.
async fn stream_from(
    client: &mut Client,
    assignment: &Assignment,
    weights: &mut dyn WeightSink,
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
    fn take(&mut self, chunk: wire::SliceChunk, weights: &mut dyn WeightSink) -> Result<(), WorkerError> {
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
        weights.fill(self.slice, self.offset..end, &mut |out| {
            out.copy_from_slice(&chunk.data);
            Ok(())
        })?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_engine::weights::RankWeights;
    use flotilla_shared::tensor::TensorId;

    /// A cursor over one slice of 4 bf16 values, and memory for it.
    fn cursor() -> (Cursor, RankWeights) {
        let slice = TensorSlice { tensor: TensorId::FinalNorm, ranges: vec![0..4] };
        let weights = RankWeights::for_slices(vec![slice.clone()]).unwrap();
        let loading = Loading { bytes_done: 0, bytes_total: 8 };
        (Cursor { slices: vec![slice], slice: 0, offset: 0, hasher: blake3::Hasher::new(), loading }, weights)
    }

    fn chunk(offset: u64, data: &[u8], digest: &[u8]) -> wire::SliceChunk {
        wire::SliceChunk { slice: 0, offset, data: data.to_vec().into(), digest: digest.to_vec().into() }
    }

    #[test]
    fn chunks_fill_the_slice_and_the_digest_closes_it() {
        let (mut cursor, mut weights) = cursor();
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        cursor.take(chunk(0, &bytes[..5], &[]), &mut weights).unwrap();
        cursor.take(chunk(5, &bytes[5..], blake3::hash(&bytes).as_bytes()), &mut weights).unwrap();
        assert_eq!((cursor.slice, cursor.offset, cursor.loading.bytes_done), (1, 0, 8));
        assert_eq!(weights.get(TensorId::FinalNorm).unwrap().bytes(), bytes);
    }

    #[test]
    fn a_slice_with_another_digest_is_wanted_again() {
        let (mut cursor, mut weights) = cursor();
        let error = cursor.take(chunk(0, &[9; 8], &[0; 32]), &mut weights).unwrap_err().to_string();
        assert!(error.contains("checksum mismatch: expected 0000"), "{error}");
        assert_eq!((cursor.slice, cursor.offset, cursor.loading.bytes_done), (0, 0, 0));
        let good = blake3::hash(&[9; 8]);
        cursor.take(chunk(0, &[9; 8], good.as_bytes()), &mut weights).unwrap();
        assert_eq!(cursor.slice, 1);
    }

    #[test]
    fn chunks_that_do_not_follow_are_refused() {
        let cases = [
            ("byte 4 of slice 0 came, byte 0 of slice 0 comes next", chunk(4, &[0; 4], &[])),
            ("a chunk reaches byte 9", chunk(0, &[0; 9], &[])),
            ("reaches byte 8 without digest", chunk(0, &[0; 8], &[])),
            ("reaches byte 4 with digest", chunk(0, &[0; 4], &[0; 32])),
            ("has 3 bytes, expected 32", chunk(0, &[0; 8], &[0; 3])),
            ("of slice 1 came", wire::SliceChunk { slice: 1, ..chunk(0, &[0; 4], &[]) }),
        ];
        for (words, chunk) in cases {
            let (mut cursor, mut weights) = cursor();
            let error = cursor.take(chunk, &mut weights).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
