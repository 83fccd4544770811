//! Which plots a report has.

use super::plot::{Axis, Plot};
use super::{Point, Report, Row};
use crate::chaos::Seen;
use crate::stats::Bin;

pub fn plots(report: &Report) -> String {
    let mut all = String::new();
    if !report.sweep.is_empty() {
        all += &by_rate(&report.sweep);
    }
    all += &tokens_over_time(report);
    all += &requests_over_time(report);
    let histograms = &report.histograms;
    all += &histogram("Time to the first token", &histograms.ttft);
    all += &histogram("Between pieces of an answer", &histograms.gaps);
    all + &histogram("Time to the end", &histograms.e2e)
}

fn by_rate(points: &[Point]) -> String {
    let mut points: Vec<&Point> = points.iter().collect();
    points.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    let x = Axis::log("requests/s asked for", points.iter().map(|point| point.rate));
    let answered = |point: &Point| *point.summary.answered();
    let times = points.iter().flat_map(|point| [answered(point).p50_ms, answered(point).p99_ms]);
    let y = Axis::log("ms", times);
    let what = to_what(points.iter().any(|point| point.summary.whole));
    let title = format!("{what} by rate: p50 (thin) and p99; hollow where the goal was not held");
    let mut plot = Plot::new(&title, x, y);
    let line = |of: fn(&Point) -> f64| points.iter().map(|point| (point.rate, of(point))).collect::<Vec<_>>();
    plot.line(&line(|point| point.summary.answered().p50_ms), "thin");
    plot.line(&line(|point| point.summary.answered().p99_ms), "main");
    for point in points {
        plot.point(point.rate, answered(point).p99_ms, if point.holds { "good" } else { "missed" });
    }
    plot.svg()
}

fn tokens_over_time(report: &Report) -> String {
    let line = &report.timeline;
    let rates: Vec<f64> = line.tokens_per_s().collect();
    let end = line.part_s * rates.len() as f64;
    let x = Axis::linear("s", [end / 1.05].into_iter());
    let mut plot =
        Plot::new("Tokens a second, over time", x, Axis::linear("tokens/s", rates.iter().copied()));
    bands(&mut plot, &report.chaos);
    let at = |index: usize| index as f64 * line.part_s;
    rates.iter().enumerate().for_each(|(index, rate)| plot.bar(at(index), at(index + 1), *rate, "bar"));
    plot.svg()
}

/// More of them nobody can tell apart, and the page would be large.
const POINTS_MAX: usize = 4000;

fn requests_over_time(report: &Report) -> String {
    let each = report.requests.len().div_ceil(POINTS_MAX).max(1);
    let rows: Vec<&Row> = report.requests.iter().step_by(each).collect();
    let x = Axis::linear("s at which they were due", rows.iter().map(|row| row.due_s));
    let whole = report.summary.whole;
    let answered = |row: &Row| if whole { row.e2e_ms } else { row.ttft_ms };
    let y = Axis::log("ms", rows.iter().filter_map(|row| answered(row)));
    let title = format!("{} of each request (failed ones at the top)", to_what(whole));
    let mut plot = Plot::new(&title, x, y);
    bands(&mut plot, &report.chaos);
    for row in rows {
        match (row.outcome.as_str(), answered(row)) {
            ("done" | "stopped", None) => {}
            ("done" | "stopped", Some(ms)) => plot.point(row.due_s, ms, "dot"),
            _ => plot.point(row.due_s, f64::MAX, "failed"),
        }
    }
    plot.svg()
}

/// What is plotted of an answer.
fn to_what(whole: bool) -> &'static str {
    if whole { "To the end" } else { "To the first token" }
}

fn bands(plot: &mut Plot, chaos: &[Seen]) {
    for seen in chaos {
        let to = seen.at_s + seen.recovered_after_s.unwrap_or(0.0);
        plot.band(seen.at_s, to, &seen.fault);
    }
}

fn histogram(title: &str, bins: &[Bin]) -> String {
    if bins.is_empty() {
        return String::new();
    }
    let edges = bins.iter().flat_map(|bin| [bin.from_ms, bin.to_ms]);
    let y = Axis::linear("count", bins.iter().map(|bin| bin.count as f64));
    let mut plot = Plot::new(title, Axis::log("ms", edges), y);
    bins.iter()
        .filter(|bin| bin.count > 0)
        .for_each(|bin| plot.bar(bin.from_ms, bin.to_ms, bin.count as f64, "bar"));
    plot.svg()
}
