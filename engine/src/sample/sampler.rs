//! Chooses a step's tokens, all rows together: what ranks ask each other, and in which order. One gathering
//! of 8 bytes a row and rank where every token may be drawn; a row that is cut sends its likeliest tokens, one
//! that is cut by top-p also a sum, and where more may be drawn than those, sums of buckets (`search.rs`) and its
//! best. Logprobs take one more gathering. No logits travel but a few.

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

/// Chooses tokens over a vocabulary that is cut over ranks.
#[derive(Debug)]
pub struct Sampler {
    sampleable: Sampleable,
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
        Sampler { sampleable, sent: Vec::new(), received: Vec::new(), rooms: Rooms::default() }
    }

    /// One token a row, the same on every rank; `None` where no token may be chosen whose logit is a number.
    pub fn sample<C: Collective + ?Sized>(
        &mut self,
        rows: &[SampleRow],
        shard: &mut impl Shard,
        collective: &mut C,
    ) -> Result<Vec<Option<Chosen>>, SampleError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
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
        let plain = |row: &&SampleRow| !row.is_cut() && !row.is_adjusted();
        let on_shard: Vec<SampleRow> = rows.iter().filter(plain).cloned().collect();
        let mut of_shard = shard.best(&on_shard, &self.sampleable)?.into_iter();
        let others: Vec<&SampleRow> = rows.iter().filter(|row| !plain(row)).collect();
        let of_others = self.each(&others, shard, |at, logits| self.first(others[at], logits))?;
        let mut of_others = of_others.into_iter();
        self.sent.clear();
        for (index, row) in rows.iter().enumerate() {
            let first = if plain(&row) { of_shard.next().map(First::Best) } else { of_others.next() };
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
        let rows: Vec<&SampleRow> = lacking.iter().map(|cut| cut.row).collect();
        let totals = self.each(&rows, shard, |at, logits| {
            lacking[at].own_total(self.sampleable.parts(logits).map(|(_, logits)| logits))
        })?;
        self.sent.clear();
        totals.into_iter().for_each(|total| total.put(&mut self.sent));
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

impl Sent for Candidate {
    fn put(self, out: &mut Vec<u8>) {
        (self.score, self.token).put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        let (score, token) = Sent::take(from)?;
        Some(Candidate { score, token })
    }
}
