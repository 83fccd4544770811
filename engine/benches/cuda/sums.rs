//! All-reduce between ranks that share a card: threads of this process, each with a stream of its own, as the
//! host collective lets them. Sums that can be recorded are, a row of them in one graph.

use crate::bench::Bench;
use crate::report::Row;
use crate::timing::{elapsed, median};
use cudarc::driver::sys;
use flotilla_engine::collective::card::{CardSettings, SumChoice, SumPath, Wire};
use flotilla_engine::collective::threads::{ThreadsCollective, group_with_deadline};
use flotilla_engine::collective::{AllReduce, CardCollective, Collective};
use flotilla_engine::cuda::{Card, CudaError, DeviceSum};
use std::thread;
use std::time::{Duration, Instant};

/// Values: 5.76 kB, a row of H = 2880, 8, 64 and 512 of them.
const LENGTHS: [usize; 5] = [1440, 2880, 2880 * 8, 2880 * 64, 2880 * 512];
const LENGTHS_QUICK: [usize; 2] = [64, 1440];
const DEADLINE: Duration = Duration::from_secs(30);

pub fn run(bench: &mut Bench) -> Result<(), CudaError> {
    let lengths = if bench.quick { &LENGTHS_QUICK[..] } else { &LENGTHS };
    let (ordinal, quick) = (bench.card.facts().ordinal, bench.quick);
    for ranks in [2, 4] {
        for path in [SumPath::Shared, SumPath::Host, SumPath::Staged, SumPath::Nccl] {
            let links = group_with_deadline(ranks, DEADLINE);
            let found = thread::scope(|scope| {
                let start = |link| scope.spawn(move || rank(ordinal, link, path, lengths, quick));
                let threads: Vec<_> = links.into_iter().map(start).collect();
                threads.into_iter().map(|thread| thread.join().expect("a rank ends")).collect::<Vec<_>>()
            });
            match found.into_iter().collect::<Result<Vec<_>, String>>() {
                Ok(found) => found[0].iter().zip(lengths).for_each(|(seconds, n)| {
                    bench.report.push(Row {
                        family: "sum",
                        what: format!("{path} {:.2} kB", (n * 4) as f64 / 1e3),
                        model: "any".into(),
                        ranks,
                        rows: (n / 2880).max(1),
                        microseconds: seconds * 1e6,
                        note: if path == SumPath::Staged { "by the host's clock" } else { "in a graph" }
                            .into(),
                        ..Row::default()
                    });
                }),
                // NCCL takes several ranks on a card only from 2.30 on, and only if it is told to.
                Err(reason) if path == SumPath::Nccl => eprintln!("no sums by NCCL here: {reason}"),
                Err(reason) => bench.report.failed(&format!("sum {path}"), reason),
            }
        }
    }
    Ok(())
}

/// Seconds of one sum, by length.
fn rank(
    ordinal: usize,
    link: ThreadsCollective,
    path: SumPath,
    lengths: &[usize],
    quick: bool,
) -> Result<Vec<f64>, String> {
    let text = |error: CudaError| error.to_string();
    let card = Card::open(ordinal).map_err(text)?;
    let elements_max = *lengths.iter().max().expect("there are lengths");
    let settings = CardSettings {
        choice: SumChoice::Only(path),
        wire: Wire::F32,
        elements_max,
        deadline: DEADLINE,
        latency_runs: 0,
    };
    let mut group = CardCollective::form(&card, link, &settings).map_err(|error| error.to_string())?;
    let mut y =
        DeviceSum { stream: card.stream().clone(), values: card.zeros(elements_max).map_err(text)?, len: 0 };
    let mut times = Vec::new();
    for &n in lengths {
        y.len = n;
        times.push(time(&card, &mut group, &mut y, quick)?);
    }
    Ok(times)
}

fn time(
    card: &Card,
    group: &mut CardCollective<ThreadsCollective>,
    y: &mut DeviceSum,
    quick: bool,
) -> Result<f64, String> {
    let (sums, replays) = if quick { (2, 2) } else { (50, 21) };
    let said = |error: CudaError| error.to_string();
    let failed = |error: flotilla_engine::collective::CollectiveError| error.to_string();
    let settle = |group: &mut CardCollective<ThreadsCollective>| AllReduce::<DeviceSum>::settle(group);
    if !group.capturable() {
        let mut times = Vec::new();
        for _ in 0..=replays {
            group.barrier().map_err(failed)?;
            let start = Instant::now();
            (0..sums).try_for_each(|_| group.all_reduce(y)).map_err(failed)?;
            settle(group).map_err(failed)?;
            times.push(start.elapsed().as_secs_f64() / f64::from(sums));
        }
        return Ok(median(times.split_off(1)));
    }
    let stream = card.stream();
    const MODE: sys::CUstreamCaptureMode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(MODE).map_err(CudaError::doing("begin to record sums")).map_err(said)?;
    let recorded = (0..sums).try_for_each(|_| group.all_reduce(y));
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
    recorded.map_err(failed)?;
    let graph = graph.map_err(CudaError::doing("record sums")).map_err(said)?.expect("it has sums in it");
    let mut times = Vec::new();
    for _ in 0..=replays {
        // Together, so that no rank's time holds the start of another.
        group.barrier().map_err(failed)?;
        let seconds =
            elapsed(card, || graph.launch().map_err(CudaError::doing("replay sums"))).map_err(said)?;
        settle(group).map_err(failed)?;
        times.push(seconds / f64::from(sums));
    }
    Ok(median(times.split_off(1)))
}
