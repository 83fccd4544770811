//! Chooses a step's tokens, all rows together, unless thousands of them are cut: what ranks ask each other, and in which
//! order. One gathering of 8 bytes a row and rank where every token may be drawn; a row that is cut sends its likeliest
//! tokens, one that is cut by top-p also a sum, and where more may be drawn than those, sums of buckets (`search.rs`) and
//! its best. Logprobs take one more gathering. No logits travel but a few.

use super::best::best_of;
use super::candidates::Head;
use super::cut::{Cut, Total};
use super::gathered::{Sent, by_row};
use super::logits::adjusted;
use super::logprobs::{Part, logprobs};
use super::rooms::Rooms;
use super::search::Search;
use super::{Candidate, Chosen, SampleError, SampleRow, Sampleable, Shard};
use crate::backend::BackendError;
use crate::collective::Collective;
use flotilla_shared::TokenId;
use flotilla_shared::step::Logprobs;

/// Bytes that a rank gives to one gathering at most. Half of what the collective takes; some thousand rows of the most
/// tokens that may be asked for.
const GATHERED_MAX: usize = 32 << 20;

/// Chooses tokens over a vocabulary that is cut over ranks.
#[derive(Debug)]
pub struct Sampler {
    sampleable: Sampleable,
    gathered_max: usize,
    sent: Vec<u8>,
    received: Vec<u8>,
    /// For rows' logits where they are not the model's.
    rooms: Rooms,
}

/// What a rank says of a row first.
enum First {
    Best(Candidate),
    Head(Head),
}

impl Sampler {
    pub fn new(sampleable: Sampleable) -> Self {
        let (sent, received, gathered_max) = (Vec::new(), Vec::new(), GATHERED_MAX);
        Sampler { sampleable, gathered_max, sent, received, rooms: Rooms::default() }
    }

    /// Begins what a rank looks for by itself, of the rows that [`sample`](Sampler::sample) is asked for next: a card does it
    /// as soon as it has the logits, while this thread waits for both.
    pub fn begin(&self, rows: &[SampleRow], shard: &mut impl Shard) {
        shard.begin_best(&plain(rows));
    }

    /// One token a row, the same on every rank; `None` where no token may be chosen whose logit is a number.
    pub fn sample<C: Collective + ?Sized>(
        &mut self,
        rows: &[SampleRow],
        shard: &mut impl Shard,
        collective: &mut C,
    ) -> Result<Vec<Option<Chosen>>, SampleError> {
        let mut chosen = Vec::with_capacity(rows.len());
        let mut rest = rows;
        while !rest.is_empty() {
            let (first, behind) = rest.split_at(together(rest, self.gathered_max));
            chosen.append(&mut self.sample_together(first, shard, collective)?);
            rest = behind;
        }
        Ok(chosen)
    }

    fn sample_together<C: Collective + ?Sized>(
        &mut self,
        rows: &[SampleRow],
        shard: &mut impl Shard,
        collective: &mut C,
    ) -> Result<Vec<Option<Chosen>>, SampleError> {
        let mut best = vec![Candidate::NONE; rows.len()];
        let mut cuts = self.look(rows, &mut best, shard, collective)?;
        self.add_up(&mut cuts, shard, collective)?;
        while cuts.iter().any(|cut| cut.search.is_some()) {
            self.search(&mut cuts, shard, collective)?;
        }
        self.draw(&cuts, &mut best, shard, collective)?;
        let tokens: Vec<Option<TokenId>> =
            best.iter().map(|best| (*best != Candidate::NONE).then_some(best.token)).collect();
        let mut logprobs = self.logprobs(rows, &tokens, shard, collective)?;
        let chosen = |(token, logprobs): (&Option<TokenId>, &mut Option<Logprobs>)| {
            token.map(|token| Chosen { token, logprobs: logprobs.take() })
        };
        Ok(tokens.iter().zip(&mut logprobs).map(chosen).collect())
    }

    /// The first gathering: the winner of each row that is not cut, and what is known of the others.
    fn look<'a, C: Collective + ?Sized>(
        &mut self,
        rows: &'a [SampleRow],
        best: &mut [Candidate],
        shard: &mut impl Shard,
        collective: &mut C,
    ) -> Result<Vec<Cut<'a>>, SampleError> {
        let mut cuts = Vec::new();
        // A card has the model's own logits in its memory, and looks at all of these rows together.
        let mut bests = shard.best(&plain(rows), &self.sampleable)?.into_iter();
        let (adjusted, own): (Vec<&SampleRow>, Vec<&SampleRow>) =
            rows.iter().partition(|row| row.is_adjusted());
        let cut = own.iter().filter(|row| row.is_cut());
        let cut: Vec<_> = cut.map(|row| (row.logit_row, Cut::head_tokens(row))).collect();
        let mut heads = shard.heads(&cut, &self.sampleable)?.into_iter();
        let of_adjusted = self.each(&adjusted, shard, |at, logits| self.first(adjusted[at], logits))?;
        let mut of_adjusted = of_adjusted.into_iter();
        self.sent.clear();
        for (index, row) in rows.iter().enumerate() {
            let first = match (row.is_adjusted(), row.is_cut()) {
                (true, _) => of_adjusted.next(),
                (false, true) => heads.next().map(First::Head),
                (false, false) => bests.next().map(First::Best),
            };
            match first.expect("one of each row") {
                First::Best(best) => best.put(&mut self.sent),
                First::Head(head) => head.put(&mut self.sent),
            }
            if row.is_cut() {
                cuts.push(Cut::new(index, row));
            }
        }
        let found = self.gather(rows.len(), collective, |row, from| match rows[row].is_cut() {
            true => Head::take(from).map(First::Head),
            false => Candidate::take(from).map(First::Best),
        })?;
        let mut open = cuts.iter_mut();
        for (best, found) in best.iter_mut().zip(found) {
            let mut heads = Vec::new();
            for first in found {
                match first {
                    First::Best(candidate) => best.meet(candidate),
                    First::Head(head) => heads.push(head),
                }
            }
            if !heads.is_empty() {
                open.next().expect("a row with heads is cut").learn(heads);
            }
        }
        Ok(cuts)
    }

    fn first(&self, row: &SampleRow, logits: &[f32]) -> First {
        match row.is_cut() {
            true => First::Head(Head::of(logits, &self.sampleable, Cut::head_tokens(row))),
            false => First::Best(best_of(row, logits, &self.sampleable)),
        }
    }

    /// The sums that nuclei are parts of.
    fn add_up<C: Collective + ?Sized>(
        &mut self,
        cuts: &mut [Cut<'_>],
        shard: &mut impl Shard,
        collective: &mut C,
    ) -> Result<(), SampleError> {
        let mut lacking: Vec<&mut Cut<'_>> = cuts.iter_mut().filter(|cut| cut.lacks_total()).collect();
        if lacking.is_empty() {
            return Ok(());
        }
        let (adjusted, own): (Vec<&Cut<'_>>, Vec<&Cut<'_>>) =
            lacking.iter().map(|cut| &**cut).partition(|cut| cut.row.is_adjusted());
        let asked: Vec<_> = own.iter().map(|cut| cut.weighed()).collect();
        let mut of_own = shard.weights(&asked, &self.sampleable)?.into_iter();
        let rows: Vec<&SampleRow> = adjusted.iter().map(|cut| cut.row).collect();
        let of_adjusted = self.each(&rows, shard, |at, logits| {
            let (_, weigher, floor) = adjusted[at].weighed();
            self.sampleable.weigh(logits, &weigher, floor)
        })?;
        let mut of_adjusted = of_adjusted.into_iter();
        let count = self.sampleable.ids.iter().map(|ids| ids.len() as u32).sum();
        self.sent.clear();
        for cut in &lacking {
            let sum = if cut.row.is_adjusted() { of_adjusted.next() } else { of_own.next() };
            let total: Total = (sum.expect("one of each row"), count);
            total.put(&mut self.sent);
        }
        let found = self.gather(lacking.len(), collective, |_, from| Total::take(from))?;
        lacking.iter_mut().zip(found).for_each(|(cut, totals)| cut.learn_total(&totals));
        Ok(())
    }

    /// One round of looking for where wide nuclei end.
    fn search<C: Collective + ?Sized>(
        &mut self,
        cuts: &mut [Cut<'_>],
        shard: &mut impl Shard,
        collective: &mut C,
    ) -> Result<(), SampleError> {
        let mut open: Vec<&mut Cut<'_>> = cuts.iter_mut().filter(|cut| cut.search.is_some()).collect();
        let rows: Vec<&SampleRow> = open.iter().map(|cut| cut.row).collect();
        let searches: Vec<&Search> = open.iter().flat_map(|cut| &cut.search).collect();
        let own = self.each(&rows, shard, |at, logits| searches[at].look(logits, &self.sampleable))?;
        self.sent.clear();
        own.iter().for_each(|found| found.put(&mut self.sent));
        let found = self.gather(open.len(), collective, |at, from| searches[at].take(from))?;
        for (cut, found) in open.iter_mut().zip(found) {
            if let Some(last) = cut.search.as_mut().and_then(|search| search.learn(found)) {
                cut.learn_last(last);
            }
        }
        Ok(())
    }

    /// The token of each row that is cut: of what is known, or of what each rank finds among its own.
    fn draw<C: Collective + ?Sized>(
        &mut self,
        cuts: &[Cut<'_>],
        best: &mut [Candidate],
        shard: &mut impl Shard,
        collective: &mut C,
    ) -> Result<(), SampleError> {
        let mut wide = Vec::new();
        for cut in cuts {
            match cut.draw() {
                Some(drawn) => best[cut.index] = drawn,
                None => wide.push(cut),
            }
        }
        if wide.is_empty() {
            return Ok(());
        }
        let rows: Vec<&SampleRow> = wide.iter().map(|cut| cut.row).collect();
        let own = self.each(&rows, shard, |at, logits| wide[at].own_best(logits, &self.sampleable))?;
        self.sent.clear();
        own.into_iter().for_each(|own| own.put(&mut self.sent));
        let found = self.gather(wide.len(), collective, |_, from| Candidate::take(from))?;
        for (cut, found) in wide.into_iter().zip(found) {
            found.into_iter().for_each(|candidate| best[cut.index].meet(candidate));
        }
        Ok(())
    }

    /// Of the rows that ask for them.
    fn logprobs<C: Collective + ?Sized>(
        &mut self,
        rows: &[SampleRow],
        tokens: &[Option<TokenId>],
        shard: &mut impl Shard,
        collective: &mut C,
    ) -> Result<Vec<Option<Logprobs>>, SampleError> {
        let mut all = vec![None; rows.len()];
        let asking = |(index, row): (usize, &SampleRow)| {
            Some((index, tokens[index]?, usize::from(row.sampling.logprobs?)))
        };
        let asking: Vec<(usize, TokenId, usize)> = rows.iter().enumerate().filter_map(asking).collect();
        if asking.is_empty() {
            return Ok(all);
        }
        // The model's own, whatever was done to them for the choice.
        let logit_rows: Vec<usize> = asking.iter().map(|(index, ..)| rows[*index].logit_row).collect();
        let parts = shard.each(&logit_rows, |at, logits| {
            let (_, token, count) = asking[at];
            Part::of(logits, &self.sampleable, token, count)
        })?;
        self.sent.clear();
        parts.iter().for_each(|part| part.put(&mut self.sent));
        let found = self.gather(asking.len(), collective, |_, from| Part::take(from))?;
        for ((index, _, count), parts) in asking.into_iter().zip(found) {
            all[index] = Some(logprobs(parts, count));
        }
        Ok(all)
    }

    /// What `work` finds in the logits of each row, as anything that changes them leaves them.
    fn each<T: Send>(
        &self,
        rows: &[&SampleRow],
        shard: &mut impl Shard,
        work: impl Fn(usize, &[f32]) -> T + Sync,
    ) -> Result<Vec<T>, BackendError> {
        let logit_rows: Vec<usize> = rows.iter().map(|row| row.logit_row).collect();
        shard.each(&logit_rows, |at, logits| {
            self.rooms.lend(|room| work(at, adjusted(rows[at], logits, &self.sampleable, room)))
        })
    }

    /// What every rank has put into `sent` for each of so many rows: [rows][ranks]
    fn gather<T, C: Collective + ?Sized>(
        &mut self,
        rows: usize,
        collective: &mut C,
        read: impl Fn(usize, &mut &[u8]) -> Option<T>,
    ) -> Result<Vec<Vec<T>>, SampleError> {
        collective.all_gather(&self.sent, &mut self.received)?;
        by_row(&self.received, rows, collective.size(), read)
    }
}

/// How many of the first rows, one at least, take so many bytes at most in any gathering. The same on every rank: who has
/// fewer tokens says less.
fn together(rows: &[SampleRow], bytes_max: usize) -> usize {
    let mut bytes = 0;
    let fitting = rows.iter().take_while(|row| {
        bytes += Cut::row_bytes(row);
        bytes <= bytes_max
    });
    fitting.count().max(1)
}

/// Those that a card finds the best of by itself.
fn plain(rows: &[SampleRow]) -> Vec<SampleRow> {
    rows.iter().filter(|row| row.is_plain()).cloned().collect()
}

impl Sent for Candidate {
    fn put(self, out: &mut Vec<u8>) {
        (self.score, self.token).put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        let (score, token) = Sent::take(from)?;
        Some(Candidate { score, token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::threads;
    use flotilla_shared::Sampling;
    use flotilla_shared::sampling::mix;
    use std::ops::Range;

    const VOCAB: usize = 3000;

    struct Given<'a>(&'a [Vec<f32>], Range<usize>);

    impl Shard for Given<'_> {
        fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
            Ok(&self.0[row][self.1.clone()])
        }
    }

    /// What two ranks choose, and the room that the first took for what it gave to gatherings, which grows by doubling.
    fn chosen(rows: &[SampleRow], logits: &[Vec<f32>], gathered_max: usize) -> (Vec<Option<Chosen>>, usize) {
        let choose = |(mut member, vocab): (threads::ThreadsCollective, Range<usize>)| {
            let sampleable = Sampleable::new(vocab.clone(), &[0..VOCAB as TokenId]);
            let mut sampler = Sampler { gathered_max, ..Sampler::new(sampleable) };
            let chosen = sampler.sample(rows, &mut Given(logits, vocab), &mut member).unwrap();
            (chosen, sampler.sent.capacity())
        };
        std::thread::scope(|scope| {
            let parts = threads::group(2).into_iter().zip([0..2000, 2000..VOCAB]);
            let ranks: Vec<_> = parts.map(|part| scope.spawn(move || choose(part))).collect();
            let mut found: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
            assert_eq!(found[0].0, found[1].0);
            found.swap_remove(0)
        })
    }

    /// Heads of all rows at once would be more than a gathering takes.
    #[test]
    fn rows_with_long_heads_are_chosen_in_parts() {
        let logit = |row: u64, token: u64| (mix(row << 32 | token) >> 40) as f32 / 2e6;
        let logits = |row| (0..VOCAB as u64).map(|token| logit(row, token)).collect();
        let logits: Vec<Vec<f32>> = (0..12).map(logits).collect();
        let row = |(at, top_k): (usize, u32)| {
            let sampling = Sampling { temperature: 1.0, top_k, top_p: 0.9, seed: 7, ..Sampling::GREEDY };
            SampleRow::new(sampling, 3, at)
        };
        let rows: Vec<SampleRow> = [0, 1000, 900, 5].repeat(3).into_iter().enumerate().map(row).collect();
        let (all, whole) = chosen(&rows, &logits, usize::MAX);
        let (parts, most) = chosen(&rows, &logits, 20_000);
        assert_eq!(parts, all);
        assert!(whole > 40_000 && most <= 40_000, "{whole} and {most} bytes");
        assert_eq!(together(&rows, 0), 1);
    }
}
