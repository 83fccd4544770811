//! Places for connections: so many with a request under way at once, and a reserve beyond. Where all are taken, whoever has
//! rested longest, without a request under way, gives its place to who comes, of the address that has most that rest: so
//! connections that say nothing keep nobody out, however many they are. Who has a request under way keeps its place. Who
//! asks while as many as may have one is a guest, of the reserve: it goes after one answer, and before that like who rests.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_trust::door::origin;
use tokio::sync::oneshot;

/// Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Seats(Arc<Mutex<State>>);

struct State {
    /// With a request under way, without guests.
    max: usize,
    /// Connections beyond these.
    reserve: usize,
    /// How many have a request under way, without guests.
    underway: usize,
    /// Comings and goings to rest, counted.
    moment: u64,
    taken: BTreeMap<u64, Sitter>,
}

struct Sitter {
    from: IpAddr,
    underway: usize,
    /// It asked while there was no place.
    is_guest: bool,
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
    pub fn new(max: usize, reserve: usize) -> Seats {
        let taken = BTreeMap::new();
        Seats(Arc::new(Mutex::new(State { max, reserve, underway: 0, moment: 0, taken })))
    }

    /// For one more than all, who rests or is a guest goes, those that have been there longest first: whoever has just come
    /// may be about to ask. Where nobody is either, all have stalled, and the oldest goes.
    pub fn take(&self, address: IpAddr) -> (Seat, Gone) {
        let mut state = self.lock();
        if state.taken.len() >= state.max.saturating_add(state.reserve) {
            let goes = state.longest(|sitter| sitter.underway == 0 || sitter.is_guest);
            let goes = goes.or_else(|| state.longest(|_| true));
            goes.inspect(|number| state.remove(*number));
        }
        self.sit(&mut state, address)
    }

    fn sit(&self, state: &mut State, address: IpAddr) -> (Seat, Gone) {
        let (number, (stay, gone)) = (state.next(), oneshot::channel());
        let from = origin(address);
        let sitter = Sitter { from, underway: 0, is_guest: false, rests_since: number, _stay: stay };
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

    fn begin(&mut self, number: u64) {
        // It may be gone, with its connection.
        let Some(sitter) = self.taken.get_mut(&number) else { return };
        sitter.underway += 1;
        self.underway += usize::from(sitter.underway == 1 && !sitter.is_guest);
    }

    fn end(&mut self, number: u64) {
        let moment = self.next();
        let Some(sitter) = self.taken.get_mut(&number) else { return };
        sitter.underway -= 1;
        if sitter.underway == 0 {
            sitter.rests_since = moment;
            self.underway -= usize::from(!sitter.is_guest);
        }
    }

    fn remove(&mut self, number: u64) {
        let gone = self.taken.remove(&number);
        self.underway -= usize::from(gone.is_some_and(|sitter| sitter.underway > 0 && !sitter.is_guest));
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
    /// A request is under way. True: it is of a guest.
    pub fn ask(&self) -> (Kept, bool) {
        let mut state = self.seats.lock();
        let is_full = state.underway >= state.max;
        let sitter = state.taken.get_mut(&self.number);
        // One whose last answer is not read yet has its place.
        let is_guest = sitter.is_none_or(|sitter| {
            sitter.is_guest |= sitter.underway == 0 && is_full;
            sitter.is_guest
        });
        state.begin(self.number);
        (self.kept(), is_guest)
    }

    /// What was written is not read yet. True: it was for a guest.
    pub fn hold(&self) -> (Kept, bool) {
        let mut state = self.seats.lock();
        state.begin(self.number);
        let is_guest = state.taken.get(&self.number).is_none_or(|sitter| sitter.is_guest);
        (self.kept(), is_guest)
    }

    fn kept(&self) -> Kept {
        Kept { seats: self.seats.clone(), number: self.number }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().remove(self.number);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.seats.lock().end(self.number);
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
        let seats = Seats::new(2, 1);
        let (first, mut first_gone) = seats.take(address(1));
        let (_second, mut second_gone) = seats.take(address(1));
        let (_third, mut third_gone) = seats.take(address(1));
        // Its request is answered: it rests since then.
        drop(first.ask());
        let _fourth = seats.take(address(1));
        assert!(is_gone(&mut second_gone) && !is_gone(&mut first_gone) && !is_gone(&mut third_gone));
        let _fifth = seats.take(address(1));
        assert!(is_gone(&mut third_gone) && !is_gone(&mut first_gone));
    }

    #[test]
    fn guests_go_before_who_has_just_come() {
        let seats = Seats::new(1, 2);
        let mut sitters: Vec<_> = (0..3).map(|_| seats.take(address(1))).collect();
        let asked: Vec<_> = sitters.iter().map(|(seat, _)| seat.ask()).collect();
        assert_eq!(asked.iter().map(|(_, is_guest)| *is_guest).collect::<Vec<_>>(), [false, true, true]);
        let (_next, mut next_gone) = seats.take(address(1));
        assert!(is_gone(&mut sitters[1].1) && !is_gone(&mut sitters[2].1));
        let _further = seats.take(address(1));
        assert!(is_gone(&mut sitters[2].1) && !is_gone(&mut next_gone) && !is_gone(&mut sitters[0].1));
    }

    /// Whoever comes may mean it: who is a guest is seen only when it asks.
    #[test]
    fn who_asks_first_has_the_last_place_and_who_asks_then_is_a_guest() {
        let seats = Seats::new(1, 1);
        let (first, mut first_gone) = seats.take(address(1));
        let (second, mut second_gone) = seats.take(address(1));
        let (asked, is_guest) = second.ask();
        assert!(!is_guest);
        let (guest, is_guest) = first.ask();
        assert!(is_guest && !is_gone(&mut first_gone) && !is_gone(&mut second_gone));
        drop((asked, guest));
        assert!(first.ask().1, "a guest stays one");
        assert!(!second.ask().1, "and takes no place");
    }

    #[test]
    fn who_has_a_request_under_way_keeps_its_place() {
        let seats = Seats::new(1, 1);
        let (first, mut first_gone) = seats.take(address(1));
        let kept = (first.ask().0, first.hold());
        let (guest, mut guest_gone) = seats.take(address(1));
        let its = guest.ask();
        let (next, mut next_gone) = seats.take(address(2));
        assert!(is_gone(&mut guest_gone), "the guest, however long the other has been there");
        drop(kept.0);
        assert!(next.ask().1, "an answer that is not read keeps the place as well");
        drop(kept.1);
        let (last, mut last_gone) = seats.take(address(3));
        assert!(is_gone(&mut next_gone) && !is_gone(&mut first_gone), "it has rested longer");
        let (asked, is_guest) = last.ask();
        assert!(!is_guest && !is_gone(&mut last_gone));
        // Who is gone leaves nothing behind.
        drop((its, asked, first, guest, next, last));
        let state = seats.lock();
        assert_eq!((state.taken.len(), state.underway), (0, 0));
    }

    #[test]
    fn where_all_have_stalled_the_oldest_goes() {
        let seats = Seats::new(1, 1);
        let (first, mut first_gone) = seats.take(address(1));
        let (second, mut second_gone) = seats.take(address(1));
        let _stalled = (first.hold(), second.hold());
        let (next, _gone) = seats.take(address(2));
        assert!(is_gone(&mut first_gone) && !is_gone(&mut second_gone));
        drop(second);
        assert!(!next.ask().1, "no place is lost with one that goes");
    }

    #[test]
    fn the_address_with_most_that_rest_makes_place() {
        let seats = Seats::new(3, 1);
        let (_few, mut few_gone) = seats.take(address(1));
        let mut many: Vec<_> = (0..3).map(|_| seats.take(address(2))).collect();
        let _further = seats.take(address(3));
        assert!(!is_gone(&mut few_gone) && is_gone(&mut many[0].1) && !is_gone(&mut many[1].1));
    }
}
