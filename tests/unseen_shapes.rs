//! Shapes that no golden set has, against a second implementation: 3 kv heads, odd numbers of blocks and of
//! tokens, one layer, more ranks than there is to share. Nothing may be tuned to the published shape.

mod reference;
mod support;

use reference::write::{Shape, write};
use reference::{Reference, Route, golden};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::path::Path;
use support::report::{Ranks, expect_golden};
use support::repository;

fn close(found: &[f32], expected: &[f32], limit: f32) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= limit)
}

/// The reference against transformers' own logits, routing and residual streams.
fn check_reference(set: &str, prompts: usize) {
    let dir = repository("tests/golden").join(set);
    let reference = Reference::load(&dir).unwrap();
    let json: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("golden.json")).unwrap()).unwrap();
    let bytes = std::fs::read(dir.join("golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let f32s = |name: String| -> Vec<f32> {
        let view = tensors.tensor(&name).unwrap();
        view.data().chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    };
    for prompt in &json["prompts"].as_array().unwrap()[..prompts] {
        let ids = |field: &str| serde_json::from_value::<Vec<u32>>(prompt[field].clone()).unwrap();
        let (key, prompt, greedy) = (prompt["key"].as_str().unwrap(), ids("prompt"), ids("greedy"));
        let sequence = [&prompt[..], &greedy[..greedy.len() - 1]].concat();
        let trace = reference.forward(&sequence).unwrap();
        assert!(close(&trace.logits.concat(), &f32s(format!("{key}.logits")), 1e-4), "{set} {key}: logits");
        let last = prompt.len() - 1;
        let hidden: Vec<f32> = trace.hidden.iter().flat_map(|layer| layer[last].clone()).collect();
        let expected = f32s(format!("{key}.hidden_last_prompt_token"));
        assert!(close(&hidden, &expected, 1e-4), "{set} {key}: residual stream");
        let routes: Vec<&Route> = trace.routes.iter().flatten().collect();
        let weights: Vec<f32> = routes.iter().flat_map(|route| route.weights.clone()).collect();
        assert!(close(&weights, &f32s(format!("{key}.router_weights")), 1e-4), "{set} {key}: weights");
        let experts: Vec<u8> =
            routes.iter().flat_map(|route| &route.experts).flat_map(|e| (*e as i16).to_le_bytes()).collect();
        assert_eq!(experts, tensors.tensor(&format!("{key}.router_experts")).unwrap().data(), "{set} {key}");
        let told: Vec<u32> = trace.logits[last..].iter().map(|row| golden::top(row).0).collect();
        assert_eq!(told, greedy, "{set} {key}: greedy");
    }
}

#[test]
fn the_reference_agrees_with_smoke() {
    check_reference("smoke", 6);
}

/// Windows that slide, which smoke's are too wide for.
#[test]
fn the_reference_agrees_with_stress() {
    check_reference("stress", 3);
}

/// Writes the checkpoint and its golden files, and runs verify by each cut.
async fn check(shape: Shape, lengths: &[usize], cuts: &[Ranks]) {
    let dir = tempfile::tempdir().unwrap();
    let write_all = |dir: &Path| {
        write(dir, &shape);
        let reference = Reference::load(dir).unwrap();
        golden::write(dir, &reference, shape.vocab, lengths, 16, shape.seed);
    };
    write_all(dir.path());
    for cut in cuts {
        println!("{cut:?}");
        expect_golden(dir.path(), *cut).await;
    }
}

use Ranks::{Processes, Threads};

/// 3 kv heads, 10 experts of which 2, 3 and 5 blocks, 403 tokens, a window of 3; one bare file.
#[tokio::test]
async fn odd_everything() {
    let shape = Shape {
        hidden: 96,
        intermediate: 160,
        layers: 3,
        q_heads: 6,
        kv_heads: 3,
        head_dim: 20,
        experts: 10,
        per_token: 2,
        vocab: 403,
        window: 3,
        config: json!({ "rope_scaling": { "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                        "original_max_position_embeddings": 512, "truncate": false } }),
        files: 1,
        seed: 11,
    };
    let cuts = [1, 2, 3, 5, 6, 7, 8].map(Threads);
    check(shape, &[1, 7, 33], &[&cuts[..], &[Processes(5)]].concat()).await;
}

/// One layer, one block, no groups of heads, no YaRN, every expert always: nearly nothing to share.
#[tokio::test]
async fn more_ranks_than_anything_to_share() {
    let shape = Shape {
        hidden: 32,
        intermediate: 32,
        layers: 1,
        q_heads: 2,
        kv_heads: 2,
        head_dim: 48,
        experts: 3,
        per_token: 3,
        vocab: 131,
        window: 3,
        config: json!({ "rope_scaling": null, "layer_types": ["sliding_attention"] }),
        files: 1,
        seed: 12,
    };
    check(shape, &[1, 20], &[Threads(1), Threads(2), Threads(3), Threads(8), Processes(6)]).await;
}

/// A group of 5 heads on one kv head, one expert a token, full attention first, YaRN of factor 1.
#[tokio::test]
async fn one_kv_head_and_one_expert() {
    let shape = Shape {
        hidden: 160,
        intermediate: 96,
        layers: 2,
        q_heads: 5,
        kv_heads: 1,
        head_dim: 48,
        experts: 5,
        per_token: 1,
        vocab: 257,
        window: 16,
        config: json!({
            "layer_types": ["full_attention", "sliding_attention"], "swiglu_limit": 3.0, "rms_norm_eps": 1e-3,
            "rope_theta": null, "rope_scaling": null,
            "rope_parameters": { "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 1.0, "beta_fast": 32.0,
                                 "beta_slow": 1.0, "original_max_position_embeddings": 4096 },
        }),
        files: 3,
        seed: 13,
    };
    check(shape, &[1, 40], &[Threads(1), Threads(3), Threads(7), Processes(2)]).await;
}

/// A prompt of several steps and many cache blocks, a window that is no multiple of a block, a rounded
/// YaRN range, layers without types.
#[tokio::test]
async fn a_prompt_of_several_steps() {
    let shape = Shape {
        hidden: 64,
        intermediate: 224,
        layers: 2,
        q_heads: 8,
        kv_heads: 4,
        head_dim: 20,
        experts: 6,
        per_token: 4,
        vocab: 301,
        window: 37,
        config: json!({ "rope_scaling": { "rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0,
                        "original_max_position_embeddings": 256, "truncate": true } }),
        files: 2,
        seed: 14,
    };
    check(shape, &[150], &[Threads(1), Threads(2), Threads(5), Processes(3)]).await;
}
