//! What a plan says that a rank takes on a card is what it takes, and no change of plan takes more on the way. A process of
//! its own, and one test at a time: a card's free memory is everybody's.

#[path = "cuda/support.rs"]
mod support;

use flotilla_engine::backend::cuda::{CudaBackend, CudaSettings, CudaWeights, weight_bytes};
use flotilla_engine::cuda::{Card, CudaError};
use flotilla_engine::weights::{Synthetic, WeightSink};
use flotilla_shared::KvBlocks;
use flotilla_shared::plan::{Demand, StageCut};
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{
    Assignment, BackendKind, Epoch, ModelSpec, Plan, Rank, TensorSlice, WeightOrigin, WeightsId,
};
use serde_json::json;
use std::sync::{Mutex, PoisonError};
use support::TestCard;

/// What a plan may be off by, of what is taken.
const OFF_MAX: f64 = 0.03;

/// Below this, what a plan does not know is more than that: the gaps between tensors, and the number of parts of
/// attention, which follows from the size of the card. Of a published model both are nothing.
const SMALL_BYTES: u64 = 100 << 20;

/// Between tensors, at most: each begins at a multiple of it. The plan counts the checkpoint's bytes.
const GAP_BYTES: u64 = 256;

/// Blocks of parts of attention beyond one a row: at most, whatever the card.
const PARTS_MAX: usize = 128;

struct Case {
    name: &'static str,
    spec: ModelSpec,
    /// Layers of each stage, which all have the same shares.
    layers: &'static [usize],
    shares: &'static [f64],
    ranks: &'static [u16],
    demand: Demand,
}

fn cases() -> Vec<Case> {
    let widths = [("num_hidden_layers", 2), ("num_local_experts", 4), ("vocab_size", 8192)];
    let wide = spec(&widths);
    let demo = spec(&[
        ("hidden_size", 128),
        ("intermediate_size", 128),
        ("num_hidden_layers", 4),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("head_dim", 32),
        ("num_local_experts", 8),
        ("num_experts_per_tok", 2),
        ("experts_per_token", 2),
        ("vocab_size", 1568),
    ]);
    let demand = |kv_tokens: usize, step_tokens_max| {
        let full = kv_tokens.div_ceil(BLOCK_TOKENS) as u32;
        Demand { kv_blocks: KvBlocks { full, window: full / 3 }, step_tokens_max, logit_rows_max: 64 }
    };
    vec![
        Case {
            name: "20b's widths, whole",
            spec: wide.clone(),
            layers: &[2],
            shares: &[1.0],
            ranks: &[0],
            demand: demand(4096, 512),
        },
        Case {
            name: "20b's widths, the last of 4",
            spec: wide.clone(),
            layers: &[2],
            shares: &[1.0; 4],
            ranks: &[3],
            // With guesses: more than there is room for without a word.
            demand: Demand { logit_rows_max: 320, ..demand(4096, 512) },
        },
        Case {
            name: "20b's widths, long steps",
            spec: wide,
            layers: &[2],
            shares: &[1.0],
            ranks: &[0],
            demand: demand(1000, 2048),
        },
        Case {
            name: "the demo's shape",
            spec: demo.clone(),
            layers: &[4],
            shares: &[1.0],
            ranks: &[0],
            demand: demand(4096, 256),
        },
        Case {
            name: "the demo's shape, uneven",
            spec: demo.clone(),
            layers: &[4],
            shares: &[3.0, 1.0],
            ranks: &[0, 1],
            demand: demand(160, 32),
        },
        Case {
            name: "a rank that has norms alone",
            spec: demo,
            layers: &[2],
            shares: &[1.0, 0.0],
            ranks: &[1],
            demand: demand(4096, 256),
        },
    ]
}

fn spec(sizes: &[(&str, usize)]) -> ModelSpec {
    let mut config: serde_json::Value = serde_json::from_str(flotilla_shared::spec::PUBLISHED[1].1).unwrap();
    for (field, size) in sizes {
        config[field] = json!(size);
    }
    let layers = config["num_hidden_layers"].as_u64().unwrap() as usize;
    let kinds: Vec<_> = ["sliding_attention", "full_attention"].into_iter().cycle().take(layers).collect();
    config["layer_types"] = json!(kinds);
    ModelSpec::from_config_json(&config.to_string()).unwrap()
}

static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn what_is_planned_is_what_is_taken() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for TestCard { name, card } in support::cards() {
        println!("{name}: {:<28} {:>4} {:>12} {:>12} {:>7}", "case", "rank", "planned", "taken", "off");
        for case in cases() {
            for &rank in case.ranks {
                check(name, &card, &case, Rank(rank));
            }
        }
    }
}

fn check(kind: &str, card: &Card, case: &Case, rank: Rank) {
    let Case { name, spec, layers, shares, demand, .. } = case;
    let stages: Vec<StageCut> = layers.iter().map(|&layers| StageCut::even(layers, shares)).collect();
    let mut plan = Plan::with_stages(spec, &stages);
    let ranks = plan.stages.iter_mut().flat_map(|stage| &mut stage.ranks);
    ranks.for_each(|share| share.backend = BackendKind::Cuda);
    let (_, share) = plan.share(rank);
    let planned = plan.total_bytes(spec, rank, *demand);
    let assignment = Assignment {
        epoch: Epoch(1),
        rank,
        spec: spec.clone(),
        plan: plan.clone(),
        weights: WeightOrigin::Synthetic { seed: 1 },
        weights_id: WeightsId([0; 32]),
        kv_blocks: demand.kv_blocks,
        step_tokens_max: demand.step_tokens_max as u32,
        logit_rows_max: demand.logit_rows_max as u32,
        sampleable: vec![0..spec.vocab as u32],
        peers: vec![],
        links: Default::default(),
        group_key: [0; 32],
        holders: Vec::new(),
        lends: false,
    };
    let slices = plan.slices(spec, rank);
    let gaps = slices.len() as u64 * GAP_BYTES;
    let free = card.memory_free_bytes().unwrap();
    let mut weights = CudaWeights::new(card, slices).unwrap();
    // What they are plays no part.
    weights.finish().unwrap();
    let backend = CudaBackend::new(&CudaSettings::default(), &assignment, weights).unwrap();
    let taken = free - card.memory_free_bytes().unwrap();
    let weights = backend.into_weights().expect("the card works");
    let bytes = weights.bytes();
    let (left, _) = card.stream().context().mem_get_info().unwrap();
    // As a load that is broken off is dropped: by a thread that has nothing to do with the card.
    std::thread::spawn(move || drop(weights)).join().unwrap();
    let freed = card.memory_free_bytes().unwrap();
    let off = planned as f64 - taken as f64;
    let part = off / taken as f64;
    println!("{kind}: {name:<28} {:>4} {planned:>12} {taken:>12} {:>6.2}%", rank.0, part * 100.0);
    if kind == "cuda" {
        // A real driver takes memory in pieces of megabytes, and its modules are in it: to be read, not asserted.
        return;
    }
    // An arena that nothing is in has a byte.
    let kept = free - left as u64;
    let kept_max = bytes + spec.layers.len() as u64 + 1;
    assert!((bytes..=kept_max).contains(&kept), "{name}, rank {rank}: {kept} kept, of weights {bytes}");
    assert_eq!(freed, free, "{name}, rank {rank}: and the weights with them");
    let (mut more, mut less) = (OFF_MAX * taken as f64, OFF_MAX * taken as f64);
    if taken < SMALL_BYTES {
        let heads = spec.q_heads_of(&share.kv_heads).len();
        less += gaps as f64;
        more += (PARTS_MAX * heads * (spec.head_dim + 2) * 4) as f64;
    }
    assert!((-less..=more).contains(&off), "{name}, rank {rank}: {planned} bytes planned, {taken} taken");
}

#[test]
fn weights_take_on_a_card_what_they_take_in_the_checkpoint() {
    for model in ["gpt-oss-120b", "gpt-oss-20b"] {
        let spec = ModelSpec::published(model).unwrap();
        for ranks in [1, 2, 4, 8] {
            let plan = Plan::with_shares(&spec, &vec![1.0; ranks]);
            for share in plan.ranks() {
                let slices = plan.slices(&spec, share.rank);
                let held: u64 = slices.iter().map(|slice: &TensorSlice| slice.bytes() as u64).sum();
                let taken = weight_bytes(&slices);
                let over = taken as f64 / held as f64 - 1.0;
                if share.rank.0 == 0 {
                    println!("{model} on {ranks}: {held} held, {taken} taken, {:.5} % more", over * 100.0);
                }
                assert!((0.0..=0.01).contains(&over), "{model}, rank {} of {ranks}", share.rank);
            }
        }
    }
}

/// From the middle of three to one of two and back, to another stage, and to all there is: with room for the larger share it
/// succeeds, with less it is an error that gives everything back.
#[test]
fn weights_that_are_cut_anew_take_no_more_than_the_larger_share() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let spec = spec(&[
        ("hidden_size", 128),
        ("intermediate_size", 384),
        ("num_hidden_layers", 4),
        ("num_attention_heads", 12),
        ("num_key_value_heads", 6),
        ("head_dim", 32),
        ("num_local_experts", 8),
        ("vocab_size", 1568),
    ]);
    let whole = |count: usize| Plan::with_shares(&spec, &vec![1.0; count]);
    let plans = [whole(3), whole(2), Plan::even(&spec, 2, 2), whole(3), whole(1), whole(2)];
    let cuts = plans.map(|plan| plan.slices(&spec, Rank(plan.rank_count() as u16 / 2)));
    for TestCard { name, card } in support::cards().into_iter().filter(|card| card.name != "cuda") {
        // A real driver takes memory in pieces of megabytes: there the room says nothing.
        let free = card.memory_free_bytes().unwrap();
        let mut weights = CudaWeights::new(&card, cuts[0].clone()).unwrap();
        weights.load_from(&Synthetic::new(spec.clone(), 1), &mut |_, _| {}).unwrap();
        for slices in &cuts[1..] {
            let grows = weight_bytes(slices).saturating_sub(weights.bytes());
            let _rest = leave_room(&card, grows + EMPTY_ARENAS);
            weights = weights.recut(slices.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
            weights.finish().unwrap();
        }
        let weights = weights.recut(cuts[0].clone()).unwrap();
        let rest = leave_room(&card, weight_bytes(&cuts[4]) - weights.bytes() - 1);
        let Err(error) = weights.recut(cuts[4].clone()) else { panic!("{name}: there is no room") };
        assert!(matches!(error, CudaError::OutOfMemory { .. }), "{name}: {error}");
        drop(rest);
        assert_eq!(card.memory_free_bytes().unwrap(), free, "{name}");
    }
}

/// Each a byte.
const EMPTY_ARENAS: u64 = 8;

/// Takes everything but so many bytes.
fn leave_room(card: &Card, bytes: u64) -> impl Sized + use<> {
    let free = card.memory_free_bytes().unwrap();
    card.zeros::<u8>((free - bytes) as usize).unwrap()
}
