//! Copies of the model: requests go where their prompt is known or where there is least to do, and from a copy that is
//! lost to one that stands.

use crate::support::checkpoint::endless;
use crate::support::client::{COMPLETIONS, Client, greedy, greedy_text};
use crate::support::program::run;
use crate::support::server::{Coordinator, TOKEN, Up};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{sleep, timeout};

async fn cluster(client: &Client) -> Value {
    client.get("/v1/cluster").await.1
}

/// Waits until so many replicas are ready.
async fn replicas_ready(client: &Client, count: usize) {
    let ready = async {
        loop {
            let cluster = cluster(client).await;
            let replicas = cluster["replicas"].as_array().expect("a list");
            if replicas.iter().filter(|replica| replica["status"] == "ready").count() == count {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), ready).await.expect("they become ready");
}

#[tokio::test]
async fn a_lost_replica_moves_its_requests() {
    let model = endless().await;
    let more = ["--replicas", "2", "--regroup-grace", "60"];
    let coordinator = Coordinator::start(model.path(), 1, &more).await;
    let mut workers = ["a", "b"].map(|name| coordinator.worker(name));
    let client = Client::new(&coordinator.url);
    replicas_ready(&client, 2).await;
    let form = json!({
        "messages": [{ "role": "user", "content": "Numbers" }],
        "max_tokens": 300,
        "temperature": 0,
        "response_format": { "type": "json_schema", "json_schema": { "name": "n", "schema": {
            "type": "array", "items": { "type": "integer" }, "minItems": 40, "maxItems": 40 } } },
    });
    let mut undisturbed = Vec::new();
    let prompts: Vec<String> = (0..6).map(|number| format!("Story number {number}")).collect();
    for prompt in &prompts {
        undisturbed.push(greedy_text(&client, prompt, 400).await);
    }
    let numbers =
        client.expect("/v1/chat/completions", form.clone()).await["choices"][0]["message"]["content"].clone();
    let mut streams = Vec::new();
    for prompt in &prompts {
        let mut stream = client.stream(COMPLETIONS, greedy(prompt, 400)).await;
        let begun = stream.text_of(20).await;
        streams.push((stream, begun));
    }
    let kept = tokio::spawn({
        let client = client.clone();
        async move {
            client.expect("/v1/chat/completions", form).await["choices"][0]["message"]["content"].clone()
        }
    });
    sleep(Duration::from_millis(30)).await;
    workers[0].kill().await;
    // The other serves on: new requests are taken all the while.
    assert_eq!(client.health(200).await["status"], "ready");
    assert_eq!(greedy_text(&client, &prompts[0], 400).await, undisturbed[0]);
    for ((stream, begun), undisturbed) in streams.into_iter().zip(&undisturbed) {
        let rest = timeout(Duration::from_secs(60), stream.rest()).await.expect("the stream ends");
        assert_eq!((rest.error, rest.finish_reason.as_deref()), (None, Some("length")));
        assert_eq!(&(begun + &rest.text), undisturbed);
    }
    assert_eq!(kept.await.unwrap(), numbers);
    replicas_ready(&client, 1).await;
    let _again = coordinator.worker("c");
    replicas_ready(&client, 2).await;
}

#[tokio::test]
async fn as_many_replicas_as_the_fleet_holds() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 1, &["--replicas", "auto"]).await;
    let client = Client::new(&coordinator.url);
    let _first = coordinator.worker("a");
    replicas_ready(&client, 1).await;
    let mut others = ["b", "c"].map(|name| coordinator.worker(name));
    replicas_ready(&client, 3).await;
    let workers = cluster(&client).await["workers"].as_array().expect("a list").len();
    assert_eq!(workers, 3);
    others[0].kill().await;
    replicas_ready(&client, 2).await;
    greedy_text(&client, "Once", 20).await;
}

/// What was computed for a prompt is found by the next that begins alike, whichever replica has it.
#[tokio::test]
async fn prompts_that_begin_alike_go_to_the_same_replica() {
    let model = endless().await;
    let up = Up::start(model.path(), &["--workers", "1", "--replicas", "2"]).await;
    let client = Client::new(&up.url);
    replicas_ready(&client, 2).await;
    let story = "once there were many words of many kinds ".repeat(30);
    let mut cached = Vec::new();
    for number in 0..6 {
        let answer = client.expect(COMPLETIONS, greedy(&format!("{story}{number}"), 5)).await;
        cached.push(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count"));
    }
    assert_eq!(cached[0], 0);
    assert!(cached[1..].iter().all(|cached| *cached > 100), "{cached:?}");
}

#[tokio::test]
async fn a_replica_is_dissolved_and_its_worker_serves_another() {
    let (model, dir) = (endless().await, tempfile::tempdir().unwrap());
    let file = dir.path().join("keys.toml");
    let made = run(["key", "root", "--admin"]).await;
    std::fs::write(&file, &made.expect_status(0).stdout).unwrap();
    let key = made.stderr.lines().last().expect("the key is told once").to_owned();
    let more = ["--replicas", "2", "--regroup-grace", "60", "--api-keys", file.to_str().unwrap()];
    let coordinator = Coordinator::start(model.path(), 1, &more).await;
    let mut workers = ["a", "b"].map(|name| coordinator.worker(name));
    let client = Client::with_key(&coordinator.url, &key);
    replicas_ready(&client, 2).await;
    let prompts: Vec<String> = (0..6).map(|number| format!("Story number {number}")).collect();
    let mut undisturbed = Vec::new();
    for prompt in &prompts {
        undisturbed.push(greedy_text(&client, prompt, 400).await);
    }
    let mut streams = Vec::new();
    for prompt in &prompts {
        let mut stream = client.stream(COMPLETIONS, greedy(prompt, 400)).await;
        let begun = stream.text_of(20).await;
        streams.push((stream, begun));
    }
    let dissolve = |more: &[&str]| {
        let args = [&["dissolve", "--url", &coordinator.url, "--api-key", &key], more].concat();
        run(args.into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    let done = dissolve(&["0"]).await;
    assert_eq!(done.expect_status(0).stdout, "replica 0 is dissolved\n");
    for ((stream, begun), undisturbed) in streams.into_iter().zip(&undisturbed) {
        let rest = timeout(Duration::from_secs(60), stream.rest()).await.expect("the stream ends");
        assert_eq!((rest.error, rest.finish_reason.as_deref()), (None, Some("length")));
        assert_eq!(&(begun + &rest.text), undisturbed);
    }
    dissolve(&["0"]).await.expect_refusal(1, &["409", "dissolved before"]);
    let status = |cluster: &Value| (cluster["status"].clone(), cluster["replicas"][0]["status"].clone());
    assert_eq!(status(&cluster(&client).await), (json!("ready"), json!("dissolved")));
    // What was ended by order is nothing to alarm anybody about.
    let metrics = client.text("/metrics").await;
    let serving: Vec<&str> =
        metrics.lines().filter(|line| line.starts_with("flotilla_replica_serving{")).collect();
    assert!(matches!(&serving[..], [one] if one.contains("replica=\"1\"")), "{serving:?}");
    dissolve(&["1"]).await.expect_refusal(1, &["409", "the last that serves", "hint: with force"]);
    // Who served replica 0 waits for whoever needs it, and makes no replica of its own.
    let serves = cluster(&client).await["workers"][0]["name"].as_str().expect("a name").to_owned();
    let (served, waits) = if serves == "a" { (0, "b") } else { (1, "a") };
    workers[served].kill().await;
    let moved = async {
        loop {
            let cluster = cluster(&client).await;
            assert_ne!(cluster["status"], "dissolved", "another is to serve");
            if cluster["status"] == "ready" && cluster["workers"][0]["name"] == waits {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), moved).await.expect("the other worker serves replica 1");
    assert_eq!(greedy_text(&client, &prompts[0], 400).await, undisturbed[0]);
    assert_eq!(dissolve(&["1", "--force"]).await.expect_status(0).stdout, "replica 1 is dissolved\n");
    client.health(503).await;
    assert_eq!(cluster(&client).await["status"], "dissolved");
    let said = coordinator.process.said();
    let acts: Vec<&str> = said.lines().filter(|line| line.contains("act=\"dissolve-replica\"")).collect();
    assert!(acts.len() == 4 && acts.iter().all(|act| act.contains("who=\"root\"")), "{acts:?}");
}

/// Whoever joins for a replica that has never stood ends nothing that serves, and is named; others may follow.
#[tokio::test]
async fn a_worker_that_is_too_small_ends_no_replica_that_serves() {
    let model = endless().await;
    let mut coordinator = Coordinator::start(model.path(), 1, &["--replicas", "2"]).await;
    let client = Client::new(&coordinator.url);
    let _first = coordinator.worker("a");
    replicas_ready(&client, 1).await;
    let undisturbed = greedy_text(&client, "Once", 900).await;
    let mut stream = client.stream(COMPLETIONS, greedy("Once", 900)).await;
    let begun = stream.text_of(20).await;
    let _small = coordinator.worker_with("too-small", TOKEN, &["--memory-bytes", "1MB"]);
    assert_eq!(
        coordinator.process.hear("no group of these workers, others are waited for workers=").await,
        "\"too-small\""
    );
    let rest = timeout(Duration::from_secs(60), stream.rest()).await.expect("the stream ends");
    assert_eq!((rest.error, rest.finish_reason.as_deref()), (None, Some("length")));
    assert_eq!(begun + &rest.text, undisturbed);
    // Told once, however often it is looked at.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(coordinator.process.said().matches("no group of these workers").count(), 1);
    let _large = coordinator.worker("b");
    replicas_ready(&client, 2).await;
}
