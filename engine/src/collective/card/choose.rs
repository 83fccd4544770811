//! Which way sums take. Each rank says what it has, all hear it, and all choose alike; nothing is measured
//! or tried here.

use crate::collective::{CollectiveError, Operation};
use flotilla_shared::Rank;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SumChoice {
    /// The first of `nccl`, `shared`, `host` and `staged` that is possible and passes its start-up check.
    #[default]
    Auto,
    /// This one, or an error that says why not.
    Only(SumPath),
}

/// How values in cards' memories are summed over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SumPath {
    /// By the ranks' own link, through the host: always possible, and the slowest.
    Staged,
    /// By the cards, through memory of the machine that all of them reach.
    Host,
    /// As `Host`, through the memory of one card, which all ranks have; they are threads of one process.
    Shared,
    /// By NCCL.
    Nccl,
}

/// What goes between cards by NCCL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wire {
    #[default]
    F32,
    /// Half the bytes. Sums are of values rounded to 8 bits of mantissa: equal on all ranks, but not what
    /// other paths give.
    Bf16,
}

impl fmt::Display for SumPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SumPath::Staged => "staged",
            SumPath::Host => "host",
            SumPath::Shared => "shared",
            SumPath::Nccl => "nccl",
        })
    }
}

impl fmt::Display for SumChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SumChoice::Auto => f.write_str("auto"),
            SumChoice::Only(path) => path.fmt(f),
        }
    }
}

impl FromStr for SumChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(SumChoice::Auto),
            "nccl" => Ok(SumChoice::Only(SumPath::Nccl)),
            "shared" => Ok(SumChoice::Only(SumPath::Shared)),
            "host" => Ok(SumChoice::Only(SumPath::Host)),
            "staged" => Ok(SumChoice::Only(SumPath::Staged)),
            _ => Err(format!("`{text}` is not one of auto, nccl, shared, host, staged")),
        }
    }
}

/// Ranks whose slots one sum by `host` or `shared` adds up.
pub(super) const HOST_RANKS_MAX: usize = 16;

/// A process has this many queues to a card unless it is told otherwise; ranks that shared one could wait
/// for each other for ever.
const QUEUES: usize = 8;

/// What a rank says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub choice: SumChoice,
    pub wire: Wire,
    pub elements_max: usize,
    /// The same for two ranks if and only if they run under one kernel.
    pub machine: String,
    pub process: String,
    pub card: String,
    /// Its version, or why there is none.
    pub nccl: Result<(u32, u32, u32), String>,
    /// The user has told NCCL to take several ranks on one card, and it is one that can.
    pub nccl_shares_cards: bool,
    /// The user has told NCCL to leave other cards' buffers of its process alone.
    pub nccl_keeps_to_itself: bool,
}

/// The paths to try, the best first: all ranks' answers are in `facts`, so all ranks get the same.
pub(super) fn paths(facts: &[Facts]) -> Result<Vec<SumPath>, CollectiveError> {
    let first = &facts[0];
    for (rank, theirs) in facts.iter().enumerate() {
        let same = |field, expected: String, found: String| match expected == found {
            true => Ok(()),
            false => {
                let (peer, operation) = (Rank(rank as u16), Operation::AllGather);
                Err(CollectiveError::Mismatch { peer, operation, field, expected, found })
            }
        };
        same("choice of sums", first.choice.to_string(), theirs.choice.to_string())?;
        same("format of sums", format!("{:?}", first.wire), format!("{:?}", theirs.wire))?;
        same("longest sum", first.elements_max.to_string(), theirs.elements_max.to_string())?;
    }
    match first.choice {
        SumChoice::Only(path) => match obstacle(path, facts) {
            None => Ok(vec![path]),
            Some(reason) => Err(CollectiveError::NoSuchPath { path, reason }),
        },
        SumChoice::Auto => {
            let mut paths = vec![SumPath::Nccl, SumPath::Shared, SumPath::Host, SumPath::Staged];
            paths.retain(|&path| {
                let reason = obstacle(path, facts).or_else(|| drawback(path, facts));
                reason.inspect(|reason| tracing::info!("sums not by {path}: {reason}")).is_none()
            });
            Ok(paths)
        }
    }
}

/// Why a path cannot be.
fn obstacle(path: SumPath, facts: &[Facts]) -> Option<String> {
    match path {
        SumPath::Staged => None,
        SumPath::Host => host_obstacle(facts),
        SumPath::Shared => host_obstacle(facts).or_else(|| shared_obstacle(facts)),
        SumPath::Nccl => nccl_obstacle(facts),
    }
}

fn host_obstacle(facts: &[Facts]) -> Option<String> {
    let first = &facts[0];
    if let Some(other) = facts.iter().position(|theirs| theirs.machine != first.machine) {
        return Some(format!("ranks 0 and {other} are on different machines"));
    }
    if facts.len() > HOST_RANKS_MAX {
        return Some(format!("{} ranks, at most {HOST_RANKS_MAX} are possible", facts.len()));
    }
    let crowd = sharing(facts).into_iter().find(|ranks| ranks.len() > QUEUES)?;
    Some(format!("{} ranks share one card, at most {QUEUES} are possible", crowd.len()))
}

/// On one machine.
fn shared_obstacle(facts: &[Facts]) -> Option<String> {
    let differs =
        |differ: fn(&Facts, &Facts) -> bool| facts.iter().position(|theirs| differ(theirs, &facts[0]));
    if let Some(other) = differs(|a, b| a.card != b.card) {
        return Some(format!("ranks 0 and {other} have different cards"));
    }
    let other = differs(|a, b| a.process != b.process)?;
    Some(format!("ranks 0 and {other} are different processes"))
}

fn nccl_obstacle(facts: &[Facts]) -> Option<String> {
    let mut versions = Vec::new();
    for (rank, theirs) in facts.iter().enumerate() {
        match &theirs.nccl {
            Ok(version) => versions.push(version),
            Err(reason) => return Some(format!("rank {rank}: {reason}")),
        }
    }
    if let Some(other) = versions.iter().position(|version| *version != versions[0]) {
        let ((a, b, c), (x, y, z)) = (versions[0], versions[other]);
        return Some(format!("rank 0 has NCCL {a}.{b}.{c}, rank {other} has {x}.{y}.{z}"));
    }
    crowd_obstacle(facts).or_else(|| reach_obstacle(facts))
}

fn crowd_obstacle(facts: &[Facts]) -> Option<String> {
    let shared = sharing(facts).into_iter().find(|ranks| ranks.len() > 1)?;
    let told = facts.iter().all(|theirs| theirs.nccl_shares_cards);
    (!told).then(|| format!("ranks {} and {} share a card, which NCCL refuses", shared[0], shared[1]))
}

/// Within a process, NCCL may read and write another card's buffers where they are; ours are of a pool, which peers do not
/// reach, and it would end in an illegal access.
fn reach_obstacle(facts: &[Facts]) -> Option<String> {
    let neighbour = |rank: usize| {
        let of_process = |other: &usize| facts[*other].process == facts[rank].process;
        (0..rank).filter(of_process).find(|&other| facts[other].card != facts[rank].card)
    };
    let (a, b) = (0..facts.len()).find_map(|rank| neighbour(rank).map(|other| (other, rank)))?;
    let told = facts.iter().all(|theirs| theirs.nccl_keeps_to_itself);
    (!told).then(|| {
        format!(
            "ranks {a} and {b} are one process with a card each, where NCCL needs NCCL_P2P_DIRECT_DISABLE=1"
        )
    })
}

/// Why a path that is possible is not taken unasked.
fn drawback(path: SumPath, facts: &[Facts]) -> Option<String> {
    let waits_in_vain =
        |ranks: &Vec<usize>| ranks.iter().any(|&rank| facts[rank].process != facts[ranks[0]].process);
    let ranks = sharing(facts).into_iter().find(waits_in_vain)?;
    let (a, b) = (ranks[0], ranks[1]);
    (path == SumPath::Host)
        .then(|| format!("ranks {a} and {b} are processes that share a card, and take turns of milliseconds"))
}

/// The ranks of each card.
fn sharing(facts: &[Facts]) -> Vec<Vec<usize>> {
    let mut cards: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    for (rank, theirs) in facts.iter().enumerate() {
        cards.entry((&theirs.machine, &theirs.card)).or_default().push(rank);
    }
    cards.into_values().collect()
}

/// How many ranks have the card of this one.
pub(super) fn ranks_on_card(facts: &[Facts], rank: usize) -> usize {
    sharing(facts).into_iter().find(|ranks| ranks.contains(&rank)).map_or(1, |ranks| ranks.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use SumPath::{Host, Nccl, Shared, Staged};

    fn group(choice: SumChoice, size: usize) -> Vec<Facts> {
        let facts = |rank: usize| Facts {
            choice,
            wire: Wire::F32,
            elements_max: 2880,
            machine: "one".into(),
            process: format!("process {rank}"),
            card: format!("card {rank}"),
            nccl: Ok((2, 27, 3)),
            nccl_shares_cards: false,
            nccl_keeps_to_itself: false,
        };
        (0..size).map(facts).collect()
    }

    fn with(choice: SumChoice, change: impl FnOnce(&mut Vec<Facts>)) -> Result<Vec<SumPath>, String> {
        let mut facts = group(choice, 4);
        change(&mut facts);
        paths(&facts).map_err(|error| error.to_string())
    }

    fn reason(path: SumPath, change: impl FnOnce(&mut Vec<Facts>)) -> String {
        with(SumChoice::Only(path), change).expect_err("it is impossible")
    }

    #[test]
    fn each_asks_for_the_best_that_is_possible() {
        let auto = SumChoice::Auto;
        assert_eq!(with(auto, |_| ()).unwrap(), [Nccl, Host, Staged]);
        assert_eq!(with(auto, |facts| facts[3].machine = "two".into()).unwrap(), [Nccl, Staged]);
        assert_eq!(with(auto, |facts| facts[3].nccl = Err("none".into())).unwrap(), [Host, Staged]);
        assert_eq!(with(auto, |facts| facts[2].nccl = Ok((2, 26, 5))).unwrap(), [Host, Staged]);
        let one_process =
            |facts: &mut Vec<Facts>| facts.iter_mut().for_each(|facts| facts.process = "a".into());
        assert_eq!(with(auto, one_process).unwrap(), [Host, Staged]);
        let keep_to_themselves = |facts: &mut Vec<Facts>| {
            one_process(facts);
            facts.iter_mut().for_each(|facts| facts.nccl_keeps_to_itself = true);
        };
        assert_eq!(with(auto, keep_to_themselves).unwrap(), [Nccl, Host, Staged]);
        let share = |facts: &mut Vec<Facts>| {
            one_process(facts);
            facts.iter_mut().for_each(|facts| facts.card = "0".into());
        };
        assert_eq!(with(auto, share).unwrap(), [Shared, Host, Staged]);
        let processes = |facts: &mut Vec<Facts>| {
            share(facts);
            facts[1].process = "b".into();
        };
        assert_eq!(with(auto, processes).unwrap(), [Staged]);
        assert_eq!(with(SumChoice::Only(Host), processes).unwrap(), [Host], "slow, but asked for");
        let told = |facts: &mut Vec<Facts>| {
            share(facts);
            facts.iter_mut().for_each(|facts| facts.nccl_shares_cards = true);
        };
        assert_eq!(with(auto, told).unwrap(), [Nccl, Shared, Host, Staged]);
        // The same number on two machines is not the same card.
        let far = |facts: &mut Vec<Facts>| {
            share(facts);
            facts.iter_mut().enumerate().for_each(|(rank, facts)| facts.machine = rank.to_string());
        };
        assert_eq!(with(auto, far).unwrap(), [Nccl, Staged]);
    }

    #[test]
    fn what_is_asked_for_and_impossible_is_refused_with_the_reason() {
        let text = reason(Host, |facts| facts[2].machine = "two".into());
        assert!(
            text.starts_with("cannot sum by `host`: ranks 0 and 2 are on different machines\nhint: "),
            "{text}"
        );
        let text = reason(Nccl, |facts| facts[1].nccl = Err("NCCL is not here".into()));
        assert!(text.contains("rank 1: NCCL is not here"), "{text}");
        let text = reason(Nccl, |facts| facts[3].nccl = Ok((2, 30, 1)));
        assert!(text.contains("rank 0 has NCCL 2.27.3, rank 3 has 2.30.1"), "{text}");
        let text = reason(Nccl, |facts| facts[2].card = "card 0".into());
        assert!(text.contains("ranks 0 and 2 share a card, which NCCL refuses"), "{text}");
        let text = reason(Nccl, |facts| facts[3].process = "process 1".into());
        assert!(
            text.contains(
                "ranks 1 and 3 are one process with a card each, where NCCL needs NCCL_P2P_DIRECT_DISABLE=1"
            ),
            "{text}"
        );
        let text = reason(Shared, |facts| facts[2].machine = "two".into());
        assert!(text.contains("ranks 0 and 2 are on different machines"), "{text}");
        let text = reason(Shared, |facts| facts[0].card = "card 1".into());
        assert!(text.contains("ranks 0 and 2 have different cards"), "{text}");
        let text = reason(Shared, |facts| {
            facts.iter_mut().for_each(|facts| (facts.card, facts.process) = ("0".into(), "a".into()));
            facts[3].process = "b".into();
        });
        assert!(text.contains("ranks 0 and 3 are different processes"), "{text}");
        let text = reason(Host, |facts| *facts = group(SumChoice::Only(Host), 17));
        assert!(text.contains("17 ranks, at most 16"), "{text}");
        assert_eq!(with(SumChoice::Only(Staged), |facts| facts[2].machine = "two".into()).unwrap(), [Staged]);
    }

    #[test]
    fn ranks_that_were_told_different_things_do_not_begin() {
        let text = with(SumChoice::Auto, |facts| facts[1].choice = SumChoice::Only(Host)).unwrap_err();
        assert!(text.contains("rank 1 is out of step") && text.contains("is host, expected auto"), "{text}");
        assert!(with(SumChoice::Auto, |facts| facts[1].elements_max = 5760).is_err());
        assert!(with(SumChoice::Auto, |facts| facts[3].wire = Wire::Bf16).is_err());
    }

    #[test]
    fn choices_are_written_as_they_are_read() {
        for choice in ["auto", "nccl", "shared", "host", "staged"] {
            assert_eq!(choice.parse::<SumChoice>().unwrap().to_string(), choice);
        }
        assert!("NCCL".parse::<SumChoice>().is_err());
    }
}
