//! The likeliest tokens of a row: the highest logits of each rank's part, and what all ranks know of the whole
//! when they have seen each other's. One order: the higher logit first, then the lower id.

use super::Sampleable;
use super::gathered::{put_all, take_all};
use super::weights::{GROUP, KERNELS, filled, which};
use crate::backend::cpu::kernels::Plain;
use flotilla_shared::TokenId;

/// A token that might be drawn.
pub(super) type Likely = (f32, TokenId);

/// The place of a token in the order: the lower, the likelier. A NaN is not likely.
pub(super) fn place(&(logit, token): &Likely) -> u64 {
    // 0 for −0, whose place is the same. Then bits that rise as floats do.
    let bits = (logit + 0.0).to_bits();
    let rising = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(!rising) << 32 | u64::from(token)
}

/// The token at a place.
pub(super) fn at_place(place: u64) -> Likely {
    let rising = !((place >> 32) as u32);
    let bits = if rising >> 31 == 1 { rising & !(1 << 31) } else { !rising };
    (f32::from_bits(bits), place as TokenId)
}

/// The likeliest of one rank's part, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    tokens: Vec<Likely>,
    /// No others are left.
    is_all: bool,
}

impl Head {
    /// At most `count` of `logits`, f32 [V/R], but one at least.
    pub fn of(logits: &[f32], sampleable: &Sampleable, count: usize) -> Head {
        let likeliest = Likeliest::new(count.max(1));
        KERNELS.plain(Look { likeliest, logits, sampleable }).head()
    }

    /// The same of `tokens`, in any order: at least as many as are wanted of `all`, or all; none is a NaN.
    pub fn among(tokens: impl Iterator<Item = (f32, TokenId)>, count: usize, all: usize) -> Head {
        let mut places: Vec<u64> = tokens.map(|token| place(&token)).collect();
        places.sort_unstable();
        places.truncate(count);
        Head { tokens: places.into_iter().map(at_place).collect(), is_all: all <= count }
    }

    /// The highest logit.
    pub fn max(&self) -> f32 {
        self.tokens.first().map_or(f32::NEG_INFINITY, |token| token.0)
    }

    /// Of one of so many tokens, as it is sent: how many, a logit and an id each, and whether these are all.
    pub fn bytes_max(tokens: usize) -> usize {
        4 + 8 * tokens + 1
    }

    pub fn put(&self, out: &mut Vec<u8>) {
        put_all(self.tokens.iter().copied(), out);
        out.push(self.is_all.into());
    }

    pub fn take(from: &mut &[u8]) -> Option<Head> {
        let tokens: Vec<Likely> = take_all(from)?;
        let (is_all, rest) = from.split_first()?;
        *from = rest;
        let in_order = tokens.iter().all(|(logit, _)| !logit.is_nan())
            && tokens.is_sorted_by(|a, b| place(a) < place(b));
        in_order.then_some(Head { tokens, is_all: *is_all != 0 })
    }
}

/// Looks at one rank's part of a row.
struct Look<'a> {
    likeliest: Likeliest,
    logits: &'a [f32],
    sampleable: &'a Sampleable,
}

impl Plain for Look<'_> {
    type Out = Likeliest;

    #[inline(always)]
    fn run(mut self) -> Likeliest {
        for (first, logits) in self.sampleable.parts(self.logits) {
            let (groups, rest) = logits.as_chunks();
            let mut at = first;
            for group in groups {
                self.likeliest.meet_some_of(at, group);
                at += GROUP as TokenId;
            }
            self.likeliest.meet_some_of(at, &filled(rest));
        }
        self.likeliest
    }
}

/// The likeliest of those that were met so far, ids rising.
struct Likeliest {
    count: usize,
    /// Of a few more than `count`, in no order: numbers, which are quicker to compare than tokens.
    places: Vec<u64>,
    /// What a logit must be above to be among them, once some were left out.
    least: f32,
    is_all: bool,
}

impl Likeliest {
    fn new(count: usize) -> Self {
        Likeliest { count, places: Vec::new(), least: f32::NEG_INFINITY, is_all: true }
    }

    /// Of most groups none is likely enough, once some were left out.
    #[inline(always)]
    fn meet_some_of(&mut self, first: TokenId, group: &[f32; GROUP]) {
        let (least, is_all) = (self.least, self.is_all);
        let mut left = which(group, |logit| (logit > least) | is_all);
        while left != 0 {
            let at = left.trailing_zeros();
            left &= left - 1;
            self.meet(first + at, group[at as usize]);
        }
    }

    #[inline(always)]
    fn meet(&mut self, token: TokenId, logit: f32) {
        // Ids rise: one that is equal to the least of enough others comes after them.
        if logit > self.least || self.is_all && !logit.is_nan() {
            self.places.push(place(&(logit, token)));
            if self.places.len() > self.count.saturating_mul(2).max(256) {
                self.leave_out();
            }
        }
    }

    fn leave_out(&mut self) {
        let (_, last, _) = self.places.select_nth_unstable(self.count - 1);
        self.least = at_place(*last).0;
        self.places.truncate(self.count);
        self.is_all = false;
    }

    fn head(mut self) -> Head {
        if self.places.len() > self.count {
            self.leave_out();
        }
        self.places.sort_unstable();
        Head { tokens: self.places.into_iter().map(at_place).collect(), is_all: self.is_all }
    }
}

/// What all ranks know of a row: its likeliest tokens, in order, without a gap.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Known {
    pub tokens: Vec<Likely>,
    /// Every token that may be drawn is among them.
    pub is_all: bool,
}

impl Known {
    /// Behind the last that a rank has sent of more, that rank may have others.
    pub fn of(heads: Vec<Head>) -> Known {
        let last = |head: &Head| head.tokens.last().copied().filter(|_| !head.is_all);
        let end = heads.iter().filter_map(last).min_by_key(place);
        let mut tokens: Vec<Likely> = heads.into_iter().flat_map(|head| head.tokens).collect();
        // They come sorted by rank, and this sort finds what is sorted.
        tokens.sort_by_key(place);
        if let Some(end) = end {
            tokens.truncate(tokens.partition_point(|token| place(token) <= place(&end)));
        }
        Known { tokens, is_all: end.is_none() }
    }

    /// Only the first `count` may be drawn.
    pub fn keep(&mut self, count: usize) {
        if count <= self.tokens.len() {
            self.tokens.truncate(count);
            self.is_all = true;
        }
    }

    /// Only those may be drawn whose logit is at least `floor`.
    pub fn keep_above(&mut self, floor: f32) {
        let kept = self.tokens.partition_point(|(logit, _)| *logit >= floor);
        if kept < self.tokens.len() {
            self.keep(kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::sampling::mix;

    fn random(seed: u64, count: u64) -> Vec<f32> {
        // Few values, so many ties; some are no numbers.
        let value = |i| match mix(seed << 20 | i) % 50 {
            0 => f32::NAN,
            n => (n % 23) as f32,
        };
        (0..count).map(value).collect()
    }

    #[test]
    fn a_head_is_the_beginning_of_the_order() {
        for (seed, count) in [(1, 1), (2, 7), (3, 300), (4, 256), (5, 5000)] {
            let logits = random(seed, 2000);
            let sampleable = Sampleable::new(100..2100, &[0..150, 160..1900, 2000..9000]);
            let mut all: Vec<Likely> =
                sampleable.tokens(&logits).map(|(t, l)| (l, t)).filter(|(l, _)| !l.is_nan()).collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let head = Head::of(&logits, &sampleable, count);
            assert_eq!(head.is_all, all.len() <= count, "{count}");
            all.truncate(count);
            assert_eq!(head.tokens, all, "{count}");
            let mut sent = Vec::new();
            head.put(&mut sent);
            assert_eq!(sent.len(), Head::bytes_max(head.tokens.len()));
            assert_eq!(Head::take(&mut &sent[..]), Some(head));
        }
    }

    #[test]
    fn places_fall_with_logits_and_rise_with_ids() {
        let inf = f32::INFINITY;
        let in_order =
            [(inf, 9), (2.5, 3), (1e-40, 2), (0.0, 1), (-0.0, 2), (-1e-40, 0), (-3.0, 7), (-inf, 0)];
        assert!(in_order.is_sorted_by(|a, b| place(a) < place(b)));
        assert_eq!(place(&(0.0, 4)), place(&(-0.0, 4)));
        assert_eq!(in_order.map(|token| at_place(place(&token))), in_order);
    }

    #[test]
    fn what_is_known_has_no_gap() {
        let head = |tokens: &[Likely], is_all| Head { tokens: tokens.to_vec(), is_all };
        let heads = vec![
            head(&[(9.0, 1), (5.0, 2)], false),
            head(&[], true),
            head(&[(7.0, 10), (5.0, 11), (4.0, 12)], false),
            head(&[(4.5, 20)], true),
        ];
        let known = Known::of(heads.clone());
        // (5.0, 2) is the last that is known of the first rank: it may have others just behind it.
        assert_eq!(known, Known { tokens: vec![(9.0, 1), (7.0, 10), (5.0, 2)], is_all: false });
        let mut cut = known.clone();
        cut.keep_above(5.5);
        assert_eq!(cut, Known { tokens: vec![(9.0, 1), (7.0, 10)], is_all: true });
        let mut open = known;
        open.keep_above(5.0);
        assert!(!open.is_all);
    }

    #[test]
    fn a_head_out_of_order_is_not_read() {
        for tokens in [vec![(1.0, 3), (2.0, 4)], vec![(1.0, 4), (1.0, 3)], vec![(f32::NAN, 1)]] {
            let mut sent = Vec::new();
            Head { tokens, is_all: true }.put(&mut sent);
            assert_eq!(Head::take(&mut &sent[..]), None);
        }
    }
}
