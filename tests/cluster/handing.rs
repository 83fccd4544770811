//! Workers hand weights on: what a copy of the model needs leaves the coordinator once, whoever starts, and whoever dies.

use crate::support::checkpoint::endless;
use crate::support::client::{Client, greedy_text};
use crate::support::server::{Coordinator, PATIENCE, TOKEN};
use crate::tls::Certs;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const PROMPT: &str = "Once upon a time";

/// A counter of bytes, or the sum of those of which the labels have `label`.
async fn bytes(client: &Client, name: &str, label: &str) -> u64 {
    let text = client.text("/metrics").await;
    let series = text.lines().filter(|line| line.starts_with(&format!("flotilla_{name}_bytes")));
    let series = series.filter(|line| line.contains(label));
    series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

/// Bytes that left the coordinator.
pub async fn sent(client: &Client) -> u64 {
    bytes(client, "weights_sent", "").await
}

/// Bytes that workers have loaded from there.
pub async fn loaded(client: &Client, source: &str) -> u64 {
    bytes(client, "weights_loaded", &format!("source=\"{source}\"")).await
}

/// Waits until so many replicas are ready.
async fn replicas_ready(client: &Client, count: usize) {
    let ready = async {
        loop {
            let (_, cluster) = client.get("/v1/cluster").await;
            let replicas = cluster["replicas"].as_array().expect("a list");
            if replicas.iter().filter(|replica| replica["status"] == "ready").count() == count {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, ready).await.expect("they become ready");
}

#[tokio::test]
async fn two_replicas_that_start_together_take_one_copy() {
    let model = endless().await;
    // Slow enough that neither has everything when the other begins.
    let more = ["--replicas", "2", "--weight-rate", "1MB/s"];
    let coordinator = Coordinator::start(model.path(), 2, &more).await;
    let _workers = ["a", "b", "c", "d"].map(|name| coordinator.worker(name));
    let client = Client::new(&coordinator.url);
    replicas_ready(&client, 2).await;
    let copy = model.tensor_bytes();
    // What all ranks have each of two has.
    let goal = bytes(&client, "worker_load_goal", "replica=\"0\"").await;
    assert!(copy > 500_000 && goal > copy);
    assert_eq!(bytes(&client, "worker_load_goal", "replica=\"1\"").await, goal);
    assert_eq!(sent(&client).await, copy);
    assert_eq!(
        (loaded(&client, "coordinator").await, loaded(&client, "peer").await),
        (copy, 2 * goal - copy)
    );
}

#[tokio::test]
async fn a_worker_that_is_started_again_loads_from_another_replica() {
    let model = endless().await;
    let coordinator =
        Coordinator::start(model.path(), 1, &["--replicas", "2", "--regroup-grace", "60"]).await;
    let mut first = coordinator.worker("a");
    let client = Client::new(&coordinator.url);
    replicas_ready(&client, 1).await;
    let expected = greedy_text(&client, PROMPT, 60).await;
    let copy = sent(&client).await;
    let mut second = coordinator.worker("b");
    replicas_ready(&client, 2).await;
    second.hear("weights came from another worker").await;
    first.kill().await;
    replicas_ready(&client, 1).await;
    // While the other serves, and is asked something.
    let mut again = coordinator.worker("c");
    assert_eq!(greedy_text(&client, PROMPT, 60).await, expected);
    replicas_ready(&client, 2).await;
    again.hear("weights came from another worker").await;
    assert_eq!((sent(&client).await, loaded(&client, "peer").await), (copy, 2 * copy));
    // It has the model's bits: alone, it says the same.
    second.kill().await;
    replicas_ready(&client, 1).await;
    assert_eq!(greedy_text(&client, PROMPT, 60).await, expected);
}

#[tokio::test]
async fn a_peer_that_dies_while_it_hands_on_is_replaced_by_the_coordinator() {
    let model = endless().await;
    let coordinator =
        Coordinator::start(model.path(), 1, &["--replicas", "2", "--regroup-grace", "60"]).await;
    let mut first = coordinator.worker_with("a", TOKEN, &["--weight-rate", "300kB/s"]);
    let client = Client::new(&coordinator.url);
    replicas_ready(&client, 1).await;
    let expected = greedy_text(&client, PROMPT, 60).await;
    let copy = sent(&client).await;
    let mut second = coordinator.worker("b");
    let some_came = async {
        while loaded(&client, "peer").await == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, some_came).await.expect("it begins");
    first.kill().await;
    second.hear("a worker does not hand on its weights, they come from elsewhere").await;
    second.hear("ready epoch=").await;
    replicas_ready(&client, 1).await;
    let (by_peer, by_coordinator) = (loaded(&client, "peer").await, loaded(&client, "coordinator").await);
    assert!(by_peer > 0 && by_coordinator > copy, "{by_peer} and {by_coordinator} of twice {copy}");
    assert_eq!(by_peer + by_coordinator, 2 * copy, "nothing came twice");
    assert_eq!(greedy_text(&client, PROMPT, 60).await, expected);
}

#[tokio::test]
async fn workers_hand_on_under_tls_with_the_certificates_that_they_have() {
    let (model, certs) = (endless().await, Certs::new().await);
    let flags = certs.coordinator_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let more = [&flags[..], &["--replicas", "2"]].concat();
    let coordinator = Coordinator::start(model.path(), 1, &more).await;
    let client = Client::new(&coordinator.url);
    let start = |name: &str| {
        let flags = [certs.authority_flags(), certs.worker_flags(name)];
        crate::tls::worker(&coordinator.workers_at, "https://", TOKEN, name, &flags)
    };
    let _first = start("a");
    replicas_ready(&client, 1).await;
    let copy = sent(&client).await;
    let mut second = start("b");
    replicas_ready(&client, 2).await;
    second.hear("weights came from another worker").await;
    assert_eq!(sent(&client).await, copy);
}

#[tokio::test]
async fn who_does_not_want_to_hand_on_does_not() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 1, &["--replicas", "2"]).await;
    let client = Client::new(&coordinator.url);
    let _first = coordinator.worker_with("a", TOKEN, &["--weights-listen", "none"]);
    replicas_ready(&client, 1).await;
    let copy = sent(&client).await;
    let _second = coordinator.worker("b");
    replicas_ready(&client, 2).await;
    assert_eq!((sent(&client).await, loaded(&client, "peer").await), (2 * copy, 0));
}

/// Three of each replica, then two of one: their halves are put together of what they have and of the other's thirds.
#[tokio::test]
async fn a_group_of_another_cut_takes_nothing_from_the_coordinator() {
    let model = endless().await;
    let more = ["--replicas", "2", "--regroup-grace", "0.2"];
    let coordinator = Coordinator::start(model.path(), 3, &more).await;
    let client = Client::new(&coordinator.url);
    let mut first = ["a", "b", "c"].map(|name| coordinator.worker(name));
    replicas_ready(&client, 1).await;
    let expected = greedy_text(&client, PROMPT, 60).await;
    let copy = sent(&client).await;
    let mut second = ["d", "e", "f"].map(|name| coordinator.worker(name));
    replicas_ready(&client, 2).await;
    let goal = bytes(&client, "worker_load_goal", "").await;
    assert_eq!((sent(&client).await, loaded(&client, "peer").await), (copy, goal - copy));
    second[2].kill().await;
    for worker in &mut second[..2] {
        worker.hear("some weights are here still").await;
        worker.hear("weights came from another worker").await;
    }
    replicas_ready(&client, 2).await;
    assert!(sent(&client).await == copy && loaded(&client, "peer").await > goal - copy);
    // The one that is left has the model's bits. All at once: those that were left would draw the others into a group.
    futures::future::join_all(first.iter_mut().map(|worker| worker.kill())).await;
    replicas_ready(&client, 1).await;
    assert_eq!(greedy_text(&client, PROMPT, 60).await, expected);
}

/// The first of three dies: the second takes the front half, the third the back half, of which the second has a part.
#[tokio::test]
async fn those_that_are_left_give_each_other_what_they_had() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 3, &["--regroup-grace", "0.2"]).await;
    let client = Client::new(&coordinator.url);
    let goal = async || bytes(&client, "worker_load_goal", "").await;
    let mut workers = ["a", "b", "c"].map(|name| coordinator.worker(name));
    replicas_ready(&client, 1).await;
    let expected = greedy_text(&client, PROMPT, 60).await;
    let (copy, of_three) = (sent(&client).await, goal().await);
    let of_lost = bytes(&client, "worker_load_goal", "worker=\"a\"").await;
    assert_eq!(copy, model.tensor_bytes());
    workers[0].kill().await;
    for worker in &mut workers[1..] {
        worker.hear("some weights are here still").await;
    }
    workers[2].hear("weights came from another worker").await;
    replicas_ready(&client, 1).await;
    // Each rank has the replicated tensors: of them nobody lacked any.
    let replicated = of_three - goal().await;
    assert_eq!(sent(&client).await - copy, of_lost - replicated);
    assert_eq!(greedy_text(&client, PROMPT, 60).await, expected);
}

/// Whoever opens connections to the coordinator's port and says nothing keeps no worker from joining, under TLS either.
#[tokio::test]
async fn silent_connections_keep_no_worker_out() {
    let (model, certs) = (endless().await, Certs::new().await);
    let flags = certs.coordinator_flags();
    for tls in [false, true] {
        let flags: Vec<&str> = flags.iter().map(String::as_str).filter(|_| tls).collect();
        let coordinator = Coordinator::start(model.path(), 1, &flags).await;
        let port = coordinator.workers_at.rsplit_once("//").expect("a scheme").1;
        let mut silent = Vec::new();
        for number in 0..300 {
            let mut stream = TcpStream::connect(port).await.unwrap();
            if number % 2 == 0 {
                // Of HTTP/2's first words, or of TLS's.
                stream.write_all(if tls { &[0x16] } else { b"P" }).await.unwrap();
            }
            silent.push(stream);
        }
        let flags = [certs.authority_flags(), certs.worker_flags("a")];
        let _worker = match tls {
            true => crate::tls::worker(&coordinator.workers_at, "https://", TOKEN, "a", &flags),
            false => coordinator.worker("a"),
        };
        replicas_ready(&Client::new(&coordinator.url), 1).await;
    }
}
