//! What the ranks of one group give each other when the cut changes: parts of what they held before. Who gives some that
//! does not lie in its new share keeps its old one beside it until all have met, if its memory holds both.

use flotilla_shared::{Held, ModelSpec, TensorSlice};

/// A rank to be, as far as its weights go.
pub struct Seat {
    /// What it holds now.
    pub before: Option<Held>,
    pub wanted: Held,
    /// Of its memory; nothing if it cannot be asked for what it held while it loads.
    pub room_bytes: u64,
}

/// Whether each of `seats` has to keep what it held for others.
pub fn lenders(spec: &ModelSpec, seats: &[Seat]) -> Vec<bool> {
    let lacking: Vec<Vec<TensorSlice>> =
        seats.iter().map(|seat| seat.wanted.lacking(spec, seat.before.as_ref())).collect();
    let lends = |(at, seat): (usize, &Seat)| {
        let Some(before) = seat.before.as_ref().filter(|before| before.weights == seat.wanted.weights) else {
            return false;
        };
        seat.has_room(spec, before) && {
            let (own, stays) = (before.by_tensor(spec), seat.wanted.by_tensor(spec));
            let is_lent = |part: &TensorSlice| {
                let part = own.get(&part.tensor).and_then(|own| own.common(part));
                part.is_some_and(|part| !stays.get(&part.tensor).is_some_and(|stays| stays.covers(&part)))
            };
            let others = lacking.iter().enumerate().filter(|(other, _)| *other != at);
            others.flat_map(|(_, lacking)| lacking).any(is_lent)
        }
    };
    seats.iter().enumerate().map(lends).collect()
}

impl Seat {
    /// For both shares at once.
    fn has_room(&self, spec: &ModelSpec, before: &Held) -> bool {
        let bytes = |held: &Held| held.slices(spec).iter().map(|slice| slice.bytes() as u64).sum::<u64>();
        bytes(before) + bytes(&self.wanted) <= self.room_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::{Plan, Rank, WeightsId};

    const WEIGHTS: WeightsId = WeightsId([1; 32]);

    fn held(count: usize, rank: u16) -> Held {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        Held::of(WEIGHTS, &Plan::with_shares(&spec, &vec![1.0; count]), Rank(rank))
    }

    /// Of a group of as many as there are seats: what each held before, and its memory.
    fn lend(seats: &[(Option<Held>, u64)]) -> Vec<bool> {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let seat = |(rank, (before, room_bytes)): (usize, &(Option<Held>, u64))| Seat {
            before: before.clone(),
            wanted: held(seats.len(), rank as u16),
            room_bytes: *room_bytes,
        };
        lenders(&spec, &seats.iter().enumerate().map(seat).collect::<Vec<_>>())
    }

    #[test]
    fn who_has_what_others_lack_keeps_it() {
        let third = |rank| (Some(held(3, rank)), u64::MAX);
        // The first of three is lost: the middle one goes to the front, and the last lacks some of the middle.
        assert_eq!(lend(&[third(1), third(2)]), [true, false]);
        // The middle one is lost: what lacks was its.
        assert_eq!(lend(&[third(0), third(2)]), [false, false]);
        // Halves grow to thirds, and the newcomer between them has nothing yet; or it has loaded.
        let half = |rank| (Some(held(2, rank)), u64::MAX);
        assert_eq!(lend(&[half(0), (None, u64::MAX), half(1)]), [true, false, true]);
        assert_eq!(lend(&[half(0), third(1), half(1)]), [false; 3]);
    }

    #[test]
    fn nobody_keeps_what_he_has_no_room_for() {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let bytes = |held: &Held| held.slices(&spec).iter().map(|slice| slice.bytes() as u64).sum::<u64>();
        let both = bytes(&held(3, 1)) + bytes(&held(2, 0));
        for (room_bytes, lends) in [(both, true), (both - 1, false)] {
            let seats = [(Some(held(3, 1)), room_bytes), (Some(held(3, 2)), u64::MAX)];
            assert_eq!(lend(&seats), [lends, false]);
        }
    }
}
