//! The report as people read it.

use super::cards::{CardReport, CopyReport, LinkReport};
use super::libraries::State;
use super::machine::Machine;
use super::{Problem, Report};
use flotilla_shared::units::Bytes;
use std::fmt::{Display, Formatter, Result};

pub struct Table<'a>(pub &'a Report);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Report { machine, libraries, cards, links, serves_on, .. } = self.0;
        write_machine(f, machine)?;
        write_library(f, "driver", &libraries.driver, true)?;
        // Who has no driver is not told how to get what would be of no use.
        let wanted = !matches!(libraries.driver, State::Absent(_));
        write_library(f, "NVRTC", &libraries.nvrtc, wanted)?;
        write_library(f, "cuBLASLt", &libraries.cublas_lt, wanted)?;
        write_library(f, "NCCL", &libraries.nccl, wanted)?;
        write_cards(f, cards)?;
        write_links(f, links)?;
        writeln!(f, "\nserves on: {}", serves_on.join(", "))
    }
}

fn write_machine(f: &mut Formatter<'_>, machine: &Machine) -> Result {
    let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
    let bytes = |bytes: Option<u64>| bytes.map_or("unknown".into(), |bytes| Bytes(bytes).to_string());
    writeln!(f, "{:<10}{}: {}", "machine", machine.host, or_unknown(&machine.processor))?;
    writeln!(f, "{:<10}{} cores, kernels for {}", "", machine.cores, machine.isa)?;
    writeln!(
        f,
        "{:<10}{} of memory, {} available, huge pages: {}",
        "",
        bytes(machine.memory_bytes),
        bytes(machine.memory_available_bytes),
        or_unknown(&machine.huge_pages)
    )?;
    let Some(reads) = &machine.reads else { return Ok(()) };
    let share = reads.huge_share.map_or("unknown".into(), |share| format!("{:.0} %", 100.0 * share));
    writeln!(
        f,
        "{:<10}reads {:.1} GB/s in huge pages ({share} of what was asked for), {:.1} GB/s in small ones",
        "",
        reads.huge_pages / 1e9,
        reads.small_pages / 1e9
    )
}

fn write_library(f: &mut Formatter<'_>, name: &str, state: &State, wanted: bool) -> Result {
    match state {
        State::Found { version, path, release } => {
            let release = release.as_ref().map_or(String::new(), |release| format!("{release}, "));
            let cuda = if name == "driver" { "CUDA " } else { "" };
            writeln!(f, "{name:<10}{release}{cuda}{version}, {path}")
        }
        State::Absent(problem) => {
            writeln!(f, "{name:<10}not found")?;
            write_hint(f, problem, wanted)
        }
        State::Unusable(problem) => {
            writeln!(f, "{name:<10}{}", problem.reason)?;
            write_hint(f, problem, true)
        }
    }
}

fn write_hint(f: &mut Formatter<'_>, problem: &Problem, wanted: bool) -> Result {
    match &problem.hint {
        Some(hint) if wanted => writeln!(f, "{:<10}hint: {hint}", ""),
        _ => Ok(()),
    }
}

fn write_cards(f: &mut Formatter<'_>, cards: &[CardReport]) -> Result {
    if cards.is_empty() {
        return Ok(());
    }
    writeln!(
        f,
        "\n{:<8} {:<26} {:>10} {:>15} {:>10} {:>10} {:>12} {:>12} {:>12}",
        "card", "name", "capability", "multiprocessors", "memory", "free", "reads", "to card", "to host"
    )?;
    for card in cards {
        writeln!(
            f,
            "{:<8} {:<26} {:>10} {:>15} {:>10} {:>10} {:>12} {:>12} {:>12}",
            card.device,
            card.name,
            card.capability,
            card.multiprocessors,
            Bytes(card.memory_bytes),
            Bytes(card.memory_free_bytes),
            rate(card.read_bytes_per_second),
            rate(card.to_card.map(|copy| copy.bytes_per_second)),
            rate(card.to_host.map(|copy| copy.bytes_per_second)),
        )?;
        if let Some(problem) = &card.problem {
            writeln!(f, "{:<8} {}", "", problem.reason)?;
            write_hint(f, problem, true)?;
        }
    }
    Ok(())
}

fn write_links(f: &mut Formatter<'_>, links: &[LinkReport]) -> Result {
    if links.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{:<8} {:<8} {:<18} {:>12} {:>24}", "from", "to", "way", "bandwidth", "latency")?;
    for link in links {
        let way = match link.peer_access {
            Some(true) => "peer access",
            Some(false) => "through the host",
            None => "unknown",
        };
        let bandwidth = rate(link.copy.map(|copy| copy.bytes_per_second));
        writeln!(f, "{:<8} {:<8} {way:<18} {bandwidth:>12} {:>24}", link.from, link.to, latency(link.copy))?;
        if let Some(problem) = &link.problem {
            writeln!(f, "{:<8} {}", "", problem.reason)?;
            write_hint(f, problem, true)?;
        }
    }
    Ok(())
}

fn rate(bytes_per_second: Option<f64>) -> String {
    bytes_per_second.map_or("-".into(), |rate| format!("{}/s", Bytes(rate as u64)))
}

fn latency(copy: Option<CopyReport>) -> String {
    copy.map_or("-".into(), |copy| format!("{:.1} µs for {}", copy.latency_us, Bytes(copy.latency_bytes)))
}
