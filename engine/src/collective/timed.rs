//! A collective that counts what it costs its rank: the time in exchanges, waiting for the others included, and how
//! many there were. Two looks at a clock an exchange; the exchanges of a token are a few dozen.

use super::{AbortHandle, AllReduce, Collective, CollectiveError};
use flotilla_shared::Rank;
use std::time::{Duration, Instant};

/// Time in exchanges, and how many there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    pub time: Duration,
    pub exchanges: u32,
}

#[derive(Debug)]
pub struct Timed<C> {
    inner: C,
    spent: Spent,
}

impl<C> Timed<C> {
    pub fn new(inner: C) -> Self {
        Timed { inner, spent: Spent::default() }
    }

    /// Since it was made, or since this was asked for last.
    pub fn take_spent(&mut self) -> Spent {
        std::mem::take(&mut self.spent)
    }

    /// The same, and it is counted on.
    pub fn spent(&self) -> Spent {
        self.spent
    }

    fn time<T>(&mut self, exchange: impl FnOnce(&mut C) -> T) -> T {
        let start = Instant::now();
        let done = exchange(&mut self.inner);
        self.spent.time += start.elapsed();
        self.spent.exchanges += 1;
        done
    }
}

impl<A: ?Sized, C: AllReduce<A>> AllReduce<A> for Timed<C> {
    fn sums_end_with_their_call(&self) -> bool {
        self.inner.sums_end_with_their_call()
    }

    fn all_reduce(&mut self, x: &mut A) -> Result<(), CollectiveError> {
        self.time(|inner| inner.all_reduce(x))
    }

    fn settle(&mut self) -> Result<(), CollectiveError> {
        self.inner.settle()
    }

    fn hand_on(&mut self, x: &mut A) -> Result<(), CollectiveError> {
        self.time(|inner| inner.hand_on(x))
    }

    fn take_over(&mut self, x: &mut A) -> Result<(), CollectiveError> {
        self.time(|inner| inner.take_over(x))
    }
}

impl<C: Collective> Collective for Timed<C> {
    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn place(&self) -> usize {
        self.inner.place()
    }

    fn member(&self, place: usize) -> Rank {
        self.inner.member(place)
    }

    fn tell(&mut self, tokens: &[u8]) -> Result<(), CollectiveError> {
        self.inner.tell(tokens)
    }

    fn hear(&mut self, wait: bool, out: &mut Vec<u8>) -> Result<bool, CollectiveError> {
        match wait {
            true => self.time(|inner| inner.hear(true, out)),
            false => self.inner.hear(false, out),
        }
    }

    fn all_gather(&mut self, mine: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError> {
        self.time(|inner| inner.all_gather(mine, out))
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.time(|inner| inner.barrier())
    }

    fn is_broken(&mut self) -> bool {
        self.inner.is_broken()
    }

    fn end(&mut self, error: CollectiveError) {
        self.inner.end(error);
    }

    fn abort_handle(&self) -> AbortHandle {
        self.inner.abort_handle()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Solo;
    use super::*;

    #[test]
    fn exchanges_are_counted_and_looks_are_not() {
        let mut group = Timed::new(Solo::new());
        let mut out = Vec::new();
        group.all_reduce(&mut [1.0f32][..]).unwrap();
        group.all_gather(&[7], &mut out).unwrap();
        AllReduce::<[f32]>::settle(&mut group).unwrap();
        assert!(!group.is_broken());
        assert_eq!((out, group.spent().exchanges), (vec![7], 2));
        assert_eq!(group.take_spent().exchanges, 2);
        assert_eq!(group.take_spent(), Spent::default());
    }
}
