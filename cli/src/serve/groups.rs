//! The groups of one replica, one after the other: formed of whoever has joined, served until lost or outgrown, formed
//! again.

use crate::progress::show_progress;
use flotilla_coordinator::driver::{DriverHandle, FleetHandle};
use flotilla_coordinator::fleet::{
    After, Fleet, FormError, FormFailure, Formation, Growing, Progress, RemoteGroup,
};
use flotilla_coordinator::group::GroupError;
use flotilla_shared::{Epoch, Plan};
use flotilla_trust::audit::{self, Act};
use std::cell::Cell;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};

/// Between two groups that did not come to be.
const FORM_PAUSE: Duration = Duration::from_millis(200);

/// One replica: what it is formed by, and who is told.
pub struct Replica<'a> {
    pub fleet: &'a Fleet,
    pub formation: Formation,
    pub groups: FleetHandle<RemoteGroup>,
    pub driver: DriverHandle,
    /// Workers from which the group that stands was chosen; 0 while none does.
    pub considered: watch::Sender<usize>,
    /// It was not asked for: nobody waits for its workers.
    pub is_more: bool,
    /// Whether a group of any replica has stood.
    pub has_served: &'a Cell<bool>,
    /// Its group ended for a larger one, which does not stand yet.
    pub growing: Option<Growing>,
}

impl Replica<'_> {
    /// Forms a group, and another one whenever it is lost; returns what no new worker can mend, or nothing once the
    /// replica was dissolved. `on_lost` is told the name of the worker that was lost, if one was.
    pub async fn keep_formed(
        mut self,
        on_ready: impl Fn(&Plan),
        on_lost: impl Fn(Option<&str>),
    ) -> Option<FormError> {
        let mut lost_at: Option<Instant> = None;
        while !self.driver.is_dissolved() {
            let after = match &self.growing {
                Some(growing) => After::Growth(growing),
                None if lost_at.is_some() => After::Loss,
                None if self.is_more => After::OthersUnasked,
                None if self.has_served.get() => After::Others,
                None => After::Nothing,
            };
            let group = match self.form(after).await {
                Ok(group) => group,
                Err(FormError::Worker { rank, name, reason, failure }) => {
                    warn!(%rank, name, reason, "a worker failed while the group was forming, trying again");
                    self.formation.board.form_failed(failure);
                    if failure == FormFailure::WorkerGone {
                        on_lost(Some(&name));
                    }
                    tokio::time::sleep(FORM_PAUSE).await;
                    continue;
                }
                // Another replica stands since this one began to wait: no newcomer may end that. It is told by who waits on.
                Err(FormError::Plan(_)) if self.has_served.get() => continue,
                Err(error) => return Some(error),
            };
            self.has_served.set(true);
            if let Some(lost_at) = lost_at {
                let (epoch, ranks) = (group.epoch(), group.plan().rank_count());
                let seconds = lost_at.elapsed().as_secs_f64();
                info!(%epoch, ranks, seconds, "a group stands again");
                self.formation.board.reformed(lost_at.elapsed());
            }
            self.growing = None;
            let stood_at = Instant::now();
            let lost = self.serve(group, &on_ready).await;
            lost_at = Some(Instant::now());
            on_lost(lost.as_deref());
            if stood_at.elapsed() < FORM_PAUSE {
                // One that ends as soon as it stands would end again.
                tokio::time::sleep(FORM_PAUSE).await;
            }
        }
        self.formation.board.gone();
        None
    }

    async fn form(&self, after: After<'_>) -> Result<RemoteGroup, FormError> {
        let epoch = self.fleet.next_epoch();
        let (progress, seen) = watch::channel(Progress::Waiting { joined: 0, wanted: self.formation.ranks });
        tokio::select! {
            formed = self.fleet.form(epoch, &self.formation, after, &progress) => formed,
            never = show_progress(seen, &self.groups, &self.formation.board) => match never {},
            () = self.groups.stopped() => Err(FormError::DriverGone),
        }
    }

    /// Until the group is lost or outgrown; says which worker is to blame, if one is.
    async fn serve(&mut self, group: RemoteGroup, on_ready: impl Fn(&Plan)) -> Option<String> {
        let (loss, epoch) = (group.loss(), group.epoch());
        let (considered, plan, members) = (group.considered(), group.plan().clone(), group.members());
        audit::done(Act::FormGroup, epoch_name(epoch), format!("of {}", group.names().join(", ")));
        self.groups.formed(epoch, self.formation.kv_blocks, group);
        self.considered.send_replace(considered);
        let mut driver = self.driver.clone();
        let ready = async {
            driver.ready().await;
            on_ready(&plan);
            std::future::pending::<()>().await
        };
        let lost = tokio::select! {
            // In a step the driver hears of it first, between steps nobody asks the workers anything.
            lost = loss => lost,
            growing = self.fleet.grown(&self.formation, &members, &self.considered) => {
                self.growing = Some(growing);
                Some((GroupError::Outgrown, None))
            }
            () = self.driver.dissolved() => Some((GroupError::Dissolved, None)),
            () = ready => None,
            // Then no other group is formed.
            () = self.groups.stopped() => None,
        };
        self.considered.send_replace(0);
        let why = lost.as_ref().map_or_else(|| "it was given up".to_owned(), |(error, _)| error.to_string());
        audit::done(Act::DissolveGroup, epoch_name(epoch), why);
        let (error, name) = lost?;
        self.groups.lost(epoch, error);
        // Only then are its workers on their way home, and waited for by whoever forms the next.
        tokio::select! {
            () = self.driver.lost() => {}
            () = self.groups.stopped() => {}
        }
        name
    }
}

fn epoch_name(epoch: Epoch) -> String {
    format!("epoch {epoch}")
}
