//! The golden files beside a checkpoint: golden.json (prompts, greedy continuations) and
//! golden.safetensors (logits and routing of the teacher-forced sequence).

use anyhow::{Context, Result, bail, ensure};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::Deserialize;
use std::path::Path;

/// One prompt and what belongs to it.
#[derive(Debug)]
pub struct GoldenPrompt {
    pub key: String,
    pub prompt: Vec<u32>,
    /// What greedy decoding adds, end-of-sequence ignored.
    pub greedy: Vec<u32>,
    /// Rows of prompt + greedy[..-1] whose logits are known, rising.
    pub positions: Vec<usize>,
    /// f32 [positions, V]
    pub logits: Vec<f32>,
    /// u16 [L, rows, K], of the last `rows` rows.
    pub experts: Vec<u16>,
    pub expert_rows: usize,
}

impl GoldenPrompt {
    /// The teacher-forced sequence: row r predicts token r + 1.
    pub fn sequence(&self) -> Vec<u32> {
        let last = self.greedy.len() - 1;
        self.prompt.iter().chain(&self.greedy[..last]).copied().collect()
    }

    /// By how much the golden logits prefer greedy token `index` to the next best; `None` where they are
    /// not known, or there is no such token.
    pub fn margin_of_greedy(&self, index: usize, vocab: usize) -> Option<f64> {
        let token = *self.greedy.get(index)? as usize;
        let row = self.prompt.len() - 1 + index;
        let known = self.positions.iter().position(|position| *position == row)?;
        let logits = &self.logits[known * vocab..][..vocab];
        let others = logits.iter().enumerate().filter(|(other, _)| *other != token).map(|(_, logit)| *logit);
        Some(f64::from(logits[token] - others.fold(f32::NEG_INFINITY, f32::max)))
    }
}

#[derive(Deserialize)]
struct GoldenJson {
    prompts: Vec<PromptJson>,
}

#[derive(Deserialize)]
struct PromptJson {
    key: String,
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

/// Reads both files of a checkpoint folder.
pub fn read(dir: &Path, layers: usize, per_token: usize, vocab: usize) -> Result<Vec<GoldenPrompt>> {
    let json = dir.join("golden.json");
    let text = std::fs::read_to_string(&json).with_context(|| {
        format!(
            "cannot read {}\nhint: verify needs golden.json and golden.safetensors beside the checkpoint",
            json.display()
        )
    })?;
    let golden: GoldenJson =
        serde_json::from_str(&text).with_context(|| format!("{} is not a golden file", json.display()))?;
    ensure!(!golden.prompts.is_empty(), "{} has no prompts: nothing can be compared", json.display());
    let tensors = dir.join("golden.safetensors");
    let bytes = std::fs::read(&tensors).with_context(|| format!("cannot read {}", tensors.display()))?;
    let tensors = SafeTensors::deserialize(&bytes)
        .with_context(|| format!("{} is not a safetensors file", tensors.display()))?;
    let prompts = golden.prompts.into_iter().map(|prompt| {
        let key = prompt.key.clone();
        read_prompt(prompt, &tensors, layers, per_token, vocab)
            .with_context(|| format!("golden prompt {key} of {}", dir.display()))
    });
    prompts.collect()
}

fn read_prompt(
    prompt: PromptJson,
    tensors: &SafeTensors<'_>,
    layers: usize,
    per_token: usize,
    vocab: usize,
) -> Result<GoldenPrompt> {
    ensure!(!prompt.prompt.is_empty() && !prompt.greedy.is_empty(), "prompt or continuation is empty");
    let key = &prompt.key;
    let rows = prompt.prompt.len() + prompt.greedy.len() - 1;
    let positions = values(&tensors.tensor(&format!("{key}.positions"))?, i32::from_le_bytes)?;
    let positions: Vec<usize> = positions.into_iter().map(|p| p as usize).collect();
    ensure!(
        !positions.is_empty() && positions.is_sorted() && positions.iter().all(|p| *p < rows),
        "positions are not rows of the sequence"
    );
    let logits = tensors.tensor(&format!("{key}.logits"))?;
    ensure!(
        logits.shape() == [positions.len(), vocab],
        "logits are {:?}, expected [{}, {vocab}]",
        logits.shape(),
        positions.len()
    );
    let experts = tensors.tensor(&format!("{key}.router_experts"))?;
    let &[l, expert_rows, k] = experts.shape() else { bail!("router_experts is not [L, rows, K]") };
    ensure!((l, k) == (layers, per_token) && expert_rows <= rows, "router_experts are {:?}", experts.shape());
    Ok(GoldenPrompt {
        positions,
        logits: values(&logits, f32::from_le_bytes)?,
        experts: values(&experts, i16::from_le_bytes)?.into_iter().map(|e| e as u16).collect(),
        expert_rows,
        key: prompt.key,
        prompt: prompt.prompt,
        greedy: prompt.greedy,
    })
}

fn values<T, const N: usize>(view: &TensorView<'_>, read: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
    let chunks = view.data().chunks_exact(N);
    ensure!(
        chunks.remainder().is_empty() && chunks.len() == view.shape().iter().product::<usize>(),
        "a tensor has {:?} elements of another size than {N} bytes",
        view.dtype()
    );
    Ok(chunks.map(|bytes| read(bytes.try_into().expect("chunks of N bytes"))).collect())
}
