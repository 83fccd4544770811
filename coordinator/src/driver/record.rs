//! What the driver counts of its groups and their steps, for metrics: where the time of steps went, what each rank did,
//! and how groups ended. It only rises, over all groups of one replica.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::group::{LossReason, RankTime};

/// Where a step's time goes, as the coordinator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The scheduler puts it together, and takes its outcome in.
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
}

#[derive(Clone, Debug)]
pub struct Record {
    phases: [Duration; Phase::ALL.len()],
    losses: [u64; LossReason::ALL.len()],
    pub ranks: Vec<RankTotals>,
    pub groups_formed: u64,
    /// Ended times without a group.
    without_group: Duration,
    /// Since when there is none.
    without_since: Option<Instant>,
}

impl Record {
    pub fn phase(&self, phase: Phase) -> Duration {
        self.phases[phase as usize]
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

    pub(super) fn spent(&self, phase: Phase, time: Duration) {
        self.with(|record| record.phases[phase as usize] += time);
    }

    /// A step came back so long after it was sent; `slowest` is of the rank that took longest.
    pub(super) fn stepped(&self, after: Duration, slowest: RankTime, ranks: &[RankTime]) {
        let engine = Duration::from_micros(slowest.compute_us);
        let parts = slowest.times;
        let part = |us: Option<u64>| Duration::from_micros(us.unwrap_or(0)).min(engine);
        let (collective, sample) = (part(parts.collective_us), part(parts.sample_us));
        self.with(|record| {
            let mut spend = |phase: Phase, time| record.phases[phase as usize] += time;
            spend(Phase::Wait, after.saturating_sub(engine));
            spend(Phase::Compute, engine.saturating_sub(collective + sample));
            spend(Phase::Collective, collective);
            spend(Phase::Sample, sample);
            record.ranks.resize(record.ranks.len().max(ranks.len()), RankTotals::default());
            record.ranks.iter_mut().zip(ranks).for_each(|(totals, rank)| totals.add(rank));
        });
    }

    pub(super) fn formed(&self, now: Instant) {
        self.with(|record| {
            record.groups_formed += 1;
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
        RankTime { compute_us, times }
    }

    #[test]
    fn the_parts_of_a_step_are_as_long_as_it_took() {
        let now = Instant::now();
        let recorder = Recorder::new(now);
        let slowest = at(700, Some(100));
        recorder.stepped(Duration::from_micros(1000), slowest, &[at(600, Some(300)), slowest]);
        let record = recorder.record();
        let us = |phase| record.phase(phase).as_micros();
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
        assert_eq!(record.phase(Phase::Compute).as_micros(), 700);
        assert_eq!(record.ranks[0].collective, None);
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
