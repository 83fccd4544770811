//! `flotilla bench serve`: flags into a load test, and the report out of it. What a load test is stands in `flotilla-load`.

mod args;
mod chaos;
mod output;
mod settings;
mod show;
mod sweep;
mod workers;

use anyhow::{Context, Result, ensure};
pub use args::ServeArgs;
use flotilla_load::client::Clock;
use flotilla_load::prompt::Prompts;
use flotilla_load::report::{Point, Report};
use flotilla_load::run::{self, Asking, Live, Load, Plan, Probe, Run};
use flotilla_load::schedule::Limit;
use flotilla_load::stats::Summary;
use show::Shown;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Clients of the warm-up where the load is no number of clients.
const WARM_CLIENTS: usize = 4;

pub fn run(args: &ServeArgs) -> Result<()> {
    output::check(args)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let report = runtime.block_on(measure(args))?;
    output::write(args, &report)?;
    let first = report.summary.errors.iter().next();
    let words = first.map_or(String::new(), |(kind, errors)| format!(": {kind}, {}", errors.first));
    ensure!(report.summary.done > 0, "no request was answered{words}");
    Ok(())
}

async fn measure(args: &ServeArgs) -> Result<Report> {
    let mut target = settings::target(args).await?;
    let mut prompts = settings::prompts(args)?;
    let load = settings::load(args)?;
    let victims = match &args.outcome.chaos {
        Some(_) => Some(workers::Supervisor::at(&args.url)?),
        None => None,
    };
    let before = run::probe(&mut target, &mut prompts).await?;
    let mut settings = settings::told(args, &target, &prompts);
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        crate::serve::asked_to_stop().await;
        stop.send_replace(true);
        // As long as it is awaited, `stopped` can be looked at.
        std::future::pending::<()>().await;
    });
    let plan = Plan {
        asking: Arc::new(Asking { target, prompts, think: args.load.think }),
        load,
        limit: settings::limit(args),
        seed: args.load.seed,
        from: 0,
    };
    let mut session = Session { args, before, stopped, asked: 0 };
    session.warm_up(&plan).await;
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (mut report, sweep) = match (args.outcome.sweep, victims) {
        (true, _) => {
            let swept = sweep::sweep(&mut session, &plan).await?;
            settings["load"]["rate"] = swept.rate.into();
            (swept.report, swept.points)
        }
        (false, None) => (Report::of(&session.run(&plan).await, args.outcome.goal.as_ref(), &[]), Vec::new()),
        (false, Some(victims)) => (session.run_with_faults(&plan, victims).await, Vec::new()),
    };
    if session.before.ignore_eos_refused {
        report.warnings.push("the server refuses ignore_eos: answers end where the model ends them".into());
    }
    report.warnings.extend(session.asked_again(&plan));
    settings["ended_by_hand"] = (*session.stopped.borrow()).into();
    Ok(Report {
        made_by: format!("flotilla bench serve {}", env!("CARGO_PKG_VERSION")),
        started_unix_s: started,
        settings,
        before: session.before,
        sweep,
        ..report
    })
}

/// What all runs of one command share.
struct Session<'a> {
    args: &'a ServeArgs,
    before: Probe,
    stopped: watch::Receiver<bool>,
    /// Conversations of the runs so far, without the warm-up.
    asked: u64,
}

impl Session<'_> {
    async fn warm_up(&mut self, plan: &Plan) {
        let requests = self.args.load.warmup;
        if requests == 0 {
            return;
        }
        let clients = self.args.load.clients.map_or(WARM_CLIENTS, |clients| clients as usize);
        let plan = Plan {
            load: Load::Closed { clients },
            limit: Limit { requests: Some(requests), duration: None },
            // Others than those that count, which a cache would know else: of a file, its last.
            seed: !plan.seed,
            from: from_the_end(&plan.asking.prompts, requests as u64),
            ..plan.clone()
        };
        let live = Arc::new(Live::default());
        let _shown = Shown::start("warm-up", live.clone());
        run::warm_up(plan, live, self.stopped.clone(), &mut self.before).await;
    }

    async fn run(&mut self, plan: &Plan) -> Run {
        self.run_by(plan, Clock::start()).await
    }

    async fn run_by(&mut self, plan: &Plan, clock: Clock) -> Run {
        let live = Arc::new(Live::default());
        let _shown = Shown::start("load", live.clone());
        let plan = Plan { from: self.asked, ..plan.clone() };
        let run = run::run(plan, clock, live, self.stopped.clone()).await;
        self.asked += run.conversations();
        run
    }

    /// A file that was asked more than once, which a cache of the server knows.
    fn asked_again(&self, plan: &Plan) -> Option<String> {
        let Prompts::File { scripts, .. } = &plan.asking.prompts else { return None };
        let (asked, prompts) = (self.asked + self.args.load.warmup as u64, scripts.len());
        (asked > prompts as u64).then(|| {
            format!(
                "the file has {prompts} prompts, and was asked {asked} times: a cache of the server knows what it was asked before"
            )
        })
    }

    async fn run_with_faults(&mut self, plan: &Plan, supervisor: workers::Supervisor) -> Report {
        let clock = Clock::start();
        let schedule = self.args.outcome.chaos.clone().unwrap_or_default();
        let faults = chaos::Faults::start(schedule, supervisor, clock, plan.seed);
        let run = self.run_by(plan, clock).await;
        let (happened, failures) = faults.end().await;
        let mut report = Report::of(&run, self.args.outcome.goal.as_ref(), &happened);
        report.warnings.extend(failures);
        report
    }

    fn point(&self, run: &Run, rate: f64) -> Point {
        let summary = Summary::of(run, self.args.outcome.goal.as_ref());
        let share = summary.goodput.as_ref().map_or(0.0, |goodput| goodput.share);
        let holds = share >= self.args.outcome.goal_share;
        Point { rate, holds, summary }
    }
}

/// Where so many prompts of a file begin that are its last.
fn from_the_end(prompts: &Prompts, count: u64) -> u64 {
    let Prompts::File { scripts, .. } = prompts else { return 0 };
    let length = scripts.len() as u64;
    length - count % length
}
