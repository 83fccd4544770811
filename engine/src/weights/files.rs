//! Where the files of a checkpoint lie: in a folder, or wherever else someone can read parts of them from.

use super::WeightError;
use super::config::read_text;
use memmap2::{Advice, Mmap};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A place with the files of a checkpoint.
pub trait Files: Send + Sync {
    /// How people know the file `name`.
    fn path(&self, name: &str) -> PathBuf;

    fn exists(&self, name: &str) -> Result<bool, WeightError>;

    /// All of a file of at most `bytes_max`.
    fn text(&self, name: &str, bytes_max: u64) -> Result<String, WeightError>;

    fn open(&self, name: &str) -> Result<Box<dyn FileBytes>, WeightError>;
}

/// The bytes of a file that is open, and stays as it is.
pub trait FileBytes: Send + Sync {
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `out` with the bytes from `start` on.
    ///
    /// # Panics
    /// If the file ends before.
    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), WeightError>;

    /// The same, of a few bytes whose neighbours are not wanted.
    fn read_alone(&self, start: usize, out: &mut [u8]) -> Result<(), WeightError> {
        self.read(start, out)
    }

    /// Says that these bytes will be read soon.
    fn will_read(&self, _bytes: Range<usize>) {}
}

/// A folder of this machine. Files are mapped.
///
/// Not done: reading with pread, which would answer a file cut short *after* it was opened with an
/// error; under a mapping that is a SIGBUS. Checkpoints are not edited in place.
#[derive(Clone, Debug)]
pub struct Folder(pub PathBuf);

impl Files for Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn exists(&self, name: &str) -> Result<bool, WeightError> {
        Ok(self.path(name).exists())
    }

    fn text(&self, name: &str, bytes_max: u64) -> Result<String, WeightError> {
        read_text(&self.path(name), bytes_max)
    }

    fn open(&self, name: &str) -> Result<Box<dyn FileBytes>, WeightError> {
        Ok(Box::new(Mapped(map(&self.path(name))?)))
    }
}

struct Mapped(Mmap);

impl FileBytes for Mapped {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), WeightError> {
        out.copy_from_slice(&self.0[start..start + out.len()]);
        Ok(())
    }

    /// Lets the kernel begin to read: the disk is asked for much at once, and not only when it is touched.
    fn will_read(&self, bytes: Range<usize>) {
        // Advice: where it is not taken, reading is only slower.
        let _ = self.0.advise_range(Advice::WillNeed, bytes.start, bytes.len());
    }
}

/// For fuzzers.
#[cfg(any(test, fuzzing))]
impl FileBytes for Vec<u8> {
    fn len(&self) -> usize {
        Vec::len(self)
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), WeightError> {
        out.copy_from_slice(&self[start..start + out.len()]);
        Ok(())
    }
}

fn map(path: &Path) -> Result<Mmap, WeightError> {
    let failed = |doing| move |source| WeightError::Io { doing, path: path.to_owned(), source };
    // Asked before opening: to open a pipe would wait for its other end.
    if !fs::metadata(path).map_err(failed("open"))?.is_file() {
        return Err(WeightError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(failed("open"))?;
    // SAFETY: the mapping is read-only, and checkpoints are not written while they are served.
    let map = unsafe { Mmap::map(&file) }.map_err(failed("map"))?;
    // Every reader goes forward, once; if the kernel does not take the advice, reading is only slower.
    let _ = map.advise(Advice::Sequential);
    Ok(map)
}
