//! What the ranks answer to one step, compared and put together.

use crate::group::GroupError;
use flotilla_shared::step::Sampled;
use flotilla_shared::{Plan, Rank, StepOutcome};

/// One outcome of all. The tokens are those of the last stage, on which its ranks must agree. Of a captured row, the
/// experts of all stages, one after the other, on which the ranks of each must agree; and the logits of the last
/// stage put together in rank order, which is the order of the vocabulary. The times are those of the slowest rank.
pub fn join(plan: &Plan, outcomes: Vec<StepOutcome>) -> Result<StepOutcome, GroupError> {
    let mut outcomes = outcomes.into_iter();
    let mut joined: Option<StepOutcome> = None;
    for stage in &plan.stages {
        let ranks = stage.ranks.iter().map(|share| share.rank).zip(outcomes.by_ref());
        let of_stage = join_ranks(ranks)?;
        joined = Some(match joined {
            None => of_stage,
            Some(before) => join_stages(before, of_stage, stage.ranks[0].rank)?,
        });
    }
    Ok(joined.expect("a plan has a stage"))
}

/// Ranks of one stage.
fn join_ranks(mut ranks: impl Iterator<Item = (Rank, StepOutcome)>) -> Result<StepOutcome, GroupError> {
    let (first, mut joined) = ranks.next().expect("a stage has a rank, and each answers");
    for (rank, outcome) in ranks {
        let same_rows = outcome.captured.len() == joined.captured.len()
            && outcome.captured.iter().zip(&joined.captured).all(|(row, first)| row.experts == first.experts);
        let difference = if let Some(difference) = other_step(&joined, &outcome) {
            difference
        } else if outcome.sampled != joined.sampled {
            unlike(&outcome.sampled, &joined.sampled)
        } else if !same_rows {
            "captured rows were routed differently".into()
        } else {
            for (row, first) in outcome.captured.into_iter().zip(&mut joined.captured) {
                first.logits.extend(row.logits);
            }
            if outcome.compute_us > joined.compute_us {
                (joined.compute_us, joined.times) = (outcome.compute_us, outcome.times);
            }
            continue;
        };
        return Err(GroupError::Disagree { step: joined.step, ranks: (first, rank), difference });
    }
    Ok(joined)
}

/// What some stages answer, and the one after them, whose first rank is `rank`.
fn join_stages(before: StepOutcome, mut stage: StepOutcome, rank: Rank) -> Result<StepOutcome, GroupError> {
    let difference = if let Some(difference) = other_step(&before, &stage) {
        difference
    } else if !before.sampled.is_empty() {
        "tokens were sampled before the last stage".into()
    } else if before.captured.len() != stage.captured.len() {
        format!("{} rows were captured against {}", stage.captured.len(), before.captured.len())
    } else {
        for (row, before) in stage.captured.iter_mut().zip(before.captured) {
            row.experts.splice(..0, before.experts);
        }
        if before.compute_us > stage.compute_us {
            (stage.compute_us, stage.times) = (before.compute_us, before.times);
        }
        return Ok(stage);
    };
    Err(GroupError::Disagree { step: before.step, ranks: (Rank(0), rank), difference })
}

/// Without the tokens: what is said here everybody may read, and they are somebody's answer.
fn unlike(sampled: &[Sampled], expected: &[Sampled]) -> String {
    let differs = sampled.iter().zip(expected).find(|(one, other)| one != other);
    match differs {
        _ if sampled.len() != expected.len() => {
            format!("{} tokens were sampled against {}", sampled.len(), expected.len())
        }
        Some((one, other)) if one.sequence != other.sequence => {
            format!("a token of sequence {} against one of sequence {}", one.sequence, other.sequence)
        }
        Some((one, other)) if one.token != other.token => {
            format!("another token of sequence {}", one.sequence)
        }
        Some((one, _)) => format!("other probabilities of a token of sequence {}", one.sequence),
        None => "tokens that cannot be compared".into(),
    }
}

fn other_step(one: &StepOutcome, other: &StepOutcome) -> Option<String> {
    let is_other = (one.epoch, one.step) != (other.epoch, other.step);
    is_other.then(|| format!("step {} of epoch {} was answered", other.step, other.epoch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::plan::ExpertShare;
    use flotilla_shared::step::CapturedRow;
    use flotilla_shared::{RankShare, SequenceId, Stage, StepId};

    fn plan() -> Plan {
        let share = |rank| RankShare {
            rank: Rank(rank),
            backend: Default::default(),
            kv: Default::default(),
            kv_heads: 0..1,
            experts: ExpertShare { experts: 0..1, blocks: 0..1 },
            vocab: 0..1,
        };
        let stage = |layers, ranks: [u16; 2]| Stage { layers, ranks: ranks.map(share).to_vec() };
        Plan { stages: vec![stage(0..1, [0, 1]), stage(1..3, [2, 3])] }
    }

    fn outcome(token: Option<u32>, logits: &[f32], experts: &[u16], compute_us: u64) -> StepOutcome {
        let sequence = SequenceId(4);
        let sampled = token.map(|token| Sampled { sequence, token, logprobs: None });
        let row = CapturedRow { sequence, position: 3, logits: logits.into(), experts: experts.into() };
        let (sampled, captured) = (sampled.into_iter().collect(), vec![row]);
        StepOutcome { step: StepId(9), sampled, captured, compute_us, ..StepOutcome::default() }
    }

    fn good() -> Vec<StepOutcome> {
        vec![
            outcome(None, &[], &[1], 5),
            outcome(None, &[], &[1], 8),
            outcome(Some(7), &[0.5], &[2, 3], 6),
            outcome(Some(7), &[1.5], &[2, 3], 7),
        ]
    }

    #[test]
    fn what_stages_answer_is_put_together() {
        assert_eq!(join(&plan(), good()), Ok(outcome(Some(7), &[0.5, 1.5], &[1, 2, 3], 8)));
    }

    #[test]
    fn stages_and_ranks_that_disagree_are_named() {
        let spoiled = |spoil: fn(&mut Vec<StepOutcome>)| {
            let mut outcomes = good();
            spoil(&mut outcomes);
            join(&plan(), outcomes).unwrap_err().to_string()
        };
        let told = [
            (spoiled(|all| all[1].captured[0].experts[0] = 9), "ranks 0 and 1", "routed differently"),
            (spoiled(|all| all[3].sampled[0].token = 9), "ranks 2 and 3", "another token of sequence 4"),
            (spoiled(|all| all[3].sampled.clear()), "ranks 2 and 3", "0 tokens were sampled against 1"),
            (spoiled(|all| all[3].step = StepId(8)), "ranks 2 and 3", "step 8"),
            (
                spoiled(|all| all[2..].iter_mut().for_each(|one| one.captured.clear())),
                "ranks 0 and 2",
                "0 rows",
            ),
            (
                spoiled(|all| all[2..].iter_mut().for_each(|one| one.step = StepId(8))),
                "ranks 0 and 2",
                "step 8",
            ),
            (
                spoiled(|all| (0..2).for_each(|at| all[at].sampled = all[2].sampled.clone())),
                "ranks 0 and 2",
                "before the last stage",
            ),
        ];
        for (error, ranks, words) in told {
            assert!(error.contains(ranks) && error.contains(words), "{error}");
        }
    }
}
