//! What was measured, as tables.

use super::driver::Kind;
use super::kernels::KernelRates;
use super::steps::GroupRates;
use serde::Serialize;
use std::fmt;

#[derive(Debug, Serialize)]
pub struct Report {
    pub model: String,
    pub layers: usize,
    pub threads: usize,
    pub processes: bool,
    pub activations: String,
    pub dense: String,
    pub rounds: usize,
    pub kernels: Option<KernelRates>,
    pub groups: Vec<GroupRates>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(kernels) = &self.kernels {
            let read = kernels.read_huge;
            writeln!(
                f,
                "memory, {} threads, {}: huge pages asked for {:.1} GB/s, small pages {:.1} GB/s",
                self.threads,
                kernels.isa,
                read / 1e9,
                kernels.read_small / 1e9
            )?;
            writeln!(f, "\n{:8}{:12}{:>7}{:>9}{:>9}", "weights", "activations", "tokens", "GB/s", "of read")?;
            for kernel in &kernels.kernels {
                let rate = kernel.bytes_per_second;
                writeln!(
                    f,
                    "{:8}{:12}{:7}{:9.2}{:9.2}",
                    kernel.weights,
                    kernel.activations,
                    kernel.tokens,
                    rate / 1e9,
                    rate / read
                )?;
            }
        }
        let kind = if self.processes { "processes" } else { "threads" };
        for group in &self.groups {
            writeln!(
                f,
                "\n{}, {} layers, {} ranks ({kind}) of {} threads, activations {}, dense {}, loaded in {:.1} s",
                self.model,
                self.layers,
                group.ranks,
                group.threads,
                self.activations,
                self.dense,
                group.load_seconds
            )?;
            let read: Vec<_> = group.read.iter().flatten().map(|rate| format!("{:.1}", rate / 1e9)).collect();
            if !self.processes && !read.is_empty() {
                writeln!(
                    f,
                    "its weights are read where they lie, round by round, at {} GB/s",
                    read.join(", ")
                )?;
            }
            writeln!(f, "{:28}{:>10}{:>11}{:>11}", "", "tok/s", "ms a step", "of bound")?;
            for case in &group.cases {
                let what = match case.kind {
                    Kind::Decode { sequences, depth: 0 } => format!("decode, {sequences} sequences"),
                    Kind::Decode { depth, .. } => format!("decode at {depth}"),
                    Kind::Prompt { tokens } => format!("prompt of {tokens}"),
                };
                let bound = case.of_bound.map_or(String::new(), |of| format!("{of:.2}"));
                writeln!(f, "{what:28}{:10.2}{:11.2}{bound:>11}", case.tokens_per_second, case.step_ms)?;
            }
        }
        writeln!(f, "\nmedian of {} rounds", self.rounds)
    }
}
