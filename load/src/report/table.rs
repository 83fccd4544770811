//! A report as a person reads it in a terminal.

use super::{Point, Report};
use crate::chaos;
use crate::stats::{Errors, Spread, Summary};
use std::collections::BTreeMap;
use std::fmt;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.sweep.is_empty() {
            sweep(f, &self.sweep)?;
        }
        counts(f, &self.summary)?;
        spreads(f, &self.summary)?;
        told(f, "error", &self.summary.errors)?;
        told(f, if self.summary.whole { "answer" } else { "stream" }, &self.summary.violations)?;
        self.chaos.iter().try_for_each(|seen| chaos(f, seen))?;
        self.warnings.iter().try_for_each(|warning| writeln!(f, "warning: {warning}"))
    }
}

fn counts(f: &mut fmt::Formatter<'_>, s: &Summary) -> fmt::Result {
    write!(f, "{} requests in {:.1} s: {} done, {} failed", s.requests, s.elapsed_s, s.done, s.failed)?;
    if s.stopped > 0 {
        write!(f, ", {} not awaited", s.stopped)?;
    }
    writeln!(f, "\n{:.2} requests/s, {:.1} tokens/s", s.requests_per_s, s.tokens_per_s)?;
    writeln!(
        f,
        "{} tokens of prompts ({} of them cached), {} of answers",
        s.prompt_tokens, s.cached_tokens, s.completion_tokens
    )?;
    if let Some(goodput) = &s.goodput {
        writeln!(
            f,
            "goodput {:.2} requests/s: {} of {} ({:.1} %) held {}",
            goodput.requests_per_s,
            goodput.good,
            s.requests,
            100.0 * goodput.share,
            goodput.goal
        )?;
    }
    Ok(())
}

fn spreads(f: &mut fmt::Formatter<'_>, s: &Summary) -> fmt::Result {
    let names = ["mean", "p50", "p90", "p99", "p99.9", "max"];
    writeln!(f, "\n{:24}{}", "ms", names.map(|name| format!("{name:>10}")).concat())?;
    let rows: [(&str, &Spread); 6] = [
        ("to the first token", &s.ttft),
        ("between tokens", &s.itl),
        ("between pieces", &s.gaps),
        ("to the end", &s.e2e),
        ("sent after it was due", &s.lag),
        ("client late", &s.late),
    ];
    for (name, spread) in rows.iter().filter(|(_, spread)| spread.count > 0) {
        let Spread { mean_ms, p50_ms, p90_ms, p99_ms, p999_ms, max_ms, .. } = spread;
        let values = [mean_ms, p50_ms, p90_ms, p99_ms, p999_ms, max_ms];
        writeln!(f, "{name:24}{}", values.map(|value| format!("{value:10.2}")).concat())?;
    }
    match s.without_first_token() {
        0 => Ok(()),
        none => writeln!(f, "{none} of {} answers had no first token: nothing was in them", s.done),
    }
}

fn told(f: &mut fmt::Formatter<'_>, what: &str, errors: &BTreeMap<String, Errors>) -> fmt::Result {
    errors.iter().try_for_each(|(kind, errors)| {
        writeln!(
            f,
            "{what}: {} x {kind}, first: {}",
            errors.count,
            errors.first.lines().next().unwrap_or_default()
        )
    })
}

fn chaos(f: &mut fmt::Formatter<'_>, seen: &chaos::Seen) -> fmt::Result {
    let recovered = match seen.recovered_after_s {
        Some(after) => format!(", all went on after {after:.1} s"),
        None if seen.streams_paused > 0 => format!(", {} of them went on", seen.streams_went_on),
        None => String::new(),
    };
    writeln!(
        f,
        "fault at {:.1} s, {} of {}: {} streams in flight, {} paused, the longest for {:.1} s{recovered}; {} errors",
        seen.at_s,
        seen.fault,
        seen.worker,
        seen.streams_in_flight,
        seen.streams_paused,
        seen.longest_pause_s,
        seen.errors
    )
}

fn sweep(f: &mut fmt::Formatter<'_>, points: &[Point]) -> fmt::Result {
    let whole = points.iter().any(|point| point.summary.whole);
    let answered = if whole { "e2e p99" } else { "ttft p99" };
    write!(f, "{:>10}{:>10}{answered:>12}", "rate", "holds")?;
    if !whole {
        write!(f, "{:>12}", "itl p99")?;
    }
    writeln!(f, "{:>12}{:>10}", "tokens/s", "good %")?;
    for Point { rate, holds, summary } in points {
        let good = summary.goodput.as_ref().map_or(0.0, |goodput| 100.0 * goodput.share);
        let holds = if *holds { "yes" } else { "no" };
        write!(f, "{rate:10.3}{holds:>10}{:12.1}", summary.answered().p99_ms)?;
        if !whole {
            write!(f, "{:12.2}", summary.itl.p99_ms)?;
        }
        writeln!(f, "{:12.1}{good:10.1}", summary.tokens_per_s)?;
    }
    match points.iter().filter(|point| point.holds).map(|point| point.rate).max_by(f64::total_cmp) {
        Some(rate) => writeln!(f, "highest rate that held: {rate:.3} requests/s; its figures:\n"),
        None => writeln!(f, "no rate held; the figures of the last:\n"),
    }
}
