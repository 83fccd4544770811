//! Ranks that are processes.

use super::*;

const RANK: &str = "FLOTILLA_TEST_PAIR_RANK";
const PATH: &str = "FLOTILLA_TEST_PAIR_PATH";
const PEERS: &str = "FLOTILLA_TEST_PAIR_PEERS";

/// Two processes, each with a card of its own: sums, and then one of them dies.
fn sum_in_two_processes(path: SumPath) {
    let _cards = CARDS.lock().unwrap_or_else(PoisonError::into_inner);
    let (theirs, ours) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = [&ours, &theirs].map(|listener| listener.local_addr().unwrap().to_string());
    // The other one listens for itself; nobody dials rank 1 but the ranks above.
    drop(theirs);
    let mut other = Command::new(env::current_exe().unwrap())
        .args(["--exact", "collective::processes::the_other_process", "--nocapture"])
        .env(RANK, "1")
        .env(PATH, path.to_string())
        .env(PEERS, addresses.join(","))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let error = be_one_of_two(path, Rank(0), ours, &addresses).expect_err("the other one dies");
    assert_eq!(error.culprit(), Some(Rank(1)), "{path}: {error}");
    assert!(!other.wait().unwrap().success(), "it dies");
}

#[test]
fn processes_sum_through_shared_memory() {
    sum_in_two_processes(SumPath::Host);
}

#[test]
fn processes_sum_by_nccl() {
    if can_sum_by_nccl(2) {
        sum_in_two_processes(SumPath::Nccl);
    }
}

/// Started by [`sum_in_two_processes`], and by nobody else.
#[test]
fn the_other_process() {
    let (Ok(rank), Ok(peers)) = (env::var(RANK), env::var(PEERS)) else { return };
    let peers: Vec<String> = peers.split(',').map(str::to_owned).collect();
    let rank = Rank(rank.parse().unwrap());
    let listener = TcpListener::bind(&peers[rank.index()]).unwrap();
    let SumChoice::Only(path) = env::var(PATH).unwrap().parse().unwrap() else { panic!("a path") };
    let result = be_one_of_two(path, rank, listener, &peers);
    panic!("it should have died: {result:?}");
}

fn be_one_of_two(
    path: SumPath,
    rank: Rank,
    listener: TcpListener,
    peers: &[String],
) -> Result<(), CollectiveError> {
    let link = ProcessCollective::connect(rank, listener, peers, &[7; 32], Epoch(3), PATIENCE)?;
    let card = card_of(rank.index(), true);
    let mut group = CardCollective::form(&card, link, &only(path))?;
    assert_eq!(group.path(), Some(path));
    for (round, n) in [2880, LONGEST, 1, 2880].into_iter().enumerate() {
        let mut y = buffer(&card, LONGEST);
        fill(&card, &mut y, &values(round, rank.index(), n));
        group.all_reduce(&mut y)?;
        settle(&mut group)?;
        check(&card, &y, &sums(round, 2, n), "two processes");
    }
    group.barrier()?;
    let start = Instant::now();
    if rank == Rank(1) {
        thread::sleep(Duration::from_millis(300));
        std::process::abort();
    }
    let mut y = buffer(&card, LONGEST);
    let result = group.all_reduce(&mut y).and_then(|()| settle(&mut group));
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    result
}
