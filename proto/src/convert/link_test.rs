//! What a link does, and the two workers that find it out.

use super::links::links;
use super::{narrow, wrong};
use crate::{WireError, wire};
use flotilla_shared::{Epoch, LinkRate, LinkTest, Rank};

/// Of the reason why a link was not measured; more is cut.
const REASON_CHARS_MAX: usize = 400;

impl From<&LinkTest> for wire::LinkTest {
    fn from(test: &LinkTest) -> Self {
        wire::LinkTest {
            epoch: test.epoch.0,
            rank: test.rank.0.into(),
            peers: test.peers.to_vec(),
            links: Some((&test.links).into()),
            key: test.key.to_vec().into(),
        }
    }
}

impl TryFrom<wire::LinkTest> for LinkTest {
    type Error = WireError;

    fn try_from(test: wire::LinkTest) -> Result<Self, WireError> {
        let rank: u16 = narrow(test.rank.into(), "LinkTest.rank")?;
        if rank > 1 {
            return Err(wrong("LinkTest.rank", format!("is {rank}, of two")));
        }
        let peers = <[String; 2]>::try_from(test.peers);
        let key = <[u8; 32]>::try_from(&test.key[..]);
        Ok(LinkTest {
            epoch: Epoch(test.epoch),
            rank: Rank(rank),
            peers: peers
                .map_err(|peers| wrong("LinkTest.peers", format!("are {}, expected 2", peers.len())))?,
            links: links(test.links, 2)?,
            key: key
                .map_err(|_| wrong("LinkTest.key", format!("has {} bytes, expected 32", test.key.len())))?,
        })
    }
}

/// What a worker says that was told to measure.
pub fn measured(epoch: Epoch, found: Result<LinkRate, String>) -> wire::Measured {
    match found {
        Ok(rate) => wire::Measured {
            epoch: epoch.0,
            latency_seconds: rate.latency_s,
            bytes_per_second: rate.bytes_per_s,
            reason: String::new(),
        },
        Err(reason) => wire::Measured { epoch: epoch.0, reason, ..Default::default() },
    }
}

/// What it found, or why it found nothing.
pub fn measured_from(measured: wire::Measured) -> Result<LinkRate, String> {
    if !measured.reason.is_empty() {
        let printable = measured.reason.chars().filter(|c| !c.is_control() || *c == '\n');
        return Err(printable.take(REASON_CHARS_MAX).collect());
    }
    let (latency_s, bytes_per_s) = (measured.latency_seconds, measured.bytes_per_second);
    let is_rate = |value: f64| value.is_finite() && value > 0.0;
    if !is_rate(latency_s) || !is_rate(bytes_per_s) {
        return Err(format!("it says {latency_s} s and {bytes_per_s} bytes a second, which no link does"));
    }
    Ok(LinkRate { latency_s, bytes_per_s })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::Links;

    #[test]
    fn a_test_survives_the_wire_and_others_are_refused() {
        let test = LinkTest {
            epoch: Epoch(3),
            rank: Rank(1),
            peers: ["a:1".into(), "b:2".into()],
            links: Links { hosts: vec![0, 0], ..Links::default() },
            key: [7; 32],
        };
        let wire = wire::LinkTest::from(&test);
        assert_eq!(LinkTest::try_from(wire.clone()), Ok(test));
        let field = |wrong: wire::LinkTest| LinkTest::try_from(wrong).unwrap_err().field;
        assert_eq!(field(wire::LinkTest { rank: 2, ..wire.clone() }), "LinkTest.rank");
        assert_eq!(field(wire::LinkTest { peers: vec!["a:1".into()], ..wire.clone() }), "LinkTest.peers");
        assert_eq!(field(wire::LinkTest { key: vec![0; 31].into(), ..wire }), "LinkTest.key");
    }

    #[test]
    fn what_no_link_does_is_not_believed() {
        let rate = LinkRate { latency_s: 1e-5, bytes_per_s: 1e9 };
        assert_eq!(measured_from(measured(Epoch(1), Ok(rate))), Ok(rate));
        assert_eq!(measured_from(measured(Epoch(1), Err("no way".into()))), Err("no way".into()));
        for (latency_s, bytes_per_s) in [(0.0, 1e9), (1e-5, -1.0), (f64::NAN, 1e9), (1e-5, f64::INFINITY)] {
            measured_from(measured(Epoch(1), Ok(LinkRate { latency_s, bytes_per_s }))).unwrap_err();
        }
    }
}
