//! Room on the disk: the limit holds over all files of the cache, whichever worker wrote them, and what was used
//! longest ago goes first. What was used since this load began stays: it is the present group's. Of other files in the
//! folder nothing is known: they are neither counted nor removed.

use super::CacheSettings;
use super::file::PartName;
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use tracing::info;

/// The folder is looked through again when so much was written, for others write too.
const LOOK_AGAIN_BYTES: u64 = 256 << 20;

/// A full folder is looked through so often.
const LOOK_PAUSE: Duration = Duration::from_secs(5);

/// Ending of files that are being written.
const UNFINISHED: &str = "tmp";

#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    bytes_max: u64,
    since: SystemTime,
    /// As last seen, with what was written since then.
    bytes: u64,
    written: u64,
    looked: bool,
    /// When a look found that nothing may make room.
    full_at: Option<Instant>,
    pub(super) look_pause: Duration,
}

struct Found {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Room {
    pub(super) fn new(settings: &CacheSettings, since: SystemTime) -> Room {
        let CacheSettings { dir, bytes_max } = settings.clone();
        Room {
            dir,
            bytes_max,
            since,
            bytes: 0,
            written: 0,
            looked: false,
            full_at: None,
            look_pause: LOOK_PAUSE,
        }
    }

    /// Makes room for `bytes` more, and takes them; `false` if there is none that may be made.
    pub(super) fn take(&mut self, bytes: u64) -> bool {
        if self.full_at.is_some_and(|full_at| full_at.elapsed() < self.look_pause) {
            return false;
        }
        if !self.looked || self.written >= LOOK_AGAIN_BYTES || self.bytes + bytes > self.bytes_max {
            self.look(bytes);
        }
        let there_is = self.bytes + bytes <= self.bytes_max;
        self.full_at = (!there_is).then(Instant::now);
        if there_is {
            self.bytes += bytes;
            self.written += bytes;
        }
        there_is
    }

    /// Counts what is there, and removes what was used longest ago until `wanted` more fit.
    fn look(&mut self, wanted: u64) {
        let mut files = self.files();
        files.sort_by_key(|file| file.used);
        (self.looked, self.written) = (true, 0);
        self.bytes = files.iter().map(|file| file.bytes).sum();
        let old = files.iter().filter(|file| file.used < self.since);
        for file in old {
            if self.bytes + wanted <= self.bytes_max {
                return;
            }
            if fs::remove_file(&file.path).is_ok() {
                info!(file = %file.path.display(), "made room in the weight cache");
                self.bytes -= file.bytes;
            }
        }
    }

    /// Removes unfinished files that nobody has written to for `idle`.
    pub(super) fn drop_abandoned(&self, idle: Duration) {
        let unfinished = |file: &Found| file.path.extension().is_some_and(|end| end == UNFINISHED);
        let idle = |file: &Found| file.used.elapsed().is_ok_and(|elapsed| elapsed > idle);
        for file in self.files().iter().filter(|file| unfinished(file) && idle(file)) {
            if fs::remove_file(&file.path).is_ok() {
                info!(file = %file.path.display(), "removed from the weight cache, a worker left it unfinished");
            }
        }
    }

    /// Of all weights. What vanishes meanwhile is not there.
    fn files(&self) -> Vec<Found> {
        let entries = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
        let folders = entries(self.dir.clone()).filter(|folder| is_of_weights(&folder.file_name()));
        let files = folders.flat_map(|folder| entries(folder.path()));
        let found = |file: fs::DirEntry| {
            let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
            Some(Found { path: file.path(), bytes: metadata.len(), used: metadata.modified().ok()? })
        };
        files.filter(|file| is_of_the_cache(&file.file_name())).filter_map(found).collect()
    }
}

/// Whether a folder has the name that [`super::folder_name`] gives.
fn is_of_weights(folder: &OsStr) -> bool {
    let digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    folder.len() == 64 && folder.as_encoded_bytes().iter().all(digit)
}

/// Whether a file has the name of a part, or [`unfinished_name`] gave it: nothing else is taken for ours.
fn is_of_the_cache(file: &OsStr) -> bool {
    let Some(name) = file.to_str() else { return false };
    PartName::is_file_name(name) || is_unfinished_name(name)
}

/// `PROCESS-TIME-COUNT.tmp`
pub(super) fn unfinished_name(process: u32, time: u128, count: usize) -> String {
    format!("{process}-{time}-{count}.{UNFINISHED}")
}

fn is_unfinished_name(name: &str) -> bool {
    let numbers = name.strip_suffix(UNFINISHED).and_then(|name| name.strip_suffix('.'));
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|name| name.split('-').count() == 3 && name.split('-').all(is_number))
}
