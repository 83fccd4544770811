//! How ranks reach each other, as it is planned and as it came to be.

use super::{narrow, wrong};
use crate::{WireError, wire};
use flotilla_shared::plan::RANKS_MAX;
use flotilla_shared::{Epoch, Links, Rank, Reach, WireFormat};

/// Of the reason why memory is not shared; more is cut.
const REASON_CHARS_MAX: usize = 400;

impl From<&Links> for wire::Links {
    fn from(links: &Links) -> Self {
        let wire = match links.wire {
            WireFormat::F32 => wire::Wire::F32,
            WireFormat::Int8 => wire::Wire::Int8,
        };
        wire::Links {
            hosts: links.hosts.iter().map(|&host| host.into()).collect(),
            must_share: links.must_share,
            whole_values_max: links.whole_values_max.clone(),
            wire: wire.into(),
        }
    }
}

/// Of a group of `ranks`; absent is TCP between all.
pub(super) fn links(links: Option<wire::Links>, ranks: usize) -> Result<Links, WireError> {
    let links = links.unwrap_or_default();
    if !links.hosts.is_empty() && links.hosts.len() != ranks {
        return Err(wrong("Links.hosts", format!("has {} of {ranks} ranks", links.hosts.len())));
    }
    if links.whole_values_max.len() > ranks {
        let (stages, field) = (links.whole_values_max.len(), "Links.whole_values_max");
        return Err(wrong(field, format!("has {stages} stages of {ranks} ranks")));
    }
    let hosts = links.hosts.into_iter().map(|host| narrow(host.into(), "Links.hosts"));
    Ok(Links {
        hosts: hosts.collect::<Result<_, _>>()?,
        must_share: links.must_share,
        whole_values_max: links.whole_values_max,
        wire: match wire::Wire::try_from(links.wire) {
            Ok(wire::Wire::F32) => WireFormat::F32,
            Ok(wire::Wire::Int8) => WireFormat::Int8,
            Err(_) => return Err(wrong("Links.wire", format!("is {}, which is none", links.wire))),
        },
    })
}

/// What a worker says once it can step.
pub fn ready(epoch: Epoch, reach: &Reach) -> wire::Ready {
    wire::Ready {
        epoch: epoch.0,
        by_memory: reach.by_memory.iter().map(|rank| rank.0.into()).collect(),
        not_shared: reach.not_shared.clone().unwrap_or_default(),
    }
}

impl TryFrom<wire::Ready> for Reach {
    type Error = WireError;

    fn try_from(ready: wire::Ready) -> Result<Self, WireError> {
        if ready.by_memory.len() >= RANKS_MAX {
            return Err(wrong("Ready.by_memory", format!("has {} ranks", ready.by_memory.len())));
        }
        let by_memory = ready.by_memory.into_iter();
        let by_memory = by_memory.map(|rank| Ok(Rank(narrow(rank.into(), "Ready.by_memory")?)));
        let printable = ready.not_shared.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX);
        let not_shared: String = printable.collect();
        Ok(Reach {
            by_memory: by_memory.collect::<Result<_, _>>()?,
            not_shared: (!not_shared.is_empty()).then_some(not_shared),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_reaches_survives_the_wire() {
        let reach = Reach { by_memory: vec![Rank(1), Rank(3)], not_shared: None };
        assert_eq!(Reach::try_from(ready(Epoch(1), &reach)), Ok(reach));
        let reach = Reach { by_memory: vec![], not_shared: Some("rank 2: another container".into()) };
        assert_eq!(Reach::try_from(ready(Epoch(1), &reach)), Ok(reach));
    }

    #[test]
    fn links_that_cannot_be_are_refused() {
        let good = Links {
            hosts: vec![0, 0, 1],
            must_share: true,
            wire: WireFormat::Int8,
            whole_values_max: vec![0, 700],
        };
        assert_eq!(links(Some((&good).into()), 3), Ok(good.clone()));
        assert_eq!(links(None, 3), Ok(Links::default()));
        assert_eq!(links(Some((&good).into()), 2).unwrap_err().field, "Links.hosts");
        let many = wire::Links { whole_values_max: vec![1; 4], ..(&good).into() };
        assert_eq!(links(Some(many), 3).unwrap_err().field, "Links.whole_values_max");
        let wrong = wire::Links { wire: 7, ..(&good).into() };
        assert_eq!(links(Some(wrong), 3).unwrap_err().field, "Links.wire");
        let many = wire::Ready { by_memory: vec![0; RANKS_MAX], ..Default::default() };
        assert_eq!(Reach::try_from(many).unwrap_err().field, "Ready.by_memory");
        let loud = wire::Ready { not_shared: "\u{1b}[31m".repeat(1000), ..Default::default() };
        let reach = Reach::try_from(loud).unwrap();
        assert!(reach.not_shared.is_some_and(|reason| reason.len() == 400 && !reason.contains('\u{1b}')));
    }
}
