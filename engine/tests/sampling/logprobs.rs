//! Log-probabilities: of the model's own logits over everything that has a piece, whatever changed the choice.

use crate::shards::{Rows, SHAPES, Shape, logits, sampleable};
use flotilla_engine::sample::{History, SampleRow};
use flotilla_shared::{Sampling, TokenId};

/// ln softmax over the sampleable tokens, in f64.
fn expected(logits: &[f32]) -> Vec<(TokenId, f64)> {
    let tokens = sampleable().into_iter().flatten().map(|token| (token, f64::from(logits[token as usize])));
    let tokens: Vec<(TokenId, f64)> = tokens.filter(|token| !token.1.is_nan()).collect();
    let max = tokens.iter().map(|token| token.1).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = tokens.iter().map(|token| (token.1 - max).exp()).sum();
    let mut all: Vec<_> =
        tokens.into_iter().map(|(token, logit)| (token, logit - max - total.ln())).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all
}

#[test]
fn logprobs_are_those_of_the_model_on_every_number_of_ranks() {
    let changed = Sampling {
        temperature: 1.3,
        top_p: 0.7,
        presence_penalty: 1.0,
        logit_bias: vec![(500, 8.0), (3000, -100.0)],
        ..Sampling::GREEDY
    };
    let mut rows = Rows::default();
    for (index, shape) in SHAPES.into_iter().enumerate() {
        for (sampling, count) in [(Sampling::GREEDY, 0), (changed.clone(), 5), (Sampling::GREEDY, 20)] {
            let history = sampling.has_penalties().then(|| History::new(&[401, 402], 1).into());
            let sampling = Sampling { logprobs: Some(count), seed: index as u64, ..sampling };
            rows.push(SampleRow { history, ..SampleRow::new(sampling, 3, 0) }, logits(shape, index as u64));
        }
    }
    rows.push(SampleRow::new(Sampling::GREEDY, 3, 0), logits(Shape::Steep, 1));
    for ranks in [1, 2, 3, 8] {
        let chosen = rows.on(ranks);
        for ((row, logits), chosen) in rows.rows.iter().zip(&rows.logits).zip(&chosen) {
            let chosen = chosen.as_ref().unwrap();
            let (Some(count), Some(found)) = (row.sampling.logprobs, &chosen.logprobs) else {
                assert_eq!((row.sampling.logprobs, &chosen.logprobs), (None, &None));
                continue;
            };
            let expected = expected(logits);
            let of_chosen = expected.iter().find(|(token, _)| *token == chosen.token).unwrap().1;
            assert!((f64::from(found.chosen) - of_chosen).abs() < 1e-5, "{ranks} ranks: {found:?}");
            assert_eq!(found.top.len(), usize::from(count));
            for (found, expected) in found.top.iter().zip(&expected) {
                let off = (f64::from(found.1) - expected.1).abs();
                assert!(found.0 == expected.0 && off < 1e-5, "{ranks} ranks: {found:?}, not {expected:?}");
            }
        }
        assert_eq!(chosen, rows.alone(), "{ranks} ranks");
    }
}
