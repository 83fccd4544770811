//! Predicted beside measured, as a table.

use crate::bench::driver::Kind;
use flotilla_planner::Link;
use serde::Serialize;
use std::fmt;

#[derive(Debug, Serialize)]
pub struct Report {
    pub model: String,
    pub layers: usize,
    pub links: Vec<LinkRow>,
    pub rows: Vec<Row>,
}

/// A shaped link, as two idle ranks found it.
#[derive(Debug, Serialize)]
pub struct LinkRow {
    pub link: &'static str,
    pub latency_us: f64,
    pub bytes_per_second: f64,
}

impl LinkRow {
    pub fn new(asked: &Link, found: &Link) -> LinkRow {
        let latency_us = 1e6 * (found.latency_s + found.peer_s);
        LinkRow { link: asked.name, latency_us, bytes_per_second: found.bytes_per_s }
    }
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub plan: &'static str,
    pub link: &'static str,
    #[serde(flatten)]
    pub kind: Kind,
    /// Of a token of every sequence, or of the prompt.
    pub predicted_s: f64,
    pub measured_s: f64,
    /// Predicted, of what goes over the link in one step.
    pub sums_s: f64,
}

impl Row {
    /// Above 0 where it was faster than predicted.
    fn off(&self) -> f64 {
        self.predicted_s / self.measured_s - 1.0
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:24}{:8}{:16}{:10.2}{:10.2}{:9.1} %{:10.2}",
            self.plan,
            self.link,
            self.kind,
            1e3 * self.predicted_s,
            1e3 * self.measured_s,
            100.0 * self.off(),
            1e3 * self.sums_s
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} layers, workers of one thread", self.model, self.layers)?;
        for link in &self.links {
            writeln!(f, "{:8}{:8.1} us{:9.3} GB/s", link.link, link.latency_us, link.bytes_per_second / 1e9)?;
        }
        writeln!(
            f,
            "\n{:24}{:8}{:16}{:>10}{:>10}{:>11}{:>10}",
            "plan", "link", "", "predicted", "measured", "off", "of links"
        )?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        let off = |row: &&Row| row.off().abs() <= 0.15;
        let within = self.rows.iter().filter(off).count();
        writeln!(f, "\nin ms; {within} of {} within 15 %", self.rows.len())
    }
}
