//! The flags of the front: who may ask, over what, and how much one client may cost.

use crate::open_files;
use anyhow::Result;
use clap::Args;
use flotilla_coordinator::api::{Origins, StoreLimits};
use flotilla_coordinator::keys::Keyring;
use flotilla_coordinator::service::{Settings, Tls};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// The longest that a flag may ask for: what is added to the time of day must be a time.
pub const YEAR_S: u64 = 365 * 86_400;
/// Their heading in the help.
const FRONT: &str = "The API's front";
/// Files that are no clients' connections: the model's, workers', and those who wait at their port.
const OTHER_FILES: usize = 512;

#[derive(Clone, Debug, Args)]
pub struct FrontArgs {
    /// Keys of those who may ask, read again when it changes; `flotilla key NAME` makes entries
    /// [default: everybody may]
    #[arg(help_heading = FRONT, long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// Certificate chain, PEM: the API is served over https
    #[arg(help_heading = FRONT, long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(help_heading = FRONT, long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Origin whose pages may ask, or * for all; may be given several times
    #[arg(help_heading = FRONT, long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Seconds that a request may take, queue and answer together; 0 is without end
    #[arg(help_heading = FRONT, long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=YEAR_S))]
    request_timeout: u64,
    /// Seconds that requests under way may take after the order to stop; new ones get 503 meanwhile
    #[arg(help_heading = FRONT, long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(..=86_400))]
    drain_timeout: u32,
    /// Requests under way at once, over as many connections and 16; for one connection more whoever rests longest makes
    /// place. While all have requests under way probes are answered, and others get 503
    #[arg(help_heading = FRONT, long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections_max: u32,
    /// Bytes of what is kept for previous_response_id; whoever holds most makes room
    #[arg(help_heading = FRONT, long, default_value_t = 256 << 20, value_parser = clap::value_parser!(u64).range(..=1 << 40))]
    responses_bytes_max: u64,
    /// Responses that are kept for previous_response_id; 0 keeps none
    #[arg(help_heading = FRONT, long, default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(..=10_000_000))]
    responses_max: u32,
    /// Beginnings of prompts go to the log, with the request's id; without this flag no word of a prompt does
    #[arg(help_heading = FRONT, long)]
    pub log_prompts: bool,
    /// Bytes of a request's body at most
    #[arg(help_heading = FRONT, long, default_value_t = 4 << 20, value_parser = clap::value_parser!(u32).range(1024..))]
    body_bytes_max: u32,
}

/// The front as it was asked for: files are read.
pub struct Front {
    keys: Option<Arc<Keyring>>,
    tls: Option<Tls>,
    cors: Origins,
}

impl FrontArgs {
    /// Whether a client needs neither a key nor TLS.
    pub fn is_plain(&self) -> bool {
        self.api_keys.is_none() && self.tls_cert.is_none()
    }

    /// What `flotilla chat` needs beside the address.
    pub fn chat_flags(&self) -> String {
        self.flags("--ca", "--api-key KEY")
    }

    /// The same of curl.
    pub fn curl_flags(&self) -> String {
        self.flags("--cacert", "-H 'authorization: Bearer KEY'")
    }

    fn flags(&self, trust: &str, key: &str) -> String {
        let trust = self.tls_cert.iter().map(|cert| format!(" {trust} {}", cert.display()));
        let key = self.api_keys.iter().map(|_| format!(" {key}"));
        trust.chain(key).collect()
    }

    /// What the flags cannot say.
    pub fn remarks(&self) -> Vec<&'static str> {
        const HOST: &str = "Ask at a host that the certificate names, whatever stands here.";
        const KEY: &str = "KEY is what `flotilla key NAME` showed when it made the entry in the key file.";
        let host = self.tls_cert.iter().map(|_| HOST);
        host.chain(self.api_keys.iter().map(|_| KEY)).collect()
    }

    /// For answers under way, after the order to stop.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout.into())
    }

    pub fn open(&self) -> Result<Front> {
        let keys = self.api_keys.as_deref().map(Keyring::read).transpose()?.map(Arc::new);
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(Tls::from_files(cert, key)?),
            _ => None,
        };
        let cors = Origins::new(self.cors_origin.iter().map(String::as_str))?;
        Ok(Front { keys, tls, cors })
    }

    pub fn apply(&self, front: Front, settings: &mut Settings) {
        settings.keys = front.keys;
        settings.tls = front.tls;
        settings.cors = front.cors;
        settings.log_prompts = self.log_prompts;
        let limits = &mut settings.limits;
        limits.drain = self.drain_timeout();
        limits.request_timeout =
            (self.request_timeout > 0).then(|| Duration::from_secs(self.request_timeout));
        limits.connections.connections_max = self.connections_that_fit(open_files::max());
        limits.body.bytes_max = self.body_bytes_max as usize;
        limits.responses = StoreLimits {
            bytes_max: self.responses_bytes_max as usize,
            count_max: self.responses_max as usize,
        };
    }
}

impl FrontArgs {
    /// Of what may be open at once: beyond it not even a probe could be let in.
    fn connections_that_fit(&self, files_max: usize) -> usize {
        let (asked, fit) = (self.connections_max as usize, files_max.saturating_sub(OTHER_FILES).max(1));
        if asked > fit {
            warn!(
                "--connections-max is {fit} instead of {asked}: this process may have {files_max} files open, and keeps \
                 {OTHER_FILES} for other things; raise its limit (ulimit -Hn, LimitNOFILE=), or give a smaller --connections-max"
            );
        }
        asked.min(fit)
    }
}

impl Front {
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        front: FrontArgs,
    }

    #[test]
    fn there_are_no_more_connections_than_files() {
        let fit = |args: &[&str], files| {
            Flags::try_parse_from([&["x"], args].concat()).unwrap().front.connections_that_fit(files)
        };
        assert_eq!((fit(&[], usize::MAX), fit(&[], 1 << 20), fit(&[], 1024)), (4096, 4096, 512));
        assert_eq!((fit(&["--connections-max", "9"], 1024), fit(&[], 64)), (9, 1));
    }

    /// A server that started with it panicked at the first request.
    #[test]
    fn no_request_may_take_longer_than_there_is_time() {
        for (seconds, fine) in
            [("0", true), ("31536000", true), ("31536001", false), ("9999999999999999999", false)]
        {
            let flags = Flags::try_parse_from(["x", "--request-timeout", seconds]);
            assert_eq!(flags.is_ok_and(|flags| flags.front.request_timeout <= YEAR_S), fine, "{seconds}");
        }
    }
}
