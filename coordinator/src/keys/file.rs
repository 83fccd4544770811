//! The key file: TOML, a table for each key, which `flotilla key NAME` writes.
//!
//! ```toml
//! [[key]]
//! name = "alice"
//! blake3 = "0f1e…"             # of the key, 64 hexadecimal digits
//! requests_per_minute = 60     # these five may be left out
//! tokens_per_minute = 100000
//! concurrent = 4
//! priority = 0
//! admin = false                # may change the fleet
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use flotilla_scheduler::ClientId;
use serde::Deserialize;
use toml::Spanned;

use super::account::Account;
use super::{Allowance, Key, Used};

/// Every request's key is compared with all of them.
const KEYS_MAX: usize = 10_000;
const NAME_BYTES_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
#[error("cannot take API keys from {}: {fault}\nhint: flotilla key NAME prints an entry as it must be", path.display())]
pub struct KeyFileError {
    pub path: PathBuf,
    pub fault: KeyFileFault,
}

#[derive(Debug, thiserror::Error)]
pub enum KeyFileFault {
    #[error("{0}")]
    Unreadable(#[source] std::io::Error),
    #[error("line {line}: {what}")]
    Malformed { line: usize, what: String },
    #[error("it holds no key, and nobody could ask anything")]
    Empty,
}

/// One more entry, to be put at the end of a key file. `None`: that is no name.
pub fn entry(name: &str, secret: &str) -> Option<String> {
    let hash = blake3::hash(secret.as_bytes()).to_hex();
    is_name(name).then(|| format!("[[key]]\nname = \"{name}\"\nblake3 = \"{hash}\"\n"))
}

pub fn read(path: &Path) -> Result<Entries, KeyFileError> {
    let text = fs::read_to_string(path).map_err(KeyFileFault::Unreadable);
    text.and_then(|text| parse(&text)).map_err(|fault| KeyFileError { path: path.to_owned(), fault })
}

pub type Entries = Vec<NewKey>;

/// A key as the file has it.
pub struct NewKey {
    pub name: String,
    pub hash: blake3::Hash,
    pub allowance: Allowance,
    pub priority: i32,
    pub admin: bool,
}

impl NewKey {
    /// One that nobody has used.
    pub fn key(self, client: u64) -> Arc<Key> {
        let account = Mutex::new(Account::new(&self.allowance));
        self.used_by(ClientId(client), Arc::new(Used { began: Instant::now(), account }))
    }

    /// The same key as `before`, maybe with another name and other limits.
    pub fn key_after(self, before: &Key) -> Arc<Key> {
        self.used_by(before.client, Arc::clone(&before.used))
    }

    fn used_by(self, client: ClientId, used: Arc<Used>) -> Arc<Key> {
        let NewKey { name, hash, allowance, priority, admin } = self;
        Arc::new(Key { name, client, hash, allowance, priority, admin, used })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Spanned<String>,
    blake3: Spanned<String>,
    requests_per_minute: Option<Spanned<u32>>,
    tokens_per_minute: Option<Spanned<u32>>,
    concurrent: Option<Spanned<u32>>,
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    admin: bool,
}

fn parse(text: &str) -> Result<Entries, KeyFileFault> {
    let malformed = |at: usize, what: &str| KeyFileFault::Malformed {
        line: text[..at.min(text.len())].matches('\n').count() + 1,
        what: what.to_owned(),
    };
    let file: File = toml::from_str(text)
        .map_err(|error| malformed(error.span().map_or(text.len(), |span| span.start), error.message()))?;
    if file.key.is_empty() {
        return Err(KeyFileFault::Empty);
    }
    if file.key.len() > KEYS_MAX {
        return Err(malformed(0, &format!("{} keys, of at most {KEYS_MAX}", file.key.len())));
    }
    let (mut names, mut hashes) = (BTreeSet::new(), BTreeSet::new());
    let mut keys = Vec::new();
    for entry in file.key {
        let (name_at, hash_at) = (entry.name.span().start, entry.blake3.span().start);
        for limit in [&entry.requests_per_minute, &entry.tokens_per_minute, &entry.concurrent] {
            if let Some(limit) = limit.as_ref().filter(|limit| *limit.as_ref() == 0) {
                return Err(malformed(
                    limit.span().start,
                    "a limit of 0 lets nothing through; remove the key",
                ));
            }
        }
        let key = entry.key().map_err(|fault| match fault {
            EntryFault::Name => malformed(name_at, "a name has letters, digits and -_.@, 1 to 64 of them"),
            EntryFault::Hash => malformed(hash_at, "blake3 is not 64 hexadecimal digits"),
        })?;
        if !names.insert(key.name.clone()) {
            return Err(malformed(
                name_at,
                &format!("the name {:?} is given to an earlier key, too", key.name),
            ));
        }
        if !hashes.insert(*key.hash.as_bytes()) {
            return Err(malformed(hash_at, "this is an earlier key, too"));
        }
        keys.push(key);
    }
    Ok(keys)
}

enum EntryFault {
    Name,
    Hash,
}

impl Entry {
    fn key(self) -> Result<NewKey, EntryFault> {
        let name = self.name.into_inner();
        if !is_name(&name) {
            return Err(EntryFault::Name);
        }
        let hash = blake3::Hash::from_hex(self.blake3.into_inner()).map_err(|_| EntryFault::Hash)?;
        let limit = |limit: Option<Spanned<u32>>| limit.map(Spanned::into_inner);
        let allowance = Allowance {
            requests_per_minute: limit(self.requests_per_minute),
            tokens_per_minute: limit(self.tokens_per_minute),
            concurrent: limit(self.concurrent),
        };
        Ok(NewKey { name, hash, allowance, priority: self.priority, admin: self.admin })
    }
}

/// Names stand in logs and in TOML without being quoted.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        parse(text).err().expect("a fault").to_string()
    }

    #[test]
    fn what_is_written_can_be_read() {
        let text = entry("alice", "secret a").unwrap()
            + "requests_per_minute = 60\npriority = -2\nadmin = true\n\n"
            + &entry("bob@example.org", "secret b").unwrap();
        let keys = parse(&text).unwrap();
        let [alice, bob] = keys.as_slice() else { panic!("two keys") };
        assert_eq!((alice.name.as_str(), alice.priority), ("alice", -2));
        assert_eq!((alice.admin, bob.admin), (true, false));
        assert_eq!((alice.allowance.requests_per_minute, alice.hash), (Some(60), blake3::hash(b"secret a")));
        assert_eq!((bob.allowance, bob.hash), (Allowance::default(), blake3::hash(b"secret b")));
        assert_eq!(entry("no blanks", "x"), None);
    }

    #[test]
    fn faults_say_which_line_and_what() {
        let good = entry("a", "x").unwrap();
        assert_eq!(fault(""), "it holds no key, and nobody could ask anything");
        assert!(fault(&(good.clone() + "requests = 3\n")).starts_with("line 4: unknown field `requests`"));
        assert!(fault(&(good.clone() + "concurrent = \"x\"\n")).starts_with("line 4: invalid type: string"));
        assert!(fault(&(good.clone() + "concurrent = 0\n")).starts_with("line 4: a limit of 0"));
        assert!(fault(&(good.clone() + "]\n")).starts_with("line 4: "));
        assert_eq!(
            fault(&(good.clone() + "\n" + &good)),
            "line 6: the name \"a\" is given to an earlier key, too"
        );
        let other = entry("b", "x").unwrap();
        assert_eq!(fault(&(good.clone() + &other)), "line 6: this is an earlier key, too");
        assert_eq!(
            fault("[[key]]\nname = \"a\"\nblake3 = \"12\"\n"),
            "line 3: blake3 is not 64 hexadecimal digits"
        );
        assert!(
            fault("[[key]]\nname = \"a b\"\nblake3 = \"12\"\n").starts_with("line 2: a name has letters")
        );
        assert!(fault("[[key]]\nname = \"a\"\n").starts_with("line 1: missing field `blake3`"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("/no/such/keys.toml")).err().unwrap().to_string();
        assert!(error.starts_with("cannot take API keys from /no/such/keys.toml: No such file"), "{error}");
        assert!(error.contains("\nhint: flotilla key NAME"), "{error}");
    }
}
