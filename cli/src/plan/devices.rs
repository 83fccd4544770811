//! `--devices`: what there is, in words. Groups of equal devices with commas between, hosts with semicolons:
//! `2x24GB@936GB/s,rtx4090; cpu:64GB@40GB/s`.

use flotilla_shared::{BackendKind, Inventory, KvDtype};
use std::str::FromStr;

/// Devices with the host of each.
#[derive(Clone, Debug, PartialEq)]
pub struct Devices(pub Vec<(Inventory, u16)>);

/// Published memory in GiB, read rate in GB/s, and dense bf16 or f16 tensor rate with f32 sums in TFLOP/s: of RTX cards a
/// quarter of the fp8 rate, or an eighth of the fp4 rate, without sparsity. Of those sold with two sizes of memory the plain
/// name is the smaller.
const CARDS: [(&str, f64, f64, f64); 29] = [
    ("a10", 24.0, 600.0, 125.0),
    ("a30", 24.0, 933.0, 165.0),
    ("a40", 48.0, 696.0, 149.7),
    ("a6000", 48.0, 768.0, 154.8),
    ("a100-40gb", 40.0, 1555.0, 312.0),
    ("a100-80gb", 80.0, 2039.0, 312.0),
    ("h100", 80.0, 3350.0, 989.0),
    ("h100-80gb", 80.0, 3350.0, 989.0),
    ("h200", 131.0, 4800.0, 989.0),
    ("l4", 24.0, 300.0, 121.0),
    ("l40", 48.0, 864.0, 181.0),
    ("l40s", 48.0, 864.0, 362.0),
    ("rtx2080ti", 11.0, 616.0, 53.8),
    ("rtx3060", 12.0, 360.0, 25.5),
    ("rtx3080", 10.0, 760.0, 59.5),
    ("rtx3090", 24.0, 936.0, 71.0),
    ("rtx4060ti", 8.0, 288.0, 44.1),
    ("rtx4060ti-16gb", 16.0, 288.0, 44.1),
    ("rtx4070", 12.0, 504.0, 58.3),
    ("rtx4080", 16.0, 717.0, 97.5),
    ("rtx4090", 24.0, 1008.0, 165.2),
    ("rtx5070", 12.0, 672.0, 61.7),
    ("rtx5060ti", 8.0, 448.0, 47.4),
    ("rtx5060ti-16gb", 16.0, 448.0, 47.4),
    ("rtx5080", 16.0, 960.0, 112.6),
    ("rtx5090", 32.0, 1792.0, 209.5),
    ("t4", 16.0, 320.0, 65.0),
    ("v100-16gb", 16.0, 900.0, 125.0),
    ("v100-32gb", 32.0, 900.0, 125.0),
];

/// What a worker offers of a card's memory unless it is told otherwise.
const OFFERED: f64 = 0.9;

const SYNTAX: &str = "write groups as COUNTxMEMORY@BANDWIDTH[/COMPUTE], such as 2x24GB@936GB/s/71TFLOPS, \
                      as cpu:64GB@40GB/s, or as the name of a card; commas between groups, semicolons between hosts";

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Devices, String> {
        let mut devices = Vec::new();
        for (host, groups) in text.split(';').enumerate() {
            for group in groups.split(',') {
                let wrong = |why: String| format!("in {:?}: {why}\nhint: {SYNTAX}", group.trim());
                let (count, one) = one_group(group.trim()).map_err(wrong)?;
                for _ in 0..count {
                    let mut device = one.clone();
                    device.name = format!("{}.{}", host, devices.len());
                    devices.push((device, host as u16));
                }
            }
        }
        Ok(Devices(devices))
    }
}

/// How many of which device.
fn one_group(text: &str) -> Result<(usize, Inventory), String> {
    if text.is_empty() {
        return Err("a group is empty".into());
    }
    let (count, one) = match text.split_once('x') {
        Some((count, one)) if count.bytes().all(|byte| byte.is_ascii_digit()) && !count.is_empty() => {
            (count.parse().map_err(|_| format!("{count} devices are too many"))?, one)
        }
        _ => (1, text),
    };
    if count == 0 || count > 64 {
        return Err(format!("{count} devices, expected 1 to 64"));
    }
    let device = match one.strip_prefix("cpu:") {
        Some(numbers) => measured(BackendKind::Cpu, numbers)?,
        None if one.contains('@') => measured(BackendKind::Cuda, one)?,
        None => card(one)?,
    };
    Ok((count, Inventory { device: one.into(), ..device }))
}

fn card(name: &str) -> Result<Inventory, String> {
    let found = CARDS.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name));
    let Some((_, gib, gb_per_s, tflops)) = found else {
        let names: Vec<&str> = CARDS.iter().map(|(name, ..)| *name).collect();
        return Err(format!("no card is called {name:?}; known are {}", names.join(", ")));
    };
    let memory = gib * f64::from(1 << 30) * OFFERED;
    Ok(inventory(BackendKind::Cuda, memory, gb_per_s * 1e9, tflops * 1e12))
}

/// `MEMORY@BANDWIDTH[/COMPUTE]`
fn measured(backend: BackendKind, text: &str) -> Result<Inventory, String> {
    let (memory, rates) = text.split_once('@').ok_or("its bandwidth is missing, as @936GB/s")?;
    let text = memory;
    let memory = quantity(memory, "memory", &[("GB", 1e9), ("GiB", f64::from(1 << 30))])?;
    if memory < 1.0 {
        return Err(format!("its memory is {text:?}, less than a byte"));
    }
    let (bandwidth, compute) = match rates.split_once("/s") {
        Some((bandwidth, compute)) => (bandwidth, compute),
        None => return Err(format!("its bandwidth is {rates:?}, expected as 936GB/s")),
    };
    let bandwidth = quantity(bandwidth, "bandwidth", &[("GB", 1e9), ("TB", 1e12), ("MB", 1e6)])?;
    let compute = match compute.strip_prefix('/') {
        Some(compute) => quantity(compute, "compute", &[("TFLOPS", 1e12), ("GFLOPS", 1e9)])?,
        None if compute.is_empty() => 0.0,
        None => return Err(format!("{compute:?} follows its bandwidth, expected as /71TFLOPS")),
    };
    Ok(inventory(backend, memory, bandwidth, compute))
}

fn quantity(text: &str, what: &str, units: &[(&str, f64)]) -> Result<f64, String> {
    let found = units.iter().find_map(|(unit, factor)| {
        let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        (number.is_finite() && number > 0.0).then_some(number * factor)
    });
    let names: Vec<&str> = units.iter().map(|(unit, _)| *unit).collect();
    found.ok_or_else(|| {
        format!("its {what} is {text:?}, expected a number above zero and {}", names.join(" or "))
    })
}

fn inventory(backend: BackendKind, memory: f64, bandwidth: f64, compute: f64) -> Inventory {
    let kv = if backend == BackendKind::Cuda { KvDtype::Bf16 } else { KvDtype::F16 };
    Inventory {
        name: String::new(),
        backend,
        kv,
        device: String::new(),
        memory_bytes: memory as u64,
        bandwidth,
        compute,
        expert_compute: 0.0,
        threads: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(Inventory, u16)>, String> {
        text.parse::<Devices>().map(|devices| devices.0)
    }

    #[test]
    fn groups_and_hosts_are_read() {
        let devices = read("2x24GB@936GB/s/71TFLOPS, 16GiB@448GB/s; cpu:64GB@40GB/s").unwrap();
        let numbers: Vec<_> =
            devices.iter().map(|(d, host)| (*host, d.memory_bytes, d.bandwidth, d.compute)).collect();
        assert_eq!(numbers[0], (0, 24_000_000_000, 936e9, 71e12));
        assert_eq!(numbers[1], numbers[0]);
        assert_eq!(numbers[2], (0, 16 << 30, 448e9, 0.0));
        assert_eq!(numbers[3], (1, 64_000_000_000, 40e9, 0.0));
        let backends: Vec<_> = devices.iter().map(|(device, _)| (device.backend, device.kv)).collect();
        assert_eq!(backends[2], (BackendKind::Cuda, KvDtype::Bf16));
        assert_eq!(backends[3], (BackendKind::Cpu, KvDtype::F16));
    }

    #[test]
    fn cards_are_known_by_name() {
        let devices = read("4xRTX3090;t4").unwrap();
        assert_eq!((devices.len(), devices[4].1), (5, 1));
        assert_eq!(devices[0].0.bandwidth, 936e9);
        assert_eq!(devices[0].0.memory_bytes, (24.0 * f64::from(1 << 30) * 0.9) as u64);
        for (name, ..) in CARDS {
            assert!(read(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn wrong_words_are_answered_with_what_was_expected() {
        let cases = [
            ("", "a group is empty"),
            ("2x24GB@936GB/s,", "a group is empty"),
            ("0x24GB@936GB/s", "0 devices, expected 1 to 64"),
            ("99999999999999999999999x24GB@936GB/s", "are too many"),
            ("24GB", "no card is called \"24GB\""),
            ("cpu:24GB", "its bandwidth is missing"),
            ("24@936GB/s", "its memory is \"24\", expected a number above zero and GB or GiB"),
            ("-4GB@936GB/s", "its memory is \"-4GB\""),
            ("cpu:0.0000000001GB@40GB/s", "its memory is \"0.0000000001GB\", less than a byte"),
            ("24GB@936", "its bandwidth is \"936\", expected as 936GB/s"),
            ("24GB@936GB/s71TFLOPS", "follows its bandwidth"),
            ("24GB@936GB/s/71", "its compute is \"71\""),
            ("rtx9090", "no card is called \"rtx9090\"; known are a10, "),
        ];
        for (text, words) in cases {
            let error = read(text).unwrap_err();
            assert!(error.contains(words) && error.contains("\nhint: write groups as"), "{text}: {error}");
        }
    }
}
