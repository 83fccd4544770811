//! A web server with a checkpoint, that can be told to be what servers are on a bad day.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_RANGE, ETAG, RANGE};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::get;
use futures::stream;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;

/// How it misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Good,
    /// Whatever is asked for, it sends all.
    NoRanges,
    /// The next so many answers are this status.
    Status(u16, u64),
    /// The next so many bodies break off in the middle.
    Breaks(u64),
    /// It says 403 of what is not there, as S3 does to those who may not list.
    NoList,
    /// Another part than was asked for.
    OtherPart,
    /// Behind the first megabyte, files have another ETag.
    Changes,
}

#[derive(Default)]
pub struct Seen {
    pub requests: AtomicU64,
    pub bytes: AtomicU64,
    /// Ranges of safetensors files.
    pub ranges: Mutex<Vec<Range<usize>>>,
}

struct Shared {
    dir: PathBuf,
    mood: Mutex<Mood>,
    seen: Arc<Seen>,
}

/// Ends when it is dropped.
pub struct Server {
    pub url: String,
    pub seen: Arc<Seen>,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

impl Server {
    pub fn start(dir: PathBuf) -> Server {
        let seen = Arc::new(Seen::default());
        let shared = Arc::new(Shared { dir, mood: Mutex::default(), seen: seen.clone() });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}/models/small", listener.local_addr().unwrap());
        let app = axum::Router::new().route("/models/small/{file}", get(answer)).with_state(shared.clone());
        runtime.spawn(async move { axum::serve(listener, app).await });
        Server { url, seen, shared, _runtime: runtime }
    }

    pub fn is(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap() = mood;
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    shared.seen.requests.fetch_add(1, Ordering::Relaxed);
    let status = |status: u16| Response::builder().status(status).body(Body::empty()).unwrap();
    let mut mood = shared.mood.lock().unwrap();
    let Ok(bytes) = std::fs::read(shared.dir.join(&file)) else {
        return status(if *mood == Mood::NoList { 403 } else { 404 });
    };
    if bytes.is_empty() && headers.contains_key(RANGE) {
        return status(416);
    }
    let range = headers.get(RANGE).map(|range| parse(range.to_str().unwrap(), bytes.len()));
    let (mut broken, mut shift, mut etag) = (false, 0, "\"1\"");
    match &mut *mood {
        Mood::NoRanges => return Response::new(Body::from(bytes)),
        Mood::Status(code, left @ 1..) => {
            *left -= 1;
            return status(*code);
        }
        Mood::Breaks(left @ 1..) => {
            *left -= 1;
            broken = true;
        }
        Mood::OtherPart => shift = 1,
        Mood::Changes if range.as_ref().is_some_and(|range| range.start > 1 << 20) => etag = "\"2\"",
        _ => {}
    }
    let Some(range) = range else { return Response::new(Body::from(bytes)) };
    if file.ends_with(".safetensors") {
        shared.seen.ranges.lock().unwrap().push(range.clone());
    }
    shared.seen.bytes.fetch_add(range.len() as u64, Ordering::Relaxed);
    let said = format!("bytes {}-{}/{}", range.start + shift, range.end - 1, bytes.len());
    let answer = Response::builder().status(StatusCode::PARTIAL_CONTENT).header(CONTENT_RANGE, said);
    let answer = answer.header(ETAG, etag);
    let body = bytes[range].to_vec();
    if broken {
        let half = body[..body.len() / 2].to_vec();
        let parts = [Ok(half), Err(std::io::Error::other("the cable is cut"))];
        return answer.body(Body::from_stream(stream::iter(parts))).unwrap();
    }
    answer.body(Body::from(body)).unwrap()
}

/// `bytes=0-99` of a file of `len` bytes.
fn parse(text: &str, len: usize) -> Range<usize> {
    let (first, last) = text.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    first.parse().unwrap()..len.min(last.parse::<usize>().unwrap() + 1)
}
