//! How the ranks of a group reach each other: which pairs share memory, and what travels between the others.
//! Decided once for all ranks by whoever makes the plan; how bytes then move is the engine's business.

use crate::ids::{Epoch, Rank};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkChoice {
    /// Memory between ranks of one host where they can share it, TCP elsewhere.
    #[default]
    Auto,
    /// TCP between all.
    Tcp,
    /// Memory between all; ranks that cannot share it are no group.
    Shm,
}

/// How one rank reaches another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    Shm,
    Tcp,
}

/// What travels of a sum between ranks that share no memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WireFormat {
    #[default]
    F32,
    /// Blocks of 32 with a scale, 1.125 bytes a value: for slow networks. Every rank rounds its part once,
    /// for itself too.
    Int8,
}

/// How each pair of a group's ranks is linked. The default is TCP between all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// By rank: ranks of equal number share memory. Empty where none do.
    pub hosts: Vec<u16>,
    /// Whether ranks that are to share memory and cannot end the group; otherwise they use TCP.
    pub must_share: bool,
    pub wire: WireFormat,
    /// By stage: up to how many values the vectors of ranks that are not all of one host go whole to every peer. Where it is
    /// 0, or the list is empty, the engine decides.
    pub whole_values_max: Vec<u32>,
}

impl Links {
    /// `hosts`: what each rank says of where it is, in rank order.
    pub fn between<'a>(
        hosts: impl IntoIterator<Item = &'a str>,
        choice: LinkChoice,
        wire: WireFormat,
    ) -> Links {
        let mut numbers = BTreeMap::new();
        let numbered = hosts.into_iter().map(|host| {
            let next = numbers.len() as u16;
            *numbers.entry(host).or_insert(next)
        });
        let hosts = match choice {
            LinkChoice::Auto => numbered.collect(),
            LinkChoice::Tcp => Vec::new(),
            // Whether they can is seen when they try.
            LinkChoice::Shm => numbered.map(|_| 0).collect(),
        };
        Links { hosts, must_share: choice == LinkChoice::Shm, wire, whole_values_max: Vec::new() }
    }

    /// As planned, between two different ranks.
    pub fn kind(&self, a: usize, b: usize) -> LinkKind {
        match (self.hosts.get(a), self.hosts.get(b)) {
            (Some(a), Some(b)) if a == b => LinkKind::Shm,
            _ => LinkKind::Tcp,
        }
    }
}

/// How a worker reaches the others, once it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Ranks whose memory it shares; the others it reaches by TCP.
    pub by_memory: Vec<Rank>,
    /// Why it does not share what the plan would have it share.
    pub not_shared: Option<String>,
}

/// Two workers that are to find out what the link between them does. They meet as two ranks would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkTest {
    pub epoch: Epoch,
    /// Which of the two this one is.
    pub rank: Rank,
    /// Where both listen, `host:port`.
    pub peers: [String; 2],
    pub links: Links,
    /// Known to the two only.
    pub key: [u8; 32],
}

/// What a link does: an exchange of n bytes takes `latency_s` and n / `bytes_per_s`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkRate {
    /// From giving a short message to having the peer's.
    pub latency_s: f64,
    /// Each way, of a long vector, with its sum.
    pub bytes_per_s: f64,
}

impl FromStr for LinkChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(LinkChoice::Auto),
            "tcp" => Ok(LinkChoice::Tcp),
            "shm" => Ok(LinkChoice::Shm),
            _ => Err(format!("expected auto, tcp or shm, found {text:?}")),
        }
    }
}

impl fmt::Display for LinkChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinkChoice::Auto => "auto",
            LinkChoice::Tcp => "tcp",
            LinkChoice::Shm => "shm",
        })
    }
}

impl FromStr for WireFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(WireFormat::F32),
            "int8" => Ok(WireFormat::Int8),
            _ => Err(format!("expected f32 or int8, found {text:?}")),
        }
    }
}

impl fmt::Display for WireFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WireFormat::F32 => "f32",
            WireFormat::Int8 => "int8",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_one_host_share_its_memory() {
        let links = |choice| Links::between(["a", "b", "a", "c"], choice, WireFormat::F32);
        let auto = links(LinkChoice::Auto);
        assert_eq!(auto.hosts, [0, 1, 0, 2]);
        assert!(!auto.must_share);
        assert_eq!(auto.kind(0, 2), LinkKind::Shm);
        assert_eq!(auto.kind(2, 3), LinkKind::Tcp);
        assert_eq!(links(LinkChoice::Tcp).kind(0, 2), LinkKind::Tcp);
        let all = links(LinkChoice::Shm);
        assert!(all.must_share && all.kind(0, 3) == LinkKind::Shm);
        assert_eq!(Links::default().kind(0, 1), LinkKind::Tcp);
    }

    #[test]
    fn choices_are_read_as_they_are_written() {
        for text in ["auto", "tcp", "shm"] {
            assert_eq!(text.parse::<LinkChoice>().unwrap().to_string(), text);
        }
        for text in ["f32", "int8"] {
            assert_eq!(text.parse::<WireFormat>().unwrap().to_string(), text);
        }
        assert!("udp".parse::<LinkChoice>().is_err());
        assert!("int4".parse::<WireFormat>().is_err());
    }
}
