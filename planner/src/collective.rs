//! How the ranks of a stage sum: the way that the engine takes, and what of it a plan decides.

use crate::fleet::Fleet;
use crate::model::{Spread, all_reduce_s, whole_values_max};
use flotilla_shared::{ModelSpec, Plan};
use serde::Serialize;
use std::fmt;

/// Of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Collective {
    pub way: SumWay,
    /// Up to so many values vectors go whole to every peer, and longer ones in pieces; none where the engine decides.
    pub whole_values_max: Option<usize>,
    /// Of one row.
    pub row_s: f64,
}

/// It follows from where the ranks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SumWay {
    /// Nobody to sum with.
    Alone,
    Memory,
    Tcp,
    MemoryAndTcp,
    /// Of one host, and of several.
    Cards,
    FarCards,
}

impl fmt::Display for SumWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SumWay::Alone => "none",
            SumWay::Memory => "through memory that the ranks share",
            SumWay::Tcp => "over TCP",
            SumWay::MemoryAndTcp => "through shared memory within hosts and TCP between them",
            SumWay::Cards => "by NCCL, or by the cards through the host's memory",
            SumWay::FarCards => "by NCCL, or copied to the hosts and over TCP",
        })
    }
}

/// By stage. `devices`: of the fleet, by rank of the plan.
pub fn collectives(spec: &ModelSpec, fleet: &Fleet, plan: &Plan, devices: &[usize]) -> Vec<Collective> {
    let mut rest = devices;
    let stages = plan.stages.iter().map(|stage| {
        let (mine, others) = rest.split_at(stage.ranks.len());
        rest = others;
        let ranks = Spread::of(fleet, mine);
        let row_s = all_reduce_s(fleet, &ranks, spec.hidden);
        Collective { way: way(&ranks), whole_values_max: whole_values_max(fleet, &ranks), row_s }
    });
    stages.collect()
}

fn way(ranks: &Spread) -> SumWay {
    match (ranks.on_cards(), ranks.is_one_host()) {
        _ if ranks.size() < 2 => SumWay::Alone,
        (true, true) => SumWay::Cards,
        (true, false) => SumWay::FarCards,
        (false, true) => SumWay::Memory,
        (false, false) if ranks.shares() => SumWay::MemoryAndTcp,
        (false, false) => SumWay::Tcp,
    }
}
