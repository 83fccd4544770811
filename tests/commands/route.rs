//! The way to a server: proxies, keys and addresses as they are found in people's environments.

use crate::support::program::{Ran, flotilla, run};
use crate::support::server::{Running, free_port};
use std::process::Stdio;
use tokio::io::AsyncWriteExt;

async fn run_with(args: &[&str], variable: (&str, &str)) -> Ran {
    let output = flotilla(args).env(variable.0, variable.1).output().await.expect("it can be started");
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    Ran { status: output.status.code(), stdout, stderr }
}

/// The greeting of `up` went through it, and the health check of a container.
#[tokio::test]
async fn no_proxy_stands_between_a_machine_and_itself() {
    let proxy = format!("http://127.0.0.1:{}", free_port());
    let environment = [("HTTP_PROXY", proxy.clone().into())];
    let mut up = Running::start_with(&["up", "--workers", "1", "--listen", "127.0.0.1:0"], &environment);
    let url = up.hear(" is served on ").await;
    up.hear("\nCtrl-C ends it").await;
    assert!(!up.said().contains("did not answer"), "{}", up.said());
    run_with(&["ready", "--url", &url], ("HTTP_PROXY", &proxy)).await.expect_status(0);
    let far = ["chat", "--url", "http://server.invalid:8000", "--model", "m", "Hello"];
    let hint = "hint: the proxy of HTTP_PROXY is asked, unless NO_PROXY names the host: export NO_PROXY=$NO_PROXY,server.invalid";
    run_with(&far, ("HTTP_PROXY", &proxy)).await.expect_refusal(1, &["cannot reach", hint]);
}

/// It was said that the server cannot be reached.
#[tokio::test]
async fn a_key_that_is_none_is_called_so() {
    for command in [&["chat", "Hello"][..], &["bench", "serve"]] {
        for variable in ["FLOTILLA_API_KEY", "OPENAI_API_KEY"] {
            if (command[0], variable) == ("chat", "OPENAI_API_KEY") {
                continue;
            }
            let ran = run_with(command, (variable, "secret\nwords")).await;
            ran.expect_refusal(1, &["error: the API key has characters", "\nhint: a key is one line"]);
            assert!(!ran.stderr.contains("secret"), "{}", ran.stderr);
        }
    }
}

#[tokio::test]
async fn an_address_without_a_scheme_is_refused_by_a_load_test_too() {
    let ran = run(["bench", "serve", "--url", "127.0.0.1:8000"]).await;
    ran.expect_refusal(2, &["127.0.0.1:8000", "expected http:// or https://"]);
}

/// It stood in the middle of the line, before the cause.
#[tokio::test]
async fn a_hint_is_the_last_line_of_an_error_in_a_conversation() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let mut chat = flotilla(["chat", "--url", &url, "--model", "m"]);
    let mut chat = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = chat.stdin.take().unwrap();
    stdin.write_all(b"Hello\n").await.unwrap();
    drop(stdin);
    let said = String::from_utf8(chat.wait_with_output().await.unwrap().stderr).unwrap();
    assert!(said.starts_with(&format!("error: cannot reach {url}: ")), "{said}");
    assert!(said.ends_with("\nhint: start a server with `flotilla up`\n"), "{said}");
}
