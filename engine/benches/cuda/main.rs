//! What a card makes of the kernels: each family at the shapes of gpt-oss-20b and -120b, for one rank and for
//! one of four, whole steps, and sums over ranks. Every figure stands beside the rates at which the same card,
//! in the same run, reads its memory and multiplies bf16 matrices.
//!
//!   cargo bench -p flotilla-engine --bench cuda -- [--device N] [--json FILE] [--quick] [--only FAMILY,..]
//!       [--model 20b|120b] [--layers N]
//!
//! `--quick` runs tiny shapes, to show that everything runs, on the emulated card too; its figures say nothing.
//! Without a driver there is nothing to measure, and that is no error. Inputs are random, and rotate over more
//! sets than the card's cache holds. Times are medians, by the card's clock; those of steps by the host's.

mod attention;
mod bench;
mod cublas;
mod data;
mod dense;
mod experts;
mod report;
mod shapes;
mod small;
mod steps;
mod sums;
mod targets;
mod timing;

use bench::Bench;
use flotilla_engine::cuda::{Card, CudaError, Library, Opened, measure};
use report::{Ceilings, Report};
use std::path::PathBuf;
use std::process::ExitCode;
use timing::Clock;

type Family = (&'static str, fn(&mut Bench) -> Result<(), CudaError>);

/// In this order: what the targets are about comes first, should time run out.
const FAMILIES: [Family; 8] = [
    ("experts", experts::run),
    ("sum", sums::run),
    ("step", steps::run),
    ("attention", attention::run),
    ("dense", dense::run),
    ("norm", small::norms),
    ("route", small::router),
    ("sample", small::sampling),
];

#[derive(Debug, Default)]
struct Args {
    device: usize,
    json: Option<PathBuf>,
    quick: bool,
    only: Vec<String>,
    model: Option<String>,
    layers: Option<usize>,
}

impl Args {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
        let mut args = Args::default();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            let number = |text: String| text.parse().map_err(|_| format!("{word}: {text:?} is not a number"));
            match word.as_str() {
                "--bench" => {} // cargo says it
                "--device" => args.device = number(value()?)?,
                "--json" => args.json = Some(value()?.into()),
                "--quick" => args.quick = true,
                "--only" => args.only = value()?.split(',').map(String::from).collect(),
                "--model" => args.model = Some(value()?),
                "--layers" => args.layers = Some(number(value()?)?.max(1)),
                _ => return Err(format!("unknown argument {word:?}")),
            }
        }
        let unknown = |only: &&String| FAMILIES.iter().all(|(family, _)| family != *only);
        match args.only.iter().find(unknown) {
            Some(family) => Err(format!("there is no family {family:?}")),
            None => Ok(args),
        }
    }
}

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(reason) => {
            eprintln!("error: {reason}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(reason) = Opened::open(Library::Driver) {
        println!("nothing is measured: {reason}");
        return ExitCode::SUCCESS;
    }
    match run(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything could be measured.
fn run(args: Args) -> Result<bool, CudaError> {
    let card = Card::open(args.device)?;
    let clock = Clock::new(args.quick);
    let read_bytes_per_second = measure::read(&card)?.bytes_per_second();
    let matrix = cublas::rate(&card, &clock);
    let matrix_flops_per_second = matrix.inspect_err(|error| eprintln!("no matrix rate: {error}")).ok();
    let ceilings = Ceilings { read_bytes_per_second, matrix_flops_per_second };
    let facts = card.facts();
    let (major, minor) = facts.capability;
    let name = format!("{}, sm_{major}{minor}, {} multiprocessors", facts.name, facts.multiprocessors);
    let report = Report::new(name, args.quick, ceilings, args.json);
    let model_name = args.model.unwrap_or("20b".into());
    let mut bench = Bench { card, clock, quick: args.quick, layers: args.layers, model_name, report };
    for (family, measure) in FAMILIES {
        if args.only.is_empty() || args.only.iter().any(|only| only == family) {
            if let Err(error) = measure(&mut bench) {
                bench.report.failed(family, error.to_string());
            }
            bench.report.save();
        }
    }
    bench.report.print();
    Ok(bench.report.failures.is_empty())
}
