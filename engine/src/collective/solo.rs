//! A group of one.

use super::{AbortHandle, AllReduce, Collective, CollectiveError};
use flotilla_shared::Rank;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The only rank: every sum is its own.
#[derive(Default)]
pub struct Solo {
    aborted: Arc<AtomicBool>,
    ended: Option<CollectiveError>,
}

impl Solo {
    pub fn new() -> Self {
        Solo::default()
    }

    fn check(&self) -> Result<(), CollectiveError> {
        match &self.ended {
            Some(error) => Err(error.clone()),
            None if self.aborted.load(Ordering::Relaxed) => Err(CollectiveError::Aborted),
            None => Ok(()),
        }
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

    fn is_broken(&mut self) -> bool {
        self.check().is_err()
    }

    fn end(&mut self, error: CollectiveError) {
        self.ended.get_or_insert(error);
    }

    fn abort_handle(&self) -> AbortHandle {
        let aborted = Arc::clone(&self.aborted);
        AbortHandle::new(move || aborted.store(true, Ordering::Relaxed))
    }
}
