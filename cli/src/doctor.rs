//! `flotilla doctor`: what this machine has to serve with, what is missing, and how to get it. What it says
//! of cards and links is measured, not looked up. Finding no card is no error: then it serves on its CPU.

mod cards;
mod libraries;
mod machine;
mod table;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::fmt;

/// Look at this machine: processor, cards, CUDA's libraries, links between cards.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Say what there is, without measuring how fast it is
    #[arg(long)]
    no_measure: bool,
}

/// The whole of it.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    machine: machine::Machine,
    libraries: libraries::Libraries,
    cards: Vec<cards::CardReport>,
    links: Vec<cards::LinkReport>,
    /// The devices that a worker can be told to use.
    serves_on: Vec<String>,
}

/// What is wrong, and how to mend it.
#[derive(Clone, Debug, Serialize)]
struct Problem {
    reason: String,
    hint: Option<String>,
}

impl Problem {
    fn of(error: &impl fmt::Display) -> Problem {
        let text = error.to_string();
        match text.split_once("\nhint: ") {
            Some((reason, hint)) => Problem { reason: reason.into(), hint: Some(hint.into()) },
            None => Problem { reason: text, hint: None },
        }
    }
}

pub fn run(args: &DoctorArgs) -> Result<()> {
    let libraries = libraries::look();
    let cards = cards::open_all();
    let measured = if args.no_measure { cards } else { cards::measure_all(cards) };
    let links = if args.no_measure { vec![] } else { cards::measure_links(&measured) };
    let cards: Vec<cards::CardReport> = measured.into_iter().map(|card| card.report).collect();
    let usable = cards.iter().filter(|card| card.problem.is_none() && libraries.nvrtc.is_usable());
    let serves_on = std::iter::once("cpu".into()).chain(usable.map(|card| card.device.clone())).collect();
    let machine = machine::look(!args.no_measure);
    let report = Report { version: env!("CARGO_PKG_VERSION"), machine, libraries, cards, links, serves_on };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", table::Table(&report));
    }
    Ok(())
}
