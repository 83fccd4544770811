//! What the ranks of one group give each other. When the cut changes, parts of what they held before: who gives some that
//! does not lie in its new share keeps its old one beside it until all have met, if its memory holds both. And what all ranks
//! of a stage have, which one of them has already or takes for all.

use flotilla_shared::plan::{ExpertShare, RankShare};
use flotilla_shared::{Held, ModelSpec, TensorSlice};

/// A rank to be, as far as its weights go.
pub struct Seat {
    /// What it holds now.
    pub before: Option<Held>,
    pub wanted: Held,
    /// For what it held and what it will hold; none if it hands nothing on.
    pub room_bytes: Option<u64>,
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
        self.room_bytes.is_some_and(|room| bytes(before) + bytes(&self.wanted) <= room)
    }

    fn lacks_replicated(&self, spec: &ModelSpec) -> bool {
        !replicated(&self.wanted).lacking(spec, self.before.as_ref()).is_empty()
    }
}

/// For each of `seats` that lacks some of what all ranks of its stage have, which other one gives it, and that.
///
/// Nobody waits for each other: who gives it takes it from none of its group.
pub fn givers(spec: &ModelSpec, seats: &[Seat]) -> Vec<Option<(usize, Held)>> {
    let of = |seat: &Seat| {
        let mates = || {
            let numbered = seats.iter().enumerate();
            numbered.filter(|(_, mate)| mate.room_bytes.is_some() && mate.wanted.layers == seat.wanted.layers)
        };
        let has_all = mates().find(|(_, mate)| !mate.lacks_replicated(spec));
        has_all.or_else(|| mates().next()).map(|(giver, _)| giver)
    };
    let giver = |(at, seat): (usize, &Seat)| {
        let giver = of(seat).filter(|giver| *giver != at && seat.lacks_replicated(spec))?;
        Some((giver, replicated(&seat.wanted)))
    };
    seats.iter().enumerate().map(giver).collect()
}

/// What of a share all ranks of its stage have.
fn replicated(held: &Held) -> Held {
    let none = ExpertShare { experts: 0..0, blocks: 0..0 };
    let share = RankShare { kv_heads: 0..0, experts: none, vocab: 0..0, ..held.share.clone() };
    Held { share, ..held.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::plan::StageCut;
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
            room_bytes: Some(*room_bytes),
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

    /// Of two stages of two and three ranks: who hands on, and holds what a rank of the plan has.
    fn given_by(seats: [(bool, Option<u16>); 5]) -> [Option<usize>; 5] {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let cuts =
            [(10, vec![1.0; 2]), (14, vec![1.0; 3])].map(|(layers, shares)| StageCut::even(layers, &shares));
        let plan = Plan::with_stages(&spec, &cuts);
        let share = |rank| Held::of(WEIGHTS, &plan, Rank(rank));
        let seat = |(rank, (gives, before)): (usize, (bool, Option<u16>))| Seat {
            before: before.map(share),
            wanted: share(rank as u16),
            room_bytes: gives.then_some(u64::MAX),
        };
        let seats: Vec<Seat> = seats.into_iter().enumerate().map(seat).collect();
        let givers = givers(&spec, &seats);
        for (seat, (_, given)) in
            seats.iter().zip(&givers).filter_map(|(seat, giver)| Some((seat, giver.as_ref()?)))
        {
            let wanted = seat.wanted.slices(&spec);
            let replicated: Vec<_> = wanted.into_iter().filter(|slice| slice.tensor.replicated()).collect();
            assert_eq!(given.slices(&spec), replicated);
        }
        let givers: Vec<_> = givers.into_iter().map(|giver| giver.map(|(giver, _)| giver)).collect();
        givers.try_into().unwrap()
    }

    #[test]
    fn one_rank_of_a_stage_gives_the_others_what_all_have() {
        let new = (true, None);
        assert_eq!(given_by([new; 5]), [None, Some(0), None, Some(2), Some(2)]);
        // Who has it goes first, of its own stage only, and nobody who has it is given any.
        let [first, second] = [(true, Some(0)), (true, Some(4))];
        assert_eq!(given_by([new, first, new, new, second]), [Some(1), None, Some(4), Some(4), None]);
        assert_eq!(given_by([new, second, first, second, new]), [None, Some(0), Some(3), None, Some(3)]);
        // Who hands nothing on is not asked.
        let silent = (false, None);
        assert_eq!(
            given_by([silent, new, silent, (false, Some(2)), silent]),
            [Some(1), None, None, None, None]
        );
    }
}
