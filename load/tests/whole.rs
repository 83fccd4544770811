//! Runs that ask for whole answers, and runs of the Responses API, against a scripted server.

mod support;

use flotilla_load::goal::Goal;
use flotilla_load::prompt::Prompts;
use flotilla_load::report::{Report, csv, html};
use flotilla_load::run::{Load, Run, probe};
use flotilla_load::stats::{Errors, Summary};
use flotilla_load::stream::Endpoint;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use support::scripted::{Act, Script, Scripted};
use support::{plan, prompts, requests, run_all, target};

const ENDPOINTS: [Endpoint; 3] = [Endpoint::Chat, Endpoint::Completions, Endpoint::Responses];

async fn run_with(script: Script, endpoint: Endpoint, whole: bool, count: usize) -> Run {
    let server = Scripted::start(script).await;
    let mut target = target(&server.url);
    (target.endpoint, target.whole) = (endpoint, whole);
    target.timeout = Duration::from_secs(2);
    run_all(plan(target, prompts(20, 6), Load::Closed { clients: 2 }, requests(count))).await
}

/// The server's last token comes 100 ms after its first, and a body not before it.
#[tokio::test]
async fn whole_answers_have_an_end_and_tokens_and_no_first_token() {
    for endpoint in ENDPOINTS {
        let script = Script { itl: Duration::from_millis(20), ..Script::quick() };
        let run = run_with(script, endpoint, true, 8).await;
        let summary = Summary::of(&run, Some(&"e2e=10s".parse::<Goal>().unwrap()));
        assert_eq!((summary.done, summary.completion_tokens), (8, 8 * 6), "{endpoint:?}: {summary:?}");
        assert!(summary.e2e.count == 8 && summary.e2e.min_ms >= 100.0, "{endpoint:?}: {:?}", summary.e2e);
        assert!(summary.tokens_per_s > 0.0 && summary.violations.is_empty(), "{endpoint:?}: {summary:?}");
        let report = Report::of(&run, None, &[]);
        assert_eq!(report.timeline.tokens.iter().sum::<f64>(), 48.0);
        let told: Value = serde_json::to_value(&report).unwrap();
        for name in ["ttft", "itl", "gaps"] {
            assert_eq!(told["summary"].get(name), None, "{endpoint:?}");
        }
        assert_eq!(
            (&told["requests"][0]["ttft_ms"], &told["requests"][0]["itl_ms"]),
            (&Value::Null, &Value::Null)
        );
        let text = report.to_string();
        assert!(text.contains("to the end") && text.contains("tokens/s"), "{text}");
        assert!(!text.contains("first token") && !text.contains("between"), "{text}");
        assert!(
            !html(&report).contains("first token") && csv(&report).lines().nth(1).unwrap().contains(",,,,")
        );
        let again: Report = serde_json::from_value(told).unwrap();
        assert_eq!((again.summary.ttft.count, again.summary.e2e.count), (0, 8));
    }
}

#[tokio::test]
async fn a_response_is_timed_as_other_streams_are() {
    let script =
        Script { ttft: Duration::from_millis(30), itl: Duration::from_millis(20), ..Script::quick() };
    let run = run_with(script, Endpoint::Responses, false, 8).await;
    let summary = Summary::of(&run, None);
    assert_eq!((summary.done, summary.completion_tokens), (8, 8 * 6), "{summary:?}");
    assert_eq!((summary.errors.len(), summary.violations.len()), (0, 0), "{summary:?}");
    assert_eq!(summary.finish_reasons, BTreeMap::from([("max_output_tokens".into(), 8)]));
    assert!(summary.ttft.min_ms >= 30.0 && summary.e2e.min_ms >= 130.0, "{summary:?}");
    assert!(run.records.iter().all(|record| record.pieces_us.len() == 6));
}

#[tokio::test]
async fn errors_of_whole_answers_and_of_responses_are_told_by_their_kind() {
    let acts =
        [Act::Refuse(429), Act::Cut(2), Act::End(2), Act::Error(2), Act::Page, Act::Hang(1), Act::Answer];
    let script =
        || Script { act: Arc::new(move |number| acts[number as usize % acts.len()]), ..Script::quick() };
    let counts = |run: &Run| {
        let count = |(kind, errors): (&String, &Errors)| (kind.clone(), errors.count);
        Summary::of(run, None).errors.iter().map(count).collect::<BTreeMap<_, _>>()
    };
    let expect = |expected: &[(&str, u64)]| {
        expected.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect::<BTreeMap<_, _>>()
    };
    let whole = [("error_in_answer", 1), ("no_answer", 2), ("status_429", 1), ("timeout", 1)];
    for endpoint in ENDPOINTS {
        let run = run_with(script(), endpoint, true, acts.len()).await;
        // A connection that breaks before the head of an answer is none that held.
        assert_eq!(counts(&run), expect(&[&[("connect", 1)], &whole[..]].concat()), "{endpoint:?}");
    }
    let run = run_with(script(), Endpoint::Responses, false, acts.len()).await;
    let expected = [
        ("cut", 1),
        ("error_in_stream", 1),
        ("no_stream", 1),
        ("status_429", 1),
        ("timeout", 1),
        ("unfinished", 1),
    ];
    assert_eq!(counts(&run), expect(&expected));
}

#[tokio::test]
async fn conversations_and_lengths_go_the_same_ways() {
    for (endpoint, whole) in
        [(Endpoint::Responses, false), (Endpoint::Responses, true), (Endpoint::Chat, true)]
    {
        let server = Scripted::start(Script::quick()).await;
        let (mut target, mut prompts) = (target(&server.url), prompts(64, 3));
        (target.endpoint, target.whole) = (endpoint, whole);
        let Prompts::Synthetic(synthetic) = &mut prompts else { panic!("they are synthetic") };
        synthetic.turns = 2;
        let found = probe(&mut target, &mut prompts).await.unwrap();
        assert_eq!((found.requests, found.prompt_tokens), (2, 32 + 96 + 10));
        let run = run_all(plan(target, prompts, Load::Closed { clients: 1 }, requests(1))).await;
        let asked: Vec<_> = run.records.iter().map(|record| record.prompt_tokens).collect();
        // The first prompt's 64 tokens, the answer's 3, and a second prompt without the 5 of a template.
        assert_eq!(asked, [Some(64), Some(64 + 3 + 59)], "{endpoint:?}");
    }
}
