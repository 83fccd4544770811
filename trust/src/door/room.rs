//! Where those wait who have come and have not shown yet what lets them in: so many at once, and so many of one address.
//! Where there is no place, whoever has waited longest makes it: who means it is let in within milliseconds, and is kept
//! out by nobody.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Open files are what they cost.
pub const NEWCOMERS_MAX: usize = 256;
/// More than a host's workers ever dial at once.
pub const OF_ONE_ADDRESS_MAX: usize = 64;

/// Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Room(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    came: u64,
    /// In the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
}

struct Waiting {
    from: IpAddr,
    /// Dropped when it has to go.
    _stay: oneshot::Sender<()>,
}

/// A place in the room, until it is left.
pub struct Place {
    room: Room,
    number: u64,
}

impl Room {
    /// Returned is also what ends when the place is needed for somebody else.
    pub fn enter(&self, address: IpAddr) -> (Place, oneshot::Receiver<()>) {
        let from = origin(address);
        let mut state = self.lock();
        state.make_room(from);
        state.came += 1;
        let (number, (stay, goes)) = (state.came, oneshot::channel());
        state.waiting.insert(number, Waiting { from, _stay: stay });
        (Place { room: self.clone(), number }, goes)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The longest waiting of this address goes if it has all its places; else, if nobody has one, of those who have most.
    fn make_room(&mut self, from: IpAddr) {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        self.waiting.values().for_each(|waiting| *counts.entry(waiting.from).or_default() += 1);
        let most = || counts.iter().max_by_key(|(_, count)| **count).map(|(address, _)| *address);
        let makes_room = if counts.get(&from).is_some_and(|count| *count >= OF_ONE_ADDRESS_MAX) {
            Some(from)
        } else if self.waiting.len() >= NEWCOMERS_MAX {
            most()
        } else {
            None
        };
        let oldest = self.waiting.iter().find(|(_, waiting)| Some(waiting.from) == makes_room);
        if let Some(number) = oldest.map(|(number, _)| *number) {
            self.waiting.remove(&number);
        }
    }
}

impl Place {
    pub fn leave(&self) {
        self.room.lock().waiting.remove(&self.number);
    }
}

/// Whom an address is of: with IPv6 one host has 2^64.
pub fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_gone(goes: &mut oneshot::Receiver<()>) -> bool {
        goes.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_oldest_of_an_address_with_all_its_places_goes() {
        let room = Room::default();
        let mut other = room.enter(address("10.0.0.2"));
        // One host, whichever of its addresses it takes.
        let mut own: Vec<_> =
            (0..OF_ONE_ADDRESS_MAX).map(|n| room.enter(address(&format!("2001:db8::{n:x}")))).collect();
        own[3].0.leave();
        let _place = room.enter(address("2001:db8::ffff:1"));
        assert!(!is_gone(&mut own[0].1));
        let _next = room.enter(address("2001:db8::ffff:2"));
        assert!(is_gone(&mut own[0].1) && !is_gone(&mut own[1].1) && !is_gone(&mut other.1));
    }

    #[test]
    fn of_a_full_room_who_has_most_makes_place() {
        let room = Room::default();
        let mut few = room.enter(address("10.0.0.1"));
        let mut others: Vec<_> =
            (1..NEWCOMERS_MAX).map(|n| room.enter(address(&format!("10.0.1.{}", n / 60)))).collect();
        let _further = room.enter(address("10.0.0.3"));
        assert!(!is_gone(&mut few.1));
        assert_eq!(others.iter_mut().filter_map(|(_, goes)| is_gone(goes).then_some(())).count(), 1);
    }
}
