//! Workers that die: before a group stands, between answers, in the middle of one.

use crate::support::checkpoint::endless;
use crate::support::client::{COMPLETIONS, Client, greedy, greedy_text};
use crate::support::server::{Coordinator, Running, Up, children_of, expect_gone, is_alive, send_signal};
use std::time::Duration;
use tokio::time::timeout;

/// Keeps the group's number of workers up, as a supervisor would: whoever has ended is started anew.
async fn supervise(coordinator: &Coordinator, workers: &mut [Running]) {
    let mut starts = 0;
    loop {
        for worker in workers.iter_mut().filter_map(|worker| worker.has_ended().then_some(worker)) {
            starts += 1;
            *worker = coordinator.worker(&format!("again-{starts}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The stream goes on where it stood: no token lost, none twice, whatever the rank that dies.
#[tokio::test]
async fn a_worker_killed_in_mid_stream_costs_no_token() {
    kill_in_mid_stream(&[]).await;
}

/// The first stage is killed, and the last.
#[tokio::test]
async fn a_stage_killed_in_mid_stream_costs_no_token() {
    kill_in_mid_stream(&["--stages", "2"]).await;
}

async fn kill_in_mid_stream(flags: &[&str]) {
    let model = endless().await;
    let coordinator =
        Coordinator::start(model.path(), 2, &[&["--regroup-grace", "60"], flags].concat()).await;
    let mut workers = ["a", "b"].map(|name| coordinator.worker(name));
    let client = Client::new(&coordinator.url);
    assert_eq!(client.health(200).await["epoch"], 1);
    let undisturbed = greedy_text(&client, "Once upon a time", 900).await;
    for (victim, epoch) in [(1, 2), (0, 3)] {
        let mut stream = client.stream(COMPLETIONS, greedy("Once upon a time", 900)).await;
        let mut text = stream.text_of(100).await;
        workers[victim].kill().await;
        let told = client.health(503).await;
        assert_eq!(told["error"]["code"], "not_ready", "{told}");
        let rest = tokio::select! {
            rest = timeout(Duration::from_secs(60), stream.rest()) => rest.expect("the stream ends"),
            () = supervise(&coordinator, &mut workers) => unreachable!("it has no end"),
        };
        text.push_str(&rest.text);
        assert_eq!((rest.error, rest.finish_reason.as_deref()), (None, Some("length")));
        assert_eq!(text, undisturbed, "after the loss of worker {victim}");
        assert_eq!(client.health(200).await["epoch"], epoch);
    }
}

/// Nobody asks for anything: health must know all the same.
#[tokio::test]
async fn a_worker_killed_while_idle_is_noticed() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 2, &["--regroup-grace", "60"]).await;
    let mut workers = ["a", "b"].map(|name| coordinator.worker(name));
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    let expected = greedy_text(&client, "Once", 20).await;
    workers[0].kill().await;
    client.health(503).await;
    let text = async {
        client.health(200).await;
        greedy_text(&client, "Once", 20).await
    };
    tokio::select! {
        text = text => assert_eq!(text, expected),
        () = supervise(&coordinator, &mut workers) => unreachable!("it has no end"),
    }
}

/// A worker that joined and died before the group was full is not counted.
#[tokio::test]
async fn a_worker_killed_while_waiting_is_replaced() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 2, &["--regroup-grace", "60"]).await;
    let client = Client::new(&coordinator.url);
    let mut early = coordinator.worker("early");
    client.waits_for("the model is loading: 1 of 2 workers have joined").await;
    early.kill().await;
    let mut workers = ["a", "b"].map(|name| coordinator.worker(name));
    tokio::select! {
        health = client.health(200) => assert_eq!(health["status"], "ready"),
        () = supervise(&coordinator, &mut workers) => unreachable!("it has no end"),
    }
    greedy_text(&client, "Once", 20).await;
}

/// `up` is its workers' supervisor: one that is killed, or that hangs, is replaced, and the stream goes on.
#[tokio::test]
async fn up_replaces_a_worker_that_dies_or_hangs() {
    let model = endless().await;
    let up = Up::start(model.path(), &[]).await;
    let client = Client::new(&up.url);
    let undisturbed = greedy_text(&client, "Once upon a time", 600).await;
    let mut workers = up.workers.clone();
    for signal in ["KILL", "STOP"] {
        let mut stream = client.stream(COMPLETIONS, greedy("Once upon a time", 600)).await;
        let mut text = stream.text_of(100).await;
        send_signal(signal, workers[1].into());
        let rest = timeout(Duration::from_secs(60), stream.rest()).await.expect("the stream ends");
        text.push_str(&rest.text);
        assert_eq!((rest.error, rest.finish_reason.as_deref()), (None, Some("length")), "{signal}");
        assert_eq!(text, undisturbed, "{signal}");
        expect_gone(&workers[1..]).await;
        // The other goes on with its weights.
        assert!(is_alive(workers[0]), "{signal}");
        workers = children_of(up.process.id());
        assert_eq!(workers.len(), 2);
        workers.sort_unstable();
    }
}
