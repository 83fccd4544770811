//! How workers are linked: by the coordinator's choice, told to whoever looks, and of no effect on answers.

use crate::support::checkpoint::endless;
use crate::support::client::{Client, greedy_text};
use crate::support::server::Up;
use serde_json::json;

#[tokio::test]
async fn workers_of_one_host_share_memory_unless_told_otherwise() {
    let model = endless().await;
    let mut texts = Vec::new();
    for choice in ["auto", "shm", "tcp"] {
        let up = Up::start(model.path(), &["--collective", choice]).await;
        let client = Client::new(&up.url);
        client.health(200).await;
        texts.push(greedy_text(&client, "Once upon a time", 60).await);
        let (status, cluster) = client.get("/v1/cluster").await;
        assert_eq!(status, 200);
        for (rank, other) in [(0, 1), (1, 0)] {
            let expected = match choice {
                "tcp" => json!({"shm": [], "tcp": [other], "not_shared": null}),
                _ => json!({"shm": [other], "tcp": [], "not_shared": null}),
            };
            assert_eq!(cluster["workers"][rank]["links"], expected, "{choice}");
        }
    }
    assert!(!texts[0].is_empty() && texts.iter().all(|text| *text == texts[0]), "{texts:?}");
}

/// Rounded sums are the same on both ranks: who sampled another token would end the group.
#[tokio::test]
async fn int8_between_workers_answers() {
    let model = endless().await;
    let up = Up::start(model.path(), &["--collective", "tcp", "--collective-wire", "int8"]).await;
    let client = Client::new(&up.url);
    client.health(200).await;
    let text = greedy_text(&client, "Once upon a time", 60).await;
    assert!(!text.is_empty());
    assert_eq!(greedy_text(&client, "Once upon a time", 60).await, text);
    assert_eq!(client.health(200).await["epoch"], 1);
}
