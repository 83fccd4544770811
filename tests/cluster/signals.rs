//! How a cluster ends: by order, by Ctrl-C in a terminal, by force.

use crate::support::checkpoint::endless;
use crate::support::client::{COMPLETIONS, Client, greedy, greedy_text};
use crate::support::program::PATIENCE;
use crate::support::server::{Coordinator, TOKEN, Up, expect_gone, is_alive, send_signal};
use std::time::Duration;

#[tokio::test]
async fn sigterm_ends_up_and_its_workers() {
    let model = endless().await;
    let mut up = Up::start(model.path(), &["--workers", "3"]).await;
    assert!(up.workers.len() == 3 && up.workers.iter().all(|id| is_alive(*id)), "{:?}", up.workers);
    send_signal("TERM", up.process.id().into());
    assert_eq!(up.process.ended().await.code(), Some(0), "{}", up.process.said());
    expect_gone(&up.workers).await;
}

/// A terminal sends Ctrl-C to every process of the group; the answer under way is finished all the same.
#[tokio::test]
async fn ctrl_c_finishes_the_answers_under_way() {
    let model = endless().await;
    let mut up = Up::start(model.path(), &[]).await;
    let client = Client::new(&up.url);
    let undisturbed = greedy_text(&client, "Once upon a time", 500).await;
    let mut stream = client.stream(COMPLETIONS, greedy("Once upon a time", 500)).await;
    let mut text = stream.text_of(20).await;
    send_signal("INT", -i64::from(up.process.id()));
    let rest = stream.rest().await;
    text.push_str(&rest.text);
    assert_eq!((rest.error, rest.finish_reason.as_deref()), (None, Some("length")));
    assert_eq!(text, undisturbed);
    assert_eq!(up.process.ended().await.code(), Some(0), "{}", up.process.said());
    expect_gone(&up.workers).await;
}

/// Nobody is left to end the workers, so they must end by themselves.
#[tokio::test]
async fn workers_end_when_up_is_killed() {
    let model = endless().await;
    let mut up = Up::start(model.path(), &[]).await;
    up.process.kill().await;
    expect_gone(&up.workers).await;
}

/// Those that are not to wait for another one.
#[tokio::test]
async fn workers_end_with_their_coordinator_if_they_are_told() {
    let model = endless().await;
    let mut coordinator = Coordinator::start(model.path(), 2, &[]).await;
    let mut workers = ["a", "b"].map(|name| coordinator.worker_with(name, TOKEN, &["--rejoin-timeout", "0"]));
    Client::new(&coordinator.url).health(200).await;
    send_signal("TERM", coordinator.process.id().into());
    let ended = tokio::time::timeout(Duration::from_secs(20), coordinator.process.ended()).await;
    assert_eq!(ended.expect("nothing is under way").code(), Some(0), "{}", coordinator.process.said());
    for worker in &mut workers {
        worker.ended().await;
        assert!(!worker.said().contains("panicked"), "{}", worker.said());
    }
}

/// As process 1 of a container, which no signal ends by itself: here while a server says nothing of its model.
#[tokio::test]
async fn the_first_process_of_a_container_ends_when_it_is_told_to() {
    let container = ["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--"];
    let can = std::process::Command::new("unshare").args(container).arg("true").status();
    if !can.is_ok_and(|status| status.success()) {
        eprintln!("not run: this system lets nobody make a namespace of processes");
        return;
    }
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let model = format!("http://{}/model", silent.local_addr().unwrap());
    let program = [env!("CARGO_BIN_EXE_flotilla"), "coordinator", "--model", &model];
    let mut outer = tokio::process::Command::new("unshare");
    outer.args(container).args(program).env("FLOTILLA_JOIN_TOKEN", TOKEN).kill_on_drop(true);
    let mut outer = outer.spawn().unwrap();
    let asks = tokio::time::timeout(PATIENCE, silent.accept()).await;
    let _connection = asks.expect("it asks for its model").unwrap();
    let id = outer.id().expect("it runs");
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    send_signal("TERM", children.trim().parse().expect("it has one child"));
    let ended = tokio::time::timeout(PATIENCE, outer.wait()).await;
    assert_eq!(ended.expect("it ends").unwrap().code(), Some(143));
}
