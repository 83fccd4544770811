//! A rank of cards is a member like any other: values of the card go by the chosen way, everything else by the link.

use super::{CardCollective, Way, failed};
use crate::collective::{AbortHandle, AllReduce, Collective, CollectiveError, Operation};
use crate::cuda::DeviceSum;
use flotilla_shared::Rank;
use std::sync::Arc;

impl<L: Collective> AllReduce<DeviceSum> for CardCollective<L> {
    fn sums_end_with_their_call(&self) -> bool {
        false
    }

    fn all_reduce(&mut self, x: &mut DeviceSum) -> Result<(), CollectiveError> {
        self.run(|this| this.try_sum(x))
    }

    fn settle(&mut self) -> Result<(), CollectiveError> {
        self.run(|this| {
            this.try_settle().map_err(|trouble| {
                let behind = if let Way::Host(host) = &this.way { host.behind() } else { Vec::new() };
                // Who is behind there is a place.
                let behind = behind.into_iter().map(|place| this.link.member(place.index())).collect();
                this.abort_way();
                this.blame(trouble, behind)
            })
        })
    }

    fn hand_on(&mut self, x: &mut DeviceSum) -> Result<(), CollectiveError> {
        AllReduce::<DeviceSum>::settle(self)?;
        self.run(|this| {
            this.handed.resize(x.len, 0.0);
            let copied = x.stream.memcpy_dtoh(&x.values.slice(..x.len), &mut this.handed);
            copied.map_err(|error| failed("copy from the card", error))?;
            this.wait_for_copy()?;
            this.link.hand_on(&mut this.handed)
        })
    }

    fn take_over(&mut self, x: &mut DeviceSum) -> Result<(), CollectiveError> {
        self.run(|this| {
            this.handed.resize(x.len, 0.0);
            this.link.take_over(&mut this.handed)?;
            let copied = x.stream.memcpy_htod(&this.handed, &mut x.values.slice_mut(..x.len));
            copied.map_err(|error| failed("copy to the card", error))?;
            this.wait_for_copy()
        })
    }
}

impl<L: Collective> AllReduce<[f32]> for CardCollective<L> {
    fn all_reduce(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        self.run(|this| this.link.all_reduce(x))
    }

    fn settle(&mut self) -> Result<(), CollectiveError> {
        self.run(|this| this.link.settle())
    }

    fn hand_on(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        self.run(|this| this.link.hand_on(x))
    }

    fn take_over(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        self.run(|this| this.link.take_over(x))
    }
}

impl<L: Collective> Collective for CardCollective<L> {
    fn rank(&self) -> Rank {
        self.link.rank()
    }

    fn size(&self) -> usize {
        self.link.size()
    }

    fn place(&self) -> usize {
        self.link.place()
    }

    fn tell(&mut self, tokens: &[u8]) -> Result<(), CollectiveError> {
        self.run(|this| this.link.tell(tokens))
    }

    fn hear(&mut self, wait: bool, out: &mut Vec<u8>) -> Result<bool, CollectiveError> {
        self.run(|this| this.link.hear(wait, out))
    }

    fn all_gather(&mut self, mine: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError> {
        self.run(|this| this.link.all_gather(mine, out))
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.run(|this| this.link.barrier())
    }

    fn is_broken(&mut self) -> bool {
        self.failed.is_some() || self.link.is_broken()
    }

    fn end(&mut self, error: CollectiveError) {
        let _ = self.run(|_| Err::<(), _>(error));
    }

    fn abort_handle(&self) -> AbortHandle {
        let (link, ends) = (self.link.abort_handle(), Arc::clone(&self.ends));
        AbortHandle::new(move || {
            // The link first: who is woken by the other asks it why.
            link.abort();
            ends.abort();
        })
    }
}

impl<L: Collective> CardCollective<L> {
    /// A copy between the card and memory that is used again.
    fn wait_for_copy(&self) -> Result<(), CollectiveError> {
        let operation = Operation::AllReduce;
        self.card.synchronize().map_err(|error| CollectiveError::Card { operation, error })
    }
}
