//! A sweep: one run after the other, each at the rate that the search asks for.

use super::Session;
use anyhow::{Result, bail};
use flotilla_load::chance::Chance;
use flotilla_load::report::{Point, Report};
use flotilla_load::run::{Load, Plan};
use flotilla_load::schedule::Arrivals;
use flotilla_load::sweep::Search;

/// The report of the highest rate that held, or of the last, and every rate that was tried.
pub async fn sweep(session: &Session<'_>, plan: &Plan) -> Result<(Report, Vec<Point>)> {
    let outcome = &session.args.outcome;
    let Some(start) = session.args.load.rate else { bail!("a sweep needs --rate to begin with") };
    let mut search = Search::new(start, outcome.sweep_precision, outcome.sweep_runs);
    let (mut points, mut report) = (Vec::new(), Report::default());
    while let Some(rate) = search.next() {
        let run = session.run(&at(plan, rate, points.len() as u64)?).await;
        if run.stopped {
            break;
        }
        let point = session.point(&run, rate);
        search.tell(rate, point.holds);
        eprintln!("{rate:.3} requests/s: the goal is {}", if point.holds { "held" } else { "not held" });
        if search.best() == Some(rate) || search.best().is_none() {
            report = Report::of(&run, outcome.goal.as_ref(), &[]);
        }
        points.push(point);
    }
    if points.is_empty() {
        bail!("the sweep was ended in its first run");
    }
    if !search.is_precise() {
        report
            .warnings
            .push("the sweep ended before it had the highest rate as precisely as it was asked for".into());
    }
    Ok((report, points))
}

/// Every run asks prompts of its own: a prefix cache would know those of the run before.
fn at(plan: &Plan, rate: f64, run: u64) -> Result<Plan> {
    let arrivals = match plan.load {
        Load::Open(Arrivals::Poisson { .. }) => Arrivals::Poisson { rate },
        Load::Open(Arrivals::Constant { .. }) => Arrivals::Constant { rate },
        Load::Open(Arrivals::Burst { size, .. }) => Arrivals::Burst { rate, size },
        _ => bail!("a sweep goes by one rate after the other\nhint: --arrivals poisson, constant or burst"),
    };
    let seed = if run == 0 { plan.seed } else { Chance::of(plan.seed, run).bits() };
    Ok(Plan { load: Load::Open(arrivals), seed, ..plan.clone() })
}
