//! What is served: the same answers whole and streamed, by any number of workers, from disk or seed.

use crate::support::checkpoint::{SEED, config, endless, synth};
use crate::support::client::{CHAT, COMPLETIONS, Client, greedy, greedy_text, question};
use crate::support::server::{Coordinator, Up};
use std::fs;

#[tokio::test]
async fn a_chat_is_answered_whole_and_as_a_stream_alike() {
    let model = endless().await;
    let up = Up::start(model.path(), &[]).await;
    let client = Client::new(&up.url);
    assert_eq!(client.health(200).await["model"], "small");
    let (status, models) = client.get("/v1/models").await;
    assert_eq!((status, &models["data"][0]["id"]), (200, &"small".into()));

    let whole = client.expect(CHAT, question("Who are you?", 40)).await;
    let message = &whole["choices"][0]["message"];
    assert_eq!((&whole["object"], &message["role"]), (&"chat.completion".into(), &"assistant".into()));
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    let mut body = question("Who are you?", 40);
    body["stream_options"] = serde_json::json!({ "include_usage": true });
    let mut stream = client.stream(CHAT, body).await;
    let (mut content, mut finish, mut usage) = (String::new(), None, None);
    while let Some(chunk) = stream.next().await {
        assert_eq!(chunk["object"], "chat.completion.chunk", "{chunk}");
        content.push_str(chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        finish = chunk["choices"][0]["finish_reason"].as_str().map(str::to_owned).or(finish);
        usage = Some(chunk["usage"].clone()).filter(|usage| usage.is_object()).or(usage);
    }
    assert!(!content.is_empty());
    assert_eq!((Some(content.as_str()), finish.as_deref()), (message["content"].as_str(), Some("length")));
    let usage = usage.expect("usage was asked for");
    assert_eq!(usage["completion_tokens"], 40);
    assert_eq!(usage["prompt_tokens"], whole["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn one_two_and_three_workers_say_the_same() {
    let model = endless().await;
    let mut texts = Vec::new();
    for workers in ["1", "2", "3"] {
        let up = Up::start(model.path(), &["--workers", workers]).await;
        let client = Client::new(&up.url);
        // More than the window of 32, and several chunks of a prompt.
        let long = greedy_text(&client, &"many words ".repeat(120), 60).await;
        texts.push((greedy_text(&client, "Once upon a time", 200).await, long));
    }
    assert_eq!(texts[0], texts[1]);
    assert_eq!(texts[0], texts[2]);
}

/// `synthetic:SEED` is the model that `flotilla synth --seed SEED` writes, and reads no weights.
#[tokio::test]
async fn a_seed_is_served_as_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (written, bare) = (dir.path().join("written"), dir.path().join("bare"));
    synth(&written, &config(), SEED).await;
    fs::create_dir(&bare).unwrap();
    for file in ["config.json", "generation_config.json", "tokenizer.json"] {
        fs::copy(written.join(file), bare.join(file)).unwrap();
    }
    let from_disk = Up::start(&written, &[]).await;
    let seed = format!("synthetic:{SEED}");
    let from_seed = Up::start(&bare, &["--weights", &seed, "--workers", "3"]).await;
    let other_seed = Up::start(&bare, &["--weights", "synthetic:77"]).await;
    let mut texts = Vec::new();
    for up in [&from_disk, &from_seed, &other_seed] {
        let answer = Client::new(&up.url).expect(COMPLETIONS, greedy("Hello there", 100)).await;
        texts.push(answer["choices"][0]["text"].as_str().unwrap().to_owned());
    }
    assert!(texts[0].len() > 100, "{texts:?}");
    assert_eq!(texts[0], texts[1]);
    assert_ne!(texts[0], texts[2]);
}

/// Coordinator and workers as an operator starts them, each by itself and in any order.
#[tokio::test]
async fn workers_join_by_token_only() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 2, &["--served-name", "org/model"]).await;
    let client = Client::new(&coordinator.url);
    client.waits_for("the model is loading: 0 of 2 workers have joined").await;
    let (status, refused) = client.post(COMPLETIONS, &greedy("too early", 5)).await;
    assert_eq!((status, &refused["error"]["code"]), (503, &"not_ready".into()), "{refused}");

    let mut stranger = coordinator.worker_with_token("stranger", "a-guess");
    assert_eq!(stranger.ended().await.code(), Some(1));
    let words = "error: the coordinator refused: wrong or missing join token\nhint: ";
    assert!(stranger.said().contains(words), "{}", stranger.said());
    let still = client.health(503).await;
    assert_eq!(still["error"]["message"], "the model is loading: 0 of 2 workers have joined");

    let _second = coordinator.worker("b");
    let _first = coordinator.worker("a");
    assert_eq!(client.health(200).await["model"], "org/model");
    let alone = Up::start(model.path(), &["--workers", "1"]).await;
    let expected = greedy_text(&Client::new(&alone.url), "Once upon a time", 50).await;
    assert_eq!(greedy_text(&client, "Once upon a time", 50).await, expected);
}
