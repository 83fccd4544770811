//! Two reports beside each other, with what is a difference and what may be noise.

use crate::report::{Report, Row};
use crate::stats::{Interval, difference};
use serde::Serialize;
use std::fmt;

#[derive(Debug, Serialize)]
pub struct Comparison {
    pub seed: u64,
    pub lines: Vec<Line>,
    pub remarks: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Line {
    pub figure: String,
    pub before: f64,
    pub after: f64,
    /// Of after less before.
    pub difference: Interval,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Better,
    Worse,
    /// Not distinguishable from noise.
    Noise,
}

/// Fewer values than these say nothing of a quantile's noise.
const VALUES_MIN: usize = 20;
/// Percents of cached tokens that differ by more are told.
const CACHED_PERCENT: f64 = 5.0;

/// Of one request, in milliseconds.
type Time = fn(&Row) -> Option<f64>;

const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];

pub fn compare(before: &Report, after: &Report, seed: u64) -> Comparison {
    let (mut lines, mut remarks) = (Vec::new(), unlike(before, after));
    let times: [(&str, Time); 3] =
        [("ttft", |row| row.ttft_ms), ("itl", |row| row.itl_ms), ("e2e", |row| row.e2e_ms)];
    for (name, of) in times {
        let values = |report: &Report| report.requests.iter().filter_map(of).collect::<Vec<_>>();
        let (before, after) = (values(before), values(after));
        // As of answers that were whole: there is nothing to compare, nor to remark.
        if before.is_empty() && after.is_empty() {
            continue;
        }
        for (label, share) in QUANTILES {
            let figure = move |values: &mut [f64]| quantile(values, share);
            match line(format!("{name} {label} (ms)"), &before, &after, &figure, false, seed) {
                Some(line) if share < 0.99 || before.len().min(after.len()) >= 100 => lines.push(line),
                Some(_) => {
                    remarks.push(format!("{name} {label} is left out: it needs 100 requests of each run"))
                }
                None => {
                    remarks.push(format!("{name} is left out: it needs {VALUES_MIN} requests of each run"));
                    break;
                }
            }
        }
    }
    let per_s = |report: &Report| report.timeline.tokens_per_s().collect::<Vec<_>>();
    lines.extend(line("tokens/s".into(), &per_s(before), &per_s(after), &mean, true, seed));
    Comparison { seed, lines, remarks }
}

fn line(
    figure: String,
    before: &[f64],
    after: &[f64],
    of: &dyn Fn(&mut [f64]) -> f64,
    more_is_better: bool,
    seed: u64,
) -> Option<Line> {
    if before.len().min(after.len()) < VALUES_MIN {
        return None;
    }
    let difference = difference(before, after, of, seed);
    let verdict = match difference {
        noise if noise.may_be_none() => Verdict::Noise,
        more if (more.value > 0.0) == more_is_better => Verdict::Better,
        _ => Verdict::Worse,
    };
    let (before, after) = (of(&mut before.to_vec()), of(&mut after.to_vec()));
    Some(Line { figure, before, after, difference, verdict })
}

/// What makes the two hard to compare.
fn unlike(before: &Report, after: &Report) -> Vec<String> {
    let mut remarks = Vec::new();
    let settings = |report: &Report| report.settings.as_object().cloned().unwrap_or_default();
    let (one, other) = (settings(before), settings(after));
    let names = one.keys().chain(other.keys().filter(|name| !one.contains_key(*name)));
    // Other prompts of the same lengths are no other load.
    for name in names.filter(|name| *name != "seed") {
        let (one, other) = (
            one.get(name).unwrap_or(&serde_json::Value::Null),
            other.get(name).unwrap_or(&serde_json::Value::Null),
        );
        if one != other {
            remarks.push(format!("{name} differs: {one} and {other}"));
        }
    }
    for (name, report) in [("the first", before), ("the second", after)] {
        if report.summary.failed > 0 {
            remarks
                .push(format!("{} requests of {name} failed and have no times here", report.summary.failed));
        }
    }
    remarks.extend(other_cache(before, after));
    remarks
}

fn other_cache(before: &Report, after: &Report) -> Option<String> {
    let percent = |Report { summary, .. }: &Report| {
        100.0 * summary.cached_tokens as f64 / summary.prompt_tokens.max(1) as f64
    };
    let (one, other) = (percent(before), percent(after));
    ((one - other).abs() > CACHED_PERCENT).then(|| {
        format!(
            "{one:.0} % and {other:.0} % of the prompts' tokens were in the server's cache, which alone makes first \
             tokens sooner: ask one server twice with another --seed each"
        )
    })
}

fn mean(values: &mut [f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The value that this share of all does not exceed.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    let index = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len()) - 1;
    *values.select_nth_unstable_by(index, f64::total_cmp).1
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:14}{:>12}{:>12}{:>12}   {:24} ", "", "before", "after", "difference", "95 % lie in")?;
        for line in &self.lines {
            let Interval { value, low, high } = line.difference;
            let verdict = match line.verdict {
                Verdict::Better => "better",
                Verdict::Worse => "worse",
                Verdict::Noise => "not distinguishable from noise",
            };
            let interval = format!("{low:+.2} .. {high:+.2}");
            writeln!(
                f,
                "{:14}{:12.2}{:12.2}{value:+12.2}   {interval:24} {verdict}",
                line.figure, line.before, line.after
            )?;
        }
        self.remarks.iter().try_for_each(|remark| writeln!(f, "note: {remark}"))?;
        writeln!(
            f,
            "by block bootstrap, seed {}; it knows the noise within each run, not that of the machine between runs",
            self.seed
        )
    }
}
