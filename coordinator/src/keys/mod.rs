//! API keys: who may ask, and how much. A key itself is never held, its hash is; a client's key is hashed
//! and compared in constant time. Without a key file everybody may ask, and nobody is told apart.
//!
//! What a key has used so far is counted here and lives as long as the process: several coordinators do
//! not share it.

mod account;
mod file;
mod ring;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flotilla_scheduler::ClientId;

use account::Account;
pub use account::{Allowance, Exceeded};
pub use file::{KeyFileError, KeyFileFault, entry};
pub use ring::Keyring;

#[derive(Debug)]
pub struct Key {
    pub name: String,
    /// From 1: 0 is who has none.
    pub client: ClientId,
    hash: blake3::Hash,
    pub allowance: Allowance,
    /// Requests of this key are at most that urgent; lower goes first.
    pub priority: i32,
    /// Whether it may change the fleet.
    pub admin: bool,
    used: Arc<Used>,
}

/// What a key has used, also by other limits before.
#[derive(Debug)]
struct Used {
    began: Instant,
    account: Mutex<Account>,
}

impl Key {
    /// A request begins, if the key may have one more.
    pub fn visit(self: &Arc<Key>) -> Result<Visit, Exceeded> {
        self.account().open(&self.allowance, self.now())?;
        Ok(Visit { key: Arc::clone(self), choices: AtomicU32::new(1) })
    }

    /// A request that only looks: it is known whose it is, and costs nothing of what the key may use.
    pub fn look(self: &Arc<Key>) -> Visit {
        Visit { key: Arc::clone(self), choices: AtomicU32::new(0) }
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.used.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.used.began.elapsed()
    }
}

/// A request under way on a key's account, until it is dropped.
#[derive(Debug)]
pub struct Visit {
    pub key: Arc<Key>,
    /// Places that it holds among those that the key may have at once.
    choices: AtomicU32,
}

impl Visit {
    /// The request asks for so many answers, where one was reckoned with.
    pub fn open_choices(&self, choices: usize) -> Result<(), Exceeded> {
        let more = u32::try_from(choices.saturating_sub(1)).unwrap_or(u32::MAX);
        self.key.account().open_more(&self.key.allowance, more)?;
        self.choices.fetch_add(more, Ordering::Relaxed);
        Ok(())
    }

    /// Before the work begins; of a prompt larger than a whole minute's allowance, that much must be there.
    pub fn spend_prompt(&self, tokens: usize) -> Result<(), Exceeded> {
        self.key.account().prompt(&self.key.allowance, self.key.now(), tokens)
    }

    /// The request was refused after all, and nothing was computed of its prompt.
    pub fn give_back_prompt(&self, tokens: usize) {
        self.key.account().give_back(&self.key.allowance, tokens);
    }

    /// A token was made. It is owed, if the account is empty: an answer under way is not cut off.
    pub fn spend_token(&self) {
        self.key.account().token(&self.key.allowance, self.key.now());
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.key.account().close(self.choices.load(Ordering::Relaxed));
    }
}
