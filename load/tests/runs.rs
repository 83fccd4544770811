//! Whole runs against a scripted server.

mod support;

use flotilla_load::chance::Chance;
use flotilla_load::client::Clock;
use flotilla_load::goal::Goal;
use flotilla_load::lengths::Lengths;
use flotilla_load::prompt::{Prompts, read_prompts};
use flotilla_load::record::{ErrorKind, Outcome};
use flotilla_load::report::{Report, csv, html};
use flotilla_load::run::{Live, Load, Plan, probe, run};
use flotilla_load::schedule::{Arrivals, Limit};
use flotilla_load::stats::Summary;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use support::scripted::{Act, Script, Scripted};
use support::{plan, prompts, requests, run_all, target};
use tokio::sync::watch;

#[tokio::test]
async fn a_closed_loop_asks_as_often_as_it_was_told_and_counts_what_came() {
    let server = Scripted::start(Script::quick()).await;
    let plan = plan(target(&server.url), prompts(20, 7), Load::Closed { clients: 3 }, requests(25));
    let run = run_all(plan).await;
    let summary = Summary::of(&run, None);
    assert_eq!((summary.requests, summary.done, server.asked()), (25, 25, 25));
    assert_eq!(summary.completion_tokens, 25 * 7);
    assert_eq!(summary.finish_reasons, BTreeMap::from([("length".into(), 25)]));
    assert_eq!((summary.errors.len(), summary.violations.len()), (0, 0), "{summary:?}");
}

/// A server that says nothing for a second delays all that was due meanwhile. Who waits with the next request until the
/// server has answered would see one slow request, and a p90 without a trace of it.
#[tokio::test]
async fn a_stall_is_seen_in_every_request_that_was_due_meanwhile() {
    let server =
        Scripted::start(Script { stall: Some((40, Duration::from_secs(1))), ..Script::quick() }).await;
    let limit = Limit { requests: Some(125), duration: None };
    let load = Load::Open(Arrivals::Constant { rate: 50.0 });
    let run = run_all(plan(target(&server.url), prompts(10, 2), load, limit)).await;
    let summary = Summary::of(&run, None);
    assert_eq!((summary.requests, summary.done), (125, 125));
    // 50 were due in the stall, and waited for its end: a second, or less by 20 ms each.
    let waited =
        |us: u64| run.records.iter().filter(|record| record.ttft_us().is_some_and(|ttft| ttft > us)).count();
    assert!(waited(100_000) >= 44 && waited(500_000) >= 24, "{:?}", summary.ttft);
    assert!(summary.ttft.p90_ms > 700.0 && summary.ttft.p99_ms > 950.0, "{:?}", summary.ttft);
}

#[tokio::test]
async fn errors_are_told_by_their_kind() {
    let acts = [
        Act::Refuse(429),
        Act::Refuse(503),
        Act::Cut(0),
        Act::Cut(2),
        Act::End(0),
        Act::End(2),
        Act::Error(2),
        Act::Page,
        Act::Hang(1),
        Act::Garbage,
        Act::NoDone,
        Act::AfterDone,
        Act::Answer,
    ];
    let act = Arc::new(move |number: u64| acts[number as usize % acts.len()]);
    let server = Scripted::start(Script { act, ..Script::quick() }).await;
    let mut target = target(&server.url);
    target.timeout = Duration::from_secs(2);
    let run =
        run_all(plan(target, prompts(20, 5), Load::Closed { clients: 1 }, requests(2 * acts.len()))).await;
    let summary = Summary::of(&run, Some(&"ttft=10s".parse::<Goal>().unwrap()));
    let counts = |errors: &BTreeMap<String, flotilla_load::stats::Errors>| {
        errors.iter().map(|(kind, errors)| (kind.clone(), errors.count)).collect::<BTreeMap<_, _>>()
    };
    let expected = [
        ("cut", 4),
        ("error_in_stream", 2),
        ("no_stream", 4),
        ("status_429", 2),
        ("status_503", 2),
        ("timeout", 2),
        ("unfinished", 2),
    ];
    assert_eq!(counts(&summary.errors), expected.map(|(kind, count)| (kind.to_owned(), count)).into());
    assert_eq!(summary.errors["status_429"].first, "told to refuse");
    assert_eq!(summary.errors["error_in_stream"].first, "told to fail");
    let violations = counts(&summary.violations);
    for (kind, count) in [("not_json", 2), ("done_missing", 2), ("something_after_done", 2)] {
        assert_eq!(violations.get(kind), Some(&count), "{violations:?}");
    }
    // What could be read in spite of a violation is done: garbage, no end, too much, and what was right.
    assert_eq!((summary.done, summary.failed, summary.goodput.as_ref().unwrap().good), (8, 18, 8));
    let shown = Report::of(&run, None, &[]).to_string();
    // Some that failed had begun; none of their times is among those of the server.
    let begun = run.records.iter().filter(|record| !record.is_done() && !record.pieces_us.is_empty()).count();
    assert!(begun > 0 && !shown.contains("had no first token"), "{shown}");
    assert_eq!((summary.ttft.count, summary.e2e.count), (8, 8));
    assert!(shown.contains("warning: 18 of 26 requests failed (69.2 %)"), "{shown}");
}

#[tokio::test]
async fn nobody_at_the_address_is_an_error_of_connecting() {
    let run =
        run_all(plan(target("http://127.0.0.1:9"), prompts(5, 1), Load::Closed { clients: 1 }, requests(2)))
            .await;
    let kinds: Vec<_> =
        run.records.iter().filter_map(|record| record.failure()).map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [ErrorKind::Connect; 2]);
}

#[tokio::test]
async fn the_servers_count_of_tokens_is_learned_and_then_met() {
    let server = Scripted::start(Script::quick()).await;
    let (mut target, mut prompts) = (target(&server.url), prompts(64, 1));
    let found = probe(&mut target, &mut prompts).await.unwrap();
    assert_eq!((found.requests, found.prompt_tokens, found.completion_tokens), (2, 32 + 96 + 10, 2));
    let run = run_all(plan(target, prompts, Load::Closed { clients: 1 }, requests(5))).await;
    assert!(run.records.iter().all(|record| record.prompt_tokens == Some(64)), "{:?}", run.records);
    let lengths = Summary::of(&run, None).prompt_lengths.unwrap();
    assert_eq!((lengths.counted, lengths.exact, lengths.off_tokens_max), (5, 5, 0));
}

#[tokio::test]
async fn a_field_that_the_server_does_not_know_is_left_out() {
    let server = Scripted::start(Script { act: Arc::new(|_| Act::Strict), ..Script::quick() }).await;
    let (mut target, mut prompts) = (target(&server.url), prompts(64, 2));
    target.ignore_eos = true;
    let found = probe(&mut target, &mut prompts).await.unwrap();
    assert!(found.ignore_eos_refused && !target.ignore_eos && !target.continuous_usage);
    let run = run_all(plan(target, prompts, Load::Closed { clients: 1 }, requests(3))).await;
    assert!(run.records.iter().all(|record| record.is_done()), "{:?}", run.records);
}

#[tokio::test]
async fn a_conversation_goes_on_with_what_was_answered() {
    let server = Scripted::start(Script::quick()).await;
    let mut prompts = prompts(20, 3);
    let Prompts::Synthetic(synthetic) = &mut prompts else { panic!("they are synthetic") };
    synthetic.turns = 3;
    let run = run_all(plan(target(&server.url), prompts, Load::Closed { clients: 2 }, requests(4))).await;
    assert_eq!(run.records.len(), 12);
    let first: Vec<_> = run.records.iter().filter(|record| record.conversation == 0).collect();
    // 20 words and 5; then the answer's 3 words and 20 more each time.
    assert_eq!(
        first.iter().map(|record| record.prompt_tokens).collect::<Vec<_>>(),
        [Some(25), Some(48), Some(71)]
    );
    assert_eq!(first[1].due_us, first[0].ended_us);
}

#[tokio::test]
async fn what_is_ended_from_outside_tells_what_is_done() {
    let script = Script { itl: Duration::from_millis(50), ..Script::quick() };
    let server = Scripted::start(script).await;
    let (stop, stopped) = watch::channel(false);
    let plan = plan(target(&server.url), prompts(5, 1000), Load::Closed { clients: 2 }, Limit::default());
    let running = tokio::spawn(run(plan, Clock::start(), Arc::new(Live::default()), stopped));
    tokio::time::sleep(Duration::from_millis(400)).await;
    stop.send_replace(true);
    let run = tokio::time::timeout(Duration::from_secs(10), running).await.expect("it ends").unwrap();
    assert!(run.stopped && run.records.len() == 2);
    assert!(
        run.records.iter().all(|record| record.outcome == Outcome::Stopped && !record.pieces_us.is_empty())
    );
    assert_eq!(Summary::of(&run, None).stopped, 2);
}

#[tokio::test]
async fn a_report_is_read_again_and_its_page_asks_for_nothing() {
    let server = Scripted::start(Script::quick()).await;
    let run =
        run_all(plan(target(&server.url), prompts(20, 4), Load::Closed { clients: 3 }, requests(30))).await;
    let mut report = Report::of(&run, Some(&"ttft=5s,itl=1s".parse().unwrap()), &[]);
    report.settings = serde_json::json!({ "model": "<script>alert(1)</script>" });
    let again: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!((again.requests.len(), again.summary.done), (30, 30));
    assert_eq!(csv(&again).lines().count(), 31);
    let columns = |line: &str| line.split(',').count();
    assert!(csv(&again).lines().all(|line| columns(line) == 13));
    let page = html(&again);
    assert!(
        page.contains("<svg")
            && !page.contains("<script")
            && !page.contains("http://")
            && !page.contains("url(")
    );
}

/// As gpt-oss begins a message: three tokens that are counted and show nothing. They are not between pieces.
#[tokio::test]
async fn tokens_before_the_first_piece_make_no_server_look_faster() {
    let script = Script { itl: Duration::from_millis(5), hidden: 3, ..Script::quick() };
    let server = Scripted::start(script).await;
    let run =
        run_all(plan(target(&server.url), prompts(20, 8), Load::Closed { clients: 1 }, requests(2))).await;
    for record in &run.records {
        let [first, .., last] = record.pieces_us[..] else { panic!("{record:?}") };
        assert_eq!((record.pieces_us.len(), record.completion_tokens), (5, Some(8)), "{record:?}");
        assert_eq!(record.itl_us(), Some((last - first) / 4));
        assert!(record.violations.is_empty(), "{record:?}");
    }
}

/// Two runs of one command, the second from where the first ended: no cache knows its prompts.
#[tokio::test]
async fn prompts_of_a_file_go_on_where_the_run_before_ended() {
    let server = Scripted::start(Script::quick()).await;
    let text: String = (1..=5).map(|words| format!("\"{}\"\n", "a ".repeat(words))).collect();
    let asked = async |from: u64| {
        let scripts = read_prompts(&text, 1).unwrap();
        let prompts = Prompts::File { scripts, max_tokens: Lengths::Fixed(1) };
        let plan = plan(target(&server.url), prompts, Load::Closed { clients: 1 }, requests(3));
        let run = run_all(Plan { from, ..plan }).await;
        run.records.iter().map(|record| record.prompt_tokens.unwrap() - 5).collect::<Vec<_>>()
    };
    assert_eq!((asked(0).await, asked(3).await), (vec![1, 2, 3], vec![4, 5, 1]));
}

/// The same seed asks the same, whatever the order.
#[test]
fn prompts_depend_on_seed_and_number_alone() {
    let prompts = prompts(30, 5);
    let due = Default::default();
    let mut order: Vec<u64> = (0..20).collect();
    let straight: Vec<_> = order.iter().map(|number| prompts.script(9, 0, *number, &due)).collect();
    let mut chance = Chance::new(4);
    order.sort_by_key(|_| chance.bits());
    for number in order {
        assert_eq!(prompts.script(9, 0, number, &due), straight[number as usize]);
    }
    assert_ne!(prompts.script(8, 0, 0, &due), straight[0]);
    assert_ne!(straight[0], straight[1]);
}
