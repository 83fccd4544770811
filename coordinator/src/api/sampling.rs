//! How a client wants its tokens chosen: what narrows the choice, what bends it, and what is reported of
//! it. Names and ranges are OpenAI's, and vLLM's where OpenAI has none. Whether the ids that are named
//! here are tokens of the model is checked where the model is known: see `Options::check_tokens`.

use super::fields::{FieldError, Fields, Node, Problem, Result};
use flotilla_shared::sampling::TOP_LOGPROBS_MAX;
use flotilla_shared::{Sampling, TokenId};

/// Of temperatures that are not 0. Logits divided by less leave the range of f32; vLLM's bound.
pub const TEMPERATURE_MIN: f32 = 0.01;
/// Tokens with a bias: each travels to every worker with the sequence. OpenAI's limit is of this order.
const BIASED_TOKENS_MAX: usize = 1024;

/// For each row of a step every rank sends so many candidates.
const TOP_K_MAX: u32 = 4096;

/// Everything but the seed, which differs from choice to choice, and logprobs, which go by other names in
/// chat than in completions.
pub fn read(fields: &mut Fields) -> Result<Sampling> {
    let temperature = number(fields, "temperature", 0.0, 2.0)?.unwrap_or(1.0);
    let top_p = number(fields, "top_p", 0.0, 1.0)?.unwrap_or(1.0);
    Ok(Sampling {
        temperature: if temperature == 0.0 { 0.0 } else { temperature.max(TEMPERATURE_MIN) },
        // At 0 the likeliest token alone is kept; a sum of 0 would be reached by none.
        top_p: top_p.max(f32::MIN_POSITIVE),
        top_k: fields.take("top_k").map_or(Ok(0), top_k)?,
        min_p: number(fields, "min_p", 0.0, 1.0)?.unwrap_or(0.0),
        repetition_penalty: number(fields, "repetition_penalty", 0.01, 10.0)?.unwrap_or(1.0),
        presence_penalty: number(fields, "presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        frequency_penalty: number(fields, "frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        logit_bias: fields.take("logit_bias").map_or(Ok(Vec::new()), logit_bias)?,
        logprobs: None,
        seed: 0,
    })
}

fn number(fields: &mut Fields, name: &str, min: f64, max: f64) -> Result<Option<f32>> {
    fields.take(name).map(|node| node.number(min..=max)).transpose().map(|number| number.map(|n| n as f32))
}

/// vLLM's −1, and 0, keep all.
fn top_k(node: Node) -> Result<u32> {
    let kept = node.value.as_i64().map(|k| if k == -1 { 0 } else { k });
    kept.and_then(|k| u32::try_from(k).ok())
        .ok_or_else(|| node.unexpected("a whole number of at least 1, or -1 or 0 for all"))
}

/// From the size of the vocabulary on it is all of them, which costs nothing.
pub fn check_top_k(top_k: u32, vocab_size: usize) -> Result<()> {
    if top_k <= TOP_K_MAX || top_k as usize >= vocab_size {
        return Ok(());
    }
    let what = format!(
        "at most {TOP_K_MAX} of the likeliest tokens, found {top_k}\nhint: 0 or -1 keeps all of them"
    );
    Err(FieldError { path: "top_k".to_owned(), problem: Problem::Invalid(what) })
}

/// `{"50256": -100}`, rising by token.
fn logit_bias(node: Node) -> Result<Vec<(TokenId, f32)>> {
    let count = node.value.as_object().map_or(0, serde_json::Map::len);
    if count > BIASED_TOKENS_MAX {
        return Err(node.invalid(format!("at most {BIASED_TOKENS_MAX} tokens, found {count}")));
    }
    let twice = node.clone();
    let entries = node.object()?.into_entries();
    let mut biases = entries.into_iter().map(bias).collect::<Result<Vec<_>>>()?;
    biases.sort_unstable_by_key(|(token, _)| *token);
    match biases.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(twice.invalid(format!("token {} stands there twice", pair[0].0))),
        None => Ok(biases),
    }
}

fn bias((name, node): (String, Node)) -> Result<(TokenId, f32)> {
    let token = name.parse().map_err(|_| node.invalid("the name is no token id, a whole number"))?;
    Ok((token, node.number(-100.0..=100.0)? as f32))
}

/// Chat's `logprobs` and `top_logprobs`.
pub fn chat_logprobs(fields: &mut Fields) -> Result<Option<u8>> {
    let wanted = fields.take("logprobs").map_or(Ok(false), Node::bool)?;
    let Some(top) = fields.take("top_logprobs") else {
        return Ok(wanted.then_some(0));
    };
    let without = top.invalid("only with \"logprobs\": true");
    let none = top.value == 0;
    let top = top.count(0..=TOP_LOGPROBS_MAX.into())? as u8;
    // Some clients always send the 0.
    if wanted || none { Ok(wanted.then_some(top)) } else { Err(without) }
}

/// Completions' `logprobs`: a count. OpenAI allows 5, vLLM 20.
pub fn text_logprobs(fields: &mut Fields) -> Result<Option<u8>> {
    let count = |node: Node| node.count(0..=TOP_LOGPROBS_MAX.into());
    fields.take("logprobs").map(count).transpose().map(|count| count.map(|count| count as u8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn fields(body: Value) -> Fields {
        Node::body(body).object().unwrap()
    }

    fn error(body: Value) -> String {
        read(&mut fields(body)).unwrap_err().to_string()
    }

    #[test]
    fn all_of_it_is_read() {
        let body = json!({
            "temperature": 0.5, "top_p": 0.25, "top_k": 40, "min_p": 0.125, "repetition_penalty": 1.5,
            "presence_penalty": -1, "frequency_penalty": 2, "logit_bias": {"9": -100, "3": 1.5},
        });
        let expected = Sampling {
            temperature: 0.5,
            top_p: 0.25,
            top_k: 40,
            min_p: 0.125,
            repetition_penalty: 1.5,
            presence_penalty: -1.0,
            frequency_penalty: 2.0,
            logit_bias: vec![(3, 1.5), (9, -100.0)],
            ..Sampling::GREEDY
        };
        assert_eq!(read(&mut fields(body)), Ok(expected));
        let sampled = Sampling { temperature: 1.0, ..Sampling::GREEDY };
        assert_eq!(read(&mut fields(json!({"top_k": -1}))), Ok(sampled));
    }

    #[test]
    fn many_candidates_are_refused_and_all_are_not() {
        let vocab_size = 200_019;
        for fine in [0, 1, 4096, 200_019, u32::MAX] {
            assert_eq!(check_top_k(fine, vocab_size), Ok(()), "{fine}");
        }
        for many in [4097, 200_018] {
            let error = check_top_k(many, vocab_size).unwrap_err().to_string();
            let words = format!("top_k: at most 4096 of the likeliest tokens, found {many}\nhint: 0 or -1");
            assert!(error.starts_with(&words), "{error}");
        }
        assert_eq!(check_top_k(5000, 4117), Ok(()), "all of a small vocabulary");
    }

    #[test]
    fn extremes_can_be_computed_with() {
        let sampling = read(&mut fields(json!({"temperature": 1e-40, "top_p": 0}))).unwrap();
        assert_eq!(sampling.temperature, TEMPERATURE_MIN);
        assert!(sampling.top_p > 0.0);
        assert!(read(&mut fields(json!({"temperature": 0}))).unwrap().is_greedy());
    }

    #[test]
    fn what_cannot_be_is_named() {
        assert!(error(json!({"top_k": -2})).starts_with("top_k: expected a whole number of at least 1, or"));
        assert!(error(json!({"logit_bias": {"a": 1}})).starts_with("logit_bias.a: the name is no token id"));
        assert!(error(json!({"logit_bias": {"7": 101}})).contains("logit_bias.7: expected a number from"));
        assert_eq!(error(json!({"logit_bias": {"7": 1, "07": 1}})), "logit_bias: token 7 stands there twice");
        let many: serde_json::Map<_, _> = (0..1025).map(|id| (id.to_string(), json!(1))).collect();
        assert_eq!(error(json!({"logit_bias": many})), "logit_bias: at most 1024 tokens, found 1025");
    }

    #[test]
    fn logprobs_go_by_two_names() {
        let chat = |body| chat_logprobs(&mut fields(body));
        assert_eq!(chat(json!({"logprobs": true})), Ok(Some(0)));
        assert_eq!(chat(json!({"logprobs": true, "top_logprobs": 20})), Ok(Some(20)));
        assert_eq!(chat(json!({"top_logprobs": 0})), Ok(None));
        let alone = chat(json!({"top_logprobs": 2})).unwrap_err().to_string();
        assert_eq!(alone, "top_logprobs: only with \"logprobs\": true");
        assert_eq!(text_logprobs(&mut fields(json!({"logprobs": 0}))), Ok(Some(0)));
        assert!(text_logprobs(&mut fields(json!({"logprobs": true}))).is_err());
    }
}
