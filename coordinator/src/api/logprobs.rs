//! How likely the model found what it wrote, in OpenAI's two shapes: chat's list of objects, and
//! completions' columns.

use flotilla_shared::TokenId;
use flotilla_shared::step::Logprobs;
use serde_json::{Map, Value, json};

use crate::tokenizer::Tokenizer;

/// JSON has no infinity; OpenAI writes this where a token was impossible.
const IMPOSSIBLE: f64 = -9999.0;

/// One token of an answer, and what could have stood in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Likelihood {
    pub token: TokenId,
    pub logprobs: Logprobs,
    /// Characters of the answer before it.
    pub offset: usize,
}

/// `{content: [{token, logprob, bytes, top_logprobs}], refusal}`.
pub fn chat(tokenizer: &Tokenizer, likelihoods: &[Likelihood]) -> Value {
    let entry = |(token, logprob): (TokenId, f32)| {
        json!({
            "token": name(tokenizer, token, ""),
            "logprob": finite(logprob),
            "bytes": tokenizer.decode_bytes(token).unwrap_or_default(),
        })
    };
    let content = likelihoods.iter().map(|Likelihood { token, logprobs, .. }| {
        let mut chosen = entry((*token, logprobs.chosen));
        chosen["top_logprobs"] = logprobs.top.iter().copied().map(entry).collect();
        chosen
    });
    json!({"content": content.collect::<Vec<Value>>(), "refusal": null})
}

/// `{tokens, token_logprobs, top_logprobs, text_offset}`; the chosen token is always among the top.
pub fn text(tokenizer: &Tokenizer, likelihoods: &[Likelihood]) -> Value {
    let name = |token| name(tokenizer, token, "bytes:");
    let top = |Likelihood { token, logprobs, .. }: &Likelihood| {
        let chosen = std::iter::once((*token, logprobs.chosen));
        let all = logprobs.top.iter().copied().chain(chosen);
        Value::Object(all.map(|(token, logprob)| (name(token), finite(logprob))).collect::<Map<_, _>>())
    };
    json!({
        "tokens": likelihoods.iter().map(|one| name(one.token)).collect::<Vec<_>>(),
        "token_logprobs": likelihoods.iter().map(|one| finite(one.logprobs.chosen)).collect::<Vec<_>>(),
        "top_logprobs": likelihoods.iter().map(top).collect::<Vec<_>>(),
        "text_offset": likelihoods.iter().map(|one| one.offset).collect::<Vec<_>>(),
    })
}

/// The token's text; where that is no whole characters, its bytes as OpenAI writes them: `\xf0\x9f`.
fn name(tokenizer: &Tokenizer, token: TokenId, prefix: &str) -> String {
    let bytes = tokenizer.decode_bytes(token).unwrap_or_default();
    match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold(prefix.to_owned(), |name, byte| name + &format!("\\x{byte:02x}")),
    }
}

fn finite(logprob: f32) -> Value {
    json!(if logprob.is_finite() { f64::from(logprob) } else { IMPOSSIBLE })
}
