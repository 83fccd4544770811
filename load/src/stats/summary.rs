//! A run in figures.

use super::{Spread, histogram};
use crate::goal::Goal;
use crate::record::Record;
use crate::run::Run;
use crate::stream::Violation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Answers came as one body each: there is no `ttft`, `itl` and `gaps`.
    #[serde(default)]
    pub whole: bool,
    pub requests: u64,
    pub done: u64,
    pub failed: u64,
    /// Not done when the run was ended.
    pub stopped: u64,
    pub elapsed_s: f64,
    pub requests_per_s: f64,
    pub tokens_per_s: f64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    /// How many answers did not say their tokens: pieces were counted instead.
    pub without_usage: u64,
    #[serde(default, skip_serializing_if = "Spread::is_empty")]
    pub ttft: Spread,
    /// A request's average between tokens.
    #[serde(default, skip_serializing_if = "Spread::is_empty")]
    pub itl: Spread,
    /// Between pieces, one by one.
    #[serde(default, skip_serializing_if = "Spread::is_empty")]
    pub gaps: Spread,
    pub e2e: Spread,
    /// How much later than due requests were sent.
    pub lag: Spread,
    /// How late the client itself was, a hundred times a second.
    pub late: Spread,
    pub goodput: Option<Goodput>,
    pub prompt_lengths: Option<PromptLengths>,
    pub errors: BTreeMap<String, Errors>,
    pub violations: BTreeMap<String, Errors>,
    pub finish_reasons: BTreeMap<String, u64>,
}

/// What held the goal, of all that were due.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goodput {
    pub goal: String,
    pub good: u64,
    pub share: f64,
    pub requests_per_s: f64,
}

/// Whether prompts were as long as they were meant to be, by the server's count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptLengths {
    pub counted: u64,
    pub exact: u64,
    pub off_tokens_max: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    pub count: u64,
    pub first: String,
}

/// Less is no lateness.
const MUCH_MS: f64 = 2.0;

impl Summary {
    pub fn of(run: &Run, goal: Option<&Goal>) -> Summary {
        let records = &run.records;
        let elapsed_s = run.elapsed_us as f64 / 1e6;
        let rate = |count: u64| if elapsed_s > 0.0 { count as f64 / elapsed_s } else { 0.0 };
        let count = |is: &dyn Fn(&Record) -> bool| records.iter().filter(|record| is(record)).count() as u64;
        let sum = |of: &dyn Fn(&Record) -> u64| records.iter().map(of).sum::<u64>();
        let (done, failed) = (count(&Record::is_done), count(&|record| record.failure().is_some()));
        let tokens = sum(&Record::tokens);
        Summary {
            whole: run.whole,
            requests: records.len() as u64,
            done,
            failed,
            stopped: records.len() as u64 - done - failed,
            elapsed_s,
            requests_per_s: rate(done),
            tokens_per_s: rate(tokens),
            prompt_tokens: sum(&|record| record.prompt_tokens.unwrap_or(0)),
            cached_tokens: sum(&|record| record.cached_tokens.unwrap_or(0)),
            completion_tokens: tokens,
            without_usage: count(&|record| record.is_done() && record.completion_tokens.is_none()),
            ttft: spread(records, Record::ttft_us),
            itl: spread(records, Record::itl_us),
            gaps: Spread::of(&histogram(records.iter().flat_map(Record::gaps_us))),
            e2e: spread(records, Record::e2e_us),
            lag: spread(records, |record| Some(record.lag_us())),
            late: Spread::of(&run.late_us),
            goodput: goal.map(|goal| goodput(goal, records, elapsed_s)),
            prompt_lengths: prompt_lengths(records),
            errors: tally(records.iter().filter_map(Record::failure)),
            violations: tally(records.iter().flat_map(|record| record.violations.iter().map(named))),
            finish_reasons: reasons(records),
        }
    }

    /// How many streams came to their end without a piece, and so without a time to the first token.
    pub fn without_first_token(&self) -> u64 {
        if self.whole { 0 } else { self.done.saturating_sub(self.ttft.count) }
    }

    /// Until a client had something: the first token, or where answers are whole, the answer.
    pub fn answered(&self) -> &Spread {
        if self.whole { &self.e2e } else { &self.ttft }
    }

    /// What the client itself was late with, if that is much beside what was measured.
    pub fn bottlenecks(&self) -> Vec<String> {
        // Of a latency so short even a millisecond is much.
        let much_ms = (self.answered().p50_ms / 20.0).max(MUCH_MS);
        let late = [("requests were sent", self.lag.p99_ms), ("the client woke", self.late.p99_ms)];
        let of_first = late.into_iter().filter(|(_, late_ms)| *late_ms > much_ms).map(|(what, late_ms)| {
            format!(
                "the client is a bottleneck: {what} up to {late_ms:.1} ms late (p99), which is part of what was measured"
            )
        });
        // The first token may take so long that the same lateness is little of it, and several tokens' time.
        let (late_ms, gap_ms) = (self.late.p99_ms, self.gaps.p50_ms);
        let of_gaps = self.gaps.count > 0 && late_ms <= much_ms && late_ms > gap_ms.max(MUCH_MS);
        let of_gaps = of_gaps.then(|| {
            format!(
                "the client is a bottleneck: it woke up to {late_ms:.1} ms late (p99), longer than mostly lies between two pieces \
                 ({gap_ms:.1} ms): long gaps and pauses may be its own"
            )
        });
        of_first.chain(of_gaps).collect()
    }

    /// What makes its figures doubtful.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.failed * 100 > self.requests {
            warnings.push(format!(
                "{} of {} requests failed ({:.1} %): times are of those that did not, and say less of a server that fails",
                self.failed,
                self.requests,
                100.0 * self.failed as f64 / self.requests as f64
            ));
        }
        warnings.extend(self.bottlenecks());
        if self.without_usage > 0 {
            let instead = if self.whole { "none were counted" } else { "pieces were counted instead" };
            warnings.push(format!("{} answers did not say their tokens: {instead}", self.without_usage));
        }
        if let Some(lengths) = self.prompt_lengths.filter(|lengths| lengths.exact < lengths.counted) {
            warnings.push(format!(
                "{} of {} prompts were not as long as meant, by up to {} tokens",
                lengths.counted - lengths.exact,
                lengths.counted,
                lengths.off_tokens_max
            ));
        }
        warnings
    }
}

fn spread(records: &[Record], of: fn(&Record) -> Option<u64>) -> Spread {
    Spread::of(&histogram(records.iter().filter_map(of)))
}

fn goodput(goal: &Goal, records: &[Record], elapsed_s: f64) -> Goodput {
    let good = records.iter().filter(|record| goal.holds(record)).count() as u64;
    Goodput {
        goal: goal.to_string(),
        good,
        share: good as f64 / records.len().max(1) as f64,
        requests_per_s: if elapsed_s > 0.0 { good as f64 / elapsed_s } else { 0.0 },
    }
}

fn prompt_lengths(records: &[Record]) -> Option<PromptLengths> {
    let off = |record: &Record| Some(record.prompt_tokens?.abs_diff(record.prompt_tokens_wanted?));
    let off: Vec<u64> = records.iter().filter_map(off).collect();
    Some(PromptLengths {
        counted: off.len() as u64,
        exact: off.iter().filter(|off| **off == 0).count() as u64,
        off_tokens_max: *off.iter().max()?,
    })
}

fn named(violation: &Violation) -> (String, &str) {
    let name = serde_json::to_value(violation.kind).expect("a kind has a name");
    (name.as_str().unwrap_or_default().to_owned(), &violation.example)
}

fn tally<'a, K: ToString>(each: impl Iterator<Item = (K, &'a str)>) -> BTreeMap<String, Errors> {
    let mut tally = BTreeMap::new();
    for (kind, words) in each {
        let errors =
            tally.entry(kind.to_string()).or_insert_with(|| Errors { count: 0, first: words.to_owned() });
        errors.count += 1;
    }
    tally
}

fn reasons(records: &[Record]) -> BTreeMap<String, u64> {
    let mut reasons = BTreeMap::new();
    for reason in records.iter().filter_map(|record| record.finish_reason.clone()) {
        *reasons.entry(reason).or_default() += 1;
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned(ttft_p50_ms: f64, gap_p50_ms: f64, late_p99_ms: f64) -> String {
        let spread = |p50_ms, p99_ms| Spread { count: 9, p50_ms, p99_ms, ..Spread::default() };
        let (ttft, gaps) = (spread(ttft_p50_ms, 0.0), spread(gap_p50_ms, 0.0));
        Summary { ttft, gaps, late: spread(0.0, late_p99_ms), ..Summary::default() }.bottlenecks().join("\n")
    }

    #[test]
    fn lateness_is_held_against_what_it_is_part_of() {
        assert!(warned(100.0, 10.0, 6.0).contains("the client woke up to 6.0 ms late"));
        // A long prompt hides it in the first token, and not between pieces.
        assert!(warned(2000.0, 10.0, 90.0).contains("longer than mostly lies between two pieces (10.0 ms)"));
        assert_eq!(warned(2000.0, 100.0, 90.0), "");
        assert_eq!(warned(10.0, 0.5, 1.9), "", "less than 2 ms is none");
    }
}
