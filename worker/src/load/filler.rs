//! The one thread that puts chunks where the rank's weights lie. Whoever brings them, many at a time, has
//! checked them, and goes on to the next while this copies.

use crate::handing::Digests;
use bytes::Bytes;
use flotilla_engine::weights::{Digest, WeightError, WeightSink};
use flotilla_shared::{ByPlace, Loading, Place, TensorSlice};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Chunks that wait to be copied.
const CHUNKS_AHEAD: usize = 16;

/// Some bytes of a slice, as they should be.
pub struct Checked {
    pub slice: usize,
    pub offset: usize,
    pub bytes: Bytes,
    pub place: Place,
    /// As it came with them, if it proves them.
    pub digest: Option<Digest>,
}

pub struct Filler<W> {
    chunks: mpsc::Sender<Checked>,
    filled: JoinHandle<(Filled<W>, Result<(), WeightError>)>,
}

/// What was filled so far.
pub struct Filled<W> {
    pub weights: W,
    /// By slice: whether all of it is there.
    pub whole: Vec<bool>,
}

impl<W: WeightSink + 'static> Filler<W> {
    /// `report` is told after each chunk, and `digests` keeps what came with it.
    pub fn start(
        weights: W,
        digests: Arc<Digests>,
        report: impl FnMut(Loading) + Send + 'static,
    ) -> Filler<W> {
        let (chunks, mut inbox) = mpsc::channel::<Checked>(CHUNKS_AHEAD);
        let slices = weights.slices().to_vec();
        let next = move || {
            let chunk = inbox.blocking_recv()?;
            let slice = &slices[chunk.slice];
            match chunk.digest {
                Some(digest) => digests.keep(slice, chunk.offset, digest),
                None => digests.doubt(slice.tensor),
            }
            Some(chunk)
        };
        let filled = tokio::task::spawn_blocking(move || fill(weights, next, report));
        Filler { chunks, filled }
    }

    /// Where chunks go; closed when the memory could not be written.
    pub fn chunks(&self) -> mpsc::Sender<Checked> {
        self.chunks.clone()
    }

    /// The weights, once nobody holds a sender any more; `brought` is how bringing ended, which an error of
    /// the memory explains.
    pub async fn finish<E: From<WeightError>>(self, brought: Result<(), E>) -> (Filled<W>, Result<(), E>) {
        drop(self.chunks);
        let (filled, result) = self.filled.await.expect("filling does not panic");
        (filled, result.map_err(E::from).and(brought))
    }
}

fn fill<W: WeightSink>(
    mut weights: W,
    next: impl FnMut() -> Option<Checked>,
    report: impl FnMut(Loading),
) -> (Filled<W>, Result<(), WeightError>) {
    let sizes: Vec<usize> = weights.slices().iter().map(TensorSlice::bytes).collect();
    let mut came = vec![0; sizes.len()];
    let result = take_all(&mut weights, &sizes, &mut came, next, report);
    let whole = sizes.iter().zip(&came).map(|(size, came)| size == came).collect();
    (Filled { weights, whole }, result)
}

/// Every chunk comes once.
fn take_all(
    weights: &mut impl WeightSink,
    sizes: &[usize],
    came: &mut [usize],
    mut next: impl FnMut() -> Option<Checked>,
    mut report: impl FnMut(Loading),
) -> Result<(), WeightError> {
    let bytes_total = sizes.iter().sum::<usize>() as u64;
    let mut loading = Loading { bytes_done: 0, bytes_total, by_place: ByPlace::default() };
    report(loading);
    while let Some(Checked { slice, offset, bytes, place, .. }) = next() {
        weights.fill(slice, offset..offset + bytes.len(), &mut |out| {
            out.copy_from_slice(&bytes);
            Ok(())
        })?;
        came[slice] += bytes.len();
        loading.bytes_done += bytes.len() as u64;
        loading.by_place.add(place, bytes.len() as u64);
        report(loading);
    }
    match loading.bytes_done == loading.bytes_total {
        true => weights.finish(),
        false => Ok(()),
    }
}
