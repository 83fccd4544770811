//! A model that is no folder of its own: in Hugging Face's cache, or on a web server.

use crate::support::checkpoint::endless;
use crate::support::client::{Client, greedy_text};
use crate::support::program::run;
use crate::support::server::{Running, Up};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

async fn answer(url: &str) -> String {
    let client = Client::new(url);
    client.health(200).await;
    assert_eq!(client.get("/v1/models").await.1["data"][0]["id"], "small");
    greedy_text(&client, "Once upon a time", 40).await
}

async fn expected(model: &Path) -> String {
    let up = Up::start(model, &[]).await;
    answer(&up.url).await
}

/// As `hf download someone/small` leaves it: files are links to blobs.
fn hub(model: &Path, hub: &Path) {
    let repository = hub.join("models--someone--small");
    let snapshot = repository.join("snapshots/0a1b");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("blobs")).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), "0a1b").unwrap();
    for (number, file) in fs::read_dir(model).unwrap().enumerate() {
        let file = file.unwrap();
        fs::copy(file.path(), repository.join(format!("blobs/{number}"))).unwrap();
        let blob = format!("../../blobs/{number}");
        std::os::unix::fs::symlink(blob, snapshot.join(file.file_name())).unwrap();
    }
}

#[tokio::test]
async fn a_model_in_hugging_faces_cache_is_served_by_its_name() {
    let model = endless().await;
    let dir = tempfile::tempdir().unwrap();
    hub(model.path(), dir.path());
    let args = ["up", "--model", "someone/small", "--listen", "127.0.0.1:0", "--threads", "1"];
    let mut up = Running::start_with(&args, &[("HF_HUB_CACHE", dir.path().to_owned())]);
    let url = up.hear("is served on ").await;
    assert_eq!(answer(&url).await, expected(model.path()).await);
    let ran = run(["up", "--model", "someone/other", "--listen", "127.0.0.1:0"]).await;
    ran.expect_refusal(1, &["someone/other is not on this machine", "models--someone--other", "\nhint: "]);
}

#[tokio::test]
async fn a_model_on_a_web_server_is_served_from_there() {
    let model = endless().await;
    let url = serve(model.path().to_owned());
    let up = Up::start(Path::new(&url), &[]).await;
    assert_eq!(answer(&up.url).await, expected(model.path()).await);
    let ran = run(["up", "--model", &format!("{url}/nothing"), "--listen", "127.0.0.1:0"]).await;
    ran.expect_refusal(1, &["nothing/config.json is not there", "\nhint: "]);
}

/// Serves ranges of the folder's files, by threads that end with the test's process.
fn serve(dir: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/small", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, dir) = (stream.unwrap(), dir.clone());
            std::thread::spawn(move || answer_requests(stream, &dir));
        }
    });
    url
}

/// Until the client closes the connection.
fn answer_requests(stream: TcpStream, dir: &Path) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let mut stream = stream;
    loop {
        let head: Vec<String> =
            lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let path = head.first()?.split(' ').nth(1)?.to_owned();
        let range =
            head.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let Ok(bytes) = fs::read(dir.join(path.strip_prefix("/small/")?)) else {
            stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").ok()?;
            continue;
        };
        let (first, last) = range.as_deref()?.split_once('-')?;
        let first: usize = first.parse().ok()?;
        let end = bytes.len().min(last.parse::<usize>().ok()? + 1);
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes {first}-{}/{}\r\n\r\n",
            end - first,
            end - 1,
            bytes.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(&bytes[first..end]).ok()?;
    }
}
