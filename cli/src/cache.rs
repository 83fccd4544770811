//! `--weight-cache`, `--weight-cache-bytes`: what a worker keeps on its disk.

use clap::Args;
use flotilla_shared::units::Bytes;
use flotilla_worker::CacheSettings;
use std::path::PathBuf;

#[derive(Clone, Debug, Default, Args)]
pub struct CacheArgs {
    /// Folder in which weights are kept for the next start; workers of one host may share it [default: none are]
    #[arg(help_heading = "Weights", long, value_name = "DIR", env = "FLOTILLA_WEIGHT_CACHE")]
    weight_cache: Option<PathBuf>,
    /// What that folder may hold, such as 80GB; what was used longest ago goes first
    #[arg(help_heading = "Weights", long, value_name = "BYTES", default_value = "80GB")]
    weight_cache_bytes: Option<Bytes>,
}

impl CacheArgs {
    pub fn settings(&self) -> Option<CacheSettings> {
        let bytes_max = self.weight_cache_bytes.map_or(0, |bytes| bytes.0);
        self.weight_cache.clone().map(|dir| CacheSettings { dir, bytes_max })
    }

    /// The same choices for a worker process.
    pub fn to_args(&self) -> Vec<String> {
        let Some(CacheSettings { dir, bytes_max }) = self.settings() else { return Vec::new() };
        let dir = dir.to_string_lossy().into_owned();
        vec!["--weight-cache".into(), dir, "--weight-cache-bytes".into(), bytes_max.to_string()]
    }
}
