//! Where a wide nucleus ends: the place of its last token. All ranks look at one stretch of the order, bucket by
//! bucket, go on in the bucket in which the nucleus ends, and when that holds few tokens, look at those. Nothing
//! wide is sorted, and no more than some buckets and a few tokens are sent. The sums are of whole numbers: every number of
//! ranks ends at the same token.

use super::Sampleable;
use super::candidates::{Likely, place};
use super::gathered::{Sent, put_all, take_all};
use super::span::{BUCKETS, Bucket, Span};
use super::weights::Weigher;

/// So many tokens are looked at one by one.
const FEW: u64 = 512;

#[derive(Debug)]
pub(super) struct Search {
    /// The nucleus ends in it.
    span: Span,
    /// What the weights of its tokens must reach.
    wanted: u128,
    /// How many tokens it has on all ranks, if that is known.
    count: Option<u64>,
    weigher: Weigher,
}

/// What a rank says of its part of the stretch.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found {
    Buckets(Vec<Bucket>),
    Tokens(Vec<Likely>),
}

impl Search {
    /// Of what a rank says: a weight and a count of each bucket, or a logit and an id of few tokens.
    pub const BYTES_MAX: usize = {
        let (buckets, tokens) = (BUCKETS * (16 + 4), 4 + 8 * FEW as usize);
        if buckets > tokens { buckets } else { tokens }
    };

    pub fn new(span: Span, wanted: u128, weigher: Weigher) -> Search {
        Search { span, wanted, count: None, weigher }
    }

    /// `logits`: f32 [V/R]
    pub fn look(&self, logits: &[f32], sampleable: &Sampleable) -> Found {
        match self.asks_tokens() {
            true => Found::Tokens(self.span.tokens(logits, sampleable)),
            false => Found::Buckets(self.span.weighed(logits, sampleable, self.weigher)),
        }
    }

    fn asks_tokens(&self) -> bool {
        self.count.is_some_and(|count| count <= FEW)
    }

    /// What every rank has found; the place of the last token, when it is known.
    pub fn learn(&mut self, found: Vec<Found>) -> Option<u64> {
        let (mut buckets, mut tokens) = (vec![(0u128, 0u64); BUCKETS], Vec::new());
        for found in found {
            match found {
                Found::Buckets(own) => buckets.iter_mut().zip(own).for_each(|(all, own)| {
                    *all = (all.0.saturating_add(own.0), all.1 + u64::from(own.1));
                }),
                Found::Tokens(own) => tokens.extend(own),
            }
        }
        if self.asks_tokens() {
            return Some(self.last_of(tokens));
        }
        self.narrow(&buckets);
        None
    }

    /// Goes on in the bucket in which the nucleus ends.
    fn narrow(&mut self, buckets: &[(u128, u64)]) {
        let wanted = self.wanted;
        let mut before = 0u128;
        let ends = buckets.iter().position(|(weight, _)| {
            let reaches = before.saturating_add(*weight) >= wanted;
            if !reaches {
                before += weight;
            }
            reaches
        });
        // What is wanted is a part of what was summed up, so some bucket reaches it.
        let ends = ends.unwrap_or(BUCKETS - 1);
        self.span = self.span.bucket(ends);
        self.wanted -= before;
        self.count = Some(buckets[ends].1);
    }

    fn last_of(&self, mut tokens: Vec<Likely>) -> u64 {
        tokens.sort_unstable_by_key(place);
        let mut reached = 0;
        let last = tokens.iter().find(|token| {
            reached += u128::from(self.weigher.weight(token.0));
            reached >= self.wanted
        });
        last.map_or(self.span.last, place)
    }

    /// Reads what a rank has sent.
    pub fn take(&self, from: &mut &[u8]) -> Option<Found> {
        if self.asks_tokens() {
            let tokens: Vec<Likely> = take_all(from)?;
            return tokens.iter().all(|(logit, _)| !logit.is_nan()).then_some(Found::Tokens(tokens));
        }
        let buckets: Vec<Bucket> = (0..BUCKETS).map(|_| Sent::take(from)).collect::<Option<_>>()?;
        Some(Found::Buckets(buckets))
    }
}

impl Found {
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Found::Buckets(buckets) => buckets.iter().for_each(|bucket| bucket.put(out)),
            Found::Tokens(tokens) => put_all(tokens.iter().copied(), out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::TokenId;
    use flotilla_shared::sampling::mix;

    /// The place of the last token, with the vocabulary cut in two, and in how many rounds.
    fn search(logits: &[f32], wanted: u128, weigher: Weigher) -> (u64, usize) {
        let all = 0..logits.len() as TokenId;
        let cut = logits.len() / 3;
        let ranks = [0..cut, cut..logits.len()]
            .map(|vocab| (&logits[vocab.clone()], Sampleable::new(vocab, std::slice::from_ref(&all))));
        let span = Span::new(place(&(9.0, 0)), place(&(-9.0, TokenId::MAX)));
        let mut search = Search::new(span, wanted, weigher);
        for round in 1.. {
            let mut sent = Vec::new();
            ranks.iter().for_each(|(logits, sampleable)| search.look(logits, sampleable).put(&mut sent));
            let mut from = &sent[..];
            let found = (0..2).map(|_| search.take(&mut from).unwrap()).collect();
            assert!(from.is_empty());
            if let Some(last) = search.learn(found) {
                return (last, round);
            }
        }
        unreachable!("a search ends");
    }

    /// The end is where adding up in order ends, to the token.
    #[test]
    fn a_nucleus_ends_where_adding_up_in_order_says() {
        let even = |i: u64| (mix(i) >> 40) as f32 / (1 << 24) as f32;
        for (seed, values, rounds_max) in [(1u64, 1e9, 2), (2, 30.0, 9), (3, 1.0, 9)] {
            let logits: Vec<f32> =
                (0..9000).map(|i| (even(seed << 32 | i) * 7.0 * values).floor() / values).collect();
            let weigher = Weigher::new(7.0, 1.0);
            let mut order: Vec<Likely> = logits.iter().copied().zip(0..).collect();
            order.sort_by_key(place);
            let weight = |token: &Likely| u128::from(weigher.weight(token.0));
            let total: u128 = order.iter().map(weight).sum();
            for thousandth in [0, 1, 300, 500, 999, 1000] {
                let wanted = (total * thousandth / 1000).max(1);
                let mut reached = 0;
                let last = order.iter().find(|token| {
                    reached += weight(token);
                    reached >= wanted
                });
                let (found, rounds) = search(&logits, wanted, weigher);
                assert_eq!(found, place(last.unwrap()), "{thousandth} of {values} values");
                assert!(rounds <= rounds_max, "{rounds} rounds");
            }
        }
    }

    /// A rank that sends nonsense does not make the others panic.
    #[test]
    fn what_does_not_add_up_ends_all_the_same() {
        let span = Span::new(5 << 40, 6 << 40);
        let mut search = Search::new(span, 1 << 80, Weigher::new(1.0, 1.0));
        assert_eq!(search.learn(vec![Found::Buckets(vec![(0, 1); BUCKETS]); 2]), None);
        assert_eq!(search.learn(vec![Found::Tokens(Vec::new())]), Some(6 << 40));
        let mut sent = Vec::new();
        Found::Tokens(vec![(f32::NAN, 1)]).put(&mut sent);
        assert_eq!(search.take(&mut &sent[..]), None);
    }
}
