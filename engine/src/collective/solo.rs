//! A group of one.

use super::{AbortHandle, AllReduce, Collective, CollectiveError};
use flotilla_shared::Rank;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The only rank: every sum is its own.
#[derive(Default)]
pub struct Solo {
    aborted: Arc<AtomicBool>,
}

impl Solo {
    pub fn new() -> Self {
        Solo::default()
    }

    fn check(&self) -> Result<(), CollectiveError> {
        if self.aborted.load(Ordering::Relaxed) { Err(CollectiveError::Aborted) } else { Ok(()) }
    }
}

impl AllReduce<[f32]> for Solo {
    fn all_reduce(&mut self, _: &mut [f32]) -> Result<(), CollectiveError> {
        self.check()
    }
}

impl Collective for Solo {
    fn rank(&self) -> Rank {
        Rank(0)
    }

    fn size(&self) -> usize {
        1
    }

    fn all_gather(&mut self, mine: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError> {
        out.clear();
        out.extend_from_slice(mine);
        self.check()
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.check()
    }

    fn abort_handle(&self) -> AbortHandle {
        let aborted = Arc::clone(&self.aborted);
        AbortHandle::new(move || aborted.store(true, Ordering::Relaxed))
    }
}
