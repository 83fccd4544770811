//! The cards, and the ways between them. A card that cannot be used is in the list with the reason.

use super::Problem;
use flotilla_engine::cuda::measure::{self, Copies};
use flotilla_engine::cuda::{Card, CudaError, card_count};
use serde::Serialize;

/// A card as it was found; `card` is nothing where it cannot be opened.
pub struct Opened {
    card: Option<Card>,
    pub report: CardReport,
}

#[derive(Debug, Default, Serialize)]
pub struct CardReport {
    /// What a worker is told: `cuda:0`.
    pub device: String,
    pub name: String,
    pub capability: String,
    pub multiprocessors: u32,
    pub memory_bytes: u64,
    pub memory_free_bytes: u64,
    pub l2_bytes: u64,
    /// Measured.
    pub read_bytes_per_second: Option<f64>,
    /// Measured, from and to pinned memory of the machine.
    pub to_card: Option<CopyReport>,
    pub to_host: Option<CopyReport>,
    pub problem: Option<Problem>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct CopyReport {
    pub bytes_per_second: f64,
    /// Of a copy of `latency_bytes`, until the host knows that it is done.
    pub latency_us: f64,
    pub latency_bytes: u64,
}

#[derive(Debug, Serialize)]
pub struct LinkReport {
    pub from: String,
    pub to: String,
    /// One card reaches the other's memory by itself; if not, copies go through the machine's memory.
    pub peer_access: Option<bool>,
    pub copy: Option<CopyReport>,
    pub problem: Option<Problem>,
}

impl From<Copies> for CopyReport {
    fn from(copies: Copies) -> CopyReport {
        CopyReport {
            bytes_per_second: copies.large.bytes_per_second(),
            latency_us: copies.small.time.as_secs_f64() * 1e6,
            latency_bytes: copies.small.bytes,
        }
    }
}

/// All cards that the driver shows: none where there is no driver.
pub fn open_all() -> Vec<Opened> {
    (0..card_count().unwrap_or(0)).map(open).collect()
}

fn open(ordinal: usize) -> Opened {
    let device = format!("cuda:{ordinal}");
    let opened = Card::open(ordinal).and_then(|card| Ok((card.memory_free_bytes()?, card)));
    match opened {
        Ok((memory_free_bytes, card)) => {
            let facts = card.facts();
            let report = CardReport {
                device,
                name: facts.name.clone(),
                capability: format!("{}.{}", facts.capability.0, facts.capability.1),
                multiprocessors: facts.multiprocessors,
                memory_bytes: facts.memory_bytes,
                memory_free_bytes,
                l2_bytes: facts.l2_bytes,
                ..CardReport::default()
            };
            Opened { card: Some(card), report }
        }
        Err(error) => {
            let problem = Some(Problem::of(&error));
            Opened { card: None, report: CardReport { device, problem, ..CardReport::default() } }
        }
    }
}

pub fn measure_all(cards: Vec<Opened>) -> Vec<Opened> {
    let measured = cards.into_iter().map(|mut opened| {
        if let Some(card) = &opened.card
            && let Err(error) = measure_card(card, &mut opened.report)
        {
            opened.report.problem = Some(Problem::of(&error));
        }
        opened
    });
    measured.collect()
}

fn measure_card(card: &Card, report: &mut CardReport) -> Result<(), CudaError> {
    let (to_card, to_host) = measure::host(card)?;
    (report.to_card, report.to_host) = (Some(to_card.into()), Some(to_host.into()));
    report.read_bytes_per_second = Some(measure::read(card)?.bytes_per_second());
    Ok(())
}

/// Every card to every other one.
pub fn measure_links(cards: &[Opened]) -> Vec<LinkReport> {
    let usable = || cards.iter().filter_map(|opened| Some((opened.card.as_ref()?, &opened.report.device)));
    let pairs = usable().flat_map(|from| usable().map(move |to| (from, to)));
    pairs
        .filter(|(from, to)| from.1 != to.1)
        .map(|((from, from_name), (to, to_name))| {
            let measured = measure::link(from, to);
            let link = measured.as_ref().ok().copied().flatten();
            LinkReport {
                from: from_name.clone(),
                to: to_name.clone(),
                peer_access: link.map(|link| link.peer_access),
                copy: link.map(|link| link.copies.into()),
                problem: measured.err().map(|error| Problem::of(&error)),
            }
        })
        .collect()
}
