//! A request that ends a worker whenever it is computed. No kernel of ours is known to do that, so it is done from outside:
//! who stands between a worker and its coordinator kills the worker's process as soon as a step has that request's prompt.

use crate::support::checkpoint::endless;
use crate::support::client::{COMPLETIONS, Client, greedy, greedy_text};
use crate::support::server::{Coordinator, EQUAL, Running, TOKEN, send_signal};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

/// Token ids that no text has in this order.
const DEADLY: [u32; 8] = [1999, 1801, 1999, 1802, 1999, 1803, 1999, 1804];
/// Two losses with all that runs, and three alone.
const KILLS_MAX: usize = 5;

/// Tokens as they stand in a step on the wire: packed, seven bits a byte, the lowest first.
fn on_the_wire(tokens: &[u32]) -> Vec<u8> {
    assert!(tokens.iter().all(|token| (0x80..0x4000).contains(token)), "two bytes each");
    tokens.iter().flat_map(|token| [(token & 0x7f) as u8 | 0x80, (token >> 7) as u8]).collect()
}

/// Stands before the coordinator, and kills whoever is sent those tokens by it.
#[derive(Clone)]
struct Trap {
    address: SocketAddr,
    victim: Arc<AtomicU32>,
    kills: Arc<AtomicUsize>,
}

impl Trap {
    async fn before(coordinator: &Coordinator) -> Trap {
        let target: SocketAddr = coordinator.workers_at.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a port");
        let address = listener.local_addr().expect("it is bound");
        let trap = Trap { address, victim: Arc::default(), kills: Arc::default() };
        tokio::spawn({
            let trap = trap.clone();
            async move {
                while let Ok((from, _)) = listener.accept().await {
                    tokio::spawn(trap.clone().pass_on(from, target));
                }
            }
        });
        trap
    }

    async fn pass_on(self, worker: TcpStream, target: SocketAddr) {
        let Ok(coordinator) = TcpStream::connect(target).await else { return };
        let (mut says, mut hears) = worker.into_split();
        let (mut orders, mut answers) = coordinator.into_split();
        tokio::select! {
            _ = tokio::io::copy(&mut says, &mut answers) => {}
            () = self.watch(&mut orders, &mut hears) => {}
        }
    }

    /// Of what was passed on the end is kept: what is looked for may come in parts.
    async fn watch(&self, from: &mut (impl AsyncReadExt + Unpin), to: &mut (impl AsyncWriteExt + Unpin)) {
        let (deadly, mut seen, mut bytes) = (on_the_wire(&DEADLY), Vec::new(), vec![0; 64 << 10]);
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            seen.extend_from_slice(&bytes[..count]);
            if seen.windows(deadly.len()).any(|window| window == deadly) {
                self.kills.fetch_add(1, Ordering::Relaxed);
                send_signal("KILL", self.victim.load(Ordering::Relaxed).into());
                return;
            }
            seen.drain(..seen.len().saturating_sub(deadly.len() - 1));
            if to.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    }

    /// A worker that reaches its coordinator through here.
    fn worker(&self, name: &str) -> Running {
        let at = format!("http://{}", self.address);
        let args = ["worker", "--coordinator", &at, "--join-token", TOKEN, "--name", name, "--threads", "1"];
        let worker = Running::start(&[&args[..], &["--collective-timeout", "10"], &EQUAL, &EXACT].concat());
        self.victim.store(worker.id(), Ordering::Relaxed);
        worker
    }
}

/// A row has the same bits in any batch.
const EXACT: [&str; 4] = ["--dense", "int8", "--activations", "int8x2"];

/// Starts another whenever it has ended.
async fn supervise(trap: &Trap, worker: &mut Running) {
    for start in 1.. {
        while !worker.has_ended() {
            sleep(Duration::from_millis(20)).await;
        }
        *worker = trap.worker(&format!("again-{start}"));
    }
}

#[tokio::test]
async fn a_request_that_ends_workers_ends_and_the_others_lose_nothing() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 2, &["--regroup-grace", "60"]).await;
    let trap = Trap::before(&coordinator).await;
    let _sound = coordinator.worker_with("a", TOKEN, &EXACT);
    let mut victim = trap.worker("b");
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    let prompts = ["Once upon a time", "There was", "Nobody knew"];
    let mut undisturbed = Vec::new();
    for prompt in prompts {
        undisturbed.push(greedy_text(&client, prompt, 900).await);
    }
    assert_eq!(trap.kills.load(Ordering::Relaxed), 0, "nobody else is taken for it");
    let mut streams = Vec::new();
    for prompt in prompts {
        let mut stream = client.stream(COMPLETIONS, greedy(prompt, 900)).await;
        let begun = stream.text_of(10).await;
        streams.push((stream, begun));
    }
    let deadly = json!({ "prompt": DEADLY, "max_tokens": 20, "temperature": 0 });
    let all = async {
        let (status, body) = client.post(COMPLETIONS, &deadly).await;
        assert_eq!((status, body["error"]["code"].as_str()), (500, Some("workers_lost")), "{body}");
        for ((stream, begun), undisturbed) in streams.into_iter().zip(&undisturbed) {
            let rest = stream.rest().await;
            assert_eq!((rest.error, rest.finish_reason.as_deref()), (None, Some("length")));
            assert_eq!(&(begun + &rest.text), undisturbed);
        }
        client.health(200).await;
        assert_eq!(greedy_text(&client, prompts[0], 900).await, undisturbed[0]);
    };
    tokio::select! {
        done = timeout(Duration::from_secs(180), all) => done.expect("everybody has an answer"),
        () = supervise(&trap, &mut victim) => unreachable!("it has no end"),
    }
    let (_, cluster) = client.get("/v1/cluster").await;
    assert_eq!(cluster["workers"].as_array().expect("a list").len(), 2, "{cluster}");
    let kills = trap.kills.load(Ordering::Relaxed);
    assert!((3..=KILLS_MAX).contains(&kills), "{kills} workers were killed");
}
