//! The one thread that puts chunks where the rank's weights lie. Whoever brings them, many at a time, has
//! checked them, and goes on to the next while this copies.

use bytes::Bytes;
use flotilla_engine::weights::{WeightError, WeightSink};
use flotilla_shared::{Loading, TensorSlice};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Chunks that wait to be copied.
const CHUNKS_AHEAD: usize = 16;

/// Some bytes of a slice, as they should be.
pub struct Checked {
    pub slice: usize,
    pub offset: usize,
    pub bytes: Bytes,
}

pub struct Filler<W> {
    chunks: mpsc::Sender<Checked>,
    filled: JoinHandle<Result<W, WeightError>>,
}

impl<W: WeightSink + 'static> Filler<W> {
    /// `report` is told after each chunk.
    pub fn start(weights: W, report: impl FnMut(Loading) + Send + 'static) -> Filler<W> {
        let (chunks, inbox) = mpsc::channel(CHUNKS_AHEAD);
        let filled = tokio::task::spawn_blocking(move || fill(weights, inbox, report));
        Filler { chunks, filled }
    }

    /// Where chunks go; closed when the memory could not be written.
    pub fn chunks(&self) -> mpsc::Sender<Checked> {
        self.chunks.clone()
    }

    /// The weights, once nobody holds a sender any more; `brought` is how bringing ended, which an error of
    /// the memory explains.
    pub async fn finish<E: From<WeightError>>(self, brought: Result<(), E>) -> Result<W, E> {
        drop(self.chunks);
        let weights = self.filled.await.expect("filling does not panic")?;
        brought.map(|()| weights)
    }
}

fn fill<W: WeightSink>(
    mut weights: W,
    mut chunks: mpsc::Receiver<Checked>,
    mut report: impl FnMut(Loading),
) -> Result<W, WeightError> {
    let bytes_total = weights.slices().iter().map(TensorSlice::bytes).sum::<usize>() as u64;
    let mut loading = Loading { bytes_done: 0, bytes_total };
    report(loading);
    while let Some(Checked { slice, offset, bytes }) = chunks.blocking_recv() {
        weights.fill(slice, offset..offset + bytes.len(), &mut |out| {
            out.copy_from_slice(&bytes);
            Ok(())
        })?;
        loading.bytes_done += bytes.len() as u64;
        report(loading);
    }
    if loading.bytes_done == bytes_total {
        weights.finish()?;
    }
    Ok(weights)
}
