//! What each client has had, in rows that were computed for it, of each position one: what the shares of those who wait go by. Who is next is
//! not told here.

use crate::event::ClientId;
use std::collections::BTreeMap;

/// A client's of one priority: what it had in another says nothing of its share in this one.
pub type AccountId = (i32, ClientId);

/// Of all who had sequences in the line or in the group since there were none of their priority.
#[derive(Default)]
pub struct Accounts(BTreeMap<AccountId, Account>);

#[derive(Clone, Copy, Default)]
struct Account {
    rows: u64,
    /// That wait or run.
    sequences: usize,
}

impl Accounts {
    /// Whether a client may have one more waiting where `free` places are left: none with a key takes so many that
    /// nobody else finds room. Who has no key is one client together, and may fill the queue.
    pub fn has_share(&self, client: ClientId, free: usize) -> bool {
        let own = self.0.iter().filter(|((_, other), _)| *other == client);
        let sequences: usize = own.map(|(_, account)| account.sequences).sum();
        free > 0 && (client == ClientId(0) || sequences <= free)
    }

    /// One more sequence.
    pub fn open(&mut self, id: AccountId) {
        self.0.entry(id).or_default().sequences += 1;
    }

    /// One less. Who comes again is not anew; with nobody left of the priority all are.
    pub fn close(&mut self, id: AccountId) {
        self.account(id).sequences -= 1;
        if self.of_priority(id.0).all(|account| account.sequences == 0) {
            self.0.retain(|(priority, _), _| *priority != id.0);
        }
    }

    pub fn rows(&self, id: AccountId) -> u64 {
        self.0.get(&id).map_or(0, |account| account.rows)
    }

    /// Of the client of this priority who had most.
    pub fn most(&self, priority: i32) -> u64 {
        self.of_priority(priority).map(|account| account.rows).max().unwrap_or(0)
    }

    /// The client has had so many at least.
    pub fn raise(&mut self, id: AccountId, least: u64) {
        let account = self.account(id);
        account.rows = account.rows.max(least);
    }

    /// Rows were computed for the client.
    pub fn serve(&mut self, id: AccountId, rows: usize) {
        self.account(id).rows += rows as u64;
    }

    fn of_priority(&self, priority: i32) -> impl Iterator<Item = &Account> {
        let all = (priority, ClientId(0))..=(priority, ClientId(u64::MAX));
        self.0.range(all).map(|(_, account)| account)
    }

    fn account(&mut self, id: AccountId) -> &mut Account {
        self.0.get_mut(&id).expect("a client with a sequence has an account")
    }

    /// Of all clients.
    #[cfg(debug_assertions)]
    pub fn sequences(&self) -> usize {
        self.0.values().map(|account| account.sequences).sum()
    }
}
