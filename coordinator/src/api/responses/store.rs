//! Responses that clients may go on from, read again or delete, in memory that is bounded in bytes and in
//! number. Whoever holds most makes room, by what it did not use for longest: so one client pushes out nobody
//! who holds less than it does. Nothing is on disk, and nothing outlives the process.
//!
//! A response holds its conversation as turns, and responses that go on from each other share them, so that a
//! long exchange costs what was said in it and not its square. A shared turn is counted once, for as long as
//! anybody holds it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_scheduler::ClientId;

use super::item::Item;

#[derive(Clone, Copy, Debug)]
pub struct StoreLimits {
    pub bytes_max: usize,
    pub count_max: usize,
}

impl Default for StoreLimits {
    fn default() -> StoreLimits {
        StoreLimits {
            // A full context of 131072 tokens is about half a megabyte of text, kept twice: some hundreds of
            // those. Little beside the weights.
            bytes_max: 256 << 20,
            // For conversations that are short.
            count_max: 16_384,
        }
    }
}

/// What a map keeps beside a response: its ids in three places, and the maps' nodes.
const RESPONSE_BYTES: usize = 768;
/// The same of an item that can be referred to.
const ITEM_BYTES: usize = 256;

#[derive(Debug, Default)]
pub struct Store {
    limits: StoreLimits,
    /// Bytes of everything that was stored and that somebody still holds.
    live: Arc<AtomicUsize>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    responses: BTreeMap<String, Response>,
    /// What each client holds.
    shares: BTreeMap<ClientId, Share>,
    /// Items that this server made, to the response in which they stand.
    items: BTreeMap<String, String>,
    uses: u64,
}

#[derive(Debug, Default)]
struct Share {
    /// Bytes that were stored for it and that somebody still holds.
    bytes: Arc<AtomicUsize>,
    /// By when they were last used.
    by_use: BTreeMap<u64, String>,
}

#[derive(Debug)]
struct Response {
    client: ClientId,
    used: u64,
    stored: Stored,
    _charge: Charge,
}

/// What is kept of a response. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The response itself, as JSON.
    pub body: Arc<str>,
    /// The conversation up to and with it.
    pub turns: Vec<Arc<Turn>>,
}

#[derive(Debug)]
pub struct Turn {
    pub input: Vec<Item>,
    pub output: Vec<Item>,
    _charge: Charge,
}

/// A response that is done.
pub struct Finished {
    pub id: String,
    pub client: ClientId,
    pub body: Arc<str>,
    /// The conversation before it.
    pub previous: Vec<Arc<Turn>>,
    pub input: Vec<Item>,
    pub output: Vec<Item>,
}

/// Bytes that count for as long as this lives, of the whole and of a client's share.
#[derive(Debug)]
struct Charge {
    bytes: usize,
    of: [Arc<AtomicUsize>; 2],
}

impl Charge {
    fn new(bytes: usize, of: [&Arc<AtomicUsize>; 2]) -> Charge {
        of.iter().for_each(|count| _ = count.fetch_add(bytes, Ordering::Relaxed));
        Charge { bytes, of: of.map(Arc::clone) }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.of.iter().for_each(|count| _ = count.fetch_sub(self.bytes, Ordering::Relaxed));
    }
}

impl Turn {
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.input.iter().chain(&self.output)
    }
}

impl Store {
    pub fn new(limits: StoreLimits) -> Store {
        Store { limits, ..Store::default() }
    }

    /// Whether it was taken in. What alone is larger than the store, or has no room beside what running
    /// requests hold, is not.
    pub fn insert(&self, finished: Finished) -> bool {
        let Finished { id, client, body, previous, input, output } = finished;
        let turn_bytes = size_of::<Turn>() + input.iter().chain(&output).map(Item::bytes).sum::<usize>();
        let own_bytes = RESPONSE_BYTES
            + ITEM_BYTES * output.len()
            + body.len()
            + size_of::<Arc<Turn>>() * (previous.len() + 1);
        let mut state = self.state();
        if !self.make_room(&mut state, client, turn_bytes + own_bytes) {
            return false;
        }
        let used = state.next_use();
        let share = state.shares.entry(client).or_default();
        share.by_use.insert(used, id.clone());
        let charge = |bytes| Charge::new(bytes, [&self.live, &share.bytes]);
        let (turn_charge, own_charge) = (charge(turn_bytes), charge(own_bytes));
        let turn = Turn { input, output, _charge: turn_charge };
        let mut turns = previous;
        for item in &turn.output {
            state.items.insert(item.id.clone(), id.clone());
        }
        turns.push(Arc::new(turn));
        let stored = Stored { body, turns };
        state.responses.insert(id, Response { client, used, stored, _charge: own_charge });
        true
    }

    fn make_room(&self, state: &mut State, client: ClientId, bytes: usize) -> bool {
        if bytes > self.limits.bytes_max || self.limits.count_max == 0 {
            return false;
        }
        let fits = |live: usize| live + bytes <= self.limits.bytes_max;
        loop {
            let most = if !fits(self.live.load(Ordering::Relaxed)) {
                state.largest(|of, share| {
                    share.bytes.load(Ordering::Relaxed) + if of == client { bytes } else { 0 }
                })
            } else if state.responses.len() >= self.limits.count_max {
                state.largest(|of, share| share.by_use.len() + usize::from(of == client))
            } else {
                return true;
            };
            let Some(oldest) = most else { return false };
            state.forget(&oldest);
        }
    }

    /// None: unknown, dropped, or another client's.
    pub fn get(&self, client: ClientId, id: &str) -> Option<Stored> {
        let mut state = self.state();
        let used = state.next_use();
        let response = state.responses.get_mut(id).filter(|response| response.client == client)?;
        let before = std::mem::replace(&mut response.used, used);
        let stored = response.stored.clone();
        let by_use = &mut state.shares.get_mut(&client)?.by_use;
        by_use.remove(&before);
        by_use.insert(used, id.to_owned());
        Some(stored)
    }

    /// An item of an answer that is stored.
    pub fn item(&self, client: ClientId, id: &str) -> Option<Item> {
        let response = self.state().items.get(id)?.clone();
        let stored = self.get(client, &response)?;
        stored.turns.last()?.output.iter().find(|item| item.id == id).cloned()
    }

    /// Whether there was one. Responses that went on from it keep what was said.
    pub fn remove(&self, client: ClientId, id: &str) -> bool {
        let mut state = self.state();
        let found = state.responses.get(id).is_some_and(|response| response.client == client);
        if found {
            state.forget(id);
        }
        found
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    /// What was not used for longest of the client whose `size` is the largest.
    fn largest(&self, size: impl Fn(ClientId, &Share) -> usize) -> Option<String> {
        let shares = self.shares.iter().filter_map(|(client, share)| {
            let (_, oldest) = share.by_use.first_key_value()?;
            Some((size(*client, share), oldest))
        });
        shares.max_by_key(|(size, _)| *size).map(|(_, oldest)| oldest.clone())
    }

    fn forget(&mut self, id: &str) {
        let Some(response) = self.responses.remove(id) else { return };
        for item in response.stored.turns.last().into_iter().flat_map(|turn| &turn.output) {
            self.items.remove(&item.id);
        }
        let (client, used) = (response.client, response.used);
        drop(response);
        let Some(share) = self.shares.get_mut(&client) else { return };
        share.by_use.remove(&used);
        // What is still held counts on, and so does the share.
        if share.by_use.is_empty() && Arc::strong_count(&share.bytes) == 1 {
            self.shares.remove(&client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::responses::item::Kind;

    const ANN: ClientId = ClientId(1);
    const BEN: ClientId = ClientId(2);

    fn store(bytes_max: usize, count_max: usize) -> Store {
        Store::new(StoreLimits { bytes_max, count_max })
    }

    fn finished(id: &str, text_bytes: usize, previous: Vec<Arc<Turn>>) -> Finished {
        let text = "x".repeat(text_bytes);
        let output = vec![Item::new(format!("rs_{id}"), Kind::Reasoning { text, carried: false })];
        Finished { id: id.into(), client: ANN, body: "{}".into(), previous, input: Vec::new(), output }
    }

    fn of(client: ClientId, id: &str, text_bytes: usize) -> Finished {
        Finished { client, ..finished(id, text_bytes, Vec::new()) }
    }

    #[test]
    fn one_client_pushes_out_nobody_who_holds_less() {
        for store in [store(200_000, 1000), store(1 << 30, 20)] {
            for at in 0..3 {
                assert!(store.insert(of(BEN, &format!("b{at}"), 10_000)));
            }
            for at in 0..100 {
                assert!(store.insert(of(ANN, &format!("a{at}"), 10_000)));
            }
            assert!((0..3).all(|at| store.get(BEN, &format!("b{at}")).is_some()), "Ben's were there first");
            assert!(store.get(ANN, "a99").is_some() && store.get(ANN, "a50").is_none());
            // Who comes later gets a share all the same.
            for at in 3..50 {
                assert!(store.insert(of(BEN, &format!("b{at}"), 10_000)));
            }
            let held = |client, name: &str| {
                (0..100).filter(|at| store.get(client, &format!("{name}{at}")).is_some()).count()
            };
            let (ann, ben) = (held(ANN, "a"), held(BEN, "b"));
            assert!(ann >= 5 && ann.abs_diff(ben) <= 1, "{ann} of Ann's and {ben} of Ben's");
        }
    }

    fn live(store: &Store) -> usize {
        store.live.load(Ordering::Relaxed)
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let store = store(1 << 20, 2);
        assert!(store.insert(finished("a", 10, Vec::new())));
        assert!(store.insert(finished("b", 10, Vec::new())));
        assert!(store.get(ANN, "a").is_some());
        assert!(store.insert(finished("c", 10, Vec::new())));
        let known = ["a", "b", "c"].map(|id| store.get(ANN, id).is_some());
        assert_eq!(known, [true, false, true]);
        assert!(store.item(ANN, "rs_b").is_none() && store.item(ANN, "rs_c").is_some());
    }

    #[test]
    fn bytes_are_never_more_than_the_limit() {
        let bytes_max = 20_000;
        let store = store(bytes_max, 1000);
        let mut previous = Vec::new();
        for turn in 0..100 {
            let id = format!("r{turn}");
            // A conversation that grows until the store cannot hold it, then begins again.
            if !store.insert(finished(&id, 1000, std::mem::take(&mut previous))) {
                assert!(store.insert(finished(&id, 1000, Vec::new())));
            }
            assert!(live(&store) <= bytes_max, "{} bytes after {turn}", live(&store));
            previous = store.get(ANN, &id).unwrap().turns;
        }
        assert!(!store.insert(finished("huge", bytes_max, Vec::new())));
        assert!(store.get(ANN, "r99").is_some(), "what cannot fit drops nobody");
    }

    #[test]
    fn turns_that_are_shared_count_once_and_as_long_as_they_are_held() {
        let store = store(1 << 20, 1000);
        store.insert(finished("a", 50_000, Vec::new()));
        let alone = live(&store);
        let turns = store.get(ANN, "a").unwrap().turns;
        store.insert(finished("b", 0, turns));
        assert!(live(&store) < alone + 5_000);
        assert!(store.remove(ANN, "a"));
        assert!(live(&store) > 50_000, "b still holds what was said in a");
        assert!(store.remove(ANN, "b"));
        assert_eq!(live(&store), 0);
    }

    #[test]
    fn nobody_reads_what_is_another_clients() {
        let store = store(1 << 20, 10);
        store.insert(finished("a", 10, Vec::new()));
        assert!(store.get(BEN, "a").is_none() && store.item(BEN, "rs_a").is_none());
        assert!(!store.remove(BEN, "a"));
        assert!(store.get(ANN, "a").is_some() && store.item(ANN, "rs_a").is_some());
        assert!(store.remove(ANN, "a"));
        assert!(store.get(ANN, "a").is_none() && !store.remove(ANN, "a"));
    }
}
