//! Groups, one after the other: formed of whoever has joined, served until lost, formed again.

use crate::progress::show_progress;
use flotilla_coordinator::driver::{DriverHandle, FleetHandle};
use flotilla_coordinator::fleet::{Fleet, FormError, Formation, Progress, RemoteGroup};
use flotilla_shared::Epoch;
use tokio::sync::watch;
use tracing::warn;

/// Forms a group, and another one whenever it is lost; returns only what no new worker can mend.
pub async fn keep_formed(
    mut fleet: Fleet,
    formation: Formation,
    groups: FleetHandle<RemoteGroup>,
    mut driver: DriverHandle,
    on_ready: impl FnOnce(),
    on_lost: impl Fn(),
) -> FormError {
    let mut on_ready = Some(on_ready);
    let mut epoch = Epoch(0);
    loop {
        epoch.0 += 1;
        let (progress, seen) = watch::channel(Progress::Waiting { joined: 0, wanted: formation.ranks });
        let formed = tokio::select! {
            formed = fleet.form(epoch, &formation, &progress) => formed,
            never = show_progress(seen, &groups, &formation.board) => match never {},
        };
        let loss = match formed {
            Ok(group) => {
                let loss = group.loss();
                groups.formed(epoch, formation.kv_blocks, group);
                loss
            }
            Err(FormError::Worker { rank, name, reason }) => {
                warn!(%rank, name, reason, "a worker failed while the group was forming, waiting for others");
                continue;
            }
            // After a loss, other workers may come that are large enough.
            Err(error) if epoch.0 > 1 => {
                warn!(%error, "no group can be formed of these workers, waiting for others");
                continue;
            }
            Err(error) => return error,
        };
        tokio::pin!(loss);
        let error = tokio::select! {
            error = &mut loss => error,
            () = driver.ready() => {
                if let Some(on_ready) = on_ready.take() {
                    on_ready();
                }
                // However a group ends, its links close and its workers leave; in a step the driver
                // hears of it first, between steps nobody asks the workers anything.
                loss.await
            }
        };
        groups.lost(epoch, error);
        on_lost();
    }
}
