//! What comes over the wire, as entries for fuzzers: none may panic, whatever the bytes are, and what is taken in
//! must hold together.

use crate::wire::{self, from_worker, to_worker};
use crate::{Fetch, Hello, chunk_digest, measured_from, released_from};
use flotilla_shared::{Assignment, Epoch, LinkTest, Loading, Reach, StepOutcome, StepPlan, TensorSlice};
use prost::Message;

/// A message to a worker.
pub fn to_worker(bytes: &[u8]) {
    let Ok(wire::ToWorker { message: Some(message) }) = wire::ToWorker::decode(bytes) else { return };
    match message {
        to_worker::Message::Assignment(assignment) | to_worker::Message::Prepare(assignment) => {
            let Ok(assignment) = Assignment::try_from(assignment) else { return };
            // A plan that was taken in can be asked for everything.
            let (plan, spec) = (&assignment.plan, &assignment.spec);
            for share in plan.ranks() {
                let held: u64 = plan.slices(spec, share.rank).iter().map(|slice| slice.bytes() as u64).sum();
                assert_eq!(held, plan.bytes(spec, share.rank).weights());
            }
            // And so can what others hold.
            assignment.holders.iter().for_each(|holder| drop(holder.held.slices(spec)));
        }
        to_worker::Message::Step(step) => drop(StepPlan::try_from(step)),
        to_worker::Message::Measure(test) => drop(LinkTest::try_from(test)),
        to_worker::Message::Dissolve(_) | to_worker::Message::Meet(_) => {}
    }
}

/// A message of a worker.
pub fn from_worker(bytes: &[u8]) {
    let Ok(wire::FromWorker { message: Some(message) }) = wire::FromWorker::decode(bytes) else { return };
    match message {
        from_worker::Message::Hello(hello) => drop(Hello::try_from(hello)),
        from_worker::Message::Loading(loading) => _ = Loading::from(loading),
        from_worker::Message::Ready(ready) => drop(Reach::try_from(ready)),
        from_worker::Message::Outcome(outcome) => drop(StepOutcome::try_from(outcome)),
        from_worker::Message::Released(released) => drop(released_from(released, Epoch(1))),
        from_worker::Message::Measured(measured) => drop(measured_from(measured)),
        from_worker::Message::Failed(_)
        | from_worker::Message::Leaving(_)
        | from_worker::Message::Loaded(_) => {}
    }
}

/// A chunk of weights, and a slice that is asked for.
pub fn weights(bytes: &[u8]) {
    if let Ok(chunk) = wire::SliceChunk::decode(bytes) {
        drop(chunk_digest(&chunk.digest));
    }
    if let Ok(slice) = wire::Slice::decode(bytes) {
        drop(TensorSlice::try_from(slice));
    }
    if let Ok(request) = wire::FetchRequest::decode(bytes) {
        drop(Fetch::try_from(request));
    }
}

#[cfg(test)]
#[path = "../../tests/support/mutate.rs"]
mod mutate;

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::{Held, Holder, KvBlocks, Links, ModelSpec, Plan, Rank, WeightOrigin, WeightsId};

    fn assignment() -> Vec<u8> {
        let mut spec = ModelSpec::published("gpt-oss-20b").unwrap();
        spec.layers.truncate(2);
        let plan = Plan::with_shares(&spec, &[1.0, 2.0]);
        let share = plan.share(Rank(0)).1.clone();
        let held = Held { weights: WeightsId([8; 32]), layers: 0..2, share };
        let assignment = Assignment {
            epoch: Epoch(1),
            rank: Rank(1),
            plan,
            weights: WeightOrigin::Stream,
            kv_blocks: KvBlocks::plain(8),
            step_tokens_max: 8,
            logit_rows_max: 64,
            sampleable: vec![0..8],
            peers: vec!["a:1".into(), "b:1".into()],
            links: Links::default(),
            group_key: [7; 32],
            holders: vec![Holder { address: "c:1".into(), key: [9; 32], held }],
            lends: true,
            weights_id: WeightsId([8; 32]),
            spec,
        };
        let message = Some(to_worker::Message::Assignment((&assignment).into()));
        wire::ToWorker { message }.encode_to_vec()
    }

    #[test]
    fn messages_that_are_nearly_orders() {
        let step = wire::StepPlan {
            epoch: 1,
            step: 2,
            release: vec![3],
            admit: vec![wire::Admission {
                sequence: 4,
                sampling: Some(Default::default()),
                ..Default::default()
            }],
            work: vec![wire::SequenceWork {
                sequence: 4,
                tokens: vec![1, 2],
                blocks: vec![1],
                ..Default::default()
            }],
        };
        let step = wire::ToWorker { message: Some(to_worker::Message::Step(step)) }.encode_to_vec();
        let meet = wire::ToWorker { message: Some(to_worker::Message::Meet(wire::Meet { epoch: 1 })) };
        mutate::each(&[&assignment(), &step, &meet.encode_to_vec()], 60_000, to_worker);
    }

    #[test]
    fn messages_that_are_nearly_a_workers() {
        let of = |message| wire::FromWorker { message: Some(message) }.encode_to_vec();
        let inventory = wire::Inventory { name: "a".into(), memory_bytes: 1 << 30, ..Default::default() };
        let hello =
            wire::Hello { protocol: 5, inventory: Some(inventory), host: "h".into(), ..Default::default() };
        let sampled = wire::Sampled { sequence: 1, token: 2, ..Default::default() };
        let outcome = wire::StepOutcome { epoch: 1, step: 2, sampled: vec![sampled], ..Default::default() };
        let seeds = [
            of(from_worker::Message::Hello(hello)),
            of(from_worker::Message::Outcome(outcome)),
            of(from_worker::Message::Ready(wire::Ready {
                epoch: 1,
                by_memory: vec![1],
                ..Default::default()
            })),
            of(from_worker::Message::Failed(Default::default())),
            of(from_worker::Message::Loaded(wire::Loaded { epoch: 1 })),
        ];
        mutate::each(&seeds.each_ref().map(Vec::as_slice), 60_000, from_worker);
        let chunk = wire::SliceChunk { digest: vec![1; 32].into(), ..Default::default() }.encode_to_vec();
        let slice =
            wire::Slice { tensor: 40, ranges: vec![wire::Range { start: 1, end: 4 }] }.encode_to_vec();
        mutate::each(&[&chunk, &slice], 30_000, weights);
    }
}
