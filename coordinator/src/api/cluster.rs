//! `GET /v1/cluster`: the workers, what each holds, and how busy they are, for the page of the cluster. It
//! is read once a second; rates are made there, from the differences of totals.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{LayerKind, ModelSpec, Plan, Rank, Reach};
use serde_json::{Value, json};

use super::Api;
use crate::board::{Group, LeftOut, Member};
use crate::driver::{Readiness, Stats};
use crate::group::GroupError;
use crate::pace::Pace;

pub async fn tell(State(api): State<Arc<Api>>) -> Json<Value> {
    let readiness = api.replicas.readiness();
    let (stats, spec) = (api.stats(), api.settings.board.spec());
    let groups = api.settings.board.groups();
    let epoch = match &readiness {
        Readiness::Ready { epoch } => Some(epoch.0),
        _ => groups.iter().map(|(_, group)| group.epoch.0).max(),
    };
    let (of_each, now) = (api.replicas.each(), api.settings.board.uptime());
    let workers = spec.iter().flat_map(|spec| {
        groups.iter().flat_map(|(replica, group)| {
            let readiness = of_each.get(*replica).unwrap_or(&readiness);
            workers(spec, *replica, group, readiness, now)
        })
    });
    let workers: Vec<Value> = workers.collect();
    let left_out = groups.iter().flat_map(|(replica, group)| {
        let of = move |left_out: &LeftOut| json!({"replica": replica, "name": left_out.name, "reason": left_out.reason});
        group.left_out.iter().map(of)
    });
    let left_out: Vec<Value> = left_out.collect();
    let reforms = api.settings.board.reforms();
    Json(json!({
        "object": "cluster",
        "status": status(&readiness),
        "reason": (!matches!(readiness, Readiness::Ready { .. })).then(|| readiness.to_string()),
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": api.settings.board.uptime_s(),
        "epoch": epoch,
        "model": model(&api, spec.as_deref()),
        "replicas": of_each.iter().map(|readiness| json!({"status": status(readiness)})).collect::<Vec<_>>(),
        "reforms": {"count": reforms.count, "last_seconds": reforms.last_seconds},
        "loading": groups.iter().map(|(_, group)| loading(&group.loading, now)).collect::<Vec<_>>(),
        "workers": workers,
        "left_out": left_out,
        "kv": kv(&stats),
        "load": {
            "running": stats.load.sequences_running,
            "waiting": stats.load.sequences_waiting,
            "steps_in_flight": stats.load.steps_in_flight,
        },
        "totals": totals(&stats),
        "step": {"compute_us": stats.step_compute_us},
    }))
}

fn status(readiness: &Readiness) -> &'static str {
    match readiness {
        Readiness::Loading { .. } => "loading",
        Readiness::Ready { .. } => "ready",
        Readiness::Lost { error: GroupError::Dissolved } => "dissolved",
        Readiness::Lost { .. } => "lost",
        Readiness::Stopped => "stopped",
    }
}

/// Without a board that knows the model, its name and context.
fn model(api: &Api, spec: Option<&ModelSpec>) -> Value {
    let mut model = json!({
        "id": api.settings.model_name,
        "context_tokens": api.settings.context_tokens_max,
    });
    if let Some(spec) = spec {
        model["layers"] = spec.layer_count().into();
        model["window_layers"] = spec.layers.iter().filter(|kind| **kind == LayerKind::Window).count().into();
        model["hidden"] = spec.hidden.into();
        model["q_heads"] = spec.q_heads.into();
        model["kv_heads"] = spec.kv_heads.into();
        model["experts"] = spec.experts.into();
        model["experts_per_token"] = spec.experts_per_token.into();
        model["vocab"] = spec.vocab.into();
        model["weights_bytes"] = weights_bytes(spec).into();
    }
    model
}

/// Of one copy, however it is cut.
fn weights_bytes(spec: &ModelSpec) -> u64 {
    let plan = Plan::with_shares(spec, &[1.0]);
    plan.ranks().map(|share| plan.bytes(spec, share.rank).weights()).sum()
}

/// How far it is, and, while it is on its way, how fast it goes and how long it still takes.
fn loading(pace: &Pace, now: Duration) -> Value {
    let rate = pace.bytes_per_second(now).filter(|_| pace.bytes_done() < pace.bytes_total());
    json!({
        "bytes_done": pace.bytes_done(),
        "bytes_total": pace.bytes_total(),
        "bytes_per_second": rate,
        "seconds_left": pace.seconds_left(now),
    })
}

fn workers(
    spec: &ModelSpec,
    replica: usize,
    group: &Group,
    readiness: &Readiness,
    now: Duration,
) -> Vec<Value> {
    let state = match readiness {
        Readiness::Ready { epoch } if *epoch == group.epoch => "ready",
        Readiness::Loading { .. } => "loading",
        _ => "waiting",
    };
    let size = group.members.len();
    group.members.iter().map(|member| worker(spec, replica, member, size, state, now)).collect()
}

fn worker(
    spec: &ModelSpec,
    replica: usize,
    member: &Member,
    size: usize,
    state: &str,
    now: Duration,
) -> Value {
    let (inventory, share) = (&member.inventory, &member.share);
    json!({
        "replica": replica,
        "rank": share.rank.0,
        "name": inventory.name,
        "device": inventory.device,
        "backend": inventory.backend,
        "state": state,
        "memory_bytes": inventory.memory_bytes,
        "weights_bytes": member.weights_bytes,
        "kv_bytes": member.kv_bytes,
        "activation_bytes": member.activation_bytes,
        "loading": loading(&member.loading, now),
        "layers": ends(&member.layers),
        "kv_heads": ends(&share.kv_heads),
        "experts": ends(&share.experts.experts),
        "expert_blocks": ends(&share.experts.blocks),
        "expert_blocks_total": spec.intermediate_blocks(),
        "vocab": ends(&share.vocab),
        "links": member.reach.as_ref().map(|reach| links(share.rank, reach, size)),
    })
}

/// The ranks that a worker reaches, by how it does, and why it shares no memory where it was to.
fn links(rank: Rank, reach: &Reach, size: usize) -> Value {
    let others = (0..size as u16).map(Rank).filter(|&other| other != rank);
    let (shm, tcp): (Vec<Rank>, Vec<Rank>) = others.partition(|other| reach.by_memory.contains(other));
    json!({"shm": shm, "tcp": tcp, "not_shared": reach.not_shared})
}

/// Half-open.
fn ends(range: &Range<usize>) -> [usize; 2] {
    [range.start, range.end]
}

fn kv(stats: &Stats) -> Value {
    let load = &stats.load;
    json!({
        "block_tokens": BLOCK_TOKENS,
        "blocks": load.kv_blocks,
        "blocks_free": load.kv_blocks_free,
        "blocks_cached": load.kv_blocks_cached,
        "window_blocks": load.window_blocks,
        "window_blocks_free": load.window_blocks_free,
        "window_blocks_cached": load.window_blocks_cached,
    })
}

fn totals(stats: &Stats) -> Value {
    let counters = &stats.counters;
    json!({
        "steps": counters.steps,
        "prompt_tokens": counters.prompt_tokens,
        "generated_tokens": counters.generated_tokens,
        "cached_tokens": counters.prefix_cached_tokens,
        "preemptions": counters.preemptions,
        "drafted_tokens": counters.drafted_tokens,
        "accepted_tokens": counters.accepted_tokens,
    })
}
