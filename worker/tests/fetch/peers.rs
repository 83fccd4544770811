//! Weights from other workers: whatever these do, all of it comes, once, and the coordinator sends no more than it must.

use crate::coordinator::{Coordinator, FakePeer, Fault, Place, holder, source, spec};
use crate::{all_chunks, sent};
use flotilla_engine::backend::cpu::{CpuSettings, DenseWidth};
use flotilla_engine::weights::{CHUNK_BYTES, Digest, WeightSource};
use flotilla_proto::wire::weights_client::WeightsClient;
use flotilla_proto::{Fetch, MESSAGE_BYTES_MAX, wire};
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{Epoch, Holder, Plan, Rank, TensorSlice, WeightsId};
use flotilla_worker::{CacheSettings, Device, Settings};
use std::time::{Duration, Instant};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

/// A worker that hands on what it loads.
fn hands_on(settings: &mut Settings) {
    settings.weights_listen = Some("127.0.0.1:0".parse().unwrap());
}

async fn beside(holders: Vec<Holder>) -> Coordinator {
    Coordinator::start_beside(holders, hands_on, |_| Vec::new()).await
}

/// Of the order of [`Coordinator::slices`], of which there is none yet.
fn places() -> [Place; 2] {
    [TensorId::Embed, TensorId::Unembed].map(|tensor| {
        let slices = Plan::with_shares(&spec(), &[1.0]).slices(&spec(), Rank(0));
        (slices.iter().position(|slice| slice.tensor == tensor).unwrap(), 2 * CHUNK_BYTES)
    })
}

/// What somebody who shows `key` is sent of a slice; `None`: it is said not to be there.
async fn fetch(address: &str, key: &str, request: Fetch) -> Result<Option<Vec<u8>>, Status> {
    fetch_and_ask(address, key, request).await.map(|(bytes, _)| bytes)
}

/// Also whether all of it is proven.
async fn fetch_and_ask(address: &str, key: &str, request: Fetch) -> Result<(Option<Vec<u8>>, bool), Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let client = WeightsClient::new(endpoint.connect().await.unwrap());
    let mut client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut request = Request::new(wire::FetchRequest::from(&request));
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    let mut stream = client.fetch(request).await?.into_inner();
    let (mut bytes, mut proven) = (Vec::new(), true);
    while let Some(chunk) = stream.message().await? {
        if chunk.data.is_empty() {
            return Ok((None, false));
        }
        proven &= chunk.proven;
        assert_eq!(
            (chunk.offset as usize, chunk.digest),
            (bytes.len(), Digest::of(&chunk.data).0.to_vec().into())
        );
        bytes.extend_from_slice(&chunk.data);
    }
    Ok((Some(bytes), proven))
}

fn whole(slice: &TensorSlice) -> Fetch {
    Fetch {
        epoch: Epoch(9),
        weights: Some(source().identity().unwrap()),
        slices: vec![slice.clone()],
        extents: vec![(0, 0..slice.bytes())],
    }
}

fn words(key: &[u8; 32]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every byte that the worker computes with, as it hands it on, is the model's.
async fn expect_right(coordinator: &Coordinator) {
    let (address, key) = coordinator.door.clone().expect("it hands on");
    for slice in coordinator.slices() {
        let bytes = fetch(&address, &words(&key), whole(slice)).await.unwrap().expect("it has everything");
        let mut expected = vec![0; slice.bytes()];
        source().read(slice, 0, &mut expected).unwrap();
        assert!(bytes == expected, "{slice}");
    }
}

/// All came, each chunk once, from whichever side.
async fn expect_whole(coordinator: &mut Coordinator, peers: &[&FakePeer]) {
    coordinator.expect_ready().await;
    let mut came = coordinator.sent();
    peers.iter().for_each(|peer| came.extend(peer.sent()));
    came.sort_unstable();
    assert_eq!(came, all_chunks(coordinator));
    expect_right(coordinator).await;
}

#[tokio::test]
async fn what_another_worker_has_does_not_come_from_the_coordinator() {
    let peer = FakePeer::start(Vec::new()).await;
    let mut coordinator = beside(vec![peer.holder.clone()]).await;
    expect_whole(&mut coordinator, &[&peer]).await;
    assert_eq!(sent(&coordinator).len(), 0);
    use flotilla_shared::Place::{Coordinator, Peer};
    let by = coordinator.loading.by_place;
    assert_eq!((by.of(Peer), by.of(Coordinator)), (coordinator.loading.bytes_total, 0));
}

#[tokio::test]
async fn a_peer_that_breaks_off_is_passed_over_and_nothing_comes_twice() {
    let [_, second] = places();
    let peer = FakePeer::start(vec![(second, Fault::Breaks(1))]).await;
    let mut coordinator = beside(vec![peer.holder.clone()]).await;
    expect_whole(&mut coordinator, &[&peer]).await;
    assert!(!sent(&coordinator).is_empty() && !peer.sent().is_empty());
}

#[tokio::test]
async fn what_a_peer_has_no_place_for_comes_from_the_coordinator() {
    // The first of what all ranks have, which is asked for before all else, and the first of the rest.
    let peer = FakePeer::start(vec![((1, 0), Fault::Busy(1)), ((0, 0), Fault::Busy(1))]).await;
    let mut coordinator = beside(vec![peer.holder.clone()]).await;
    expect_whole(&mut coordinator, &[&peer]).await;
    assert_eq!(peer.sent(), []);
}

#[tokio::test]
async fn a_peer_that_sends_damage_is_passed_over_and_the_damage_is_not_kept() {
    let [first, _] = places();
    let peer = FakePeer::start(vec![(first, Fault::Damaged(u32::MAX))]).await;
    let mut coordinator = beside(vec![peer.holder.clone()]).await;
    coordinator.expect_ready().await;
    expect_right(&coordinator).await;
    assert_eq!(peer.sent().iter().filter(|place| **place == first).count(), 1, "it is asked once");
    assert_eq!(sent(&coordinator)[&first], 1);
}

#[tokio::test]
async fn what_a_peer_lacks_comes_from_the_coordinator_and_the_rest_from_it() {
    let lacking = places();
    let peer = FakePeer::start(lacking.map(|place| (place, Fault::Lacking(1))).to_vec()).await;
    let mut coordinator = beside(vec![peer.holder.clone()]).await;
    expect_whole(&mut coordinator, &[&peer]).await;
    let from_here = sent(&coordinator);
    assert!(lacking.iter().all(|place| from_here.contains_key(place)));
    assert!(from_here.keys().all(|(slice, _)| lacking.iter().any(|(lacking, _)| lacking == slice)));
}

#[tokio::test]
async fn the_next_peer_is_asked_for_what_the_first_does_not_give() {
    let [first, second] = places();
    let lame = FakePeer::start(vec![(first, Fault::Breaks(1)), (second, Fault::Breaks(1))]).await;
    let good = FakePeer::start(Vec::new()).await;
    let mut coordinator = beside(vec![lame.holder.clone(), good.holder.clone()]).await;
    expect_whole(&mut coordinator, &[&lame, &good]).await;
    assert_eq!(sent(&coordinator).len(), 0);
    assert!(!lame.sent().is_empty() && !good.sent().is_empty());
}

#[tokio::test]
async fn who_cannot_be_reached_or_refuses_costs_little() {
    // Nobody listens on the first; the second accepts and says nothing; the third knows another key.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let strict = FakePeer::start(Vec::new()).await;
    let holders = vec![
        holder(gone.to_string(), [7; 32]),
        holder(silent.local_addr().unwrap().to_string(), [7; 32]),
        Holder { key: [8; 32], ..strict.holder.clone() },
    ];
    let start = Instant::now();
    let mut coordinator = beside(holders).await;
    expect_whole(&mut coordinator, &[&strict]).await;
    assert_eq!(strict.sent(), []);
    // Bounded: only what hangs is this slow.
    assert!(start.elapsed() < Duration::from_secs(50), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_peer_that_stands_still_is_waited_for_a_bounded_time() {
    let [_, second] = places();
    let peer = FakePeer::start(vec![(second, Fault::Silent(1))]).await;
    let impatient = |settings: &mut Settings| {
        hands_on(settings);
        settings.collective_timeout = Duration::from_secs(1);
    };
    let holders = vec![peer.holder.clone()];
    let mut coordinator = Coordinator::start_beside(holders, impatient, |_| Vec::new()).await;
    expect_whole(&mut coordinator, &[&peer]).await;
    assert!(sent(&coordinator).contains_key(&second) && !peer.sent().is_empty());
}

/// What is to be loaded lies whole with nobody: it is put together of halves, and what both have comes once.
#[tokio::test]
async fn a_share_is_put_together_of_what_several_hold() {
    let [one, other] = [FakePeer::of_rank(0, 2, vec![]).await, FakePeer::of_rank(1, 2, vec![]).await];
    let mut coordinator = beside(vec![one.holder.clone(), other.holder.clone()]).await;
    coordinator.expect_ready().await;
    assert_eq!(coordinator.sent(), []);
    let total = coordinator.loading.bytes_total as usize;
    assert_eq!(one.bytes_sent() + other.bytes_sent(), total);
    assert!(one.bytes_sent() > total / 3 && other.bytes_sent() > total / 3);
    expect_right(&coordinator).await;
}

/// Three that form anew beside two that have everything: not a byte comes from the coordinator, each is the model's, and, as
/// those who gave it had it from there, proven.
#[tokio::test]
async fn a_group_of_three_takes_everything_from_one_of_two() {
    let start = |seat, holders| Coordinator::start_rank(seat, holders, hands_on, |_| Vec::new());
    let mut two = [start((0, 2), Vec::new()).await, start((1, 2), Vec::new()).await];
    for rank in &mut two {
        rank.expect_loaded().await;
    }
    for rank in 0..3 {
        let mut one = start((rank, 3), two.each_ref().map(Coordinator::holder).to_vec()).await;
        let slices = one.expect_loaded().await;
        assert_eq!(
            (one.sent(), one.loading.by_place.of(flotilla_shared::Place::Peer)),
            (vec![], one.loading.bytes_total)
        );
        let (address, key) = one.door.clone().unwrap();
        for slice in &slices {
            let (bytes, proven) = fetch_and_ask(&address, &words(&key), whole(slice)).await.unwrap();
            let mut expected = vec![0; slice.bytes()];
            source().read(slice, 0, &mut expected).unwrap();
            assert!(bytes.as_ref() == Some(&expected) && proven, "{slice}");
        }
    }
}

/// Two of three are here, and one of them breaks off: the rest comes from the coordinator.
#[tokio::test]
async fn what_a_share_lacks_of_several_comes_from_the_coordinator() {
    let [_, second] = places();
    let breaks = vec![((second.0, 0), Fault::Breaks(1))];
    let [one, other] = [FakePeer::of_rank(0, 3, vec![]).await, FakePeer::of_rank(2, 3, breaks).await];
    let mut coordinator = beside(vec![one.holder.clone(), other.holder.clone()]).await;
    coordinator.expect_ready().await;
    use flotilla_shared::Place::{Coordinator, Peer};
    let by = coordinator.loading.by_place;
    let total = coordinator.loading.bytes_total;
    assert_eq!(
        (by.of(Peer) + by.of(Coordinator), by.of(Peer)),
        (total, (one.bytes_sent() + other.bytes_sent()) as u64)
    );
    assert!(by.of(Peer) > total / 4 && by.of(Coordinator) > total / 4, "{by:?}");
    expect_right(&coordinator).await;
}

/// What was put together is kept in parts, and found again.
#[tokio::test]
async fn parts_that_are_kept_on_disk_are_put_together_again() {
    let dir = tempfile::tempdir().unwrap();
    let keeps = |settings: &mut Settings| {
        hands_on(settings);
        settings.weight_cache = Some(CacheSettings { dir: dir.path().to_owned(), bytes_max: 1 << 30 });
    };
    let [one, other] = [FakePeer::of_rank(0, 2, vec![]).await, FakePeer::of_rank(1, 2, vec![]).await];
    let holders = vec![one.holder.clone(), other.holder.clone()];
    let mut first = Coordinator::start_beside(holders, keeps, |_| Vec::new()).await;
    first.expect_ready().await;
    // It is written behind the loading.
    let deadline = Instant::now() + Duration::from_secs(60);
    let total = first.loading.bytes_total;
    while bytes_in(dir.path()) < total {
        assert!(Instant::now() < deadline, "the disk has all of it at last");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut again = Coordinator::start_beside(Vec::new(), keeps, |_| Vec::new()).await;
    again.expect_ready().await;
    assert_eq!((again.sent(), again.loading.by_place.of(flotilla_shared::Place::Cache)), (vec![], total));
    expect_right(&again).await;
}

/// Weights in finished files, whose names say from where to where they go.
fn bytes_in(dir: &std::path::Path) -> u64 {
    let folders = std::fs::read_dir(dir).unwrap().map(|folder| folder.unwrap().path());
    let files = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|file| file.unwrap());
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    let bytes = |name: String| {
        let (start, end) = name.rsplit_once('~')?.1.split_once('-')?;
        Some(end.parse::<u64>().ok()? - start.parse::<u64>().ok()?)
    };
    names.filter_map(bytes).sum()
}

/// A digest that was made of a peer's memory proves nothing: what came by it is used, and not kept where it would be believed.
#[tokio::test]
async fn what_comes_without_proof_is_not_kept_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let keeps = |settings: &mut Settings| {
        hands_on(settings);
        settings.weight_cache = Some(CacheSettings { dir: dir.path().to_owned(), bytes_max: 1 << 30 });
    };
    let peer = FakePeer::without_proof().await;
    let mut first = Coordinator::start_beside(vec![peer.holder.clone()], keeps, |_| Vec::new()).await;
    expect_whole(&mut first, &[&peer]).await;
    // Nor does this worker say that it can prove it.
    let (address, key) = first.door.clone().unwrap();
    let mut second = Coordinator::start_beside(vec![holder(address, key)], keeps, |_| Vec::new()).await;
    second.expect_ready().await;
    assert_eq!((second.sent(), bytes_in(dir.path())), (vec![], 0));
    expect_right(&second).await;
}

/// The second begins while the first has hardly anything, and takes what comes there as it comes.
#[tokio::test]
async fn two_workers_that_load_at_once_load_one_copy() {
    let first = Coordinator::start_beside(Vec::new(), hands_on, |coordinator| {
        coordinator.slow_down(Duration::from_millis(20));
        Vec::new()
    });
    let mut first = first.await;
    first.hear_hello().await;
    let (address, key) = first.door.clone().unwrap();
    let mut second = beside(vec![holder(address, key)]).await;
    first.expect_ready().await;
    second.expect_ready().await;
    assert_eq!(second.sent(), [], "all of it came from the first");
    assert_eq!(first.sent().len(), all_chunks(&first).len());
    expect_right(&second).await;
    expect_right(&first).await;
}

/// More streams than the first serves at once: they take turns, or come to the coordinator, and nothing is lost.
#[tokio::test]
async fn several_workers_load_from_one() {
    let mut first = beside(Vec::new()).await;
    first.expect_ready().await;
    let (address, key) = first.door.clone().unwrap();
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(beside(vec![holder(address.clone(), key)]).await);
    }
    for other in &mut others {
        other.expect_ready().await;
        expect_right(other).await;
        let by = other.loading.by_place;
        assert!(by.of(flotilla_shared::Place::Peer) > 0, "{by:?}");
    }
}

/// What was rounded is not the model's any more: it comes from the coordinator, or from the peer's disk.
#[tokio::test]
async fn rounded_weights_are_not_handed_on() {
    let rounds = |settings: &mut Settings| {
        hands_on(settings);
        settings.device = Device::Cpu(CpuSettings { dense: DenseWidth::Int8, ..CpuSettings::default() });
    };
    let mut first = Coordinator::start_beside(Vec::new(), rounds, |_| Vec::new()).await;
    first.expect_ready().await;
    let (address, key) = first.door.clone().unwrap();
    let mut second = beside(vec![holder(address, key)]).await;
    second.expect_ready().await;
    let dense = |slice: &TensorSlice| {
        use LayerTensor::{KWeight, OWeight, QWeight, VWeight};
        match slice.tensor {
            TensorId::Unembed => true,
            TensorId::Layer(_, tensor) => [QWeight, KWeight, VWeight, OWeight].contains(&tensor),
            _ => false,
        }
    };
    let from_here = sent(&second);
    let is_from_here = |index: usize| from_here.keys().any(|(slice, _)| *slice == index);
    for (index, slice) in second.slices().iter().enumerate() {
        assert_eq!(is_from_here(index), dense(slice), "{slice}");
    }
    expect_right(&second).await;
}

#[tokio::test]
async fn what_a_disk_keeps_is_handed_on_where_memory_has_it_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let keeps = |settings: &mut Settings| {
        hands_on(settings);
        settings.device = Device::Cpu(CpuSettings { dense: DenseWidth::Int8, ..CpuSettings::default() });
        settings.weight_cache = Some(CacheSettings { dir: dir.path().to_owned(), bytes_max: 1 << 30 });
    };
    let mut coordinator = Coordinator::start_beside(Vec::new(), keeps, |_| Vec::new()).await;
    coordinator.expect_ready().await;
    let (address, key) = coordinator.door.clone().unwrap();
    // It is written behind the loading.
    let deadline = Instant::now() + Duration::from_secs(60);
    for slice in coordinator.slices() {
        while fetch(&address, &words(&key), whole(slice)).await.unwrap().is_none() {
            assert!(Instant::now() < deadline, "the disk has {slice} at last");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    expect_right(&coordinator).await;
}

#[tokio::test]
async fn who_shows_no_key_or_asks_for_what_is_not_there_is_refused() {
    let mut coordinator = beside(Vec::new()).await;
    coordinator.expect_ready().await;
    let (address, key) = coordinator.door.clone().unwrap();
    let norm = coordinator.slices().iter().find(|slice| slice.tensor == TensorId::FinalNorm).unwrap();
    let refused = async |key: &str, request: Fetch| fetch(&address, key, request).await.unwrap_err().code();
    let good = words(&key);
    // The join token is no key.
    for key in ["", "any", &good[1..], &words(&[0; 32])] {
        assert_eq!(refused(key, whole(norm)).await, Code::Unauthenticated, "{key:?}");
    }
    let other = Fetch { weights: Some(WeightsId([1; 32])), ..whole(norm) };
    assert_eq!(refused(&good, other).await, Code::Unavailable);
    assert_eq!(refused(&good, Fetch { weights: None, ..whole(norm) }).await, Code::InvalidArgument);
    let outside = TensorSlice { tensor: TensorId::Embed, ranges: vec![0..1 << 30, 0..64] };
    assert_eq!(refused(&good, Fetch { slices: vec![outside], ..whole(norm) }).await, Code::InvalidArgument);
    assert_eq!(
        refused(&good, Fetch { extents: vec![(0, 1..9)], ..whole(norm) }).await,
        Code::InvalidArgument
    );
    assert!(fetch(&address, &good, whole(norm)).await.unwrap().is_some());
}
