//! What the end-to-end tests have in common: the program as a process under a deadline, verify's report
//! read anew, small checkpoints, servers and their workers, and a client.
#![allow(dead_code, unused_imports, reason = "each test file uses a part")]

pub mod checkpoint;
pub mod client;
pub mod program;
pub mod relay;
pub mod report;
pub mod server;

use std::path::PathBuf;

/// A file or folder of the repository.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
