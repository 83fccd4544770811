//! Weights that this host keeps on its disk from one load to the next: parts of slices, each a file with the
//! digests of its chunks. Nothing in it is believed without them, and nothing about it can fail a load: what
//! is damaged is dropped and fetched again, and a disk that is full or must not be written keeps nothing.
//!
//! Workers of one host may share the folder. Files appear whole, by a rename; their names say what they are, so
//! that there is no list of them, and nothing is locked.

mod file;
mod gather;
mod index;
mod keeper;
mod room;
#[cfg(test)]
mod tests;

pub use gather::Gather;
pub use index::Kept;
pub use keeper::Keeper;

use flotilla_shared::{ModelSpec, WeightsId};
use room::Room;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tracing::warn;

/// Where to keep weights, and how much of them.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    pub dir: PathBuf,
    /// Of all parts in it.
    pub bytes_max: u64,
}

/// A file that nobody has written to for so long was left behind by a worker that was killed.
const ABANDONED_AFTER: Duration = Duration::from_secs(600);
/// How far the clock of files may be behind.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// The cache as one load sees it.
#[derive(Debug)]
pub struct WeightCache {
    settings: CacheSettings,
    /// Of these weights alone.
    folder: PathBuf,
    /// Whatever was used since is in use.
    since: SystemTime,
}

impl WeightCache {
    pub fn new(settings: &CacheSettings, weights: WeightsId) -> WeightCache {
        let folder = folder_name(weights);
        let since = SystemTime::now() - CLOCK_SLACK;
        WeightCache { folder: settings.dir.join(folder), settings: settings.clone(), since }
    }

    /// What is kept of these weights.
    pub fn kept(&self, spec: &ModelSpec) -> Kept {
        Kept::list(&self.folder, spec)
    }

    /// Starts to keep what is brought; `None`, and a warning, where the disk cannot be written.
    pub fn keeper(&self) -> Option<Keeper> {
        let room = Room::new(&self.settings, self.since);
        if let Err(error) = std::fs::create_dir_all(&self.folder) {
            warn_unwritable(&self.folder, &error);
            return None;
        }
        room.drop_abandoned(ABANDONED_AFTER);
        Some(Keeper::start(self.folder.clone(), room))
    }
}

/// All 32 bytes: the short form is for people.
fn folder_name(weights: WeightsId) -> String {
    weights.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn warn_unwritable(path: &Path, error: &std::io::Error) {
    warn!(path = %path.display(), %error, "the weight cache cannot be written, nothing more is kept");
}
