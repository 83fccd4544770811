//! The handshake on one connection: each side proves that it holds the group's key, by the MAC of the
//! other's nonce, before anything that it says is believed.
//!
//! | | from | |
//! |---|---|---|
//! | hello | dialer | magic, version, nonce |
//! | challenge | acceptor | magic, version, nonce, MAC(acceptor, both nonces) |
//! | claim | dialer | epoch, rank, size, MAC(dialer, both nonces, these) |
//! | welcome | acceptor | epoch, rank, size, MAC(welcome, both nonces, these) |
//!
//! All of fixed size; MACs are blake3 keyed with the group's key.

use crate::collective::CollectiveError;
use flotilla_shared::{Epoch, Rank};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

const MAGIC: [u8; 8] = *b"FLOTILLA";
const VERSION: u32 = 1;
const NONCE_BYTES: usize = 32;
const MAC_BYTES: usize = 32;
const HELLO_BYTES: usize = 8 + 4 + NONCE_BYTES;
const CHALLENGE_BYTES: usize = HELLO_BYTES + MAC_BYTES;
const IDENTITY_BYTES: usize = 8 + 2 + 2;
const CLAIM_BYTES: usize = IDENTITY_BYTES + MAC_BYTES;

/// One handshake may take this long, however slowly its bytes drip.
pub(super) const HANDSHAKE_MAX: Duration = Duration::from_secs(2);

/// Why a connection came to nothing.
pub(super) enum Refusal {
    /// Not a member, as far as this rank knows; others may come.
    Stranger(String),
    /// A proven member says what ends the meeting.
    Fatal(CollectiveError),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Stranger(match error.kind() {
            ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
            ErrorKind::WouldBlock | ErrorKind::TimedOut => "it did not answer in time".to_owned(),
            _ => error.to_string(),
        })
    }
}

/// Who this rank is, and what proves it.
pub(super) struct Member {
    pub(super) key: [u8; 32],
    pub(super) identity: Identity,
}

/// What a member says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) epoch: Epoch,
    pub(super) rank: Rank,
    pub(super) size: u16,
}

impl Identity {
    fn to_bytes(self) -> [u8; IDENTITY_BYTES] {
        let mut bytes = [0; IDENTITY_BYTES];
        bytes[..8].copy_from_slice(&self.epoch.0.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.rank.0.to_le_bytes());
        bytes[10..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; IDENTITY_BYTES]) -> Self {
        let [e0, e1, e2, e3, e4, e5, e6, e7, r0, r1, s0, s1] = *bytes;
        Identity {
            epoch: Epoch(u64::from_le_bytes([e0, e1, e2, e3, e4, e5, e6, e7])),
            rank: Rank(u16::from_le_bytes([r0, r1])),
            size: u16::from_le_bytes([s0, s1]),
        }
    }
}

impl Member {
    pub(super) fn dial(
        &self,
        stream: &TcpStream,
        peer: Rank,
        address: &str,
        until: Instant,
    ) -> Result<(), Refusal> {
        let mut wire = Wire::new(stream, until)?;
        let mine = nonce()?;
        wire.send(&[&MAGIC, &VERSION.to_le_bytes(), &mine])?;
        let challenge: [u8; CHALLENGE_BYTES] = wire.receive()?;
        let (hello, proof) = challenge.split_at(HELLO_BYTES);
        let theirs = nonce_of(hello)?;
        self.verify("acceptor", &[&mine, theirs], proof)?;
        let claim = self.identity.to_bytes();
        wire.send(&[&claim, self.mac("dialer", &[theirs, &mine, &claim]).as_bytes()])?;
        let welcome: [u8; CLAIM_BYTES] = wire.receive()?;
        let (identity, proof) = welcome.split_first_chunk().expect("it begins with an identity");
        self.verify("welcome", &[theirs, &mine, identity], proof)?;
        let found = Identity::from_bytes(identity);
        if found.epoch < self.identity.epoch {
            // It has still to learn that its epoch is over.
            return Err(Refusal::Stranger(format!("it is still of epoch {}", found.epoch)));
        }
        self.compare(found, address, peer..=peer)
    }

    /// The rank of who dialed in. `proven` is told once it has shown that it is a member, and says whether it may stay.
    pub(super) fn accept(
        &self,
        stream: &TcpStream,
        address: &str,
        until: Instant,
        proven: impl FnOnce() -> bool,
    ) -> Result<Rank, Refusal> {
        // Some systems hand the listener's flag on.
        stream.set_nonblocking(false)?;
        let mut wire = Wire::new(stream, until)?;
        let hello: [u8; HELLO_BYTES] = wire.receive()?;
        let theirs = nonce_of(&hello)?;
        let mine = nonce()?;
        let proof = self.mac("acceptor", &[theirs, &mine]);
        wire.send(&[&MAGIC, &VERSION.to_le_bytes(), &mine, proof.as_bytes()])?;
        let claim: [u8; CLAIM_BYTES] = wire.receive()?;
        let (identity, proof) = claim.split_first_chunk().expect("it begins with an identity");
        self.verify("dialer", &[&mine, theirs, identity], proof)?;
        if !proven() {
            return Err(Refusal::Stranger("too many came at once".to_owned()));
        }
        // Before judging it, so that the other side can judge too.
        let welcome = self.identity.to_bytes();
        wire.send(&[&welcome, self.mac("welcome", &[&mine, theirs, &welcome]).as_bytes()])?;
        let found = Identity::from_bytes(identity);
        if found.epoch < self.identity.epoch {
            return Err(Refusal::Stranger(format!("a member left behind in epoch {}", found.epoch)));
        }
        let above = Rank(self.identity.rank.0 + 1)..=Rank(self.identity.size - 1);
        self.compare(found, address, above).map(|()| found.rank)
    }

    /// A proven member must be of this epoch, of a group of this size, and of one of `ranks`.
    fn compare(&self, found: Identity, address: &str, ranks: RangeInclusive<Rank>) -> Result<(), Refusal> {
        let ours = self.identity;
        if found.epoch != ours.epoch {
            let (peer, ours, theirs) = (found.rank, ours.epoch, found.epoch);
            return Err(Refusal::Fatal(CollectiveError::Stale { peer, ours, theirs }));
        }
        let bad = |field, expected: String, found: u16| {
            let (address, found) = (address.to_owned(), found.to_string());
            Err(Refusal::Fatal(CollectiveError::BadMember { address, field, expected, found }))
        };
        if found.size != ours.size {
            return bad("group size", ours.size.to_string(), found.size);
        }
        if !ranks.contains(&found.rank) {
            return bad("rank", format!("{} to {}", ranks.start(), ranks.end()), found.rank.0);
        }
        Ok(())
    }

    fn mac(&self, role: &str, parts: &[&[u8]]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        // The roles have no byte of 0, and all parts are of fixed size.
        hasher.update(role.as_bytes()).update(&[0]);
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize()
    }

    fn verify(&self, role: &str, parts: &[&[u8]], proof: &[u8]) -> Result<(), Refusal> {
        // Compared in constant time.
        match blake3::Hash::from_slice(proof).is_ok_and(|proof| proof == self.mac(role, parts)) {
            true => Ok(()),
            false => Err(Refusal::Stranger("it does not hold the group's key".to_owned())),
        }
    }
}

/// The nonce of a hello, or of the challenge's beginning, which has the same form.
fn nonce_of(hello: &[u8]) -> Result<&[u8], Refusal> {
    let (magic, rest) = hello.split_at(MAGIC.len());
    let (version, nonce) = rest.split_first_chunk().expect("a hello holds a version");
    let version = u32::from_le_bytes(*version);
    if magic != MAGIC {
        return Err(Refusal::Stranger("it does not speak this protocol".to_owned()));
    }
    if version != VERSION {
        let reason = format!("its protocol version is {version}, expected {VERSION}");
        return Err(Refusal::Stranger(reason));
    }
    Ok(nonce)
}

fn nonce() -> io::Result<[u8; NONCE_BYTES]> {
    let mut nonce = [0; NONCE_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    Ok(nonce)
}

/// One handshake's connection, with an end to its time.
struct Wire<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl<'a> Wire<'a> {
    fn new(stream: &'a TcpStream, until: Instant) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Wire { stream, until: until.min(Instant::now() + HANDSHAKE_MAX) })
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write_all(&parts.concat())
    }

    fn receive<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (mut bytes, mut have) = ([0; N], 0);
        while have < N {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match self.stream.read(&mut bytes[have..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(more) => have += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }
}
