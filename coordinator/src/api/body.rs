//! A request's body: bounded in bytes and in time, then JSON. A short one is read as it comes: there are no more of
//! those than connections. The bodies of all others together are bounded, too: each takes the room for all that
//! it may have at once, before it is read on. So none waits for room while it holds some.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use futures::StreamExt;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::error::ApiError;
use super::surrogates;

#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    pub bytes_max: usize,
    /// Of all bodies beyond [`SHORT_BYTES_MAX`] that are being read or made into prompts.
    pub bytes_all_max: usize,
    /// Until there is room; and again until all of the body is there.
    pub wait: Duration,
}

/// So much of a body needs no room.
pub const SHORT_BYTES_MAX: usize = 64 << 10;
/// A client that sends nothing for so long is given up: others may wait for its room.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Of a body that is too large, so much is read and thrown away, in multiples of what is allowed: most
/// clients send everything before they read the answer, and would else see a broken connection.
const DISCARD_FACTOR: usize = 8;
/// Nobody is kept waiting for longer with what is refused in any case.
const DISCARD_WAIT: Duration = Duration::from_secs(5);

/// Where bodies are read.
pub struct Bodies {
    limits: BodyLimits,
    room: Arc<Semaphore>,
}

/// What a body's JSON may hold: the prompts of eight contexts as ids, or a quarter as many lists. As values one may take
/// 130 bytes, so the JSON of one body takes 140 MB at most, however small they are written (a test here measures it).
const VALUES_MAX: usize = 1 << 20;
/// A list or an object takes as much as this many values, once it has one.
const VALUES_OF_A_LIST: usize = 4;

/// All of a body. It is made into JSON where that delays nobody.
pub struct Received {
    bytes: Vec<u8>,
    room: Room,
}

/// What a body takes of the room for all, until it is dropped: hold it until a prompt is made of it.
#[derive(Default)]
pub struct Room(Option<OwnedSemaphorePermit>);

impl Bodies {
    pub fn new(limits: BodyLimits) -> Bodies {
        // One of them has room in any case.
        let room = limits.bytes_all_max.clamp(limits.bytes_max, Semaphore::MAX_PERMITS);
        Bodies { limits, room: Arc::new(Semaphore::new(room)) }
    }

    pub async fn read(&self, body: Body) -> Result<Received, ApiError> {
        let bytes_max = self.limits.bytes_max;
        let announced = body.size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let (mut bytes, mut room) = (Vec::new(), Room::default());
        let mut until = Instant::now() + self.limits.wait;
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = self.next(&mut chunks, until).await? {
            let bytes_read = bytes.len() + chunk.len();
            if announced.unwrap_or(bytes_read) > bytes_max || bytes_read > bytes_max {
                drop((bytes, room));
                let _ = timeout_at(until, self.discard(chunks)).await;
                return Err(ApiError::BodyTooLarge { bytes_max });
            }
            if bytes_read > SHORT_BYTES_MAX && room.0.is_none() {
                let needed = announced.unwrap_or(bytes_max);
                room = self.room(needed).await?;
                bytes.reserve_exact(needed - bytes.len());
                until = Instant::now() + self.limits.wait;
            }
            bytes.extend_from_slice(&chunk);
        }
        // A client that did not say how much it sends may have sent less than it could.
        bytes.shrink_to_fit();
        room.keep(bytes.len());
        Ok(Received { bytes, room })
    }

    /// The next part, if it comes in time.
    async fn next(&self, chunks: &mut BodyDataStream, until: Instant) -> Result<Option<Bytes>, ApiError> {
        let pause_until = Instant::now() + PAUSE_MAX;
        match timeout_at(until.min(pause_until), chunks.next()).await {
            Ok(chunk) => chunk.transpose().map_err(|error| ApiError::BodyBroken(error.to_string())),
            Err(_) if pause_until < until => Err(ApiError::BodyStopped { seconds: PAUSE_MAX.as_secs() }),
            Err(_) => Err(ApiError::BodyTooSlow { seconds: self.limits.wait.as_secs() }),
        }
    }

    /// For all of a body at once: nothing is held meanwhile.
    async fn room(&self, bytes: usize) -> Result<Room, ApiError> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        match timeout(self.limits.wait, Arc::clone(&self.room).acquire_many_owned(permits)).await {
            Ok(permit) => Ok(Room(Some(permit.expect("it is never closed")))),
            Err(_) => Err(ApiError::NoRoom { seconds: self.limits.wait.as_secs() }),
        }
    }

    /// Of a request that is refused whatever its body says: else the client, which sends all of it before it reads
    /// anything, would see a broken connection instead of the answer.
    pub async fn drop_unread(&self, request: Request) {
        // Who asks first sends nothing before it is told to.
        if !request.headers().contains_key(header::EXPECT) {
            let body = request.into_body();
            let few = body.size_hint().lower() <= self.discard_max() as u64;
            if few && !body.is_end_stream() {
                let _ = timeout(DISCARD_WAIT, self.discard(body.into_data_stream())).await;
            }
        }
    }

    fn discard_max(&self) -> usize {
        self.limits.bytes_max.saturating_mul(DISCARD_FACTOR)
    }

    async fn discard(&self, mut chunks: BodyDataStream) {
        let mut bytes_left = self.discard_max();
        while let Some(Ok(chunk)) = chunks.next().await {
            match bytes_left.checked_sub(chunk.len()) {
                Some(left) => bytes_left = left,
                None => break,
            }
        }
    }
}

impl Received {
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// serde_json stops at a depth of 128.
    pub fn json(mut self) -> Result<(Value, Room), ApiError> {
        if values(&self.bytes) > VALUES_MAX {
            return Err(ApiError::TooManyValues { values_max: VALUES_MAX });
        }
        let value = match serde_json::from_slice(&self.bytes) {
            Err(_) if surrogates::mend(&mut self.bytes) => serde_json::from_slice(&self.bytes)?,
            read => read?,
        };
        Ok((value, self.room))
    }
}

/// How many values JSON holds, by what goes before each.
fn values(json: &[u8]) -> usize {
    let (mut count, mut is_text, mut is_escaped) = (1, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b',' if !is_text => count += 1,
            b'[' | b'{' if !is_text => count += VALUES_OF_A_LIST,
            _ => {}
        }
    }
    count
}

impl Room {
    /// So much of it is enough.
    pub fn keep(&mut self, bytes: usize) {
        if let Some(permit) = &mut self.0 {
            drop(permit.split(permit.num_permits().saturating_sub(bytes)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;

    const BYTES_MAX: usize = 4 * SHORT_BYTES_MAX;

    fn bodies(bytes_all_max: usize) -> Bodies {
        let wait = Duration::from_secs(60);
        Bodies::new(BodyLimits { bytes_max: BYTES_MAX, bytes_all_max, wait })
    }

    fn text(bytes: usize) -> String {
        format!("\"{}\"", "x".repeat(bytes - 2))
    }

    /// In parts, as it comes over a network, and without a word on how much it is.
    fn parts(text: &str) -> Vec<Result<Bytes, std::io::Error>> {
        text.as_bytes().chunks(10_000).map(|part| Ok(Bytes::copy_from_slice(part))).collect()
    }

    fn chunked(text: &str) -> Body {
        Body::from_stream(stream::iter(parts(text)))
    }

    /// Of a client that stops when it has sent this.
    fn stopped(text: &str) -> Body {
        Body::from_stream(stream::iter(parts(text)).chain(stream::pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_waits_until_another_has_become_a_prompt() {
        let bodies = bodies(BYTES_MAX + BYTES_MAX / 2);
        let first = bodies.read(text(BYTES_MAX).into()).await.ok().unwrap();
        let error = bodies.read(text(BYTES_MAX - 9).into()).await.err().unwrap();
        assert_eq!((error.code(), error.status().as_u16()), ("no_room", 503));
        let _second = bodies.read(text(BYTES_MAX / 2).into()).await.ok().unwrap();
        drop(first);
        let third = bodies.read(chunked(&text(BYTES_MAX / 2))).await.ok().unwrap();
        assert_eq!(bodies.room.available_permits(), BYTES_MAX / 2, "no more than came");
        drop(third);
        assert_eq!(bodies.room.available_permits(), BYTES_MAX, "what is read and dropped takes no room");
    }

    /// As many as there is room for, and one more, send nearly all: that none of them can be finished is nothing to
    /// short ones, and to long ones no longer than a pause may be.
    #[tokio::test(start_paused = true)]
    async fn who_sends_nearly_all_keeps_nobody_out() {
        let bodies = bodies(2 * BYTES_MAX);
        let nearly_all = &text(BYTES_MAX)[..BYTES_MAX - 200];
        let stuck = futures::future::join_all((0..3).map(|_| bodies.read(stopped(nearly_all))));
        let others = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(bodies.room.available_permits(), 0);
            let began = Instant::now();
            assert!(bodies.read(chunked(&text(SHORT_BYTES_MAX))).await.is_ok());
            assert_eq!(began.elapsed(), Duration::ZERO, "a short one waits for nobody");
            assert!(bodies.read(text(BYTES_MAX).into()).await.is_ok());
            assert!(began.elapsed() <= Duration::from_secs(10), "{:?}", began.elapsed());
        };
        let (stuck, ()) = futures::future::join(stuck, others).await;
        for error in stuck.into_iter().map(|read| read.err().unwrap()) {
            assert_eq!((error.code(), error.status().as_u16()), ("body_too_slow", 408));
        }
        assert_eq!(bodies.room.available_permits(), 2 * BYTES_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_slowly_or_too_much_keeps_nobody_out() {
        let bodies = bodies(BYTES_MAX);
        assert_eq!(bodies.read(stopped("")).await.err().unwrap().code(), "body_too_slow");
        let drops = stream::repeat("x").then(async |drop| {
            tokio::time::sleep(PAUSE_MAX / 2).await;
            Ok::<_, std::io::Error>(Bytes::from(drop))
        });
        let began = Instant::now();
        let error = bodies.read(Body::from_stream(drops)).await.err().unwrap();
        assert_eq!((error.code(), began.elapsed()), ("body_too_slow", Duration::from_secs(60)));
        for body in [text(BYTES_MAX + 1).into(), chunked(&text(BYTES_MAX + 1))] {
            assert_eq!(bodies.read(body).await.err().unwrap().code(), "body_too_large");
        }
        assert!(bodies.read(text(BYTES_MAX).into()).await.is_ok());
    }
    #[test]
    fn values_are_counted_outside_of_text() {
        for (json, count) in
            [("1", 1), ("[1, 2,3]", 7), (r#"{"a": [], "b,[{": "x\\\"[,{\\\\"}"#, 10), (r#"["\\", {}]"#, 10)]
        {
            assert_eq!(values(json.as_bytes()), count, "{json}");
        }
    }

    /// Of 4 MiB of lists of one number 390 MB were made, and four bodies are made into values at once.
    #[test]
    fn no_body_takes_more_memory_than_is_said() {
        const BYTES_MAX: usize = 4 << 20;
        // As many as there may be, of bytes and of values.
        let of = |item: &str| {
            let most = (VALUES_MAX - 8) / (values(item.as_bytes()) - 1);
            format!("[{}null]", item.repeat(most.min((BYTES_MAX - 6) / item.len())))
        };
        let members: String = (0..400_000).map(|key| format!("\"{key:x}\":0,")).collect();
        let bodies =
            ["0,", "[0],", "[],", "[[0]],", "{\"\":0},", "\"\",", "\"x\",", "{},", "[0,0,0,0,0],"].map(of);
        for body in bodies.into_iter().chain([format!("{{{members}\"x\":0}}")]) {
            assert!(body.len() <= BYTES_MAX && values(body.as_bytes()) <= VALUES_MAX, "{}", &body[..12]);
            let received = Received { bytes: body.clone().into(), room: Room::default() };
            let taken = allocation_counter::measure(|| assert!(received.json().is_ok())).bytes_max;
            println!("{} {} -> {taken}", &body[..12], body.len());
            assert!(taken <= 140_000_000, "{}: {taken} bytes", &body[..12]);
        }
    }
}
