//! Stages: which ranks a rank sums with, whom it hands x on to, and who tells whom the tokens; and what passes
//! between two stages, over whatever carries bytes from rank to rank.
//!
//! All ranks of a stage hold the same x, so a rank of the next stage is given it by one of them. A short x goes
//! to each whole. A long one goes in pieces, one to each, which they gather among themselves: the links between
//! stages are the slow ones, and carry it once.
//!
//! Nobody waits in a circle. Every rank carries out the steps in their order; in a step it waits for ranks of its
//! own stage and of the one before, which wait for no later stage in that step. Who hands on may have to wait
//! until the next stage begins the step: that stage is then at an earlier one. Tokens go back, but to a later step,
//! and they are few: what may be in flight has room in any link, so who tells them does not wait.

use super::{Collective, CollectiveError, Operation, piece};
use std::ops::Range;

/// An x of more bytes goes in pieces: as for sums, where two messages begin to cost less than their bytes.
const WHOLE_BYTES_MAX: usize = 64 << 10;
/// Of a step's tokens.
pub(super) const TOKENS_BYTES_MAX: usize = 1 << 20;

/// Where a rank is among the stages.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    /// Ranks of each stage.
    stages: Vec<Range<usize>>,
    stage: usize,
    rank: usize,
}

impl Seat {
    /// `sizes`: ranks of each stage, which are numbered through.
    pub fn new(sizes: &[usize], rank: usize) -> Seat {
        let ends = sizes.iter().scan(0, |end, size| {
            *end += size;
            Some(*end - size..*end)
        });
        let stages: Vec<Range<usize>> = ends.collect();
        let stage = stages.iter().position(|ranks| ranks.contains(&rank));
        Seat { stage: stage.expect("a rank is of a stage"), stages, rank }
    }

    /// Which stage it is of.
    pub fn stage(&self) -> usize {
        self.stage
    }

    /// The ranks that it sums with, and itself.
    pub fn ranks(&self) -> Range<usize> {
        self.stages[self.stage].clone()
    }

    pub fn place(&self) -> usize {
        self.rank - self.ranks().start
    }

    /// This rank's, to the next stage.
    pub fn hands_on(&self) -> Operation {
        Operation::HandOver { stage: self.stage as u16 }
    }

    /// This rank's, from the stage before.
    pub fn takes_over(&self) -> Operation {
        Operation::HandOver { stage: (self.stage as u16).wrapping_sub(1) }
    }

    /// The ranks of other stages that this one has something to say to, or hears something of; rising.
    pub fn partners(&self) -> Vec<usize> {
        let (is_first, is_last) = (self.stage == 0, self.stage + 1 == self.stages.len());
        let mut partners = Vec::new();
        if !is_first {
            partners.push(self.giver());
        }
        if !is_last {
            partners.extend(self.takers().map(|(rank, _)| rank));
        }
        match (is_first, is_last) {
            (true, false) => partners.push(self.teller()),
            (false, true) => partners.extend(self.listeners()),
            _ => {}
        }
        partners.sort_unstable();
        partners.dedup();
        partners
    }

    /// Who hands x on to this rank.
    fn giver(&self) -> usize {
        let before = &self.stages[self.stage.checked_sub(1).expect("a stage after the first")];
        before.start + self.place() % before.len()
    }

    /// To whom this rank hands x on: (rank, its place).
    fn takers(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let next = self.stages.get(self.stage + 1).expect("a stage before the last").clone();
        let (mine, of) = (self.place(), self.ranks().len());
        next.clone().map(move |rank| (rank, rank - next.start)).filter(move |(_, place)| place % of == mine)
    }

    /// Who tells this rank, of the first stage, the tokens.
    fn teller(&self) -> usize {
        let last = self.stages.last().expect("there is a stage");
        last.start + self.place() % last.len()
    }

    /// Whom this rank, of the last stage, tells the tokens.
    fn listeners(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, mine, of) = (self.stages[0].clone(), self.place(), self.ranks().len());
        first.clone().filter(move |rank| (rank - first.start) % of == mine)
    }
}

/// What carries bytes from rank to rank of different stages, in order.
pub(super) trait Courier: Collective {
    fn seat(&self) -> &Seat;

    /// Returns once they are on their way: not when they are there.
    fn deliver(&mut self, to: usize, operation: Operation, bytes: &[u8]) -> Result<(), CollectiveError>;

    /// Waits until they fill `into`.
    fn collect(&mut self, from: usize, operation: Operation, into: &mut [u8]) -> Result<(), CollectiveError>;

    /// The next of what is there, up to [`TOKENS_BYTES_MAX`], into `out`; whether there was something. With
    /// `wait`, waits for it.
    fn collect_next(
        &mut self,
        from: usize,
        operation: Operation,
        wait: bool,
        out: &mut Vec<u8>,
    ) -> Result<bool, CollectiveError>;
}

/// x: f32 [n], whole, to the next stage.
pub(super) fn hand_on(courier: &mut impl Courier, x: &[f32]) -> Result<(), CollectiveError> {
    let seat = courier.seat().clone();
    let operation = seat.hands_on();
    let of = seat.stages[seat.stage + 1].len();
    seat.takers().try_for_each(|(rank, place)| {
        let part = part(x.len(), place, of);
        courier.deliver(rank, operation, bytemuck::cast_slice(&x[part]))
    })
}

/// x: f32 [n], whole, from the stage before.
pub(super) fn take_over(
    courier: &mut impl Courier,
    x: &mut [f32],
    pieces: &mut Vec<u8>,
) -> Result<(), CollectiveError> {
    let seat = courier.seat().clone();
    let operation = seat.takes_over();
    let own = part(x.len(), seat.place(), seat.ranks().len());
    courier.collect(seat.giver(), operation, bytemuck::cast_slice_mut(&mut x[own.clone()]))?;
    if own.len() < x.len() {
        courier.all_gather(bytemuck::cast_slice(&x[own]), pieces)?;
        bytemuck::cast_slice_mut(x).copy_from_slice(pieces);
    }
    Ok(())
}

/// What of `n` elements goes to the rank at a place of the next stage, which has `of` ranks.
fn part(n: usize, place: usize, of: usize) -> Range<usize> {
    if n * size_of::<f32>() > WHOLE_BYTES_MAX { piece(n, place, of) } else { 0..n }
}

/// From the last stage to the first.
pub(super) fn tell(courier: &mut impl Courier, tokens: &[u8]) -> Result<(), CollectiveError> {
    let (operation, bytes, max) = (Operation::Tokens, tokens.len() as u64, TOKENS_BYTES_MAX as u64);
    if bytes > max {
        return Err(CollectiveError::TooLong { operation, bytes, max });
    }
    courier.seat().clone().listeners().try_for_each(|rank| courier.deliver(rank, operation, tokens))
}

/// From the last stage, on the first.
pub(super) fn hear(
    courier: &mut impl Courier,
    wait: bool,
    out: &mut Vec<u8>,
) -> Result<bool, CollectiveError> {
    let teller = courier.seat().teller();
    courier.collect_next(teller, Operation::Tokens, wait, out)
}

/// What a collective of one stage is asked for by nobody.
pub(super) fn is_alone() -> ! {
    unreachable!("a group of one stage hands nothing on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_given_x_and_the_tokens_once() {
        for sizes in [&[1, 1][..], &[2, 3], &[3, 1, 2], &[1, 4, 2, 3]] {
            let seats: Vec<Seat> = (0..sizes.iter().sum()).map(|rank| Seat::new(sizes, rank)).collect();
            for seat in &seats {
                if seat.stage > 0 {
                    let giver = &seats[seat.giver()];
                    assert_eq!(giver.stage + 1, seat.stage);
                    assert!(giver.takers().any(|taker| taker == (seat.rank, seat.place())), "{seat:?}");
                }
                for partner in seat.partners() {
                    assert!(seats[partner].partners().contains(&seat.rank), "{seat:?}");
                    assert!(!seat.ranks().contains(&partner), "{seat:?}");
                }
                let takers = |seat: &&Seat| seat.stage + 1 < sizes.len();
                let given = seats.iter().filter(takers).flat_map(|from| from.takers());
                let times = given.filter(|(rank, _)| *rank == seat.rank).count();
                assert_eq!(times, usize::from(seat.stage > 0), "{seat:?}");
                let last = seats.iter().filter(|from| from.stage + 1 == sizes.len());
                let told = last.filter(|from| from.listeners().any(|rank| rank == seat.rank));
                let told: Vec<usize> = told.map(|from| from.rank).collect();
                assert_eq!(told, if seat.stage == 0 { vec![seat.teller()] } else { vec![] }, "{seat:?}");
            }
        }
    }

    #[test]
    fn a_long_x_goes_in_pieces_which_are_all_of_it() {
        assert_eq!(part(16_384, 2, 3), 0..16_384);
        let pieces: Vec<Range<usize>> = (0..3).map(|place| part(16_385, place, 3)).collect();
        assert_eq!((pieces[0].start, pieces[2].end), (0, 16_385));
        assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start));
    }
}
