//! A request's body: bounded in bytes and in time, then JSON. The bodies of all requests together are bounded,
//! too: where there is no room, more of a body is not read until there is.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures::StreamExt;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    pub bytes_max: usize,
    /// Of all bodies that are being read or made into prompts.
    pub bytes_all_max: usize,
    pub wait: Duration,
}

/// Of a body that is too large, so much is read and thrown away, in multiples of what is allowed: most
/// clients send everything before they read the answer, and would else see a broken connection.
const DISCARD_FACTOR: usize = 8;

/// Where bodies are read.
pub struct Bodies {
    limits: BodyLimits,
    room: Arc<Semaphore>,
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

    pub async fn read_json(&self, body: Body) -> Result<(Value, Room), ApiError> {
        let mut reading = Reading::default();
        let seconds = self.limits.wait.as_secs();
        match tokio::time::timeout(self.limits.wait, self.read(body, &mut reading)).await {
            Ok(read) => read?,
            Err(_) if reading.waits => return Err(ApiError::NoRoom { seconds }),
            Err(_) => return Err(ApiError::BodyTooSlow { seconds }),
        }
        // serde_json stops at a depth of 128.
        Ok((serde_json::from_slice(&reading.bytes)?, reading.room))
    }

    async fn read(&self, body: Body, reading: &mut Reading) -> Result<(), ApiError> {
        let bytes_max = self.limits.bytes_max;
        let mut chunks = body.into_data_stream();
        let mut bytes_read = 0;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| ApiError::BodyBroken(error.to_string()))?;
            bytes_read += chunk.len();
            if bytes_read <= bytes_max {
                self.take_in(chunk, reading).await;
            } else if bytes_read > bytes_max.saturating_mul(DISCARD_FACTOR) {
                break;
            } else {
                *reading = Reading::default();
            }
        }
        if bytes_read > bytes_max { Err(ApiError::BodyTooLarge { bytes_max }) } else { Ok(()) }
    }

    /// Only what has arrived takes room: a client that announces much and sends nothing keeps nobody out.
    async fn take_in(&self, chunk: Bytes, reading: &mut Reading) {
        reading.waits = true;
        // What is read at once is no more than the connection's buffer.
        let bytes = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        let more = Arc::clone(&self.room).acquire_many_owned(bytes).await.expect("it is never closed");
        reading.waits = false;
        match &mut reading.room.0 {
            Some(room) => room.merge(more),
            room => *room = Some(more),
        }
        reading.bytes.extend_from_slice(&chunk);
    }
}

#[derive(Default)]
struct Reading {
    bytes: Vec<u8>,
    room: Room,
    /// For room.
    waits: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;

    fn bodies(bytes_all_max: usize) -> Bodies {
        Bodies::new(BodyLimits { bytes_max: 100, bytes_all_max, wait: Duration::from_secs(60) })
    }

    fn text(bytes: usize) -> Body {
        Body::from(format!("\"{}\"", "x".repeat(bytes - 2)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_waits_until_another_has_become_a_prompt() {
        let bodies = bodies(150);
        let (_, first) = bodies.read_json(text(100)).await.ok().unwrap();
        let error = bodies.read_json(text(80)).await.err().unwrap();
        assert_eq!((error.code(), error.status().as_u16()), ("no_room", 503));
        let (_, _second) = bodies.read_json(text(50)).await.ok().unwrap();
        drop(first);
        assert!(bodies.read_json(text(80)).await.is_ok());
        assert_eq!(bodies.room.available_permits(), 100, "what is read and dropped takes no room");
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_slowly_or_too_much_keeps_nobody_out() {
        let bodies = bodies(100);
        let silent = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(bodies.read_json(silent).await.err().unwrap().code(), "body_too_slow");
        assert_eq!(bodies.read_json(text(101)).await.err().unwrap().code(), "body_too_large");
        let broken = ["x".repeat(60), "x".repeat(60)].map(|part| Ok::<_, std::io::Error>(Bytes::from(part)));
        let broken = Body::from_stream(stream::iter(broken));
        assert_eq!(bodies.read_json(broken).await.err().unwrap().code(), "body_too_large");
        assert!(bodies.read_json(text(100)).await.is_ok());
    }
}
