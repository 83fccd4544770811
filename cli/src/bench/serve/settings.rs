//! What the flags mean.

use super::args::{ArrivalsArg, EndpointArg, ServeArgs};
use crate::chat::route;
use crate::chat::server::{self, Server};
use anyhow::{Context, Result, anyhow, bail, ensure};
use flotilla_load::client::Target;
use flotilla_load::lengths::{SHAREGPT_ANSWERS, SHAREGPT_PROMPTS};
use flotilla_load::prompt::{Prompts, Synthetic, Writer, read_prompts};
use flotilla_load::run::Load;
use flotilla_load::schedule::{Arrivals, Limit, Trace};
use flotilla_load::stream::Endpoint;
use serde_json::{Value, json};
use std::env;
use std::fs;
use std::path::Path;
use std::time::Duration;

const CLIENTS: u32 = 4;
const REQUESTS: usize = 100;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub async fn target(args: &ServeArgs) -> Result<Target> {
    let of_streams = args.outcome.goal.is_some_and(|goal| goal.is_of_streams());
    ensure!(
        !(args.no_stream && of_streams),
        "--no-stream and a goal of ttft, itl or pause: a whole answer has none\nhint: --goal e2e=10s"
    );
    let url = args.url.clone();
    let http =
        route::builder(&url, args.ca.as_deref())?.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).build();
    let http = http.with_context(|| format!("cannot prepare to speak to {url}"))?;
    let own = || env::var(server::KEY_VARIABLE).ok();
    let key = server::key(args.api_key.clone().or_else(own).as_deref())?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => Server::with(http.clone(), &url, key.clone()).model().await?,
    };
    Ok(Target {
        http,
        url,
        key,
        endpoint: match args.endpoint {
            EndpointArg::Chat => Endpoint::Chat,
            EndpointArg::Completions => Endpoint::Completions,
            EndpointArg::Responses => Endpoint::Responses,
        },
        whole: args.no_stream,
        model,
        ignore_eos: args.prompts.ignore_eos,
        continuous_usage: true,
        extra: args.prompts.extra.clone().unwrap_or_default(),
        timeout: args.load.timeout,
    })
}

pub fn prompts(args: &ServeArgs) -> Result<Prompts> {
    let flags = &args.prompts;
    let has_tools = args.endpoint != EndpointArg::Completions;
    ensure!(!flags.tools || has_tools, "--tools needs --endpoint chat or responses");
    let lengths = match flags.sharegpt_lengths {
        true => (SHAREGPT_PROMPTS, SHAREGPT_ANSWERS),
        false => (flags.prompt_tokens, flags.max_tokens),
    };
    let turns = flags.turns as usize;
    if let Some(path) = &flags.prompts {
        let scripts = read_prompts(&text(path)?, turns).with_context(|| format!("in {}", path.display()))?;
        return Ok(Prompts::File { scripts, max_tokens: lengths.1 });
    }
    let writer = match &flags.tokenizer {
        Some(path) => Writer::by_tokenizer(path)?,
        None => Writer::by_words(),
    };
    Ok(Prompts::Synthetic(Box::new(Synthetic {
        writer,
        prompt_tokens: lengths.0,
        max_tokens: lengths.1,
        prefix_tokens: flags.prefix_tokens,
        prefixes: flags.prefixes as usize,
        turns,
        tools: flags.tools,
    })))
}

pub fn load(args: &ServeArgs) -> Result<Load> {
    let flags = &args.load;
    if let Some(path) = &flags.trace {
        let trace = Trace::read(&text(path)?, flags.trace_unit.as_secs_f64(), flags.trace_speed);
        return Ok(Load::Open(Arrivals::Replay(trace.with_context(|| format!("in {}", path.display()))?)));
    }
    let Some(rate) = flags.rate else {
        return Ok(Load::Closed { clients: flags.clients.unwrap_or(CLIENTS) as usize });
    };
    Ok(Load::Open(match (flags.arrivals, flags.rate_to) {
        (ArrivalsArg::Poisson, None) => Arrivals::Poisson { rate },
        (ArrivalsArg::Constant, None) => Arrivals::Constant { rate },
        (ArrivalsArg::Burst, None) => Arrivals::Burst { rate, size: flags.burst as usize },
        (ArrivalsArg::Ramp, Some(to)) => Arrivals::Ramp { from: rate, to },
        (ArrivalsArg::Ramp, None) => bail!("a ramp needs --rate-to, where it ends, and --duration"),
        (_, Some(_)) => bail!("--rate-to is for --arrivals ramp"),
    }))
}

pub fn limit(args: &ServeArgs) -> Limit {
    let flags = &args.load;
    let is_open = flags.duration.is_none() && flags.trace.is_none();
    Limit { requests: flags.requests.or(is_open.then_some(REQUESTS)), duration: flags.duration }
}

/// As the report holds them: enough to run it again.
pub fn told(args: &ServeArgs, target: &Target, prompts: &Prompts) -> Value {
    let (load, flags) = (&args.load, &args.prompts);
    let asked = match prompts {
        Prompts::File { max_tokens, .. } => {
            json!({ "file": flags.prompts, "max_tokens": max_tokens.to_string() })
        }
        Prompts::Synthetic(made) => json!({
            "prompt_tokens": made.prompt_tokens.to_string(),
            "max_tokens": made.max_tokens.to_string(),
            "tokenizer": flags.tokenizer,
            "tokens_per_word": made.writer.measure().tokens_per_word,
            "template_tokens": made.writer.measure().overhead_tokens,
            "prefix_tokens": made.prefix_tokens,
            "prefixes": made.prefixes,
            "tools": made.tools,
        }),
    };
    let how = match (&load.trace, load.rate) {
        (Some(path), _) => {
            json!({ "trace": path, "unit_s": load.trace_unit.as_secs_f64(), "speed": load.trace_speed })
        }
        (None, Some(rate)) => json!({
            "arrivals": format!("{:?}", load.arrivals).to_lowercase(),
            "rate": rate,
            "rate_to": load.rate_to,
            "burst": (load.arrivals == ArrivalsArg::Burst).then_some(load.burst),
        }),
        (None, None) => json!({ "clients": load.clients.unwrap_or(CLIENTS) }),
    };
    json!({
        "url": target.url,
        "model": target.model,
        "endpoint": target.endpoint,
        "stream": !target.whole,
        "load": how,
        "requests": limit(args).requests,
        "duration_s": load.duration.map(|duration| duration.as_secs_f64()),
        "warmup": load.warmup,
        "think_s": load.think.as_secs_f64(),
        "timeout_s": load.timeout.as_secs_f64(),
        "seed": load.seed,
        "asked": asked,
        "turns": flags.turns,
        "ignore_eos": target.ignore_eos,
        "continuous_usage": target.counts_as_it_goes(),
        "extra": target.extra,
        "goal": args.outcome.goal.map(|goal| goal.to_string()),
        "sweep": args.outcome.sweep.then(|| sweep(args)),
        "chaos": args.outcome.chaos.as_ref().map(|schedule| schedule.to_string()),
    })
}

fn sweep(args: &ServeArgs) -> Value {
    let outcome = &args.outcome;
    json!({
        "from_rate": args.load.rate,
        "goal_share": outcome.goal_share,
        "precision": outcome.sweep_precision,
        "runs_max": outcome.sweep_runs,
    })
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| anyhow!("cannot read {}: {error}", path.display()))
}
