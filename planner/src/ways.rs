//! What joins hosts where more is known than one link for all: pair by pair what is there, or that there is nothing.

use crate::link::Link;
use serde::Serialize;

/// Of some pairs of hosts; a host with itself is a pair too. Cheap where there are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ways(Vec<Way>);

/// Between two hosts, the lower number first, or within one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Way {
    pub hosts: (u16, u16),
    /// None where they do not reach each other.
    pub link: Option<Link>,
}

impl Ways {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether two hosts that are known do not reach each other.
    pub fn has_cuts(&self) -> bool {
        self.0.iter().any(|way| way.link.is_none())
    }

    /// What is known of two hosts.
    pub fn of(&self, a: u16, b: u16) -> Option<&Way> {
        let hosts = (a.min(b), a.max(b));
        let at = self.0.binary_search_by_key(&hosts, |way| way.hosts).ok()?;
        Some(&self.0[at])
    }

    pub fn links(&self) -> impl Iterator<Item = Link> {
        self.0.iter().filter_map(|way| way.link)
    }
}

/// Of a pair that is there twice the last counts.
impl FromIterator<(u16, u16, Option<Link>)> for Ways {
    fn from_iter<I: IntoIterator<Item = (u16, u16, Option<Link>)>>(ways: I) -> Ways {
        let mut all = Ways::default();
        for (a, b, link) in ways {
            let way = Way { hosts: (a.min(b), a.max(b)), link };
            match all.0.binary_search_by_key(&way.hosts, |way| way.hosts) {
                Ok(at) => all.0[at] = way,
                Err(at) => all.0.insert(at, way),
            }
        }
        all
    }
}
