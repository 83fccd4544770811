//! One life: what happens when, drawn from the seed, and the loop that lets it happen.

use crate::world::{End, World, request};
use flotilla_scheduler::{ClientId, FinishReason, Settings, Speculation, Trial};
use flotilla_shared::sampling::mix;
use flotilla_shared::{KvBlocks, SequenceId, TokenId};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Numbers from a seed.
struct Chance(u64);

impl Chance {
    /// 0 to `end` − 1.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0) % end.max(1)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// Mostly short, seldom long.
    fn skewed(&mut self, most: u64) -> u64 {
        let most = 1 + self.below(most);
        self.below(most)
    }
}

/// What is to happen, at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// A user sends the next request.
    Asks(usize),
    Leaves(SequenceId),
    /// The oldest step of this epoch comes back.
    StepIsBack(u64),
    MasksAreThere,
    /// One of the users' requests is tried alone; later all are let in again.
    Trial,
    TrialEnds,
    GroupIsLost(u64),
    GroupForms,
    Deadline,
}

/// What came of a life, or of many.
#[derive(Debug, Default)]
pub struct Told {
    pub events: u64,
    pub steps: u64,
    pub finished: u64,
    pub cancelled: u64,
    pub late: u64,
    pub rejected: u64,
    pub groups_lost: u64,
    pub trials: u64,
    pub preemptions: u64,
    pub cached: u64,
    pub accepted: u64,
    pub virtual_ms: u64,
}

impl Told {
    pub fn add(&mut self, other: &Told) {
        self.events += other.events;
        self.steps += other.steps;
        self.finished += other.finished;
        self.cancelled += other.cancelled;
        self.late += other.late;
        self.rejected += other.rejected;
        self.groups_lost += other.groups_lost;
        self.trials += other.trials;
        self.preemptions += other.preemptions;
        self.cached += other.cached;
        self.accepted += other.accepted;
        self.virtual_ms += other.virtual_ms;
    }
}

/// A person, or a program, that asks again and again; what was said before begins its next prompt.
struct User {
    client: ClientId,
    requests_left: u64,
    said: Vec<TokenId>,
    asked: Option<SequenceId>,
}

pub struct Life {
    chance: Chance,
    told: bool,
    world: World,
    now_us: u64,
    due: BinaryHeap<Reverse<(u64, u64, Due)>>,
    order: u64,
    users: Vec<User>,
    link_us: u64,
    /// When the workers of each stage have done all that they were sent.
    busy_until_us: Vec<u64>,
    steps_known: usize,
    /// Of the group.
    blocks: KvBlocks,
    masks_under_way: bool,
    deadline_set: Option<Duration>,
    faults_left: u64,
    result: Told,
}

impl Life {
    pub fn new(seed: u64, told: bool) -> Life {
        let mut chance = Chance(mix(seed));
        let settings = settings(&mut chance);
        let stages = 1 + chance.below(3) as usize;
        let users = 1 + chance.below(6);
        let users = (0..users).map(|_| User {
            client: ClientId(chance.below(3)),
            requests_left: 1 + chance.below(5),
            said: vec![],
            asked: None,
        });
        let users: Vec<User> = users.collect();
        let mut life = Life {
            link_us: chance.skewed(8000),
            faults_left: chance.skewed(4),
            blocks: blocks(&mut chance, &settings),
            world: World::of_stages(settings, stages),
            chance,
            told,
            now_us: 0,
            due: BinaryHeap::new(),
            order: 0,
            users,
            busy_until_us: vec![0; stages],
            steps_known: 0,
            masks_under_way: false,
            deadline_set: None,
            result: Told::default(),
        };
        life.at(0, Due::GroupForms);
        for user in 0..life.users.len() {
            let at = life.chance.below(200_000);
            life.at(at, Due::Asks(user));
        }
        life
    }

    fn at(&mut self, time_us: u64, due: Due) {
        self.order += 1;
        self.due.push(Reverse((time_us, self.order, due)));
    }

    /// Until nothing is due any more.
    pub fn live(mut self) -> Told {
        while let Some(Reverse((time_us, _, due))) = self.due.pop() {
            self.now_us = time_us;
            self.world.set_now(Duration::from_micros(time_us));
            self.say(&due);
            self.happen(due);
            // Now and then several things happen before the coordinator looks.
            if !self.chance.one_in(8) {
                self.look();
            }
            self.result.events += 1;
            assert!(self.result.events < 200_000, "a life without end");
            if self.due.is_empty() {
                self.look();
            }
        }
        self.conclude()
    }

    fn say(&self, what: &impl std::fmt::Debug) {
        if self.told {
            println!("{:>10} us  {what:?}", self.now_us);
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Asks(user) => self.ask(user),
            Due::Leaves(sequence) => self.world.cancel(sequence.0),
            Due::StepIsBack(epoch) => {
                if epoch == self.world.epoch().0 {
                    self.world.step_returns();
                }
            }
            Due::MasksAreThere => {
                self.masks_under_way = false;
                self.world.masks_arrive();
            }
            Due::Trial => self.try_one(),
            Due::TrialEnds => self.world.put_on_trial(None),
            Due::GroupIsLost(epoch) => self.lose_group(epoch),
            Due::GroupForms => self.form_group(),
            Due::Deadline => {
                self.deadline_set = None;
                self.world.time_passes(0);
            }
        }
    }

    /// The coordinator carries out what the scheduler asks for; the world answers, later.
    fn look(&mut self) {
        self.world.settle_actions();
        while self.steps_known < self.world.plans.len() {
            let rows = self.world.plans[self.steps_known].token_count() as u64;
            self.steps_known += 1;
            self.result.steps += 1;
            let took_us = 3000 + 200 * rows + self.chance.skewed(2000);
            let mut done_us = self.now_us + self.link_us;
            for busy_until_us in &mut self.busy_until_us {
                done_us = done_us.max(*busy_until_us) + took_us / self.world.stages as u64;
                *busy_until_us = done_us;
            }
            let epoch = self.world.epoch().0;
            self.at(done_us + self.link_us, Due::StepIsBack(epoch));
        }
        if !self.world.masks_due.is_empty() && !self.masks_under_way {
            self.masks_under_way = true;
            let at = self.now_us + self.chance.skewed(5000);
            self.at(at, Due::MasksAreThere);
        }
        let deadline = self.world.scheduler.wakes_at();
        if let Some(deadline) =
            deadline.filter(|deadline| self.deadline_set.is_none_or(|set| *deadline < set))
        {
            self.deadline_set = Some(deadline);
            self.at(deadline.as_micros() as u64, Due::Deadline);
        }
        self.answer_users();
    }

    // Users.

    fn ask(&mut self, index: usize) {
        let id = self.world.clients.len() as u64 + 1;
        let (prompt_tokens, tokens_max) = (1 + self.chance.skewed(90) as usize, 1 + self.chance.skewed(60));
        let mut next = request(id, prompt_tokens, tokens_max as usize);
        let user = &mut self.users[index];
        next.prompt = [&user.said[..], &next.prompt[..]].concat();
        next.client = user.client;
        user.requests_left -= 1;
        user.asked = Some(next.sequence);
        next.priority = self.chance.skewed(3) as i32 - 1;
        next.guided = self.chance.one_in(4);
        if self.chance.one_in(2) {
            next.stop_tokens = vec![3, 7];
        }
        if self.chance.one_in(12) {
            let patience_us = self.chance.below(400_000);
            next.deadline = Some(Duration::from_micros(self.now_us + patience_us));
        }
        if self.chance.one_in(8) {
            let at = self.now_us + self.chance.below(300_000);
            self.at(at, Due::Leaves(SequenceId(id)));
        }
        self.world.arrive(next);
    }

    /// Who has an answer thinks, and asks again.
    fn answer_users(&mut self) {
        for index in 0..self.users.len() {
            let Some(sequence) = self.users[index].asked else { continue };
            let client = &self.world.clients[&sequence];
            let Some(end) = client.end else { continue };
            let said = match end {
                End::Finished(..) => [&client.request.prompt[..], &client.emitted[..]].concat(),
                End::Rejected => vec![],
            };
            match end {
                End::Finished(FinishReason::Cancelled, _) => self.result.cancelled += 1,
                End::Finished(FinishReason::Deadline, _) => self.result.late += 1,
                End::Finished(_, usage) => {
                    self.result.finished += 1;
                    self.result.cached += usage.cached_tokens as u64;
                }
                End::Rejected => self.result.rejected += 1,
            }
            let user = &mut self.users[index];
            user.asked = None;
            user.said = if said.len() < self.world.settings.context_max / 2 { said } else { vec![] };
            if user.requests_left > 0 {
                let at = self.now_us + self.chance.skewed(300_000);
                self.at(at, Due::Asks(index));
            }
        }
    }

    // Groups.

    fn form_group(&mut self) {
        self.world.form_group_of(self.blocks);
        self.steps_known = 0;
        self.busy_until_us.fill(self.now_us);
        self.say(&format!("a group of {:?}", self.blocks));
        if self.faults_left > 0 {
            self.faults_left -= 1;
            let at = self.now_us + self.chance.below(600_000);
            let epoch = self.world.epoch().0;
            self.at(at, Due::GroupIsLost(epoch));
        }
    }

    /// Its steps in flight never come back; another comes, of another size.
    fn lose_group(&mut self, epoch: u64) {
        if epoch != self.world.epoch().0 {
            return;
        }
        self.world.lose_group();
        self.result.groups_lost += 1;
        self.steps_known = 0;
        let (settings, at) = (self.world.settings.clone(), self.now_us + self.chance.below(300_000));
        self.blocks = blocks(&mut self.chance, &settings);
        self.at(at, Due::GroupForms);
        if self.chance.one_in(2) {
            let at = self.now_us + self.chance.below(600_000);
            self.at(at, Due::Trial);
        }
    }

    fn try_one(&mut self) {
        let asked: Vec<SequenceId> = self.users.iter().filter_map(|user| user.asked).collect();
        let Some(&tried) = asked.get(self.chance.below(asked.len() as u64) as usize) else { return };
        self.world.put_on_trial(Some(Trial { sequence: tried, alone: self.chance.one_in(2) }));
        self.result.trials += 1;
        if self.chance.one_in(2) {
            let at = self.now_us + self.chance.below(200_000);
            self.at(at, Due::TrialEnds);
        }
    }

    /// Everybody has had a last word, and the pools are whole.
    fn conclude(mut self) -> Told {
        for (id, client) in &self.world.clients {
            assert!(client.end.is_some(), "{id} got no last word");
        }
        assert!(self.users.iter().all(|user| user.requests_left == 0 && user.asked.is_none()));
        let (load, counters) = (self.world.scheduler.load(), self.world.scheduler.counters());
        assert_eq!((load.sequences_running, load.sequences_waiting), (0, 0));
        assert_eq!((load.kv_blocks_free, load.window_blocks_free), (load.kv_blocks, load.window_blocks));
        self.result.preemptions = counters.preemptions;
        self.result.accepted = counters.accepted_tokens;
        self.result.virtual_ms = self.now_us / 1000;
        self.result
    }
}

fn settings(chance: &mut Chance) -> Settings {
    let sequences_max = 1 + chance.below(6) as usize;
    let ngram_min = 1 + chance.below(2) as usize;
    let speculation =
        Speculation { drafts_max: 1 + chance.below(4) as usize, ngram_min, ngram_max: ngram_min + 1 };
    Settings {
        tokens_per_step_max: sequences_max + chance.skewed(60) as usize,
        sequences_max,
        waiting_max: 1 + chance.below(6) as usize,
        context_max: 40 + chance.below(300) as usize,
        window_tokens: 1 + chance.below(40) as usize,
        steps_in_flight_max: 1 + chance.below(3) as usize,
        prefix_cache: !chance.one_in(5),
        speculation: chance.one_in(4).then_some(speculation),
    }
}

/// From barely enough for one window to plenty.
fn blocks(chance: &mut Chance, settings: &Settings) -> KvBlocks {
    let window_least = settings.window_tokens.div_ceil(16) as u32 + 1;
    let full = 1 + chance.skewed(60) as u32;
    let window = (window_least + chance.skewed(30) as u32).min(full.max(window_least));
    KvBlocks { full, window }
}
