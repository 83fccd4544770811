//! `flotilla top` over a real server.

use super::support::client::{CHAT, Client, question};
use super::support::program::{flotilla, run};
use super::support::server::free_port;
use super::up;

#[tokio::test]
async fn one_frame_tells_of_the_fleet() {
    let up = up(&[]).await;
    Client::new(&up.url).expect(CHAT, question("Hello!", 8)).await;
    let ran = run(["top", "--once", "--interval", "0.2", "--url", &up.url]).await;
    let text = &ran.expect_status(0).stdout;
    for words in [
        "  ready  epoch 1  up 0:00:",
        "requests  running 0  waiting 0",
        "1 of 1 replicas serve",
        "RANK  WORKER",
        "0.0   worker-00  ready",
        "0.1   worker-01  ready",
    ] {
        assert!(text.contains(words), "{words:?} in\n{text}");
    }
    assert_eq!(text.matches("100 %").count(), 2, "both are loaded:\n{text}");
    assert!(!text.contains('\x1b'), "plain text");
}

#[tokio::test]
async fn a_server_that_is_gone_is_told_and_a_screen_needs_a_terminal() {
    let url = format!("http://127.0.0.1:{}", free_port());
    run(["top", "--once", "--url", &url]).await.expect_refusal(1, &["cannot reach", "hint: "]);
    run(["top", "--url", &url]).await.expect_refusal(1, &["no terminal", "--once"]);
    let mut without_key = flotilla(["top", "--once", "--url", "ftp://x"]);
    assert!(!without_key.output().await.unwrap().status.success());
}
