//! Sums and gathers over the ranks of a group. Sums are in f32, in rank order, so that every rank
//! holds the same bits, from run to run.
//!
//! Three ways to reach the others: none ([`Solo`]), threads of one process ([`threads`]), and processes, by
//! memory and by TCP ([`ProcessCollective`]). A rank whose values are in a card's memory has a
//! [`CardCollective`] around one of them. Where a model is cut into stages too, a group is the ranks of one stage, and
//! its neighbours are reached by the same ways ([`stages`]). After an error a group is of no more use: every later operation repeats it, and
//! the other ranks' operations end with errors too, in bounded time.

mod agree;
pub mod card;
mod error;
pub mod measure;
mod memory;
mod processes;
mod solo;
mod stages;
pub mod threads;
mod timed;

pub use card::CardCollective;
pub use error::{CollectiveError, Operation};
pub use memory::host;
pub use processes::{Peers, ProcessCollective};
pub use solo::Solo;
pub use threads::ThreadsCollective;
pub use timed::{Spent, Timed};

use flotilla_shared::Rank;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[cfg(any(test, fuzzing))]
pub(crate) use processes::fuzz_frame;

/// Sums activations over the ranks where a backend keeps them, and passes them from stage to stage. Every rank of
/// a group calls the same operations in the same order.
pub trait AllReduce<Activations: ?Sized>: Send {
    /// Whether a sum is done when its call returns, so that the call's time is its own. A card's is only started then.
    fn sums_end_with_their_call(&self) -> bool {
        true
    }

    /// x: f32 [n], the rank's partial sum in, the whole sum out: ((x₀ + x₁) + x₂) + … on every rank.
    fn all_reduce(&mut self, x: &mut Activations) -> Result<(), CollectiveError>;

    /// Returns once all sums that were started are done, or with an error when they will never be.
    fn settle(&mut self) -> Result<(), CollectiveError> {
        Ok(())
    }

    /// x: f32 [n], whole, to the next stage. Returns once it is on its way.
    fn hand_on(&mut self, _x: &mut Activations) -> Result<(), CollectiveError> {
        stages::is_alone()
    }

    /// x: f32 [n], whole, from the stage before, which hands on as much.
    fn take_over(&mut self, _x: &mut Activations) -> Result<(), CollectiveError> {
        stages::is_alone()
    }
}

/// What a rank needs of the others besides sums: bytes in the host's memory, and an end in bounded time.
pub trait Collective: AllReduce<[f32]> {
    fn rank(&self) -> Rank;

    /// Ranks that it sums with, and itself: those of its stage.
    fn size(&self) -> usize;

    /// Its place among them; they are numbered one after the other.
    fn place(&self) -> usize {
        self.rank().index()
    }

    /// Who is at a place among them.
    fn member(&self, place: usize) -> Rank {
        Rank((self.rank().index() - self.place() + place) as u16)
    }

    /// From the last of several stages to the first: a step's tokens, as the caller writes them. Does not wait for
    /// anybody.
    fn tell(&mut self, _tokens: &[u8]) -> Result<(), CollectiveError> {
        stages::is_alone()
    }

    /// On the first of several stages: what the last told next, into `out`; whether it has. With `wait`, waits
    /// for it.
    fn hear(&mut self, _wait: bool, _out: &mut Vec<u8>) -> Result<bool, CollectiveError> {
        stages::is_alone()
    }

    /// Every rank's bytes, in rank order, behind each other in `out`. Lengths may differ by rank.
    fn all_gather(&mut self, mine: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError>;

    /// Returns on every rank once all have called it.
    fn barrier(&mut self) -> Result<(), CollectiveError>;

    /// How long an operation may take from now on, where the others of a group are waited for within a deadline. Gives back
    /// how long it was before.
    fn change_deadline(&mut self, _deadline: Duration) -> Option<Duration> {
        None
    }

    /// Whether a rank has left the group or ended it, as far as can be seen without waiting. The next
    /// operation says which rank, and why.
    fn is_broken(&mut self) -> bool {
        false
    }

    /// Ends the group because of something that went wrong beside this collective: later operations of
    /// this rank return `error`, and those of the others one that names whom this one blames.
    fn end(&mut self, error: CollectiveError);

    /// Ends the group from another thread: this rank's operation, waiting or next, returns
    /// [`CollectiveError::Aborted`], and those of the other ranks an error that names this one.
    fn abort_handle(&self) -> AbortHandle;
}

/// See [`Collective::abort_handle`]. Outlives its collective; aborting twice is aborting once.
#[derive(Clone)]
pub struct AbortHandle(Arc<dyn Fn() + Send + Sync>);

impl AbortHandle {
    fn new(abort: impl Fn() + Send + Sync + 'static) -> Self {
        AbortHandle(Arc::new(abort))
    }

    pub fn abort(&self) {
        (self.0)();
    }
}

/// Ends a group at any moment of its life, from another thread: while its ranks still meet, and later through the
/// [`AbortHandle`] that it is given then. Cheap to clone.
#[derive(Clone, Default)]
pub struct Stop(Arc<StopState>);

#[derive(Default)]
struct StopState {
    asked: AtomicBool,
    group: Mutex<Option<AbortHandle>>,
}

impl Stop {
    pub fn stop(&self) {
        self.0.asked.store(true, Ordering::SeqCst);
        if let Some(group) = self.group().as_ref() {
            group.abort();
        }
    }

    pub fn is_asked(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// From now on stopping aborts this group, which may be at once.
    pub fn watch_over(&self, group: AbortHandle) {
        let mut held = self.group();
        if self.is_asked() {
            group.abort();
        }
        *held = Some(group);
    }

    fn group(&self) -> MutexGuard<'_, Option<AbortHandle>> {
        self.0.group.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long an operation spins before it blocks. A peer that computes the same layer is at most this
/// far away, and waking a blocked thread costs as much again.
const SPIN: Duration = Duration::from_micros(30);

/// Elements summed at once, so that the sum stays in registers and the first-level cache.
const SUM_BLOCK: usize = 512;

/// `out` becomes ((part(0) + part(1)) + part(2)) + …, each part as long as `out`; the one place where
/// ranks are summed. `part(mine)` is what is in `out`.
fn sum_in_rank_order<'a>(out: &mut [f32], mine: usize, size: usize, part: impl Fn(usize) -> &'a [f32]) {
    let mut sum = [0.0f32; SUM_BLOCK];
    for (n, out) in out.chunks_mut(SUM_BLOCK).enumerate() {
        let (sum, start) = (&mut sum[..out.len()], n * SUM_BLOCK);
        for rank in 0..size {
            let part = if rank == mine { &*out } else { &part(rank)[start..start + sum.len()] };
            match rank {
                0 => sum.copy_from_slice(part),
                _ => sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x),
            }
        }
        out.copy_from_slice(sum);
    }
}

/// The part of `n` elements that `rank` sums for all when a vector is too long to be summed by each.
fn piece(n: usize, rank: usize, size: usize) -> std::ops::Range<usize> {
    n * rank / size..n * (rank + 1) / size
}
