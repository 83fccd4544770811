//! `flotilla doctor` as its users meet it: on a machine without cards, on one with the emulated card, and
//! on one where something is broken.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// With libraries looked for in `cuda` first.
fn doctor(cuda: &Path, arguments: &[&str], more: &[(&str, &str)]) -> String {
    let cache = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flotilla"));
    command.arg("doctor").args(arguments).env("FLOTILLA_CUDA_PATH", cuda).env("FLOTILLA_CACHE", cache.path());
    let output = command.env_remove("LD_LIBRARY_PATH").envs(more.iter().copied()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

const NO_CARDS: [(&str, &str); 1] = [("CUDA_VISIBLE_DEVICES", "")];

#[test]
fn a_machine_without_cards_serves_on_its_processor() {
    let nothing = tempfile::tempdir().unwrap();
    let report: Value = serde_json::from_str(&doctor(nothing.path(), &["--json"], &NO_CARDS)).unwrap();
    assert_eq!(report["serves_on"], serde_json::json!(["cpu"]));
    assert_eq!(report["cards"], serde_json::json!([]));
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
    assert!(report["machine"]["memory_bytes"].as_u64().unwrap() > 0);
    assert!(!report["libraries"]["driver"]["hint"].as_str().unwrap().is_empty(), "{report}");

    let table = doctor(nothing.path(), &[], &NO_CARDS);
    assert!(table.ends_with("\nserves on: cpu\n"), "{table}");
    assert!(table.contains("\ndriver    ") && table.contains("\n          hint: "), "{table}");
}

#[test]
fn a_driver_that_cannot_be_used_is_told_with_its_file() {
    let broken = tempfile::tempdir().unwrap();
    std::fs::write(broken.path().join("libcuda.so.1"), "not a library").unwrap();
    let report: Value = serde_json::from_str(&doctor(broken.path(), &["--json"], &NO_CARDS)).unwrap();
    let driver = &report["libraries"]["driver"];
    // Where there is a driver all the same, it shows no card.
    assert_eq!(driver["state"], "unusable", "{driver}");
    assert_eq!(report["serves_on"], serde_json::json!(["cpu"]));
}

#[test]
fn a_card_is_listed_with_what_was_measured() {
    let emulator = flotilla_emulator::folder().unwrap();
    let report: Value = serde_json::from_str(&doctor(&emulator, &["--json"], &[])).unwrap();
    let card = &report["cards"][0];
    assert_eq!(card["device"], "cuda:0", "{report}");
    assert_eq!(card["problem"], Value::Null, "{card}");
    assert!(card["memory_bytes"].as_u64() >= card["memory_free_bytes"].as_u64(), "{card}");
    assert!(card["memory_free_bytes"].as_u64() > Some(0), "{card}");
    for measured in ["/read_bytes_per_second", "/to_card/bytes_per_second", "/to_host/latency_us"] {
        assert!(card.pointer(measured).unwrap().as_f64() > Some(0.0), "{measured}: {card}");
    }
    assert_eq!(report["serves_on"][0], "cpu");
    assert_eq!(report["serves_on"][1], "cuda:0");
    for library in ["driver", "nvrtc", "nccl"] {
        let found = &report["libraries"][library];
        assert_eq!(found["state"], "found", "{library}: {found}");
        assert!(
            found["path"].as_str().unwrap().starts_with(emulator.to_str().unwrap()),
            "{library}: {found}"
        );
    }
    let cards = report["cards"].as_array().unwrap().len();
    assert_eq!(report["links"].as_array().unwrap().len(), cards * (cards - 1));

    let table = doctor(&emulator, &["--no-measure"], &[]);
    assert!(table.contains("\ncuda:0   ") && table.contains("\nserves on: cpu, cuda:0"), "{table}");
}
