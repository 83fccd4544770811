//! A small world around the scheduler, that believes nothing: a group whose cache is real memory, read
//! back through the block tables that the scheduler sent, and clients that know what every token must be.
//! A token that is lost, repeated, or computed from another sequence's blocks shows at once.
#![allow(dead_code)] // each test binary uses its part

use flotilla_scheduler::{
    Action, Event, FinishReason, GroupFault, Load, Rejection, Request, Scheduler, Settings, Trial, Usage,
};
use flotilla_shared::KvBlocks;
use flotilla_shared::sampling::mix;
use flotilla_shared::step::{BLOCK_TOKENS, Sampled, SequenceWork};
use flotilla_shared::{BlockId, Epoch, Sampling, SequenceId, StepId, StepOutcome, StepPlan, TokenId};
use std::collections::{BTreeMap, VecDeque};
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
    window_tokens: usize,
    /// What stands in each slot of each block, of full and of window layers.
    full: Vec<Block>,
    window: Vec<Block>,
    held: BTreeMap<SequenceId, Held>,
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

struct Held {
    sampling: Sampling,
    length: usize,
    full: Vec<BlockId>,
    /// By block of positions; those that are gone are none.
    window: Vec<Option<BlockId>>,
    sampled_last: Option<TokenId>,
}

impl Workers {
    fn new(epoch: Epoch, kv_blocks: KvBlocks, window_tokens: usize) -> Workers {
        let blocks = |count: u32| vec![[None; BLOCK_TOKENS]; count as usize];
        let (full, window) = (blocks(kv_blocks.full), blocks(kv_blocks.window));
        Workers { epoch, step_last: StepId(0), window_tokens, full, window, held: BTreeMap::new() }
    }

    fn capacity_tokens(&self) -> usize {
        self.full.len() * BLOCK_TOKENS
    }

    fn run(&mut self, plan: &StepPlan) -> StepOutcome {
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
    /// Of the groups to come.
    pub stages: usize,
    now: Duration,
    /// How much later each event comes than the one before.
    tick: Duration,
    epoch_last: u64,
    /// Of the smallest group since the last poll: what was reason enough to end by length.
    capacity_tokens: usize,
    pub workers: Option<Workers>,
    /// The steps that the workers run, and what they will answer; oldest first.
    pub in_flight: VecDeque<(StepPlan, StepOutcome)>,
    pub clients: BTreeMap<SequenceId, Client>,
    pub rejections: Vec<(SequenceId, Rejection)>,
    pub faults: Vec<GroupFault>,
    /// Guided sequences whose next mask is being made.
    pub masks_due: Vec<SequenceId>,
    /// Those of this epoch.
    pub plans: Vec<StepPlan>,
    /// Nobody else is let in until it ends.
    on_trial: Option<Trial>,
}

impl World {
    pub fn new(settings: Settings) -> World {
        World::of_stages(settings, 1)
    }

    /// A world whose groups have so many stages.
    pub fn of_stages(settings: Settings, stages: usize) -> World {
        World {
            scheduler: Scheduler::new(settings.clone()).unwrap(),
            settings,
            stages,
            now: Duration::ZERO,
            tick: Duration::from_millis(1),
            epoch_last: 0,
            capacity_tokens: usize::MAX,
            workers: None,
            in_flight: VecDeque::new(),
            clients: BTreeMap::new(),
            rejections: vec![],
            faults: vec![],
            masks_due: vec![],
            plans: vec![],
            on_trial: None,
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
        self.now += self.tick;
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

    /// It alone is let in from now on; nobody, or one that has ended: all are.
    pub fn put_on_trial(&mut self, trial: Option<Trial>) {
        // What has ended and was not told of yet is told first: a trial of it is none.
        self.settle_actions();
        let lives =
            |trial: &Trial| self.clients.get(&trial.sequence).is_some_and(|client| client.end.is_none());
        self.on_trial = trial.filter(lives);
        self.tell(Event::OnTrial(trial));
    }

    pub fn form_group(&mut self, kv_blocks: usize) {
        self.form_group_of(KvBlocks::plain(kv_blocks as u32));
    }

    pub fn form_group_of(&mut self, kv_blocks: KvBlocks) {
        self.epoch_last += 1;
        let epoch = Epoch(self.epoch_last);
        self.forget_group();
        self.workers = Some(Workers::new(epoch, kv_blocks, self.settings.window_tokens));
        self.capacity_tokens = self.capacity_tokens.min(kv_blocks.full as usize * BLOCK_TOKENS);
        self.tell(Event::GroupFormed { epoch, kv_blocks, stages: self.stages });
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
        self.in_flight.clear();
        self.plans.clear();
    }

    /// The step in flight comes back, if there is one.
    pub fn step_returns(&mut self) -> bool {
        let Some((_, outcome)) = self.in_flight.pop_front() else {
            return false;
        };
        self.tell(Event::Stepped(outcome));
        true
    }

    /// The masks that were being made are there.
    pub fn masks_arrive(&mut self) -> bool {
        let due = std::mem::take(&mut self.masks_due);
        due.iter().for_each(|&sequence| self.tell(Event::Masked(sequence)));
        !due.is_empty()
    }

    pub fn time_passes(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        self.tell(Event::Tick);
    }

    pub fn now(&self) -> Duration {
        self.now
    }

    /// From now on the test alone moves time.
    pub fn set_now(&mut self, now: Duration) {
        (self.now, self.tick) = (now, Duration::ZERO);
    }

    // What the scheduler wants.

    /// Polls until `None`, and believes nothing of it.
    pub fn settle_actions(&mut self) {
        while let Some(action) = self.scheduler.poll() {
            match action {
                Action::Step(plan) => self.see_step(plan),
                Action::Emit { sequence, token, .. } => {
                    let client = self.live(sequence);
                    client.see_token(token);
                    if client.request.guided {
                        self.masks_due.push(sequence);
                    }
                }
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
        let idle = self.workers.is_some() && self.in_flight.is_empty() && self.masks_due.is_empty();
        assert!(!(idle && self.any_live()), "the group is idle and a client waits");
    }

    fn see_step(&mut self, plan: StepPlan) {
        let steps_max = self.settings.steps_in_flight_max + self.stages - 1;
        assert!(self.in_flight.len() < steps_max, "a step too many in flight");
        let tokens_max = self.settings.tokens_per_step_max;
        assert!(plan.token_count() <= tokens_max, "{} tokens in a step", plan.token_count());
        self.check_who_works(&plan);
        self.check_trial(&plan);
        let workers = self.workers.as_mut().expect("a step for a group that exists");
        let outcome = workers.run(&plan);
        assert!(workers.held.len() <= self.settings.sequences_max, "too many sequences run");
        self.plans.push(plan.clone());
        self.in_flight.push_back((plan, outcome));
    }

    /// Nobody who has ended, and everybody who decodes: a long prompt holds up nobody's next token. Who is
    /// guided, or guesses, may have to sit out a step; and where there are stages, who decodes waits for its turn.
    fn check_who_works(&self, plan: &StepPlan) {
        let works = |id: &SequenceId| plan.work.iter().any(|work| work.sequence == *id);
        for work in &plan.work {
            assert_eq!(self.clients[&work.sequence].end, None, "{} has ended, and works", work.sequence);
        }
        let is_certain = self.settings.speculation.is_none()
            && (self.stages == 1 || !self.clients.values().any(|client| client.request.guided));
        // A turn comes once a round. One that is moved to another lane may miss it, once more if it is moved again.
        let turns = if self.stages == 1 { 1 } else { 3 * self.stages };
        let before = self.plans.len().checked_sub(turns).filter(|_| is_certain);
        let Some((before, since)) = before.map(|at| self.plans[at..].split_first().expect("one at least"))
        else {
            return;
        };
        let worked = |id: &SequenceId| {
            let is_in = |plan: &StepPlan| {
                plan.release.contains(id) || plan.work.iter().any(|work| work.sequence == *id)
            };
            since.iter().any(is_in)
        };
        for id in before.work.iter().filter(|work| work.sample).map(|work| work.sequence) {
            let client = &self.clients[&id];
            let is_over =
                client.end.is_some() || client.request.guided || worked(&id) || self.has_all_tokens(id);
            assert!(works(&id) || plan.release.contains(&id) || is_over, "the decode of {id} missed a step");
        }
    }

    /// Whether the last token that it may have is sampled, known here or not.
    fn has_all_tokens(&self, id: SequenceId) -> bool {
        let (request, workers) = (&self.clients[&id].request, self.workers.as_ref().expect("a group"));
        let length = workers.held[&id].length + 1;
        let length_max = workers.capacity_tokens().min(self.settings.context_max);
        length - request.prompt.len() >= request.tokens_max || length >= length_max
    }

    fn live(&mut self, sequence: SequenceId) -> &mut Client {
        let client = self.clients.get_mut(&sequence).expect("a word on a known sequence");
        assert_eq!(client.end, None, "a word on {sequence} after its last");
        client
    }

    fn see_end(&mut self, sequence: SequenceId, reason: FinishReason, usage: Usage) {
        let (context_max, now) = (self.settings.context_max, self.now);
        let capacity_tokens = self.capacity_tokens;
        let client = self.live(sequence);
        let tokens = client.request.prompt.len() + client.emitted.len();
        let Usage { prompt_tokens, completion_tokens, cached_tokens, queued } = usage;
        assert!(queued <= now, "{sequence} waited before the beginning");
        assert_eq!(prompt_tokens, client.request.prompt.len());
        assert_eq!(completion_tokens, client.emitted.len());
        assert!(cached_tokens < prompt_tokens.max(1), "a token at least is computed");
        match reason {
            FinishReason::Deadline => {
                assert!(
                    client.request.deadline.is_some_and(|deadline| deadline <= now),
                    "{sequence} had time"
                );
            }
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
        self.on_trial.take_if(|trial| trial.sequence == sequence);
    }

    fn see_rejection(&mut self, sequence: SequenceId, reason: Rejection) {
        if reason != Rejection::DuplicateSequence {
            let client = self.live(sequence);
            assert!(client.emitted.is_empty());
            client.end = Some(End::Rejected);
        }
        self.rejections.push((sequence, reason));
    }

    fn check_trial(&self, plan: &StepPlan) {
        let Some(Trial { sequence: tried, alone }) = self.on_trial else { return };
        assert!(plan.admit.iter().all(|it| it.sequence == tried), "let in beside {tried}, on trial");
        let is_alone = plan.work.iter().all(|work| work.sequence == tried);
        assert!(is_alone || !alone, "others work beside {tried}, which is to be alone");
    }

    fn any_live(&self) -> bool {
        self.clients.values().any(|client| client.end.is_none())
    }

    // What a test asks.

    /// Runs until every client has its last word. Each step computes a row of the first that runs, which is
    /// not preempted, or (with guesses) finds all waiting for one that is in flight: so the rows of all of
    /// them bound the steps.
    pub fn run_to_end(&mut self) {
        let live = self.clients.values().filter(|client| client.end.is_none());
        let rows: usize = live.map(|c| c.request.prompt.len() + c.expected.len() + 1).sum();
        let steps_max = 2 * rows + self.in_flight.len() + self.masks_due.len();
        let mut steps = 0;
        self.settle_actions();
        while self.masks_arrive() | self.step_returns() {
            steps += 1;
            assert!(steps <= steps_max, "{steps} steps, {steps_max} at most");
            self.settle_actions();
        }
        assert!(!self.any_live(), "a client got no last word");
        let Load {
            sequences_running,
            sequences_waiting,
            kv_blocks,
            kv_blocks_free,
            window_blocks,
            window_blocks_free,
            ..
        } = self.scheduler.load();
        assert_eq!((sequences_running, sequences_waiting), (0, 0));
        assert_eq!((kv_blocks_free, window_blocks_free), (kv_blocks, window_blocks), "blocks are lost");
    }

    /// One step comes back and the next goes out.
    pub fn step(&mut self) -> &StepPlan {
        self.settle_actions();
        assert!(self.step_returns(), "no step in flight");
        self.settle_actions();
        self.plan()
    }

    /// The last one that went out.
    pub fn plan(&self) -> &StepPlan {
        &self.in_flight.back().expect("a step in flight").0
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

    /// (sequence, rows) of the last plan in flight, by sequence.
    pub fn rows(&self) -> Vec<(u64, usize)> {
        let rows = self.plan().work.iter().map(|work| (work.sequence.0, work.tokens.len()));
        rows.collect::<BTreeMap<_, _>>().into_iter().collect()
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
