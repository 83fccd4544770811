//! When an answer ends: stop strings, stop tokens, and whether the model's own end counts. How long it may
//! be at most is in the options.

use flotilla_shared::TokenId;
use serde_json::Value;

use super::fields::{FieldError, Fields, Node, Problem, Result};

/// Every token's text is held against the beginnings of each.
const STOP_BYTES_MAX: usize = 256;

const STOPS_MAX: usize = 4;
/// More than any context holds.
const TOKENS_MIN_MAX: u64 = 1 << 20;
/// The scheduler looks each token up in them.
const STOP_TOKENS_MAX: usize = 64;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ending {
    pub stops: Vec<String>,
    /// The client's own (vLLM's `stop_token_ids`), beside the model's.
    pub tokens: Vec<TokenId>,
    /// The model's own end does not count (vLLM's): for measurements of a fixed length.
    pub ignore_eos: bool,
    /// What ended the answer is part of it (vLLM's).
    pub include: bool,
    /// Nothing ends the answer before it has so many tokens (vLLM's `min_tokens`), but its greatest length.
    pub tokens_min: usize,
}

impl Ending {
    pub fn read(fields: &mut Fields) -> Result<Ending> {
        Ok(Ending {
            stops: fields.take("stop").map_or(Ok(Vec::new()), stops)?,
            tokens: fields.take("stop_token_ids").map_or(Ok(Vec::new()), tokens)?,
            ignore_eos: fields.take("ignore_eos").map_or(Ok(false), Node::bool)?,
            include: fields.take("include_stop_str_in_output").map_or(Ok(false), Node::bool)?,
            tokens_min: fields.take("min_tokens").map_or(Ok(0), |node| node.count(0..=TOKENS_MIN_MAX))?,
        })
    }

    /// `tokens_max`: as many as there may be, whether the client said so, the endpoint, or the context.
    pub fn check_least(&self, tokens_max: usize) -> Result<()> {
        let Ending { tokens_min, .. } = self;
        if *tokens_min <= tokens_max {
            return Ok(());
        }
        let what = format!(
            "{tokens_min} tokens at least, of at most {tokens_max}\n\
             hint: max_tokens says how many there may be, if the context has room for them"
        );
        Err(FieldError { path: "min_tokens".to_owned(), problem: Problem::Invalid(what) })
    }

    /// `eos`: the model's.
    pub fn stop_tokens(&self, eos: &[TokenId]) -> Vec<TokenId> {
        let eos = if self.ignore_eos { &[] } else { eos };
        eos.iter().chain(&self.tokens).copied().collect()
    }
}

fn stops(node: Node) -> Result<Vec<String>> {
    let nodes = match &node.value {
        Value::String(_) => vec![node],
        Value::Array(_) => node.array_of(STOPS_MAX, "stop strings")?,
        _ => return Err(node.unexpected("a string or an array of strings")),
    };
    nodes.into_iter().map(stop).collect()
}

fn stop(node: Node) -> Result<String> {
    let empty = node.invalid("a stop string must not be empty");
    let long = node.invalid(format!("a stop string has at most {STOP_BYTES_MAX} bytes"));
    match node.string()? {
        text if text.is_empty() => Err(empty),
        text if text.len() > STOP_BYTES_MAX => Err(long),
        text => Ok(text),
    }
}

fn tokens(node: Node) -> Result<Vec<TokenId>> {
    node.at_most(STOP_TOKENS_MAX, "tokens")?;
    node.token_ids()
}
