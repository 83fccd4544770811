//! What is handed on of a run: as JSON, as rows of CSV, as a table, as a page.

mod csv;
mod html;
mod plot;
mod plots;
mod table;

use crate::chaos;
use crate::goal::Goal;
use crate::record::{Outcome, Record};
use crate::run::{Probe, Run};
use crate::stats::{Bin, Summary, Timeline, bins, histogram};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use csv::csv;
pub use html::html;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// `flotilla bench serve`, and the version.
    pub made_by: String,
    /// Seconds since 1970.
    pub started_unix_s: u64,
    /// As they were typed, and what became of them.
    pub settings: Value,
    pub before: Probe,
    pub summary: Summary,
    pub warnings: Vec<String>,
    pub histograms: Histograms,
    pub timeline: Timeline,
    pub chaos: Vec<chaos::Seen>,
    /// Of a sweep, each rate that was tried.
    pub sweep: Vec<Point>,
    pub requests: Vec<Row>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Histograms {
    pub ttft: Vec<Bin>,
    pub gaps: Vec<Bin>,
    pub e2e: Vec<Bin>,
}

/// One rate of a sweep.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    pub rate: f64,
    pub holds: bool,
    pub summary: Summary,
}

/// One request.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    pub conversation: u64,
    pub turn: usize,
    pub due_s: f64,
    pub lag_ms: f64,
    pub ttft_ms: Option<f64>,
    pub itl_ms: Option<f64>,
    pub pause_ms: Option<f64>,
    pub e2e_ms: Option<f64>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    pub finish_reason: Option<String>,
    /// `done`, `stopped`, or the kind of the error.
    pub outcome: String,
    pub violations: usize,
}

const BINS: usize = 40;

impl Report {
    /// The parts that the run alone tells; who made it adds the rest.
    pub fn of(run: &Run, goal: Option<&Goal>, happened: &[chaos::Happened]) -> Report {
        let records = &run.records;
        let summary = Summary::of(run, goal);
        let of = |time: fn(&Record) -> Option<u64>| bins(&histogram(records.iter().filter_map(time)), BINS);
        let gaps = histogram(records.iter().flat_map(Record::gaps_us));
        Report {
            warnings: summary.warnings(),
            histograms: Histograms {
                ttft: of(Record::ttft_us),
                gaps: bins(&gaps, BINS),
                e2e: of(Record::e2e_us),
            },
            timeline: Timeline::of(records, run.elapsed_us),
            chaos: chaos::seen(happened, records),
            requests: records.iter().map(Row::of).collect(),
            summary,
            ..Report::default()
        }
    }
}

impl Row {
    fn of(record: &Record) -> Row {
        let ms = |us: u64| us as f64 / 1e3;
        Row {
            conversation: record.conversation,
            turn: record.turn,
            due_s: record.due_us as f64 / 1e6,
            lag_ms: ms(record.lag_us()),
            ttft_ms: record.ttft_us().map(ms),
            itl_ms: record.itl_us().map(ms),
            pause_ms: record.pause_us().map(ms),
            e2e_ms: record.e2e_us().map(ms),
            prompt_tokens: record.prompt_tokens,
            completion_tokens: record.completion_tokens,
            finish_reason: record.finish_reason.clone(),
            outcome: match &record.outcome {
                Outcome::Done => "done".into(),
                Outcome::Stopped => "stopped".into(),
                Outcome::Failed { kind, .. } => kind.to_string(),
            },
            violations: record.violations.len(),
        }
    }
}
