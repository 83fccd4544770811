//! Who waits, and who is next: one order over all of them. The lowest priority number goes first. Among equals, what ran
//! before, and was preempted or lost its group, in the order of its arrival; then what is new of the client that was served
//! least: each client has a queue of its own, and the rows that are computed for it are counted, as in "Fairness in Serving
//! Large Language Models" (Sheng et al., 2024: the virtual token counter). One client alone is served in the order of
//! arrival. Who cannot come yet is passed over, and keeps its place.

use crate::accounts::{AccountId, Accounts};
use crate::event::{ClientId, Trial};
use crate::sequence::{Awaited, Sequence};
use flotilla_shared::{Epoch, SequenceId};
use std::collections::{BTreeMap, VecDeque};

/// So many are passed over at once, equals that stand together counted once; with more, those behind them wait.
const PASSED_MAX: usize = 64;

#[derive(Default)]
pub struct Line {
    /// What ran before: by priority, then by arrival.
    resumed: Queue,
    /// What did not, by arrival. No queue is empty.
    queues: BTreeMap<(i32, ClientId), Queue>,
    accounts: Accounts,
    count: usize,
    passed_count: usize,
    /// While somebody is, nobody else is next.
    pub on_trial: Option<Trial>,
}

/// Those of one kind, in their order.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Sequence>,
    /// So many of the first are passed over for now.
    passed: usize,
}

impl Queue {
    fn next(&self) -> Option<&Sequence> {
        self.waiting.get(self.passed)
    }

    fn insert(&mut self, sequence: Sequence) {
        let place = |it: &Sequence| (it.priority, it.arrival);
        let at = self.waiting.partition_point(|other| place(other) < place(&sequence));
        self.waiting.insert(at, sequence);
    }

    fn position(&self, id: SequenceId) -> Option<usize> {
        self.waiting.iter().position(|sequence| sequence.id == id)
    }
}

/// In which queue the next one stands.
#[derive(Clone, Copy)]
enum Place {
    Resumed,
    New(i32, ClientId),
}

impl Line {
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether a client finds room in a queue of so many.
    pub fn has_room(&self, client: ClientId, waiting_max: usize) -> bool {
        self.accounts.has_share(client, waiting_max.saturating_sub(self.count))
    }

    /// Joins the end of its client's queue.
    pub fn join(&mut self, sequence: Sequence) {
        self.accounts.open(sequence.account());
        self.level(sequence.account());
        self.count += 1;
        self.queues.entry((sequence.priority, sequence.client)).or_default().insert(sequence);
    }

    /// Takes one in: among those who come back if it ran before, else as whoever comes.
    pub fn adopt(&mut self, sequence: Sequence) {
        if sequence.has_run() {
            self.accounts.open(sequence.account());
            self.resume(sequence);
        } else {
            self.join(sequence);
        }
    }

    /// A client of whom nobody waits has had as much, at least, as the one of those who wait who had least; where nobody
    /// waits, as whoever had most: time in which it did not wait is no credit.
    fn level(&mut self, account: AccountId) {
        if self.queues.contains_key(&account) {
            return;
        }
        let priority = account.0;
        let waiting = self.queues.range((priority, ClientId(0))..=(priority, ClientId(u64::MAX)));
        let least = waiting.map(|(other, _)| self.accounts.rows(*other)).min();
        self.accounts.raise(account, least.unwrap_or_else(|| self.accounts.most(priority)));
    }

    /// Comes back from the group.
    pub fn resume(&mut self, sequence: Sequence) {
        self.count += 1;
        self.resumed.insert(sequence);
    }

    /// Whether who is next did not fit when the group was as it is, so that nobody comes.
    pub fn is_refused(&self, seen: (Epoch, u64)) -> bool {
        let next = match self.next_place() {
            Some(Place::Resumed) => self.resumed.next(),
            Some(Place::New(priority, client)) => self.queues.get(&(priority, client)).and_then(Queue::next),
            None => None,
        };
        next.is_some_and(|next| next.refused == Some(seen))
    }

    /// Who is next.
    pub fn peek(&mut self) -> Option<&mut Sequence> {
        let place = self.next_place()?;
        let queue = self.queue(place)?;
        queue.waiting.get_mut(queue.passed)
    }

    /// Takes out who is next. It stays on its client's account until [`Line::leave`].
    pub fn pop(&mut self) -> Option<Sequence> {
        let place = self.next_place()?;
        let at = self.queue(place)?.passed;
        self.take(place, at)
    }

    /// Passes over who is next, and those right behind it who are known to await the same, until [`Line::pass_nobody`]: false
    /// where too many are passed over already.
    pub fn pass_over(&mut self, awaited: Option<Awaited>) -> bool {
        if self.passed_count == PASSED_MAX {
            return false;
        }
        if let Some(queue) = self.next_place().and_then(|place| self.queue(place)) {
            queue.passed += 1;
            while awaited.is_some() && queue.next().is_some_and(|next| next.awaits == awaited) {
                queue.passed += 1;
            }
            self.passed_count += 1;
        }
        true
    }

    /// Everybody stands in its place again.
    pub fn pass_nobody(&mut self) {
        if std::mem::take(&mut self.passed_count) > 0 {
            self.resumed.passed = 0;
            self.queues.values_mut().for_each(|queue| queue.passed = 0);
        }
    }

    fn next_place(&self) -> Option<Place> {
        let new = self.next_new();
        match self.resumed.next() {
            Some(resumed) if new.is_none_or(|(priority, _)| resumed.priority <= priority) => {
                Some(Place::Resumed)
            }
            _ => new.map(|(priority, client)| Place::New(priority, client)),
        }
    }

    /// Of those who never ran.
    fn next_new(&self) -> Option<(i32, ClientId)> {
        let mut fronts = self.queues.values().filter_map(Queue::next).peekable();
        let least = fronts.peek()?.priority;
        let of_least = fronts.take_while(|front| front.priority == least);
        let next = of_least.min_by_key(|front| (self.accounts.rows(front.account()), front.arrival))?;
        Some((least, next.client))
    }

    fn queue(&mut self, place: Place) -> Option<&mut Queue> {
        match place {
            Place::Resumed => Some(&mut self.resumed),
            Place::New(priority, client) => self.queues.get_mut(&(priority, client)),
        }
    }

    fn take(&mut self, place: Place, at: usize) -> Option<Sequence> {
        let queue = self.queue(place)?;
        let taken = queue.waiting.remove(at)?;
        if let Place::New(priority, client) = place
            && queue.waiting.is_empty()
        {
            self.queues.remove(&(priority, client));
        }
        self.count -= 1;
        Some(taken)
    }

    /// Rows were computed for a client.
    pub fn serve(&mut self, account: AccountId, rows: usize) {
        self.accounts.serve(account, rows);
    }

    /// A sequence that stood here or ran has ended.
    pub fn leave(&mut self, account: AccountId) {
        self.accounts.close(account);
    }

    pub fn find_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.iter_mut().find(|sequence| sequence.id == id)
    }

    /// Nobody waits for one that is gone.
    pub fn end_trial(&mut self, id: SequenceId) {
        self.on_trial.take_if(|trial| trial.sequence == id);
    }

    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        debug_assert_eq!(self.passed_count, 0, "somebody is taken out while others are passed over");
        if let Some(at) = self.resumed.position(id) {
            return self.take(Place::Resumed, at);
        }
        let mut queues = self.queues.iter();
        let (place, at) = queues.find_map(|(&(priority, client), queue)| {
            Some((Place::New(priority, client), queue.position(id)?))
        })?;
        self.take(place, at)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.resumed.waiting.iter().chain(self.queues.values().flat_map(|queue| &queue.waiting))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        let new = self.queues.values_mut().flat_map(|queue| &mut queue.waiting);
        self.resumed.waiting.iter_mut().chain(new)
    }

    /// Sequences on all accounts: those that wait here, and those that run.
    #[cfg(debug_assertions)]
    pub fn accounted(&self) -> usize {
        self.accounts.sequences()
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
            line.serve(sequence.account(), rows);
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
    fn lower_numbers_go_first_and_who_ran_before_its_equals() {
        let mut line = Line::default();
        for (arrival, client, priority) in
            [(1, 1, 0), (2, 1, -5), (3, 2, -5), (4, 2, 9), (5, 2, 9), (6, 1, 9)]
        {
            line.join(sequence(arrival, client, priority));
        }
        // The last two of priority 9 run, and come back.
        for id in [6, 5] {
            let ran = line.remove(SequenceId(id)).unwrap();
            line.resume(ran);
        }
        assert_eq!(order(&mut line, 1), [2, 3, 1, 5, 6, 4]);
    }

    #[test]
    fn who_is_passed_over_keeps_its_place() {
        let mut line = Line::default();
        (1..=3).for_each(|arrival| line.join(sequence(arrival, 1, 0)));
        (4..=5).for_each(|arrival| line.join(sequence(arrival, 2, 0)));
        line.resume(sequence(6, 1, 0));
        line.accounts.open((0, ClientId(1)));
        assert!((0..3).all(|_| line.pass_over(None)));
        assert_eq!(line.pop().map(|it| it.id.0), Some(3), "6, 1 and 2 are passed over");
        assert_eq!((line.peek().map(|it| it.id.0), line.len()), (Some(4), 5));
        line.pass_nobody();
        assert_eq!(order(&mut line, 10), [6, 4, 1, 5, 2]);
    }

    #[test]
    fn so_many_are_passed_over_and_no_more() {
        let mut line = Line::default();
        (0..PASSED_MAX as u64 + 1).for_each(|arrival| line.join(sequence(arrival, arrival % 3, 0)));
        assert!((0..PASSED_MAX).all(|_| line.pass_over(None)) && !line.pass_over(None));
        assert!(line.peek().is_some());
        line.pass_nobody();
        assert_eq!(line.peek().map(|it| it.id.0), Some(0));
    }

    #[test]
    fn who_comes_anew_has_no_credit_for_idle_time() {
        let mut line = Line::default();
        line.join(sequence(1, 1, 0));
        line.serve((0, ClientId(1)), 1000);
        line.join(sequence(2, 2, 0));
        line.join(sequence(3, 2, 0));
        assert_eq!(order(&mut line, 10), [1, 2, 3], "equal accounts: by arrival");
    }

    #[test]
    fn who_ran_without_anybody_waiting_has_no_credit_for_it() {
        let mut line = Line::default();
        for (arrival, client, rows) in [(1, 2, 10), (2, 1, 1000)] {
            line.join(sequence(arrival, client, 0));
            assert_eq!(line.pop().map(|it| it.id.0), Some(arrival));
            line.serve((0, ClientId(client)), rows);
        }
        (3..5).for_each(|arrival| line.join(sequence(arrival, 1, 0)));
        (5..7).for_each(|arrival| line.join(sequence(arrival, 2, 0)));
        assert_eq!(order(&mut line, 10), [3, 5, 4, 6]);
    }

    #[test]
    fn who_waits_is_not_made_to_have_had_more_by_another_priority() {
        let mut line = Line::default();
        (1..3).for_each(|client| line.join(sequence(client, client, 5)));
        line.join(sequence(3, 3, 0));
        assert_eq!(line.pop().map(|it| it.id.0), Some(3));
        line.serve((0, ClientId(3)), 1000);
        line.join(sequence(4, 1, 0));
        line.join(sequence(5, 2, 5));
        assert_eq!(order(&mut line, 10), [4, 1, 2, 5]);
    }

    /// Nobody else waits for the first, and one had much there: that is not what it had in the other.
    #[test]
    fn a_share_in_one_priority_is_not_spent_in_another() {
        let mut line = Line::default();
        line.join(sequence(1, 1, 0));
        assert_eq!(line.pop().map(|it| it.id.0), Some(1));
        line.serve((0, ClientId(1)), 1000);
        (3..5).for_each(|arrival| line.join(sequence(arrival, 2, 10)));
        line.join(sequence(5, 3, 0));
        (6..8).for_each(|arrival| line.join(sequence(arrival, 3, 10)));
        assert_eq!(order(&mut line, 10), [5, 3, 6, 4, 7]);
    }

    #[test]
    fn who_had_more_has_had_it_when_it_comes_again() {
        let mut line = Line::default();
        (1..4).for_each(|arrival| line.join(sequence(arrival, 1, 0)));
        line.join(sequence(4, 2, 0));
        for rows in [10, 1000] {
            let account = line.pop().unwrap().account();
            line.serve(account, rows);
        }
        line.leave((0, ClientId(2)));
        line.join(sequence(5, 2, 0));
        assert_eq!(order(&mut line, 10), [2, 3, 5]);
    }
}
