//! What is read off the shelf while weights come, move on and go, and what is told of damage.

use super::fetch::{Service, serve};
use super::shelf::{Found, Shelf};
use super::{Digests, Lent, door, words_of};
use crate::stock::alone;
use flotilla_engine::weights::{Digest, RankWeights, Synthetic, WeightSink, WeightSource};
use flotilla_proto::wire::weights_client::WeightsClient;
use flotilla_proto::{Fetch, wire};
use flotilla_shared::{
    Assignment, Epoch, KvBlocks, ModelSpec, Plan, Rank, TensorSlice, WeightOrigin, WeightsId,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio_stream::StreamExt;
use tonic::transport::Endpoint;
use tonic::{Request, Status, Streaming};

fn source() -> Synthetic {
    let mut spec = ModelSpec::published("gpt-oss-20b").unwrap();
    (spec.hidden, spec.intermediate, spec.vocab, spec.experts) = (64, 160, 203, 6);
    (spec.q_heads, spec.kv_heads, spec.head_dim) = (16, 8, 4);
    spec.layers.truncate(2);
    Synthetic::new(spec, 11)
}

/// Of one rank that holds everything.
pub fn assignment(weights: WeightsId) -> Assignment {
    let spec = source().spec().clone();
    Assignment {
        epoch: Epoch(1),
        rank: Rank(0),
        plan: Plan::with_shares(&spec, &[1.0]),
        weights: WeightOrigin::Stream,
        weights_id: weights,
        kv_blocks: KvBlocks::plain(2),
        step_tokens_max: 4,
        logit_rows_max: 64,
        sampleable: vec![0..9],
        peers: vec![String::new()],
        links: Default::default(),
        group_key: [0; 32],
        holders: Vec::new(),
        lends: false,
        spec,
    }
}

const WEIGHTS: WeightsId = WeightsId([1; 32]);

fn read(slice: &TensorSlice) -> Vec<u8> {
    let mut bytes = vec![0; slice.bytes()];
    source().read(slice, 0, &mut bytes).unwrap();
    bytes
}

#[test]
fn who_reads_hears_of_every_change() {
    let (shelf, assignment) = (Shelf::default(), assignment(WEIGHTS));
    assert!(shelf.offered(WEIGHTS).is_none());
    shelf.begin(&assignment, None, true);
    assert!(shelf.offered(WeightsId([2; 32])).is_none());
    let offered = shelf.offered(WEIGHTS).unwrap();
    let slices = assignment.plan.slices(&assignment.spec, Rank(0));
    let (part, mut out) = (slices[3].clone(), vec![0; slices[3].bytes()]);
    let mut found = |shelf: &Shelf| {
        let found = shelf.read(&offered, &part, 0, &mut out).unwrap();
        assert!(found != Found::Here || out == read(&part));
        found
    };
    assert_eq!(found(&shelf), Found::NotYet, "no memory is there");
    let mut lent = Lent::new(RankWeights::for_slices(slices.clone()).unwrap());
    shelf.lay(lent.reader());
    assert_eq!(found(&shelf), Found::NotYet, "nothing has come");
    lent.load_from(&source(), &mut |_, _| {}).unwrap();
    assert_eq!(found(&shelf), Found::Here);
    // Whoever lifts them is alone with them.
    shelf.lift();
    let whole = Arc::new(lent.into_inner());
    assert_eq!(found(&shelf), Found::NotYet);
    shelf.lay(whole.clone());
    assert_eq!(found(&shelf), Found::Here);
    shelf.lift();
    let mut narrow = alone(whole);
    drop(narrow.take(part.tensor));
    shelf.lay(Arc::new(narrow));
    assert_eq!(found(&shelf), Found::Never, "this is not in memory any more");
    // Another load is another's, of the same weights too.
    shelf.begin(&assignment, None, true);
    assert_eq!(found(&shelf), Found::Gone);
    shelf.clear();
    assert_eq!(found(&shelf), Found::Gone);
}

#[test]
fn digests_outlive_a_load_where_slices_are_cut_alike() {
    let spec = source().spec().clone();
    let [one, two] =
        [&[1.0][..], &[1.0, 1.0]].map(|shares| Plan::with_shares(&spec, shares).slices(&spec, Rank(0)));
    let digests = Digests::of(&one, None);
    one.iter().for_each(|slice| digests.keep(slice, 0, Digest::of(&read(slice))));
    let next = Digests::of(&two, Some(&digests));
    let is_same = |slice: &TensorSlice| one.contains(slice);
    assert!(two.iter().any(is_same) && !two.iter().all(is_same));
    for slice in &two {
        assert_eq!(next.get(slice, 0), is_same(slice).then(|| Digest::of(&read(slice))), "{slice}");
    }
    // Of a slice that is not this load's nothing is kept.
    next.keep(&one[0], 0, Digest([1; 32]));
    assert_eq!(next.get(&one[0], 0), None);
}

/// What is on `shelf` is served at this address, under the key 3.
async fn served(shelf: Shelf) -> (std::net::SocketAddr, AbortOnDrop) {
    served_by(Service::new(shelf, None)).await
}

async fn served_by(service: Service) -> (std::net::SocketAddr, AbortOnDrop) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = serve(service, [3; 32], door::incoming(listener, None));
    (address, AbortOnDrop(tokio::spawn(async { drop(served.await) })))
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// All chunks of `slices`, as somebody asks who has the key.
async fn fetched(address: std::net::SocketAddr, slices: &[TensorSlice]) -> Vec<wire::SliceChunk> {
    try_fetched(address, slices).await.unwrap()
}

async fn try_fetched(
    address: std::net::SocketAddr,
    slices: &[TensorSlice],
) -> Result<Vec<wire::SliceChunk>, Status> {
    opened(address, slices).await?.collect().await
}

/// Of which nothing is read yet.
async fn opened(
    address: std::net::SocketAddr,
    slices: &[TensorSlice],
) -> Result<Streaming<wire::SliceChunk>, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut client = WeightsClient::new(endpoint.connect().await.unwrap());
    let fetch = Fetch {
        epoch: Epoch(1),
        weights: Some(WEIGHTS),
        extents: slices.iter().enumerate().map(|(at, slice)| (at, 0..slice.bytes())).collect(),
        slices: slices.to_vec(),
    };
    let mut request = Request::new(wire::FetchRequest::from(&fetch));
    let key = format!("Bearer {}", words_of(&[3; 32]));
    request.metadata_mut().insert("authorization", key.parse().unwrap());
    Ok(client.fetch(request).await?.into_inner())
}

/// A bit that turned in this worker's memory: the chunk goes out with the digest with which it came.
#[tokio::test]
async fn damage_in_memory_is_found_by_whoever_takes_it() {
    let (shelf, assignment) = (Shelf::default(), assignment(WEIGHTS));
    let slices = assignment.plan.slices(&assignment.spec, Rank(0));
    let digests = shelf.begin(&assignment, None, true);
    slices.iter().for_each(|slice| digests.keep(slice, 0, Digest::of(&read(slice))));
    let mut weights = RankWeights::for_slices(slices.clone()).unwrap();
    weights.load_from(&source(), &mut |_, _| {}).unwrap();
    let damaged = &slices[5];
    weights.tensors_mut().find(|held| held.slice() == damaged).unwrap().bytes_mut()[7] ^= 1;
    shelf.lay(Arc::new(weights));
    let (address, _served) = served(shelf).await;
    for (slice, chunk) in slices.iter().zip(fetched(address, &slices).await) {
        let is_right = Digest::of(&chunk.data).0[..] == chunk.digest[..];
        assert_eq!(is_right, slice != damaged, "{slice}");
    }
}

/// Parts of a share, as another cut wants them, with the model's bytes behind them; `kept`: whose digests are known.
async fn fetched_in_halves(
    kept: bool,
    damaged: bool,
) -> Result<Vec<(TensorSlice, wire::SliceChunk)>, Status> {
    let (shelf, assignment) = (Shelf::default(), assignment(WEIGHTS));
    let slices = assignment.plan.slices(&assignment.spec, Rank(0));
    let digests = shelf.begin(&assignment, None, true);
    slices.iter().filter(|_| kept).for_each(|slice| digests.keep(slice, 0, Digest::of(&read(slice))));
    let mut weights = RankWeights::for_slices(slices.clone()).unwrap();
    weights.load_from(&source(), &mut |_, _| {}).unwrap();
    if damaged {
        weights.tensors_mut().for_each(|held| held.bytes_mut()[7] ^= 1);
    }
    shelf.lay(Arc::new(weights));
    let (address, _served) = served(shelf).await;
    let halves = Plan::with_shares(&assignment.spec, &[1.0, 1.0]).slices(&assignment.spec, Rank(1));
    let halves: Vec<_> = halves.into_iter().filter(|half| !slices.contains(half)).collect();
    assert!(halves.len() > 10);
    let chunks = try_fetched(address, &halves).await?;
    Ok(halves.into_iter().zip(chunks).collect())
}

#[tokio::test]
async fn another_cut_is_made_of_checked_chunks_and_is_proven_only_then() {
    for kept in [true, false] {
        for (half, chunk) in fetched_in_halves(kept, false).await.unwrap() {
            assert!(chunk.data == read(&half), "{half}");
            assert_eq!((chunk.digest.to_vec(), chunk.proven), (Digest::of(&chunk.data).0.to_vec(), kept));
        }
    }
    // Damage is found here, and not sent with a digest that looks right.
    let status = fetched_in_halves(true, true).await.unwrap_err();
    assert!(status.message().contains("is damaged in this worker's memory"), "{status}");
}

#[test]
fn what_is_put_together_of_what_came_without_proof_has_none() {
    let slices = assignment(WEIGHTS).plan.slices(source().spec(), Rank(0));
    let digests = Digests::of(&slices, None);
    digests.doubt(slices[1].tensor);
    for slice in &slices[..2] {
        digests.keep_made(slice, 0, &read(slice));
    }
    let known = [&slices[0], &slices[1]].map(|slice| digests.get(slice, 0));
    assert_eq!(known, [Some(Digest::of(&read(&slices[0]))), None]);
}

/// All that the one rank holds, and its slices.
fn full_shelf() -> (Shelf, Vec<TensorSlice>) {
    let (shelf, assignment) = (Shelf::default(), assignment(WEIGHTS));
    let slices = assignment.plan.slices(&assignment.spec, Rank(0));
    shelf.begin(&assignment, None, true);
    let mut weights = RankWeights::for_slices(slices.clone()).unwrap();
    weights.load_from(&source(), &mut |_, _| {}).unwrap();
    shelf.lay(Arc::new(weights));
    (shelf, slices)
}

/// They say nothing, or a byte, and stay.
#[tokio::test]
async fn connections_that_show_no_key_keep_nobody_out() {
    let (shelf, slices) = full_shelf();
    let (address, _served) = served(shelf).await;
    let mut strangers = Vec::new();
    for number in 0..300 {
        let mut stranger = tokio::net::TcpStream::connect(address).await.unwrap();
        if number % 2 == 0 {
            stranger.write_all(b"P").await.unwrap();
        }
        strangers.push(stranger);
    }
    let chunks = tokio::time::timeout(Duration::from_secs(60), fetched(address, &slices[..2])).await;
    assert_eq!(chunks.expect("it is served").len(), 2);
}

/// They answer pings, and take nothing: as many as there are places kept these from all others for ever.
#[tokio::test]
async fn streams_that_nobody_reads_keep_no_places() {
    let (shelf, slices) = full_shelf();
    let mut service = Service::new(shelf, None);
    service.taken_wait = Duration::from_millis(50);
    let (address, _served) = served_by(service).await;
    // More than the windows of a stream take.
    let all: Vec<_> = std::iter::repeat_n(slices.clone(), 64).flatten().collect();
    let mut unread = Vec::new();
    for _ in 0..4 {
        unread.push(opened(address, &all).await.unwrap());
    }
    let fetch = async { while try_fetched(address, &slices[..2]).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(60), fetch).await.expect("there is a place");
    drop(unread);
}
