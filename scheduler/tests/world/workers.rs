//! The workers of a group, whose cache is real memory.

use super::next_token;
use flotilla_shared::sampling::mix;
use flotilla_shared::step::{BLOCK_TOKENS, Sampled, SequenceWork};
use flotilla_shared::{
    BlockId, Epoch, KvBlocks, Sampling, SequenceId, StepId, StepOutcome, StepPlan, TokenId,
};
use std::collections::BTreeMap;

/// The workers of one epoch. They apply plans strictly: what the contract does not allow panics.
pub struct Workers {
    epoch: Epoch,
    step_last: StepId,
    window_tokens: usize,
    /// What stands in each slot of each block, of full and of window layers.
    full: Vec<Block>,
    window: Vec<Block>,
    pub(super) held: BTreeMap<SequenceId, Held>,
}

type Block = [Option<Slot>; BLOCK_TOKENS];

/// A key depends on all tokens up to its own, and so does what stands for it here.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Slot {
    position: usize,
    token: TokenId,
    beginning: u64,
}

/// Of a beginning and one more token.
fn grown(beginning: u64, token: TokenId) -> u64 {
    mix(beginning.wrapping_mul(31) ^ u64::from(token) << 1 ^ 1)
}

pub(super) struct Held {
    sampling: Sampling,
    pub(super) length: usize,
    full: Vec<BlockId>,
    /// By block of positions; those that are gone are none.
    window: Vec<Option<BlockId>>,
    sampled_last: Option<TokenId>,
}

impl Workers {
    pub(super) fn new(epoch: Epoch, kv_blocks: KvBlocks, window_tokens: usize) -> Workers {
        let blocks = |count: u32| vec![[None; BLOCK_TOKENS]; count as usize];
        let (full, window) = (blocks(kv_blocks.full), blocks(kv_blocks.window));
        Workers { epoch, step_last: StepId(0), window_tokens, full, window, held: BTreeMap::new() }
    }

    pub(super) fn capacity_tokens(&self) -> usize {
        self.full.len() * BLOCK_TOKENS
    }

    pub(super) fn run(&mut self, plan: &StepPlan) -> StepOutcome {
        assert_eq!((plan.epoch, plan.step), (self.epoch, StepId(self.step_last.0 + 1)), "epoch, step");
        self.step_last = plan.step;
        for sequence in &plan.release {
            self.held.remove(sequence).unwrap_or_else(|| panic!("release of {sequence}, which is not held"));
        }
        for admission in &plan.admit {
            let held = Held {
                sampling: admission.sampling.clone(),
                length: admission.cached as usize,
                full: vec![],
                window: vec![],
                sampled_last: None,
            };
            assert_eq!(held.length % BLOCK_TOKENS, 0, "a cached beginning of whole blocks");
            let before = self.held.insert(admission.sequence, held);
            assert!(before.is_none(), "{} admitted twice", admission.sequence);
        }
        // As in a layer: all keys are stored, then each row attends.
        let rows: Vec<Vec<TokenId>> = plan.work.iter().map(|work| self.store(work)).collect();
        let sampled = plan.work.iter().zip(rows).flat_map(|(work, tokens)| self.sample(work, &tokens));
        let sampled = sampled.collect();
        StepOutcome { epoch: self.epoch, step: plan.step, sampled, ..Default::default() }
    }

    /// Puts the rows into both caches; returns their tokens.
    fn store(&mut self, work: &SequenceWork) -> Vec<TokenId> {
        let sequence = work.sequence;
        let held = self.held.get_mut(&sequence).expect("work of an admitted sequence");
        let start = work.position as usize;
        assert_eq!(start, held.length, "{sequence} leaves a gap or repeats a position");
        let mut tokens = work.tokens.clone();
        if work.ahead {
            tokens[0] = held.sampled_last.expect("a token that was sampled");
        }
        assert!(!tokens.is_empty(), "{sequence} works on nothing");
        held.full.extend(&work.blocks);
        let gone = work.window_gone as usize;
        assert!(
            gone * BLOCK_TOKENS <= (start + 1).saturating_sub(self.window_tokens),
            "{sequence} still sees it"
        );
        held.window.resize(held.window.len().max(gone), None);
        held.window.extend(work.window_blocks.iter().copied().map(Some));
        held.window[..gone].fill(None);
        let mut beginning = start.checked_sub(1).map_or(0, |before| {
            let block = held.full[before / BLOCK_TOKENS];
            self.full[block.index()][before % BLOCK_TOKENS].expect("a slot that was written").beginning
        });
        for (position, &token) in (start..).zip(&tokens) {
            beginning = grown(beginning, token);
            let (at, slot) = (position / BLOCK_TOKENS, position % BLOCK_TOKENS);
            let entry = Some(Slot { position, token, beginning });
            self.full[held.full[at].index()][slot] = entry;
            let block = held.window[at].expect("a window block for a row");
            self.window[block.index()][slot] = entry;
        }
        held.length += tokens.len();
        tokens
    }

    /// One token, and one more for each guess that it confirms.
    fn sample(&mut self, work: &SequenceWork, tokens: &[TokenId]) -> Vec<Sampled> {
        if !work.sample {
            return vec![];
        }
        let (drafts, sequence) = (work.drafts as usize, work.sequence);
        let mut end = work.position as usize + tokens.len() - drafts;
        let mut sampled = vec![];
        loop {
            let held = &self.held[&sequence];
            let token = next_token(&self.read(held, end), &held.sampling);
            sampled.push(Sampled { sequence, token, logprobs: None });
            let guess = tokens.get(end - work.position as usize);
            if guess != Some(&token) {
                break;
            }
            end += 1;
        }
        let held = self.held.get_mut(&sequence).expect("looked at just now");
        (held.length, held.sampled_last) = (end, sampled.last().map(|sampled| sampled.token));
        sampled
    }

    /// The first `end` tokens of a sequence as attention would meet them in full layers; and its window, as
    /// it would in window layers.
    fn read(&self, held: &Held, end: usize) -> Vec<TokenId> {
        let in_block = |block: &Block, i: usize| {
            let slot = block[i % BLOCK_TOKENS].expect("a slot that was written");
            assert_eq!(slot.position, i, "a slot was overwritten");
            slot
        };
        let full = |i: usize| in_block(&self.full[held.full[i / BLOCK_TOKENS].index()], i);
        let slots: Vec<Slot> = (0..end).map(full).collect();
        let mut beginning = 0;
        for slot in &slots {
            beginning = grown(beginning, slot.token);
            assert_eq!(slot.beginning, beginning, "a key of another beginning");
        }
        for (i, slot) in slots.iter().enumerate().skip(end.saturating_sub(self.window_tokens)) {
            let block = held.window[i / BLOCK_TOKENS].expect("a block that the window sees");
            assert_eq!(in_block(&self.window[block.index()], i), *slot, "the window has another's key");
        }
        slots.into_iter().map(|slot| slot.token).collect()
    }
}
