//! A row for each request.

use super::{Report, Row};

const HEADER: &str = "conversation,turn,due_s,lag_ms,ttft_ms,itl_ms,pause_ms,e2e_ms,prompt_tokens,completion_tokens,finish_reason,outcome,violations\n";

pub fn csv(report: &Report) -> String {
    HEADER.to_owned() + &report.requests.iter().map(row).collect::<String>()
}

/// No cell can hold a comma but the server's finish_reason, which is quoted.
fn row(row: &Row) -> String {
    let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.3}"));
    let count = |value: Option<u64>| value.map_or(String::new(), |value| value.to_string());
    let reason = row
        .finish_reason
        .as_ref()
        .map_or(String::new(), |reason| format!("\"{}\"", reason.replace('"', "\"\"")));
    let cells = [
        row.conversation.to_string(),
        row.turn.to_string(),
        format!("{:.6}", row.due_s),
        format!("{:.3}", row.lag_ms),
        number(row.ttft_ms),
        number(row.itl_ms),
        number(row.pause_ms),
        number(row.e2e_ms),
        count(row.prompt_tokens),
        count(row.completion_tokens),
        reason,
        row.outcome.clone(),
        row.violations.to_string(),
    ];
    cells.join(",") + "\n"
}
