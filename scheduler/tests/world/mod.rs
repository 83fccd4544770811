//! A small world around the scheduler, that believes nothing: a group whose cache is real memory, read
//! back through the block tables that the scheduler sent, and clients that know what every token must be.
//! A token that is lost, repeated, or computed from another sequence's blocks shows at once.
#![allow(dead_code)] // each test binary uses its part

mod order;
mod seen;
mod workers;

pub use workers::Workers;

use flotilla_scheduler::{
    Event, FinishReason, GroupFault, Load, Rejection, Request, Scheduler, Settings, Trial, Usage,
};
use flotilla_shared::KvBlocks;
use flotilla_shared::sampling::mix;
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{Epoch, Sampling, SequenceId, StepOutcome, StepPlan, TokenId};
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

/// One client, and all that it was told.
pub struct Client {
    pub request: Request,
    expected: Vec<TokenId>,
    pub emitted: Vec<TokenId>,
    pub end: Option<End>,
    cancelled: bool,
    /// So many came before it.
    arrival: usize,
    /// Was let in once.
    ran: bool,
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
        let client = Client {
            request: request.clone(),
            expected,
            emitted: vec![],
            end: None,
            cancelled: false,
            arrival: self.clients.len(),
            ran: false,
        };
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

    fn any_live(&self) -> bool {
        self.clients.values().any(|client| client.end.is_none())
    }

    // What a test asks.

    /// Runs until every client has its last word. Each step computes a row of the leader, whom only one that comes and is
    /// more important can make start over, or (with guesses) finds all waiting for one that is in flight: so the rows of
    /// all of them bound the steps.
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
