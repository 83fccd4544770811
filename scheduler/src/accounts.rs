//! What each client has had, in rows that were computed for it: what the shares of those who wait go by. Who is next is
//! not told here.

use crate::event::ClientId;
use std::collections::BTreeMap;

/// Of all who had sequences in the line or in the group since there were none.
#[derive(Default)]
pub struct Accounts {
    clients: BTreeMap<ClientId, Account>,
}

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
        let sequences = self.clients.get(&client).map_or(0, |account| account.sequences);
        free > 0 && (client == ClientId(0) || sequences <= free)
    }

    /// One more sequence of the client.
    pub fn open(&mut self, client: ClientId) {
        self.clients.entry(client).or_default().sequences += 1;
    }

    /// One less. Who comes again is not anew; with nobody left all are.
    pub fn close(&mut self, client: ClientId) {
        self.account(client).sequences -= 1;
        if self.clients.values().all(|account| account.sequences == 0) {
            self.clients.clear();
        }
    }

    pub fn rows(&self, client: ClientId) -> u64 {
        self.clients.get(&client).map_or(0, |account| account.rows)
    }

    /// Of the client who had most.
    pub fn most(&self) -> u64 {
        self.clients.values().map(|account| account.rows).max().unwrap_or(0)
    }

    /// The client has had so many at least.
    pub fn raise(&mut self, client: ClientId, least: u64) {
        let account = self.account(client);
        account.rows = account.rows.max(least);
    }

    /// Rows were computed for the client.
    pub fn serve(&mut self, client: ClientId, rows: usize) {
        self.account(client).rows += rows as u64;
    }

    fn account(&mut self, client: ClientId) -> &mut Account {
        self.clients.get_mut(&client).expect("a client with a sequence has an account")
    }

    /// Of all clients.
    #[cfg(debug_assertions)]
    pub fn sequences(&self) -> usize {
        self.clients.values().map(|account| account.sequences).sum()
    }
}
