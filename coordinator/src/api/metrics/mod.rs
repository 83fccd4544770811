//! What is counted, and `GET /metrics`, which tells it in OpenMetrics' text, as Prometheus reads it. Names
//! are vLLM's where the meaning is the same, with our own prefix. Without keys or prompts in labels.

mod fleet;
mod process;
mod series;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry, Unit};

use super::Api;
use super::error::ApiError;
use crate::driver::Stats;
use crate::router::ReplicaRouter;
use crate::service::Settings;
use fleet::FleetMetrics;
use process::ProcessMetrics;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// vLLM's, in seconds and in tokens.
const FIRST_TOKEN_S: [f64; 18] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0];
const BETWEEN_TOKENS_S: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.4, 0.8, 1.5, 5.0];
const REQUEST_S: [f64; 14] =
    [0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0, 1800.0];
const TOKENS: [f64; 16] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 10e3, 20e3, 50e3, 100e3];

pub struct Metrics {
    pub model_name: String,
    registry: Registry,
    first_token: Histogram,
    between_tokens: Histogram,
    request: Histogram,
    queue: Histogram,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    finished: Family<FinishedLabels, Counter>,
    answers: Family<AnswerLabels, Counter>,
    gauges: Vec<ReadGauge>,
    counters: Vec<ReadCounter>,
}

type ReadGauge = (Gauge<f64, AtomicU64>, fn(&Stats) -> f64);
type ReadCounter = (Counter, fn(&Stats) -> u64);

/// How a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)] // As they are written in the text.
pub enum Finished {
    stop,
    length,
    /// Its client left.
    abort,
    deadline,
    error,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FinishedLabels {
    finished_reason: Finished,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    /// As it is routed, so that no client makes new ones.
    handler: String,
    status: u16,
}

/// Of what a server refuses or fails. A series that begins at its first count shows Prometheus no rise, and lights no alarm:
/// these begin at 0.
const GENERATING: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/responses"];
const TROUBLE: [u16; 3] = [429, 500, 503];

/// What is read off the driver when somebody asks.
type GaugeOf = (&'static str, &'static str, fn(&Stats) -> f64);
type CounterOf = (&'static str, &'static str, fn(&Stats) -> u64);

const GAUGES: [GaugeOf; 3] = [
    ("num_requests_running", "Sequences that run", |stats| stats.load.sequences_running as f64),
    ("num_requests_waiting", "Sequences that wait", |stats| stats.load.sequences_waiting as f64),
    ("kv_cache_usage_perc", "Part of the KV blocks of full layers that is held, 0 to 1", |stats| {
        let (blocks, free) = (stats.load.kv_blocks, stats.load.kv_blocks_free);
        if blocks == 0 { 0.0 } else { (blocks - free) as f64 / blocks as f64 }
    }),
];

const COUNTERS: [CounterOf; 9] = [
    ("prompt_tokens", "Tokens of prompts", |stats| stats.counters.prompt_tokens),
    ("generation_tokens", "Tokens that were generated", |stats| stats.counters.generated_tokens),
    ("num_preemptions", "Sequences that had to start over for want of blocks", |stats| {
        stats.counters.preemptions
    }),
    ("prefix_cache_queries", "Tokens looked for in the prefix cache", |stats| {
        stats.counters.prefix_queried_tokens
    }),
    ("prefix_cache_hits", "Tokens found in the prefix cache", |stats| stats.counters.prefix_cached_tokens),
    ("spec_decode_num_draft_tokens", "Tokens that were guessed", |stats| stats.counters.drafted_tokens),
    ("spec_decode_num_accepted_tokens", "Guesses that were right", |stats| stats.counters.accepted_tokens),
    ("steps", "Steps of the group", |stats| stats.counters.steps),
    ("step_compute_microseconds", "Time of steps in the engine of the slowest rank", |stats| {
        stats.compute_us
    }),
];

impl Finished {
    const ALL: [Finished; 5] =
        [Finished::stop, Finished::length, Finished::abort, Finished::deadline, Finished::error];

    /// As in the text.
    pub fn as_str(self) -> &'static str {
        match self {
            Finished::stop => "stop",
            Finished::length => "length",
            Finished::abort => "abort",
            Finished::deadline => "deadline",
            Finished::error => "error",
        }
    }
}

impl Metrics {
    pub fn new(settings: &Settings, replicas: &ReplicaRouter) -> Metrics {
        let labels = [("model_name".into(), settings.model_name.clone().into())];
        let mut all = Registry::with_prefix_and_labels("flotilla", labels.into_iter());
        let first_token = "From a request's arrival to its first token";
        let first_token = seconds(&mut all, "time_to_first_token", first_token, &FIRST_TOKEN_S);
        let between_tokens = "Between two tokens of one sequence";
        let between_tokens = seconds(&mut all, "inter_token_latency", between_tokens, &BETWEEN_TOKENS_S);
        let request = "From a request's arrival to its end";
        let request = seconds(&mut all, "e2e_request_latency", request, &REQUEST_S);
        let queue = "From a choice's arrival in the queue to its place among those that run, or to its end without a token";
        let queue = seconds(&mut all, "request_queue_time", queue, &FIRST_TOKEN_S);
        let request_prompt_tokens =
            added(&mut all, "request_prompt_tokens", "Tokens of a request's prompts", Histogram::new(TOKENS));
        let request_generation_tokens = "Tokens that a request generated";
        let request_generation_tokens =
            added(&mut all, "request_generation_tokens", request_generation_tokens, Histogram::new(TOKENS));
        let finished = added(&mut all, "request_success", "Choices that ended, by how", ended());
        let answers = added(&mut all, "http_requests", "Answers, by handler and status", answered());
        let gauges = GAUGES.map(|(name, help, read)| (added(&mut all, name, help, Gauge::default()), read));
        let counters =
            COUNTERS.map(|(name, help, read)| (added(&mut all, name, help, Counter::default()), read));
        all.register_collector(Box::new(FleetMetrics::new(settings, replicas)));
        all.register_collector(Box::new(ProcessMetrics));
        Metrics {
            model_name: settings.model_name.clone(),
            registry: all,
            first_token,
            between_tokens,
            request,
            queue,
            request_prompt_tokens,
            request_generation_tokens,
            finished,
            answers,
            gauges: gauges.into(),
            counters: counters.into(),
        }
    }

    pub fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    pub fn next_token(&self, after: Duration) {
        self.between_tokens.observe(after.as_secs_f64());
    }

    /// A choice waited so long, be it in vain.
    pub fn queued(&self, queued: Duration) {
        self.queue.observe(queued.as_secs_f64());
    }

    /// A request that was taken in is over.
    pub fn request(&self, took: Duration, prompt_tokens: usize, generated_tokens: usize) {
        self.request.observe(took.as_secs_f64());
        self.request_prompt_tokens.observe(prompt_tokens as f64);
        self.request_generation_tokens.observe(generated_tokens as f64);
    }

    pub fn finished(&self, finished_reason: Finished) {
        self.finished.get_or_create(&FinishedLabels { finished_reason }).inc();
    }

    pub fn answered(&self, handler: &str, status: u16) {
        self.answers.get_or_create(&AnswerLabels { handler: handler.to_owned(), status }).inc();
    }

    fn text(&self, stats: &Stats) -> Result<String, std::fmt::Error> {
        for (gauge, read) in &self.gauges {
            gauge.set(read(stats));
        }
        for (counter, read) in &self.counters {
            // The driver counts, and what it counts only rises.
            counter.inner().fetch_max(read(stats), Ordering::Relaxed);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// With all series from the start.
fn ended() -> Family<FinishedLabels, Counter> {
    let family = Family::<FinishedLabels, Counter>::default();
    for finished_reason in Finished::ALL {
        drop(family.get_or_create(&FinishedLabels { finished_reason }));
    }
    family
}

/// With those from the start that alarms look at.
fn answered() -> Family<AnswerLabels, Counter> {
    let family = Family::<AnswerLabels, Counter>::default();
    for handler in GENERATING {
        for status in TROUBLE {
            drop(family.get_or_create(&AnswerLabels { handler: handler.to_owned(), status }));
        }
    }
    family
}

fn added<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn seconds(registry: &mut Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let histogram = Histogram::new(buckets.iter().copied());
    registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
    histogram
}

pub async fn tell(State(api): State<Arc<Api>>) -> Result<Response, ApiError> {
    let text = api.metrics.text(&api.stats()).map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}
