//! A scripted server, and a run against it.
#![allow(dead_code, reason = "each test uses a part")]

pub mod scripted;

use flotilla_load::client::{Clock, Target};
use flotilla_load::lengths::Lengths;
use flotilla_load::prompt::{Prompts, Synthetic, Writer};
use flotilla_load::run::{Asking, Live, Load, Plan, Run, run};
use flotilla_load::schedule::Limit;
use flotilla_load::stream::Endpoint;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

pub fn target(url: &str) -> Target {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().expect("a client");
    Target {
        http,
        url: url.to_owned(),
        key: None,
        endpoint: Endpoint::Chat,
        whole: false,
        model: "scripted".into(),
        ignore_eos: false,
        continuous_usage: true,
        extra: Default::default(),
        timeout: Duration::from_secs(60),
    }
}

pub fn prompts(prompt_tokens: usize, max_tokens: usize) -> Prompts {
    Prompts::Synthetic(Box::new(Synthetic {
        writer: Writer::by_words(),
        prompt_tokens: Lengths::Fixed(prompt_tokens),
        max_tokens: Lengths::Fixed(max_tokens),
        prefix_tokens: 0,
        prefixes: 1,
        turns: 1,
        tools: false,
    }))
}

pub fn plan(target: Target, prompts: Prompts, load: Load, limit: Limit) -> Plan {
    let asking = Arc::new(Asking { target, prompts, think: Duration::ZERO });
    Plan { asking, load, limit, seed: 1, from: 0 }
}

pub async fn run_all(plan: Plan) -> Run {
    let (_stop, stopped) = watch::channel(false);
    run(plan, Clock::start(), Arc::new(Live::default()), stopped).await
}

pub fn requests(count: usize) -> Limit {
    Limit { requests: Some(count), duration: None }
}
