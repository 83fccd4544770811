//! Steps as spans: one in a few, of those that work for requests that are traced, with a span for each rank.

use std::collections::BTreeMap;

use flotilla_shared::{SequenceId, StepPlan};
use tokio::time::Instant;

use super::Stream;
use crate::group::RankTime;
use crate::traces::{Context, Span, Tracer};

/// Of steps in which no traced request begins, so many are passed over for one that is told of.
const STEP_EVERY: u64 = 16;

/// A step under way that will be told of.
pub struct TracedStep {
    /// Requests that it works for: those that are traced.
    requests: Vec<Context>,
    epoch: u64,
    step: u64,
    rows: usize,
    sequences: usize,
}

impl TracedStep {
    /// None: it is not to be told of.
    pub fn of(
        tracer: &Tracer,
        plan: &StepPlan,
        streams: &BTreeMap<SequenceId, Stream>,
    ) -> Option<TracedStep> {
        if !tracer.is_on() {
            return None;
        }
        let trace = |sequence: &SequenceId| streams.get(sequence).and_then(|stream| stream.trace);
        let begins = plan.admit.iter().any(|admission| trace(&admission.sequence).is_some());
        if !begins && !plan.step.0.is_multiple_of(STEP_EVERY) {
            return None;
        }
        let mut requests: Vec<Context> = Vec::new();
        for request in plan.work.iter().filter_map(|work| trace(&work.sequence)) {
            // Choices of one request are one.
            if !requests.contains(&request) {
                requests.push(request);
            }
        }
        let (rows, sequences) = (plan.token_count(), plan.work.len());
        (!requests.is_empty()).then_some(TracedStep {
            requests,
            epoch: plan.epoch.0,
            step: plan.step.0,
            rows,
            sequences,
        })
    }

    /// It is back. Its span is part of the first of the requests and linked to all. Ranks' clocks are not compared: their
    /// spans have the length that they say, and end with the step.
    pub fn tell(self, tracer: &Tracer, (sent, back): (Instant, Instant), ranks: &[RankTime]) {
        let (start, end) = (tracer.unix_ns(sent.into_std()), tracer.unix_ns(back.into_std()));
        let mut span = Span::within(self.requests[0], "step", (start, end))
            .with("flotilla.epoch", self.epoch)
            .with("flotilla.step", self.step)
            .with("flotilla.rows", self.rows)
            .with("flotilla.sequences", self.sequences);
        span.links = self.requests;
        for (rank, time) in ranks.iter().enumerate() {
            let began = end.saturating_sub(time.compute_us * 1000).max(start);
            let mut of_rank = Span::within(span.context, "compute", (began, end))
                .with("flotilla.rank", rank)
                .with("flotilla.engine_us", time.compute_us)
                .with("flotilla.exchanges", u64::from(time.times.exchanges));
            let parts = [
                ("flotilla.collective_us", time.times.collective_us),
                ("flotilla.sample_us", time.times.sample_us),
            ];
            // What was not measured is not there.
            let measured = parts.into_iter().filter_map(|(name, us)| Some((name, us?.into())));
            of_rank.attributes.extend(measured);
            tracer.tell(of_rank);
        }
        tracer.tell(span);
    }
}
