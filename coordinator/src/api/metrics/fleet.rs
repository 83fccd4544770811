//! Replicas, their groups and workers: read off the drivers and the board at each scrape. Labels are numbers of replicas
//! and ranks, names of workers that were admitted, and words of fixed sets.

use std::fmt::{self, Error};

use flotilla_proto::PROTOCOL;
use flotilla_shared::Place;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::time::Instant;

use super::series::{BYTES, Labels, Named, SECONDS, Series, only};
use crate::board::{Board, Group, Member};
use crate::driver::{Phase, RankTotals, Readiness, Record, Stats};
use crate::fleet::FormFailure;
use crate::group::LossReason;
use crate::router::ReplicaRouter;
use crate::service::{Drain, Settings, Tls};
use crate::traces::Tracer;

pub struct FleetMetrics {
    board: Board,
    replicas: ReplicaRouter,
    drain: Drain,
    waiting_max: usize,
    tracer: Tracer,
    tls: Option<Tls>,
}

/// One replica as it is now.
struct Replica {
    number: usize,
    readiness: Readiness,
    stats: Stats,
    record: Record,
}

impl FleetMetrics {
    pub fn new(settings: &Settings, replicas: &ReplicaRouter) -> FleetMetrics {
        FleetMetrics {
            board: settings.board.clone(),
            replicas: replicas.clone(),
            drain: settings.drain.clone(),
            waiting_max: settings.waiting_max,
            tracer: settings.tracer.clone(),
            tls: settings.tls.clone(),
        }
    }

    fn replicas(&self) -> Vec<Replica> {
        let replica = |(number, driver): (usize, crate::driver::DriverHandle)| Replica {
            number,
            readiness: driver.readiness(),
            stats: driver.stats(),
            record: driver.record(),
        };
        self.replicas.drivers().into_iter().enumerate().map(replica).collect()
    }
}

impl Collector for FleetMetrics {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), Error> {
        let (mut series, replicas, groups) = (Series(encoder), self.replicas(), self.board.groups());
        self.server(&mut series, &replicas)?;
        self.certificates(&mut series)?;
        standing(&mut series, &replicas)?;
        steps(&mut series, &replicas)?;
        ranks(&mut series, &replicas)?;
        caches(&mut series, &replicas)?;
        self.fleet(&mut series, &replicas, &groups)?;
        workers(&mut series, &groups)?;
        memory_used(&mut series, &replicas, &groups)
    }
}

impl FleetMetrics {
    fn server(&self, series: &mut Series, replicas: &[Replica]) -> Result<(), Error> {
        let labels =
            vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("protocol", PROTOCOL.to_string())];
        series.gauge(Named("build_info", "Which build this is", None), [(labels, 1.0)])?;
        let uptime = Named("uptime", "Since the server's start", SECONDS);
        series.gauge(uptime, only(self.board.uptime_s()))?;
        let is_ready = replicas.iter().any(Replica::is_ready) && !self.drain.has_begun();
        let ready = Named("ready", "Whether /ready says so: 1, or 0", None);
        series.gauge(ready, only(f64::from(u8::from(is_ready))))?;
        let draining = Named("draining", "Whether the server is about to stop", None);
        series.gauge(draining, only(f64::from(u8::from(self.drain.has_begun()))))?;
        let limit = "Sequences that may wait in all replicas; one more gets 429, a client with a key earlier";
        let limit = Named("queue_limit", limit, None);
        let queues = replicas.iter().filter(|it| !it.is_dissolved()).count();
        let known = (self.waiting_max < usize::MAX).then_some((self.waiting_max * queues) as f64);
        series.gauge(limit, known.into_iter().flat_map(only))?;
        let told = self.tracer.told();
        let spans = Named("trace_spans", "Spans of traces, by what became of them", None);
        let spans_by = [("exported", told.exported), ("dropped", told.dropped)];
        series.counter(spans, spans_by.map(|(how, n)| (vec![("outcome", how.to_owned())], n as f64)))
    }

    /// By whom they are shown to: those who ask, and workers.
    fn certificates(&self, series: &mut Series) -> Result<(), Error> {
        let api = self.tls.as_ref().and_then(Tls::ends_at);
        let workers = self.board.figures().and_then(|figures| figures.certificate_ends_at());
        let ends = Named("certificate_end_timestamp", "When a certificate ends, in Unix time", SECONDS);
        let known = [("api", api), ("workers", workers)];
        let known = known.into_iter().filter_map(|(door, ends_at)| Some((door, ends_at?)));
        series.gauge(ends, known.map(|(door, ends_at)| (vec![("door", door.to_owned())], ends_at as f64)))
    }

    fn fleet(
        &self,
        series: &mut Series,
        replicas: &[Replica],
        groups: &[(usize, Group)],
    ) -> Result<(), Error> {
        let reforms = self.board.reforms();
        let count = Named("group_reforms", "Groups that stood again where one was lost", None);
        series.counter(count, only(reforms.count as f64))?;
        let took = Named("group_reform", "From losses until the next group stood", SECONDS);
        series.counter(took, only(reforms.seconds))?;
        let failures = Named("form_failures", "Groups that did not come to be, by why", None);
        let of = |failure: FormFailure| {
            (vec![("reason", failure.as_str().to_owned())], self.board.form_failures(failure) as f64)
        };
        series.counter(failures, FormFailure::ALL.map(of))?;
        let figures = self.board.figures();
        let sent = Named("weights_sent", "Weights that went out to workers", BYTES);
        let bytes = figures.as_ref().map_or(0, |figures| figures.weight_bytes_sent());
        series.counter(sent, only(bytes as f64))?;
        let loaded =
            Named("weights_loaded", "Weights that workers have loaded, by where they came from", BYTES);
        let of = |place: Place| {
            let bytes = figures.as_ref().map_or(0, |figures| figures.weight_bytes_loaded(place));
            (vec![("source", place.as_str().to_owned())], bytes as f64)
        };
        series.counter(loaded, Place::ALL.map(of))?;
        let waiting = figures.map_or(0, |figures| figures.workers_waiting());
        let workers = Named("workers", "Workers, by what they are doing", None);
        series.gauge(workers, workers_by_state(replicas, groups, waiting))
    }
}

/// Those of a group that was lost are on their way to the pool, or gone.
fn workers_by_state(replicas: &[Replica], groups: &[(usize, Group)], pool: usize) -> [(Labels, f64); 3] {
    let (mut serving, mut loading) = (0, 0);
    for (number, group) in groups {
        match replicas.get(*number).map(|replica| &replica.readiness) {
            Some(Readiness::Ready { epoch }) if *epoch == group.epoch => serving += group.members.len(),
            Some(Readiness::Loading { .. }) => loading += group.members.len(),
            _ => {}
        }
    }
    let state = |state: &str, count: usize| (vec![("state", state.to_owned())], count as f64);
    [state("serving", serving), state("loading", loading), state("waiting", pool)]
}

impl Replica {
    fn is_ready(&self) -> bool {
        matches!(self.readiness, Readiness::Ready { .. })
    }

    /// By order: that it does not serve is no trouble.
    fn is_dissolved(&self) -> bool {
        self.record.losses(LossReason::Dissolved) > 0
    }

    fn label(&self) -> (&'static str, String) {
        ("replica", self.number.to_string())
    }

    fn labels(&self) -> Labels {
        vec![self.label()]
    }

    fn with(&self, name: &'static str, value: &str) -> Labels {
        vec![self.label(), (name, value.to_owned())]
    }
}

fn standing(series: &mut Series, replicas: &[Replica]) -> Result<(), Error> {
    let serves = Named("replica_serving", "Whether a group serves in this replica: 1, or 0", None);
    let wanted = replicas.iter().filter(|it| !it.is_dissolved());
    series.gauge(serves, wanted.map(|it| (it.labels(), f64::from(u8::from(it.is_ready())))))?;
    let epoch = Named("epoch", "Of the group that serves", None);
    let epochs = replicas.iter().filter_map(|it| match it.readiness {
        Readiness::Ready { epoch } => Some((it.labels(), epoch.0 as f64)),
        _ => None,
    });
    series.gauge(epoch, epochs)?;
    let formed = Named("groups_formed", "Groups that came to serve", None);
    series.counter(formed, replicas.iter().map(|it| (it.labels(), it.record.groups_formed as f64)))?;
    let now = Instant::now();
    let without = Named("without_group", "Time in which no group served in this replica", SECONDS);
    let times = replicas.iter().map(|it| (it.labels(), it.record.without_group(now).as_secs_f64()));
    series.counter(without, times)?;
    let losses = Named("group_losses", "Groups that ended, by why; outgrown is no fault", None);
    let by_reason = replicas.iter().flat_map(|it| {
        LossReason::ALL.map(|reason| (it.with("reason", reason.as_str()), it.record.losses(reason) as f64))
    });
    series.counter(losses, by_reason)
}

fn steps(series: &mut Series, replicas: &[Replica]) -> Result<(), Error> {
    let phases = Named("step_phase", "Time of a step, by what it goes to; steps overlap", SECONDS);
    let by_phase = replicas
        .iter()
        .flat_map(|it| Phase::ALL.map(|phase| (it.with("phase", phase.as_str()), it.record.phase(phase))));
    series.histogram(phases, by_phase)?;
    let steps = Named("replica_steps", "Steps of this replica's groups", None);
    series.counter(steps, replicas.iter().map(|it| (it.labels(), it.stats.counters.steps as f64)))?;
    let in_flight = Named("steps_in_flight", "Steps that are sent and not answered", None);
    series.gauge(in_flight, replicas.iter().map(|it| (it.labels(), it.stats.load.steps_in_flight as f64)))
}

fn ranks(series: &mut Series, replicas: &[Replica]) -> Result<(), Error> {
    let each = |of: fn(&RankTotals) -> Option<f64>| {
        replicas.iter().flat_map(move |it| {
            let ranks = it.record.ranks.iter().enumerate();
            ranks.filter_map(move |(rank, totals)| Some((it.with("rank", &rank.to_string()), of(totals)?)))
        })
    };
    let engine = Named("rank_engine", "Time of this rank in the engine", SECONDS);
    series.counter(engine, each(|totals| Some(totals.engine.as_secs_f64())))?;
    let collective = Named(
        "rank_collective",
        "Of it, in exchanges with other ranks, waiting for them included; absent where it is not measured",
        SECONDS,
    );
    series.counter(collective, each(|totals| totals.collective.map(|time| time.as_secs_f64())))?;
    let exchanges = Named("rank_exchanges", "How many they were", None);
    series.counter(exchanges, each(|totals| totals.collective.map(|_| totals.exchanges as f64)))
}

fn caches(series: &mut Series, replicas: &[Replica]) -> Result<(), Error> {
    let sequences = Named("sequences", "Sequences, by what they do", None);
    let of = |it: &Replica| {
        let load = it.stats.load;
        [("running", load.sequences_running), ("waiting", load.sequences_waiting)]
            .map(|(state, count)| (it.with("state", state), count as f64))
    };
    series.gauge(sequences, replicas.iter().flat_map(of))?;
    let blocks = Named(
        "kv_blocks",
        "Blocks of KV cache, by pool; held by a sequence, cached for a later prompt, or empty",
        None,
    );
    let of = |it: &Replica| {
        let load = it.stats.load;
        let full = states(load.kv_blocks, load.kv_blocks_free, load.kv_blocks_cached);
        let window = states(load.window_blocks, load.window_blocks_free, load.window_blocks_cached);
        [("full", full), ("window", window)].map(|(pool, states)| {
            states.map(|(state, count)| {
                let labels = vec![it.label(), ("pool", pool.to_owned()), ("state", state.to_owned())];
                (labels, count as f64)
            })
        })
    };
    series.gauge(blocks, replicas.iter().flat_map(of).flatten())
}

/// What is cached is free as well.
fn states(all: usize, free: usize, cached: usize) -> [(&'static str, usize); 3] {
    [("held", all.saturating_sub(free)), ("cached", cached), ("empty", free.saturating_sub(cached))]
}

fn workers(series: &mut Series, groups: &[(usize, Group)]) -> Result<(), Error> {
    let members = || groups.iter().flat_map(|(replica, group)| group.members.iter().map(|it| (*replica, it)));
    let each = |of: fn(&Member) -> f64| members().map(move |(replica, it)| (labels(replica, it), of(it)));
    let info = Named("worker_info", "A worker of a group, and what it computes with", None);
    let described = members().map(|(replica, it)| {
        let device = ("device", it.inventory.device.clone());
        let backend = ("backend", if it.is_card() { "cuda" } else { "cpu" }.to_owned());
        (labels(replica, it).into_iter().chain([device, backend]).collect(), 1.0)
    });
    series.gauge(info, described)?;
    let memory = Named("worker_memory", "Memory that the plan gives a worker, by what it is for", BYTES);
    let parts = members().flat_map(|(replica, it)| {
        let parts =
            [("weights", it.weights_bytes), ("kv", it.kv_bytes), ("activations", it.activation_bytes)];
        parts.map(|(kind, bytes)| {
            (labels(replica, it).into_iter().chain([("kind", kind.to_owned())]).collect(), bytes as f64)
        })
    });
    series.gauge(memory, parts)?;
    let limit = Named("worker_memory_limit", "Memory that a worker offers", BYTES);
    series.gauge(limit, each(|it| it.inventory.memory_bytes as f64))?;
    let done = Named("worker_load_done", "Weights that a worker has, of its last load", BYTES);
    series.gauge(done, each(|it| it.loading.bytes_done() as f64))?;
    let goal = Named("worker_load_goal", "Weights that a worker is to have", BYTES);
    series.gauge(goal, each(|it| it.loading.bytes_total() as f64))
}

/// Of groups that serve: what was said in an earlier one is another's.
fn memory_used(series: &mut Series, replicas: &[Replica], groups: &[(usize, Group)]) -> Result<(), Error> {
    let used = groups.iter().flat_map(|(number, group)| {
        let serves =
            |it: &&Replica| matches!(it.readiness, Readiness::Ready { epoch } if epoch == group.epoch);
        let ranks = replicas.get(*number).filter(serves).map_or(&[][..], |it| &it.record.ranks);
        let said = group.members.iter().zip(ranks);
        said.filter_map(|(it, rank)| Some((labels(*number, it), rank.memory_bytes? as f64)))
    });
    let taken = "Memory that a worker's process takes, files left out; of a card, what all take of it";
    series.gauge(Named("worker_memory_used", taken, BYTES), used)
}

fn labels(replica: usize, member: &Member) -> Labels {
    vec![
        ("replica", replica.to_string()),
        ("rank", member.share.rank.to_string()),
        ("worker", member.inventory.name.clone()),
    ]
}

impl fmt::Debug for FleetMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetMetrics").finish_non_exhaustive()
    }
}
