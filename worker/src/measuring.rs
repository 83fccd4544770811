//! A worker that is in no group finds out what a link does: it meets the other end as ranks meet, and sums with it.

use crate::error::WorkerError;
use crate::link::{Link, unexpected};
use flotilla_engine::collective::{CollectiveError, Peers, ProcessCollective, Stop, measure};
use flotilla_shared::{LinkRate, LinkTest};
use std::net::TcpListener;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tracing::info;

/// For the other end to be met, and for each sum.
const DEADLINE: Duration = Duration::from_secs(5);

/// Carries the test out and says what came of it; an error is one of the conversation.
pub async fn measure_link(
    link: &mut Link,
    listener: &TcpListener,
    test: LinkTest,
) -> Result<(), WorkerError> {
    let (epoch, stop) = (test.epoch, Stop::default());
    let stopped = stop.clone();
    let listener = listener.try_clone();
    let mut found = spawn_blocking(move || meet(&stopped, listener?, &test).map_err(std::io::Error::other));
    let found = tokio::select! {
        found = &mut found => found,
        order = link.order() => {
            stop.stop();
            let _ = found.await;
            return order.and(Err(unexpected("an order while a link is measured")));
        }
    };
    let found = found.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
    match &found {
        Ok(rate) => {
            info!(latency_us = 1e6 * rate.latency_s, bytes_per_second = rate.bytes_per_s, "link measured")
        }
        Err(error) => info!(%error, "the link was not measured"),
    }
    link.says.measured(epoch, found.map_err(|error| error.to_string()));
    Ok(())
}

fn meet(stop: &Stop, listener: TcpListener, test: &LinkTest) -> Result<LinkRate, CollectiveError> {
    let LinkTest { epoch, rank, peers, links, key } = test;
    let peers = Peers { addresses: peers, stages: &[2] };
    let mut pair = ProcessCollective::connect_unless(stop, *rank, listener, peers, key, *epoch, DEADLINE)?;
    pair.link(links)?;
    measure::link(&mut pair)
}
