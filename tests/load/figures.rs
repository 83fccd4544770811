//! Figures: what is counted is what the server counted, and reports are what they should be.

use crate::scripted::{Act, Script, Scripted};
use crate::support::program::run;
use crate::support::repository;
use crate::support::server::Up;
use crate::{bench, path};
use flotilla_load::report::Report;
use std::sync::Arc;
use std::time::Duration;

async fn demo() -> Up {
    Up::start(&repository("demo/model"), &["--workers", "1"]).await
}

/// Tokens of prompts and of answers, since the server's start.
async fn counted(url: &str) -> (u64, u64) {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().expect("a client");
    let text =
        http.get(format!("{url}/metrics")).send().await.expect("it answers").text().await.expect("a text");
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).expect("the metric is there");
        line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number") as u64
    };
    (value("flotilla_prompt_tokens_total"), value("flotilla_generation_tokens_total"))
}

async fn counts_as_the_server_does(up: &Up, args: &[&str]) -> Report {
    let before = counted(&up.url).await;
    let (_, report) = bench(&up.url, args).await;
    let after = counted(&up.url).await;
    let (summary, first) = (&report.summary, &report.before);
    assert_eq!(first.prompt_tokens + summary.prompt_tokens, after.0 - before.0, "{args:?}: {summary:#?}");
    let (told, generated) = (first.completion_tokens + summary.completion_tokens, after.1 - before.1);
    // What was sampled ahead of the arguments of a call is nobody's.
    let is_ahead = args.contains(&"--tools") && told < generated;
    assert!(told == generated || is_ahead, "{told} of {generated}: {args:?}: {summary:#?}");
    assert!(summary.errors.is_empty() && summary.violations.is_empty(), "{summary:#?}");
    assert_eq!(summary.done, summary.requests);
    report
}

#[tokio::test]
async fn tokens_are_those_of_the_servers_metrics() {
    let up = demo().await;
    let tokenizer = repository("demo/model/tokenizer.json");
    let common = ["--tokenizer", path(&tokenizer), "--ignore-eos", "--extra", r#"{"temperature": 0}"#];
    let closed =
        ["--prompt-tokens", "120..160", "--max-tokens", "8..12", "--requests", "20", "--warmup", "3"];
    let report = counts_as_the_server_does(&up, &[&common[..], &closed].concat()).await;
    let lengths = report.summary.prompt_lengths.expect("lengths were asked for");
    assert_eq!((lengths.counted, lengths.exact), (20, 20), "{:?}", report.settings);
    assert_eq!((report.summary.requests, report.before.requests), (20, 4));

    let shared = ["--prompt-tokens", "200", "--prefix-tokens", "96", "--max-tokens", "4", "--requests", "8"];
    let report = counts_as_the_server_does(&up, &[&common[..], &shared].concat()).await;
    assert_eq!(report.summary.prompt_lengths.expect("lengths").exact, 8);
    assert!(report.summary.cached_tokens > 0, "{:?}", report.summary);

    let open = ["--rate", "20", "--duration", "1s", "--max-tokens", "4", "--prompt-tokens", "150"];
    counts_as_the_server_does(&up, &[&common[..], &open].concat()).await;
    let raw = ["--endpoint", "completions", "--prompt-tokens", "50", "--max-tokens", "5", "--requests", "6"];
    let report = counts_as_the_server_does(&up, &[&common[..], &raw].concat()).await;
    assert_eq!(report.summary.completion_tokens, 30);
}

/// The Responses API, and answers that are no streams, of this server.
#[tokio::test]
async fn responses_and_whole_answers_are_counted_as_the_server_does() {
    let up = demo().await;
    let asked = ["--prompt-tokens", "120", "--max-tokens", "8", "--ignore-eos", "--requests", "6"];
    for endpoint in ["chat", "completions", "responses"] {
        let of = [&asked[..], &["--endpoint", endpoint]].concat();
        let report = counts_as_the_server_does(&up, &[&of[..], &["--no-stream"]].concat()).await;
        let summary = &report.summary;
        assert_eq!(
            (summary.completion_tokens, summary.e2e.count, summary.ttft.count),
            (48, 6, 0),
            "{endpoint}"
        );
    }
    let of = [&asked[..], &["--endpoint", "responses"]].concat();
    let report = counts_as_the_server_does(&up, &of).await;
    assert_eq!((report.summary.completion_tokens, report.summary.ttft.count), (48, 6));
    assert_eq!(report.summary.finish_reasons["max_output_tokens"], 6);
    let talk = ["--turns", "3", "--max-tokens", "12", "--requests", "4", "--endpoint", "responses"];
    for more in [&["--clients", "2"][..], &["--clients", "2", "--no-stream"]] {
        let report = counts_as_the_server_does(&up, &[&talk[..], more].concat()).await;
        assert_eq!(report.requests.iter().filter(|row| row.turn == 2).count(), 4);
    }
}

#[tokio::test]
async fn conversations_and_tools_go_through_their_turns() {
    let up = demo().await;
    let talk =
        ["--turns", "3", "--prompt-tokens", "110", "--max-tokens", "6", "--requests", "4", "--clients", "2"];
    let report = counts_as_the_server_does(&up, &talk).await;
    assert_eq!(report.requests.iter().filter(|row| row.turn == 2).count(), 4);
    let tokenizer = repository("demo/model/tokenizer.json");
    let tools =
        ["--tools", "--prompt-tokens", "250", "--max-tokens", "300", "--requests", "3", "--seed", "3"];
    let exact = ["--tokenizer", path(&tokenizer), "--clients", "1", "--extra", r#"{"temperature": 0}"#];
    let report = counts_as_the_server_does(&up, &[&tools[..], &exact].concat()).await;
    // What is offered is a part of the prompt.
    assert_eq!(report.summary.prompt_lengths.expect("lengths").exact, 3, "{:?}", report.settings);
    let calls = report.summary.finish_reasons.get("tool_calls").copied().unwrap_or(0);
    assert!(calls > 0, "{:?}", report.summary);
    // Each call is told its result; one that was cut off has none.
    let told = |report: &Report| report.requests.iter().filter(|row| row.turn == 1).count() as u64;
    assert_eq!(told(&report), calls);
    // The same prompts by another way: the same calls, and the same lengths.
    let responses = ["--endpoint", "responses"];
    let other = counts_as_the_server_does(&up, &[&tools[..], &exact, &responses].concat()).await;
    assert_eq!(told(&other), calls, "{:?}", other.summary);
    let lengths =
        |report: &Report| -> Vec<_> { report.requests.iter().map(|row| row.prompt_tokens).collect() };
    assert_eq!(lengths(&other), lengths(&report));
}

#[tokio::test]
async fn prompts_and_traces_come_from_files() {
    let server = Scripted::start(Script::quick()).await;
    let dir = tempfile::tempdir().unwrap();
    let (prompts, trace) = (dir.path().join("prompts.jsonl"), dir.path().join("trace.csv"));
    std::fs::write(&prompts, "{\"prompt\": \"one two three\", \"max_tokens\": 2}\n\"four\"\n").unwrap();
    let args = ["--prompts", path(&prompts), "--max-tokens", "5", "--requests", "4", "--clients", "1"];
    let (_, report) = bench(&server.url, &args).await;
    let asked: Vec<_> =
        report.requests.iter().map(|row| (row.prompt_tokens, row.completion_tokens)).collect();
    assert_eq!(asked, [(Some(8), Some(2)), (Some(6), Some(5)), (Some(8), Some(2)), (Some(6), Some(5))]);

    std::fs::write(&trace, "timestamp,input_length,output_length\n100,20,3\n101,30,4\n100.5,25,1\n").unwrap();
    let (_, report) = bench(&server.url, &["--trace", path(&trace), "--trace-speed", "2"]).await;
    let replayed: Vec<_> =
        report.requests.iter().map(|row| (row.due_s, row.prompt_tokens, row.completion_tokens)).collect();
    assert_eq!(replayed, [(0.0, Some(20), Some(3)), (0.25, Some(25), Some(1)), (0.5, Some(30), Some(4))]);
}

#[tokio::test]
async fn a_report_has_a_table_rows_and_a_page() {
    let act = Arc::new(|number: u64| if number % 5 == 4 { Act::Refuse(429) } else { Act::Answer });
    let server = Scripted::start(Script { act, ..Script::quick() }).await;
    let dir = tempfile::tempdir().unwrap();
    let (csv, html) = (dir.path().join("rows.csv"), dir.path().join("page.html"));
    let args = ["--requests", "30", "--goal", "ttft=10s", "--csv", path(&csv), "--html", path(&html)];
    let (ran, report) = bench(&server.url, &args).await;
    // The first two requests find out how the server counts.
    assert_eq!((report.summary.done, report.summary.errors["status_429"].count), (24, 6));
    for words in
        ["30 requests in", "24 done, 6 failed", "(80.0 %) held ttft=10000ms", "error: 6 x status_429"]
    {
        assert!(ran.stdout.contains(words), "{words:?} is not in {}", ran.stdout);
    }
    assert_eq!(std::fs::read_to_string(&csv).unwrap().lines().count(), 31);
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("<svg") && page.contains("scripted under load"));
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_a_hint() {
    let refused = [
        (
            &["--url", "http://127.0.0.1:9", "--model", "m"][..],
            "hint: is http://127.0.0.1:9 the server's address",
        ),
        (&["--clients", "2", "--rate", "3"], "cannot be used with"),
        (&["--rate", "3", "--arrivals", "ramp"], "a ramp needs --rate-to"),
        (&["--goal", "ttft=5"], "hint: 500ms"),
        (&["--sweep"], "--goal"),
        (&["--prompt-tokens", "0"], "hint: 128"),
        (&["--extra", "[]"], "no JSON object"),
        (&["--chaos", "1s:burn"], "hint: 10s:kill"),
        (&["--no-stream", "--chaos", "1s:kill"], "cannot be used with"),
        (&["--no-stream", "--goal", "ttft=1s,e2e=9s"], "hint: --goal e2e=10s"),
        (&["--tools", "--endpoint", "completions"], "--tools needs --endpoint chat or responses"),
    ];
    for (args, words) in refused {
        let more = if args.contains(&"--model") { vec![] } else { vec!["--model", "m"] };
        let ran = run([&["bench", "serve"], args, &more].concat()).await;
        assert!(ran.status != Some(0) && ran.stderr.contains(words), "{args:?}: {ran:?}");
    }
    let act = Arc::new(|number: u64| if number < 2 { Act::Answer } else { Act::Refuse(500) });
    let server = Scripted::start(Script { act, ..Script::quick() }).await;
    let ran = run(["bench", "serve", "--url", &server.url, "--requests", "3"]).await;
    ran.expect_refusal(1, &["no request was answered: status_500, told to refuse"]);
}

/// The server answers up to ten at once and refuses others, so that somewhere a level breaks.
#[tokio::test]
async fn a_sweep_finds_where_a_level_breaks() {
    let script = Script { itl: Duration::from_millis(20), busy_at: Some(10), ..Script::quick() };
    let server = Scripted::start(script).await;
    // An answer takes 400 ms: ten at once are 25 a second.
    let args = ["--sweep", "--rate", "4", "--arrivals", "constant", "--duration", "2s", "--max-tokens", "20"];
    let goal = ["--goal", "ttft=5s", "--goal-share", "0.95", "--sweep-precision", "0.2"];
    let (ran, report) = bench(&server.url, &[&args[..], &goal].concat()).await;
    let best = report.sweep.iter().filter(|point| point.holds).map(|point| point.rate).fold(0.0, f64::max);
    // A busy machine may find less, but never more.
    assert!(best > 0.0 && best <= 26.0, "{}", ran.stdout);
    assert!(ran.stdout.contains("highest rate that held"), "{}", ran.stdout);
    assert!(report.sweep.iter().any(|point| !point.holds && point.rate < best * 1.21), "{}", ran.stdout);
}

/// Prompts that the run before had asked would be in the server's cache, and every rate but the first too good.
#[tokio::test]
async fn no_run_of_a_sweep_asks_what_another_has_asked() {
    let up = demo().await;
    let args = ["--sweep", "--rate", "4", "--duration", "1s", "--sweep-runs", "3", "--goal", "e2e=60s"];
    let prompts = ["--prompt-tokens", "400", "--max-tokens", "2", "--arrivals", "constant"];
    let (_, report) = bench(&up.url, &[&args[..], &prompts].concat()).await;
    assert_eq!(report.sweep.len(), 3);
    for point in &report.sweep {
        let (cached, prompts) = (point.summary.cached_tokens, point.summary.prompt_tokens);
        assert!(point.summary.done > 2 && cached * 3 < prompts, "{cached} of {prompts} at {}", point.rate);
    }
    // Without a sweep the same seed asks the same, and a comparison says what that does.
    let dir = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|name| dir.path().join(name));
    for file in &files {
        let common = ["bench", "serve", "--url", &up.url, "--seed", "9", "--requests", "4"];
        run([&common[..], &prompts[..4], &["--json", path(file)]].concat()).await.expect_status(0);
    }
    let ran = run(["bench", "compare", path(&files[0]), path(&files[1])]).await;
    assert!(ran.expect_status(0).stdout.contains("ask one server twice with another --seed each"), "{ran:?}");
}

#[tokio::test]
async fn two_reports_are_told_apart_only_where_they_differ() {
    let slow = |ms| Script { ttft: Duration::from_millis(ms), ..Script::quick() };
    let (one, other) = (Scripted::start(slow(10)).await, Scripted::start(slow(60)).await);
    let dir = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (name, url) in [("a", &one.url), ("b", &one.url), ("c", &other.url)] {
        let file = dir.path().join(name);
        let args =
            ["bench", "serve", "--url", url, "--requests", "60", "--clients", "2", "--json", path(&file)];
        run(args).await.expect_status(0);
        files.push(file);
    }
    let compare = async |one: usize, other: usize| {
        let ran = run(["bench", "compare", path(&files[one]), path(&files[other]), "--json"]).await;
        let text = ran.expect_status(0).stdout.clone();
        let compared: serde_json::Value = serde_json::from_str(&text).unwrap();
        let line =
            compared["lines"].as_array().unwrap().iter().find(|line| line["figure"] == "ttft p50 (ms)");
        line.expect("the line is there").clone()
    };
    let slower = compare(0, 2).await;
    assert_eq!(slower["verdict"], "worse", "{slower}");
    assert_eq!(compare(2, 0).await["verdict"], "better");
    let same = compare(0, 1).await;
    let value = same["difference"]["value"].as_f64().unwrap();
    assert!(value.abs() < slower["difference"]["value"].as_f64().unwrap() / 2.0, "{same} {slower}");
    let ran = run(["bench", "compare", path(&files[0]), "/nowhere"]).await;
    ran.expect_refusal(1, &["cannot read /nowhere"]);
}

#[tokio::test]
async fn a_server_with_keys_is_asked_with_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.toml");
    let made = run(["key", "load"]).await;
    std::fs::write(&file, &made.expect_status(0).stdout).unwrap();
    let key = made.stderr.lines().last().expect("the key is told once").to_owned();
    let up = Up::start(&repository("demo/model"), &["--workers", "1", "--api-keys", path(&file)]).await;
    let model = ["--model", "flotilla-demo", "--requests", "3", "--max-tokens", "2"];
    let ran = run([&["bench", "serve", "--url", &up.url], &model[..]].concat()).await;
    ran.expect_refusal(1, &["status_401"]);
    let (ran, report) = bench(&up.url, &[&model[..], &["--api-key", &key]].concat()).await;
    assert_eq!(report.summary.done, 3);
    assert!(!ran.stdout.contains(&key) && !report.settings.to_string().contains(&key));
}
