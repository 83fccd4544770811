//! CUDA's libraries: which are here, in which version, where; and how to get the others.

use super::Problem;
use flotilla_engine::cuda::{CudaError, Library, driver_facts, found};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Libraries {
    pub driver: State,
    pub nvrtc: State,
    pub cublas_lt: State,
    pub nccl: State,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    Found {
        version: String,
        path: String,
        /// Of the driver's kernel module, where it tells.
        #[serde(skip_serializing_if = "Option::is_none")]
        release: Option<String>,
    },
    /// No file of its name is anywhere.
    Absent(Problem),
    /// It is here and cannot be used.
    Unusable(Problem),
}

pub fn look() -> Libraries {
    Libraries {
        driver: state(Library::Driver),
        nvrtc: state(Library::Nvrtc),
        cublas_lt: state(Library::CublasLt),
        nccl: state(Library::Nccl),
    }
}

fn state(library: Library) -> State {
    match found(library) {
        Ok(found) => State::Found {
            version: found.version.to_string(),
            path: found.path.display().to_string(),
            release: driver_facts()
                .ok()
                .and_then(|facts| facts.release)
                .filter(|_| library == Library::Driver),
        },
        Err(error @ CudaError::Missing { .. }) if !error.is_refused() => State::Absent(Problem::of(&error)),
        Err(error) => State::Unusable(Problem::of(&error)),
    }
}

impl State {
    pub fn is_usable(&self) -> bool {
        matches!(self, State::Found { .. })
    }
}
