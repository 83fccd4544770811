//! Each connection is an open file, and a login shell allows 1024 of them unless a program asks for more.

use crate::support::program::PATIENCE;
use crate::support::server::free_port;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

/// A server in a shell that allows 64 open files did not even let a probe in with so many clients.
#[tokio::test]
async fn more_clients_are_served_than_a_shell_allows_files() {
    let address = format!("127.0.0.1:{}", free_port());
    let script = "ulimit -Sn 64 && exec \"$@\"";
    let program = ["-c", script, "sh", env!("CARGO_BIN_EXE_flotilla")];
    let args = ["coordinator", "--listen", &address, "--worker-listen", "127.0.0.1:0", "--workers", "1"];
    let mut server = Command::new("sh");
    server.args(program).args(args).env("FLOTILLA_JOIN_TOKEN", "a-token-of-this-test").kill_on_drop(true);
    let _server = server.spawn().expect("sh can be started");
    let served = timeout(PATIENCE, async {
        while TcpStream::connect(&address).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
        let mut clients = Vec::new();
        for _ in 0..100 {
            clients.push(TcpStream::connect(&address).await.expect("it is reached"));
        }
        // Twice, so that all of them are there at once: one that has to make place is closed.
        for _ in 0..2 {
            for client in &mut clients {
                client.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it is open");
                let mut status = [0; 12];
                client.read_exact(&mut status).await.expect("an answer");
                assert_eq!(&status, b"HTTP/1.1 200");
                skip_answer(client).await;
            }
        }
    });
    served.await.expect("every client is served");
}

/// To the end of its body, which is one JSON object without others in it.
async fn skip_answer(client: &mut TcpStream) {
    let mut byte = [0];
    while byte != *b"}" {
        client.read_exact(&mut byte).await.expect("a body");
    }
}
