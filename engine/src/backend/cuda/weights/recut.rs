//! A card's weights after another cut: what is there of the new slices keeps its bytes, and lies in its new place. The way
//! goes arena by arena through the host's memory, so that there is never more on the card than the larger of both shares.

use super::{Arenas, CudaWeights, Layout, Passage, There};
use crate::cuda::{Card, CudaError};
use crate::weights::{ByteRuns, chunks_to_fill};
use cudarc::driver::CudaSlice;
use flotilla_shared::TensorSlice;
use std::ops::Range;
use std::sync::Arc;

/// Slices, where they go, and the memory of each arena, as long as it is taken.
struct Cut {
    slices: Vec<TensorSlice>,
    layout: Layout,
    arenas: Vec<Option<CudaSlice<u8>>>,
}

/// A rectangle that both cuts have.
struct Move {
    /// Which slice of the old cut it lies in, and of the new one.
    from: usize,
    to: usize,
    part: TensorSlice,
    /// Where its bytes wait in the host's memory.
    host: Range<usize>,
}

impl CudaWeights {
    /// Memory for `slices`, with what of them is there. The host holds the kept part of one arena meanwhile.
    ///
    /// # Panics
    /// If somebody reads them still.
    pub fn recut(self, slices: Vec<TensorSlice>) -> Result<CudaWeights, CudaError> {
        let there: Vec<_> = (0..self.slices.len()).map(|at| self.there(at).cloned()).collect();
        let CudaWeights { card, slices: before, layout, arenas, passage, .. } = self;
        // Arenas are given back on this thread.
        let bound = card.stream().context().bind_to_thread();
        bound.map_err(CudaError::doing("go on with kept weights"))?;
        let mut passage = passage.map_or_else(|| Passage::new(&card), Ok)?;
        let arenas = Arc::into_inner(arenas).expect("nobody reads weights that are cut anew");
        let parts = common(&there, &before, &slices);
        let mut old = Cut::taken(before, layout, arenas);
        let mut new = Cut::to_come(slices);
        let mut host = Vec::new();
        for arena in order(&old.layout.arena_bytes, &new.layout.arena_bytes) {
            if old.is_alike(&new, arena) {
                new.arenas[arena] = old.arenas[arena].take();
                continue;
            }
            let moves = moves(&parts, &new, arena);
            old.lift(&mut passage, arena, &moves, &mut host)?;
            old.give_back(&card, arena)?;
            new.set_down(&mut passage, &card, arena, &moves, &host)?;
        }
        let mut there = vec![There::default(); new.slices.len()];
        parts.into_iter().for_each(|(_, to, part)| there[to].kept = Some(part));
        let arenas = Arc::new(Arenas(new.arenas.into_iter().flatten().collect()));
        Ok(CudaWeights::over(card, new.slices, new.layout, arenas, there, passage))
    }
}

/// What is there of the new slices: which old one it is in, which new one, and the rectangle.
fn common(
    there: &[Option<TensorSlice>],
    old: &[TensorSlice],
    new: &[TensorSlice],
) -> Vec<(usize, usize, TensorSlice)> {
    let index = super::index_of(old);
    let part = |(to, slice): (usize, &TensorSlice)| {
        let from = *index.get(&slice.tensor)?;
        Some((from, to, slice.common(there[from].as_ref()?)?))
    };
    new.iter().enumerate().filter_map(part).collect()
}

/// Those that shrink go first, so that what is taken falls and then rises: it is never more than at the beginning or the end.
fn order(old: &[usize], new: &[usize]) -> Vec<usize> {
    let bytes = |of: &[usize], arena: usize| of.get(arena).map_or(0, |&bytes| bytes as i64);
    let mut order: Vec<usize> = (0..old.len().max(new.len())).collect();
    order.sort_by_key(|&arena| bytes(new, arena) - bytes(old, arena));
    order
}

/// What moves in one arena, side by side in the host's memory.
fn moves(parts: &[(usize, usize, TensorSlice)], new: &Cut, arena: usize) -> Vec<Move> {
    let mut end = 0;
    let own = parts.iter().filter(|(_, to, _)| new.layout.places[*to].arena == arena);
    let moves = own.map(|(from, to, part)| {
        let host = end..end + part.bytes();
        end = host.end;
        Move { from: *from, to: *to, part: part.clone(), host }
    });
    moves.collect()
}

impl Cut {
    fn taken(slices: Vec<TensorSlice>, layout: Layout, mut arenas: Arenas) -> Cut {
        Cut { slices, layout, arenas: std::mem::take(&mut arenas.0).into_iter().map(Some).collect() }
    }

    fn to_come(slices: Vec<TensorSlice>) -> Cut {
        let layout = Layout::of(&slices);
        Cut { slices, arenas: layout.arena_bytes.iter().map(|_| None).collect(), layout }
    }

    /// The slices of an arena, in the order of the forward.
    fn slices_in(&self, arena: usize) -> impl Iterator<Item = &TensorSlice> {
        let placed = self.slices.iter().zip(&self.layout.places);
        placed.filter(move |(_, place)| place.arena == arena).map(|(slice, _)| slice)
    }

    /// Whether an arena has the same slices in the same places.
    fn is_alike(&self, other: &Cut, arena: usize) -> bool {
        let are_both = arena < self.arenas.len().min(other.arenas.len());
        are_both && self.slices_in(arena).eq(other.slices_in(arena))
    }

    /// Reads what is kept of an arena.
    fn lift(
        &self,
        passage: &mut Passage,
        arena: usize,
        moves: &[Move],
        host: &mut Vec<u8>,
    ) -> Result<(), CudaError> {
        let Some(Some(memory)) = self.arenas.get(arena) else { return Ok(()) };
        let len = moves.last().map_or(0, |last| last.host.end);
        if host.len() < len {
            *host = vec![0; len];
        }
        for Move { from, part, host: range, .. } in moves {
            let (slice, start) = (&self.slices[*from], self.layout.places[*from].bytes.start);
            passage.read(memory, start, slice, part, &mut host[range.clone()])?;
        }
        Ok(())
    }

    /// Memory is free once the card was waited for.
    fn give_back(&mut self, card: &Card, arena: usize) -> Result<(), CudaError> {
        drop(self.arenas.get_mut(arena).and_then(Option::take));
        card.synchronize()
    }

    /// Takes an arena, if there is one, and writes into it what is kept: chunks that have something of it, with zeros around.
    fn set_down(
        &mut self,
        passage: &mut Passage,
        card: &Card,
        arena: usize,
        moves: &[Move],
        host: &[u8],
    ) -> Result<(), CudaError> {
        let Some(&bytes) = self.layout.arena_bytes.get(arena) else { return Ok(()) };
        // SAFETY: what lacks is written by `fill` and `update` before any kernel reads it, as after `new`.
        let memory = unsafe { card.unset(bytes.max(1)) }?;
        let memory = self.arenas[arena].insert(memory);
        for Move { to, part, host: range, .. } in moves {
            let (slice, start) = (&self.slices[*to], self.layout.places[*to].bytes.start);
            let (runs, host) = (ByteRuns::within(part, slice), &host[range.clone()]);
            for chunk in chunks_to_fill(slice).filter(|chunk| runs.span_in(chunk.clone()).is_some()) {
                let out = passage.room(chunk.len())?;
                if part != slice {
                    out.fill(0);
                }
                runs.meet(chunk.clone(), |at, range| {
                    let len = range.len();
                    out[range].copy_from_slice(&host[at..at + len]);
                });
                passage.send(&mut memory.slice_mut(start + chunk.start..start + chunk.end))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever grows and whatever shrinks; the seed is that of the sizes.
    #[test]
    fn no_order_of_arenas_takes_more_than_the_larger_share() {
        let mut seed = 3u64;
        let mut below = |limit: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % limit
        };
        for _ in 0..200 {
            let [old, new] = [(); 2].map(|()| {
                let count = below(9);
                (0..count).map(|_| below(4) * below(100)).collect::<Vec<_>>()
            });
            let (before, after) = (old.iter().sum::<usize>(), new.iter().sum::<usize>());
            let order = order(&old, &new);
            let mut taken = before;
            for &arena in &order {
                taken -= old.get(arena).unwrap_or(&0);
                taken += new.get(arena).unwrap_or(&0);
                assert!(taken <= before.max(after), "{old:?} to {new:?} by {order:?}");
            }
            assert_eq!(taken, after);
        }
    }
}
