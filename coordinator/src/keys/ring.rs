//! All keys that are known, and the file that they came from, which is read again once it is another: a key
//! that stays keeps what it has used. A file that cannot be taken changes nothing but the log, and is tried again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use flotilla_trust::Stamp;
use flotilla_trust::audit::{self, Act};

use super::file::{self, Entries};
use super::{Key, KeyFileError};

/// Between two looks at the file.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Keyring {
    path: PathBuf,
    keys: RwLock<Vec<Arc<Key>>>,
    look: Mutex<Look>,
}

/// How the file was when it was looked at last.
#[derive(Debug)]
struct Look {
    at: Instant,
    stamp: Option<Stamp>,
    /// Why it could not be taken as it is.
    failed: Option<String>,
    /// Given to no key yet: a number is never given twice.
    client_next: u64,
}

impl Keyring {
    pub fn read(path: &Path) -> Result<Keyring, KeyFileError> {
        // The stamp first: what is written meanwhile is read again.
        let stamp = Stamp::of(path);
        let keys: Vec<_> = (1..).zip(file::read(path)?).map(|(client, entry)| entry.key(client)).collect();
        let look = Look { at: Instant::now(), stamp, failed: None, client_next: 1 + keys.len() as u64 };
        Ok(Keyring { path: path.to_owned(), keys: RwLock::new(keys), look: Mutex::new(look) })
    }

    /// Every key is looked at, so that the time says nothing of which one it was.
    pub fn find(&self, secret: &[u8]) -> Option<Arc<Key>> {
        self.look();
        let hash = blake3::hash(secret);
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        // `blake3::Hash` compares in constant time.
        keys.iter().fold(None, |found, key| if key.hash == hash { Some(Arc::clone(key)) } else { found })
    }

    pub fn len(&self) -> usize {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Once in a while, by whoever comes then; the others go on with what is known.
    fn look(&self) {
        if let Ok(mut look) = self.look.try_lock()
            && look.at.elapsed() >= LOOK_EVERY
        {
            look.at = Instant::now();
            self.look_again(&mut look);
        }
    }

    fn look_again(&self, look: &mut Look) {
        let stamp = Stamp::of(&self.path);
        // Whether it can be read may hang on more than the file.
        if look.stamp == stamp && look.failed.is_none() {
            return;
        }
        look.stamp = stamp;
        match file::read(&self.path) {
            Ok(entries) => {
                look.failed = None;
                self.replace(entries, look);
            }
            Err(error) => {
                // What is wrong with a file is told once.
                let words = error.to_string();
                if look.failed.replace(words.clone()) != Some(words) {
                    audit::failed(Act::ReadKeys, self.path.display(), error);
                }
            }
        }
    }

    fn replace(&self, entries: Entries, look: &mut Look) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let mut old: BTreeMap<_, _> = keys.drain(..).map(|key| (*key.hash.as_bytes(), key)).collect();
        let (mut keys_new, mut new) = (Vec::with_capacity(entries.len()), Vec::new());
        let mut changed = Vec::new();
        for entry in entries {
            keys_new.push(match old.remove(entry.hash.as_bytes()) {
                Some(key) => {
                    if (&key.name, key.allowance, key.priority, key.admin)
                        != (&entry.name, entry.allowance, entry.priority, entry.admin)
                    {
                        changed.push(entry.name.clone());
                    }
                    entry.key_after(&key)
                }
                None => {
                    look.client_next += 1;
                    new.push(entry.name.clone());
                    entry.key(look.client_next - 1)
                }
            });
        }
        let gone: Vec<_> = old.into_values().map(|key| key.name.clone()).collect();
        audit::done(Act::ReadKeys, self.path.display(), difference(&new, &gone, &changed));
        *keys = keys_new;
    }
}

/// By name, as many as a line of the log has room for.
fn difference(new: &[String], gone: &[String], changed: &[String]) -> String {
    const NAMES: usize = 20;
    let list = |names: &[String]| {
        let more = if names.len() > NAMES { ", …" } else { "" };
        let first = names.iter().take(NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
        format!("{} ({first}{more})", names.len())
    };
    format!("new {}, gone {}, changed {}", list(new), list(gone), list(changed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_changed_in_a_key_file_is_told_by_name() {
        let names: Vec<String> = (0..21).map(|number| format!("n{number}")).collect();
        let text = difference(&names[..2], &[], &names);
        assert!(text.starts_with("new 2 (n0, n1), gone 0 (), changed 21 (n0, "), "{text}");
        assert!(text.ends_with(", n19, …)"), "{text}");
    }

    use crate::keys::{Exceeded, entry};

    fn look_now(keys: &Keyring) {
        keys.look_again(&mut keys.look.lock().unwrap());
    }

    #[test]
    fn a_key_that_stays_keeps_its_account_and_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let ann = entry("ann", "a").unwrap() + "requests_per_minute = 2\n";
        fs::write(&path, entry("old", "o").unwrap() + &ann).unwrap();
        let keys = Keyring::read(&path).unwrap();
        let before = keys.find(b"a").unwrap();
        let open = before.visit().unwrap();
        let old = keys.find(b"o").unwrap();

        // Old goes, Ben comes, Ann may be at work once only and has another name.
        let ann = entry("anna", "a").unwrap() + "requests_per_minute = 2\nconcurrent = 1\n";
        fs::write(&path, ann + &entry("ben", "b").unwrap()).unwrap();
        look_now(&keys);
        assert!(keys.find(b"o").is_none() && keys.len() == 2);
        let (ann, ben) = (keys.find(b"a").unwrap(), keys.find(b"b").unwrap());
        assert_eq!((ann.name.as_str(), ann.client), ("anna", before.client));
        assert!(![ann.client, old.client].contains(&ben.client), "a number is given once");
        assert_eq!(ann.visit().unwrap_err(), Exceeded::Concurrent { concurrent: 1 });
        drop(open);
        drop(ann.visit().unwrap());
        assert!(matches!(ann.visit(), Err(Exceeded::Requests { per_minute: 2, .. })), "two were made");
    }

    #[test]
    fn a_file_that_cannot_be_taken_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let good = entry("ann", "a").unwrap();
        fs::write(&path, &good).unwrap();
        let keys = Keyring::read(&path).unwrap();
        for bad in ["", "[[key]]\nname = 3\n", "not toml"] {
            fs::write(&path, bad).unwrap();
            look_now(&keys);
            assert!(keys.find(b"a").is_some(), "{bad:?}");
        }
        fs::remove_file(&path).unwrap();
        look_now(&keys);
        assert!(keys.find(b"a").is_some());
        fs::write(&path, good + &entry("ben", "b").unwrap()).unwrap();
        look_now(&keys);
        assert!(keys.find(b"a").is_some() && keys.find(b"b").is_some());
    }
    /// A key that was taken away was good for ever.
    #[test]
    fn a_file_that_could_not_be_read_for_once_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        fs::write(&path, entry("ann", "a").unwrap()).unwrap();
        let keys = Keyring::read(&path).unwrap();
        fs::write(&path, entry("ben", "b").unwrap()).unwrap();
        {
            // Its stamp was seen, and the reading failed.
            let mut look = keys.look.lock().unwrap();
            (look.stamp, look.failed) = (Stamp::of(&path), Some("too many open files".into()));
        }
        look_now(&keys);
        assert!(keys.find(b"a").is_none() && keys.find(b"b").is_some());
        assert_eq!(keys.look.lock().unwrap().failed, None);
    }

    #[test]
    fn a_file_of_the_same_length_and_time_of_writing_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        fs::write(&path, entry("ann", "a").unwrap()).unwrap();
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        let keys = Keyring::read(&path).unwrap();
        let before = Stamp::of(&path);
        // The system's time of change goes in ticks.
        while Stamp::of(&path) == before {
            fs::write(&path, entry("ann", "b").unwrap()).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
        }
        look_now(&keys);
        assert!(keys.find(b"a").is_none() && keys.find(b"b").is_some());
    }
}
