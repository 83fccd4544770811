//! Who waits, and who is next. What ran before, and was preempted or lost its group, goes first, in the
//! order of its arrival. Then comes the lowest priority number; within it, the client that was served
//! least: each client has a queue of its own, and the rows that are computed for it are counted, as in
//! "Fairness in Serving Large Language Models" (Sheng et al., 2024: the virtual token counter). One client
//! alone is served in the order of arrival.

use crate::event::{ClientId, Trial};
use crate::sequence::Sequence;
use flotilla_shared::SequenceId;
use std::collections::{BTreeMap, VecDeque};

/// So many are passed over at once; with more, those behind them wait.
const ASIDE_MAX: usize = 64;

#[derive(Default)]
pub struct Line {
    /// Passed over while another computes what they begin with, or their mask is made; then before all others.
    aside: VecDeque<Sequence>,
    resumed: VecDeque<Sequence>,
    /// No queue is empty.
    queues: BTreeMap<(i32, ClientId), VecDeque<Sequence>>,
    clients: BTreeMap<ClientId, Account>,
    count: usize,
    /// While somebody is, nobody else is next.
    pub on_trial: Option<Trial>,
}

/// What one client has had, while it has sequences here or in the group.
#[derive(Clone, Copy, Default)]
struct Account {
    rows: u64,
    sequences: usize,
}

impl Account {
    /// Whether one more may wait where `free` places are left: no client with a key takes so many that
    /// nobody else finds room. Who has no key is one client together, and may fill the queue.
    fn has_share(&self, client: ClientId, free: usize) -> bool {
        free > 0 && (client == ClientId(0) || self.sequences <= free)
    }
}

/// Where the next one stands.
#[derive(Clone, Copy)]
enum Place {
    Resumed,
    Queue(i32, ClientId),
}

impl Line {
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether a client finds room in a queue of so many.
    pub fn has_room(&self, client: ClientId, waiting_max: usize) -> bool {
        let account = self.clients.get(&client).copied().unwrap_or_default();
        account.has_share(client, waiting_max.saturating_sub(self.count))
    }

    /// Joins the end of its client's queue. A client that comes anew has had as much as the one who had
    /// least: idle time is no credit.
    pub fn join(&mut self, sequence: Sequence) {
        self.open_account(sequence.client);
        self.count += 1;
        self.queues.entry((sequence.priority, sequence.client)).or_default().push_back(sequence);
    }

    /// Takes in one from elsewhere: among those who come back if it ran there, else as whoever comes.
    pub fn adopt(&mut self, sequence: Sequence) {
        if sequence.has_run() {
            self.open_account(sequence.client);
            self.resume(sequence);
        } else {
            self.join(sequence);
        }
    }

    fn open_account(&mut self, client: ClientId) {
        let least = self.clients.values().map(|account| account.rows).min().unwrap_or(0);
        self.clients.entry(client).or_insert(Account { rows: least, sequences: 0 }).sequences += 1;
    }

    /// Comes back from the group: by its arrival among those who did.
    pub fn resume(&mut self, sequence: Sequence) {
        self.count += 1;
        let at = self.resumed.partition_point(|other| other.arrival < sequence.arrival);
        self.resumed.insert(at, sequence);
    }

    /// Who is next.
    pub fn peek(&mut self) -> Option<&mut Sequence> {
        match self.next_place()? {
            Place::Resumed => self.resumed.front_mut(),
            Place::Queue(priority, client) => self.queues.get_mut(&(priority, client))?.front_mut(),
        }
    }

    /// Takes out who is next. It stays on its client's account until [`Line::leave`].
    pub fn pop(&mut self) -> Option<Sequence> {
        let sequence = match self.next_place()? {
            Place::Resumed => self.resumed.pop_front(),
            Place::Queue(priority, client) => {
                let queue = self.queues.get_mut(&(priority, client))?;
                let sequence = queue.pop_front();
                if queue.is_empty() {
                    self.queues.remove(&(priority, client));
                }
                sequence
            }
        };
        self.count -= 1;
        sequence
    }

    fn next_place(&self) -> Option<Place> {
        if !self.resumed.is_empty() {
            return Some(Place::Resumed);
        }
        let (&(priority, _), _) = self.queues.first_key_value()?;
        let of_priority = self.queues.range((priority, ClientId(0))..=(priority, ClientId(u64::MAX)));
        let least = of_priority.min_by_key(|((_, client), queue)| {
            let rows = self.clients.get(client).map_or(0, |account| account.rows);
            (rows, queue.front().map(|sequence| sequence.arrival))
        });
        least.map(|((priority, client), _)| Place::Queue(*priority, *client))
    }

    /// Passes over who is next: false where too many are passed over already.
    pub fn set_aside(&mut self) -> bool {
        if self.aside.len() == ASIDE_MAX {
            return false;
        }
        if let Some(sequence) = self.pop() {
            self.count += 1;
            self.aside.push_back(sequence);
        }
        true
    }

    /// Those that were passed over, oldest first.
    pub fn aside(&mut self, at: usize) -> Option<&mut Sequence> {
        self.aside.get_mut(at)
    }

    pub fn take_aside(&mut self, at: usize) -> Option<Sequence> {
        let sequence = self.aside.remove(at);
        self.count -= usize::from(sequence.is_some());
        sequence
    }

    /// Rows were computed for a client.
    pub fn serve(&mut self, client: ClientId, rows: usize) {
        self.account(client).rows += rows as u64;
    }

    /// A sequence that stood here or ran has ended.
    pub fn leave(&mut self, client: ClientId) {
        let account = self.account(client);
        account.sequences -= 1;
        if account.sequences == 0 {
            self.clients.remove(&client);
        }
    }

    fn account(&mut self, client: ClientId) -> &mut Account {
        self.clients.get_mut(&client).expect("a client with a sequence has an account")
    }

    pub fn find_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.iter_mut().find(|sequence| sequence.id == id)
    }

    /// Nobody waits for one that is gone.
    pub fn end_trial(&mut self, id: SequenceId) {
        self.on_trial.take_if(|trial| trial.sequence == id);
    }

    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let here = |queue: &VecDeque<Sequence>| queue.iter().position(|sequence| sequence.id == id);
        let found = if let Some(at) = here(&self.aside) {
            self.aside.remove(at)
        } else if let Some(at) = here(&self.resumed) {
            self.resumed.remove(at)
        } else {
            let (&key, at) = self.queues.iter().find_map(|(key, queue)| Some((key, here(queue)?)))?;
            let queue = self.queues.get_mut(&key)?;
            let found = queue.remove(at);
            if queue.is_empty() {
                self.queues.remove(&key);
            }
            found
        };
        self.count -= usize::from(found.is_some());
        found
    }

    pub fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.aside.iter().chain(&self.resumed).chain(self.queues.values().flatten())
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.aside.iter_mut().chain(&mut self.resumed).chain(self.queues.values_mut().flatten())
    }

    /// Sequences on all accounts: those that wait here, and those that run.
    #[cfg(debug_assertions)]
    pub fn accounted(&self) -> usize {
        self.clients.values().map(|account| account.sequences).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Request;
    use crate::sequence::Arrival;
    use std::time::Duration;

    fn sequence(arrival: u64, client: u64, priority: i32) -> Sequence {
        let request = Request {
            sequence: SequenceId(arrival),
            client: ClientId(client),
            priority,
            ..Request::default()
        };
        Sequence::new(Arrival(arrival), Duration::ZERO, request)
    }

    fn order(line: &mut Line, rows: usize) -> Vec<u64> {
        std::iter::from_fn(|| {
            let sequence = line.pop()?;
            line.serve(sequence.client, rows);
            Some(sequence.id.0)
        })
        .collect()
    }

    #[test]
    fn one_client_is_served_in_order_of_arrival() {
        let mut line = Line::default();
        (1..5).for_each(|arrival| line.join(sequence(arrival, 7, 0)));
        assert_eq!(order(&mut line, 10), [1, 2, 3, 4]);
    }

    #[test]
    fn a_client_that_sends_much_waits_for_one_that_sends_little() {
        let mut line = Line::default();
        (1..5).for_each(|arrival| line.join(sequence(arrival, 1, 0)));
        (5..7).for_each(|arrival| line.join(sequence(arrival, 2, 0)));
        assert_eq!(order(&mut line, 10), [1, 5, 2, 6, 3, 4]);
    }

    #[test]
    fn lower_numbers_go_first_and_who_ran_before_all() {
        let mut line = Line::default();
        line.join(sequence(1, 1, 0));
        line.join(sequence(2, 1, -5));
        line.join(sequence(3, 2, -5));
        let mut ran = line.pop().unwrap();
        assert_eq!(ran.id, SequenceId(2));
        ran.priority = 9;
        line.resume(ran);
        assert_eq!(order(&mut line, 1), [2, 3, 1]);
    }

    #[test]
    fn who_comes_anew_has_no_credit_for_idle_time() {
        let mut line = Line::default();
        line.join(sequence(1, 1, 0));
        line.serve(ClientId(1), 1000);
        line.join(sequence(2, 2, 0));
        line.join(sequence(3, 2, 0));
        assert_eq!(order(&mut line, 10), [1, 2, 3], "equal accounts: by arrival");
    }
}
