//! One all-reduce between two ranks on this machine: threads, and TCP over loopback.
//! `cargo bench -p flotilla-engine --bench collectives`

use flotilla_engine::collective::{Collective, ProcessCollective, threads};
use flotilla_shared::{Epoch, Rank};
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// (elements, rounds): one token of H = 2880, and a prefill of 512.
const SHAPES: [(usize, u32); 2] = [(2880, 20_000), (2880 * 512, 200)];

fn main() {
    let [a, b]: [_; 2] = threads::group(2).try_into().unwrap_or_else(|_| unreachable!("two were asked for"));
    report("threads", a, b);

    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("loopback has a port"));
    let peers: Vec<String> =
        listeners.iter().map(|l| l.local_addr().expect("it is bound").to_string()).collect();
    let [first, second] = listeners;
    let connect = |rank, listener, peers: Vec<String>| {
        ProcessCollective::connect(Rank(rank), listener, &peers, &[1; 32], Epoch(1), Duration::from_secs(10))
            .expect("two ranks meet")
    };
    let other = std::thread::spawn({
        let peers = peers.clone();
        move || connect(1, second, peers)
    });
    let a = connect(0, first, peers);
    report("tcp", a, other.join().expect("the other rank met this one"));
}

fn report(kind: &str, mut a: impl Collective + 'static, mut b: impl Collective + 'static) {
    let other = std::thread::spawn(move || SHAPES.map(|shape| time(&mut b, shape)));
    for shape in SHAPES {
        println!("{kind}, 2 ranks, {} elements: {:?} an all-reduce", shape.0, time(&mut a, shape));
    }
    other.join().expect("the other rank ends too");
}

fn time(group: &mut impl Collective, (n, rounds): (usize, u32)) -> Duration {
    let mut x = vec![0.5f32; n];
    group.barrier().expect("both ranks are here");
    let start = Instant::now();
    (0..rounds).for_each(|_| group.all_reduce(&mut x).expect("both ranks are here"));
    start.elapsed() / rounds
}
