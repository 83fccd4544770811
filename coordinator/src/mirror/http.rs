//! Ranges of files by HTTP, for threads: each request is tried again while the server may recover, and an answer
//! that is not exactly what was asked for is an error that says so.

use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED, RANGE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use std::ops::Range;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use thiserror::Error;
use tokio::runtime::Runtime;
use tracing::warn;

/// Pauses between tries of a request.
pub const PAUSES: &[Duration] = &[
    Duration::from_millis(200),
    Duration::from_millis(800),
    Duration::from_secs(3),
    Duration::from_secs(10),
];
/// The longest pause that a server may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a byte from the server.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a file on a server cannot be read.
#[derive(Clone, Debug, Error)]
pub enum MirrorError {
    #[error("no HTTP client: {0}")]
    Client(String),
    #[error(
        "{url} is not there\nhint: the URL must be that of a folder with config.json, the index and its files"
    )]
    NotThere { url: String },
    #[error(
        "{url}: the server answers {status}\nhint: can this machine open the URL, and does it need a key?"
    )]
    Refused { url: String, status: u16 },
    #[error("{url} is empty\nhint: it may be that it was not uploaded to its end")]
    Empty { url: String },
    #[error(
        "{url}: the server sends whole files only (status {status} for a range)\nhint: use a server that knows Range requests, or download the folder"
    )]
    NoRanges { url: String, status: u16 },
    #[error(
        "{url}: bytes {wanted:?} were asked for, the server says that it sends {found}\nhint: a proxy between may be at fault"
    )]
    OtherRange { url: String, wanted: Range<u64>, found: String },
    #[error(
        "{url}: the answer ended after {found} of {expected} bytes\nhint: the connection breaks, or the file on the server is cut"
    )]
    Truncated { url: String, expected: u64, found: u64 },
    #[error(
        "{url} changed while it was read: {what} was {before}, and is {now}\nhint: start again, once nobody writes to it any more"
    )]
    Changed { url: String, what: &'static str, before: String, now: String },
    #[error("cannot read {url}: {reason}\nhint: is the server up, and is the network between?")]
    Unreachable { url: String, reason: String },
    #[error("{url} is no text\nhint: this is not the file that its name says")]
    NotText { url: String },
}

/// How a file is known to be the same still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub len: u64,
    etag: Option<String>,
    modified: Option<String>,
}

impl Version {
    /// An error if `self`, of an earlier answer, is another than `now`.
    pub fn check(&self, url: &str, now: &Version) -> Result<(), MirrorError> {
        let changed = |what, before: String, now: String| {
            Err(MirrorError::Changed { url: url.to_owned(), what, before, now })
        };
        let said = |text: &Option<String>| text.clone().unwrap_or_else(|| "not said".into());
        if self.len != now.len {
            return changed("its length", self.len.to_string(), now.len.to_string());
        }
        if self.etag != now.etag {
            return changed("its ETag", said(&self.etag), said(&now.etag));
        }
        if self.modified != now.modified {
            return changed("Last-Modified", said(&self.modified), said(&now.modified));
        }
        Ok(())
    }
}

/// A part of a file, and which version of the file it is of.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub bytes: bytes::Bytes,
    pub version: Version,
}

pub struct Http {
    client: Client,
    pauses: Arc<[Duration]>,
    /// Of its own: sources are read by threads that belong to no runtime, or to another.
    runtime: Option<Runtime>,
}

impl Http {
    pub fn new(pauses: &[Duration]) -> Result<Http, MirrorError> {
        // Fails where it is installed already.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let failed = |error: &dyn std::error::Error| MirrorError::Client(words(error));
        let builder = Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT);
        let client = builder.build().map_err(|error| failed(&error))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("mirror")
            .enable_all()
            .build()
            .map_err(|error| failed(&error))?;
        Ok(Http { client, pauses: pauses.into(), runtime: Some(runtime) })
    }

    /// The bytes `range` of a file, fewer where it ends before; `None` if there is no such file. Blocks.
    pub fn get(&self, url: &str, range: Range<u64>) -> Result<Option<Fetched>, MirrorError> {
        let (done, answer) = mpsc::channel();
        let (client, url, pauses) = (self.client.clone(), url.to_owned(), self.pauses.clone());
        let runtime = self.runtime.as_ref().expect("it is there until it is dropped");
        runtime.spawn(async move {
            let _ = done.send(get_patiently(&client, &url, range, &pauses).await);
        });
        answer.recv().expect("a request ends with an answer")
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        // To wait for it is not allowed on an async thread, which may be the last to hold this.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Whether to try again, and no sooner than when.
struct Failed {
    error: MirrorError,
    again: bool,
    after: Option<Duration>,
}

impl Failed {
    fn for_good(error: MirrorError) -> Failed {
        Failed { error, again: false, after: None }
    }

    fn for_now(error: MirrorError) -> Failed {
        Failed { error, again: true, after: None }
    }
}

async fn get_patiently(
    client: &Client,
    url: &str,
    range: Range<u64>,
    pauses: &[Duration],
) -> Result<Option<Fetched>, MirrorError> {
    let mut pauses = pauses.iter().copied();
    loop {
        let Failed { error, again, after } = match get_once(client, url, range.clone()).await {
            Ok(fetched) => return Ok(fetched),
            Err(failed) => failed,
        };
        let Some(pause) = pauses.next().filter(|_| again) else { return Err(error) };
        let pause = after.map_or(pause, |after| pause.max(after.min(PAUSE_MAX)));
        warn!(%error, ?pause, "trying again");
        tokio::time::sleep(pause).await;
    }
}

async fn get_once(client: &Client, url: &str, range: Range<u64>) -> Result<Option<Fetched>, Failed> {
    let unreachable = |error: reqwest::Error| {
        Failed::for_now(MirrorError::Unreachable { url: url.to_owned(), reason: words(&error) })
    };
    let wanted = format!("bytes={}-{}", range.start, range.end - 1);
    let response = client.get(url).header(RANGE, wanted).send().await.map_err(unreachable)?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {}
        StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
        status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
            let error = MirrorError::Refused { url: url.to_owned(), status: status.as_u16() };
            let after = header(response.headers(), RETRY_AFTER).and_then(|text| text.parse().ok());
            return Err(Failed { error, again: true, after: after.map(Duration::from_secs) });
        }
        // Every file that is not empty has its first byte.
        StatusCode::RANGE_NOT_SATISFIABLE if range.start == 0 => {
            return Err(Failed::for_good(MirrorError::Empty { url: url.to_owned() }));
        }
        status if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE => {
            let status = status.as_u16();
            return Err(Failed::for_good(MirrorError::NoRanges { url: url.to_owned(), status }));
        }
        status => {
            let status = status.as_u16();
            return Err(Failed::for_good(MirrorError::Refused { url: url.to_owned(), status }));
        }
    }
    let (expected, version) = said(url, &range, &response)?;
    let bytes = response.bytes().await.map_err(unreachable)?;
    if bytes.len() as u64 != expected {
        let (url, found) = (url.to_owned(), bytes.len() as u64);
        return Err(Failed::for_now(MirrorError::Truncated { url, expected, found }));
    }
    Ok(Some(Fetched { bytes, version }))
}

/// How many bytes the answer says that it has, which must be from those that were wanted; and of what.
fn said(url: &str, wanted: &Range<u64>, response: &Response) -> Result<(u64, Version), Failed> {
    let headers = response.headers();
    let text = header(headers, CONTENT_RANGE);
    let other = || {
        let found = text.clone().unwrap_or_else(|| "no Content-Range".into());
        Failed::for_good(MirrorError::OtherRange { url: url.to_owned(), wanted: wanted.clone(), found })
    };
    let (first, last, len) = text.as_deref().and_then(content_range).ok_or_else(other)?;
    if first != wanted.start || last.checked_add(1) != Some(wanted.end.min(len)) || last < first {
        return Err(other());
    }
    let version = Version { len, etag: header(headers, ETAG), modified: header(headers, LAST_MODIFIED) };
    Ok((last - first + 1, version))
}

/// `bytes 0-99/1234`
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, len) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?, len.parse().ok()?))
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The error with what it comes from: reqwest keeps that to itself.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}
