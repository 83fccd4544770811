//! How tokens that were sampled on the last stage come to the first, where rows that run ahead begin with them: from
//! rank to rank, behind the coordinator's back, which does not know them yet either. A message holds a step's.
//!
//! | bytes | |
//! |---|---|
//! | 0..8 | step |
//! | then for each token 12 | sequence, token |

use super::{Executor, StepError};
use flotilla_engine::backend::Backend;
use flotilla_engine::collective::{AllReduce, Collective};
use flotilla_shared::step::{Sampled, SequenceWork};
use flotilla_shared::{SequenceId, StepId, StepPlan, TokenId};

const STEP_BYTES: usize = 8;
const TOKEN_BYTES: usize = 12;

impl<B, C> Executor<B, C>
where
    B: Backend,
    C: Collective + AllReduce<B::Activations>,
{
    /// On the last of several stages, of a step that samples.
    pub(super) fn tell_tokens(&mut self, plan: &StepPlan, sampled: &[Sampled]) -> Result<(), StepError> {
        if self.part.is_first || !self.part.is_last || sampled.is_empty() {
            return Ok(());
        }
        write(plan.step, sampled, &mut self.told);
        Ok(self.collective.tell(&self.told)?)
    }

    /// On the first of several stages: waits for the tokens that rows of `plan` begin with, and takes what else is
    /// there, so that no more lies in a link than is in flight.
    pub(super) fn hear_tokens(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        if !self.part.is_first || self.part.is_last {
            return Ok(());
        }
        let ahead = plan.work.iter().filter(|work| work.ahead);
        let awaited = ahead.filter_map(|work| self.sequences.get(&work.sequence)?.awaited());
        let awaited = awaited.max();
        while self.collective.hear(awaited.is_some_and(|step| step > self.heard), &mut self.told)? {
            self.learn_told()?;
        }
        let mut ahead = plan.work.iter().filter(|work| work.ahead);
        match ahead.find(|work| self.awaits(work)) {
            Some(work) => Err(StepError::Untold(work.sequence)),
            None => Ok(()),
        }
    }

    fn awaits(&self, work: &SequenceWork) -> bool {
        self.sequences.get(&work.sequence).is_some_and(|held| held.awaited().is_some())
    }

    fn learn_told(&mut self) -> Result<(), StepError> {
        let (step, tokens) = read(&self.told).ok_or(StepError::Unreadable)?;
        for (sequence, token) in tokens {
            // It may have ended, or begun anew, meanwhile.
            if let Some(held) = self.sequences.get_mut(&sequence) {
                held.hear(step, token);
            }
        }
        self.heard = step;
        Ok(())
    }
}

fn write(step: StepId, sampled: &[Sampled], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&step.0.to_le_bytes());
    for Sampled { sequence, token, .. } in sampled {
        out.extend_from_slice(&sequence.0.to_le_bytes());
        out.extend_from_slice(&token.to_le_bytes());
    }
}

fn read(bytes: &[u8]) -> Option<(StepId, impl Iterator<Item = (SequenceId, TokenId)>)> {
    let (step, tokens) = bytes.split_first_chunk::<STEP_BYTES>()?;
    let (tokens, rest) = tokens.as_chunks::<TOKEN_BYTES>();
    let token = |[s0, s1, s2, s3, s4, s5, s6, s7, token @ ..]: &[u8; TOKEN_BYTES]| {
        let sequence = u64::from_le_bytes([*s0, *s1, *s2, *s3, *s4, *s5, *s6, *s7]);
        (SequenceId(sequence), TokenId::from_le_bytes(*token))
    };
    rest.is_empty().then(|| (StepId(u64::from_le_bytes(*step)), tokens.iter().map(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_cut_is_not() {
        let sampled = [(7, 199_999), (u64::MAX, 0)];
        let of = |(sequence, token)| Sampled { sequence: SequenceId(sequence), token, logprobs: None };
        let mut bytes = Vec::new();
        write(StepId(1 << 40), &sampled.map(of), &mut bytes);
        let (step, tokens) = read(&bytes).unwrap();
        assert_eq!(step, StepId(1 << 40));
        assert_eq!(tokens.map(|(sequence, token)| (sequence.0, token)).collect::<Vec<_>>(), sampled);
        for length in (0..bytes.len()).filter(|length| *length != 8 && *length != 20) {
            assert!(read(&bytes[..length]).is_none(), "{length} bytes");
        }
    }
}
