//! OpenTelemetry traces: what a request went through, from its arrival to the steps that computed it. Spans are made
//! when they are over, of times that were noted anyway, and go to a collector by OTLP. They hold counts, names and
//! durations, never a word of a prompt or an answer; nobody waits for them, and what finds no room is dropped and counted.
//!
//! Written here rather than with OpenTelemetry's SDK: seven crates less, the count of dropped spans is ours to tell, and
//! spans of the past need no guard to be held while they last.

mod context;
mod export;
mod otlp;
mod span;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use context::{Context, Parent, SpanId, TraceId};
pub use export::{ExportError, Target};
use export::{Exporter, Told};
pub use span::{Kind, Span, Value};

/// Hands spans to the exporter; does nothing where none is asked for. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Tracing>>);

struct Tracing {
    exporter: Exporter,
    /// Of traces that begin here.
    ratio: f64,
    clock: Clock,
}

/// One look at the system's clock; the rest is measured from there.
#[derive(Clone, Copy)]
struct Clock {
    instant: Instant,
    unix_ns: u64,
}

impl Tracer {
    /// Sends to `target` from now on, on the current runtime. A request that brings no trace of its own begins one with
    /// the probability `ratio`.
    pub fn start(target: Target, ratio: f64) -> Result<Tracer, ExportError> {
        let unix_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let clock = Clock { instant: Instant::now(), unix_ns };
        Ok(Tracer(Some(Arc::new(Tracing { exporter: Exporter::start(target)?, ratio, clock }))))
    }

    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// A span that begins, if it is to be told: as whoever sent the request decided, else by chance.
    pub fn begin(&self, parent: Option<&Parent>) -> Option<Context> {
        let tracing = self.0.as_ref()?;
        match parent {
            Some(parent) => parent.is_sampled.then(|| Context::below(parent.trace)),
            None => {
                let context = Context::new();
                context.trace.is_among(tracing.ratio).then_some(context)
            }
        }
    }

    /// It is over. Never waits.
    pub fn tell(&self, span: Span) {
        if let Some(tracing) = &self.0 {
            tracing.exporter.tell(span);
        }
    }

    /// For a span's ends.
    pub fn unix_ns(&self, at: Instant) -> u64 {
        self.0.as_ref().map_or(0, |tracing| tracing.clock.unix_ns(at))
    }

    /// Spans that a collector took, and those that were dropped.
    pub fn told(&self) -> Told {
        self.0.as_ref().map_or_else(Told::default, |tracing| tracing.exporter.told())
    }

    /// Sends what is there, if it can be sent in this time.
    pub async fn flush(&self, patience: Duration) {
        if let Some(tracing) = &self.0 {
            let _ = tokio::time::timeout(patience, tracing.exporter.flush()).await;
        }
    }
}

impl Clock {
    fn unix_ns(&self, at: Instant) -> u64 {
        let after = at.saturating_duration_since(self.instant).as_nanos() as u64;
        let before = self.instant.saturating_duration_since(at).as_nanos() as u64;
        (self.unix_ns + after).saturating_sub(before)
    }
}
