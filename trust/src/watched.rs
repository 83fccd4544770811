//! What is made of files is made again once they are others: certificates are renewed while the program runs. New
//! files that cannot be taken change nothing but the log.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::audit::{self, Act};
use crate::file::{File, TlsError};

/// Between two looks at the files when nobody connects: so soon is a fault in the log.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub struct Watched<T> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    made: Mutex<Made<T>>,
}

struct Made<T> {
    stamps: Vec<Option<Stamp>>,
    current: Arc<T>,
}

/// What is another once a file was replaced, by a link too. None: there is no file.
type Stamp = (SystemTime, u64, u64);

impl<T> Watched<T> {
    pub fn new(
        files: impl IntoIterator<Item = File>,
        make: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Watched<T>, TlsError> {
        let files: Vec<PathBuf> = files.into_iter().map(|file| file.path).collect();
        // The stamps first: what is written meanwhile is read again.
        let stamps = stamps(&files);
        let current = Arc::new(make()?);
        Ok(Watched { files, make: Box::new(make), made: Mutex::new(Made { stamps, current }) })
    }

    /// What is made of the files as they are now, or were when they last could be taken.
    pub fn current(&self) -> Arc<T> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.files);
        // What is wrong with files is told once.
        if std::mem::replace(&mut made.stamps, stamps.clone()) != stamps {
            match (self.make)() {
                Ok(new) => {
                    made.current = Arc::new(new);
                    audit::done(Act::ReadCertificates, self.names(), "new connections use them");
                }
                Err(error) => audit::failed(Act::ReadCertificates, self.names(), error),
            }
        }
        Arc::clone(&made.current)
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
    let stamp = |path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
