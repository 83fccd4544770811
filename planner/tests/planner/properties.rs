//! What holds of every plan that is chosen: it passes the check, fits, gives every element one owner, and is no slower than
//! what the coordinator would do without a planner.

use crate::fleets;
use flotilla_planner::{
    Aim, Choice, Costs, Fleet, Goal, Link, Reason, Ways, choose, kv_tokens_max, predict_decode,
};
use flotilla_shared::spec::Rope;
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::tensor::TensorId;
use flotilla_shared::{BackendKind, Demand, Inventory, KvBlocks, LayerKind, ModelSpec, Plan, PlanError};
use proptest::prelude::*;
use proptest::sample::select;

fn small_spec() -> impl Strategy<Value = ModelSpec> {
    let heads = (1usize..4, 1usize..6);
    let layers = prop::collection::vec(select(vec![LayerKind::Full, LayerKind::Window]), 1..6);
    (1usize..3, 1usize..6, heads, 2usize..7, 1usize..40, layers).prop_map(
        |(hidden, blocks, (group, kv_heads), experts, vocab, layers)| ModelSpec {
            hidden: hidden * 32,
            intermediate: blocks * 32,
            layers,
            q_heads: group * kv_heads,
            kv_heads,
            head_dim: 4,
            experts,
            experts_per_token: 2,
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

/// Of pairs of the hosts of [`numbers`]; cut ones where `cuts` are wanted.
fn ways(cuts: bool) -> impl Strategy<Value = Ways> {
    let links = ["1gbe", "25gbe", "nvlink"].map(|name| Some(Link::preset(name)));
    let link = if cuts {
        prop_oneof![select(links.to_vec()), Just(None)].boxed()
    } else {
        select(links.to_vec()).boxed()
    };
    prop::collection::vec((0u16..3, 0u16..3, link), 0..5).prop_map(|ways| ways.into_iter().collect())
}

/// Memory in parts of `unit_gb`, bandwidth, host.
type Numbers = Vec<(f64, f64, u16)>;

fn numbers() -> impl Strategy<Value = Numbers> {
    prop::collection::vec((0.1f64..3.0, select(vec![0.0, 1e9, 4e10, 3e11, 1e12]), 0u16..3), 1..7)
}

fn fleet(numbers: &Numbers, unit_bytes: f64, mixed: bool, links: (&str, &str)) -> Fleet {
    let device = |(at, &(memory, bandwidth, _)): (usize, &(f64, f64, u16))| Inventory {
        backend: if mixed && at % 3 == 0 { BackendKind::Cpu } else { BackendKind::Cuda },
        memory_bytes: (memory * unit_bytes) as u64,
        bandwidth,
        compute: 0.0,
        expert_compute: 0.0,
        ..fleets::card(1.0, 1.0, 1.0)
    };
    Fleet {
        devices: numbers.iter().enumerate().map(device).collect(),
        hosts: numbers.iter().map(|(_, _, host)| *host).collect(),
        within: Link::preset(links.0),
        between: Link::preset(links.1),
        ways: Default::default(),
        within_cards: None,
        int8: false,
        costs: Costs::default(),
    }
}

fn goals() -> impl Strategy<Value = Goal> {
    let aims = prop_oneof![Just(Aim::Latency), (1usize..70).prop_map(|clients| Aim::Throughput { clients })];
    let stages = prop_oneof![Just(usize::MAX), 1usize..4];
    (aims, 1usize..20_000, stages).prop_map(|(aim, context, stages_max)| Goal { aim, context, stages_max })
}

fn links() -> impl Strategy<Value = (&'static str, &'static str)> {
    (select(vec!["shm", "pcie4", "nvlink"]), select(vec!["1gbe", "10gbe", "100gbe"]))
}

fn check(
    spec: &ModelSpec,
    fleet: &Fleet,
    goal: Goal,
    demand: Demand,
    choice: &Choice,
) -> Result<(), TestCaseError> {
    let Choice { plan, devices, .. } = choice;
    prop_assert_eq!(plan.check(spec), Ok(()));
    prop_assert!(plan.stages.len() <= goal.stages_max);
    prop_assert_eq!(devices.len(), plan.rank_count());
    let mut once = devices.clone();
    once.extend(choice.left_out.iter().map(|left_out| left_out.device));
    once.sort_unstable();
    prop_assert_eq!(once, (0..fleet.devices.len()).collect::<Vec<_>>());
    for (at, &a) in devices.iter().enumerate() {
        prop_assert!(devices[..at].iter().all(|&b| fleet.reaches(a, b)), "{devices:?} in {fleet:?}");
    }
    for left_out in &choice.left_out {
        if let Reason::OutOfReach { of } = left_out.reason {
            prop_assert!(devices.contains(&of) && !fleet.reaches(left_out.device, of));
        }
    }
    let memory: Vec<u64> = devices.iter().map(|&device| fleet.devices[device].memory_bytes).collect();
    for ((share, &device), &memory) in plan.ranks().zip(devices).zip(&memory) {
        prop_assert!(plan.total_bytes(spec, share.rank, demand) <= memory);
        prop_assert_eq!(share.backend, fleet.devices[device].backend);
    }
    let tokens = kv_tokens_max(spec, plan, &memory, 2, demand.step_tokens_max);
    let fits = |tokens| {
        let kv_blocks = KvBlocks::for_tokens(tokens, spec.window, 2, demand.step_tokens_max);
        let demand = Demand { kv_blocks, ..demand };
        let mut ranks = plan.ranks().zip(&memory);
        ranks.all(|(share, &memory)| plan.total_bytes(spec, share.rank, demand) <= memory)
    };
    prop_assert!(tokens == 0 || fits(tokens));
    prop_assert!(!fits(tokens + BLOCK_TOKENS));
    prop_assert!(choice.decode.token_s.is_finite() && choice.decode.token_s > 0.0);
    if let Some(other) = &choice.runner_up {
        prop_assert!(other.kind != choice.kind && other.lost.ratio >= 1.0 - 1e-9);
        prop_assert_eq!(other.plan.check(spec), Ok(()));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_element_has_an_owner_that_has_room(
        spec in small_spec(),
        numbers in numbers(),
        goal in goals(),
        mixed in any::<bool>(),
        links in links(),
        ways in ways(true),
    ) {
        let weights: u64 = TensorId::all(&spec).map(|tensor| tensor.info(&spec).bytes()).sum();
        let fleet = Fleet { ways, ..fleet(&numbers, weights as f64, mixed, links) };
        let demand = Demand { kv_blocks: KvBlocks::plain(2), step_tokens_max: 3, logit_rows_max: 64 };
        let Ok(choice) = choose(&spec, &fleet, goal, demand) else { return Ok(()) };
        check(&spec, &fleet, goal, demand, &choice)?;
        for tensor in TensorId::all(&spec).filter(|tensor| !tensor.replicated()) {
            let shape = tensor.shape(&spec);
            let mut owners = vec![0; shape.iter().product()];
            for share in choice.plan.ranks() {
                let slices = choice.plan.slices(&spec, share.rank);
                for slice in slices.iter().filter(|slice| slice.tensor == tensor) {
                    slice.runs(&shape).flatten().for_each(|element| owners[element] += 1);
                }
            }
            prop_assert!(owners.iter().all(|owners| *owners == 1), "{tensor}");
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn nothing_is_slower_than_without_a_planner(
        numbers in numbers(),
        goal in goals(),
        mixed in any::<bool>(),
        links in links(),
        ways in ways(false),
    ) {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let fleet = Fleet { ways, ..fleet(&numbers, 10e9, mixed, links) };
        let tokens = goal.context.min(4096);
        let demand = Demand { kv_blocks: KvBlocks::for_tokens(tokens, spec.window, 4, 256), step_tokens_max: 256, logit_rows_max: 64 };
        let found = choose(&spec, &fleet, goal, demand);
        if let Ok(choice) = &found {
            check(&spec, &fleet, goal, demand, choice)?;
        }
        let scarcer = |device: &Inventory| Inventory {
            memory_bytes: (device.memory_bytes as f64 * 0.98) as u64,
            ..device.clone()
        };
        let scarce: Vec<Inventory> = fleet.devices.iter().map(scarcer).collect();
        if let Ok(plain) = Plan::tensor_parallel(&spec, &scarce, demand) {
            let devices: Vec<usize> = (0..fleet.devices.len()).collect();
            let sequences = goal.aim.sequences();
            let plain_s = predict_decode(&spec, &fleet, &plain, &devices, sequences, goal.context).token_s;
            let chosen_s = found.map(|choice| choice.decode.token_s);
            prop_assert!(chosen_s.is_ok(), "{chosen_s:?}, but {plain:?} fits");
            let chosen_s = chosen_s.unwrap();
            prop_assert!(chosen_s <= 1.01 * plain_s, "{chosen_s} s, but {plain:?} takes {plain_s} s");
        }
    }
}

#[test]
fn what_does_not_fit_says_what_is_missing() {
    let spec = ModelSpec::published("gpt-oss-120b").unwrap();
    let goal = Goal { aim: Aim::Latency, context: 4096, stages_max: usize::MAX };
    let demand = fleets::demand(&spec, goal);
    let small = fleet(&vec![(1.0, 1e12, 0); 3], 16e9, false, ("pcie4", "10gbe"));
    let error = choose(&spec, &small, goal, demand).unwrap_err();
    assert!(matches!(error, PlanError::TooLarge { ranks: 3, .. }), "{error}");
    assert!(error.to_string().contains("are missing\nhint: raise --workers"), "{error}");
    let none = Fleet { devices: vec![], hosts: vec![], ..small };
    assert_eq!(choose(&spec, &none, goal, demand), Err(PlanError::Ranks(0)));
}

/// They are never ranks of one group, so one says nothing of the other, not even that it does not know its own rate.
#[test]
fn cards_are_planned_for_as_if_no_cpu_were_there() {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let goal = Goal { aim: Aim::Latency, context: 4096, stages_max: 1 };
    let demand = fleets::demand(&spec, goal);
    let cards = fleet(&vec![(20.0, 9e11, 0), (20.0, 3e11, 0)], 1e9, false, ("pcie4", "10gbe"));
    let alone = choose(&spec, &cards, goal, demand).unwrap();
    let heads: Vec<usize> = alone.plan.ranks().map(|share| share.kv_heads.len()).collect();
    assert_eq!(heads, [6, 2]);
    for bandwidth in [0.0, 1.0, 4e10] {
        let mut beside = cards.clone();
        beside.devices.push(Inventory { backend: BackendKind::Cpu, bandwidth, ..cards.devices[0].clone() });
        beside.hosts.push(0);
        let choice = choose(&spec, &beside, goal, demand).unwrap();
        assert_eq!((choice.plan, choice.decode), (alone.plan.clone(), alone.decode.clone()), "{bandwidth}");
    }
}

#[test]
fn cpus_that_offer_nothing_are_too_small() {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let goal = Goal { aim: Aim::Latency, context: 4096, stages_max: usize::MAX };
    let mut none = fleet(&vec![(0.0, 4e10, 0)], 1e9, false, ("shm", "10gbe"));
    none.devices[0].backend = BackendKind::Cpu;
    let error = choose(&spec, &none, goal, fleets::demand(&spec, goal)).unwrap_err();
    assert!(matches!(error, PlanError::TooLarge { ranks: 1, offered: 0, .. }), "{error}");
}

/// Norms and routers are on every rank: a device without room for them is none, however few heads and blocks it would get.
#[test]
fn a_device_without_room_for_what_all_hold_is_left_out() {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let fleet = fleet(&vec![(3.0, 1e12, 0), (3.0, 1e12, 0), (1e-4, 1e12, 0)], 10e9, false, ("pcie4", "1gbe"));
    for aim in [Aim::Latency, Aim::Throughput { clients: 8 }] {
        let goal = Goal { aim, context: 16, stages_max: usize::MAX };
        let demand = fleets::demand(&spec, goal);
        let choice = choose(&spec, &fleet, goal, demand).unwrap();
        check(&spec, &fleet, goal, demand, &choice).unwrap();
        assert_eq!(choice.left_out.len(), 1);
    }
}

/// Many devices, each of a kind of its own: the search must end, and its plan hold.
#[test]
fn sixty_four_kinds_of_devices_are_planned_for() {
    let spec = ModelSpec::published("gpt-oss-120b").unwrap();
    for (hosts, aim) in [(8, Aim::Latency), (1, Aim::Throughput { clients: 32 })] {
        let numbers =
            (0..64u16).map(|n| (1.0 + f64::from(n) / 20.0, 3e11 + 1e10 * f64::from(n), n * hosts / 64));
        let fleet = fleet(&numbers.collect(), 10e9, false, ("pcie3", "100gbe"));
        let goal = Goal { aim, context: 8192, stages_max: usize::MAX };
        let demand = fleets::demand(&spec, goal);
        let choice = choose(&spec, &fleet, goal, demand).unwrap();
        assert_eq!(choice.plan.check(&spec), Ok(()));
    }
}

/// A slow device behind a slow link makes a plan slower: it is left out, and so is what cannot be a rank of the others.
#[test]
fn devices_that_do_not_help_are_left_out() {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let goal = Goal { aim: Aim::Latency, context: 1024, stages_max: 1 };
    let mut fleet =
        fleet(&vec![(3.0, 1e12, 0), (3.0, 1e12, 0), (3.0, 1e10, 1)], 10e9, false, ("pcie4", "1gbe"));
    let slow = choose(&spec, &fleet, goal, fleets::demand(&spec, goal)).unwrap();
    assert_eq!((slow.devices.len(), slow.left_out.len()), (2, 1));
    assert_eq!(slow.left_out[0].reason.to_string(), "it would not make the plan faster");
    fleet.devices[2].backend = BackendKind::Cpu;
    let other = choose(&spec, &fleet, goal, fleets::demand(&spec, goal)).unwrap();
    assert_eq!(other.left_out[0].reason.to_string(), "processors and cards cannot be ranks of one group");
}

/// Two that do not reach each other are never in one group, nor in stages that have nothing to say to each other: all meet.
#[test]
fn who_is_cut_off_is_left_out_and_it_is_said_why() {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let goal = Goal { aim: Aim::Latency, context: 1024, stages_max: usize::MAX };
    let demand = fleets::demand(&spec, goal);
    let whole =
        fleet(&vec![(0.8, 1e12, 0), (0.8, 1e12, 1), (0.8, 1e12, 2)], 10e9, false, ("pcie4", "100gbe"));
    assert_eq!(choose(&spec, &whole, goal, demand).unwrap().devices.len(), 3);
    let cut = Fleet { ways: [(0, 2, None)].into_iter().collect(), ..whole };
    let choice = choose(&spec, &cut, goal, demand).unwrap();
    check(&spec, &cut, goal, demand, &choice).unwrap();
    assert_eq!((choice.devices.len(), choice.left_out.len()), (2, 1));
    let left_out = choice.left_out[0];
    assert_eq!(left_out.reason, Reason::OutOfReach { of: 2 - left_out.device });
    // The model does not fit on one, and nobody reaches another.
    let mut apart = Fleet { ways: [(0, 1, None), (0, 2, None), (1, 2, None)].into_iter().collect(), ..cut };
    apart
        .devices
        .iter_mut()
        .zip(["a", "b", "c"])
        .for_each(|(device, name)| name.clone_into(&mut device.name));
    let error = choose(&spec, &apart, goal, demand).unwrap_err().to_string();
    assert!(
        error.starts_with("a and b do not reach each other, so one of them is left out, and then the model"),
        "{error}"
    );
    assert!(
        error.contains("over 1 rank ") && error.contains("are missing\nhint: raise --workers"),
        "{error}"
    );
}
