use flotilla_planner::*;
use flotilla_shared::*;
fn card(mem_gb: f64, bw: f64, tf: f64) -> Inventory {
    Inventory {
        name: "c".into(),
        backend: BackendKind::Cuda,
        kv: KvDtype::Bf16,
        device: "x".into(),
        memory_bytes: (mem_gb * 1e9) as u64,
        bandwidth: bw * 1e9,
        compute: tf * 1e12,
        threads: 1,
    }
}
#[test]
fn look() {
    let spec = ModelSpec::published("gpt-oss-120b").unwrap();
    let mk = |d: Vec<Inventory>, hosts: Vec<u16>, w: &str, b: &str| Fleet {
        devices: d,
        hosts,
        within: Link::preset(w),
        between: Link::preset(b),
        costs: Costs::default(),
    };
    let distinct: Vec<Inventory> =
        (0..8).map(|i| card(14.0 + i as f64, 300.0 + 50.0 * i as f64, 50.0 + i as f64)).collect();
    let big: Vec<Inventory> =
        (0..64).map(|i| card(14.0 + i as f64, 300.0 + 50.0 * i as f64, 50.0 + i as f64)).collect();
    for (name, fleet) in [
        ("4x24 pcie4", mk(vec![card(24.0, 936.0, 71.0); 4], vec![0; 4], "pcie4", "10gbe")),
        (
            "2x4x16 10gbe",
            mk(vec![card(16.0, 320.0, 65.0); 8], vec![0, 0, 0, 0, 1, 1, 1, 1], "pcie3", "10gbe"),
        ),
        ("8 distinct", mk(distinct, vec![0, 0, 0, 0, 1, 1, 1, 1], "pcie3", "10gbe")),
        ("8 hosts", mk(vec![card(16.0, 320.0, 65.0); 8], (0..8).collect(), "pcie3", "1gbe")),
        (
            "64 same",
            mk(vec![card(16.0, 320.0, 65.0); 64], (0..64).map(|i| i / 8).collect(), "pcie3", "100gbe"),
        ),
        ("64 one host", mk(vec![card(16.0, 320.0, 65.0); 64], vec![0; 64], "nvlink", "100gbe")),
        ("64 distinct", mk(big.clone(), (0..64).map(|i| i / 8).collect(), "pcie3", "100gbe")),
        ("64 distinct one", mk(big, vec![0; 64], "pcie3", "100gbe")),
    ] {
        for aim in [Aim::Latency, Aim::Throughput { clients: 32 }] {
            let goal = Goal { aim, context: 8192, stages_max: 99 };
            let demand = Demand {
                kv_blocks: KvBlocks::for_tokens(8192 * aim.sequences(), spec.window, 64, 512),
                step_tokens_max: 512,
            };
            let t = std::time::Instant::now();
            match choose(&spec, &fleet, goal, demand) {
                Ok(c) => {
                    let shape: Vec<String> = c
                        .plan
                        .stages
                        .iter()
                        .map(|s| format!("{}x{}", s.layers.len(), s.ranks.len()))
                        .collect();
                    println!(
                        "{name} {aim:?}: {:?} {} m={} {:.2} ms {:.1} tok/s  runner {:?}  out {} in {:?}",
                        c.kind,
                        shape.join(" "),
                        c.decode.micro_batches,
                        c.decode.token_s * 1e3,
                        c.decode.tokens_per_s,
                        c.runner_up.as_ref().map(|r| format!(
                            "{:?} {:.2}ms {}",
                            r.kind,
                            r.decode.token_s * 1e3,
                            r.lost
                        )),
                        c.left_out.len(),
                        t.elapsed()
                    );
                }
                Err(e) => println!("{name} {aim:?}: {e} {:?}", t.elapsed()),
            }
        }
    }
}
