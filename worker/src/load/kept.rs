//! The disk as a place of weights: what an earlier load kept in the cache, read by several threads.

use super::PART_BYTES;
use super::filler::Checked;
use super::wanted::Wanted;
use crate::cache::{Gather, Keeper, Kept};
use bytes::Bytes;
use flotilla_engine::collective::Stop;
use flotilla_engine::weights::Extent;
use flotilla_shared::{Place, TensorSlice};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::mpsc;

/// Threads that read and digest.
const READERS: usize = 4;

type Chunks = mpsc::Sender<Checked>;

/// Brings what is kept, and says how much that was; the rest stays wanted.
pub async fn read(
    kept: &Arc<Kept>,
    slices: &Arc<Vec<TensorSlice>>,
    wanted: &Arc<Mutex<Wanted>>,
    chunks: Chunks,
    keeper: Option<&Arc<Keeper>>,
    stop: &Stop,
) -> u64 {
    let (kept, slices, wanted, stop) = (kept.clone(), slices.clone(), wanted.clone(), stop.clone());
    let keeper = keeper.cloned();
    let read = move || {
        let parts = lock(&wanted).take_all();
        let bytes = |parts: &[Extent]| parts.iter().map(|part| part.bytes.len() as u64).sum::<u64>();
        let total = bytes(&parts);
        let readers = Readers { kept: &kept, slices: &slices, chunks: &chunks, stop: &stop };
        let missing = readers.read(&Mutex::new(&mut parts.into_iter()));
        let found = total - bytes(&missing);
        // Of a part that lies here in part, the rest alone makes no file.
        let begun = missing.iter().filter(|part| !part.bytes.start.is_multiple_of(PART_BYTES));
        if let Some(keeper) = &keeper {
            begun.for_each(|part| keeper.leave_out(part.slice, &slices[part.slice], part.bytes.start));
        }
        lock(&wanted).put_back(missing);
        found
    };
    tokio::task::spawn_blocking(read).await.expect("reading the cache does not panic")
}

struct Readers<'a> {
    kept: &'a Kept,
    slices: &'a [TensorSlice],
    chunks: &'a Chunks,
    stop: &'a Stop,
}

impl Readers<'_> {
    /// Reads all `parts`; what is left of them, in their order, could not be read.
    fn read(&self, parts: &Mutex<&mut std::vec::IntoIter<Extent>>) -> Vec<Extent> {
        // What is left when it is stopped is asked of nobody any more.
        let next = || if self.stop.is_asked() { None } else { lock(parts).next() };
        let work =
            || -> Vec<Extent> { std::iter::from_fn(next).filter_map(|part| self.part(part)).collect() };
        let mut missing: Vec<Extent> = std::thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(work)).collect();
            let missing =
                |reader: std::thread::ScopedJoinHandle<'_, _>| reader.join().expect("it does not panic");
            readers.into_iter().flat_map(missing).collect()
        });
        missing.sort_by_key(|part| (part.slice, part.bytes.start));
        missing
    }

    /// What could not be read of a part.
    fn part(&self, mut part: Extent) -> Option<Extent> {
        let slice = &self.slices[part.slice];
        for kept in self.kept.around(slice) {
            let mut gather = Gather::new(kept, slice);
            for chunk in part.chunks() {
                let Some((bytes, digest)) = gather.read(chunk.clone()) else { break };
                let (slice, offset, bytes) = (part.slice, chunk.start, Bytes::from(bytes));
                let checked = Checked { slice, offset, bytes, place: Place::Cache, digest: Some(digest) };
                if self.chunks.blocking_send(checked).is_err() {
                    // The memory could not be written: the load fails, and says so.
                    return Some(part);
                }
                part.bytes.start = chunk.end;
            }
            if part.bytes.is_empty() {
                return None;
            }
        }
        Some(part)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}
