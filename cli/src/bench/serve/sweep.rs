//! A sweep: one run after the other, each at the rate that the search asks for.

use super::Session;
use anyhow::{Result, bail, ensure};
use flotilla_load::chance::Chance;
use flotilla_load::report::{Point, Report};
use flotilla_load::run::{Load, Plan};
use flotilla_load::schedule::Arrivals;
use flotilla_load::sweep::Search;

/// What came of it.
pub struct Swept {
    /// Of the highest rate that held, or of the last.
    pub report: Report,
    /// Of that report.
    pub rate: f64,
    /// Every rate that was tried.
    pub points: Vec<Point>,
}

const NONE_DUE: &str = "no request was due within --duration";

pub async fn sweep(session: &mut Session<'_>, plan: &Plan) -> Result<Swept> {
    let outcome = &session.args.outcome;
    let Some(start) = session.args.load.rate else { bail!("a sweep needs --rate to begin with") };
    let mut search = Search::new(start, outcome.sweep_precision, outcome.sweep_runs);
    let mut swept = Swept { report: Report::default(), rate: start, points: Vec::new() };
    let mut warnings = Vec::new();
    while let Some(rate) = search.next() {
        let run = session.run(&at(plan, rate, swept.points.len() as u64)?).await;
        if run.stopped {
            break;
        }
        if run.records.is_empty() {
            ensure!(!swept.points.is_empty(), "{NONE_DUE}\nhint: a longer one, or a higher --rate");
            warnings.push(format!("{NONE_DUE} at {rate:.3} requests/s: a longer one finds lower rates"));
            break;
        }
        let point = session.point(&run, rate);
        search.tell(rate, point.holds);
        eprintln!("{rate:.3} requests/s: the goal is {}", if point.holds { "held" } else { "not held" });
        if search.best() == Some(rate) || search.best().is_none() {
            (swept.report, swept.rate) = (Report::of(&run, outcome.goal.as_ref(), &[]), rate);
        }
        swept.points.push(point);
    }
    ensure!(!swept.points.is_empty(), "the sweep was ended in its first run");
    if !search.is_precise() {
        warnings
            .push("the sweep ended before it had the highest rate as precisely as it was asked for".into());
    }
    warnings.extend(doubts(&swept.points, outcome.goal_share));
    swept.report.warnings.extend(warnings);
    Ok(swept)
}

/// Whether the lowest rate that did not hold says something of the server: it is the bound of what is reported.
fn doubts(points: &[Point], share: f64) -> Vec<String> {
    let failed = points.iter().filter(|point| !point.holds);
    let Some(Point { rate, summary, .. }) = failed.min_by(|one, other| one.rate.total_cmp(&other.rate))
    else {
        return Vec::new();
    };
    let late = summary.bottlenecks().into_iter();
    let mut doubts: Vec<String> =
        late.map(|words| format!("{rate:.3} requests/s did not hold, and {words}")).collect();
    let requests = summary.requests;
    if share < 1.0 && (requests as f64) * (1.0 - share) < 1.0 - 1e-9 {
        doubts.push(format!(
            "{rate:.3} requests/s did not hold, with {requests} requests, of which none may miss the goal: a longer \
             --duration says more"
        ));
    }
    doubts
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

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_load::stats::{Spread, Summary};

    fn point(rate: f64, holds: bool, requests: u64, late_ms: f64) -> Point {
        let late = Spread { count: 9, p99_ms: late_ms, ..Spread::default() };
        Point { rate, holds, summary: Summary { requests, late, ..Summary::default() } }
    }

    #[test]
    fn a_rate_that_failed_for_the_client_is_no_limit_of_the_server() {
        let points = [point(1.0, true, 500, 9.0), point(4.0, false, 500, 0.1), point(2.0, false, 500, 9.0)];
        let doubts_of = |points: &[Point]| doubts(points, 0.99).join("\n");
        assert!(
            doubts_of(&points).starts_with("2.000 requests/s did not hold, and the client is a bottleneck")
        );
        assert_eq!(doubts_of(&points[..2]), "", "it was late where the goal was held");
    }

    #[test]
    fn of_few_requests_none_may_miss() {
        let doubts_of = |requests, share| doubts(&[point(1.0, false, requests, 0.0)], share).join("\n");
        assert!(doubts_of(60, 0.99).contains("with 60 requests, of which none may miss the goal"));
        assert_eq!((doubts_of(100, 0.99), doubts_of(5, 1.0)), (String::new(), String::new()));
    }
}
