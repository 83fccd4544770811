//! Servers and workers as processes that end with the value that started them, and what they say.

use super::program::flotilla;
use std::net::TcpListener;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// How long a process may take to say or do what it should. Only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Told instead of measured: equal shares, and a start at once.
pub const EQUAL: [&str; 2] = ["--bandwidth", "1"];
/// Linux gives none of these away by itself (`net.ipv4.ip_local_port_range`).
const PORTS: Range<u16> = 12_000..32_000;
pub const TOKEN: &str = "a-token-of-these-tests";

/// A running `flotilla ARGS`, killed when dropped.
pub struct Running {
    child: Child,
    /// Both outputs, line by line in the order in which they were written: they are one pipe.
    said: Arc<Mutex<String>>,
    listener: JoinHandle<()>,
}

impl Running {
    pub fn start(args: &[&str]) -> Running {
        Running::start_with(args, &[])
    }

    /// With more in its environment.
    pub fn start_with(args: &[&str], environment: &[(&str, PathBuf)]) -> Running {
        let mut command = flotilla(args);
        let (heard, mouth) = std::io::pipe().expect("a pipe can be made");
        command.stdout(mouth.try_clone().expect("it can be held twice")).stderr(mouth);
        // Tests read what is logged, of `up` too.
        command.env("FLOTILLA_LOG", "warn,flotilla=info");
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        // As a shell does: signals that a terminal would send reach this one and its children only.
        command.process_group(0);
        let child = command.spawn().expect("the program can be started");
        // It holds the writing ends, and the pipe would never end.
        drop(command);
        let said = Arc::new(Mutex::new(String::new()));
        let heard = Receiver::from_owned_fd(heard.into()).expect("it is a pipe");
        let listener = tokio::spawn(listen(heard, said.clone()));
        Running { child, said, listener }
    }

    pub fn said(&self) -> String {
        self.said.lock().expect("no holder panics").clone()
    }

    /// Waits for a line with `mark`, and gives what stands behind it, up to the next space.
    pub async fn hear(&mut self, mark: &str) -> String {
        self.hear_after(0, mark).await
    }

    /// The same, in what it said after the first `bytes`.
    pub async fn hear_after(&mut self, bytes: usize, mark: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.said();
            if let Some((_, behind)) = said[bytes..].split_once(mark) {
                return behind.split_whitespace().next().unwrap_or_default().to_owned();
            }
            let ended = self.child.try_wait().expect("it can be waited for");
            assert!(ended.is_none() && Instant::now() < deadline, "no {mark:?}, {ended:?}: {said}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until `mark` was said so many times.
    pub async fn hear_again(&mut self, mark: &str, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.said().matches(mark).count() < times {
            let ended = self.child.try_wait().expect("it can be waited for");
            let said = self.said();
            assert!(ended.is_none() && Instant::now() < deadline, "{mark:?} too seldom, {ended:?}: {said}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id().expect("it still runs")
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it can be killed");
    }

    /// Waits until it has ended, and its last words are heard.
    pub async fn ended(&mut self) -> ExitStatus {
        let ended = async {
            let status = self.child.wait().await.expect("it can be waited for");
            // Its children have the same output, and end with it.
            (&mut self.listener).await.expect("listening does not panic");
            status
        };
        let ended = timeout(PATIENCE, ended).await;
        ended.unwrap_or_else(|_| panic!("it, or a child of it, still runs: {}", self.said()))
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it can be waited for").is_some()
    }
}

async fn listen(output: Receiver, said: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        said.lock().expect("no holder panics").push_str(&format!("{line}\n"));
    }
}

/// Sends `signal` (TERM, INT) to a process, or to a process group by a negative id.
pub fn send_signal(signal: &str, id: i64) {
    let status = std::process::Command::new("sh").args(["-c", &format!("kill -s {signal} -- {id}")]).status();
    assert!(status.expect("sh can be started").success(), "kill -{signal} {id}");
}

/// Whether a process is there and not only waits to be reaped.
pub fn is_alive(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"));
    // The state stands behind the name, which is in brackets and may hold anything.
    stat.is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

/// Waits until none of the processes is there.
pub async fn expect_gone(ids: &[u32]) {
    let deadline = Instant::now() + PATIENCE;
    while let Some(id) = ids.iter().find(|id| is_alive(**id)) {
        assert!(Instant::now() < deadline, "process {id} of {ids:?} still runs");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The processes whose parent is `parent` and that still run.
pub fn children_of(parent: u32) -> Vec<u32> {
    let ids = std::fs::read_dir("/proc").expect("Linux has /proc").flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |id: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // Behind the name in brackets: the state, then the parent.
        let mut behind = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(1);
        behind.next().and_then(|id| id.parse().ok()) == Some(parent) && is_alive(*id)
    };
    ids.filter(is_child).collect()
}

/// A port that nothing listens on, and none that the system gives to whoever asks for any: who is to come back to it finds it
/// free, though others have begun to listen meanwhile.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // What tests at the same time begins elsewhere.
    let start = std::process::id().wrapping_mul(251);
    let count = u32::from(PORTS.end - PORTS.start);
    let mut ports = (0..count).map(|_| {
        let number = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count;
        PORTS.start + number as u16
    });
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("some port is free")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// `flotilla up`, ready to serve.
pub struct Up {
    pub process: Running,
    pub url: String,
    pub workers: Vec<u32>,
}

impl Up {
    pub async fn start(model: &Path, more: &[&str]) -> Up {
        let args = ["up", "--model", text(model), "--listen", "127.0.0.1:0", "--threads", "1"];
        let mut process = Running::start(&[&args[..], more].concat());
        let url = process.hear("is served on ").await;
        let said = process.said();
        let ids =
            said.split_once("processes [").and_then(|(_, ids)| ids.split_once(']')).expect("ids are told");
        let workers = ids.0.split(", ").map(|id| id.parse().expect("an id")).collect();
        Up { process, url, workers }
    }
}

/// `flotilla coordinator`; its API is up, and it waits for workers.
pub struct Coordinator {
    pub process: Running,
    pub url: String,
    /// Where workers dial.
    pub workers_at: String,
}

impl Coordinator {
    pub async fn start(model: &Path, workers: usize, more: &[&str]) -> Coordinator {
        let listen = format!("127.0.0.1:{}", free_port());
        Self::start_at(&listen, "127.0.0.1:0", model, workers, more).await
    }

    /// Another in its place, which has ended.
    pub async fn again(self, model: &Path, workers: usize, more: &[&str]) -> Coordinator {
        let address = |url: &str| url.trim_start_matches("http://").to_owned();
        Self::start_at(&address(&self.url), &address(&self.workers_at), model, workers, more).await
    }

    async fn start_at(
        listen: &str,
        worker_listen: &str,
        model: &Path,
        workers: usize,
        more: &[&str],
    ) -> Coordinator {
        let workers = workers.to_string();
        let args = ["coordinator", "--model", text(model), "--listen", listen, "--workers", &workers];
        let doors = ["--worker-listen", worker_listen, "--join-token", TOKEN];
        let mut process = Running::start(&[&args[..], &doors, more].concat());
        let address = process.hear("workers on ").await;
        Coordinator { process, url: format!("http://{listen}"), workers_at: format!("http://{address}") }
    }

    pub fn worker(&self, name: &str) -> Running {
        self.worker_with_token(name, TOKEN)
    }

    pub fn worker_with_token(&self, name: &str, token: &str) -> Running {
        self.worker_with(name, token, &[])
    }

    pub fn worker_with(&self, name: &str, token: &str, more: &[&str]) -> Running {
        let args = ["worker", "--coordinator", &self.workers_at, "--join-token", token, "--name", name];
        Running::start(&[&args[..], &["--threads", "1", "--collective-timeout", "10"], &EQUAL, more].concat())
    }
}
