//! Writes what was brought behind the loading, on a thread of its own. A part is kept only if the disk is not
//! too far behind when its first chunk comes: loading never waits for it, and memory for what waits to be written
//! is bounded. What is passed over is kept at a later load.

use super::file::PartName;
use super::room::{Room, unfinished_name};
use super::warn_unwritable;
use crate::load::PART_BYTES;
use bytes::Bytes;
use flotilla_engine::weights::{CHUNK_BYTES, Digest};
use flotilla_shared::TensorSlice;
use flotilla_shared::units;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use tracing::info;

/// Bytes of parts that were begun and are not written yet.
const BEHIND_BYTES_MAX: usize = 8 * PART_BYTES;

/// A part by its slice's number and its first byte.
type Key = (usize, usize);

struct Job {
    key: Key,
    offset: usize,
    bytes: Bytes,
    digest: Digest,
    name: PartName,
}

/// Takes chunks from many threads.
#[derive(Debug)]
pub struct Keeper {
    jobs: Sender<Job>,
    parts: Mutex<Parts>,
    behind: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Parts {
    fates: HashMap<Key, Fate>,
    /// Because the disk was behind.
    passed_over: usize,
}

/// What becomes of a part: decided with its first chunk, or earlier.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// So many bytes of it have not come yet.
    Kept {
        left: usize,
    },
    NotKept,
}

impl Keeper {
    pub(super) fn start(folder: PathBuf, room: Room) -> Keeper {
        let (jobs, inbox) = channel();
        let behind = Arc::new(AtomicUsize::new(0));
        let writer = Writer { folder, room, behind: behind.clone(), parts: HashMap::new(), written: 0 };
        // It ends when the keeper is dropped and all is written. A load does not wait for it.
        let thread = std::thread::Builder::new().name("weight-cache".into());
        let started = thread.spawn(move || writer.run(&inbox));
        if let Err(error) = started {
            tracing::warn!(%error, "no thread for the weight cache, nothing is kept");
        }
        Keeper { jobs, parts: Mutex::default(), behind }
    }

    /// Keeps a chunk of slice number `index`, if its part is kept.
    pub fn keep(&self, index: usize, slice: &TensorSlice, offset: usize, bytes: &Bytes, digest: Digest) {
        let name = PartName::at(slice, offset);
        let key = (index, name.bytes.start);
        if self.is_kept(key, name.bytes.len(), bytes.len()) {
            let job = Job { key, offset, bytes: bytes.clone(), digest, name };
            // A writer that gave up said so.
            let _ = self.jobs.send(job);
        }
    }

    /// Of the part that has this byte some will never be given to be kept: none of what comes is, and nothing waits for it.
    pub fn leave_out(&self, index: usize, slice: &TensorSlice, offset: usize) {
        let key = (index, PartName::at(slice, offset).bytes.start);
        let before = self.lock().fates.insert(key, Fate::NotKept);
        if let Some(Fate::Kept { left }) = before {
            self.behind.fetch_sub(left, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().expect("no holder panics")
    }

    #[cfg(test)]
    pub(super) fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed) > 0
    }

    /// As if the disk stood still.
    #[cfg(test)]
    pub(super) fn without_writer() -> (Keeper, Receiver<impl Sized>) {
        let (jobs, inbox) = channel();
        (Keeper { jobs, parts: Mutex::default(), behind: Arc::default() }, inbox)
    }

    /// Whether a chunk of so many bytes is, by what was decided of its part.
    fn is_kept(&self, key: Key, part_bytes: usize, chunk_bytes: usize) -> bool {
        let mut parts = self.lock();
        let Parts { fates, passed_over } = &mut *parts;
        let fate = fates.entry(key).or_insert_with(|| {
            let fits = self.behind.load(Ordering::Relaxed) + part_bytes <= BEHIND_BYTES_MAX;
            if fits {
                self.behind.fetch_add(part_bytes, Ordering::Relaxed);
                return Fate::Kept { left: part_bytes };
            }
            *passed_over += 1;
            Fate::NotKept
        });
        match fate {
            Fate::Kept { left } => {
                *left = left.saturating_sub(chunk_bytes);
                true
            }
            Fate::NotKept => false,
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let passed_over = self.lock().passed_over;
        if passed_over > 0 {
            info!(
                parts = passed_over,
                "the disk of the weight cache was too slow for these, they are not kept yet"
            );
        }
    }
}

struct Writer {
    folder: PathBuf,
    room: Room,
    behind: Arc<AtomicUsize>,
    parts: HashMap<Key, State>,
    written: u64,
}

/// Of a part.
enum State {
    Begun(Unfinished),
    Finished,
    NoRoom,
}

/// A part that is being written, under a name of its own; removed unless it was finished.
struct Unfinished {
    file: File,
    path: PathBuf,
    name: PartName,
    digests: Vec<Option<Digest>>,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>) {
        let mut full = false;
        for job in jobs {
            if let Err(error) = self.write(&job) {
                return warn_unwritable(&self.folder, &error);
            }
            full |= matches!(self.parts.get(&job.key), Some(State::NoRoom));
            self.behind.fetch_sub(job.bytes.len(), Ordering::Relaxed);
        }
        if full {
            info!("the weight cache is full of what is in use, the rest is not kept");
        }
        if self.written > 0 {
            info!(bytes = %units::Bytes(self.written), folder = %self.folder.display(), "kept in the weight cache");
        }
    }

    fn write(&mut self, job: &Job) -> io::Result<()> {
        if !self.parts.contains_key(&job.key) {
            let state = match self.room.take(job.name.file_bytes()) {
                true => State::Begun(Unfinished::begin(&self.folder, &job.name)?),
                false => State::NoRoom,
            };
            self.parts.insert(job.key, state);
        }
        if let Some(State::Begun(part)) = self.parts.get_mut(&job.key)
            && part.write(job)?
            && let Some(State::Begun(part)) = self.parts.insert(job.key, State::Finished)
        {
            self.written += part.finish()?;
        }
        Ok(())
    }
}

impl Unfinished {
    fn begin(folder: &std::path::Path, name: &PartName) -> io::Result<Unfinished> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Two containers may have equal process ids; the clock tells them apart.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let path = folder.join(unfinished_name(process, now.as_nanos(), count));
        let file = File::create_new(&path)?;
        Ok(Unfinished { file, path, name: name.clone(), digests: vec![None; name.chunk_count()] })
    }

    /// Whether all chunks are there now.
    fn write(&mut self, job: &Job) -> io::Result<bool> {
        let within = job.offset - self.name.bytes.start;
        self.file.write_all_at(&job.bytes, self.name.data_at() + within as u64)?;
        self.digests[within / CHUNK_BYTES] = Some(job.digest);
        Ok(self.digests.iter().all(Option::is_some))
    }

    /// The head, and the name by which others find it.
    fn finish(mut self) -> io::Result<u64> {
        let digests: Vec<Digest> = self.digests.drain(..).flatten().collect();
        self.file.write_all_at(&self.name.head(&digests), 0)?;
        fs::rename(&self.path, self.path.with_file_name(self.name.file_name()))?;
        Ok(self.name.file_bytes())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After a rename there is no such file.
        let _ = fs::remove_file(&self.path);
    }
}
