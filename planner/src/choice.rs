//! What is chosen, what it beat, and why.

use crate::collective::Collective;
use crate::fleet::Fleet;
use crate::model::{Decode, Prediction, StageTime};
use flotilla_shared::Plan;
use serde::Serialize;
use std::fmt;

/// The fastest plan that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    pub kind: Kind,
    pub plan: Plan,
    /// Devices of the fleet, by rank of the plan.
    pub devices: Vec<usize>,
    /// At the goal.
    pub decode: Decode,
    pub prediction: Prediction,
    /// How each stage sums.
    pub collectives: Vec<Collective>,
    pub left_out: Vec<LeftOut>,
    /// The fastest of another kind; none where none fits.
    pub runner_up: Option<RunnerUp>,
}

/// How a plan uses its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Alone,
    /// One stage of several ranks.
    Tensor,
    /// Several stages of one rank.
    Pipeline,
    /// Several stages, of which one has several ranks.
    Both,
}

impl Kind {
    pub(crate) const COUNT: usize = 4;

    pub(crate) fn of(stages: usize, several: bool) -> Kind {
        match (stages > 1, several) {
            (false, false) => Kind::Alone,
            (false, true) => Kind::Tensor,
            (true, false) => Kind::Pipeline,
            (true, true) => Kind::Both,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Alone => "one device alone",
            Kind::Tensor => "every layer over all ranks",
            Kind::Pipeline => "layers one device after the other",
            Kind::Both => "stages of several ranks",
        })
    }
}

/// A device that the plan does not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Of the fleet.
    pub device: usize,
    #[serde(flatten)]
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// CPUs and cards are no ranks of one group, and the others do more.
    OtherBackend,
    /// It does not reach this one, which is used, and the others do more.
    OutOfReach { of: usize },
    /// Nothing that was found with it is faster.
    NoFaster,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::OtherBackend => "processors and cards cannot be ranks of one group",
            Reason::OutOfReach { .. } => "it does not reach one of those that are used",
            Reason::NoFaster => "it would not make the plan faster",
        })
    }
}

/// The second best.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunnerUp {
    pub kind: Kind,
    pub plan: Plan,
    pub devices: Vec<usize>,
    pub decode: Decode,
    pub lost: Lost,
}

/// By what a plan is slower than the one that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lost {
    /// Its time of a token over the other's.
    pub ratio: f64,
    /// The part that grew the most, and by how much.
    pub part: Part,
    pub more_s: f64,
}

/// Parts of the time of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Attention,
    Experts,
    Vocabulary,
    Sums,
    HandOver,
    Fixed,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Attention => "attention",
            Part::Experts => "experts",
            Part::Vocabulary => "the vocabulary",
            Part::Sums => "sums over ranks",
            Part::HandOver => "hand-over between stages",
            Part::Fixed => "fixed costs",
        })
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (percent, ms) = (100.0 * (self.ratio - 1.0), 1e3 * self.more_s);
        write!(f, "{percent:.1} % slower, mostly by {}: {ms:.2} ms more a token", self.part)
    }
}

impl Lost {
    pub(crate) fn against(best: &Decode, other: &Decode) -> Lost {
        let (best_parts, other_parts) = (parts(best), parts(other));
        let grown = best_parts.iter().zip(&other_parts).map(|((part, a), (_, b))| (*part, b - a));
        let (part, more_s) = grown.max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are parts");
        Lost { ratio: other.token_s / best.token_s, part, more_s }
    }
}

/// Of the time between two tokens of a sequence: what it waits for.
pub fn parts(decode: &Decode) -> [(Part, f64); 6] {
    let step = &decode.step;
    let slowest = step.stages.iter().max_by(|a, b| a.total_s().total_cmp(&b.total_s()));
    let hand_over = step.hand_overs_s.iter().copied().fold(0.0, f64::max);
    let by_slowest = decode.token_s > step.round_s() * (1.0 + 1e-9);
    let (stages, hand_over_s): (Vec<&StageTime>, f64) = match slowest {
        Some(stage) if by_slowest && stage.total_s() >= hand_over => (vec![stage], 0.0),
        _ if by_slowest => (vec![], hand_over),
        _ => (step.stages.iter().collect(), step.hand_overs_s.iter().sum::<f64>() + step.return_s),
    };
    let times = if by_slowest { decode.micro_batches as f64 } else { 1.0 };
    let of = |part: fn(&StageTime) -> f64| times * stages.iter().map(|stage| part(stage)).sum::<f64>();
    [
        (Part::Attention, of(|stage| stage.attention_s)),
        (Part::Experts, of(|stage| stage.experts_s)),
        (Part::Vocabulary, of(|stage| stage.vocabulary_s)),
        (Part::Sums, of(|stage| stage.sums_s)),
        (Part::HandOver, times * hand_over_s),
        (Part::Fixed, of(|stage| stage.fixed_s)),
    ]
}

/// Devices that a plan leaves out.
pub(crate) fn left_out(fleet: &Fleet, used: &[usize]) -> Vec<LeftOut> {
    let backend = used.first().map(|&device| fleet.devices[device].backend);
    let unused = (0..fleet.devices.len()).filter(|device| !used.contains(device));
    let left_out = unused.map(|device| {
        let same = Some(fleet.devices[device].backend) == backend;
        let unreached = used.iter().find(|&&other| !fleet.reaches(device, other));
        let reason = match unreached {
            _ if !same => Reason::OtherBackend,
            Some(&of) => Reason::OutOfReach { of },
            None => Reason::NoFaster,
        };
        LeftOut { device, reason }
    });
    left_out.collect()
}
