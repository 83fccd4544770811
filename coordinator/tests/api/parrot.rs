//! A group that does as it is told: the last message of a user or a tool is the answer, special tokens
//! spelled out. So each test says in its request what the model is to answer. A raw prompt says it up to
//! `<|endofprompt|>`.
//!
//! An answer that holds no stop token is followed by dots without end, unless a mask forbids them. `{seed}` in it becomes the seed
//! of the sequence. It is a pure function of the sequence's tokens, and so goes on in another group.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flotilla_coordinator::group::{Group, GroupError};
use flotilla_coordinator::tokenizer::Tokenizer;
use flotilla_shared::sampling::mix;
use flotilla_shared::step::{BLOCK_TOKENS, Logprobs, Sampled, SequenceWork, TokenMask};
use flotilla_shared::{BlockId, Rank, Sampling, SequenceId, StepOutcome, StepPlan, TokenId};

/// What the workers were told, for tests to look at.
#[derive(Default)]
pub struct Seen {
    pub admitted: Mutex<BTreeSet<SequenceId>>,
    pub released: Mutex<BTreeSet<SequenceId>>,
    /// The prompt of the latest sequence, as text.
    pub prompt: Mutex<String>,
    /// How the latest sequence is sampled.
    pub sampling: Mutex<Sampling>,
    /// Tokens that were sampled under a mask.
    pub masked: AtomicUsize,
    /// Set to lose the group in its next step.
    pub die: AtomicBool,
    /// Set to lose the group, once, as soon as it has said this.
    pub die_behind: Mutex<Option<TokenId>>,
    /// Set to refuse every step.
    pub refuse: AtomicBool,
}

impl Seen {
    pub fn admitted(&self) -> usize {
        self.admitted.lock().unwrap().len()
    }

    pub fn masked(&self) -> usize {
        self.masked.load(Ordering::SeqCst)
    }

    pub fn released(&self) -> usize {
        self.released.lock().unwrap().len()
    }
}

pub struct Parrot {
    tokenizer: Arc<Tokenizer>,
    seen: Arc<Seen>,
    sequences: BTreeMap<SequenceId, Voice>,
    plans: VecDeque<StepPlan>,
    cache: BTreeMap<BlockId, Vec<TokenId>>,
    is_dead: bool,
}

struct Voice {
    sampling: Sampling,
    tokens: Vec<TokenId>,
    /// What is to be answered, and at which position it begins; found when it is first asked for.
    answer: Option<(Vec<TokenId>, usize)>,
    said_last: TokenId,
    table: Vec<BlockId>,
}

impl Parrot {
    pub fn new(tokenizer: Arc<Tokenizer>, seen: Arc<Seen>) -> Parrot {
        let (sequences, plans, cache) = Default::default();
        Parrot { tokenizer, seen, sequences, plans, cache, is_dead: false }
    }

    fn work(&mut self, work: SequenceWork) -> Option<Sampled> {
        let mut voice = self.sequences.remove(&work.sequence).expect("admitted before it works");
        if voice.tokens.is_empty() {
            // What another sequence began with.
            let cached = work.blocks.iter().flat_map(|block| self.cache.get(block).into_iter().flatten());
            voice.tokens = cached.take(work.position as usize).copied().collect();
        }
        assert_eq!(voice.tokens.len(), work.position as usize, "every position before is in the cache");
        voice.tokens.extend(&work.tokens);
        if work.ahead {
            voice.tokens[work.position as usize] = voice.said_last;
        }
        voice.table.extend(&work.blocks);
        for (block, tokens) in voice.table.iter().zip(voice.tokens.chunks(BLOCK_TOKENS)) {
            self.cache.insert(*block, tokens.to_vec());
        }
        if work.tokens.len() > 1 {
            *self.seen.prompt.lock().unwrap() = self.tokenizer.decode(&voice.tokens);
        }
        let sampled = work.sample.then(|| {
            self.seen.masked.fetch_add(usize::from(work.mask.is_some()), Ordering::SeqCst);
            let token = self.next(&mut voice, work.mask.as_ref());
            voice.said_last = token;
            let logprobs = voice.sampling.logprobs.map(|top| likelihood(token, top));
            Sampled { sequence: work.sequence, token, logprobs }
        });
        self.sequences.insert(work.sequence, voice);
        sampled
    }

    fn next(&self, voice: &mut Voice, mask: Option<&TokenMask>) -> TokenId {
        let (answer, begin) = voice.answer.get_or_insert_with(|| {
            let (answer, begin) = self.answer(&voice.tokens);
            let answer = answer.replace("{seed}", &voice.sampling.seed.to_string());
            (self.tokenizer.encode_special(&answer), begin)
        });
        let spoken = voice.tokens.len() - *begin;
        let wanted = answer.get(spoken).copied();
        match mask {
            Some(mask) => {
                wanted.filter(|token| mask.allows(*token)).unwrap_or_else(|| self.obey(spoken, mask))
            }
            None => wanted.unwrap_or_else(|| self.tokenizer.encode_plain(".")[0]),
        }
    }

    /// Where it may not say what it was told to, or has said it all: ends a free text, and else says one thing
    /// now and another then.
    fn obey(&self, spoken: usize, mask: &TokenMask) -> TokenId {
        let allowed: Vec<TokenId> = self.tokenizer.piece_ids().filter(|token| mask.allows(*token)).collect();
        let end = allowed.iter().find(|token| self.tokenizer.is_special(**token));
        match end {
            Some(end) if allowed.len() > 1000 => *end,
            _ => allowed[mix(spoken as u64) as usize % allowed.len()],
        }
    }

    /// What is to be answered, and at which position it begins.
    fn answer(&self, tokens: &[TokenId]) -> (String, usize) {
        let special = |name| self.tokenizer.special(name).unwrap();
        let find = |from: usize, id| (from..tokens.len()).find(|at| tokens[*at] == id);
        if let Some(end) = find(0, special("<|endofprompt|>")) {
            return (self.tokenizer.decode(&tokens[..end]), end + 1);
        }
        let user = self.tokenizer.encode_plain("user");
        let tool = self.tokenizer.encode_plain("functions");
        let says = |at: &usize| {
            tokens[*at] == special("<|start|>")
                && (tokens[at + 1..].starts_with(&user) || tokens[at + 1..].starts_with(&tool))
        };
        let last = (0..tokens.len()).rev().find(says).expect("somebody said something");
        let begin = find(last, special("<|message|>")).expect("a message") + 1;
        let end = find(begin, special("<|end|>")).expect("its end");
        let answer_begin = end + 2 + self.tokenizer.encode_plain("assistant").len();
        (self.tokenizer.decode(&tokens[begin..end]), answer_begin)
    }
}

/// The token itself was certain, and tokens from 1 upwards impossible.
pub fn likelihood(token: TokenId, top: u8) -> Logprobs {
    let others = (1..u32::from(top)).map(|other| (other, f32::NEG_INFINITY));
    let top = (top > 0).then_some((token, -0.25)).into_iter().chain(others).collect();
    Logprobs { chosen: -0.25, top }
}

impl Group for Parrot {
    fn send(&mut self, plan: &StepPlan) -> Result<(), GroupError> {
        self.plans.push_back(plan.clone());
        Ok(())
    }

    async fn outcome(&mut self) -> Result<StepOutcome, GroupError> {
        let lost = || GroupError::Lost { rank: Rank(2), reason: "its power was cut".to_owned() };
        if self.is_dead {
            return Err(lost());
        }
        // Leaves the processor to others, as workers elsewhere would.
        tokio::time::sleep(Duration::from_micros(200)).await;
        let plan = self.plans.pop_front().expect("a step was sent");
        if self.seen.die.swap(false, Ordering::SeqCst) {
            return Err(lost());
        }
        if self.seen.refuse.load(Ordering::SeqCst) {
            let reason = "what it computed is not a number".to_owned();
            return Err(GroupError::Refused { rank: Rank(0), step: plan.step, reason });
        }
        for sequence in &plan.release {
            self.sequences.remove(sequence);
            self.seen.released.lock().unwrap().insert(*sequence);
        }
        for admission in &plan.admit {
            let sampling = admission.sampling.clone();
            *self.seen.sampling.lock().unwrap() = sampling.clone();
            let voice = Voice { sampling, tokens: Vec::new(), answer: None, said_last: 0, table: Vec::new() };
            self.sequences.insert(admission.sequence, voice);
            self.seen.admitted.lock().unwrap().insert(admission.sequence);
        }
        let (epoch, step) = (plan.epoch, plan.step);
        let sampled: Vec<Sampled> = plan.work.into_iter().filter_map(|work| self.work(work)).collect();
        let said = |token: &mut TokenId| sampled.iter().any(|sampled| sampled.token == *token);
        self.is_dead = self.seen.die_behind.lock().unwrap().take_if(said).is_some();
        Ok(StepOutcome { epoch, step, sampled, ..StepOutcome::default() })
    }
}
