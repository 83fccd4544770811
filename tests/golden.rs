//! The golden checkpoints through the real program, for every way of cutting and of talking; and golden
//! files that verify must not let pass.

mod support;

use flotilla_shared::plan::{Placement, StageCut};
use flotilla_shared::{ModelSpec, Plan};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use support::checkpoint::edit_tensor;
use support::program::run;
use support::report::{Ranks, Report, expect_golden, expect_golden_plan, verify, verify_with};
use support::repository;
use tempfile::TempDir;

const COUNTS: [u16; 5] = [1, 2, 3, 4, 8];

fn set(name: &str) -> PathBuf {
    repository("tests/golden").join(name)
}

async fn check_all(name: &str, counts: &[u16], kind: impl Fn(u16) -> Ranks) {
    for &count in counts {
        println!("{name}, {:?}", kind(count));
        expect_golden(&set(name), kind(count)).await;
    }
}

#[tokio::test]
async fn smoke_as_threads() {
    check_all("smoke", &COUNTS, Ranks::Threads).await;
}

#[tokio::test]
async fn stress_as_threads() {
    check_all("stress", &COUNTS, Ranks::Threads).await;
}

#[tokio::test]
async fn long_as_threads() {
    check_all("long", &COUNTS, Ranks::Threads).await;
}

#[tokio::test]
async fn smoke_as_processes() {
    check_all("smoke", &COUNTS, Ranks::Processes).await;
}

#[tokio::test]
async fn stress_as_processes() {
    check_all("stress", &COUNTS, Ranks::Processes).await;
}

#[tokio::test]
async fn long_as_processes() {
    check_all("long", &[2], Ranks::Processes).await;
}

/// Of a plan by hand: layers of each stage, and shares of each rank.
fn plan(name: &str, stages: &[(usize, &[f64])], placement: Placement) -> Plan {
    let config = fs::read_to_string(set(name).join("config.json")).unwrap();
    let spec = ModelSpec::from_config_json(&config).unwrap();
    let cut = |(layers, shares): &(usize, &[f64])| StageCut { placement, ..StageCut::even(*layers, shares) };
    let plan = Plan::with_stages(&spec, &stages.iter().map(cut).collect::<Vec<_>>());
    plan.check(&spec).unwrap();
    plan
}

/// Two and three stages, uneven in layers, in ranks and in shares, by slices and by whole experts.
async fn check_plans(name: &str, layers: usize, plans: &[&[(usize, &[f64])]], kind: impl Fn(u16) -> Ranks) {
    for stages in plans {
        let mut stages = stages.to_vec();
        // The last takes what is left.
        let before: usize = stages[..stages.len() - 1].iter().map(|(layers, _)| layers).sum();
        stages.last_mut().unwrap().0 = layers - before;
        for placement in [Placement::Slices, Placement::Whole] {
            let plan = plan(name, &stages, placement);
            println!("{name}, {placement:?}, {stages:?}");
            expect_golden_plan(&set(name), &plan, kind(plan.rank_count() as u16)).await;
        }
    }
}

const TWO_AND_THREE_STAGES: [&[(usize, &[f64])]; 6] = [
    &[(1, &[1.0]), (0, &[1.0])],
    &[(3, &[1.0, 2.0]), (0, &[1.0])],
    &[(1, &[1.0]), (0, &[3.0, 1.0, 1.0])],
    &[(2, &[1.0, 0.0]), (0, &[1.0, 1.0])],
    &[(1, &[1.0]), (1, &[1.0, 1.0, 2.0]), (0, &[2.0, 1.0])],
    &[(1, &[1.0, 1.0, 1.0]), (2, &[1.0]), (0, &[1.0])],
];

#[tokio::test]
async fn stages_as_threads() {
    check_plans("smoke", 4, &TWO_AND_THREE_STAGES, Ranks::Threads).await;
    check_plans("stress", 6, &TWO_AND_THREE_STAGES, Ranks::Threads).await;
    check_plans("long", 4, &TWO_AND_THREE_STAGES[3..5], Ranks::Threads).await;
}

#[tokio::test]
async fn stages_as_processes() {
    check_plans("smoke", 4, &TWO_AND_THREE_STAGES[1..5], Ranks::Processes).await;
    check_plans("stress", 6, &TWO_AND_THREE_STAGES[4..5], Ranks::Processes).await;
}

#[tokio::test]
async fn whole_experts_as_threads() {
    for name in ["smoke", "stress"] {
        for ranks in [2, 3, 5] {
            let config = fs::read_to_string(set(name).join("config.json")).unwrap();
            let layers = ModelSpec::from_config_json(&config).unwrap().layer_count();
            let plan = plan(name, &[(layers, &vec![1.0; ranks])], Placement::Whole);
            expect_golden_plan(&set(name), &plan, Ranks::Threads(ranks as u16)).await;
        }
    }
}

/// As it is served: whole numbers for the experts' activations, and a cache of f16, each alone and with dense weights as
/// int8. What each may cost is verify's to say; here it is asked whether the default stays below a tenth of what bf16 costs.
#[tokio::test]
async fn what_rounds_stays_within_its_limits() {
    /// Mean KL of the worst prompt with bf16 activations, in docs/accuracy.md.
    const BF16: f64 = 3.8e-3;
    for name in ["smoke", "stress"] {
        for (flags, limit) in [
            (&["--activations", "int8x2"][..], BF16 / 10.0),
            (&["--activations", "int8"], 0.03),
            (&["--activations", "int8x2", "--dense", "int8"], 0.03),
        ] {
            let ran = verify_with(&set(name), Ranks::Threads(2), flags).await;
            let report: Report =
                serde_json::from_str(ran.expect_status(0).stdout.as_str()).expect("a report");
            assert!(report.pass && report.activations != "f32", "{flags:?}: {report:#?}");
            for prompt in &report.prompts {
                // What is rounded moves the logits, or nothing was rounded.
                assert!(prompt.max_abs.is_some_and(|max_abs| max_abs > 1e-4), "{flags:?}: {prompt:#?}");
                assert!(prompt.kl_mean.is_some_and(|kl| kl.abs() < limit), "{flags:?}: {prompt:#?}");
            }
        }
    }
}

/// A copy of smoke that may be spoiled.
fn copy_of_smoke() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(set("smoke")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    dir
}

/// Spoils a copy, and expects a report that says no, with `fault` in the words of some prompt.
async fn check_spoiled(spoil: impl FnOnce(&Path), fault: &str) {
    let dir = copy_of_smoke();
    spoil(dir.path());
    let ran = verify(dir.path(), Ranks::Threads(2)).await;
    let report: Report = serde_json::from_str(&ran.expect_status(1).stdout).expect("a report");
    let faults: Vec<&String> = report.prompts.iter().flat_map(|prompt| &prompt.faults).collect();
    assert!(!report.pass && faults.iter().any(|told| told.contains(fault)), "{fault:?}: {report:#?}");
}

fn edit_golden_json(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join("golden.json");
    let mut value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// One MXFP4 element of one expert, from ±0…1.5 to ±2…6 or back.
#[tokio::test]
async fn a_flipped_nibble_is_seen() {
    let name = "model.layers.2.mlp.experts.down_proj_blocks";
    check_spoiled(|dir| edit_tensor(dir, name, |blocks| blocks[1234] ^= 0x40), "max abs").await;
}

#[tokio::test]
async fn swapped_sinks_are_seen() {
    let swap = |sinks: &mut [u8]| sinks.rotate_left(2);
    check_spoiled(|dir| edit_tensor(dir, "model.layers.3.self_attn.sinks", swap), "max abs").await;
}

#[tokio::test]
async fn another_greedy_token_is_seen() {
    let edit = |golden: &mut Value| {
        let last = &mut golden["prompts"][2]["greedy"].as_array_mut().unwrap()[47];
        *last = Value::from((last.as_u64().unwrap() + 1) % 500);
    };
    check_spoiled(|dir| edit_golden_json(dir, edit), "greedy 47/48").await;
}

#[tokio::test]
async fn another_expert_is_seen() {
    let edit = |experts: &mut [u8]| experts[0] = (experts[0] + 1) % 8;
    check_spoiled(|dir| edit_tensor(dir, "p1.router_experts", edit), "expert sets").await;
}

#[tokio::test]
async fn a_nan_is_seen() {
    let edit = |logits: &mut [u8]| logits[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    check_spoiled(|dir| edit_tensor(dir, "p0.logits", edit), "max abs inf").await;
}

/// Nothing compared is nothing passed.
#[tokio::test]
async fn no_prompts_are_no_pass() {
    let dir = copy_of_smoke();
    edit_golden_json(dir.path(), |golden| golden["prompts"] = Value::Array(Vec::new()));
    verify(dir.path(), Ranks::Threads(1)).await.expect_refusal(1, &["golden.json", "no prompts"]);
}

/// The sums are the same numbers in the same order, whatever carries them: so are all logits, bit by bit.
#[tokio::test]
async fn logits_do_not_depend_on_how_processes_are_linked() {
    let smoke = set("smoke");
    let mut digests = Vec::new();
    for link in ["shm", "tcp"] {
        let args = ["verify", smoke.to_str().unwrap(), "--json", "--processes"];
        let ran =
            run(args.into_iter().chain(["--ranks", "2", "--collective", link]).map(str::to_owned)).await;
        let report: Value = serde_json::from_str(&ran.expect_status(0).stdout).expect("a report");
        let prompts = report["prompts"].as_array().expect("prompts").clone();
        let digest = |prompt: &Value| prompt["logits_digest"].as_u64().expect("a digest");
        digests.push(prompts.iter().map(digest).collect::<Vec<_>>());
    }
    assert!(!digests[0].is_empty() && digests[0].iter().all(|digest| *digest != 0));
    assert_eq!(digests[0], digests[1]);
}
