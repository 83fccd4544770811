//! What the front costs: HTTP to the first token, and many open streams, before a group that computes
//! nothing. The server is a process of its own (this program again), so that its memory is its own.
//!
//! It prints and asserts nothing. `cargo bench -p flotilla-coordinator --bench http`
//!
//! On 2026-11-27, 2 vCPU shared with other builds, client and server on the same two: first token of a completion
//! p50 55 µs, p99 135 µs on one connection (chat 119 and 287 µs); on 16 connections that never pause, which fills
//! both cores, p50 1.4 ms and p99 2.3 ms (chat 1.9 and 5.2 ms); 1000 streams of 32 tokens without an error; 7.8 kB
//! resident for each of 1000 silent streams.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_coordinator::driver;
use flotilla_coordinator::group::{Group, GroupError};
use flotilla_coordinator::harmony::Harmony;
use flotilla_coordinator::service::{self, Settings};
use flotilla_coordinator::tokenizer::Tokenizer;
use flotilla_scheduler::Scheduler;
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, KvBlocks, SequenceId, StepOutcome, StepPlan, TokenId};
use tokio::net::TcpListener;

const SERVER_VARIABLE: &str = "FLOTILLA_BENCH_SERVER";
const REQUESTS: usize = 3000;
const STREAMS: usize = 1000;

fn main() {
    if std::env::var_os(SERVER_VARIABLE).is_some() {
        return serve();
    }
    let mut server = Server::start();
    for connections in [1, 16] {
        for (what, path, body) in
            [("completions", "/v1/completions", COMPLETION), ("chat", "/v1/chat/completions", CHAT)]
        {
            let times = first_tokens(server.quick, connections, path, body);
            println!("first token, {what}, {connections} connections: {}", percentiles(times));
        }
    }
    let errors = busy_streams(server.quick);
    println!("{STREAMS} streams of 32 tokens at once: {errors} errors");
    let before = server.resident_bytes();
    let streams = idle_streams(server.stuck);
    let each = server.resident_bytes().saturating_sub(before) / STREAMS as u64;
    println!("{} silent streams: {} errors, {each} bytes resident each", STREAMS, STREAMS - streams.len());
    drop(streams);
    server.child.kill().expect("the server runs");
    server.child.wait().expect("the server ends");
}

const COMPLETION: &str = r#"{"prompt": "Hello there", "max_tokens": 1, "stream": true}"#;
const CHAT: &str = r#"{"messages": [{"role": "user", "content": "Hello there"}], "stream": true}"#;
const LONG: &str = r#"{"prompt": "Hello there", "max_tokens": 32, "stream": true}"#;

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 1000];
    format!("p50 {:?}, p99 {:?}, p99.9 {:?}, {} requests", at(500), at(990), at(999), times.len())
}

/// From the first byte of the request that is written to the first event with text that is read.
fn first_tokens(address: SocketAddr, connections: usize, path: &str, body: &str) -> Vec<Duration> {
    let request = request(path, body);
    let one = || {
        let mut stream = BufReader::new(connect(address));
        let each = REQUESTS / connections;
        // The first are for warming up.
        let times = (0..each + 50).map(|_| first_token(&mut stream, &request));
        times.skip(50).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(one)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no error")).collect()
    })
}

fn first_token(stream: &mut BufReader<TcpStream>, request: &[u8]) -> Duration {
    let began = Instant::now();
    stream.get_mut().write_all(request).expect("written");
    let mut first = None;
    let mut line = String::new();
    while line != "0\r\n" {
        line.clear();
        stream.read_line(&mut line).expect("read");
        let has_text = line.contains("\"text\":\"") || line.contains("\"content\":\"H");
        if has_text && first.is_none() {
            first = Some(began.elapsed());
        }
    }
    stream.read_line(&mut line).expect("the end of the chunks");
    first.expect("an event with text")
}

/// How many of the streams did not come to their end.
fn busy_streams(address: SocketAddr) -> usize {
    let request = request("/v1/completions", LONG);
    let streams: Vec<TcpStream> = (0..STREAMS).map(|_| opened(address, &request)).collect();
    let is_done = |stream| {
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines.take(1000).any(|line: String| line == "data: [DONE]")
    };
    streams.into_iter().map(is_done).filter(|done| !done).count()
}

/// Streams whose head has come, and nothing else.
fn idle_streams(address: SocketAddr) -> Vec<TcpStream> {
    let request = request("/v1/completions", LONG);
    let streams: Vec<TcpStream> = (0..STREAMS).map(|_| opened(address, &request)).collect();
    let heads = streams.into_iter().filter_map(|mut stream| {
        let mut head = [0; 15];
        stream.read_exact(&mut head).ok()?;
        (&head == b"HTTP/1.1 200 OK").then_some(stream)
    });
    heads.collect()
}

fn opened(address: SocketAddr, request: &[u8]) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(request).expect("written");
    stream
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("no delay");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream
}

fn request(path: &str, body: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// The process that serves: a group that answers at once, and one that never does.
struct Server {
    child: Child,
    quick: SocketAddr,
    stuck: SocketAddr,
}

impl Server {
    fn start() -> Server {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        let mut child = command.env(SERVER_VARIABLE, "1").stdout(Stdio::piped()).spawn().expect("a server");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut address = || lines.next().expect("a line").expect("text").parse().expect("an address");
        let (quick, stuck) = (address(), address());
        Server { child, quick, stuck }
    }

    fn resident_bytes(&mut self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("Linux");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a resident size");
        let kilobytes = line.split_whitespace().nth(1).expect("a number");
        kilobytes.parse::<u64>().expect("a number") << 10
    }
}

fn serve() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        for stuck in [false, true] {
            let address = start(stuck).await;
            println!("{address}");
        }
        std::future::pending::<()>().await;
    });
}

async fn start(stuck: bool) -> SocketAddr {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/small_tokenizer.json");
    let tokenizer = Arc::new(Tokenizer::from_file(path).expect("a tokenizer"));
    let harmony = Harmony::new(Arc::clone(&tokenizer)).expect("special tokens");
    let scheduler =
        flotilla_scheduler::Settings { context_max: 2048, waiting_max: 2048, ..Default::default() };
    let scheduler = Scheduler::new(scheduler).expect("valid settings");
    let (mut driver, fleet) = driver::start(scheduler, driver::Settings::default());
    fleet.formed(Epoch(1), KvBlocks::plain(16384), Null::new(&tokenizer, stuck));
    driver.ready().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let settings = Settings::new("null", harmony, 2048);
    // The fleet's handle goes with it: without one, nothing would change.
    tokio::spawn(async move {
        service::serve(listener, settings, driver, std::future::pending()).await;
        drop(fleet);
    });
    address
}

/// Computes nothing: a chat is answered `Hi`, a prompt with dots.
struct Null {
    script: Vec<TokenId>,
    dot: TokenId,
    /// The last token of a chat's prompt.
    assistant: TokenId,
    stuck: bool,
    /// What each sequence says next in the script; none for prompts.
    sequences: BTreeMap<SequenceId, Option<usize>>,
    outcomes: VecDeque<StepOutcome>,
}

impl Null {
    fn new(tokenizer: &Tokenizer, stuck: bool) -> Null {
        let one = |text| *tokenizer.encode_plain(text).last().expect("a token");
        let script = tokenizer.encode_special("<|channel|>final<|message|>Hi<|return|>");
        let (dot, assistant) = (one("."), one("assistant"));
        Null { script, dot, assistant, stuck, sequences: BTreeMap::new(), outcomes: VecDeque::new() }
    }

    fn work(&mut self, plan: &StepPlan) -> StepOutcome {
        for sequence in &plan.release {
            self.sequences.remove(sequence);
        }
        let mut sampled = Vec::new();
        for work in plan.work.iter().filter(|work| work.sample) {
            let token = self.next(work.sequence, &work.tokens);
            sampled.push(Sampled { sequence: work.sequence, token, logprobs: None });
        }
        StepOutcome { epoch: plan.epoch, step: plan.step, sampled, ..StepOutcome::default() }
    }

    fn next(&mut self, sequence: SequenceId, tokens: &[TokenId]) -> TokenId {
        let fresh = (tokens.last() == Some(&self.assistant)).then_some(0);
        let place = self.sequences.entry(sequence).or_insert(fresh);
        let Some(at) = place else { return self.dot };
        *at += 1;
        self.script.get(*at - 1).copied().unwrap_or(self.dot)
    }
}

impl Group for Null {
    fn send(&mut self, plan: &StepPlan) -> Result<(), GroupError> {
        let outcome = self.work(plan);
        self.outcomes.push_back(outcome);
        Ok(())
    }

    async fn outcome(&mut self) -> Result<StepOutcome, GroupError> {
        if self.stuck {
            std::future::pending::<()>().await;
        }
        Ok(self.outcomes.pop_front().expect("a step was sent"))
    }
}
