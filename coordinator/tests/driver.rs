//! The driver over a group that is not there, in virtual time, so that figures are exact: the real driver and
//! scheduler, workers that take 20 ms a step, and a link with 5 ms each way or none. One step ahead, the way
//! between coordinator and workers costs nothing, as long as it is shorter than a step.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use flotilla_coordinator::driver::{self, DriverHandle, Failure, Generation, Nearness, Refusal, TokenEvent};
use flotilla_coordinator::group::{Group, GroupError};
use flotilla_coordinator::guide::{Exhausted, Guide};
use flotilla_scheduler::{FinishReason, Scheduler, Settings};
use flotilla_shared::step::{Sampled, TokenMask};
use flotilla_shared::{Epoch, KvBlocks, Rank, StepOutcome, StepPlan, TokenId};
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep_until};

const STEP: Duration = Duration::from_millis(20);

/// Workers at the end of a link.
struct Distant {
    link: Duration,
    /// When the workers have done all that they were sent.
    busy_until: Instant,
    steps: VecDeque<(Instant, StepOutcome)>,
}

impl Group for Distant {
    fn send(&mut self, plan: &StepPlan) -> Result<(), GroupError> {
        self.busy_until = self.busy_until.max(Instant::now() + self.link) + STEP;
        let sampling = plan.work.iter().filter(|work| work.sample);
        let sampled = sampling.map(|work| Sampled { sequence: work.sequence, token: 7, logprobs: None });
        let sampled = sampled.collect();
        let outcome = StepOutcome { epoch: plan.epoch, step: plan.step, sampled, ..StepOutcome::default() };
        self.steps.push_back((self.busy_until + self.link, outcome));
        Ok(())
    }

    async fn outcome(&mut self) -> Result<StepOutcome, GroupError> {
        let (at, _) = self.steps.front().expect("a step was sent");
        sleep_until(*at).await;
        Ok(self.steps.pop_front().expect("it is still there").1)
    }
}

/// Lets everything through, and so must be asked before each token.
struct Open;

impl Guide for Open {
    fn advance(&mut self, _: TokenId) {}

    fn mask(&mut self) -> Result<Option<TokenMask>, Exhausted> {
        Ok(None)
    }
}

fn server(link: Duration, steps_in_flight_max: usize) -> DriverHandle {
    let settings = Settings { steps_in_flight_max, ..Settings::default() };
    let (driver, fleet) = driver::start(Scheduler::new(settings).unwrap(), driver::Settings::default());
    let group = Distant { link, busy_until: Instant::now(), steps: VecDeque::new() };
    fleet.formed(Epoch(1), KvBlocks::plain(4096), group);
    // The driver keeps the group; the fleet has no more news.
    std::mem::forget(fleet);
    driver
}

const TOKENS: usize = 100;

/// Tokens per virtual second of `clients` streams of so many tokens each.
async fn rate(link: Duration, steps_in_flight_max: usize, clients: usize, guided: bool) -> f64 {
    let mut driver = server(link, steps_in_flight_max);
    driver.ready().await;
    let start = Instant::now();
    let streams = (0..clients).map(|_| {
        let driver = driver.clone();
        tokio::spawn(async move {
            let guide = guided.then(|| Box::new(Open) as Box<dyn Guide>);
            let generation =
                Generation { prompt: vec![1; 40], tokens_max: TOKENS, guide, ..Generation::default() };
            let mut tokens = driver.submit(generation).await.unwrap();
            let mut count = 0;
            while let TokenEvent::Token { .. } = tokens.next().await {
                count += 1;
            }
            assert_eq!(count, TOKENS);
        })
    });
    for stream in streams.collect::<Vec<_>>() {
        stream.await.unwrap();
    }
    (TOKENS * clients) as f64 / start.elapsed().as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn five_milliseconds_each_way_cost_less_than_one_part_in_twenty() {
    let mut rates = BTreeMap::new();
    for clients in [1, 8] {
        let near = rate(Duration::ZERO, 2, clients, false).await;
        let far = rate(Duration::from_millis(5), 2, clients, false).await;
        assert!(far >= 0.95 * near, "{clients} clients: {far} tokens a second, {near} without a link");
        rates.insert(clients, far);
    }
    assert!(rates[&8] > 7.5 * rates[&1], "all go in one step: {rates:?}");
}

/// That the test above can fail: with one step at a time the way is paid for in every step.
#[tokio::test(start_paused = true)]
async fn one_step_at_a_time_pays_the_way_in_every_step() {
    let (near, far) = (Duration::ZERO, Duration::from_millis(5));
    let ratio = rate(far, 1, 8, false).await / rate(near, 1, 8, false).await;
    assert!((0.6..0.7).contains(&ratio), "20 ms of 30: {ratio}");
}

/// Whoever needs the token here before the next step waits for it, and says nothing wrong.
#[tokio::test(start_paused = true)]
async fn guided_sequences_wait_for_their_tokens() {
    let (near, far) = (Duration::ZERO, Duration::from_millis(5));
    let ratio = rate(far, 2, 8, true).await / rate(near, 2, 8, true).await;
    assert!((0.6..0.7).contains(&ratio), "20 ms of 30: {ratio}");
}

/// Panics at its third token.
struct Faulty(usize);

impl Guide for Faulty {
    fn advance(&mut self, _: TokenId) {
        self.0 += 1;
        assert!(self.0 < 3, "as it must in this test");
    }

    fn mask(&mut self) -> Result<Option<TokenMask>, Exhausted> {
        Ok(None)
    }
}

/// Has no mask after its second token.
struct Tiring(usize);

impl Guide for Tiring {
    fn advance(&mut self, _: TokenId) {
        self.0 += 1;
    }

    fn mask(&mut self) -> Result<Option<TokenMask>, Exhausted> {
        if self.0 < 2 { Ok(None) } else { Err(tired()) }
    }
}

fn tired() -> Exhausted {
    Exhausted { what: "too many items".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn a_guide_that_fails_ends_its_sequence_and_no_other() {
    let mut driver = server(Duration::ZERO, 2);
    driver.ready().await;
    let submit = |guide: Option<Box<dyn Guide>>| {
        let generation = Generation { prompt: vec![1; 40], tokens_max: 20, guide, ..Generation::default() };
        driver.submit(generation)
    };
    let mut faulty = submit(Some(Box::new(Faulty(0)))).await.unwrap();
    let mut tiring = submit(Some(Box::new(Tiring(0)))).await.unwrap();
    let never = submit(Some(Box::new(Tiring(2)))).await.err();
    assert_eq!(never, Some(Refusal::FormExhausted(tired())));
    let mut sound = submit(Some(Box::new(Open))).await.unwrap();
    let mut free = submit(None).await.unwrap();
    let mut told = Vec::new();
    for stream in [&mut faulty, &mut tiring, &mut sound, &mut free] {
        let mut tokens = 0;
        let last = loop {
            match stream.next().await {
                TokenEvent::Token { .. } => tokens += 1,
                last => break last,
            }
        };
        told.push((tokens, last));
    }
    assert_eq!(told[0], (3, TokenEvent::Failed(Failure::GuideLost)));
    assert_eq!(told[1], (2, TokenEvent::Failed(Failure::FormExhausted(tired()))));
    assert!(
        told[2..].iter().all(|(tokens, end)| *tokens == 20 && matches!(end, TokenEvent::Finished { .. }))
    );
}

/// Its step makes the driver panic.
struct Absurd;

impl Group for Absurd {
    fn send(&mut self, _: &StepPlan) -> Result<(), GroupError> {
        panic!("as it must in this test")
    }

    async fn outcome(&mut self) -> Result<StepOutcome, GroupError> {
        std::future::pending().await
    }
}

/// Whoever keeps groups formed hears of it: else the process would live on and serve nobody.
#[tokio::test(start_paused = true)]
async fn a_driver_that_ends_by_its_own_fault_is_seen_to_have_ended() {
    let scheduler = Scheduler::new(Settings::default()).unwrap();
    let (mut driver, fleet) = driver::start(scheduler, driver::Settings::default());
    fleet.formed(Epoch(1), KvBlocks::plain(64), Absurd);
    driver.ready().await;
    let soon = Duration::from_secs(1);
    assert!(tokio::time::timeout(soon, fleet.stopped()).await.is_err(), "it has begun only");
    let generation = Generation { prompt: vec![1; 40], tokens_max: 2, ..Generation::default() };
    // Taken in or not, it ends with an error.
    if let Ok(mut stream) = driver.submit(generation).await {
        assert_eq!(stream.next().await, TokenEvent::Failed(Failure::Stopped));
    }
    tokio::time::timeout(soon, fleet.stopped()).await.expect("it has ended");
}

/// A load that is longer than anybody waits where nothing moves, and then one that stands still.
#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_group_waits_as_long_as_it_comes_nearer() {
    let settings = driver::Settings { regroup_wait: Duration::from_secs(60), ..Default::default() };
    let (mut driver, fleet) = driver::start(Scheduler::new(Settings::default()).unwrap(), settings);
    let group = || Distant { link: Duration::ZERO, busy_until: Instant::now(), steps: VecDeque::new() };
    let lose = |epoch| fleet.lost(Epoch(epoch), GroupError::Lost { rank: Rank(0), reason: "a test".into() });
    fleet.formed(Epoch(1), KvBlocks::plain(64), group());
    driver.ready().await;
    let generation = || Generation { prompt: vec![1; 40], tokens_max: TOKENS, ..Generation::default() };
    let mut tokens = driver.submit(generation()).await.unwrap();
    assert!(matches!(tokens.next().await, TokenEvent::Token { .. }));
    lose(1);
    let near = |came, here| Nearness { came, here, is_linked: false };
    for step in 1..20 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        fleet.gets_on(near(step, step));
    }
    // Another forming, which found there what the one before has brought; and the group's first step.
    for near in [near(1, 20), Nearness { is_linked: true, ..Nearness::default() }] {
        tokio::time::sleep(Duration::from_secs(50)).await;
        fleet.gets_on(near);
    }
    tokio::time::sleep(Duration::from_secs(50)).await;
    fleet.formed(Epoch(2), KvBlocks::plain(64), group());
    for _ in 1..TOKENS {
        assert!(matches!(tokens.next().await, TokenEvent::Token { .. }));
    }
    let mut tokens = driver.submit(generation()).await.unwrap();
    assert!(matches!(tokens.next().await, TokenEvent::Token { .. }));
    lose(2);
    tokio::time::sleep(Duration::from_secs(50)).await;
    fleet.gets_on(near(1, 1));
    let failed = loop {
        match tokens.next().await {
            TokenEvent::Token { .. } => {}
            event => break event,
        }
    };
    assert!(matches!(failed, TokenEvent::Failed(Failure::GroupLost(_))), "{failed:?}");
}

/// Each forming finds the same there, brings as much and fails, as the one before it did.
#[tokio::test(start_paused = true)]
async fn formings_that_fail_one_after_the_other_are_not_waited_for_without_end() {
    let settings = driver::Settings { regroup_wait: Duration::from_secs(60), ..Default::default() };
    let (mut driver, fleet) = driver::start(Scheduler::new(Settings::default()).unwrap(), settings);
    let group = Distant { link: Duration::ZERO, busy_until: Instant::now(), steps: VecDeque::new() };
    fleet.formed(Epoch(1), KvBlocks::plain(64), group);
    driver.ready().await;
    let generation = Generation { prompt: vec![1; 40], tokens_max: TOKENS, ..Generation::default() };
    let mut tokens = driver.submit(generation).await.unwrap();
    assert!(matches!(tokens.next().await, TokenEvent::Token { .. }));
    fleet.lost(Epoch(1), GroupError::Lost { rank: Rank(0), reason: "a test".into() });
    let again_and_again = async {
        loop {
            for (came, here, is_linked) in [(0, 30, false), (5, 35, false), (0, 0, true)] {
                tokio::time::sleep(Duration::from_secs(5)).await;
                fleet.gets_on(Nearness { came, here, is_linked });
            }
        }
    };
    let failed = async {
        loop {
            match tokens.next().await {
                TokenEvent::Token { .. } => {}
                event => return event,
            }
        }
    };
    let failed = tokio::select! {
        failed = tokio::time::timeout(Duration::from_secs(600), failed) => failed.expect("it has an end"),
        () = again_and_again => unreachable!("it has no end"),
    };
    assert!(matches!(failed, TokenEvent::Failed(Failure::GroupLost(_))), "{failed:?}");
}

/// It is taken in and ends in one turn of the driver.
#[tokio::test(start_paused = true)]
async fn one_that_ends_as_it_is_taken_in_was_taken_in() {
    let mut driver = server(Duration::ZERO, 2);
    driver.ready().await;
    let nothing = Generation { prompt: vec![1; 4], tokens_max: 0, ..Generation::default() };
    let mut stream = driver.submit(nothing).await.expect("no reason to refuse it");
    match stream.next().await {
        TokenEvent::Finished { reason: FinishReason::Length, .. } => {}
        other => panic!("{other:?}"),
    }
}

/// Has carried out each step by the time it is asked for it.
#[derive(Default)]
struct Swift {
    outcomes: VecDeque<StepOutcome>,
    /// Steps that it was asked for.
    answered: Arc<AtomicUsize>,
}

impl Group for Swift {
    fn send(&mut self, plan: &StepPlan) -> Result<(), GroupError> {
        let mut far = Distant { link: Duration::ZERO, busy_until: Instant::now(), steps: VecDeque::new() };
        far.send(plan)?;
        self.outcomes.extend(far.steps.into_iter().map(|(_, outcome)| outcome));
        Ok(())
    }

    async fn outcome(&mut self) -> Result<StepOutcome, GroupError> {
        self.answered.fetch_add(1, Ordering::Relaxed);
        Ok(self.outcomes.pop_front().expect("a step was sent"))
    }
}

/// A client whose requests are refused, and that sends the next one as soon as it hears of it: before the driver has ended
/// the turn in which it said so, as one on another thread may.
struct Insistent {
    driver: DriverHandle,
    asking: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    sent: AtomicUsize,
    /// Steps that were answered: with the last one it has enough.
    answered: Arc<AtomicUsize>,
}

impl Insistent {
    fn ask(self: Arc<Self>) {
        let sent = self.sent.fetch_add(1, Ordering::Relaxed);
        if sent == 50 * TOKENS || self.answered.load(Ordering::Relaxed) >= TOKENS {
            return;
        }
        let driver = self.driver.clone();
        let asking = async move {
            let nothing = Generation { tokens_max: 1, ..Generation::default() };
            assert!(matches!(driver.submit(nothing).await, Err(Refusal::Rejected(_))));
        };
        // What it does is not on the account of the driver's task.
        let mut asking: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(unconstrained(asking));
        let waker = self.clone().into();
        assert!(asking.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        let before = self.asking.lock().unwrap().replace(asking);
        if let Some(mut before) = before {
            assert!(
                before.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready(),
                "it was refused"
            );
        }
    }
}

impl Wake for Insistent {
    fn wake(self: Arc<Self>) {
        self.ask();
    }
}

/// However many come: a turn of the driver hears of a step that was carried out, if there is one.
#[tokio::test]
async fn a_flood_of_refused_requests_holds_up_no_step() {
    let (mut driver, fleet) = driver::start(Scheduler::new(Settings::default()).unwrap(), Default::default());
    let group = Swift::default();
    let answered = group.answered.clone();
    fleet.formed(Epoch(1), KvBlocks::plain(4096), group);
    driver.ready().await;
    let insistent = |_| {
        let (asking, sent, answered) = (Mutex::default(), AtomicUsize::new(0), answered.clone());
        Arc::new(Insistent { driver: driver.clone(), asking, sent, answered })
    };
    let clients: Vec<Arc<Insistent>> = (0..3).map(insistent).collect();
    let generation = Generation { prompt: vec![1; 40], tokens_max: TOKENS, ..Generation::default() };
    let submitted = driver.submit(generation);
    clients.iter().for_each(|client| client.clone().ask());
    let mut tokens = submitted.await.unwrap();
    let last = loop {
        match tokens.next().await {
            TokenEvent::Token { .. } => {}
            last => break last,
        }
    };
    assert!(matches!(last, TokenEvent::Finished { .. }), "{last:?}");
    // They ask no more.
    clients.iter().for_each(|client| drop(client.asking.lock().unwrap().take()));
    let sent: Vec<usize> = clients.iter().map(|client| client.sent.load(Ordering::Relaxed)).collect();
    assert!(sent.iter().all(|sent| *sent <= TOKENS + 10), "{sent:?} requests in {TOKENS} steps");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_stopped_ends_what_is_under_way_and_takes_nothing_in() {
    let mut driver = server(Duration::ZERO, 2);
    driver.ready().await;
    let generation = || Generation { prompt: vec![1; 40], tokens_max: TOKENS, ..Generation::default() };
    let mut tokens = driver.submit(generation()).await.unwrap();
    driver.stop();
    let last = loop {
        match tokens.next().await {
            TokenEvent::Token { .. } => {}
            last => break last,
        }
    };
    assert_eq!(last, TokenEvent::Failed(Failure::Stopped));
    assert_eq!(driver.submit(generation()).await.err(), Some(Refusal::Stopped));
}
