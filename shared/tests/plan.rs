//! Every element of every tensor is owned exactly once, for any shape, any number of ranks, any shares.

use flotilla_shared::plan::{ExpertShare, Placement, StageCut, apportion};
use flotilla_shared::spec::Rope;
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{
    BackendKind, Demand, Inventory, KvBlocks, KvDtype, LayerKind, ModelSpec, Plan, PlanError, Rank,
};
use proptest::prelude::*;

fn spec() -> impl Strategy<Value = ModelSpec> {
    let heads = (1usize..5, 1usize..9, 1usize..4);
    (1usize..4, 1usize..6, heads, 1usize..7, 1usize..40, 1usize..3).prop_map(
        |(hidden, blocks, (group, kv_heads, half), experts, vocab, layers)| ModelSpec {
            hidden: hidden * 32,
            intermediate: blocks * 32,
            layers: vec![LayerKind::Window; layers],
            q_heads: group * kv_heads,
            kv_heads,
            head_dim: half * 2,
            experts,
            experts_per_token: 1,
            vocab,
            window: 4,
            context_max: 64,
            norm_eps: 1e-5,
            swiglu_limit: 7.0,
            rope: Rope {
                theta: 150_000.0,
                factor: 32.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                original_context: 4096.0,
                truncate: false,
            },
        },
    )
}

fn shares() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(prop_oneof![Just(1.0), 0.01f64..10.0], 1..=8)
}

/// How many ranks hold each element of a tensor.
fn owners(spec: &ModelSpec, plan: &Plan, tensor: TensorId) -> Vec<usize> {
    let shape = tensor.shape(spec);
    let mut owners = vec![0; shape.iter().product()];
    for share in plan.ranks() {
        for slice in plan.slices(spec, share.rank) {
            if slice.tensor == tensor {
                slice.runs(&shape).flatten().for_each(|element| owners[element] += 1);
            }
        }
    }
    owners
}

fn stage_of(plan: &Plan, tensor: TensorId) -> usize {
    match tensor {
        TensorId::Embed => 0,
        TensorId::Layer(layer, _) => {
            plan.stages.iter().position(|stage| stage.layers.contains(&(layer as usize))).unwrap()
        }
        TensorId::FinalNorm | TensorId::Unembed => plan.stages.len() - 1,
    }
}

fn check_ownership(spec: &ModelSpec, plan: &Plan) -> Result<(), TestCaseError> {
    for tensor in TensorId::all(spec) {
        let expected = if tensor.replicated() { plan.stages[stage_of(plan, tensor)].ranks.len() } else { 1 };
        let owners = owners(spec, plan, tensor);
        prop_assert!(
            owners.iter().all(|n| *n == expected),
            "{}: {:?}, expected {}",
            tensor,
            owners,
            expected
        );
    }
    prop_assert_eq!(plan.check(spec), Ok(()));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_element_has_one_owner(spec in spec(), shares in shares()) {
        check_ownership(&spec, &Plan::with_shares(&spec, &shares))?;
    }

    #[test]
    fn whole_experts_are_the_other_legal_cut(spec in spec(), shares in shares()) {
        let mut plan = Plan::with_shares(&spec, &shares);
        let experts = apportion(spec.experts, &shares);
        for (share, experts) in plan.stages[0].ranks.iter_mut().zip(experts) {
            share.experts = ExpertShare { experts, blocks: 0..spec.intermediate_blocks() };
        }
        check_ownership(&spec, &plan)?;
    }

    #[test]
    fn stages_are_cut_each_by_its_own_shares(
        spec in spec(),
        first in 1usize..3,
        shares in prop::collection::vec((shares(), shares(), shares(), any::<bool>()), 2),
    ) {
        let layers = [first.min(spec.layer_count()), spec.layer_count().saturating_sub(first)];
        let cuts = layers.into_iter().zip(shares).filter(|(layers, _)| *layers > 0);
        let cuts = cuts.map(|(layers, (kv_heads, experts, vocab, whole))| {
            let ranks = kv_heads.len().min(experts.len()).min(vocab.len());
            let placement = if whole { Placement::Whole } else { Placement::Slices };
            let of = |shares: Vec<f64>| shares[..ranks].to_vec();
            StageCut { layers, placement, kv_heads: of(kv_heads), experts: of(experts), vocab: of(vocab) }
        });
        let plan = Plan::with_stages(&spec, &cuts.collect::<Vec<_>>());
        check_ownership(&spec, &plan)?;
        let embedding = |plan: &Plan, rank| plan.bytes(&spec, rank).embedding > 0;
        for (at, stage) in plan.stages.iter().enumerate() {
            for share in &stage.ranks {
                prop_assert_eq!(embedding(&plan, share.rank), at == 0 && !share.vocab.is_empty());
            }
        }
    }

    #[test]
    fn units_go_where_the_shares_say(units in 0usize..2000, shares in shares()) {
        let ranges = apportion(units, &shares);
        let total: f64 = shares.iter().sum();
        let mut next = 0;
        for (range, share) in ranges.iter().zip(&shares) {
            prop_assert_eq!(range.start, next);
            next = range.end;
            let exact = units as f64 * share / total;
            prop_assert!((range.len() as f64 - exact).abs() < 1.0, "{:?} for {}", range, exact);
        }
        prop_assert_eq!(next, units);
    }

    #[test]
    fn no_device_gets_more_than_its_memory(
        spec in spec(),
        devices in prop::collection::vec((0u64..60_000, 0.1f64..10.0), 1..=8),
        kv_tokens in 0usize..200,
    ) {
        let devices: Vec<Inventory> = devices.iter().map(|&(memory, bandwidth)| device(memory, bandwidth)).collect();
        let demand = Demand { kv_blocks: KvBlocks::plain(kv_tokens.div_ceil(BLOCK_TOKENS) as u32), step_tokens_max: 3, logit_rows_max: 64 };
        match Plan::tensor_parallel(&spec, &devices, demand) {
            Ok(plan) => {
                check_ownership(&spec, &plan)?;
                for (share, device) in plan.ranks().zip(&devices) {
                    prop_assert!(plan.total_bytes(&spec, share.rank, demand) <= device.memory_bytes);
                }
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

fn device(memory_bytes: u64, bandwidth: f64) -> Inventory {
    Inventory {
        name: "d".into(),
        backend: BackendKind::Cpu,
        kv: KvDtype::F16,
        device: "cpu".into(),
        memory_bytes,
        bandwidth,
        compute: 0.0,
        expert_compute: 0.0,
        threads: 1,
    }
}

#[test]
fn published_cuts() {
    let spec = ModelSpec::published("gpt-oss-120b").unwrap();
    let lengths = |ranks: usize| {
        let plan = Plan::with_shares(&spec, &vec![1.0; ranks]);
        let heads: Vec<usize> = plan.ranks().map(|share| share.kv_heads.len()).collect();
        let blocks: Vec<usize> = plan.ranks().map(|share| share.experts.blocks.len()).collect();
        (heads, blocks)
    };
    assert_eq!(lengths(3), (vec![3, 3, 2], vec![30, 30, 30]));
    assert_eq!(lengths(4), (vec![2; 4], vec![23, 23, 22, 22]));
    assert_eq!(lengths(5), (vec![2, 2, 2, 1, 1], vec![18; 5]));
    assert_eq!(lengths(7), (vec![2, 1, 1, 1, 1, 1, 1], vec![13, 13, 13, 13, 13, 13, 12]));
}

/// Window layers, half of all, keep their windows only: a cache of a few contexts takes little more than half of
/// what it would take plain, so in the same memory there is room for nearly twice the tokens.
#[test]
fn a_cache_of_long_contexts_takes_about_half_of_a_plain_one() {
    const CONTEXT: usize = 131_072;
    for (model, ranks, contexts) in [("gpt-oss-120b", 1, 2), ("gpt-oss-120b", 8, 4), ("gpt-oss-20b", 2, 8)] {
        let spec = ModelSpec::published(model).unwrap();
        assert!(spec.context_max >= CONTEXT);
        let plan = Plan::with_shares(&spec, &vec![1.0; ranks]);
        let kv = |blocks| -> u64 { plan.ranks().map(|share| plan.bytes(&spec, share.rank).kv(blocks)).sum() };
        let two_pools = |tokens| KvBlocks::for_tokens(tokens, spec.window, 64, 512);
        let blocks = two_pools(contexts * CONTEXT);
        let plain = kv(KvBlocks::plain(blocks.full));
        assert_eq!(
            plain,
            (contexts * CONTEXT * spec.layer_count() * spec.kv_heads * spec.head_dim * 2 * 2) as u64
        );
        let part = kv(blocks) as f64 / plain as f64;
        assert!((0.5..0.55).contains(&part), "{model}, {contexts} contexts: {part} of a plain cache");
        let more_tokens = (contexts * CONTEXT) as f64 * 1.8;
        assert!(kv(two_pools(more_tokens as usize)) <= plain, "{model}: 1.8 times the tokens do not fit");
    }
}

#[test]
fn mixed_cards_get_shares_that_fit() {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let gb = 1_000_000_000;
    let devices = [device(9 * gb, 1.0), device(5 * gb, 1.0), device(3 * gb, 1.0)];
    let demand = Demand { kv_blocks: KvBlocks::plain(256), step_tokens_max: 512, logit_rows_max: 64 };
    let plan = Plan::tensor_parallel(&spec, &devices, demand).unwrap();
    let weights = |rank| plan.bytes(&spec, Rank(rank)).weights();
    assert!(weights(0) > weights(1) && weights(1) > weights(2));

    let small = [device(3 * gb, 1.0), device(3 * gb, 1.0)];
    let error = Plan::tensor_parallel(&spec, &small, demand).unwrap_err();
    assert!(matches!(error, PlanError::TooLarge { ranks: 2, .. }), "{error}");
    assert!(error.to_string().contains("hint: raise --workers"), "{error}");
    assert!(matches!(Plan::tensor_parallel(&spec, &[], demand), Err(PlanError::Ranks(0))));
}

/// Eight heads over seven ranks: who has two of them has fewer experts. Where all fits at once it has not.
#[test]
fn one_head_more_leaves_room_for_fewer_experts() {
    let cases = [("gpt-oss-20b", 16_384), ("gpt-oss-20b", 65_536), ("gpt-oss-20b", 262_144)];
    for (model, tokens) in cases {
        let spec = ModelSpec::published(model).unwrap();
        let kv_blocks = KvBlocks::for_tokens(tokens, spec.window, 64, 512);
        let demand = Demand { kv_blocks, step_tokens_max: 512, logit_rows_max: 64 };
        for ranks in [3, 5, 6, 7] {
            let even = Plan::with_shares(&spec, &vec![1.0; ranks]);
            let needed = |plan: &Plan, rank| plan.total_bytes(&spec, rank, demand);
            let total: u64 = even.ranks().map(|share| needed(&even, share.rank)).sum();
            let devices = vec![device(total / ranks as u64 / 100 * 101, 1.0); ranks];
            let plan =
                Plan::tensor_parallel(&spec, &devices, demand).expect("one part in a hundred is spare");
            assert_eq!(plan.check(&spec), Ok(()));
            assert!(plan.ranks().all(|share| needed(&plan, share.rank) <= devices[0].memory_bytes));
            let experts = |rank| plan.bytes(&spec, Rank(rank)).experts;
            assert!(ranks < 7 || tokens < 262_144 || experts(0) < experts(6), "{tokens} tokens");

            let ample = vec![device(total, 1.0); ranks];
            assert_eq!(Plan::tensor_parallel(&spec, &ample, demand), Ok(even.on(&ample)));
        }
    }
}

/// A worker that does not know its memory offers all that there can be.
#[test]
fn endless_memories_are_added_up() {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let demand = Demand { kv_blocks: KvBlocks::plain(256), step_tokens_max: 512, logit_rows_max: 64 };
    let devices = [u64::MAX, u64::MAX, 1 << 20].map(|memory| device(memory, 1.0));
    let error = Plan::tensor_parallel(&spec, &devices, demand).unwrap_err();
    assert!(matches!(error, PlanError::DeviceTooSmall { rank: Rank(2), .. }), "{error}");
}

#[test]
fn the_hint_is_about_what_takes_most() {
    let hint = |step_tokens_max| {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let demand = Demand { kv_blocks: KvBlocks::plain(4096), step_tokens_max, logit_rows_max: 64 };
        let error = Plan::tensor_parallel(&spec, &[device(1 << 33, 1.0)], demand).unwrap_err().to_string();
        error.rsplit_once("lower ").unwrap().1.to_owned()
    };
    assert_eq!([hint(512), hint(5_000_000_000)], ["--kv-tokens", "--step-tokens"]);
}

/// `flotilla up` tells its own workers that they are alike, by a share; one that joins them later measured its rate.
#[test]
fn a_share_is_not_compared_with_a_rate() {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let gb = 1_000_000_000;
    let demand = Demand { kv_blocks: KvBlocks::plain(256), step_tokens_max: 512, logit_rows_max: 64 };
    let heads = |bandwidths: [f64; 3]| -> Vec<usize> {
        let devices = bandwidths.map(|bandwidth| device(24 * gb, bandwidth));
        let plan = Plan::tensor_parallel(&spec, &devices, demand).unwrap();
        plan.ranks().map(|share| share.kv_heads.len()).collect()
    };
    assert_eq!(heads([1.0, 1.0, 30e9]), [3, 3, 2]);
    assert_eq!(heads([30e9, 2.0, 1.0]), [3, 3, 2]);
    assert_eq!(heads([60e9, 30e9, 30e9]), [4, 2, 2]);
    assert_eq!(heads([2.0, 1.0, 1.0]), [4, 2, 2]);
    assert_eq!(heads([0.0, 1.0, 30e9]), [3, 3, 2]);
}

/// What nobody has the memory for is told as such, however absurd.
#[test]
fn sizes_past_all_bounds_do_not_fit() {
    let most = usize::MAX;
    let blocks = KvBlocks::for_tokens(most, 128, most, most);
    assert_eq!(blocks, KvBlocks::plain(u32::MAX));
    assert_eq!(KvBlocks::for_tokens(1 << 36, 128, 1, 1).full, u32::MAX);
    assert_eq!(KvBlocks::for_tokens(64, 128, most, most), KvBlocks::plain(4));
    let spec = ModelSpec::published("gpt-oss-120b").unwrap();
    let few = Demand { kv_blocks: KvBlocks::plain(256), step_tokens_max: 512, logit_rows_max: 64 };
    for demand in [
        Demand { kv_blocks: blocks, ..few },
        Demand { step_tokens_max: most, ..few },
        Demand { step_tokens_max: most, logit_rows_max: most, ..few },
    ] {
        for backend in [BackendKind::Cpu, BackendKind::Cuda] {
            let devices = vec![Inventory { backend, ..device(u64::MAX >> 24, 1.0) }; 64];
            let error = Plan::tensor_parallel(&spec, &devices, demand).unwrap_err();
            assert!(error.to_string().contains("the model does not fit"), "{demand:?}: {error}");
        }
    }
}

#[test]
fn one_rank_adds_each_bias_of_a_partial_sum() {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let plan = Plan::with_shares(&spec, &[1.0; 8]);
    for bias in [LayerTensor::OBias, LayerTensor::DownBias] {
        let holders = plan.ranks().filter(|share| {
            plan.slices(&spec, share.rank).iter().any(|slice| slice.tensor == TensorId::Layer(3, bias))
        });
        assert_eq!(holders.map(|share| share.rank).collect::<Vec<_>>(), [Rank(0)], "{bias:?}");
    }
}

#[test]
fn a_stage_without_layers_is_refused() {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let cuts = [StageCut::even(24, &[1.0]), StageCut::even(0, &[1.0])];
    let error = Plan::with_stages(&spec, &cuts).check(&spec).unwrap_err();
    assert_eq!(error, "has a stage 1 without layers");
    let too_many = [StageCut::even(20, &[1.0]), StageCut::even(5, &[1.0])];
    assert!(Plan::with_stages(&spec, &too_many).check(&spec).is_err());
}

#[test]
fn only_the_last_stage_has_room_for_logits() {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let demand = Demand { kv_blocks: KvBlocks::plain(64), step_tokens_max: 512, logit_rows_max: 64 };
    let plan = Plan::with_stages(&spec, &[StageCut::even(12, &[1.0]), StageCut::even(12, &[1.0])]);
    let activations = |rank| plan.activation_bytes(&spec, Rank(rank), demand);
    assert_eq!(activations(1) - activations(0), 4 * 64 * spec.vocab as u64);
    let kv = |rank| plan.bytes(&spec, Rank(rank)).kv(demand.kv_blocks);
    assert_eq!(kv(0) + kv(1), Plan::with_shares(&spec, &[1.0]).bytes(&spec, Rank(0)).kv(demand.kv_blocks));
}
