//! One sequence: its tokens, and how many of them the workers hold. A prompt, a decode and a sequence
//! that starts over are the same thing, told apart only by the rows that they lack.

use crate::accounts::AccountId;
use crate::cache::{BlockHash, Tables};
use crate::event::{ClientId, FinishReason, Request, Usage};
use crate::lanes::Lane;
use flotilla_shared::step::{Admission, BLOCK_TOKENS, SequenceWork};
use flotilla_shared::{Epoch, Sampling, SequenceId, TokenId};
use std::time::Duration;

/// A place in the line: counts the requests that were taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival(pub u64);

/// A place in a group: counts the admissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat(pub u64);

/// A block that another computes, and who.
pub type Awaited = (usize, SequenceId);

/// Tokens for which there is room from the admission on, so that a step allocates nothing.
const RESERVED_TOKENS: usize = 4096;

pub struct Sequence {
    pub id: SequenceId,
    pub arrival: Arrival,
    pub arrived_at: Duration,
    /// It was taken in elsewhere, and no queue was too full for it here.
    pub adopted: bool,
    pub client: ClientId,
    pub priority: i32,
    pub deadline: Option<Duration>,
    /// Prompt, then what was generated and is known here: all that is needed to start over.
    pub tokens: Vec<TokenId>,
    goes_on: bool,
    prompt_count: usize,
    tokens_max: usize,
    stop_tokens: Vec<TokenId>,
    pub sampling: Sampling,
    pub guided: bool,
    /// The mask of the next token is there, or none is needed.
    mask_ready: bool,
    /// Hashes of the first blocks of `tokens`, as far as they were asked for; the root before them.
    root: BlockHash,
    names: Vec<BlockHash>,
    /// While it stands in the line: the last block that another computes for it, when it was last looked at.
    pub awaits: Option<Awaited>,
    /// Likewise: it did not fit when so much had happened in the group of that epoch.
    pub refused: Option<(Epoch, u64)>,
    /// Prompt tokens that the first admission found in the cache.
    cached_count: Option<usize>,
    /// What it waited for its first admission.
    queued: Option<Duration>,
    // What the group holds of it.
    pub seat: Seat,
    /// In whose steps it decodes.
    pub lane: Lane,
    /// Positions in the workers' cache once the steps in flight are back.
    pub computed: usize,
    /// Positions below this were computed once for its client, in this group or another.
    charged: usize,
    /// Tokens that are being sampled: not known here yet.
    pub pending: usize,
    /// A step in flight has guesses of it: how many tokens come of it is not known.
    pub drafting: bool,
    /// The workers know of it.
    pub announced: bool,
    /// Entries of the tables that the workers have, the window's counted from position 0.
    held: (usize, usize),
    pub tables: Tables,
}

impl Sequence {
    pub fn new(arrival: Arrival, arrived_at: Duration, request: Request) -> Sequence {
        let Request { sequence: id, prompt, said, sampling, tokens_max, stop_tokens, guided, .. } = request;
        Sequence {
            id,
            arrival,
            arrived_at,
            adopted: false,
            client: request.client,
            priority: request.priority,
            deadline: request.deadline,
            goes_on: said.is_some(),
            prompt_count: prompt.len().saturating_sub(said.unwrap_or(0)),
            tokens: prompt,
            tokens_max,
            stop_tokens,
            sampling,
            guided,
            mask_ready: true,
            root: BlockHash::root(request.salt),
            names: Vec::new(),
            awaits: None,
            refused: None,
            cached_count: None,
            queued: None,
            seat: Seat::default(),
            lane: Lane::default(),
            computed: 0,
            charged: 0,
            pending: 0,
            drafting: false,
            announced: false,
            held: (0, 0),
            tables: Tables::default(),
        }
    }

    /// On which its rows are counted.
    pub fn account(&self) -> AccountId {
        (self.priority, self.client)
    }

    /// Whether it had a seat once, in whatever group, or goes on from one that had.
    pub fn has_run(&self) -> bool {
        self.queued.is_some() || self.goes_on
    }

    /// Where there is not enough for all that run, the lowest goes first, and the highest gives what it has.
    pub fn rank(&self) -> (i32, Seat) {
        (self.priority, self.seat)
    }

    // What it lacks.

    /// Rows to compute until the next token can be sampled: 1 is a decode.
    pub fn rows_lacking(&self) -> usize {
        (self.tokens.len() + self.pending).saturating_sub(self.computed)
    }

    /// Whether its next row is a decode: also the first of a prompt of one token.
    pub fn decodes(&self) -> bool {
        self.rows_lacking() == 1
    }

    /// Whether a step of `lane` is for rows of it: rows of prompts go into every one.
    pub fn takes_part(&self, lane: Lane) -> bool {
        self.lane == lane || self.rows_lacking() > 1
    }

    /// Whether rows of it can go into the next step. Not while what they depend on is still to come (a mask,
    /// or which guesses were right), nor past its last token. `knows_tokens`: it takes part only where its
    /// last token is known here.
    pub fn is_ready(&self, length_max: usize, knows_tokens: bool) -> bool {
        self.has_rows(length_max) && !self.is_blocked(knows_tokens)
    }

    /// Whether it will have rows, but they wait for what is under way.
    pub fn waits(&self, length_max: usize, knows_tokens: bool) -> bool {
        self.has_rows(length_max) && self.is_blocked(knows_tokens)
    }

    /// Whether all that it waits for is its mask.
    pub fn lacks_mask(&self) -> bool {
        !self.mask_ready && self.pending == 0
    }

    fn has_rows(&self, length_max: usize) -> bool {
        self.rows_lacking() > 0 && self.tokens_left(length_max) > 0
    }

    fn is_blocked(&self, knows_tokens: bool) -> bool {
        let needs_tokens = self.guided || (knows_tokens && self.can_draft());
        self.drafting || !self.mask_ready || (needs_tokens && self.pending > 0)
    }

    /// Tokens that may still be sampled, beyond those that are being sampled.
    pub fn tokens_left(&self, length_max: usize) -> usize {
        let generated = self.tokens.len() - self.prompt_count + self.pending;
        let length = self.tokens.len() + self.pending;
        self.tokens_max.saturating_sub(generated).min(length_max.saturating_sub(length))
    }

    /// Whether guesses at its next tokens may be tried at all: a mask or penalties would need the tokens
    /// between.
    fn can_draft(&self) -> bool {
        !self.guided && !self.sampling.has_penalties()
    }

    /// Whether they may be tried in the next step.
    pub fn may_draft(&self) -> bool {
        self.can_draft() && self.pending == 0 && self.decodes()
    }

    pub fn mask_arrived(&mut self) {
        self.mask_ready = true;
    }

    // The rows.

    /// Fills `work` with the first `rows` of the rows that are lacking, which are computed from now on, and
    /// with `drafts`, guesses after them. The tables have their blocks.
    pub fn next_work(&mut self, rows: usize, drafts: &[TokenId], work: &mut SequenceWork) {
        let start = self.computed;
        let known = self.tokens.len().min(start + rows);
        work.sequence = self.id;
        work.position = u32::try_from(start).expect("context_max keeps positions in 32 bits");
        work.ahead = start >= self.tokens.len();
        if work.ahead {
            work.tokens.push(0);
        } else {
            work.tokens.extend_from_slice(&self.tokens[start..known]);
        }
        work.tokens.extend_from_slice(drafts);
        work.blocks.extend_from_slice(&self.tables.full[self.held.0..]);
        let window_held = self.held.1.saturating_sub(self.tables.window_gone);
        work.window_blocks.extend(self.tables.window.iter().skip(window_held));
        work.window_gone = self.tables.window_gone as u32;
        work.sample = rows == self.rows_lacking();
        work.drafts = drafts.len() as u32;
        self.held = (self.tables.full.len(), self.tables.window_end());
        self.computed = start + rows + drafts.len();
        if work.sample {
            self.pending += 1;
            self.drafting = !drafts.is_empty();
        }
    }

    /// How many of the positions from `start` on, which are computed now, are its client's for the first time: that it lost
    /// blocks, or its group, is no service. A guess that was wrong is charged in place of what comes there.
    pub fn charge(&mut self, start: usize) -> usize {
        let rows = self.computed.saturating_sub(self.charged.max(start));
        self.charged = self.charged.max(self.computed);
        rows
    }

    pub fn admission(&self) -> Admission {
        let counts = self.sampling.has_penalties();
        Admission {
            sequence: self.id,
            sampling: self.sampling.clone(),
            cached: self.computed as u32,
            context: if counts { self.tokens.clone() } else { Vec::new() },
            generated: if counts { (self.tokens.len() - self.prompt_count) as u32 } else { 0 },
        }
    }

    /// A seat in a group, with its first `cached` tokens in the cache.
    pub fn sit(&mut self, seat: Seat, cached: usize, now: Duration) {
        self.seat = seat;
        self.queued.get_or_insert(now.saturating_sub(self.arrived_at));
        self.computed = cached;
        self.cached_count.get_or_insert(cached.min(self.prompt_count));
        let reserved = self.tokens_max.min(RESERVED_TOKENS);
        self.tokens.reserve(reserved);
        self.names.reserve(self.tokens.len().div_ceil(BLOCK_TOKENS) + reserved / BLOCK_TOKENS);
        self.tables.full.reserve(self.tokens.len().div_ceil(BLOCK_TOKENS) + reserved / BLOCK_TOKENS + 1);
    }

    /// Forgets what the workers hold of it; its tables are empty. The tokens stay.
    pub fn start_over(&mut self) {
        (self.computed, self.pending, self.drafting) = (0, 0, false);
        (self.announced, self.held) = (false, (0, 0));
    }

    // What comes of it.

    /// One more token is known.
    pub fn extend(&mut self, token: TokenId) {
        self.tokens.push(token);
        self.mask_ready = !self.guided;
        self.pending = self.pending.saturating_sub(1);
    }

    /// The guesses are settled: what was computed for wrong ones counts for nothing.
    pub fn settle_drafts(&mut self) {
        (self.drafting, self.pending) = (false, 0);
        self.computed = self.tokens.len() - 1;
    }

    /// The reason to end now, where a sequence may have `length_max` tokens.
    pub fn end(&self, length_max: usize) -> Option<FinishReason> {
        let generated = &self.tokens[self.prompt_count..];
        match generated.last() {
            Some(&last) if self.stop_tokens.contains(&last) => Some(FinishReason::StopToken(last)),
            _ if generated.len() >= self.tokens_max => Some(FinishReason::Length),
            _ if self.tokens.len() >= length_max => Some(FinishReason::Length),
            _ => None,
        }
    }

    pub fn usage(&self, now: Duration) -> Usage {
        Usage {
            prompt_tokens: self.prompt_count,
            completion_tokens: self.tokens.len() - self.prompt_count,
            cached_tokens: self.cached_count.unwrap_or(0),
            queued: self.queued.unwrap_or(now.saturating_sub(self.arrived_at)),
        }
    }

    // Its names in the cache.

    /// The hash of block `at`, of the tokens that are known; `None` where they do not fill it.
    pub fn name_of(&mut self, at: usize) -> Option<BlockHash> {
        while self.names.len() <= at {
            let next = self.names.len();
            let tokens = self.tokens.get(next * BLOCK_TOKENS..(next + 1) * BLOCK_TOKENS)?;
            let before = self.names.last().copied().unwrap_or(self.root);
            self.names.push(before.then(tokens));
        }
        Some(self.names[at])
    }

    /// How many tokens both begin with.
    pub fn shared_tokens(&self, other: &Sequence) -> usize {
        self.tokens.iter().zip(&other.tokens).take_while(|(own, others)| own == others).count()
    }

    /// Positions that are computed, or will be with what is in flight, of tokens that are known: what may be
    /// named. The row of a last token that came of guesses is not: a wrong guess may lie in its place.
    pub fn settled(&self) -> usize {
        if self.drafting { self.tokens.len() - 1 } else { self.computed.min(self.tokens.len()) }
    }

    pub fn tables_and_names(&mut self) -> (&mut Tables, &[BlockHash]) {
        (&mut self.tables, &self.names)
    }
}
