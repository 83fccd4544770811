//! Clients beside each other, and clients that leave.

use crate::support::checkpoint::endless;
use crate::support::client::{COMPLETIONS, Client, greedy, greedy_text};
use crate::support::server::Up;
use std::time::Duration;

#[tokio::test]
async fn clients_at_once_get_what_each_gets_alone() {
    let model = endless().await;
    let up = Up::start(model.path(), &[]).await;
    let client = Client::new(&up.url);
    let prompts = ["Once upon a time", "The quick brown fox", "0 1 2 3", "Hello"];
    let mut alone = Vec::new();
    for prompt in prompts {
        alone.push(greedy_text(&client, prompt, 120).await);
    }
    let together = prompts.map(|prompt| greedy_text(&client, prompt, 120));
    assert_eq!(futures::future::join_all(together).await, alone);
    assert_ne!(alone[0], alone[1]);
}

/// Two seats: one is left in the middle of an answer, the one who waited takes it, and the neighbour
/// notices nothing.
#[tokio::test]
async fn a_client_that_leaves_frees_its_seat() {
    let model = endless().await;
    let mut up = Up::start(model.path(), &["--sequences", "2"]).await;
    let client = Client::new(&up.url);
    let undisturbed = greedy_text(&client, "The neighbour", 1200).await;

    let mut leaver = client.stream(COMPLETIONS, greedy("The leaver", 3900)).await;
    leaver.text_of(5).await;
    let mut neighbour = client.stream(COMPLETIONS, greedy("The neighbour", 1200)).await;
    let mut text = neighbour.text_of(5).await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { greedy_text(&client, "The one who waits", 7).await }
    });
    // Long enough to have been served, were there a seat.
    leaver.text_of(50).await;
    text.push_str(&neighbour.text_of(50).await);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished(), "a third was served with two seats");
    drop(leaver);
    waiting.await.unwrap();
    text.push_str(&neighbour.rest().await.text);
    assert_eq!(text, undisturbed);

    // In the order in which they ended: nobody waited for the neighbour's end.
    up.process.hear("completion_tokens=7 ").await;
    let said = up.process.said();
    let at = |mark: &str| said.rfind(mark).unwrap_or_else(|| panic!("no {mark}: {said}"));
    assert!(at("client left") < at("completion_tokens=7 "), "{said}");
    assert!(at("completion_tokens=7 ") < at("completion_tokens=1200 "), "{said}");
}
