//! Steps and their outcomes.

use super::{WireError, narrow, wrong};
use crate::wire;
use flotilla_shared::sampling::TOP_LOGPROBS_MAX;
use flotilla_shared::step::{Admission, CapturedRow, Logprobs, Sampled, SequenceWork, StepTimes, TokenMask};
use flotilla_shared::{BlockId, Epoch, Sampling, SequenceId, StepId, StepOutcome, StepPlan, TokenId};

impl From<&StepPlan> for wire::StepPlan {
    fn from(plan: &StepPlan) -> Self {
        wire::StepPlan {
            epoch: plan.epoch.0,
            step: plan.step.0,
            release: plan.release.iter().map(|sequence| sequence.0).collect(),
            admit: plan.admit.iter().map(Into::into).collect(),
            work: plan.work.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::StepPlan> for StepPlan {
    type Error = WireError;

    fn try_from(plan: wire::StepPlan) -> Result<Self, WireError> {
        Ok(StepPlan {
            epoch: Epoch(plan.epoch),
            step: StepId(plan.step),
            release: plan.release.into_iter().map(SequenceId).collect(),
            admit: plan.admit.into_iter().map(Admission::try_from).collect::<Result<_, _>>()?,
            work: plan.work.into_iter().map(SequenceWork::try_from).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Admission> for wire::Admission {
    fn from(admission: &Admission) -> Self {
        wire::Admission {
            sequence: admission.sequence.0,
            sampling: Some((&admission.sampling).into()),
            cached: admission.cached,
            context: admission.context.clone(),
            generated: admission.generated,
        }
    }
}

impl TryFrom<wire::Admission> for Admission {
    type Error = WireError;

    fn try_from(admission: wire::Admission) -> Result<Self, WireError> {
        let (generated, context) = (admission.generated, admission.context);
        if generated as usize > context.len() {
            let problem = format!("is {generated}, of a context of {} tokens", context.len());
            return Err(wrong("Admission.generated", problem));
        }
        Ok(Admission {
            sequence: SequenceId(admission.sequence),
            sampling: super::need(admission.sampling, "Admission.sampling")?.try_into()?,
            cached: admission.cached,
            context,
            generated,
        })
    }
}

impl From<&Sampling> for wire::Sampling {
    fn from(sampling: &Sampling) -> Self {
        wire::Sampling {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            seed: sampling.seed,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            bias_tokens: sampling.logit_bias.iter().map(|(token, _)| *token).collect(),
            biases: sampling.logit_bias.iter().map(|(_, bias)| *bias).collect(),
            logprobs: sampling.logprobs.map(u32::from),
        }
    }
}

impl TryFrom<wire::Sampling> for Sampling {
    type Error = WireError;

    fn try_from(sampling: wire::Sampling) -> Result<Self, WireError> {
        let logit_bias = pairs(sampling.bias_tokens, sampling.biases, "Sampling.biases")?;
        if !logit_bias.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(wrong("Sampling.bias_tokens", "do not rise"));
        }
        let logprobs: Option<u8> =
            sampling.logprobs.map(|count| narrow(count.into(), "Sampling.logprobs")).transpose()?;
        if let Some(count) = logprobs.filter(|&count| count > TOP_LOGPROBS_MAX) {
            return Err(wrong("Sampling.logprobs", format!("is {count}, {TOP_LOGPROBS_MAX} at most")));
        }
        Ok(Sampling {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            logit_bias,
            logprobs,
            seed: sampling.seed,
        })
    }
}

impl From<&SequenceWork> for wire::SequenceWork {
    fn from(work: &SequenceWork) -> Self {
        let words = work.mask.as_ref().map_or(&[][..], TokenMask::words);
        wire::SequenceWork {
            sequence: work.sequence.0,
            position: work.position,
            tokens: work.tokens.clone(),
            ahead: work.ahead,
            blocks: work.blocks.iter().map(|block| block.0).collect(),
            window_blocks: work.window_blocks.iter().map(|block| block.0).collect(),
            window_gone: work.window_gone,
            sample: work.sample,
            drafts: work.drafts,
            mask: words.iter().flat_map(|word| word.to_le_bytes()).collect(),
            capture: work.capture,
        }
    }
}

impl TryFrom<wire::SequenceWork> for SequenceWork {
    type Error = WireError;

    fn try_from(work: wire::SequenceWork) -> Result<Self, WireError> {
        let (words, rest) = work.mask.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(wrong(
                "SequenceWork.mask",
                format!("has {} bytes, not whole words", work.mask.len()),
            ));
        }
        let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        Ok(SequenceWork {
            sequence: SequenceId(work.sequence),
            position: work.position,
            tokens: work.tokens,
            ahead: work.ahead,
            blocks: work.blocks.into_iter().map(BlockId).collect(),
            window_blocks: work.window_blocks.into_iter().map(BlockId).collect(),
            window_gone: work.window_gone,
            sample: work.sample,
            drafts: work.drafts,
            mask: (!words.is_empty()).then(|| words.into()),
            capture: work.capture,
        })
    }
}

impl From<StepOutcome> for wire::StepOutcome {
    fn from(outcome: StepOutcome) -> Self {
        let captured = outcome.captured.into_iter().map(|row| wire::CapturedRow {
            sequence: row.sequence.0,
            position: row.position,
            logits: row.logits,
            experts: row.experts.into_iter().map(u32::from).collect(),
        });
        wire::StepOutcome {
            epoch: outcome.epoch.0,
            step: outcome.step.0,
            sampled: outcome.sampled.into_iter().map(Into::into).collect(),
            captured: captured.collect(),
            compute_us: outcome.compute_us,
            collective_us: outcome.times.collective_us,
            exchanges: outcome.times.exchanges,
            sample_us: outcome.times.sample_us,
            memory_bytes: outcome.memory_bytes,
        }
    }
}

impl TryFrom<wire::StepOutcome> for StepOutcome {
    type Error = WireError;

    fn try_from(outcome: wire::StepOutcome) -> Result<Self, WireError> {
        let captured = outcome.captured.into_iter().map(|row| {
            let experts = row.experts.into_iter().map(|e| narrow(e.into(), "CapturedRow.experts"));
            Ok(CapturedRow {
                sequence: SequenceId(row.sequence),
                position: row.position,
                logits: row.logits,
                experts: experts.collect::<Result<_, _>>()?,
            })
        });
        Ok(StepOutcome {
            epoch: Epoch(outcome.epoch),
            step: StepId(outcome.step),
            sampled: outcome.sampled.into_iter().map(Sampled::try_from).collect::<Result<_, _>>()?,
            captured: captured.collect::<Result<_, _>>()?,
            compute_us: outcome.compute_us,
            times: StepTimes {
                collective_us: outcome.collective_us,
                exchanges: outcome.exchanges,
                sample_us: outcome.sample_us,
            },
            memory_bytes: outcome.memory_bytes,
        })
    }
}

impl From<Sampled> for wire::Sampled {
    fn from(sampled: Sampled) -> Self {
        let logprobs = sampled.logprobs.map(|logprobs| {
            let (tokens, values) = logprobs.top.into_iter().unzip();
            wire::Logprobs { chosen: logprobs.chosen, tokens, values }
        });
        wire::Sampled { sequence: sampled.sequence.0, token: sampled.token, logprobs }
    }
}

impl TryFrom<wire::Sampled> for Sampled {
    type Error = WireError;

    fn try_from(sampled: wire::Sampled) -> Result<Self, WireError> {
        let logprobs = sampled.logprobs.map(|logprobs| {
            let top = pairs(logprobs.tokens, logprobs.values, "Logprobs.values")?;
            Ok(Logprobs { chosen: logprobs.chosen, top })
        });
        Ok(Sampled {
            sequence: SequenceId(sampled.sequence),
            token: sampled.token,
            logprobs: logprobs.transpose()?,
        })
    }
}

fn pairs(
    tokens: Vec<TokenId>,
    values: Vec<f32>,
    field: &'static str,
) -> Result<Vec<(TokenId, f32)>, WireError> {
    if tokens.len() != values.len() {
        return Err(wrong(field, format!("are {}, for {} tokens", values.len(), tokens.len())));
    }
    Ok(tokens.into_iter().zip(values).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn sequence() -> impl Strategy<Value = SequenceId> {
        any::<u64>().prop_map(SequenceId)
    }

    fn blocks() -> impl Strategy<Value = Vec<BlockId>> {
        vec(any::<u32>().prop_map(BlockId), 0..5)
    }

    fn sampling() -> impl Strategy<Value = Sampling> {
        let biases = proptest::collection::btree_map(any::<u32>(), -9f32..9.0, 0..5);
        let logprobs = prop::option::of(0..=TOP_LOGPROBS_MAX);
        let numbers = (0f32..2.0, 0f32..1.0, any::<u32>(), 0f32..1.0);
        let penalties = (0.1f32..2.0, -2f32..2.0, -2f32..2.0);
        (numbers, penalties, biases, logprobs, any::<u64>()).prop_map(
            |(numbers, penalties, biases, logprobs, seed)| Sampling {
                temperature: numbers.0,
                top_p: numbers.1,
                top_k: numbers.2,
                min_p: numbers.3,
                repetition_penalty: penalties.0,
                presence_penalty: penalties.1,
                frequency_penalty: penalties.2,
                logit_bias: biases.into_iter().collect(),
                logprobs,
                seed,
            },
        )
    }

    fn admission() -> impl Strategy<Value = Admission> {
        (sequence(), sampling(), any::<u32>(), vec(any::<u32>(), 3..9), 0u32..4).prop_map(
            |(sequence, sampling, cached, context, generated)| Admission {
                sequence,
                sampling,
                cached,
                context,
                generated,
            },
        )
    }

    fn work() -> impl Strategy<Value = SequenceWork> {
        let flags = any::<(bool, bool, bool)>();
        let mask = prop::option::of(vec(any::<u32>(), 1..5).prop_map(TokenMask::from));
        let numbers = any::<(u32, u32, u32)>();
        (sequence(), numbers, vec(any::<u32>(), 0..20), (blocks(), blocks()), mask, flags).prop_map(
            |(sequence, numbers, tokens, (blocks, window_blocks), mask, (ahead, sample, capture))| {
                SequenceWork {
                    sequence,
                    position: numbers.0,
                    tokens,
                    ahead,
                    blocks,
                    window_blocks,
                    window_gone: numbers.1,
                    sample,
                    drafts: numbers.2,
                    mask,
                    capture,
                }
            },
        )
    }

    fn captured() -> impl Strategy<Value = CapturedRow> {
        (sequence(), any::<u32>(), vec(-9f32..9.0, 0..9), vec(any::<u16>(), 0..8)).prop_map(
            |(sequence, position, logits, experts)| CapturedRow { sequence, position, logits, experts },
        )
    }

    fn sampled() -> impl Strategy<Value = Sampled> {
        let top = vec((any::<u32>(), -9f32..0.0), 0..4);
        let logprobs = (-9f32..0.0, top).prop_map(|(chosen, top)| Logprobs { chosen, top });
        (sequence(), any::<u32>(), prop::option::of(logprobs))
            .prop_map(|(sequence, token, logprobs)| Sampled { sequence, token, logprobs })
    }

    proptest! {
        #[test]
        fn plans_of_steps_survive_the_wire(
            ids in any::<(u64, u64)>(),
            release in vec(sequence(), 0..5),
            admit in vec(admission(), 0..5),
            work in vec(work(), 0..5),
        ) {
            let plan = StepPlan { epoch: Epoch(ids.0), step: StepId(ids.1), release, admit, work };
            prop_assert_eq!(StepPlan::try_from(wire::StepPlan::from(&plan)).unwrap(), plan);
        }

        #[test]
        fn outcomes_survive_the_wire(
            ids in any::<(u64, u64, u64)>(),
            parts in any::<(Option<u64>, u32, Option<u64>, Option<u64>)>(),
            sampled in vec(sampled(), 0..5),
            captured in vec(captured(), 0..5),
        ) {
            let (epoch, step) = (Epoch(ids.0), StepId(ids.1));
            let times = StepTimes { collective_us: parts.0, exchanges: parts.1, sample_us: parts.2 };
            let (compute_us, memory_bytes) = (ids.2, parts.3);
            let outcome = StepOutcome { epoch, step, sampled, captured, compute_us, times, memory_bytes };
            prop_assert_eq!(StepOutcome::try_from(wire::StepOutcome::from(outcome.clone())).unwrap(), outcome);
        }
    }

    #[test]
    fn malformed_steps_are_refused_by_field() {
        let good = StepPlan {
            admit: vec![Admission {
                sampling: Sampling { logit_bias: vec![(1, 1.0), (2, -1.0)], ..Sampling::GREEDY },
                ..Admission::default()
            }],
            work: vec![SequenceWork { mask: Some([3].into_iter().collect()), ..SequenceWork::default() }],
            ..StepPlan::default()
        };
        type Spoil = fn(&mut wire::StepPlan);
        let cases: [(&str, Spoil); 6] = [
            ("Admission.sampling", |p| p.admit[0].sampling = None),
            ("Admission.generated", |p| p.admit[0].generated = 1),
            ("Sampling.biases", |p| p.admit[0].sampling.as_mut().unwrap().biases.clear()),
            ("Sampling.bias_tokens", |p| p.admit[0].sampling.as_mut().unwrap().bias_tokens[1] = 1),
            ("Sampling.logprobs", |p| p.admit[0].sampling.as_mut().unwrap().logprobs = Some(21)),
            ("SequenceWork.mask", |p| p.work[0].mask = vec![1; 5].into()),
        ];
        for (field, spoil) in cases {
            let mut wire = wire::StepPlan::from(&good);
            spoil(&mut wire);
            assert_eq!(StepPlan::try_from(wire).unwrap_err().field, field);
        }
    }
}
