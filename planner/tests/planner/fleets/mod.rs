//! The fleets that the tests plan for.

use flotilla_planner::{Costs, Fleet, Goal, Link, Ways};
use flotilla_shared::{BackendKind, Demand, Inventory, KvBlocks, KvDtype, ModelSpec};

pub fn card(gb: f64, gb_per_s: f64, tflops: f64) -> Inventory {
    Inventory {
        name: format!("{gb} GB"),
        backend: BackendKind::Cuda,
        kv: KvDtype::Bf16,
        device: "a card".into(),
        memory_bytes: (gb * 1e9) as u64,
        bandwidth: gb_per_s * 1e9,
        compute: tflops * 1e12,
        expert_compute: tflops * 1e12,
        threads: 1,
    }
}

fn node(gb: f64, gb_per_s: f64) -> Inventory {
    let (backend, kv) = (BackendKind::Cpu, KvDtype::F16);
    Inventory { backend, kv, compute: 0.0, expert_compute: 0.0, ..card(gb, gb_per_s, 1.0) }
}

fn fleet(devices: Vec<Inventory>, hosts: &[u16], within: &str, between: &str) -> Fleet {
    let (within, between) = (Link::preset(within), Link::preset(between));
    Fleet {
        devices,
        hosts: hosts.to_vec(),
        within,
        between,
        ways: Ways::default(),
        within_cards: None,
        int8: false,
        costs: Costs::default(),
    }
}

/// Hosts that are not all joined alike, or not at all.
pub fn uneven() -> Vec<(String, Fleet)> {
    let (big, middle) = (card(24.0, 936.0, 71.0), card(16.0, 448.0, 60.0));
    let small = card(12.0, 360.0, 25.0);
    let nodes = vec![node(32.0, 40.0), node(32.0, 40.0), node(16.0, 25.0)];
    let link = |name| Some(Link::preset(name));
    let joined = |devices: &[Inventory], between: &str, ways: &[(u16, u16, Option<Link>)]| {
        let hosts: Vec<u16> = (0..devices.len() as u16).collect();
        Fleet { ways: ways.iter().copied().collect(), ..fleet(devices.to_vec(), &hosts, "pcie4", between) }
    };
    let (four, unlike) = (vec![big.clone(); 4], vec![big.clone(), big.clone(), middle, small]);
    let pairs = [(0, 1, link("25gbe")), (2, 3, link("25gbe"))];
    let fleets = [
        ("4x24 in pairs", joined(&four, "1gbe", &pairs)),
        (
            "4x24 of which two are close and two are cut",
            joined(&four, "10gbe", &[(1, 2, link("100gbe")), (0, 3, None)]),
        ),
        ("3x24 of which two are cut", joined(&four[..3], "10gbe", &[(0, 1, None)])),
        (
            "2x24+16+12, the first alone",
            joined(&unlike, "25gbe", &[(0, 1, None), (0, 2, None), (0, 3, None)]),
        ),
        (
            "2x24+16+12, the last by a slow way",
            joined(&unlike, "25gbe", &[(0, 3, link("1gbe")), (1, 3, link("1gbe"))]),
        ),
        ("CPU nodes, of which two are far", joined(&nodes, "25gbe", &[(0, 1, link("1gbe"))])),
        ("CPU nodes, of which two are cut", joined(&nodes, "25gbe", &[(1, 2, None)])),
    ];
    fleets.map(|(name, fleet)| (name.to_owned(), fleet)).into()
}

/// Everything that fits in one host over PCIe, over hosts by every network.
pub fn fleets() -> Vec<(String, Fleet)> {
    let (big, middle) = (card(24.0, 936.0, 71.0), card(16.0, 448.0, 60.0));
    let (small, large) = (card(12.0, 360.0, 25.0), card(32.0, 1792.0, 209.0));
    let t4 = card(16.0, 320.0, 65.0);
    let boxes: [(&str, Vec<Inventory>); 5] = [
        ("4x24", vec![big.clone(); 4]),
        ("3x24", vec![big.clone(); 3]),
        ("24+16+12", vec![big.clone(), middle.clone(), small.clone()]),
        ("2x24+16+12", vec![big.clone(), big, middle, small]),
        ("2x32", vec![large; 2]),
    ];
    let mut fleets = Vec::new();
    for (name, devices) in &boxes {
        let apart: Vec<u16> = (0..devices.len() as u16).collect();
        for link in ["pcie3", "pcie5"] {
            fleets.push((
                format!("{name} {link}"),
                fleet(devices.clone(), &vec![0; apart.len()], link, "10gbe"),
            ));
        }
        for link in ["1gbe", "10gbe", "25gbe", "100gbe"] {
            fleets.push((format!("{name} {link}"), fleet(devices.clone(), &apart, "pcie4", link)));
        }
    }
    for link in ["1gbe", "10gbe", "25gbe", "100gbe"] {
        let hosts = [0, 0, 0, 0, 1, 1, 1, 1];
        fleets.push((format!("8x16 on two hosts {link}"), fleet(vec![t4.clone(); 8], &hosts, "pcie3", link)));
        let nodes = vec![node(32.0, 40.0), node(32.0, 40.0), node(16.0, 25.0)];
        fleets.push((format!("CPU nodes {link}"), fleet(nodes, &[0, 1, 2], "shm", link)));
    }
    fleets
}

/// Room for every sequence's context.
pub fn demand(spec: &ModelSpec, goal: Goal) -> Demand {
    let tokens = goal.aim.sequences() * goal.context;
    Demand {
        kv_blocks: KvBlocks::for_tokens(tokens, spec.window, 64, 512),
        step_tokens_max: 512,
        logit_rows_max: 64,
    }
}
