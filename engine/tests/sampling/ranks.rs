//! Every parameter, alone and with others, over logits of every shape: the reference's tokens, on any number of
//! ranks and in any company.

use crate::reference::{self, Past};
use crate::shards::{Rows, SHAPES, Shape, VOCAB, logits, tokens};
use flotilla_engine::sample::{History, SampleRow};
use flotilla_shared::sampling::mix;
use flotilla_shared::{Sampling, TokenId};

const RANKS: [usize; 4] = [1, 2, 3, 8];

/// Each parameter where it changes nothing, where it cuts little, and where it cuts nearly all.
fn samplings() -> Vec<Sampling> {
    let warm = Sampling { temperature: 0.8, ..Sampling::GREEDY };
    let bias = |scale: f32| (0..40).map(|i| (i * 13, scale * (i as f32 - 20.0))).collect();
    let mut samplings = vec![Sampling::GREEDY, warm.clone()];
    samplings.extend([0.05, 1.0, 3.0].map(|temperature| Sampling { temperature, ..warm.clone() }));
    samplings.extend([1e-6, 0.3, 0.9, 0.999].map(|top_p| Sampling { top_p, ..warm.clone() }));
    samplings.extend([1, 2, 50, 300, 100_000].map(|top_k| Sampling { top_k, ..warm.clone() }));
    samplings.extend([1e-5, 0.1, 0.7, 1.0].map(|min_p| Sampling { min_p, ..warm.clone() }));
    for temperature in [0.0, 0.8] {
        let of = |sampling: Sampling| Sampling { temperature, ..sampling };
        samplings.push(of(Sampling { repetition_penalty: 1.3, ..Sampling::GREEDY }));
        samplings.push(of(Sampling { presence_penalty: 1.5, ..Sampling::GREEDY }));
        samplings.push(of(Sampling { frequency_penalty: -0.7, ..Sampling::GREEDY }));
        samplings.push(of(Sampling { logit_bias: bias(0.3), ..Sampling::GREEDY }));
        samplings.push(of(Sampling { logit_bias: bias(-50.0), ..Sampling::GREEDY }));
    }
    samplings.push(Sampling { top_k: 40, top_p: 0.8, min_p: 0.05, ..warm.clone() });
    samplings.push(Sampling { top_k: 700, top_p: 0.97, min_p: 0.001, temperature: 1.4, ..warm.clone() });
    samplings.push(Sampling {
        top_p: 0.9,
        min_p: 0.02,
        repetition_penalty: 1.2,
        presence_penalty: 0.4,
        frequency_penalty: 0.2,
        logit_bias: bias(0.1),
        ..warm
    });
    samplings
}

fn past() -> Past {
    let token = |i: u64| (mix(i) % VOCAB as u64) as TokenId;
    let generated = (0..300).chain(0..100).map(|i| token(7000 + i)).collect();
    Past { prompt: (0..200).map(token).collect(), generated }
}

/// Every sampling over every shape, some with a mask.
fn rows() -> Rows {
    let past = past();
    let context = [&past.prompt[..], &past.generated[..]].concat();
    let history = History::new(&context, past.generated.len());
    let mut rows = Rows::default();
    for (index, sampling) in samplings().into_iter().enumerate() {
        for (at, shape) in SHAPES.into_iter().enumerate() {
            let seed = (index * 10 + at) as u64;
            let history = sampling.has_penalties().then(|| history.clone().into());
            let mask =
                (seed % 3 == 1).then(|| (0..VOCAB as u32).filter(|t| mix(u64::from(*t)) & 3 > 0).collect());
            let row = SampleRow::new(Sampling { seed, ..sampling.clone() }, 5 * index as u32, 0);
            rows.push(SampleRow { mask, history, ..row }, logits(shape, seed));
        }
    }
    rows
}

#[test]
fn every_number_of_ranks_chooses_what_one_calculation_over_all_does() {
    let rows = rows();
    let past = past();
    let expected: Vec<_> = rows
        .rows
        .iter()
        .zip(&rows.logits)
        .map(|(row, logits)| {
            let kept = reference::kept(row, &past, logits);
            (reference::token(row, &kept), kept.len())
        })
        .collect();
    // Some rows keep one token, some thousands: the likeliest that are looked at first are not enough for those.
    let counts: Vec<usize> = expected.iter().map(|expected| expected.1).collect();
    assert!(counts.contains(&1) && counts.iter().filter(|count| (3000..5000).contains(*count)).count() > 3);
    for ranks in RANKS {
        let found = tokens(&rows.on(ranks));
        for ((row, found), expected) in rows.rows.iter().zip(found).zip(&expected) {
            assert_eq!(found, expected.0, "{ranks} ranks, one of {} tokens, {row:?}", expected.1);
        }
    }
}

/// What a row is chosen with does not matter.
#[test]
fn every_company_of_rows_gets_the_same_tokens() {
    let rows = rows();
    let together = rows.on(2);
    for (index, row) in rows.rows.iter().enumerate().step_by(5) {
        let mut one = Rows::default();
        one.push(row.clone(), rows.logits[index].clone());
        assert_eq!(one.on(3)[0], together[index], "alone: {row:?}");
    }
    let mut backwards = Rows::default();
    let reversed = rows.rows.iter().zip(&rows.logits).rev();
    reversed.for_each(|(row, logits)| backwards.push(row.clone(), logits.clone()));
    let mut found = backwards.on(3);
    found.reverse();
    assert_eq!(found, together);
}

/// Equal logits are kept by their ids, and exactly as many as were asked for.
#[test]
fn a_cut_through_equal_tokens_is_the_same_everywhere() {
    let draws = |sampling: &Sampling| {
        let mut rows = Rows::default();
        for position in 0..40 {
            rows.push(SampleRow::new(sampling.clone(), position, 0), logits(Shape::Tied, 5));
        }
        let alone = tokens(&rows.alone());
        for ranks in RANKS {
            assert_eq!(tokens(&rows.on(ranks)), alone, "{ranks} ranks, {sampling:?}");
        }
        alone
    };
    let warm = Sampling { temperature: 1.0, seed: 9, ..Sampling::GREEDY };
    let best: Vec<TokenId> =
        reference::kept(&SampleRow::new(warm.clone(), 0, 0), &Past::default(), &logits(Shape::Tied, 5))
            .iter()
            .map(|kept| kept.token)
            .collect();
    for top_k in [1, 3, 700] {
        let drawn = draws(&Sampling { top_k, ..warm.clone() });
        assert!(drawn.iter().all(|token| best[..top_k as usize].contains(&token.unwrap())), "top {top_k}");
    }
    for top_p in [0.001, 0.25, 0.5, 0.875] {
        draws(&Sampling { top_p, ..warm.clone() });
    }
}

/// More infinite logits than are looked at one by one: the search ends, and no noise tells them apart.
#[test]
fn a_wide_nucleus_of_infinite_logits_has_an_end() {
    for top in [f32::INFINITY, f32::NEG_INFINITY] {
        let mut rows = Rows::default();
        let logits: Vec<f32> = (0..VOCAB).map(|i| if i % 3 == 2 { top } else { top.min(1.0) }).collect();
        for top_p in [0.2, 0.9, 0.999] {
            let sampling = Sampling { temperature: 1.0, top_p, ..Sampling::GREEDY };
            rows.push(SampleRow::new(sampling, 3, 0), logits.clone());
        }
        let first = if top > 0.0 { 2 } else { 0 };
        for ranks in RANKS {
            assert_eq!(tokens(&rows.on(ranks)), vec![Some(first); 3], "{ranks} ranks");
        }
    }
}

#[test]
fn a_mask_that_allows_nothing_that_may_be_sampled_leaves_no_token() {
    for sampling in
        [Sampling::GREEDY, Sampling { temperature: 1.0, top_p: 0.5, logprobs: Some(2), ..Sampling::GREEDY }]
    {
        let mut rows = Rows::default();
        // 120 is in a gap.
        let mask = Some([120].into_iter().collect());
        rows.push(SampleRow { mask, ..SampleRow::new(sampling, 0, 0) }, logits(Shape::Steep, 1));
        assert_eq!(rows.on(2), [None]);
    }
}
