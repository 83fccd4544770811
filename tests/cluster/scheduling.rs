//! How steps are made changes no token: shared beginnings, steps ahead and guesses against a server that has
//! none of them, over real workers.

use crate::support::checkpoint::endless;
use crate::support::client::{COMPLETIONS, Client, greedy};
use crate::support::server::Up;
use serde_json::Value;

/// The text, and the prompt's tokens that were found in the cache.
async fn ask(client: &Client, prompt: &str) -> (String, u64) {
    let mut answer = client.expect(COMPLETIONS, greedy(prompt, 80)).await;
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    let Value::String(text) = answer["choices"][0]["text"].take() else { panic!("a text in {answer}") };
    (text, cached.expect("a count"))
}

/// Far beyond the window of 32; all begin as the first, and the fourth goes on from the third's answer.
async fn conversation(client: &Client) -> Vec<(String, u64)> {
    let story = "once there were many words ".repeat(30);
    let mut told = vec![];
    for end in ["of one kind", "of one kind", "of another"] {
        told.push(ask(client, &format!("{story}{end}")).await);
    }
    let next = format!("{story}of another{} and then", told[2].0);
    told.push(ask(client, &next).await);
    told
}

#[tokio::test]
async fn what_is_shared_ahead_or_guessed_is_what_would_have_come() {
    let model = endless().await;
    let plain = ["--no-prefix-cache", "--steps-ahead", "0"];
    let ways: [&[&str]; 6] = [
        &plain,
        &[],
        &["--speculation", "4"],
        &["--kv-tokens", "1536", "--workers", "3"],
        &["--workers", "4", "--stages", "2"],
        &["--workers", "3", "--stages", "3", "--speculation", "4"],
    ];
    let mut told = vec![];
    for flags in ways {
        let up = Up::start(model.path(), flags).await;
        told.push(conversation(&Client::new(&up.url)).await);
    }
    let texts = |way: usize| told[way].iter().map(|(text, _)| text).collect::<Vec<_>>();
    assert!((1..ways.len()).all(|way| texts(way) == texts(0)), "{told:#?}");
    let cached = |way: usize| told[way].iter().map(|(_, cached)| *cached).collect::<Vec<_>>();
    assert_eq!(cached(0), [0, 0, 0, 0]);
    for way in [1, 2] {
        let found = cached(way);
        assert!(found[0] == 0 && found[1..].iter().all(|&count| count > 100), "{found:?}");
    }
}

/// Several at once, in lanes: each is answered as it would have been alone.
#[tokio::test]
async fn what_runs_in_lanes_of_stages_is_what_would_have_come_alone() {
    let model = endless().await;
    let ask = async |client: &Client, which: u64| {
        let prompt = format!("number {which} of many words ").repeat(1 + 3 * which as usize);
        let mut asked = greedy(&prompt, 40 + 7 * which as usize);
        if which % 2 == 1 {
            (asked["temperature"], asked["seed"]) = (0.8.into(), which.into());
        }
        let mut answer = client.expect(COMPLETIONS, asked).await;
        answer["choices"][0]["text"].take()
    };
    let up = Up::start(model.path(), &["--workers", "1", "--steps-ahead", "0"]).await;
    let alone = Client::new(&up.url);
    for (workers, stages) in [("2", "2"), ("4", "3")] {
        let staged = Up::start(model.path(), &["--workers", workers, "--stages", stages]).await;
        let client = Client::new(&staged.url);
        let together = futures::future::join_all((0..8).map(|which| ask(&client, which))).await;
        for (which, text) in (0..).zip(together) {
            assert!(text.as_str().is_some_and(|text| text.len() > 40), "{text}");
            assert_eq!(text, ask(&alone, which).await, "{which} over {stages} stages");
        }
    }
}
