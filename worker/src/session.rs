//! A worker's life: it joins, is a member of one group after the other, and keeps its weights from each to the next;
//! when the coordinator is lost it keeps them too, and joins whoever answers there next. Only ever one conversation
//! is open, and only what is said in it is obeyed: two coordinators never command one worker.

use crate::device::Device;
use crate::error::WorkerError;
use crate::handing::Handing;
use crate::link::{Link, Order, unexpected};
use crate::measuring::measure_link;
use crate::member::{Member, Parted};
use crate::settings::Settings;
use crate::standing::Standing;
use crate::stock::Stock;
use flotilla_shared::{Epoch, Held};
use std::net::TcpListener;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// For last words to leave before the process does.
const PARTING: Duration = Duration::from_millis(100);
const REJOIN_PAUSE: Duration = Duration::from_millis(300);

/// Joins, loads and executes steps until it is told to stop, or the coordinator is gone for good, or refuses this
/// worker.
pub async fn run(settings: Settings, stop: impl Future<Output = ()>) -> Result<(), WorkerError> {
    tokio::pin!(stop);
    let listener = TcpListener::bind(settings.collective_listen)
        .map_err(|error| WorkerError::Listen { address: settings.collective_listen, error })?;
    let handing = Handing::start(&settings).await?;
    let mut stock = None;
    let mut patience = settings.join_timeout;
    loop {
        let held = stock.as_ref().map(|stock: &Stock| stock.held.clone());
        let mut link = tokio::select! {
            link = join(&settings, &listener, &handing, held, patience) => link?,
            () = &mut stop => return Ok(()),
        };
        info!(coordinator = settings.coordinator, "joined the coordinator");
        settings.standing.is(Standing::Joined);
        let says = link.says.clone();
        let mut session = Session { settings: &settings, listener: &listener, handing: &handing, stock };
        let error = tokio::select! {
            error = session.converse(&mut link) => error,
            // A step may be under way; the others need not wait for its end to hear of this one's.
            () = &mut stop => {
                info!("told to stop, leaving the coordinator");
                says.leaving("it was told to stop");
                tokio::time::sleep(PARTING).await;
                return Ok(());
            }
        };
        stock = session.stock;
        settings.standing.is(Standing::Alone);
        if !error.is_of_the_link() {
            tokio::time::sleep(PARTING).await;
            return Err(error);
        }
        if settings.rejoin_timeout.is_zero() {
            info!(%error, "the conversation is over");
            return Ok(());
        }
        warn!(%error, keeps_weights = stock.is_some(), "the coordinator is lost, trying to join it again");
        patience = settings.rejoin_timeout;
    }
}

/// Tries for as long as `patience`: a coordinator that is just starting, or ending, may answer and be gone.
async fn join(
    settings: &Settings,
    listener: &TcpListener,
    handing: &Handing,
    held: Option<Held>,
    patience: Duration,
) -> Result<Link, WorkerError> {
    let start = Instant::now();
    loop {
        let left = patience.saturating_sub(start.elapsed());
        match Link::join(settings, listener, handing.door.clone(), held.clone(), left).await {
            Err(error) if error.is_of_the_link() && start.elapsed() < patience => {
                warn!(%error, "the coordinator did not let this worker join, trying again");
                tokio::time::sleep(REJOIN_PAUSE).await;
            }
            joined => return joined,
        }
    }
}

struct Session<'a> {
    settings: &'a Settings,
    listener: &'a TcpListener,
    handing: &'a Handing,
    stock: Option<Stock>,
}

impl Session<'_> {
    /// One group after the other; says why there is no other.
    async fn converse(&mut self, link: &mut Link) -> WorkerError {
        loop {
            if let Err(error) = self.join_a_group(link).await {
                return error;
            }
        }
    }

    /// Or gets its weights for one to come, or measures a link, if that is what it is told.
    async fn join_a_group(&mut self, link: &mut Link) -> Result<(), WorkerError> {
        let (assignment, only_prepares) = match link.order().await? {
            Order::Assign(assignment) => (assignment, false),
            Order::Prepare(assignment) => (assignment, true),
            Order::Measure(test) => return measure_link(link, self.listener, test).await,
            Order::Meet(_) => return Err(unexpected("Meet before Assignment")),
            Order::Step(_) => return Err(unexpected("Step before Assignment")),
            Order::Dissolve(_) => return Err(unexpected("Dissolve before Assignment")),
        };
        let epoch = assignment.epoch;
        let ranks = assignment.plan.rank_count();
        info!(rank = %assignment.rank, ranks, %epoch, only_prepares, "assigned");
        self.settings.standing.is(Standing::Forming);
        let (settings, listener, handing) = (self.settings, self.listener, self.handing);
        let member = Member { settings, listener, handing, assignment };
        let stock = self.stock.take();
        let (parted, stock) = match only_prepares {
            true => member.prepare(link, stock).await,
            false => member.serve(link, stock).await,
        };
        if stock.is_none() {
            // Whatever others still read would hold the memory.
            handing.shelf.clear();
        }
        self.stock = stock;
        match parted {
            Parted::Dissolved => {}
            Parted::Failed(error) => {
                warn!(%error, %epoch, "this worker cannot go on in its group");
                link.says.failed(epoch, &error);
                expect_usable(&self.settings.device)?;
                until_dissolved(link, epoch).await?;
            }
            Parted::LinkLost(error) => return Err(error),
        }
        info!(%epoch, keeps_weights = self.stock.is_some(), "the group is over");
        link.says.released(epoch, self.stock.as_ref().map(|stock| &stock.held));
        self.settings.standing.is(Standing::Joined);
        Ok(())
    }
}

/// Some errors are a card's last in this process, however often it joins a group again: each try would cost the others one.
fn expect_usable(device: &Device) -> Result<(), WorkerError> {
    let Device::Card(card) = device else { return Ok(()) };
    // The first call may only say what went wrong before.
    let asked = card.card.synchronize().or_else(|_| card.card.synchronize());
    asked.map_err(WorkerError::CardIsLost)
}

/// Steps may still come that were sent before the coordinator knew.
async fn until_dissolved(link: &mut Link, epoch: Epoch) -> Result<(), WorkerError> {
    loop {
        match link.order().await? {
            Order::Step(_) => {}
            Order::Dissolve(dissolved) if dissolved == epoch => return Ok(()),
            Order::Dissolve(_) => return Err(unexpected("Dissolve of another epoch")),
            Order::Assign(_) | Order::Prepare(_) => {
                return Err(unexpected("Assignment before Dissolve"));
            }
            Order::Meet(_) => return Err(unexpected("Meet of a worker that failed")),
            Order::Measure(_) => return Err(unexpected("LinkTest before Dissolve")),
        }
    }
}
