//! Prompts that come from a file, and reports that go into one.

use crate::scripted::{Script, Scripted};
use crate::support::program::run;
use crate::{bench, path};
use std::fs;

/// A cache of the server would know what the warm-up had asked, and the run would be too fast.
#[tokio::test]
async fn a_warm_up_asks_the_last_prompts_of_a_file_and_who_asks_again_is_warned() {
    let server = Scripted::start(Script::quick()).await;
    let dir = tempfile::tempdir().unwrap();
    let prompts = dir.path().join("prompts.jsonl");
    let text: String = (1..=5).map(|words| format!("\"{}\"\n", "a ".repeat(words))).collect();
    fs::write(&prompts, text).unwrap();
    for (requests, asked, is_warned) in [("3", vec![6, 7, 8], false), ("4", vec![6, 7, 8, 9], true)] {
        let args = ["--prompts", path(&prompts), "--max-tokens", "1", "--clients", "1", "--warmup", "2"];
        let (ran, report) = bench(&server.url, &[&args[..], &["--requests", requests]].concat()).await;
        let found: Vec<u64> = report.requests.iter().filter_map(|row| row.prompt_tokens).collect();
        assert_eq!(found, asked);
        // A first request of one word, and the prompts of four and of five.
        assert_eq!(report.before.prompt_tokens, 6 + 9 + 10);
        let words = "warning: the file has 5 prompts, and was asked 6 times";
        assert_eq!(ran.stdout.contains(words), is_warned, "{}", ran.stdout);
    }
}

/// An hour's run was lost to a mistyped folder.
#[tokio::test]
async fn where_nothing_can_be_written_nothing_is_asked() {
    let server = Scripted::start(Script::quick()).await;
    for flag in ["--csv", "--html", "--json"] {
        let ran = run(["bench", "serve", "--url", &server.url, flag, "/nowhere/report"]).await;
        ran.expect_refusal(1, &["cannot write /nowhere/report", "hint: is the folder there"]);
    }
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn a_sweep_says_what_was_run_and_that_it_found_nothing_to_run() {
    let server = Scripted::start(Script::quick()).await;
    let args = ["--sweep", "--arrivals", "constant", "--rate", "5", "--duration", "1s", "--goal", "ttft=10s"];
    let (_, report) = bench(&server.url, &[&args[..], &["--sweep-runs", "2"]].concat()).await;
    let held = report.sweep.iter().filter(|point| point.holds).map(|point| point.rate).fold(0.0, f64::max);
    let settings = &report.settings;
    assert_eq!(settings["load"]["rate"], held, "of the report's own rate: {settings}");
    assert_eq!((&settings["sweep"]["from_rate"], &settings["sweep"]["runs_max"]), (&5.0.into(), &2.into()));
    let none = ["--rate", "0.0001", "--duration", "1s", "--sweep", "--goal", "ttft=10s"];
    let ran = run([&["bench", "serve", "--url", &server.url], &none[..]].concat()).await;
    ran.expect_refusal(
        1,
        &["no request was due within --duration", "hint: a longer one, or a higher --rate"],
    );
}
