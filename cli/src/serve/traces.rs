//! The flags of traces, with OpenTelemetry's own variables behind them.

use anyhow::{Result, ensure};
use clap::Args;
use flotilla_coordinator::traces::{Target, Tracer};

const HEADING: &str = "Traces";
/// A collector's key, say; in the environment only, which is not shown to everybody.
const HEADERS_VARIABLE: &str = "OTEL_EXPORTER_OTLP_HEADERS";
const SERVICE_VARIABLE: &str = "OTEL_SERVICE_NAME";

#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// Collector that spans are sent to, by OTLP over HTTP, such as http://localhost:4318 [default: none are made]
    #[arg(help_heading = HEADING, long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// Part of the requests that are traced, 0 to 1, where they bring no traceparent that says so
    #[arg(help_heading = HEADING, long, value_name = "PART", env = "OTEL_TRACES_SAMPLER_ARG", default_value_t = 1.0)]
    trace_ratio: f64,
}

impl TraceArgs {
    /// On the current runtime.
    pub fn open(&self) -> Result<Tracer> {
        ensure!(
            (0.0..=1.0).contains(&self.trace_ratio),
            "--trace-ratio is {}\nhint: give a part of all, from 0 to 1",
            self.trace_ratio
        );
        let Some(endpoint) = self.otlp_endpoint.clone().filter(|endpoint| !endpoint.is_empty()) else {
            return Ok(Tracer::default());
        };
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let service = variable(SERVICE_VARIABLE).unwrap_or_else(|| "flotilla".into());
        let headers = variable(HEADERS_VARIABLE).unwrap_or_default();
        Ok(Tracer::start(Target { endpoint, service, headers }, self.trace_ratio)?)
    }
}
