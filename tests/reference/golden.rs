//! golden.json and golden.safetensors from the reference, in the format of `golden/README.md`.

use super::write::Dice;
use super::{Reference, Trace};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize_to_file};
use serde_json::json;
use std::path::Path;

/// Below, a difference of rounding could decide; prompts are drawn anew.
const MARGIN_MIN: f32 = 0.01;
const GAP_MIN: f32 = 5e-5;
const DRAWS_MAX: usize = 40;

struct Drawn {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    trace: Trace,
}

/// Draws a prompt of each length, continues it by `tokens`, and writes what verify compares with.
pub fn write(dir: &Path, reference: &Reference, vocab: usize, lengths: &[usize], tokens: usize, seed: u64) {
    let mut dice = Dice(seed);
    let drawn: Vec<Drawn> =
        lengths.iter().map(|&length| draw(reference, vocab, length, tokens, &mut dice)).collect();
    let prompts = drawn.iter().enumerate().map(|(index, drawn)| {
        json!({ "key": format!("p{index}"), "prompt": drawn.prompt, "greedy": drawn.greedy })
    });
    let document = json!({ "prompts": prompts.collect::<Vec<_>>() });
    std::fs::write(dir.join("golden.json"), document.to_string()).unwrap();
    let tensors: Vec<_> =
        drawn.iter().enumerate().flat_map(|(index, drawn)| tensors(index, &drawn.trace)).collect();
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, &dir.join("golden.safetensors")).unwrap();
}

/// A prompt that rounding does not decide, nor the same few tokens over and over.
fn draw(reference: &Reference, vocab: usize, length: usize, tokens: usize, dice: &mut Dice) -> Drawn {
    for _ in 0..DRAWS_MAX {
        let prompt: Vec<u32> = (0..length).map(|_| (dice.bits() % vocab as u64) as u32).collect();
        if let Some(drawn) = continued(reference, prompt, tokens) {
            return drawn;
        }
    }
    panic!("{DRAWS_MAX} prompts of {length} tokens were decided by rounding\nhint: choose another seed");
}

fn continued(reference: &Reference, prompt: Vec<u32>, tokens: usize) -> Option<Drawn> {
    let mut sequence = prompt.clone();
    loop {
        let trace = reference.forward(&sequence).unwrap();
        let (token, margin) = top(trace.logits.last()?);
        if margin < MARGIN_MIN || trace.routes.iter().flatten().any(|route| route.gap < GAP_MIN) {
            return None;
        }
        sequence.push(token);
        if sequence.len() == prompt.len() + tokens {
            return Some(Drawn { greedy: sequence.split_off(prompt.len()), prompt, trace });
        }
    }
}

/// The largest logit's token, and how far behind the second is.
pub fn top(logits: &[f32]) -> (u32, f32) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    (order[0] as u32, logits[order[0]] - logits[order[1]])
}

type Named = (String, Dtype, Vec<usize>, Vec<u8>);

fn tensors(index: usize, trace: &Trace) -> [Named; 3] {
    let (rows, vocab) = (trace.logits.len(), trace.logits[0].len());
    let (layers, per_token) = (trace.routes.len(), trace.routes[0][0].experts.len());
    let logits = trace.logits.iter().flatten().flat_map(|logit| logit.to_le_bytes()).collect();
    let positions = (0..rows as i32).flat_map(i32::to_le_bytes).collect();
    let experts = trace.routes.iter().flatten().flat_map(|route| &route.experts);
    let experts = experts.flat_map(|expert| (*expert as i16).to_le_bytes()).collect();
    [
        (format!("p{index}.logits"), Dtype::F32, vec![rows, vocab], logits),
        (format!("p{index}.positions"), Dtype::I32, vec![rows], positions),
        (format!("p{index}.router_experts"), Dtype::I16, vec![layers, rows, per_token], experts),
    ]
}
