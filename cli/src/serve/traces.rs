//! The flags of traces, with OpenTelemetry's own variables behind them.

use anyhow::{Context, Result, ensure};
use clap::Args;
use flotilla_coordinator::traces::{Target, Tracer};

const HEADING: &str = "Traces";
/// A collector's key, say; in the environment only, which is not shown to everybody.
const HEADERS_VARIABLE: &str = "OTEL_EXPORTER_OTLP_HEADERS";
/// Read only where there are traces, since other programs' settings stand in it too: with another sampler it is no part.
const RATIO_VARIABLE: &str = "OTEL_TRACES_SAMPLER_ARG";
const SERVICE_VARIABLE: &str = "OTEL_SERVICE_NAME";

#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// Collector that spans are sent to, by OTLP over HTTP, such as http://localhost:4318 [default: none are made]
    #[arg(help_heading = HEADING, long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// Part of the requests that are traced, 0 to 1, where they bring no traceparent that says so [default: OTEL_TRACES_SAMPLER_ARG, or 1]
    #[arg(help_heading = HEADING, long, value_name = "PART")]
    trace_ratio: Option<f64>,
}

impl TraceArgs {
    /// What [`open`](Self::open) would say; no span is made.
    pub fn check(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the async runtime")?;
        runtime.block_on(async { self.open().map(drop) })
    }

    /// On the current runtime.
    pub fn open(&self) -> Result<Tracer> {
        if let Some(ratio) = self.trace_ratio {
            ensure!(is_part(ratio), "--trace-ratio is {ratio}\nhint: give a part of all, from 0 to 1");
        }
        let Some(endpoint) = self.otlp_endpoint.clone().filter(|endpoint| !endpoint.is_empty()) else {
            return Ok(Tracer::default());
        };
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let service = variable(SERVICE_VARIABLE).unwrap_or_else(|| "flotilla".into());
        let headers = variable(HEADERS_VARIABLE).unwrap_or_default();
        let ratio = self.trace_ratio.or_else(|| part(&variable(RATIO_VARIABLE)?)).unwrap_or(1.0);
        Ok(Tracer::start(Target { endpoint, service, headers }, ratio)?)
    }
}

fn is_part(ratio: f64) -> bool {
    (0.0..=1.0).contains(&ratio)
}

/// Of the variable, whose mistakes do not stop a server.
fn part(text: &str) -> Option<f64> {
    let ratio = text.trim().parse::<f64>().ok().filter(|ratio| is_part(*ratio));
    if ratio.is_none() {
        tracing::warn!("{RATIO_VARIABLE} is {text:?}, expected a part of all, from 0 to 1: all are traced");
    }
    ratio
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        traces: TraceArgs,
    }

    #[test]
    fn a_variable_that_says_no_part_is_not_heeded_and_a_flag_is_refused() {
        assert_eq!(["0.25", " 1 ", "0"].map(part), [Some(0.25), Some(1.0), Some(0.0)]);
        assert_eq!(["", "1.5", "-1", "NaN", "endpoint=http://x"].map(part), [None; 5]);
        for ratio in ["1.5", "-0.1", "NaN"] {
            let flags = Flags::parse_from(["x", &format!("--trace-ratio={ratio}")]);
            assert!(flags.traces.open().is_err_and(|error| error.to_string().contains("--trace-ratio")));
        }
        assert!(Flags::try_parse_from(["x", "--trace-ratio=some"]).is_err());
    }
}
