//! `flotilla key`: makes an API key. The key is shown once; the file gets its hash.

use crate::output;
use anyhow::{Context, Result};
use clap::Args;
use flotilla_coordinator::keys;
use flotilla_trust::audit::{self, Act};

/// Make an API key and print its entry for the key file. The key itself is shown once, on stderr:
/// flotilla key alice >> keys.toml
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// Whose key it is: letters, digits and -_.@
    name: String,
    /// It may change the fleet as well: flotilla dissolve
    #[arg(long)]
    admin: bool,
}

/// Tells keys of this server from others where they turn up.
const PREFIX: &str = "flotilla-";

pub fn run(args: &KeyArgs) -> Result<()> {
    let secret = secret();
    let entry = keys::entry(&args.name, &secret).with_context(|| {
        format!("{:?} is no name for a key\nhint: letters, digits and -_.@, 1 to 64 of them", args.name)
    })?;
    let admin = if args.admin { "admin = true\n" } else { "" };
    // First, since without it the key is worth nothing.
    println!("{entry}{admin}");
    output::flush();
    eprintln!("the key of {}, shown this once:\n{secret}", args.name);
    audit::done(Act::MakeKey, &args.name, "an entry, which counts once it is in a server's key file");
    Ok(())
}

/// 256 bits that nobody guesses, so that a plain hash of them is safe to keep.
fn secret() -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    bytes.iter().fold(PREFIX.to_owned(), |secret, byte| secret + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_coordinator::keys::Keyring;

    #[test]
    fn entries_one_after_the_other_are_a_key_file() {
        let (folder, secrets) = (tempfile::tempdir().unwrap(), [secret(), secret()]);
        let path = folder.path().join("keys.toml");
        let entries = ["alice", "bob"].iter().zip(&secrets);
        let text: String = entries.map(|(name, secret)| keys::entry(name, secret).unwrap()).collect();
        std::fs::write(&path, text).unwrap();
        let ring = Keyring::read(&path).unwrap();
        let names = secrets.each_ref().map(|secret| ring.find(secret.as_bytes()).unwrap().name.clone());
        assert_eq!(names, ["alice", "bob"]);
        assert!(ring.find(PREFIX.as_bytes()).is_none());
    }
}
