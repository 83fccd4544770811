//! What is done to a row's logits before anything is chosen by them: the mask of a step, the bias, and the
//! penalties, in this order. Each token's is a function of that token alone, so ranks need not speak.

use super::{SampleRow, Sampleable};
use flotilla_shared::{Sampling, TokenId};
use std::collections::BTreeMap;

/// What penalties count of a sequence: every token that stands in it, and how many times each was generated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History(BTreeMap<TokenId, u32>);

impl History {
    /// Of `context`, the last `generated` tokens were generated; the others are the prompt.
    pub fn new(context: &[TokenId], generated: usize) -> Self {
        let mut history = History::default();
        let (prompt, generated) = context.split_at(context.len().saturating_sub(generated));
        for token in prompt {
            history.0.entry(*token).or_default();
        }
        generated.iter().for_each(|token| history.generate(*token));
        history
    }

    pub fn generate(&mut self, token: TokenId) {
        *self.0.entry(token).or_default() += 1;
    }
}

/// `logits`, f32 [V/R], as the row's mask, bias and penalties leave them; what the mask forbids is a NaN, which
/// never wins. In `room` where there is something to do.
pub(super) fn adjusted<'a>(
    row: &SampleRow,
    logits: &'a [f32],
    sampleable: &Sampleable,
    room: &'a mut Vec<f32>,
) -> &'a [f32] {
    if !row.is_adjusted() {
        return logits;
    }
    room.clear();
    room.extend_from_slice(logits);
    let first = sampleable.vocab.start;
    if let Some(mask) = &row.mask {
        sampleable.ids.iter().cloned().flatten().for_each(|token| {
            if !mask.allows(token as TokenId) {
                room[token - first] = f32::NAN;
            }
        });
    }
    let own = |token: TokenId| (token as usize).checked_sub(first);
    for (token, bias) in &row.sampling.logit_bias {
        if let Some(logit) = own(*token).and_then(|at| room.get_mut(at)) {
            *logit += bias;
        }
    }
    for (token, generated) in row.history.iter().flat_map(|history| &history.0) {
        if let Some(logit) = own(*token).and_then(|at| room.get_mut(at)) {
            *logit = penalised(*logit, *generated, &row.sampling);
        }
    }
    room
}

/// The logit of a token that stands in the sequence.
fn penalised(logit: f32, generated: u32, sampling: &Sampling) -> f32 {
    let repeated = match logit > 0.0 {
        true => logit / sampling.repetition_penalty,
        false => logit * sampling.repetition_penalty,
    };
    let presence = if generated > 0 { sampling.presence_penalty } else { 0.0 };
    repeated - presence - sampling.frequency_penalty * generated as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn mask_then_bias_then_penalties() {
        let sampling = Sampling {
            logit_bias: vec![(1, 5.0), (11, -3.0), (12, 1.5), (40, 9.0)],
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            ..Sampling::GREEDY
        };
        let row = SampleRow {
            mask: Some([1, 10, 11, 12, 13].into_iter().collect()),
            // The prompt is 9 and 10; 12 and 13 were generated, 13 twice.
            history: Some(Arc::new(History::new(&[9, 10, 12, 13, 13], 3))),
            ..SampleRow::new(sampling, 0, 0)
        };
        let sampleable = Sampleable::new(10..15, &[0..100]);
        let mut room = Vec::new();
        let found = adjusted(&row, &[2.0, 2.0, -0.5, -1.0, 8.0], &sampleable, &mut room);
        // 12: (−0.5 + 1.5) / 2 − 0.5 − 0.25; 13: −1 · 2 − 0.5 − 2 · 0.25
        assert_eq!(found[..4], [1.0, -1.0, -0.25, -3.0]);
        assert!(found[4].is_nan());
    }

    #[test]
    fn a_plain_row_is_not_copied() {
        let (logits, mut room) = ([1.0, 2.0], Vec::new());
        let row = SampleRow::new(Sampling::GREEDY, 0, 0);
        let found = adjusted(&row, &logits, &Sampleable::new(0..2, &[0..2]), &mut room);
        assert!(std::ptr::eq(found, &logits[..]));
    }
}
