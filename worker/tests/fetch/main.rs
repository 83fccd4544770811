//! How a worker gets its weights from a coordinator whose streams break and whose chunks come damaged, and from other
//! workers of which the same may be said; and that it then waits until it is told to meet the others.

mod coordinator;
mod meeting;
mod peers;

use coordinator::{Coordinator, Fault};
use flotilla_engine::weights::{CHUNK_BYTES, Extent};
use flotilla_shared::tensor::TensorId;
use std::collections::BTreeMap;

/// (slice, offset) of every chunk of the model, in order.
fn all_chunks(coordinator: &Coordinator) -> Vec<(usize, usize)> {
    let slices = coordinator.slices().iter().enumerate();
    let chunks = slices.flat_map(|(index, slice)| {
        Extent::whole(index, slice).chunks().map(move |chunk| (index, chunk.start))
    });
    chunks.collect()
}

/// How often each chunk was sent.
fn sent(coordinator: &Coordinator) -> BTreeMap<(usize, usize), usize> {
    let mut counts = BTreeMap::new();
    for chunk in coordinator.sent() {
        *counts.entry(chunk).or_default() += 1;
    }
    counts
}

/// The third chunk of the embedding, and of the unembedding.
fn two_chunks(coordinator: &Coordinator) -> [(usize, usize); 2] {
    [TensorId::Embed, TensorId::Unembed].map(|tensor| {
        let slice = coordinator.slices().iter().position(|slice| slice.tensor == tensor);
        (slice.expect("the rank has all tensors"), 2 * CHUNK_BYTES)
    })
}

#[tokio::test]
async fn every_chunk_comes_once() {
    let mut coordinator = Coordinator::start(|_| Vec::new()).await;
    coordinator.expect_ready().await;
    let expected: BTreeMap<_, _> = all_chunks(&coordinator).into_iter().map(|chunk| (chunk, 1)).collect();
    assert!(expected.len() > 40);
    assert_eq!(sent(&coordinator), expected);
}

#[tokio::test]
async fn a_damaged_chunk_is_asked_for_again_alone() {
    let mut coordinator = Coordinator::start(|coordinator| {
        let [first, second] = two_chunks(coordinator);
        vec![(first, Fault::Damaged(1)), (second, Fault::Damaged(2))]
    })
    .await;
    coordinator.expect_ready().await;
    let [first, second] = two_chunks(&coordinator);
    for (chunk, times) in sent(&coordinator) {
        let expected = [(first, 2), (second, 3)].into_iter().find(|(damaged, _)| *damaged == chunk);
        assert_eq!(times, expected.map_or(1, |(_, times)| times), "{chunk:?}");
    }
}

#[tokio::test]
async fn a_broken_stream_goes_on_where_it_broke() {
    let mut coordinator = Coordinator::start(|coordinator| {
        two_chunks(coordinator).map(|chunk| (chunk, Fault::Breaks(2))).to_vec()
    })
    .await;
    coordinator.expect_ready().await;
    let chunks = sent(&coordinator);
    assert!(chunks.values().all(|times| *times == 1), "what had come was not asked for again: {chunks:?}");
    assert_eq!(chunks.len(), all_chunks(&coordinator).len());
}

#[tokio::test]
async fn a_chunk_that_never_comes_whole_ends_the_load_by_name() {
    let mut coordinator = Coordinator::start(|coordinator| {
        let [first, _] = two_chunks(coordinator);
        vec![(first, Fault::Damaged(u32::MAX))]
    })
    .await;
    let reason = coordinator.expect_failed().await;
    for words in ["model.embed_tokens.weight[", "the chunk at byte 2097152 arrived damaged 3 times"] {
        assert!(reason.contains(words), "{words}: {reason}");
    }
}

#[tokio::test]
async fn a_stream_that_always_breaks_is_given_up() {
    let mut coordinator = Coordinator::start(|coordinator| {
        let [first, _] = two_chunks(coordinator);
        vec![(first, Fault::Breaks(u32::MAX))]
    })
    .await;
    let failed = coordinator.expect_failure().await;
    assert!(!failed.blames_another && failed.reason.contains("the stream was cut"), "{failed:?}");
}

/// Others have what it lacks, or the coordinator is mended: it is not the worker's fault.
#[tokio::test]
async fn what_the_coordinator_cannot_read_is_asked_for_again_and_blamed_on_it() {
    for (times, ends) in [(2, false), (u32::MAX, true)] {
        let mut coordinator = Coordinator::start(|coordinator| {
            let [first, _] = two_chunks(coordinator);
            vec![(first, Fault::Unread(times))]
        })
        .await;
        if !ends {
            coordinator.expect_ready().await;
            continue;
        }
        let failed = coordinator.expect_failure().await;
        assert!(failed.blames_another && failed.reason.contains("Input/output error"), "{failed:?}");
    }
}
