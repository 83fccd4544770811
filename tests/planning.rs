//! `flotilla plan --devices`: what is chosen for a fleet, in words, as JSON and as a picture.

mod support;

use serde_json::Value;
use support::program::run;

const TWO_HOSTS: &str = "4x16GB@320GB/s/65TFLOPS; 4x16GB@320GB/s/65TFLOPS";

#[tokio::test]
async fn a_fleet_gets_a_table_a_speed_and_a_second_best() {
    let ran = run(["plan", "--devices", TWO_HOSTS, "--between", "10gbe", "--goal", "throughput:32"]).await;
    let text = &ran.expect_status(0).stdout;
    let words = [
        "gpt-oss-120b: 36 layers, 128 experts, 65.33 GB of weights fit on 8 of 8 devices: stages of several ranks",
        "\nstage 0: layers 0..",
        "\nstage 1: layers ",
        "16GB@320GB/s/65TFLOPS on host 1",
        "\nsums over ranks: by NCCL, or by the cards through the host's memory; one of a row ",
        "\nKV cache: 262144 tokens were asked for, ",
        "\npredicted, not measured",
        "\n  prompt of 2048: ",
        "\n  decode of    1: ",
        "\n  decode of   32: ",
        " in 2 micro-batches",
        "\nsecond best: ",
        " % slower, mostly by ",
    ];
    for words in words {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
    let one = run(["plan", "--devices", TWO_HOSTS, "--stages-max", "1"]).await;
    let one = &one.expect_status(0).stdout;
    assert!(one.contains("\nstage 0: layers 0..36 (36)") && !one.contains("\nstage 1"), "{one}");
}

/// On CPUs the ranks' own links decide: from which length on vectors go in pieces, and what rounding would bring.
#[tokio::test]
async fn hosts_of_cpus_are_told_how_they_would_sum() {
    let nodes = "cpu:32GB@40GB/s; cpu:32GB@40GB/s; cpu:32GB@40GB/s; cpu:32GB@40GB/s";
    let plan = ["plan", "--model", "gpt-oss-20b", "--stages-max", "1", "--between"];
    let text =
        run([&plan[..], &["10gbe", "--devices", nodes]].concat()).await.expect_status(0).stdout.clone();
    let from = text.split_once("sums over ranks: over TCP, in pieces from ").expect(&text).1;
    let from: usize = from.split(' ').next().unwrap().parse().expect("a number of values");
    assert!((513..16_386).contains(&from), "{text}");
    assert!(text.contains("with --collective-wire int8, which rounds what passes between hosts: "), "{text}");
    let one = "4xcpu:32GB@40GB/s";
    let text = run([&plan[..], &["10gbe", "--devices", one]].concat()).await.expect_status(0).stdout.clone();
    assert!(text.contains("sums over ranks: through memory that the ranks share; one of a row "), "{text}");
    assert!(!text.contains("int8"), "{text}");
}

#[tokio::test]
async fn a_fleet_s_plan_is_json() {
    let ran =
        run(["plan", "--json", "--model", "gpt-oss-20b", "--devices", "rtx3090,t4,cpu:64GB@40GB/s"]).await;
    let plan: Value = serde_json::from_str(&ran.expect_status(0).stdout).expect("a plan is JSON");
    let ranks = plan["plan"]["stages"].as_array().unwrap().iter();
    let ranks: usize = ranks.map(|stage| stage["ranks"].as_array().unwrap().len()).sum();
    assert_eq!(plan["devices"].as_array().unwrap().len(), ranks);
    assert_eq!(plan["bytes"].as_array().unwrap().len(), ranks);
    let decodes = plan["predicted"]["decode"].as_array().unwrap().iter();
    let decodes: Vec<(u64, bool)> = decodes
        .map(|decode| (decode["sequences"].as_u64().unwrap(), decode["tokens_per_s"].as_f64().unwrap() > 0.0))
        .collect();
    assert_eq!(decodes, [(1, true), (8, true), (32, true)]);
    let stages = plan["plan"]["stages"].as_array().unwrap().len();
    assert_eq!(plan["collectives"].as_array().unwrap().len(), stages);
    let left_out = plan["left_out"].as_array().unwrap().iter();
    let cpu = left_out.into_iter().find(|left_out| left_out["device"] == 2).expect("the CPU is left out");
    assert_eq!(cpu["reason"], "other_backend");
}

#[tokio::test]
async fn a_picture_is_a_document_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plan.svg");
    let ran = run(["plan", "--devices", TWO_HOSTS, "--svg", path.to_str().unwrap()]).await;
    ran.expect_status(0);
    let picture = std::fs::read_to_string(&path).unwrap();
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"), "{picture}");
    for tag in ["svg", "text", "title", "style"] {
        let opened = picture.matches(&format!("<{tag}")).count();
        assert_eq!(opened, picture.matches(&format!("</{tag}>")).count(), "{tag}");
        assert!(opened > 0, "{tag}");
    }
    for words in
        ["Stage 0: layers 0..", "Rank 7, host ", "Predicted, not measured", "prefers-color-scheme:dark"]
    {
        assert!(picture.contains(words), "{words}");
    }
    let nowhere = dir.path().join("none/plan.svg");
    let refused = run(["plan", "--devices", TWO_HOSTS, "--svg", nowhere.to_str().unwrap()]).await;
    refused.expect_refusal(1, &["cannot write ", "\nhint: --svg takes a file's path"]);
}

#[tokio::test]
async fn what_cannot_be_planned_says_why() {
    let small = run(["plan", "--devices", "2x24GB@936GB/s,1x16GB@448GB/s", "--link", "pcie4"]).await;
    small.expect_refusal(
        1,
        &["the model does not fit", " are missing", "\nhint: more or larger --devices, or lower --context"],
    );
    let words = ["the model does not fit", "\nhint: more or larger --devices, or lower --kv-tokens"];
    run(["plan", "--devices", "2xt4", "--kv-tokens", "1M"]).await.expect_refusal(1, &words);
    let words = ["activations ", "\nhint: more or larger --devices, or lower --step-tokens"];
    run(["plan", "--devices", "2xt4", "--step-tokens", "5000000000"]).await.expect_refusal(1, &words);
    let long = run(["plan", "--devices", "8xt4", "--context", "1M"]).await;
    long.expect_refusal(1, &["--context is 1048576 tokens, and the model's is 131072 at most"]);
    let none = run(["plan", "--devices", "cpu:0.0000000002GB@40GB/s;cpu:0.000000001GB@40GB/s"]).await;
    none.expect_refusal(2, &["less than a byte"]);
    let cases: [(&[&str], &[&str]); 6] = [
        (&["--devices", "2x24GB"], &["in \"2x24GB\": no card is called \"24GB\"", "\nhint: write groups as"]),
        (&["--devices", "t4;24GB@9"], &["in \"24GB@9\": its bandwidth is \"9\", expected as 936GB/s"]),
        (
            &["--devices", "t4", "--link", "isa"],
            &["no link is called \"isa\"", "\nhint: known are shm, pcie3"],
        ),
        (&["--devices", "t4", "--goal", "fast"], &["expected latency or throughput:N", "found \"fast\""]),
        (&["--devices", "t4", "--ranks", "2"], &["cannot be used with"]),
        (&["--link", "pcie4"], &["--devices <DEVICES>"]),
    ];
    for (args, words) in cases {
        run([&["plan"], args].concat()).await.expect_refusal(2, words);
    }
}
