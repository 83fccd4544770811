//! What was measured: rows for people, the same rows as JSON for programs.

use serde::Serialize;
use std::path::PathBuf;

/// What the card can do, measured in the same run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceilings {
    pub read_bytes_per_second: f64,
    /// Of bf16 products of cuBLASLt.
    pub matrix_flops_per_second: Option<f64>,
}

/// The least that must be moved and computed.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Work {
    pub bytes: f64,
    pub flops: f64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    pub family: &'static str,
    pub what: String,
    pub model: String,
    pub ranks: usize,
    /// T
    pub rows: usize,
    pub microseconds: f64,
    pub work: Option<Work>,
    /// The time that the work needs at the ceilings, over the time that it took.
    pub share: Option<f64>,
    /// Whether bytes or flops are that time.
    pub bound: Option<&'static str>,
    /// Of a whole step: time that its bytes do not explain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside_ms: Option<f64>,
    /// Weights on the card, over those of the checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights_ratio: Option<f64>,
    /// All memory that was taken, over what was planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_ratio: Option<f64>,
    pub note: String,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub card: String,
    pub quick: bool,
    pub ceilings: Ceilings,
    pub rows: Vec<Row>,
    /// Families that could not be measured, and why.
    pub failures: Vec<(String, String)>,
    #[serde(skip)]
    json: Option<PathBuf>,
}

impl Report {
    pub fn new(card: String, quick: bool, ceilings: Ceilings, json: Option<PathBuf>) -> Report {
        Report { card, quick, ceilings, rows: Vec::new(), failures: Vec::new(), json }
    }

    /// Adds the share, tells the row on stderr, and keeps it.
    pub fn push(&mut self, row: Row) {
        let seconds = row.microseconds / 1e6;
        let row = match row.work {
            None => row,
            Some(work) => {
                let bytes = work.bytes / self.ceilings.read_bytes_per_second;
                let flops = self.ceilings.matrix_flops_per_second.map_or(0.0, |rate| work.flops / rate);
                let bound = if bytes >= flops { "bytes" } else { "flops" };
                Row { share: Some(bytes.max(flops) / seconds.max(1e-12)), bound: Some(bound), ..row }
            }
        };
        eprintln!("{}", line(&row));
        self.rows.push(row);
    }

    pub fn failed(&mut self, family: &str, reason: String) {
        eprintln!("{family}: {reason}");
        self.failures.push((family.into(), reason));
    }

    /// After each family, so that a run that is ended early leaves what it had.
    pub fn save(&self) {
        let Some(path) = &self.json else { return };
        let text = serde_json::to_string_pretty(self).expect("rows can be written");
        if let Err(error) = std::fs::write(path, text) {
            eprintln!("cannot write {}: {error}", path.display());
        }
    }

    pub fn print(&self) {
        println!(
            "\n{}{}",
            self.card,
            if self.quick { "; tiny shapes: no figure means anything" } else { "" }
        );
        let Ceilings { read_bytes_per_second: read, matrix_flops_per_second: matrix } = self.ceilings;
        let matrix = matrix.map_or("not measured: no cuBLASLt, so no share of it is known".into(), tera);
        println!("reads {:.0} GB/s; bf16 products {matrix}\n", read / 1e9);
        let header = format!(
            "{:<9} {:<20} {:<5} {:>5} {:>6} {:>11} {:>6} {:<6} note",
            "family", "what", "model", "ranks", "T", "µs", "share", "of"
        );
        println!("{header}");
        self.rows.iter().for_each(|row| println!("{}", line(row)));
        crate::targets::print(self);
        self.failures.iter().for_each(|(family, reason)| println!("{family:<9} FAILED: {reason}"));
    }
}

fn tera(rate: f64) -> String {
    format!("{:.0} TFLOP/s", rate / 1e12)
}

fn line(row: &Row) -> String {
    let share = row.share.map_or("-".into(), |share| format!("{share:.2}"));
    let text = format!(
        "{:<9} {:<20} {:<5} {:>5} {:>6} {:>11.1} {:>6} {:<6} {}",
        row.family,
        row.what,
        row.model,
        row.ranks,
        row.rows,
        row.microseconds,
        share,
        row.bound.unwrap_or("-"),
        row.note
    );
    text.trim_end().into()
}
