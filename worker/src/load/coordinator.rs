//! The coordinator as a place of weights: several streams, each on a connection of its own, so that neither
//! one processor nor one window is the limit, and pings of the worker's conversation wait behind no data.

use super::PART_BYTES;
use super::intake::{Intake, Parts};
use crate::error::WorkerError;
use crate::link::{Client, Purpose, dial};
use crate::settings::Settings;
use flotilla_engine::weights::Digest;
use flotilla_shared::{Assignment, Epoch};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tracing::warn;

/// Streams of one worker.
const STREAMS: usize = 4;
/// Times that a stream without progress is taken up again, after a pause that grows with each.
const RETRIES_MAX: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Bytes of one request.
const REQUEST_BYTES: usize = 2 * PART_BYTES;

/// Fetches everything that is wanted.
pub async fn fetch(settings: &Settings, assignment: &Assignment, intake: Intake) -> Result<(), WorkerError> {
    if intake.wanted().is_empty() {
        return Ok(());
    }
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        let client = dial(settings, settings.join_timeout, Purpose::Weights).await?;
        streams.spawn(Stream { client, epoch: assignment.epoch, intake: intake.clone() }.run());
    }
    drop(intake);
    // The first error ends the others, as they are dropped.
    while let Some(ended) = streams.join_next().await {
        ended.expect("a stream does not panic")?;
    }
    Ok(())
}

struct Stream {
    client: Client,
    epoch: Epoch,
    intake: Intake,
}

impl Stream {
    /// Request after request, until nothing is left.
    async fn run(mut self) -> Result<(), WorkerError> {
        let mut retries = 0;
        loop {
            let mut parts = Parts::new(self.intake.wanted().take(REQUEST_BYTES));
            if parts.is_empty() {
                return Ok(());
            }
            let before = parts.bytes_left();
            let Err(error) = self.request(&mut parts).await else {
                retries = 0;
                continue;
            };
            retries = if parts.bytes_left() < before { 0 } else { retries + 1 };
            self.intake.wanted().put_back(parts.left);
            let may_pass = matches!(error, WorkerError::LinkBroke(_) | WorkerError::Unreadable(_));
            if retries > RETRIES_MAX || !may_pass {
                return Err(error);
            }
            warn!(%error, "a stream of weights broke, going on");
            tokio::time::sleep(RETRY_PAUSE * retries).await;
        }
    }

    /// One request; `parts` loses what came.
    async fn request(&mut self, parts: &mut Parts) -> Result<(), WorkerError> {
        let request = parts.request(self.epoch, None, &self.intake.slices);
        let mut stream = self.client.fetch(request).await?.into_inner();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            let (extent, expected) = parts.next(&chunk)?;
            let found = Digest::of(&chunk.data);
            if found != expected {
                warn!(
                    slice = extent.slice,
                    offset = extent.bytes.start,
                    "a chunk came damaged, asking for it again"
                );
                self.intake.wanted().put_back_damaged(extent, expected, found)?;
                continue;
            }
            self.intake.take(&extent, chunk.data, Some(found)).await?;
        }
        match parts.is_empty() {
            true => Ok(()),
            false => Err(WorkerError::LinkBroke(format!("{} bytes short", parts.bytes_left()))),
        }
    }
}
