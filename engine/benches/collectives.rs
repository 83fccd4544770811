//! One all-reduce between two ranks on this machine, by every way: threads, memory of the host, TCP over
//! loopback. Each rank is a thread with links of its own, as a process has them. The ways take turns, so that
//! a machine that is slower for a while is so for all of them; what is told is the median of single sums, and
//! how late one in a hundred is.
//!
//! `cargo bench -p flotilla-engine --bench collectives`, and with `taskset -c 0` before the program for two
//! ranks that share a core.

use flotilla_engine::collective::{Collective, ProcessCollective, threads};
use flotilla_shared::{Epoch, Links, Rank, WireFormat};
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// (elements, sums a turn): half a row of H = 2880, a row, 91 rows, and a prefill of 512.
const SHAPES: [(usize, usize); 4] = [(1440, 2000), (2880, 2000), (262_144, 40), (2880 * 512, 10)];
const TURNS: usize = 9;

type Ranks = [Box<dyn Collective>; 2];

fn main() {
    let mut ways: Vec<(&str, Ranks)> = vec![
        ("threads", by_threads()),
        ("shm", by_links(&[0, 0], WireFormat::F32, None)),
        ("shm, at once asleep", by_links(&[0, 0], WireFormat::F32, Some(Duration::ZERO))),
        ("tcp", by_links(&[0, 1], WireFormat::F32, None)),
        ("tcp, at once asleep", by_links(&[0, 1], WireFormat::F32, Some(Duration::ZERO))),
        ("tcp, int8", by_links(&[0, 1], WireFormat::Int8, None)),
    ];
    println!("{:>10} {:<20} {:>12} {:>12}", "elements", "way", "median", "one in 100");
    for (n, sums) in SHAPES {
        let mut times = vec![Vec::new(); ways.len()];
        for _ in 0..TURNS {
            for ((_, ranks), times) in ways.iter_mut().zip(&mut times) {
                times.extend(turn(ranks, n, sums));
            }
        }
        for ((way, _), times) in ways.iter().zip(&mut times) {
            times.sort();
            let (median, late) = (times[times.len() / 2], times[times.len() * 99 / 100]);
            println!("{n:>10} {way:<20} {median:>12.2?} {late:>12.2?}");
        }
    }
}

fn by_threads() -> Ranks {
    let [a, b]: [_; 2] = threads::group(2).try_into().unwrap_or_else(|_| unreachable!("two were asked for"));
    [Box::new(a), Box::new(b)]
}

fn by_links(hosts: &[u16], wire: WireFormat, spin: Option<Duration>) -> Ranks {
    let links = Links { hosts: hosts.to_vec(), must_share: true, wire, ..Links::default() };
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("loopback has a port"));
    let peers: Vec<String> =
        listeners.iter().map(|l| l.local_addr().expect("it is bound").to_string()).collect();
    let mut rank = 0;
    let members = listeners.map(|listener| {
        let (peers, links, us) = (peers.clone(), links.clone(), Rank(rank));
        rank += 1;
        std::thread::spawn(move || {
            let deadline = Duration::from_secs(10);
            let mut group = ProcessCollective::connect(us, listener, &peers, &[1; 32], Epoch(1), deadline)
                .expect("two ranks meet");
            group.link(&links).expect("a process can open its own memory");
            spin.into_iter().for_each(|spin| group.set_spin(spin));
            Box::new(group) as Box<dyn Collective>
        })
    });
    members.map(|member| member.join().expect("the ranks met"))
}

/// Times of rank 0's sums; the first, which warms up, is not counted.
fn turn(ranks: &mut Ranks, n: usize, sums: usize) -> Vec<Duration> {
    let [a, b] = ranks;
    std::thread::scope(|scope| {
        scope.spawn(move || time(&mut **b, n, sums));
        time(&mut **a, n, sums)
    })
}

fn time(group: &mut dyn Collective, n: usize, sums: usize) -> Vec<Duration> {
    let mut x = vec![0.5f32; n];
    let sum = |_| {
        // The values stay what they are.
        x.fill(0.5);
        let start = Instant::now();
        group.all_reduce(&mut x).expect("both ranks are here");
        start.elapsed()
    };
    (0..=sums).map(sum).skip(1).collect()
}
