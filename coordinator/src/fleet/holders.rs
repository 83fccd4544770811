//! Who holds which weights, or is loading them: whoever lacks some is sent to another worker first, so that each slice
//! leaves this process once.

use super::lending::{Seat, givers, lenders};
use flotilla_proto::Hello;
use flotilla_shared::{BackendKind, HOLDERS_MAX, Held, Holder, ModelSpec, Plan, Rank, WeightsId};
use std::cmp::Reverse;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::watch;

/// Of one worker, and gone with it.
#[derive(Debug)]
pub struct Holding {
    /// Where it hands on weights, and by which key.
    door: Option<(String, [u8; 32])>,
    host: String,
    /// For what is held while another share comes; none if nothing is handed on.
    room_bytes: Option<u64>,
    /// Why its stream ended, once it has.
    ended: watch::Receiver<Option<String>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    is_loading: bool,
    /// How many were sent to it before all others.
    asked: u64,
}

/// What a rank is told of weights beside its share.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    pub holders: Vec<Holder>,
    pub lends: bool,
}

/// Cheap to clone; all clones are one list.
#[derive(Clone, Debug, Default)]
pub struct Holders(Arc<Mutex<Vec<Weak<Holding>>>>);

impl Holders {
    /// A worker that says Hello.
    pub fn enter(&self, hello: &Hello, ended: watch::Receiver<Option<String>>) -> Arc<Holding> {
        let state = State { held: hello.held.clone(), ..State::default() };
        let (door, host, own) = (hello.hands_on.clone(), hello.host.clone(), &hello.inventory);
        let room_bytes = match own.backend {
            BackendKind::Cpu => own.memory_bytes,
            // It lies aside in the host's memory, as far as that has room: the worker looks itself.
            BackendKind::Cuda => u64::MAX,
        };
        let room_bytes = door.as_ref().map(|_| room_bytes);
        let holding = Arc::new(Holding { door, host, room_bytes, ended, state: Mutex::new(state) });
        let mut all = lock(&self.0);
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&holding));
        holding
    }

    /// `members` are going to load the shares of their ranks in `plan`: whom each asks in turn, and who keeps what it held
    /// for others of them. Of two groups that begin at the same time one comes first here, and the other is sent to it.
    pub fn send_out(
        &self,
        spec: &ModelSpec,
        weights: WeightsId,
        plan: &Plan,
        members: &[(Rank, &Holding)],
    ) -> Vec<Sent> {
        let all = lock(&self.0);
        let all: Vec<Arc<Holding>> = all.iter().filter_map(Weak::upgrade).collect();
        let seat = |(rank, member): &(Rank, &Holding)| Seat {
            before: lock(&member.state).held.clone().filter(|held| held.lies_in(spec)),
            wanted: Held::of(weights, plan, *rank),
            room_bytes: member.room_bytes,
        };
        let seats: Vec<Seat> = members.iter().map(seat).collect();
        let (lenders, givers) = (lenders(spec, &seats), givers(spec, &seats));
        let mut sent = Vec::new();
        for (at, (_, member)) in members.iter().enumerate() {
            let mut holders = chosen(spec, &seats[at].wanted, member, &all);
            let giver = givers[at].as_ref().and_then(|(giver, held)| members[*giver].1.giving(held.clone()));
            // Whoever has some of each of these layers has that too.
            let is_had = |giver: &Holder| holders.iter().any(|other| other.held.has_layers_of(&giver.held));
            if let Some(giver) = giver.filter(|giver| !is_had(giver)) {
                holders.truncate(HOLDERS_MAX - 1);
                holders.push(giver);
            }
            sent.push(Sent { holders, lends: lenders[at] });
        }
        for ((_, member), seat) in members.iter().zip(seats) {
            let mut state = lock(&member.state);
            (state.held, state.is_loading) = (Some(seat.wanted), true);
        }
        sent
    }
}

impl Holding {
    /// It has all that it was told to load.
    pub fn loaded(&self) {
        lock(&self.state).is_loading = false;
    }

    /// It left its group, with this or with nothing; or it is just leaving.
    pub fn left_with(&self, held: Option<Held>) {
        let mut state = lock(&self.state);
        (state.held, state.is_loading) = (held, false);
    }

    /// What it could give of `wanted`, about, in elements, and whether all of it is there already.
    fn of_use(&self, spec: &ModelSpec, wanted: &Held) -> Option<(usize, bool)> {
        let state = lock(&self.state);
        let held = state.held.as_ref().filter(|held| held.weights == wanted.weights && held.lies_in(spec))?;
        let stage = flotilla_shared::Stage { layers: wanted.layers.clone(), ranks: Vec::new() };
        let of_use = held.of_use(spec, &stage, &wanted.share);
        (of_use > 0).then_some((of_use, !state.is_loading))
    }

    fn holder(&self) -> Option<Holder> {
        self.giving(lock(&self.state).held.clone()?)
    }

    fn giving(&self, held: Held) -> Option<Holder> {
        let (address, key) = self.door.clone()?;
        Some(Holder { address, key, held })
    }
}

/// Those that have the most of it, all of it already, on the same host, and to whom the fewest were sent; but the first of
/// each kind of share before the second of any, for together they may have what none has alone. The first of each kind counts
/// one more.
fn chosen(spec: &ModelSpec, wanted: &Held, member: &Holding, others: &[Arc<Holding>]) -> Vec<Holder> {
    let is_here = |other: &&Arc<Holding>| {
        other.door.is_some() && other.ended.borrow().is_none() && !std::ptr::eq(member, &***other)
    };
    let mut of_use: Vec<_> = others
        .iter()
        .filter(is_here)
        .filter_map(|other| {
            let (elements, is_whole) = other.of_use(spec, wanted)?;
            let asked = lock(&other.state).asked;
            let rank = (Reverse(elements), !is_whole, other.host != member.host, asked);
            Some((rank, other, other.holder()?))
        })
        .collect();
    of_use.sort_by_key(|(rank, ..)| *rank);
    let mut kinds: Vec<(Held, usize)> = Vec::new();
    let mut in_turn: Vec<(usize, &Arc<Holding>, Holder)> = Vec::new();
    for (_, other, holder) in of_use {
        let at = kinds.iter().position(|(held, _)| *held == holder.held).unwrap_or_else(|| {
            kinds.push((holder.held.clone(), 0));
            kinds.len() - 1
        });
        in_turn.push((kinds[at].1, other, holder));
        kinds[at].1 += 1;
    }
    in_turn.sort_by_key(|(turn, ..)| *turn);
    in_turn.truncate(HOLDERS_MAX);
    in_turn.iter().filter(|(turn, ..)| *turn == 0).for_each(|(_, other, _)| lock(&other.state).asked += 1);
    in_turn.into_iter().map(|(.., holder)| holder).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::{BackendKind, Inventory, KvDtype};

    const WEIGHTS: WeightsId = WeightsId([1; 32]);

    struct Worker {
        holding: Arc<Holding>,
        ended: watch::Sender<Option<String>>,
    }

    fn worker(holders: &Holders, address: &str, host: &str) -> Worker {
        let hello = Hello {
            protocol: 1,
            version: String::new(),
            inventory: Inventory {
                name: address.into(),
                backend: BackendKind::Cpu,
                kv: KvDtype::F16,
                device: String::new(),
                memory_bytes: 1,
                bandwidth: 0.0,
                compute: 0.0,
                expert_compute: 0.0,
                threads: 1,
            },
            collective_address: String::new(),
            host: host.into(),
            held: None,
            hands_on: (!address.is_empty()).then(|| (address.into(), [address.len() as u8; 32])),
        };
        let (ended, seen) = watch::channel(None);
        Worker { holding: holders.enter(&hello, seen), ended }
    }

    fn sent(holders: &Holders, weights: WeightsId, plan: &Plan, workers: &[Worker]) -> Vec<Vec<String>> {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let members: Vec<(Rank, &Holding)> =
            workers.iter().enumerate().map(|(rank, worker)| (Rank(rank as u16), &*worker.holding)).collect();
        let sent = holders.send_out(&spec, weights, plan, &members);
        sent.into_iter().map(|sent| sent.holders.into_iter().map(|holder| holder.address).collect()).collect()
    }

    fn group(holders: &Holders, names: &[&str], host: &str) -> Vec<Worker> {
        names.iter().map(|name| worker(holders, name, host)).collect()
    }

    #[test]
    fn each_rank_is_sent_to_whom_has_its_share_and_the_load_is_spread() {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let two = Plan::with_shares(&spec, &[1.0, 1.0]);
        let holders = Holders::default();
        let groups = [["a0", "a1"], ["b0", "b1"], ["c0", "c1"], ["d0", "d1"]]
            .map(|names| group(&holders, &names, "host"));
        // The first has nobody to ask, the second only the first, and each further one whom the fewest were sent to.
        let of = |n: usize| sent(&holders, WEIGHTS, &two, &groups[n]);
        assert_eq!(of(0), [vec![], vec!["a0"]]);
        assert_eq!(of(1), [["a0"], ["a1"]]);
        assert_eq!(of(2), [["b0", "a0"], ["b1", "a1"]]);
        // Who has everything goes before those who load.
        groups[0].iter().for_each(|worker| worker.holding.loaded());
        assert_eq!(of(3), [["a0", "c0", "b0"], ["a1", "c1", "b1"]]);
    }

    /// Nine copies in halves and one newcomer of three: both halves are named, though the one is of more use.
    #[test]
    fn who_has_the_rest_is_named_beside_those_who_have_most() {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let [two, three] = [&[1.0, 1.0][..], &[1.0; 3]].map(|shares| Plan::with_shares(&spec, shares));
        let holders = Holders::default();
        let names: Vec<[String; 2]> = (0..9).map(|n| [format!("first{n}"), format!("second{n}")]).collect();
        let _halves: Vec<_> = names
            .iter()
            .map(|names| {
                let halves = group(&holders, &names.each_ref().map(String::as_str), "host");
                sent(&holders, WEIGHTS, &two, &halves);
                halves
            })
            .collect();
        let named = sent(&holders, WEIGHTS, &three, &group(&holders, &["a", "b", "c"], "host"));
        for (rank, halves) in [["first"].as_slice(), &["first", "second"], &["second"]].iter().enumerate() {
            assert_eq!(named[rank].len(), HOLDERS_MAX);
            let is_named = |half: &&&str| named[rank].iter().any(|name| name.starts_with(**half));
            assert_eq!(halves.iter().filter(is_named).count(), halves.len(), "{named:?}");
        }
    }

    /// What all ranks of a stage have comes from the first of them, unless others have it.
    #[test]
    fn ranks_that_have_nothing_are_sent_to_one_of_them() {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let three = Plan::with_shares(&spec, &[1.0; 3]);
        let holders = Holders::default();
        let first = group(&holders, &["a0", "a1", "a2"], "host");
        assert_eq!(sent(&holders, WEIGHTS, &three, &first), [vec![], vec!["a0"], vec!["a0"]]);
        assert_eq!(
            sent(&holders, WEIGHTS, &three, &group(&holders, &["b0", "b1", "b2"], "host")),
            [["a0"], ["a1"], ["a2"]]
        );
        // One that comes anew to two that are left.
        let [_, second, third] = <[Worker; 3]>::try_from(first).ok().unwrap();
        let again = [worker(&holders, "c0", "host"), second, third];
        assert_eq!(sent(&holders, WEIGHTS, &three, &again), [vec!["a1"], vec![], vec![]]);
    }

    #[test]
    fn only_who_is_here_hands_on_and_has_these_weights_is_named() {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let one = Plan::with_shares(&spec, &[1.0]);
        let holders = Holders::default();
        let others = ["", "other", "gone", "left", "far", "near"].map(|address| {
            let host = if address == "near" { "near" } else { "far" };
            let worker = worker(&holders, address, host);
            let weights = if address == "other" { WeightsId([2; 32]) } else { WEIGHTS };
            sent(&holders, weights, &one, std::slice::from_ref(&worker));
            worker.holding.loaded();
            worker
        });
        others[2].ended.send_replace(Some("it is gone".into()));
        others[3].holding.left_with(None);
        let newcomer = [worker(&holders, "new", "near")];
        assert_eq!(sent(&holders, WEIGHTS, &one, &newcomer), [["near", "far"]]);
        // What it keeps from its group is of use again, and who is dropped is forgotten.
        let held = others[4].holding.holder().unwrap().held;
        others[3].holding.left_with(Some(held));
        let mut named = sent(&holders, WEIGHTS, &one, &newcomer).concat();
        assert_eq!(named[0], "near");
        named.sort();
        assert_eq!(named, ["far", "left", "near"]);
        drop(others);
        assert_eq!(sent(&holders, WEIGHTS, &one, &newcomer), [Vec::<String>::new()]);
    }
}
