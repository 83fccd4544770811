//! A stretch of the order of tokens, and what lies in it: how many tokens and what they weigh, bucket by bucket, or
//! the tokens themselves. Every rank cuts the same stretch into the same buckets. What is looked for in it
//! is not known here.

use super::Sampleable;
use super::candidates::{Likely, at_place, place};
use super::weights::{GROUP, KERNELS, Weigher, filled, which};
use crate::backend::cpu::kernels::Plain;
use flotilla_shared::TokenId;

/// Into so many parts a stretch is cut.
pub(super) const BUCKETS: usize = 256;

/// What a bucket holds: Σ weights, and how many tokens.
pub(super) type Bucket = (u128, u32);

/// Places from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    pub first: u64,
    pub last: u64,
    /// It is cut into equal widths of logits, which suits a wide one. Else into as many places each, which
    /// comes to an end soon where logits are equal.
    by_logit: bool,
}

impl Span {
    pub fn new(first: u64, last: u64) -> Span {
        Span { first, last, by_logit: true }
    }

    /// The buckets' contents of one rank's part, [BUCKETS].
    pub fn weighed(&self, logits: &[f32], sampleable: &Sampleable, weigher: Weigher) -> Vec<Bucket> {
        let buckets = vec![Bucket::default(); BUCKETS];
        let cutting = Cutting::of(self);
        let found = Weighing { weigher, cutting, buckets, held: [(0.0, 0); GROUP], count: 0 };
        let mut found = self.scan(logits, sampleable, found);
        found.weigh();
        found.buckets
    }

    /// Its tokens of one rank's part, in order.
    pub fn tokens(&self, logits: &[f32], sampleable: &Sampleable) -> Vec<Likely> {
        let mut found: Vec<Likely> = self.scan(logits, sampleable, Vec::new());
        found.sort_unstable_by_key(place);
        found
    }

    /// Shows `found` every token of one rank's part that lies in it.
    pub fn scan<V: Visitor>(&self, logits: &[f32], sampleable: &Sampleable, found: V) -> V {
        KERNELS.plain(Scan { span: *self, logits, sampleable, found })
    }

    /// The stretch that one of the buckets is.
    pub fn bucket(&self, bucket: usize) -> Span {
        let cutting = Cutting::of(self);
        let of_place = |place| cutting.bucket(at_place(place));
        let first = first_place(self.first, self.last, |place| of_place(place) >= bucket);
        let behind = first_place(first, self.last, |place| of_place(place) > bucket);
        let last = if of_place(behind) > bucket { behind - 1 } else { behind };
        Span { first, last, by_logit: false }
    }
}

/// What looks at tokens of a stretch.
pub(super) trait Visitor {
    /// Must be `#[inline(always)]`, as [`Plain::run`].
    fn meet(&mut self, token: Likely);
}

impl Visitor for Vec<Likely> {
    #[inline(always)]
    fn meet(&mut self, token: Likely) {
        self.push(token);
    }
}

struct Scan<'a, V> {
    span: Span,
    logits: &'a [f32],
    sampleable: &'a Sampleable,
    found: V,
}

impl<V: Visitor> Plain for Scan<'_, V> {
    type Out = V;

    #[inline(always)]
    fn run(mut self) -> V {
        for (first, logits) in self.sampleable.parts(self.logits) {
            let (groups, rest) = logits.as_chunks();
            let mut at = first;
            for group in groups {
                self.look(at, group);
                at += GROUP as TokenId;
            }
            self.look(at, &filled(rest));
        }
        self.found
    }
}

impl<V: Visitor> Scan<'_, V> {
    /// Most groups have no token in the stretch, and none is looked at but those that may be.
    #[inline(always)]
    fn look(&mut self, first: TokenId, group: &[f32; GROUP]) {
        let (top, least) = (at_place(self.span.first).0, at_place(self.span.last).0);
        let mut left = which(group, |logit| (logit >= least) & (logit <= top));
        while left != 0 {
            let at = left.trailing_zeros();
            left &= left - 1;
            let token = (group[at as usize], first + at);
            // At the ends, equal logits are told apart by their ids.
            if (self.span.first..=self.span.last).contains(&place(&token)) {
                self.found.meet(token);
            }
        }
    }
}

/// Sums up by bucket. Tokens are held until there are enough to be weighed together.
struct Weighing {
    weigher: Weigher,
    cutting: Cutting,
    buckets: Vec<Bucket>,
    held: [Likely; GROUP],
    count: usize,
}

impl Visitor for Weighing {
    #[inline(always)]
    fn meet(&mut self, token: Likely) {
        self.held[self.count] = token;
        self.count += 1;
        if self.count == GROUP {
            self.weigh();
        }
    }
}

impl Weighing {
    #[inline(always)]
    fn weigh(&mut self) {
        let mut logits = [0.0; GROUP];
        for (logit, held) in logits.iter_mut().zip(&self.held) {
            *logit = held.0;
        }
        for (held, weight) in self.held[..self.count].iter().zip(self.weigher.weights(&logits)) {
            let bucket = &mut self.buckets[self.cutting.bucket(*held)];
            *bucket = (bucket.0 + u128::from(weight), bucket.1 + 1);
        }
        self.count = 0;
    }
}

/// The first place from `low` on that `is` so, if all behind it are; else `high`.
fn first_place(mut low: u64, mut high: u64, is: impl Fn(u64) -> bool) -> u64 {
    while low < high {
        let middle = low + (high - low) / 2;
        if is(middle) { high = middle } else { low = middle + 1 }
    }
    low
}

/// How tokens fall into buckets. A bucket rises with the place, for subtracting, multiplying and rounding down
/// each do.
enum Cutting {
    Logits { top: f64, per_logit: f64 },
    Places { first: u64, shift: u32 },
}

impl Cutting {
    fn of(span: &Span) -> Cutting {
        let (top, least) = (f64::from(at_place(span.first).0), f64::from(at_place(span.last).0));
        // No number, where both are infinite.
        let width = top - least;
        if span.by_logit && width > 0.0 && width.is_finite() {
            return Cutting::Logits { top, per_logit: BUCKETS as f64 / width };
        }
        let bits = u64::BITS - (span.last - span.first).leading_zeros();
        Cutting::Places { first: span.first, shift: bits.saturating_sub(BUCKETS.ilog2()) }
    }

    #[inline(always)]
    fn bucket(&self, token: Likely) -> usize {
        match *self {
            Cutting::Logits { top, per_logit } => {
                (((top - f64::from(token.0)) * per_logit) as usize).min(BUCKETS - 1)
            }
            Cutting::Places { first, shift } => ((place(&token) - first) >> shift) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::sampling::mix;

    fn logits(seed: u64, values: u64) -> Vec<f32> {
        let value = |i| match mix(seed << 20 | i) % 40 {
            0 => f32::NAN,
            1 => f32::NEG_INFINITY,
            _ => (mix(seed << 21 | i) % values) as f32 * 9.0 / values as f32 - 4.0,
        };
        (0..3000).map(value).collect()
    }

    fn sampleable() -> Sampleable {
        Sampleable::new(50..3050, &[0..70, 100..2900])
    }

    /// Many different logits, three, and one: each token is in the one bucket that its place says.
    #[test]
    fn buckets_tile_a_stretch() {
        for (seed, values) in [(1, 1 << 20), (2, 3), (3, 1)] {
            let (logits, sampleable) = (logits(seed, values), sampleable());
            let span = Span::new(place(&(4.5, 7)), place(&(-4.0, TokenId::MAX)));
            let weigher = Weigher::new(5.0, 1.0);
            let found = span.weighed(&logits, &sampleable, weigher);
            let mut next = span.first;
            for (bucket, (weight, count)) in found.into_iter().enumerate().filter(|(_, found)| found.1 > 0) {
                let part = span.bucket(bucket);
                assert!(part.first >= next && part.last <= span.last, "{part:?} behind {next}");
                let tokens = part.tokens(&logits, &sampleable);
                assert_eq!(tokens.len(), count as usize, "bucket {bucket} of {values} values");
                assert_eq!(
                    tokens.iter().map(|token| u128::from(weigher.weight(token.0))).sum::<u128>(),
                    weight
                );
                next = part.last + 1;
            }
        }
    }

    /// Until one token is left, of equal logits as of others.
    #[test]
    fn every_stretch_of_more_than_one_token_can_be_cut() {
        for top in [3.0, 0.0, f32::INFINITY, f32::NEG_INFINITY] {
            let logits = vec![top; 3000];
            let least = if top.is_finite() { top - 40.0 } else { top };
            let mut span = Span::new(place(&(top, 0)), place(&(least, TokenId::MAX)));
            let mut rounds = 0;
            while span.tokens(&logits, &sampleable()).len() > 1 {
                let found = span.weighed(&logits, &sampleable(), Weigher::new(top, 1.0));
                span = span.bucket(found.iter().position(|found| found.1 > 0).unwrap());
                rounds += 1;
            }
            assert!(rounds <= 9, "{rounds} rounds");
            assert_eq!(span.tokens(&logits, &sampleable()), [(top, 50)]);
        }
    }

    #[test]
    fn neighbours_are_told_apart() {
        let logits = [1.0f32, 1.0f32.next_down(), 0.0, -0.0];
        let sampleable = Sampleable::new(0..4, &[0..4]);
        let pair = Span::new(place(&(1.0, 0)), place(&(1.0f32.next_down(), TokenId::MAX)));
        assert_eq!(pair.bucket(0).tokens(&logits, &sampleable), [(1.0, 0)]);
        assert_eq!(pair.bucket(BUCKETS - 1).tokens(&logits, &sampleable), [(1.0f32.next_down(), 1)]);
        // The same place but for their ids, on both sides of where a stretch begins.
        let zeros = Span::new(place(&(0.0, 3)), place(&(-1.0, 0)));
        assert_eq!(zeros.tokens(&logits, &sampleable), [(-0.0, 3)]);
    }
}
