//! What is made of files is made again once they are others: certificates are renewed while the program runs. New
//! files that cannot be taken change nothing but the log, and are tried again: what was wrong may be mended without them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::{self, Act};
use crate::file::{File, TlsError};
use crate::stamp::Stamp;

/// Between two looks at the files when nobody connects, so soon is a fault in the log; and between two tries with files that
/// cannot be taken.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub struct Watched<T> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    made: Mutex<Made<T>>,
}

struct Made<T> {
    stamps: Vec<Option<Stamp>>,
    current: Arc<T>,
    failed: Option<Failed>,
}

/// Why the files as they are could not be taken, when that was tried last.
struct Failed {
    at: Instant,
    words: String,
}

impl<T> Watched<T> {
    pub fn new(
        files: impl IntoIterator<Item = File>,
        make: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Watched<T>, TlsError> {
        let files: Vec<PathBuf> = files.into_iter().map(|file| file.path).collect();
        // The stamps first: what is written meanwhile is read again.
        let stamps = stamps(&files);
        let made = Made { stamps, current: Arc::new(make()?), failed: None };
        Ok(Watched { files, make: Box::new(make), made: Mutex::new(made) })
    }

    /// What is made of the files as they are now, or were when they last could be taken.
    pub fn current(&self) -> Arc<T> {
        self.current_at(Instant::now())
    }

    fn current_at(&self, now: Instant) -> Arc<T> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.files);
        let is_due = |failed: &Failed| now.saturating_duration_since(failed.at) >= LOOK_EVERY;
        if made.stamps != stamps || made.failed.as_ref().is_some_and(is_due) {
            made.stamps = stamps;
            self.make_again(&mut made, now);
        }
        Arc::clone(&made.current)
    }

    /// What is wrong with the files is told once.
    fn make_again(&self, made: &mut Made<T>, now: Instant) {
        match (self.make)() {
            Ok(new) => {
                (made.current, made.failed) = (Arc::new(new), None);
                audit::done(Act::ReadCertificates, self.names(), "new connections use them");
            }
            Err(error) => {
                let words = error.to_string();
                if made.failed.as_ref().is_none_or(|failed| failed.words != words) {
                    audit::failed(Act::ReadCertificates, self.names(), error);
                }
                made.failed = Some(Failed { at: now, words });
            }
        }
    }

    /// Looks at the files again and again.
    pub async fn watch(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.current();
        }
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.files.iter().map(|path| path.display().to_string()).collect();
        names.join(", ")
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|path| Stamp::of(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn number(path: &std::path::Path) -> Result<u32, TlsError> {
        let file = File::new("--number", path);
        let unfit = |error: String| TlsError::Authority { file: file.clone(), error };
        let text = fs::read_to_string(path).map_err(|error| unfit(error.to_string()))?;
        text.parse().map_err(|_| unfit(format!("{text:?} is no number")))
    }

    #[test]
    fn what_changed_is_made_again_and_what_is_broken_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        let replace = |text: &str| {
            // As a mounted secret is: another file in its place.
            let new = folder.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, &path).unwrap();
        };
        replace("1");
        let (read, flagged) = (path.clone(), File::new("--number", &path));
        let watched = Watched::new([flagged], move || number(&read)).unwrap();
        assert_eq!(*watched.current(), 1);
        for (text, expected) in [("2", 2), ("x", 2), ("3", 3)] {
            replace(text);
            assert_eq!(*watched.current(), expected, "after {text:?}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(*watched.current(), 3, "after it was removed");
    }
    /// As when there are no descriptors left, or a network's disk is gone for a moment.
    #[test]
    fn what_could_not_be_read_for_once_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("number"), folder.path().join("other"));
        fs::write(&path, "1").unwrap();
        // Not among the files that are looked at.
        fs::write(&other, "fine").unwrap();
        let (read, flagged) = (path.clone(), File::new("--number", &path));
        let make = move || if other.exists() { number(&read) } else { number(&other) };
        let (watched, now) = (Watched::new([flagged], make).unwrap(), Instant::now());
        fs::remove_file(folder.path().join("other")).unwrap();
        fs::write(&path, "22").unwrap();
        assert_eq!(*watched.current_at(now), 1);
        fs::write(folder.path().join("other"), "fine").unwrap();
        assert_eq!(*watched.current_at(now), 1, "not at each connection");
        assert_eq!(*watched.current_at(now + LOOK_EVERY), 22);
    }

    #[test]
    fn a_file_of_the_same_length_and_time_of_writing_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        fs::write(&path, "1").unwrap();
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        let (read, flagged) = (path.clone(), File::new("--number", &path));
        let watched = Watched::new([flagged], move || number(&read)).unwrap();
        // The system's time of change goes in ticks.
        while Stamp::of(&path) == watched.made.lock().unwrap().stamps[0] {
            fs::write(&path, "2").unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
        }
        assert_eq!(*watched.current(), 2);
    }
}
