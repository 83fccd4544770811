//! Places for connections, so many at once. Where all are taken, whoever has rested longest, without a request under way,
//! gives its place to who comes, of the address that has most that rest: so connections that say nothing keep nobody out,
//! however many they are. Who has a request under way keeps its place.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_trust::door::origin;
use tokio::sync::oneshot;

/// Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Seats(Arc<Mutex<State>>);

struct State {
    max: usize,
    /// Comings and goings to rest, counted.
    moment: u64,
    taken: BTreeMap<u64, Sitter>,
}

struct Sitter {
    from: IpAddr,
    underway: usize,
    /// The moment when it came, or when its last request was answered.
    rests_since: u64,
    /// Dropped when it has to go.
    _stay: oneshot::Sender<()>,
}

/// A place, until it is dropped.
pub struct Seat {
    seats: Seats,
    number: u64,
}

/// While it is held the place is nobody else's.
pub struct Kept {
    seats: Seats,
    number: u64,
}

/// What ends when a place is needed for somebody else.
pub type Gone = oneshot::Receiver<()>;

impl Seats {
    pub fn new(max: usize) -> Seats {
        Seats(Arc::new(Mutex::new(State { max, moment: 0, taken: BTreeMap::new() })))
    }

    /// None: all are taken, and nobody who has one rests.
    pub fn take(&self, address: IpAddr) -> Option<(Seat, Gone)> {
        let mut state = self.lock();
        if state.taken.len() >= state.max {
            let rests = state.longest(|sitter| sitter.underway == 0)?;
            state.taken.remove(&rests);
        }
        Some(self.sit(&mut state, address))
    }

    /// Whoever came first goes, if nobody rests.
    pub fn take_anyway(&self, address: IpAddr) -> (Seat, Gone) {
        let mut state = self.lock();
        if state.taken.len() >= state.max {
            let goes = state.longest(|sitter| sitter.underway == 0).or_else(|| state.longest(|_| true));
            goes.inspect(|number| drop(state.taken.remove(number)));
        }
        self.sit(&mut state, address)
    }

    fn sit(&self, state: &mut State, address: IpAddr) -> (Seat, Gone) {
        let (number, (stay, gone)) = (state.next(), oneshot::channel());
        let sitter = Sitter { from: origin(address), underway: 0, rests_since: number, _stay: stay };
        state.taken.insert(number, sitter);
        (Seat { seats: self.clone(), number }, gone)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// Who has been there longest of the address that has most of these.
    fn longest(&self, of: impl Fn(&Sitter) -> bool) -> Option<u64> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        let these = || self.taken.iter().filter(|(_, sitter)| of(sitter));
        these().for_each(|(_, sitter)| *counts.entry(sitter.from).or_default() += 1);
        let longest = these().max_by_key(|(_, sitter)| (counts[&sitter.from], u64::MAX - sitter.rests_since));
        longest.map(|(number, _)| *number)
    }
}

impl Seat {
    /// A request is under way, or an answer not yet read.
    pub fn keep(&self) -> Kept {
        if let Some(sitter) = self.seats.lock().taken.get_mut(&self.number) {
            sitter.underway += 1;
        }
        Kept { seats: self.seats.clone(), number: self.number }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().taken.remove(&self.number);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut state = self.seats.lock();
        let moment = state.next();
        // It may be gone, with its connection.
        if let Some(sitter) = state.taken.get_mut(&self.number) {
            sitter.underway = sitter.underway.saturating_sub(1);
            if sitter.underway == 0 {
                sitter.rests_since = moment;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn is_gone(gone: &mut Gone) -> bool {
        gone.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn who_has_rested_longest_gives_its_place() {
        let seats = Seats::new(3);
        let (first, mut first_gone) = seats.take(address(1)).unwrap();
        let (_second, mut second_gone) = seats.take(address(1)).unwrap();
        let (_third, mut third_gone) = seats.take(address(1)).unwrap();
        // Its request is answered: it rests since then.
        drop(first.keep());
        let _fourth = seats.take(address(1)).unwrap();
        assert!(is_gone(&mut second_gone) && !is_gone(&mut first_gone) && !is_gone(&mut third_gone));
        let _fifth = seats.take(address(1)).unwrap();
        assert!(is_gone(&mut third_gone) && !is_gone(&mut first_gone));
    }

    #[test]
    fn who_has_a_request_under_way_keeps_its_place() {
        let seats = Seats::new(2);
        let (first, mut first_gone) = seats.take(address(1)).unwrap();
        let (second, mut second_gone) = seats.take(address(1)).unwrap();
        let kept = (first.keep(), first.keep(), second.keep());
        assert!(seats.take(address(2)).is_none());
        drop(kept.0);
        assert!(seats.take(address(2)).is_none(), "another is under way still");
        let _further = seats.take_anyway(address(2));
        assert!(is_gone(&mut first_gone), "where one must go it is the first");
        drop(kept.2);
        assert!(!is_gone(&mut second_gone));
        let further = seats.take(address(2)).unwrap();
        // Who is gone leaves nothing behind.
        drop((kept.1, first, second, further));
        assert_eq!(seats.lock().taken.len(), 0);
    }

    #[test]
    fn the_address_with_most_that_rest_makes_place() {
        let seats = Seats::new(4);
        let (_few, mut few_gone) = seats.take(address(1)).unwrap();
        let mut many: Vec<_> = (0..3).map(|_| seats.take(address(2)).unwrap()).collect();
        let _further = seats.take(address(3)).unwrap();
        assert!(!is_gone(&mut few_gone) && is_gone(&mut many[0].1) && !is_gone(&mut many[1].1));
    }
}
