//! Files on a server in segments: ranks that are cut along rows want neighbouring bytes of the same place at about
//! the same time, so that what one of them fetched is kept for the others for a while.

use super::http::{Fetched, Http, MirrorError, Version};
use bytes::Bytes;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// What is fetched at once.
pub const SEGMENT_BYTES: usize = 4 << 20;
/// Segments that are kept.
const SEGMENTS_MAX: usize = 64;

/// A file and the number of a segment of it.
type Key = (usize, usize);

pub struct Segments {
    http: Http,
    state: Mutex<State>,
    /// Something was fetched, or could not be.
    news: Condvar,
}

#[derive(Default)]
struct State {
    files: Vec<Arc<KnownFile>>,
    segments: HashMap<Key, Segment>,
    /// Counts uses.
    clock: u64,
}

struct KnownFile {
    url: String,
    version: Version,
}

impl KnownFile {
    /// All of `range`, of the file as it was when it was opened.
    fn get(&self, http: &Http, range: Range<u64>) -> Result<Bytes, MirrorError> {
        let KnownFile { url, version: before } = self;
        assert!(range.start < range.end && range.end <= before.len, "{url} has no bytes {range:?}");
        let fetched = http.get(url, range)?;
        let Fetched { bytes, version } = fetched.ok_or_else(|| MirrorError::NotThere { url: url.clone() })?;
        before.check(url, &version)?;
        Ok(bytes)
    }
}

enum Segment {
    /// By some other thread.
    Coming,
    Here {
        bytes: Bytes,
        used: u64,
    },
}

impl Segments {
    pub fn new(http: Http) -> Segments {
        Segments { http, state: Mutex::default(), news: Condvar::new() }
    }

    /// The number and the length of the file at `url`, whose first segment is fetched; `None` if it is not there.
    pub fn open(&self, url: &str) -> Result<Option<(usize, usize)>, MirrorError> {
        if let Some(known) = self.state().known(url) {
            return Ok(Some(known));
        }
        let Some(Fetched { bytes, version }) = self.http.get(url, 0..SEGMENT_BYTES as u64)? else {
            return Ok(None);
        };
        let len = version.len as usize;
        let mut state = self.state();
        let number = state.files.len();
        state.files.push(Arc::new(KnownFile { url: url.to_owned(), version }));
        state.put((number, 0), bytes);
        Ok(Some((number, len)))
    }

    /// Whether any file was opened.
    pub fn has_files(&self) -> bool {
        !self.state().files.is_empty()
    }

    /// # Panics
    /// If the file ends before.
    pub fn read(&self, file: usize, start: usize, out: &mut [u8]) -> Result<(), MirrorError> {
        let mut done = 0;
        while done < out.len() {
            let (number, within) = ((start + done) / SEGMENT_BYTES, (start + done) % SEGMENT_BYTES);
            let segment = self.segment((file, number))?;
            let take = (segment.len() - within).min(out.len() - done);
            out[done..done + take].copy_from_slice(&segment[within..within + take]);
            done += take;
        }
        Ok(())
    }

    /// The same, without what lies around, and without keeping it.
    pub fn read_alone(&self, file: usize, start: usize, out: &mut [u8]) -> Result<(), MirrorError> {
        let file = self.state().files[file].clone();
        let bytes = file.get(&self.http, start as u64..(start + out.len()) as u64)?;
        out.copy_from_slice(&bytes);
        Ok(())
    }

    /// Fetches it, or waits for whoever does.
    fn segment(&self, key: Key) -> Result<Bytes, MirrorError> {
        let mut state = self.state();
        loop {
            state.clock += 1;
            let now = state.clock;
            match state.segments.get_mut(&key) {
                Some(Segment::Here { bytes, used }) => {
                    *used = now;
                    return Ok(bytes.clone());
                }
                Some(Segment::Coming) => state = self.news.wait(state).expect("no holder panics"),
                None => break,
            }
        }
        state.segments.insert(key, Segment::Coming);
        let file = state.files[key.0].clone();
        drop(state);
        let start = (key.1 * SEGMENT_BYTES) as u64;
        let end = file.version.len.min(start + SEGMENT_BYTES as u64);
        let fetched = file.get(&self.http, start..end);
        let mut state = self.state();
        match &fetched {
            Ok(bytes) => state.put(key, bytes.clone()),
            // Whoever waits tries itself.
            Err(_) => drop(state.segments.remove(&key)),
        }
        self.news.notify_all();
        fetched
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl State {
    /// The number and the length of a file that was opened before.
    fn known(&self, url: &str) -> Option<(usize, usize)> {
        let number = self.files.iter().position(|file| file.url == url)?;
        Some((number, self.files[number].version.len as usize))
    }

    /// Keeps a segment, and lets the one go that was used longest ago.
    fn put(&mut self, key: Key, bytes: Bytes) {
        self.clock += 1;
        self.segments.insert(key, Segment::Here { bytes, used: self.clock });
        if self.segments.len() > SEGMENTS_MAX {
            let used = |segment: &Segment| match segment {
                Segment::Here { used, .. } => *used,
                Segment::Coming => u64::MAX,
            };
            let oldest = self.segments.iter().min_by_key(|(_, segment)| used(segment)).map(|(key, _)| *key);
            oldest.map(|key| self.segments.remove(&key));
        }
    }
}
