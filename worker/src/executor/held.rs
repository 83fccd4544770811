//! What a rank keeps of a sequence between steps, what it refuses of work on it, and which guesses it keeps.
//! Which blocks are given to whom is the coordinator's affair: here they are only counted.

use super::StepError;
use flotilla_engine::batch::Table;
use flotilla_engine::sample::{Chosen, History, SampleRow};
use flotilla_shared::step::{Admission, BLOCK_TOKENS, Sampled, SequenceWork};
use flotilla_shared::{BlockId, KvBlocks, ModelSpec, Sampling, StepId, TokenId};
use std::sync::Arc;

/// What is held of a sequence between steps.
#[derive(Debug)]
pub(super) struct Held {
    sampling: Arc<Sampling>,
    /// What penalties count, where there are any.
    history: Option<Arc<History>>,
    last: Last,
    /// Positions that are in the cache.
    length: usize,
    /// So many of these, the last, are guesses that another stage judges: the next work tells what is left.
    guessed: usize,
    pub full: BlockTable,
    pub window: BlockTable,
    /// The step that it had work in last.
    worked: StepId,
}

/// The token that was sampled after the last row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    /// None was.
    Nothing,
    Token(TokenId),
    /// By another stage, in that step.
    Elsewhere(StepId),
}

/// The blocks of one kind of layer, less those at the beginning that are gone.
#[derive(Debug, Default)]
pub(super) struct BlockTable {
    gone: usize,
    blocks: Vec<BlockId>,
}

impl BlockTable {
    pub fn table(&self) -> Table<'_> {
        Table { gone: self.gone, blocks: &self.blocks }
    }

    /// Entries, with those that are gone.
    fn reach(&self) -> usize {
        self.gone + self.blocks.len()
    }

    /// Forgets entries until `gone` are; a table that has none yet begins there.
    fn forget(&mut self, gone: usize) {
        let leaving = (gone - self.gone).min(self.blocks.len());
        self.blocks.drain(..leaving);
        self.gone = gone;
    }
}

impl Held {
    pub fn new(admission: &Admission) -> Result<Held, String> {
        let length = admission.cached as usize;
        if !length.is_multiple_of(BLOCK_TOKENS) {
            return Err(format!("{length} positions are said to be in the cache, not whole blocks"));
        }
        let history = || History::new(&admission.context, admission.generated as usize).into();
        Ok(Held {
            history: admission.sampling.has_penalties().then(history),
            sampling: admission.sampling.clone().into(),
            last: Last::Nothing,
            length,
            guessed: 0,
            full: BlockTable::default(),
            window: BlockTable::default(),
            worked: StepId(0),
        })
    }

    /// Whether this is its first work in `step`.
    pub fn works_in(&mut self, step: StepId) -> bool {
        std::mem::replace(&mut self.worked, step) != step
    }

    /// Takes the work's blocks and rows, and refuses what cannot be computed. The first of its tokens.
    pub fn take(
        &mut self,
        work: &SequenceWork,
        spec: &ModelSpec,
        kv_blocks: KvBlocks,
    ) -> Result<TokenId, String> {
        let first = self.first_token(work)?;
        self.settle_guesses(work);
        self.check(work, spec)?;
        self.check_drafts(work)?;
        self.check_gone(work.window_gone as usize, spec.window)?;
        self.window.forget(work.window_gone as usize);
        let blocks_needed = (self.length + work.tokens.len()).div_ceil(BLOCK_TOKENS);
        let kinds = [
            ("", &mut self.full, &work.blocks, kv_blocks.full),
            ("window ", &mut self.window, &work.window_blocks, kv_blocks.window),
        ];
        for (kind, table, blocks, pool) in kinds {
            if let Some(block) = blocks.iter().find(|block| block.0 >= pool) {
                return Err(format!("{kind}block {block} is past the {pool} held"));
            }
            table.blocks.extend_from_slice(blocks);
            let reach = table.reach();
            if reach < blocks_needed {
                return Err(format!("its {kind}table has {reach} blocks, {blocks_needed} are needed"));
            }
        }
        self.length += work.tokens.len();
        self.last = Last::Nothing;
        Ok(first)
    }

    /// A row for each token that is chosen for `work`, by the logit rows from `logit_row` on.
    pub fn sample_rows(&self, work: &SequenceWork, logit_row: usize) -> impl Iterator<Item = SampleRow> {
        let first = self.length as u32 - work.drafts;
        (0..=work.drafts).map(move |after| SampleRow {
            sampling: self.sampling.clone(),
            position: first + after,
            logit_row: logit_row + after as usize,
            mask: work.mask.clone(),
            history: self.history.clone(),
        })
    }

    /// Keeps the tokens that were chosen up to the first that was guessed otherwise, and forgets the rows of
    /// the guesses after it.
    pub fn accept(
        &mut self,
        work: &SequenceWork,
        chosen: impl Iterator<Item = Option<Chosen>>,
    ) -> Result<Vec<Sampled>, StepError> {
        let guesses = &work.tokens[work.tokens.len() - work.drafts as usize..];
        let mut sampled = Vec::new();
        for (index, chosen) in chosen.enumerate() {
            let Chosen { token, logprobs } = chosen.ok_or(StepError::NoToken(work.sequence))?;
            sampled.push(Sampled { sequence: work.sequence, token, logprobs });
            self.last = Last::Token(token);
            if let Some(history) = &mut self.history {
                Arc::make_mut(history).generate(token);
            }
            if guesses.get(index) != Some(&token) {
                break;
            }
        }
        self.length -= guesses.len() - (sampled.len() - 1);
        Ok(sampled)
    }

    /// Another stage chooses the tokens after the last rows, which are those of `work`.
    pub fn is_sampled_elsewhere(&mut self, work: &SequenceWork) {
        self.last = Last::Elsewhere(self.worked);
        self.guessed = work.drafts as usize;
    }

    /// The step whose tokens this stage has not heard, if its next rows run ahead.
    pub fn awaited(&self) -> Option<StepId> {
        if let Last::Elsewhere(step) = self.last { Some(step) } else { None }
    }

    /// The token that was sampled in `step`, the last of them if there are several.
    pub fn hear(&mut self, step: StepId, token: TokenId) {
        if self.worked == step && self.last != Last::Nothing {
            self.last = Last::Token(token);
        }
    }

    /// Of guesses that another stage has judged: where the next rows begin says how many were right.
    fn settle_guesses(&mut self, work: &SequenceWork) {
        let guessed = std::mem::take(&mut self.guessed);
        if (self.length - guessed..self.length).contains(&(work.position as usize)) {
            self.length = work.position as usize;
        }
    }

    fn first_token(&self, work: &SequenceWork) -> Result<TokenId, String> {
        match (work.ahead, self.last) {
            (true, Last::Nothing) => Err("no token was sampled for its rows to begin with".into()),
            (true, Last::Token(last)) => Ok(last),
            // Of a stage that begins with what another hands on.
            (true, Last::Elsewhere(_)) => Ok(0),
            (false, _) => work.tokens.first().copied().ok_or("work without tokens".into()),
        }
    }

    fn check(&self, work: &SequenceWork, spec: &ModelSpec) -> Result<(), String> {
        if work.tokens.is_empty() {
            return Err("work without tokens".into());
        }
        if work.position as usize != self.length {
            return Err(format!(
                "rows begin at position {}, {} are in the cache",
                work.position, self.length
            ));
        }
        let end = self.length + work.tokens.len();
        if end > spec.context_max {
            return Err(format!("rows reach position {end}, the context ends at {}", spec.context_max));
        }
        // The first that is sampled ahead stands for another.
        let mut given = work.tokens.iter().skip(work.ahead.into());
        if let Some(token) = given.find(|token| **token as usize >= spec.vocab) {
            return Err(format!("token {token} is past the vocabulary of {}", spec.vocab));
        }
        Ok(())
    }

    /// Each guess is judged by a row of its own, all alike; penalties and masks would differ from row to row.
    fn check_drafts(&self, work: &SequenceWork) -> Result<(), String> {
        let drafts = work.drafts as usize;
        let problem = match drafts {
            0 => return Ok(()),
            _ if !work.sample => "and nothing is sampled",
            _ if drafts >= work.tokens.len() => "and none is known",
            _ if work.mask.is_some() => "under a mask",
            _ if self.history.is_some() => "under penalties",
            _ => return Ok(()),
        };
        Err(format!("{drafts} of {} tokens are guesses, {problem}", work.tokens.len()))
    }

    /// The first row sees `window` positions with its own: none of them may be gone.
    fn check_gone(&self, gone: usize, window: usize) -> Result<(), String> {
        let seen = (self.length + 1).saturating_sub(window);
        if gone * BLOCK_TOKENS > seen {
            return Err(format!("{gone} window blocks are gone, position {seen} is still seen"));
        }
        if gone < self.window.gone {
            return Err(format!("{gone} window blocks are gone, {} were before", self.window.gone));
        }
        Ok(())
    }
}
