//! One worker in one epoch of a group: it gets its weights, meets the other ranks once all have theirs, executes steps,
//! and gives its weights back, however that ended.

use crate::device::{Device, again_on_cpu, on_card, on_cpu};
use crate::engine_thread::{EngineThread, NotBuilt};
use crate::error::WorkerError;
use crate::handing::{Handing, Shelf};
use crate::link::{Link, Order, unexpected};
use crate::obtain::obtain;
use crate::settings::Settings;
use crate::standing::Standing;
use crate::stock::{OnDevice, Stock, alone};
use flotilla_engine::backend::cuda::CudaWeights;
use flotilla_engine::collective::{CollectiveError, Peers, ProcessCollective, Stop};
use flotilla_shared::step::steps_ahead_max;
use flotilla_shared::{Assignment, Epoch, Reach};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;
use tracing::{info, warn};

/// The longest step that is waited for when the group is over.
const END_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Member<'a> {
    pub settings: &'a Settings,
    pub listener: &'a TcpListener,
    pub handing: &'a Handing,
    pub assignment: Box<Assignment>,
}

/// How a membership ended.
pub enum Parted {
    /// By order.
    Dissolved,
    /// By a fault, here or elsewhere in the group.
    Failed(WorkerError),
    /// There is nobody to obey, or nothing to obey with.
    LinkLost(WorkerError),
}

impl Parted {
    /// What is left of the group's life after this order, which is none that a member expects.
    fn by(order: Result<Order, WorkerError>, epoch: Epoch) -> Parted {
        match order {
            Ok(Order::Dissolve(dissolved)) if dissolved == epoch => Parted::Dissolved,
            Ok(Order::Dissolve(_)) => Parted::LinkLost(unexpected("Dissolve of another epoch")),
            Ok(Order::Assign(_) | Order::Prepare(_)) => Parted::LinkLost(unexpected("a second Assignment")),
            Ok(Order::Measure(_)) => Parted::LinkLost(unexpected("a LinkTest of a member")),
            Ok(Order::Meet(_)) => Parted::LinkLost(unexpected("a Meet that this worker does not wait for")),
            Ok(Order::Step(_)) => Parted::LinkLost(unexpected("a Step before this worker was ready")),
            Err(error) => Parted::LinkLost(error),
        }
    }
}

impl Member<'_> {
    /// Until the group is over; gives back the weights that can be kept.
    pub async fn serve(self, link: &mut Link, stock: Option<Stock>) -> (Parted, Option<Stock>) {
        let (assignment, standing) = (self.assignment.clone(), self.settings.standing.clone());
        let (epoch, steps_max) = (assignment.epoch, steps_ahead_max(assignment.plan.stages.len()));
        let stop = Stop::default();
        let (weights, parted) = self.weights(link, stock, &stop).await;
        let weights = match weights {
            Ok(weights) => weights,
            Err((error, left)) => {
                let left = left.map(|left| Stock::of(&assignment, *left));
                return (parted.unwrap_or(Parted::Failed(error)), left);
            }
        };
        let parted = match parted {
            None => told_to_meet(link, epoch, &stop).await,
            parted => parted,
        };
        // One that is stopped meets nobody, and gives its weights back.
        let build = self.build(weights, stop.clone());
        let (built, parted) = match parted {
            None => unless_ordered(link, epoch, &stop, build).await,
            parted => (build.await, parted),
        };
        let (parted, left) = match (built, parted) {
            (Ok((engine, _)), Some(parted)) => end(engine, parted).await,
            (Ok((engine, reach)), None) => {
                standing.is(Standing::Serving);
                run(link, (epoch, steps_max), engine, &reach, &stop).await
            }
            (Err((_, left)), Some(parted)) => (parted, left.map(|left| *left)),
            (Err((error, left)), None) => (Parted::Failed(error), left.map(|left| *left)),
        };
        (parted, left.map(|on| Stock::of(&assignment, on)))
    }

    /// Gets the weights of a part in a group to come, and keeps them; until the coordinator lets it go.
    pub async fn prepare(self, link: &mut Link, stock: Option<Stock>) -> (Parted, Option<Stock>) {
        let epoch = self.assignment.epoch;
        let shelf = self.handing.shelf.clone();
        let (parted, left) = match self.weights(link, stock, &Stop::default()).await {
            (Ok(weights), None) => {
                link.says.ready(epoch, &Reach::default());
                info!(%epoch, "prepared for a group to come");
                let parted = Parted::by(link.order().await, epoch);
                (parted, Some(whole(shelf, weights).await))
            }
            (Ok(weights), Some(parted)) => (parted, Some(whole(shelf, weights).await)),
            (Err((error, left)), parted) => (parted.unwrap_or(Parted::Failed(error)), left.map(|left| *left)),
        };
        (parted, left.map(|on| Stock::of(&self.assignment, on)))
    }

    /// Those of its part, however an order that comes meanwhile has it part.
    async fn weights(
        &self,
        link: &mut Link,
        stock: Option<Stock>,
        stop: &Stop,
    ) -> (Result<OnDevice, NotBuilt>, Option<Parted>) {
        let (says, epoch) = (link.says.clone(), self.assignment.epoch);
        let tell = move |loading| says.loading(loading);
        let obtain = obtain(self.settings, self.handing, &self.assignment, stock, stop, tell);
        unless_ordered(link, epoch, stop, obtain).await
    }

    /// An engine over its weights that has met the others.
    async fn build(self, weights: OnDevice, stop: Stop) -> Result<(EngineThread, Reach), NotBuilt> {
        let Member { settings, listener, handing, assignment } = self;
        let (device, deadline) = (settings.device.clone(), settings.collective_timeout);
        let listener = match listener.try_clone() {
            Ok(listener) => listener,
            Err(error) => {
                return Err((
                    WorkerError::Listen { address: settings.collective_listen, error },
                    Some(weights.into()),
                ));
            }
        };
        let (reached, on_reached) = std::sync::mpsc::channel();
        let meeting =
            Meeting { assignment: assignment.clone(), listener, stop: stop.clone(), deadline, reached };
        let shelf = handing.shelf.clone();
        let built = match (device, weights) {
            (Device::Cpu(cpu), weights) => {
                EngineThread::start(move || match meeting.meet() {
                    Ok(group) => {
                        let executor = match weights {
                            OnDevice::Loaded(weights) => {
                                // They are put in another order, in place.
                                shelf.lift();
                                on_cpu(&cpu, &assignment, alone(weights), group)
                            }
                            OnDevice::Cpu(weights) => again_on_cpu(&cpu, &assignment, weights, group),
                            OnDevice::Card(_) | OnDevice::Pieces(_) => {
                                unreachable!("what was obtained is whole, and here")
                            }
                        };
                        shelf.lay(executor.backend().weights());
                        Ok(executor)
                    }
                    Err(error) => {
                        // Nothing is lent any more.
                        if let OnDevice::Loaded(weights) = &weights {
                            shelf.lay(weights.clone());
                        }
                        Err((error.into(), Some(weights.into())))
                    }
                })
                .await?
            }
            (Device::Card(card), OnDevice::Card(weights)) => {
                EngineThread::start(move || match meeting.meet() {
                    Ok(group) => {
                        // Nothing lies aside any more.
                        hand_on(&shelf, &weights);
                        let executor = on_card(&card, &assignment, *weights, group, deadline);
                        let executor = executor.map_err(|error| {
                            shelf.put_away();
                            (error.into(), None)
                        })?;
                        stop.watch_over(executor.abort_handle());
                        Ok(executor)
                    }
                    Err(error) => {
                        hand_on(&shelf, &weights);
                        Err((error.into(), Some(OnDevice::Card(weights).into())))
                    }
                })
                .await?
            }
            (Device::Card(_), _) => unreachable!("a worker has one device"),
        };
        // An engine that was built is linked.
        Ok((built, on_reached.try_recv().unwrap_or_default()))
    }
}

/// Weights that nobody computes with yet: others have what lies on a card from there, and nothing lies aside any more.
async fn whole(shelf: Shelf, weights: OnDevice) -> OnDevice {
    let handed_on = move || {
        if let OnDevice::Card(card) = &weights {
            hand_on(&shelf, card);
        }
        weights
    };
    tokio::task::spawn_blocking(handed_on).await.expect("asking for a reader does not panic")
}

/// What a card has, from its own memory.
fn hand_on(shelf: &Shelf, weights: &CudaWeights) {
    match weights.reader() {
        Ok(reader) => shelf.lay(Arc::new(reader)),
        Err(error) => {
            warn!(%error, "this card's weights are not handed on");
            shelf.put_away();
        }
    }
}

/// Carries `work` out, or to the end that it takes when it is stopped, by an order that comes before it is done: whoever leaves
/// while this worker loads ends its part too, and it must not wait for peers in vain.
async fn unless_ordered<T>(
    link: &mut Link,
    epoch: Epoch,
    stop: &Stop,
    work: impl Future<Output = T>,
) -> (T, Option<Parted>) {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => (done, None),
        order = link.order() => {
            stop.stop();
            (work.await, Some(Parted::by(order, epoch)))
        }
    }
}

/// Says that the weights are here, and waits until all ranks have theirs: a meeting has a deadline, which a load that is slow would
/// miss. How it parts, if it is told so, or something else, instead.
async fn told_to_meet(link: &mut Link, epoch: Epoch, stop: &Stop) -> Option<Parted> {
    link.says.loaded(epoch);
    match link.order().await {
        Ok(Order::Meet(of)) if of == epoch => None,
        order => {
            stop.stop();
            Some(Parted::by(order, epoch))
        }
    }
}

/// What it takes to meet the other ranks, on the engine's thread.
struct Meeting {
    assignment: Box<Assignment>,
    listener: TcpListener,
    stop: Stop,
    deadline: Duration,
    reached: Sender<Reach>,
}

impl Meeting {
    fn meet(self) -> Result<ProcessCollective, CollectiveError> {
        let Assignment { rank, epoch, peers, group_key, links, .. } = &*self.assignment;
        let (stop, listener, deadline) = (&self.stop, self.listener, self.deadline);
        let peers = Peers { addresses: peers, stages: &self.assignment.plan.stage_sizes() };
        let mut group =
            ProcessCollective::connect_unless(stop, *rank, listener, peers, group_key, *epoch, deadline)?;
        let _ = self.reached.send(group.link(links)?);
        Ok(group)
    }
}

/// Steps go to the engine as they come, and outcomes back as they are done.
async fn run(
    link: &mut Link,
    (epoch, steps_max): (Epoch, usize),
    mut engine: EngineThread,
    reach: &Reach,
    stop: &Stop,
) -> (Parted, Option<OnDevice>) {
    link.says.ready(epoch, reach);
    match &reach.not_shared {
        Some(reason) => warn!(reason, "this host's workers share no memory, they talk by TCP"),
        None => info!(by_memory = reach.by_memory.len(), "linked"),
    }
    info!(%epoch, "ready");
    let parted = execute_steps(link, epoch, steps_max, &mut engine).await;
    // A step may wait for a rank that is gone.
    stop.stop();
    end(engine, parted).await
}

/// A thread that does not end holds its memory and its device: the process must.
async fn end(engine: EngineThread, parted: Parted) -> (Parted, Option<OnDevice>) {
    match tokio::time::timeout(END_TIMEOUT, engine.end()).await {
        Ok(left) => (parted, left),
        Err(_) => (Parted::LinkLost(WorkerError::EngineHangs(END_TIMEOUT)), None),
    }
}

async fn execute_steps(link: &mut Link, epoch: Epoch, steps_max: usize, engine: &mut EngineThread) -> Parted {
    let mut in_flight = 0;
    loop {
        tokio::select! {
            order = link.order() => match order {
                Ok(Order::Step(_)) if in_flight == steps_max => {
                    return Parted::LinkLost(unexpected(&format!("a Step while {in_flight} are not answered")));
                }
                Ok(Order::Step(plan)) => {
                    in_flight += 1;
                    engine.submit(plan);
                }
                order => return Parted::by(order, epoch),
            },
            outcome = engine.outcome() => {
                in_flight -= 1;
                match outcome {
                    Some(Ok(outcome)) => link.says.outcome(outcome),
                    Some(Err(error)) => return Parted::Failed(error.into()),
                    None => return Parted::Failed(WorkerError::EngineGone),
                }
            }
        }
    }
}
