//! Groups, one after the other: formed of whoever has joined, served until lost or outgrown, formed again.

use crate::progress::show_progress;
use flotilla_coordinator::driver::{DriverHandle, FleetHandle};
use flotilla_coordinator::fleet::{Fleet, FormError, Formation, Progress, RemoteGroup};
use flotilla_coordinator::group::GroupError;
use flotilla_shared::Epoch;
use flotilla_trust::audit::{self, Act};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};

/// Between two groups that did not come to be.
const FORM_PAUSE: Duration = Duration::from_millis(200);

/// Forms a group, and another one whenever it is lost; returns only what no new worker can mend. `on_lost` is told the
/// name of the worker that was lost, if one was.
pub async fn keep_formed(
    fleet: Fleet,
    formation: Formation,
    groups: FleetHandle<RemoteGroup>,
    mut driver: DriverHandle,
    on_ready: impl FnOnce(),
    on_lost: impl Fn(Option<&str>),
) -> FormError {
    let mut on_ready = Some(on_ready);
    let mut epoch = Epoch(0);
    let mut lost_at: Option<Instant> = None;
    loop {
        epoch.0 += 1;
        let (progress, seen) = watch::channel(Progress::Waiting { joined: 0, wanted: formation.ranks });
        let formed = tokio::select! {
            formed = fleet.form(epoch, &formation, &progress) => formed,
            never = show_progress(seen, &groups, &formation.board) => match never {},
        };
        let group = match formed {
            Ok(group) => group,
            Err(FormError::Worker { rank, name, reason }) => {
                warn!(%rank, name, reason, "a worker failed while the group was forming, trying again");
                tokio::time::sleep(FORM_PAUSE).await;
                continue;
            }
            Err(error) => return error,
        };
        if let Some(lost_at) = lost_at.take() {
            let seconds = lost_at.elapsed().as_secs_f64();
            info!(%epoch, ranks = group.plan().rank_count(), seconds, "a group stands again");
            formation.board.reformed(lost_at.elapsed());
        }
        let (loss, ranks) = (group.loss(), group.plan().rank_count());
        audit::done(Act::FormGroup, epoch_name(epoch), format!("of {}", group.names().join(", ")));
        groups.formed(epoch, formation.kv_blocks, group);
        tokio::pin!(loss);
        let ready = async {
            driver.ready().await;
            if let Some(on_ready) = on_ready.take() {
                on_ready();
            }
            std::future::pending::<()>().await
        };
        let lost = tokio::select! {
            // In a step the driver hears of it first, between steps nobody asks the workers anything.
            lost = &mut loss => lost,
            () = fleet.grown(&formation, ranks) => Some((GroupError::Outgrown, String::new())),
            () = ready => None,
        };
        lost_at = Some(Instant::now());
        let name = lost.as_ref().map(|(_, name)| name.as_str()).filter(|name| !name.is_empty());
        on_lost(name);
        let why = lost.as_ref().map_or_else(|| "it was given up".to_owned(), |(error, _)| error.to_string());
        audit::done(Act::DissolveGroup, epoch_name(epoch), why);
        if let Some((error, _)) = lost {
            groups.lost(epoch, error);
        }
    }
}

fn epoch_name(epoch: Epoch) -> String {
    format!("epoch {epoch}")
}
