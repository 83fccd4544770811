//! What ranks that are threads have in common: a slot for each, and how the group ended.

use super::mail::Mailbox;
use crate::collective::{CollectiveError, Operation};
use flotilla_shared::Rank;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(super) struct Shared {
    /// Of all ranks of all stages.
    pub slots: Vec<Slot>,
    /// What other stages have for each.
    pub mail: Vec<Mutex<Mailbox>>,
    /// Which rank ended the group first, and why.
    pub ended: Mutex<Option<(Rank, CollectiveError)>>,
    pub has_ended: AtomicBool,
    pub sleepers: AtomicUsize,
    pub sleep: Mutex<()>,
    pub wake: Condvar,
    pub deadline: Option<Duration>,
    pub spin: Duration,
}

/// What a rank shows the others. Aligned so that two ranks' counters share no cache line.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Slot {
    pub published: AtomicU64,
    pub left: AtomicBool,
    pub sides: [UnsafeCell<Side>; 2],
}

/// One operation's contribution of one rank.
#[derive(Default)]
pub(super) struct Side {
    pub operation: Option<Operation>,
    /// Elements of `floats` or `bytes` that count.
    pub len: usize,
    pub floats: Vec<f32>,
    /// Into `floats`: the owner writes its piece of the sums through it while the others read the rest.
    pub data: Elements,
    pub bytes: Vec<u8>,
}

pub(super) struct Elements(pub *mut f32);

impl Default for Elements {
    fn default() -> Self {
        Elements(std::ptr::null_mut())
    }
}

// SAFETY: all but the sides are atomics and locks. A side is written by its owner only, between the end
// of the operation before and its publication, when nobody reads it: readers of the same side, two
// operations ago, have published their next one since, and the owner waited for that. From publication
// on it is read by all; elements of `data` are written then by the owner only, in its own piece, which
// the others read after its second publication only. Publications are release and acquire.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Shared {}

impl Shared {
    pub fn new(ranks: usize, deadline: Option<Duration>, spin: Duration) -> Shared {
        Shared {
            slots: (0..ranks).map(|_| Slot::default()).collect(),
            mail: (0..ranks).map(|_| Mutex::default()).collect(),
            ended: Mutex::new(None),
            has_ended: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            deadline,
            spin,
        }
    }

    /// Whether a rank has ended the group, or has left.
    pub fn is_broken(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
            || self.slots.iter().any(|slot| slot.left.load(Ordering::SeqCst))
    }

    /// The contribution of a rank that has published its operation.
    ///
    /// # Safety
    /// The rank's publication was seen by this thread, and this thread has not published its next one.
    pub unsafe fn side(&self, rank: usize, side: usize) -> &Side {
        // SAFETY: nobody writes to a published side (see `impl Sync`).
        unsafe { &*self.slots[rank].sides[side].get() }
    }

    pub fn wake_all(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.sleep));
            self.wake.notify_all();
        }
    }

    pub fn end(&self, rank: Rank, error: CollectiveError) {
        lock(&self.ended).get_or_insert((rank, error));
        self.has_ended.store(true, Ordering::SeqCst);
        self.wake_all();
    }

    /// Why the group ended, as `rank` sees it.
    pub fn ended_for(&self, rank: Rank, operation: Operation) -> Option<CollectiveError> {
        if !self.has_ended.load(Ordering::SeqCst) {
            return None;
        }
        let ended = lock(&self.ended);
        let (by, error) = ended.as_ref()?;
        Some(match *by == rank {
            true => error.clone(),
            false => CollectiveError::PeerGaveUp { peer: *by, operation, blamed: error.culprit() },
        })
    }
}

/// Nothing that could panic is done under these locks.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
