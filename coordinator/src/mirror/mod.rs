//! A checkpoint on a web server, as a place of weights: nothing is downloaded as a whole. What workers ask for is
//! fetched by ranges as they ask for it, and only once where several ask for the same.

mod http;
mod segments;

use flotilla_engine::weights::{FileBytes, Files, WeightError};
use http::Http;
pub use http::MirrorError;
use segments::Segments;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// `http(s)://host/path/`, below which the files lie.
pub struct Mirror {
    base: String,
    segments: Arc<Segments>,
}

impl Mirror {
    /// Nothing is asked of the server yet.
    pub fn new(url: &str) -> Result<Mirror, MirrorError> {
        Mirror::with_pauses(url, http::PAUSES)
    }

    /// The same; a request that fails is tried again after each of `pauses`.
    pub fn with_pauses(url: &str, pauses: &[Duration]) -> Result<Mirror, MirrorError> {
        let base = format!("{}/", url.trim_end_matches('/'));
        Ok(Mirror { base, segments: Arc::new(Segments::new(Http::new(pauses)?)) })
    }

    fn url(&self, name: &str) -> String {
        format!("{}{name}", self.base)
    }

    fn remote(&self, name: &str) -> Result<Option<Remote>, MirrorError> {
        let found = self.segments.open(&self.url(name))?;
        Ok(found.map(|(file, len)| Remote { segments: self.segments.clone(), file, len }))
    }

    fn found(&self, name: &str) -> Result<Remote, WeightError> {
        let found = self.remote(name).map_err(outside)?;
        found.ok_or_else(|| outside(MirrorError::NotThere { url: self.url(name) }))
    }
}

fn outside(error: MirrorError) -> WeightError {
    WeightError::Source(Box::new(error))
}

impl Files for Mirror {
    fn path(&self, name: &str) -> PathBuf {
        self.url(name).into()
    }

    fn exists(&self, name: &str) -> Result<bool, WeightError> {
        match self.remote(name) {
            // What is not there S3 tells only those who may list the folder.
            Err(MirrorError::Refused { url, status: 403 }) if self.segments.has_files() => {
                warn!(
                    url,
                    "the server answers 403, but gives other files of this folder: taken for not there"
                );
                Ok(false)
            }
            found => Ok(found.map_err(outside)?.is_some()),
        }
    }

    fn text(&self, name: &str, bytes_max: u64) -> Result<String, WeightError> {
        let (path, file) = (self.path(name), self.found(name)?);
        if file.len as u64 > bytes_max {
            return Err(WeightError::TooLong { path, found: file.len as u64, max: bytes_max });
        }
        let mut bytes = vec![0; file.len];
        file.read(0, &mut bytes)?;
        String::from_utf8(bytes).map_err(|_| outside(MirrorError::NotText { url: self.url(name) }))
    }

    fn open(&self, name: &str) -> Result<Box<dyn FileBytes>, WeightError> {
        Ok(Box::new(self.found(name)?))
    }
}

struct Remote {
    segments: Arc<Segments>,
    /// Its number there.
    file: usize,
    len: usize,
}

impl FileBytes for Remote {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), WeightError> {
        self.segments.read(self.file, start, out).map_err(outside)
    }

    fn read_alone(&self, start: usize, out: &mut [u8]) -> Result<(), WeightError> {
        self.segments.read_alone(self.file, start, out).map_err(outside)
    }
}
