//! `flotilla chat` with other servers than Flotilla's own: they speak nearly the same, and they end as they like.

use crate::support::program::{PATIENCE, Ran, flotilla, run};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// A server with one model, that says this to every question, and closes.
async fn server(says: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(answer(connection, says));
        }
    });
    url
}

async fn answer(connection: TcpStream, says: &str) {
    let mut connection = BufReader::new(connection);
    let (mut first, mut length) = (String::new(), 0);
    connection.read_line(&mut first).await.unwrap();
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).await.unwrap();
        let line = line.trim().to_lowercase();
        length = line.strip_prefix("content-length:").map_or(length, |value| value.trim().parse().unwrap());
        if line.is_empty() {
            break;
        }
    }
    connection.read_exact(&mut vec![0; length]).await.unwrap();
    let says = if first.starts_with("GET /v1/models ") { r#"{"data": [{"id": "m"}]}"# } else { says };
    let head = "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\n";
    connection.write_all(format!("{head}{says}").as_bytes()).await.unwrap();
    connection.shutdown().await.unwrap();
}

/// Words without quotes are one question, and a temperature that is no number was sent as none.
#[tokio::test]
async fn a_question_needs_no_quotes_and_a_temperature_is_a_number() {
    let url = server("data: {\"choices\":[{\"delta\":{\"content\":\"42\"}}]}\n\ndata: [DONE]\n").await;
    let ran = run(["chat", "--url", &url, "What", "is", "12", "+", "30?"]).await;
    assert_eq!(ran.expect_status(0).stdout, "42\n");
    for wrong in ["nan", "inf", "warm"] {
        let ran = run(["chat", "--url", &url, "--temperature", wrong, "Hello"]).await;
        ran.expect_refusal(2, &["expected a number, such as 0.7"]);
    }
}

async fn asked(says: &'static str) -> Ran {
    run(["chat", "--url", &server(says).await, "Hello"]).await
}

const HALF: &str = r#"data: {"choices": [{"delta": {"content": "half an"}}]}"#;

/// It was printed as if it were whole, with status 0.
#[tokio::test]
async fn an_answer_without_its_end_is_an_error() {
    let ran = asked(HALF).await;
    ran.expect_refusal(1, &["error: the answer broke off"]);
    assert_eq!(ran.stdout, "half an\n", "what came is shown");
    asked("").await.expect_refusal(1, &["error: the answer broke off"]);
}

#[tokio::test]
async fn an_answer_is_taken_from_servers_that_word_it_otherwise() {
    for says in [
        "data:{\"choices\":[{\"delta\":{\"content\":\"all of it\"}}]}\n\ndata:[DONE]\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"all of it\"},\"finish_reason\":\"stop\"}]}",
        ": hello\r\n\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"all of it\"}}]}\r\n\r\ndata: [DONE]",
    ] {
        let ran = asked(says).await;
        assert_eq!(ran.expect_status(0).stdout, "all of it\n", "{says}");
    }
    for thoughts in [
        r#"data: {"choices": [{"delta": {"reasoning": "hm"}, "finish_reason": "stop"}]}"#,
        r#"data: {"choices": [{"delta": {"reasoning_content": "hm"}, "finish_reason": "stop"}]}"#,
        r#"data: {"choices": [{"delta": {"reasoning": "hm", "reasoning_content": "hm"}, "finish_reason": "stop"}]}"#,
    ] {
        assert_eq!(asked(thoughts).await.expect_status(0).stderr, "hm\n", "{thoughts}");
    }
}

#[tokio::test]
async fn an_error_in_a_stream_is_one_however_it_is_worded() {
    for says in [
        r#"data: {"error": {"message": "boom"}}"#,
        r#"data: {"error": "boom"}"#,
        r#"data: {"object": "error", "message": "boom", "code": 500}"#,
    ] {
        asked(says).await.expect_refusal(1, &["the server ended the answer: boom"]);
    }
    let controls = asked("data: {\"error\": {\"message\": \"a\\u001b[2Jb\"}}\n").await;
    assert!(!controls.stderr.contains('\x1b'), "{controls:#?}");
}

/// Who pipes an answer on has it as it is; a terminal is tested beside the printer.
#[tokio::test]
async fn a_piped_answer_is_as_the_server_sent_it() {
    let says = "data: {\"choices\":[{\"delta\":{\"content\":\"a\\u001b[2Jb\"}}]}\n\ndata: [DONE]\n";
    assert_eq!(asked(says).await.expect_status(0).stdout, "a\x1b[2Jb\n");
}

#[tokio::test]
async fn a_line_that_is_no_utf8_does_not_end_the_conversation() {
    let url = server("data: {\"choices\":[{\"delta\":{\"content\":\"yes\"}}]}\n\ndata: [DONE]\n").await;
    let mut chat = flotilla(["chat", "--url", &url]);
    let mut chat = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = chat.stdin.take().unwrap();
    stdin.write_all(b"caf\xe9?\nand now?\n").await.unwrap();
    drop(stdin);
    let output = timeout(PATIENCE, chat.wait_with_output()).await.expect("it ends").unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "yes\nyes\n", "{output:?}");
    assert!(output.status.success());
}

#[tokio::test]
async fn the_address_may_be_that_of_version_1_and_needs_a_scheme() {
    let url = server("data: {\"choices\":[{\"delta\":{\"content\":\"yes\"}}]}\n\ndata: [DONE]\n").await;
    for end in ["/", "/v1", "/v1/"] {
        let ran = run(["chat", "--url", &format!("{url}{end}"), "Hello"]).await;
        assert_eq!(ran.expect_status(0).stdout, "yes\n", "{end}");
    }
    for wrong in ["127.0.0.1:8000", "localhost", "ftp://localhost"] {
        let ran = run(["chat", "--url", wrong, "Hello"]).await;
        ran.expect_refusal(2, &[wrong, "expected http:// or https://"]);
    }
}
