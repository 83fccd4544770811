//! A small world around the scheduler, that believes nothing: a group whose cache is real memory, read
//! back through the block tables that the scheduler sent, and clients that know what every token must be.
//! A token that is lost, repeated, or computed from another sequence's blocks shows at once.
#![allow(dead_code)] // each test binary uses its part

use flotilla_scheduler::{
    Action, Event, FinishReason, GroupFault, Load, Rejection, Request, Scheduler, Settings, Usage,
};
use flotilla_shared::KvBlocks;
use flotilla_shared::sampling::mix;
use flotilla_shared::step::{BLOCK_TOKENS, Sampled, SequenceWork};
use flotilla_shared::{BlockId, Epoch, Sampling, SequenceId, StepId, StepOutcome, StepPlan, TokenId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Small, so that a stop token is often met.
pub const VOCAB: u64 = 40;

/// The model: the next token is a pure function of all tokens before it, and of the seed.
pub fn next_token(tokens: &[TokenId], sampling: &Sampling) -> TokenId {
    let hash = tokens.iter().fold(sampling.seed, |hash, &token| mix(hash ^ (u64::from(token) + 1)));
    (hash % VOCAB) as TokenId
}

/// What an uninterrupted run on an endless cache generates.
pub fn reference(request: &Request, context_max: usize) -> Vec<TokenId> {
    let mut tokens = request.prompt.clone();
    for _ in 0..request.tokens_max {
        if tokens.len() >= context_max {
            break;
        }
        let token = next_token(&tokens, &request.sampling);
        tokens.push(token);
        if request.stop_tokens.contains(&token) {
            break;
        }
    }
    tokens.split_off(request.prompt.len())
}

/// A request with a prompt of its own.
pub fn request(id: u64, prompt_tokens: usize, tokens_max: usize) -> Request {
    let prompt = (0..prompt_tokens as u64).map(|i| (mix(id << 32 | i) % VOCAB) as TokenId).collect();
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed: id, ..Sampling::GREEDY };
    Request { sequence: SequenceId(id), prompt, sampling, tokens_max, ..Request::default() }
}

/// The workers of one epoch. They apply plans strictly: what the contract does not allow panics.
pub struct Workers {
    epoch: Epoch,
    step_last: StepId,
    /// (position, token) of each slot of each block.
    cache: Vec<[Option<(usize, TokenId)>; BLOCK_TOKENS]>,
    held: BTreeMap<SequenceId, Held>,
}

struct Held {
    sampling: Sampling,
    length: usize,
    table: Vec<BlockId>,
}

impl Workers {
    fn new(epoch: Epoch, kv_blocks: usize) -> Workers {
        let cache = vec![[None; BLOCK_TOKENS]; kv_blocks];
        Workers { epoch, step_last: StepId(0), cache, held: BTreeMap::new() }
    }

    fn capacity_tokens(&self) -> usize {
        self.cache.len() * BLOCK_TOKENS
    }

    fn run(&mut self, plan: &StepPlan) -> StepOutcome {
        assert_eq!((plan.epoch, plan.step), (self.epoch, StepId(self.step_last.0 + 1)), "epoch, step");
        self.step_last = plan.step;
        for sequence in &plan.release {
            self.held.remove(sequence).unwrap_or_else(|| panic!("release of {sequence}, which is not held"));
        }
        for admission in &plan.admit {
            let held = Held { sampling: admission.sampling.clone(), length: 0, table: vec![] };
            let before = self.held.insert(admission.sequence, held);
            assert!(before.is_none(), "{} admitted twice", admission.sequence);
        }
        let sampled = plan.work.iter().filter_map(|work| self.work(work)).collect();
        StepOutcome { epoch: self.epoch, step: plan.step, sampled, ..Default::default() }
    }

    fn work(&mut self, work: &SequenceWork) -> Option<Sampled> {
        let sequence = work.sequence;
        assert!(!work.tokens.is_empty(), "{sequence} works on nothing");
        for &block in &work.blocks {
            assert!(block.index() < self.cache.len(), "block {block} does not exist");
            let owner = self.held.iter().find(|(_, held)| held.table.contains(&block));
            assert!(owner.is_none(), "block {block} for {sequence} is in the table of {}", owner.unwrap().0);
            self.held.get_mut(&sequence).expect("work of an admitted sequence").table.push(block);
        }
        let held = self.held.get_mut(&sequence).expect("work of an admitted sequence");
        assert_eq!(work.position as usize, held.length, "{sequence} leaves a gap or repeats a position");
        for &token in &work.tokens {
            let block = held.table.get(held.length / BLOCK_TOKENS);
            let block =
                block.unwrap_or_else(|| panic!("{sequence} has no block for position {}", held.length));
            self.cache[block.index()][held.length % BLOCK_TOKENS] = Some((held.length, token));
            held.length += 1;
        }
        let held = &self.held[&sequence];
        work.sample.then(|| Sampled {
            sequence,
            token: next_token(&self.read(held), &held.sampling),
            logprobs: None,
        })
    }

    /// The tokens of a sequence as attention would meet them.
    fn read(&self, held: &Held) -> Vec<TokenId> {
        let slot = |i: usize| self.cache[held.table[i / BLOCK_TOKENS].index()][i % BLOCK_TOKENS];
        (0..held.length)
            .map(|i| {
                let (position, token) = slot(i).expect("a slot that was written");
                assert_eq!(position, i, "a slot was overwritten");
                token
            })
            .collect()
    }
}

/// One client, and all that it was told.
pub struct Client {
    pub request: Request,
    expected: Vec<TokenId>,
    pub emitted: Vec<TokenId>,
    pub end: Option<End>,
    cancelled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    Finished(FinishReason, Usage),
    Rejected,
}

pub struct World {
    pub scheduler: Scheduler,
    pub settings: Settings,
    now: Duration,
    epoch_last: u64,
    /// Of the smallest group since the last poll: what was reason enough to end by length.
    capacity_tokens: usize,
    pub workers: Option<Workers>,
    /// The step that the workers run, and what they will answer.
    pub in_flight: Option<(StepPlan, StepOutcome)>,
    pub clients: BTreeMap<SequenceId, Client>,
    pub rejections: Vec<(SequenceId, Rejection)>,
    pub faults: Vec<GroupFault>,
    /// Those of this epoch.
    pub plans: Vec<StepPlan>,
}

impl World {
    pub fn new(settings: Settings) -> World {
        World {
            scheduler: Scheduler::new(settings.clone()).unwrap(),
            settings,
            now: Duration::ZERO,
            epoch_last: 0,
            capacity_tokens: usize::MAX,
            workers: None,
            in_flight: None,
            clients: BTreeMap::new(),
            rejections: vec![],
            faults: vec![],
            plans: vec![],
        }
    }

    /// A world with a group.
    pub fn with_blocks(settings: Settings, kv_blocks: usize) -> World {
        let mut world = World::new(settings);
        world.form_group(kv_blocks);
        world
    }

    // What happens. Nothing is polled until `settle_actions`.

    pub fn tell(&mut self, event: Event) {
        self.now += Duration::from_millis(1);
        self.scheduler.handle(self.now, event);
    }

    pub fn arrive(&mut self, request: Request) {
        let sequence = request.sequence;
        let expected = reference(&request, self.settings.context_max);
        let client =
            Client { request: request.clone(), expected, emitted: vec![], end: None, cancelled: false };
        assert!(self.clients.insert(sequence, client).is_none(), "the test reuses {sequence}");
        self.tell(Event::Arrived(request));
    }

    pub fn cancel(&mut self, id: u64) {
        if let Some(client) = self.clients.get_mut(&SequenceId(id)) {
            client.cancelled = true;
        }
        self.tell(Event::Cancelled(SequenceId(id)));
    }

    pub fn form_group(&mut self, kv_blocks: usize) {
        self.epoch_last += 1;
        let epoch = Epoch(self.epoch_last);
        self.forget_group();
        self.workers = Some(Workers::new(epoch, kv_blocks));
        self.capacity_tokens = self.capacity_tokens.min(kv_blocks * BLOCK_TOKENS);
        self.tell(Event::GroupFormed { epoch, kv_blocks: KvBlocks::plain(kv_blocks as u32) });
    }

    pub fn lose_group(&mut self) {
        let epoch = self.epoch();
        self.forget_group();
        self.tell(Event::GroupLost { epoch });
    }

    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch_last)
    }

    fn forget_group(&mut self) {
        self.workers = None;
        self.in_flight = None;
        self.plans.clear();
    }

    /// The step in flight comes back, if there is one.
    pub fn step_returns(&mut self) -> bool {
        let Some((_, outcome)) = self.in_flight.take() else {
            return false;
        };
        self.tell(Event::Stepped(outcome));
        true
    }

    // What the scheduler wants.

    /// Polls until `None`, and believes nothing of it.
    pub fn settle_actions(&mut self) {
        while let Some(action) = self.scheduler.poll() {
            match action {
                Action::Step(plan) => self.see_step(plan),
                Action::Emit { sequence, token, .. } => self.live(sequence).see_token(token),
                Action::Finish { sequence, reason, usage } => self.see_end(sequence, reason, usage),
                Action::Reject { sequence, reason } => self.see_rejection(sequence, reason),
                Action::Abandon { epoch, fault } => {
                    if epoch == self.epoch() {
                        self.forget_group();
                    }
                    self.faults.push(fault);
                }
            }
        }
        self.capacity_tokens = self.workers.as_ref().map_or(usize::MAX, Workers::capacity_tokens);
        let idle = self.workers.is_some() && self.in_flight.is_none();
        assert!(!(idle && self.any_live()), "the group is idle and a client waits");
    }

    fn see_step(&mut self, plan: StepPlan) {
        assert!(self.in_flight.is_none(), "a second step in flight");
        let tokens_max = self.settings.tokens_per_step_max;
        assert!(plan.token_count() <= tokens_max, "{} tokens in a step", plan.token_count());
        let oldest = self.clients.iter().filter(|(_, client)| client.end.is_none()).map(|(id, _)| *id).next();
        let working: BTreeSet<SequenceId> = plan.work.iter().map(|work| work.sequence).collect();
        assert!(working.contains(&oldest.expect("a live client")), "the oldest has no rows");
        if let Some(before) = self.plans.last() {
            for work in before.work.iter().filter(|work| work.sample) {
                let goes_on = working.contains(&work.sequence) || plan.release.contains(&work.sequence);
                assert!(goes_on, "decode of {} missed a step", work.sequence);
            }
        }
        let workers = self.workers.as_mut().expect("a step for a group that exists");
        let outcome = workers.run(&plan);
        assert!(workers.held.len() <= self.settings.sequences_max, "too many sequences run");
        self.plans.push(plan.clone());
        self.in_flight = Some((plan, outcome));
    }

    fn live(&mut self, sequence: SequenceId) -> &mut Client {
        let client = self.clients.get_mut(&sequence).expect("a word on a known sequence");
        assert_eq!(client.end, None, "a word on {sequence} after its last");
        client
    }

    fn see_end(&mut self, sequence: SequenceId, reason: FinishReason, usage: Usage) {
        let context_max = self.settings.context_max;
        let capacity_tokens = self.capacity_tokens;
        let client = self.live(sequence);
        let tokens = client.request.prompt.len() + client.emitted.len();
        let expected_usage = Usage {
            prompt_tokens: client.request.prompt.len(),
            completion_tokens: client.emitted.len(),
            cached_tokens: 0,
        };
        assert_eq!(usage, expected_usage);
        match reason {
            FinishReason::Deadline => panic!("{sequence} has no deadline"),
            FinishReason::Cancelled => assert!(client.cancelled, "{sequence} was not cancelled"),
            FinishReason::StopToken(token) => {
                assert!(client.request.stop_tokens.contains(&token));
                assert_eq!(client.emitted.last(), Some(&token), "the stop token is emitted too");
                assert_eq!(client.emitted, client.expected);
            }
            FinishReason::Length => {
                let complete = client.emitted == client.expected
                    && (client.emitted.len() == client.request.tokens_max || tokens == context_max);
                assert!(complete || tokens >= capacity_tokens, "{sequence} ended by length after {tokens}");
            }
        }
        client.end = Some(End::Finished(reason, usage));
    }

    fn see_rejection(&mut self, sequence: SequenceId, reason: Rejection) {
        if reason != Rejection::DuplicateSequence {
            let client = self.live(sequence);
            assert!(client.emitted.is_empty());
            client.end = Some(End::Rejected);
        }
        self.rejections.push((sequence, reason));
    }

    fn any_live(&self) -> bool {
        self.clients.values().any(|client| client.end.is_none())
    }

    // What a test asks.

    /// Runs until every client has its last word. Each step computes a row of the oldest, which is not
    /// preempted: so the rows of all of them bound the steps, after the one in flight.
    pub fn run_to_end(&mut self) {
        let live = self.clients.values().filter(|client| client.end.is_none());
        let rows: usize = live.map(|c| c.request.prompt.len() + c.expected.len()).sum();
        let steps_max = rows + usize::from(self.in_flight.is_some());
        let mut steps = 0;
        self.settle_actions();
        while self.step_returns() {
            steps += 1;
            assert!(steps <= steps_max, "{steps} steps, {steps_max} at most");
            self.settle_actions();
        }
        assert!(!self.any_live(), "a client got no last word");
        let Load { sequences_running, sequences_waiting, kv_blocks, kv_blocks_free, .. } =
            self.scheduler.load();
        assert_eq!((sequences_running, sequences_waiting), (0, 0));
        assert_eq!(kv_blocks_free, kv_blocks, "blocks are lost");
    }

    /// One step comes back and the next goes out.
    pub fn step(&mut self) -> &StepPlan {
        self.settle_actions();
        assert!(self.step_returns(), "no step in flight");
        self.settle_actions();
        self.plan()
    }

    pub fn plan(&self) -> &StepPlan {
        &self.in_flight.as_ref().expect("a step in flight").0
    }

    pub fn client(&self, id: u64) -> &Client {
        &self.clients[&SequenceId(id)]
    }

    pub fn reason(&self, id: u64) -> Option<FinishReason> {
        match self.client(id).end {
            Some(End::Finished(reason, _)) => Some(reason),
            _ => None,
        }
    }

    /// (sequence, rows) of the plan in flight.
    pub fn rows(&self) -> Vec<(u64, usize)> {
        self.plan().work.iter().map(|work| (work.sequence.0, work.tokens.len())).collect()
    }
}

impl Client {
    fn see_token(&mut self, token: TokenId) {
        assert_eq!(Some(&token), self.expected.get(self.emitted.len()), "a token was lost or repeated");
        self.emitted.push(token);
    }

    /// Has all tokens of the uninterrupted run.
    pub fn is_complete(&self) -> bool {
        self.end.is_some() && self.emitted == self.expected
    }
}
