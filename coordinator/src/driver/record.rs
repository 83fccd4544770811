//! What the driver counts of its groups and their steps, for metrics: where the time of steps went, what each rank did,
//! and how groups ended. It only rises, over all groups of one replica.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::durations::Durations;
use crate::group::{LossReason, RankTime};

/// Where a step's time goes, as the coordinator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The scheduler, from the step before on: it takes in what came, outcomes among it, and puts the step together.
    Schedule,
    /// It is put into words for each rank, and given to their links.
    Send,
    /// From then until the outcome is here, without the engine: links, and the step before it.
    Wait,
    /// The engine of the slowest rank, without what follows.
    Compute,
    /// The slowest rank in exchanges with others; part of `Compute` where it is not measured.
    Collective,
    /// The slowest rank chooses tokens; likewise.
    Sample,
}

impl Phase {
    pub const ALL: [Phase; 6] =
        [Phase::Schedule, Phase::Send, Phase::Wait, Phase::Compute, Phase::Collective, Phase::Sample];

    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Schedule => "schedule",
            Phase::Send => "send",
            Phase::Wait => "wait",
            Phase::Compute => "compute",
            Phase::Collective => "collective",
            Phase::Sample => "sample",
        }
    }
}

/// Of one rank, whoever it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankTotals {
    pub engine: Duration,
    /// None: never measured.
    pub collective: Option<Duration>,
    pub exchanges: u64,
    /// As it said last, in the group that serves.
    pub memory_bytes: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct Record {
    /// Of each step.
    phases: [Durations; Phase::ALL.len()],
    /// What the scheduler took since the last step was sent.
    scheduled: Duration,
    losses: [u64; LossReason::ALL.len()],
    pub ranks: Vec<RankTotals>,
    pub groups_formed: u64,
    /// Ended times without a group.
    without_group: Duration,
    /// Since when there is none.
    without_since: Option<Instant>,
}

impl Record {
    pub fn phase(&self, phase: Phase) -> &Durations {
        &self.phases[phase as usize]
    }

    fn spend(&mut self, phase: Phase, time: Duration) {
        self.phases[phase as usize].add(time);
    }

    pub fn losses(&self, reason: LossReason) -> u64 {
        self.losses[reason as usize]
    }

    /// Up to `now`.
    pub fn without_group(&self, now: Instant) -> Duration {
        self.without_group + self.without_since.map_or(Duration::ZERO, |since| now - since)
    }
}

/// Written by the driver, read by whoever is asked for metrics. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Mutex<Record>>);

impl Recorder {
    /// There is no group yet.
    pub(super) fn new(now: Instant) -> Recorder {
        let record = Record {
            phases: Default::default(),
            scheduled: Duration::ZERO,
            losses: Default::default(),
            ranks: Vec::new(),
            groups_formed: 0,
            without_group: Duration::ZERO,
            without_since: Some(now),
        };
        Recorder(Arc::new(Mutex::new(record)))
    }

    pub fn record(&self) -> Record {
        self.with(|record| record.clone())
    }

    /// The scheduler was at work.
    pub(super) fn scheduled(&self, time: Duration) {
        self.with(|record| record.scheduled += time);
    }

    /// A step was sent, which took so long.
    pub(super) fn sent(&self, time: Duration) {
        self.with(|record| {
            let scheduled = std::mem::take(&mut record.scheduled);
            record.spend(Phase::Schedule, scheduled);
            record.spend(Phase::Send, time);
        });
    }

    /// A step came back so long after it was sent; `slowest` is of the rank that took longest.
    pub(super) fn stepped(&self, after: Duration, slowest: RankTime, ranks: &[RankTime]) {
        let engine = Duration::from_micros(slowest.compute_us);
        let parts = slowest.times;
        let part = |us: Option<u64>| us.map(|us| Duration::from_micros(us).min(engine));
        let measured =
            [(Phase::Collective, part(parts.collective_us)), (Phase::Sample, part(parts.sample_us))];
        let rest = measured.iter().filter_map(|(_, time)| *time).fold(engine, Duration::saturating_sub);
        self.with(|record| {
            record.spend(Phase::Wait, after.saturating_sub(engine));
            record.spend(Phase::Compute, rest);
            for (phase, time) in measured {
                // What is not measured took no time that is known: a zero would be one.
                time.into_iter().for_each(|time| record.spend(phase, time));
            }
            record.ranks.resize(record.ranks.len().max(ranks.len()), RankTotals::default());
            record.ranks.iter_mut().zip(ranks).for_each(|(totals, rank)| totals.add(rank));
        });
    }

    pub(super) fn formed(&self, now: Instant) {
        self.with(|record| {
            record.groups_formed += 1;
            record.ranks.iter_mut().for_each(|rank| rank.memory_bytes = None);
            record.without_group = record.without_group(now);
            record.without_since = None;
        });
    }

    pub(super) fn lost(&self, now: Instant, reason: LossReason) {
        self.with(|record| {
            record.losses[reason as usize] += 1;
            record.without_since.get_or_insert(now);
        });
    }

    fn with<T>(&self, change: impl FnOnce(&mut Record) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl RankTotals {
    fn add(&mut self, rank: &RankTime) {
        self.engine += Duration::from_micros(rank.compute_us);
        self.exchanges += u64::from(rank.times.exchanges);
        self.memory_bytes = rank.memory_bytes.or(self.memory_bytes);
        if let Some(us) = rank.times.collective_us {
            *self.collective.get_or_insert_default() += Duration::from_micros(us);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::step::StepTimes;

    fn at(compute_us: u64, collective_us: Option<u64>) -> RankTime {
        let times = StepTimes { collective_us, exchanges: 3, sample_us: collective_us.map(|us| us / 2) };
        RankTime { compute_us, times, ..RankTime::default() }
    }

    #[test]
    fn the_parts_of_a_step_are_as_long_as_it_took() {
        let now = Instant::now();
        let recorder = Recorder::new(now);
        let slowest = at(700, Some(100));
        recorder.stepped(Duration::from_micros(1000), slowest, &[at(600, Some(300)), slowest]);
        let record = recorder.record();
        let us = |phase| record.phase(phase).sum().as_micros();
        assert_eq!(
            (us(Phase::Wait), us(Phase::Compute), us(Phase::Collective), us(Phase::Sample)),
            (300, 550, 100, 50)
        );
        assert_eq!(Phase::ALL.map(us).iter().sum::<u128>(), 1000);
        assert_eq!(record.ranks[0].collective, Some(Duration::from_micros(300)));
        assert_eq!(record.ranks[1].exchanges, 3);
    }

    #[test]
    fn what_is_not_measured_is_absent_and_part_of_the_whole() {
        let recorder = Recorder::new(Instant::now());
        recorder.stepped(Duration::from_micros(900), at(700, None), &[at(700, None)]);
        let record = recorder.record();
        assert_eq!(record.phase(Phase::Compute).sum().as_micros(), 700);
        let counts = [Phase::Wait, Phase::Compute, Phase::Collective, Phase::Sample];
        assert_eq!(counts.map(|phase| record.phase(phase).count()), [1, 1, 0, 0]);
        assert_eq!(record.ranks[0].collective, None);
    }

    #[test]
    fn a_step_has_all_that_the_scheduler_took_since_the_one_before() {
        let recorder = Recorder::new(Instant::now());
        let us = Duration::from_micros;
        for (scheduled, sent) in [(&[10, 20][..], 5), (&[], 6), (&[300], 7)] {
            scheduled.iter().for_each(|time| recorder.scheduled(us(*time)));
            recorder.sent(us(sent));
        }
        recorder.scheduled(us(1000));
        let record = recorder.record();
        let of = |phase| (record.phase(phase).count(), record.phase(phase).sum());
        assert_eq!((of(Phase::Schedule), of(Phase::Send)), ((3, us(330)), (3, us(18))));
    }

    #[test]
    fn what_a_rank_said_of_its_memory_is_of_its_group() {
        let recorder = Recorder::new(Instant::now());
        let said = |memory_bytes| {
            let rank = RankTime { memory_bytes, ..at(9, None) };
            recorder.stepped(Duration::from_millis(1), rank, &[rank]);
            recorder.record().ranks[0].memory_bytes
        };
        assert_eq!([Some(7), None, Some(5), None].map(said), [Some(7), Some(7), Some(5), Some(5)]);
        recorder.formed(Instant::now());
        assert_eq!(said(None), None);
    }

    #[test]
    fn time_without_a_group_goes_on_until_one_stands() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let recorder = Recorder::new(start);
        assert_eq!(recorder.record().without_group(after(3)).as_secs(), 3);
        recorder.formed(after(5));
        assert_eq!(recorder.record().without_group(after(9)).as_secs(), 5);
        recorder.lost(after(10), LossReason::WorkerLost);
        recorder.lost(after(11), LossReason::RanksDisagree);
        let record = recorder.record();
        assert_eq!(record.without_group(after(12)).as_secs(), 7);
        assert_eq!((record.losses(LossReason::WorkerLost), record.groups_formed), (1, 1));
    }
}
