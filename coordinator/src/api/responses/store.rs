//! Responses that clients may go on from, read again or delete, in memory that is bounded in bytes and in
//! number: what was not used for longest is dropped first. Nothing is on disk, and nothing outlives the
//! process.
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
    /// By when they were last used.
    by_use: BTreeMap<u64, String>,
    /// Items that this server made, to the response in which they stand.
    items: BTreeMap<String, String>,
    uses: u64,
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

/// Bytes that count for as long as this lives.
#[derive(Debug)]
struct Charge {
    bytes: usize,
    live: Arc<AtomicUsize>,
}

impl Charge {
    fn new(bytes: usize, live: &Arc<AtomicUsize>) -> Charge {
        live.fetch_add(bytes, Ordering::Relaxed);
        Charge { bytes, live: Arc::clone(live) }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.live.fetch_sub(self.bytes, Ordering::Relaxed);
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
        if !self.make_room(&mut state, turn_bytes + own_bytes) {
            return false;
        }
        let turn = Turn { input, output, _charge: Charge::new(turn_bytes, &self.live) };
        let mut turns = previous;
        for item in &turn.output {
            state.items.insert(item.id.clone(), id.clone());
        }
        turns.push(Arc::new(turn));
        let used = state.next_use();
        state.by_use.insert(used, id.clone());
        let stored = Stored { body, turns };
        let charge = Charge::new(own_bytes, &self.live);
        state.responses.insert(id, Response { client, used, stored, _charge: charge });
        true
    }

    fn make_room(&self, state: &mut State, bytes: usize) -> bool {
        if bytes > self.limits.bytes_max || self.limits.count_max == 0 {
            return false;
        }
        let fits = |live: usize| live + bytes <= self.limits.bytes_max;
        while !fits(self.live.load(Ordering::Relaxed)) || state.responses.len() >= self.limits.count_max {
            let Some((_, oldest)) = state.by_use.pop_first() else { return false };
            state.forget(&oldest);
        }
        true
    }

    /// None: unknown, dropped, or another client's.
    pub fn get(&self, client: ClientId, id: &str) -> Option<Stored> {
        let mut state = self.state();
        let used = state.next_use();
        let response = state.responses.get_mut(id).filter(|response| response.client == client)?;
        let before = std::mem::replace(&mut response.used, used);
        let stored = response.stored.clone();
        state.by_use.remove(&before);
        state.by_use.insert(used, id.to_owned());
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
        let Some(response) = state.responses.get(id).filter(|response| response.client == client) else {
            return false;
        };
        let used = response.used;
        state.by_use.remove(&used);
        state.forget(id);
        true
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

    fn forget(&mut self, id: &str) {
        let Some(response) = self.responses.remove(id) else { return };
        for item in response.stored.turns.last().into_iter().flat_map(|turn| &turn.output) {
            self.items.remove(&item.id);
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
        let output = vec![Item::new(format!("rs_{id}"), Kind::Reasoning { text })];
        Finished { id: id.into(), client: ANN, body: "{}".into(), previous, input: Vec::new(), output }
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
