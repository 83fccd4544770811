//! Faults on a schedule, and what clients saw of each. Who does them is told `Fault`; nothing is done here.

use crate::record::Record;
use crate::span;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT so much later.
    Stop(Duration),
    /// The worker's TCP connections are shut down.
    Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    pub at: Duration,
    pub fault: Fault,
}

/// `10s:kill,20s:stop 3s,30s:cut`, in order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule(pub Vec<Planned>);

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Schedule, String> {
        let mut all = text.split(',').map(planned).collect::<Result<Vec<_>, _>>()?;
        all.sort_by_key(|planned| planned.at);
        Ok(Schedule(all))
    }
}

fn planned(text: &str) -> Result<Planned, String> {
    let wrong =
        || format!("{text:?} is no fault\nhint: 10s:kill, 20s:stop 3s or 30s:cut, with commas between");
    let (at, fault) = text.split_once(':').ok_or_else(wrong)?;
    let fault = match fault.split_whitespace().collect::<Vec<_>>()[..] {
        ["kill"] => Fault::Kill,
        ["stop", span] => Fault::Stop(span::parse(span)?),
        ["cut"] => Fault::Cut,
        _ => return Err(wrong()),
    };
    Ok(Planned { at: span::parse(at.trim())?, fault })
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let planned = self.0.iter().map(|Planned { at, fault }| format!("{at:?}:{fault}"));
        write!(f, "{}", planned.collect::<Vec<_>>().join(","))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill => write!(f, "kill"),
            Fault::Stop(span) => write!(f, "stop {span:?}"),
            Fault::Cut => write!(f, "cut"),
        }
    }
}

/// A fault that was done, to whom and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Happened {
    pub at_us: u64,
    pub fault: String,
    pub worker: String,
}

/// What clients saw of it, until the next.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    pub at_s: f64,
    pub fault: String,
    pub worker: String,
    pub streams_in_flight: u64,
    /// Of those, without a token for a quarter of a second or more.
    pub streams_paused: u64,
    /// Of those, how many had a token again, or came to their proper end.
    #[serde(default)]
    pub streams_went_on: u64,
    pub longest_pause_s: f64,
    /// Requests in flight, or due until the next fault, that failed.
    pub errors: u64,
    /// From the fault until the last of the paused streams had a token again. None: there was none, or one never had.
    pub recovered_after_s: Option<f64>,
}

/// What counts as a pause: far more than lies between tokens, and as long as a person notices.
const PAUSE_US: u64 = 250_000;

pub fn seen(happened: &[Happened], records: &[Record]) -> Vec<Seen> {
    let ends = happened.iter().skip(1).map(|next| next.at_us).chain([u64::MAX]);
    happened.iter().zip(ends).map(|(fault, end_us)| one(fault, end_us, records)).collect()
}

fn one(fault: &Happened, end_us: u64, records: &[Record]) -> Seen {
    let at_us = fault.at_us;
    let in_flight = |record: &&Record| record.sent_us <= at_us && at_us < record.ended_us;
    let touched = |record: &&Record| in_flight(record) || (at_us..end_us).contains(&record.due_us);
    let mut seen = Seen {
        at_s: at_us as f64 / 1e6,
        fault: fault.fault.clone(),
        worker: fault.worker.clone(),
        streams_in_flight: records.iter().filter(in_flight).count() as u64,
        errors: records.iter().filter(touched).filter(|record| record.failure().is_some()).count() as u64,
        ..Seen::default()
    };
    let mut last_us = 0;
    for record in records.iter().filter(in_flight) {
        let Some((from_us, to_us)) = silence(record, at_us, end_us) else { continue };
        seen.longest_pause_s = seen.longest_pause_s.max((to_us - from_us) as f64 / 1e6);
        if to_us - from_us >= PAUSE_US {
            let went_on = record.is_done() || record.pieces_us.last().is_some_and(|last| *last >= to_us);
            seen.streams_paused += 1;
            seen.streams_went_on += u64::from(went_on);
            last_us = last_us.max(to_us - at_us);
        }
    }
    let all_went_on = seen.streams_paused > 0 && seen.streams_went_on == seen.streams_paused;
    seen.recovered_after_s = all_went_on.then_some(last_us as f64 / 1e6);
    seen
}

/// The longest time without a piece that lasts beyond `at_us` and began before `end_us`, from when the request was sent to
/// when it ended.
fn silence(record: &Record, at_us: u64, end_us: u64) -> Option<(u64, u64)> {
    let marks: Vec<u64> = [record.sent_us]
        .into_iter()
        .chain(record.pieces_us.iter().copied())
        .chain([record.ended_us])
        .collect();
    let gaps = marks.windows(2).map(|pair| (pair[0], pair[1]));
    gaps.filter(|(from, to)| *to > at_us && *from < end_us).max_by_key(|(from, to)| to - from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{ErrorKind, Outcome};

    #[test]
    fn a_schedule_is_read_in_any_order() {
        let schedule: Schedule = "20s:stop 3s,10s:kill,30s:cut".parse().unwrap();
        let faults: Vec<String> = schedule.0.iter().map(|planned| planned.fault.to_string()).collect();
        assert_eq!(faults, ["kill", "stop 3s", "cut"]);
        assert_eq!(schedule.to_string(), "10s:kill,20s:stop 3s,30s:cut");
        for wrong in ["", "kill", "10s:", "10s:stop", "10s:burn", "10:kill"] {
            assert!(wrong.parse::<Schedule>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_clients_saw_is_told_of_the_fault_that_they_lived_through() {
        let s = 1_000_000;
        let stream = |sent: u64, pieces: &[u64], ended: u64| Record {
            sent_us: sent,
            due_us: sent,
            pieces_us: pieces.to_vec(),
            ended_us: ended,
            ..Record::default()
        };
        let failed = Outcome::Failed { kind: ErrorKind::Cut, words: String::new() };
        let records = [
            // Paused over the first fault, from 9.9 s to 12.4 s.
            stream(8 * s, &[9 * s, 99 * s / 10, 124 * s / 10, 13 * s], 13 * s),
            // Over before it.
            stream(s, &[2 * s, 9 * s], 9 * s),
            Record { outcome: failed, ..stream(15 * s, &[], 16 * s) },
            // A short silence over the second.
            stream(198 * s / 10, &[199 * s / 10, 201 * s / 10], 202 * s / 10),
        ];
        let at = |at_us| Happened { at_us, fault: "kill".into(), worker: "worker-00".into() };
        let seen = seen(&[at(10 * s), at(20 * s)], &records);
        assert_eq!((seen[0].streams_in_flight, seen[0].streams_paused, seen[0].errors), (1, 1, 1));
        assert_eq!((seen[0].longest_pause_s, seen[0].recovered_after_s), (2.5, Some(2.4)));
        assert_eq!((seen[1].streams_in_flight, seen[1].streams_paused, seen[1].errors), (1, 0, 0));
        assert_eq!(seen[1].recovered_after_s, None);
    }

    #[test]
    fn a_stream_that_fails_in_its_silence_did_not_go_on() {
        let s = 1_000_000;
        let at = [Happened { at_us: 10 * s, fault: "stop 20s".into(), worker: "worker-00".into() }];
        let failed = Outcome::Failed { kind: ErrorKind::Timeout, words: String::new() };
        let late = Record { sent_us: 9 * s, pieces_us: vec![9 * s], ended_us: 12 * s, ..Record::default() };
        let goes_on = Record { pieces_us: vec![9 * s, 11 * s], ..late.clone() };
        let told = |records: &[Record]| {
            let seen = seen(&at, records).remove(0);
            (seen.streams_paused, seen.streams_went_on, seen.recovered_after_s)
        };
        let times_out = Record { outcome: failed.clone(), ..late.clone() };
        let is_stopped = Record { outcome: Outcome::Stopped, ..late.clone() };
        assert_eq!(told(&[times_out.clone(), goes_on.clone()]), (2, 1, None));
        assert_eq!(told(&[is_stopped]), (1, 0, None));
        assert_eq!(told(&[goes_on, late]), (2, 2, Some(2.0)));
        let fails_later = Record { pieces_us: vec![9 * s, 11 * s], outcome: failed, ..times_out };
        assert_eq!(told(&[fails_later]), (1, 1, Some(1.0)));
    }
}
