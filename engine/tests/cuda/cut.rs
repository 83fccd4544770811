//! What a card says of rows of which not every token may be drawn: the same as `sample/` finds on the host, to the bit.

use crate::support;
use flotilla_engine::backend::cuda::cut::{self, COUNT_MAX, CutKernels};
use flotilla_engine::cuda::{Card, Source};
use flotilla_engine::sample::{Head, Sampleable, Weigher};
use flotilla_shared::TokenId;
use flotilla_shared::sampling::mix;
use std::ops::Range;

/// One replace each in cut.cu that [`check`] must notice.
pub const PLANTED: [(&str, &str, &str); 5] = [
    ("negative logits in the wrong order", "? ~bits :", "? bits :"),
    ("a digit that is looked at among all tokens", "same = ~0u << shift", "same = 0"),
    (
        "what is equal to the least is left out",
        "if (rising(logit) < least) return",
        "if (rising(logit) <= least) return",
    ),
    (
        "weights that are fused",
        "series = __dadd_rn(__dmul_rn(series, f), 1.0)",
        "series = __fma_rn(series, f, 1.0)",
    ),
    ("what weighs nothing counts", "if (logit >= row.least) sum", "if (logit == logit) sum"),
];

#[test]
fn the_card_knows_what_the_host_knows() {
    for test in support::cards() {
        check(&test.card, &|source| source).unwrap();
    }
}

/// A row of a vocabulary's logits.
type Pattern = fn(u64, usize) -> f32;

const PATTERNS: [(&str, Pattern); 7] = [
    ("as of a model", |seed, i| (mix(seed << 32 | i as u64) % (1 << 20)) as f32 / 32768.0 - 12.0),
    ("few values", |seed, i| (mix(seed << 32 | i as u64) % 400) as f32 / 8.0 - 25.0),
    (
        "few that are numbers",
        |seed, i| if mix(seed << 32 | i as u64).is_multiple_of(50) { i as f32 } else { f32::NAN },
    ),
    ("close together", |seed, i| 7.0 + (mix(seed << 32 | i as u64) % 5000) as f32 * 1e-6),
    ("zeros of both signs, and infinities", |seed, i| {
        [0.0, -0.0, 1e-40, -1e-40, f32::NEG_INFINITY, -3.0][mix(seed << 32 | i as u64) as usize % 6]
    }),
    ("all alike", |_, _| 1.5),
    ("no number", |_, _| f32::NAN),
];

pub fn check(card: &Card, edit: &dyn Fn(Source) -> Source) -> Result<(), String> {
    // A few tokens, several parts, a part that begins inside of the vocabulary, one token, nothing that may be chosen.
    let cases: [(Range<usize>, Vec<Range<TokenId>>); 5] = [
        (0..100, vec![0..100]),
        (0..20_000, vec![0..4100, 4200..4201, 4300..90_000]),
        (3000..12_100, vec![0..3010, 3500..11_000, 12_000..20_000]),
        (7..8, vec![0..200]),
        (50..150, vec![0..50, 150..300]),
    ];
    for (seed, (vocab, ids)) in cases.into_iter().enumerate() {
        let mut kernels = CutKernels::compiled(card, &edit(cut::source()), vocab.clone(), &ids).unwrap();
        let sampleable = Sampleable::new(vocab.clone(), &ids);
        let row =
            |(_, pattern): &(&str, Pattern)| (0..vocab.len()).map(|i| pattern(seed as u64, i)).collect();
        let rows: Vec<Vec<f32>> = PATTERNS.iter().map(row).collect();
        let logits = card.upload(&rows.concat()).unwrap();
        let name = |row: usize, what: &str| format!("vocabulary {vocab:?}, {}: {what}", PATTERNS[row].0);

        // Rows need not be in order, and one may be asked for twice.
        let asked: Vec<(usize, usize)> = [1, 7, COUNT_MAX]
            .into_iter()
            .flat_map(|count| (0..rows.len()).rev().map(move |row| (row, count)))
            .collect();
        let heads = kernels.likeliest(&asked, &logits).map_err(|error| error.to_string())?;
        let mut has_no_room = 0;
        for ((row, count), head) in asked.iter().zip(heads) {
            let Some(head) = head else {
                has_no_room += 1;
                continue;
            };
            if head != Head::of(&rows[*row], &sampleable, *count) {
                return Err(name(*row, &format!("its {count} likeliest are others: {head:?}")));
            }
        }
        // Only where more are alike than there is room for.
        let is_long = sampleable.ids.iter().map(ExactSizeIterator::len).sum::<usize>() > 2 * COUNT_MAX;
        let (least, most) = if is_long { (3, 6) } else { (0, 0) };
        if !(least..=most).contains(&has_no_room) {
            return Err(format!("vocabulary {vocab:?}: {has_no_room} heads have no room"));
        }

        let weighed: Vec<(usize, Weigher, f32)> = [0.3, 1.0, 8.0]
            .into_iter()
            .flat_map(|temperature| (0..rows.len()).map(move |row| (row, temperature)))
            .map(|(row, temperature)| {
                let max = rows[row].iter().copied().fold(f32::MIN, f32::max);
                let floor = if row % 2 == 0 { f32::NEG_INFINITY } else { max - 9.0 * temperature };
                (row, Weigher::new(max, temperature), floor)
            })
            .collect();
        let sums = kernels.weigh(&weighed, &logits).map_err(|error| error.to_string())?;
        for ((row, weigher, floor), sum) in weighed.iter().zip(sums) {
            let expected = sampleable.weigh(&rows[*row], weigher, *floor);
            if sum != expected {
                return Err(name(*row, &format!("{weigher:?}: {sum}, expected {expected}")));
            }
        }
    }
    Ok(())
}
