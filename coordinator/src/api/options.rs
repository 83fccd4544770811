//! What chat and raw completions have in common: how to sample, how much, how many, when to stop, and
//! in which form to answer.

use flotilla_shared::sampling::mix;
use flotilla_shared::{Sampling, TokenId};
use serde_json::json;

use super::ending::Ending;
use super::fields::{FieldError, Fields, Node, Problem, Result};
use super::form::Bound;
use super::sampling;
use crate::guide::{Form, ToolChoice};
use crate::tokenizer::Tokenizer;

pub const CHOICES_MAX: u64 = 8;

#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// None: whatever is served.
    pub model: Option<String>,
    /// Without the seed, which [`Options::sampling`] adds.
    pub choosing: Sampling,
    pub seed: Option<u64>,
    /// Choices for each prompt.
    pub choices: usize,
    pub ending: Ending,
    pub bound: Bound,
    pub tokens_max: Option<usize>,
    /// Lower goes first (vLLM's). None: the key's, or 0.
    pub priority: Option<i32>,
    /// Prompts share what was computed of them within one salt only (vLLM's `cache_salt`).
    pub salt: u64,
    pub stream: bool,
    /// In a stream, usage comes as a last chunk of its own.
    pub include_usage: bool,
    /// In a stream, every chunk carries the usage so far (vLLM's).
    pub continuous_usage: bool,
}

impl Options {
    pub fn read(fields: &mut Fields) -> Result<Options> {
        let stream = fields.take("stream").map_or(Ok(false), Node::bool)?;
        let (include_usage, continuous_usage) = stream_options(fields, stream)?;
        let (ending, tokens_max) = (Ending::read(fields)?, tokens_max(fields)?);
        ending.check_least(tokens_max.unwrap_or(usize::MAX))?;
        Ok(Options {
            model: fields.take("model").map(Node::string).transpose()?,
            choosing: sampling::read(fields)?,
            seed: fields.take("seed").map(seed).transpose()?,
            choices: fields.take("n").map_or(Ok(1), |node| node.count(1..=CHOICES_MAX))?,
            ending,
            bound: Bound::default(),
            tokens_max,
            priority: fields.take("priority").map(priority).transpose()?,
            salt: fields.take("cache_salt").map_or(Ok(0), salt)?,
            stream,
            include_usage,
            continuous_usage,
        })
    }

    /// An answer with a form ends where the form does.
    pub fn bind(&mut self, bound: Bound) -> Result<()> {
        if self.ending.ignore_eos && !bound.is_free() {
            let accepted = "false, where the answer is bound to a form".to_owned();
            let problem = Problem::NotSupported { found: "true".to_owned(), accepted };
            return Err(FieldError { path: "ignore_eos".to_owned(), problem });
        }
        bound.check()?;
        self.bound = bound.without_unbound();
        Ok(())
    }

    /// Where the model knows of functions, from tools or from earlier calls, and nobody would answer a call. An answer
    /// that has a form, and no tools, makes none; one that is to go on whatever the model says is not kept to anything.
    pub fn forbid_calls(&mut self) {
        if self.bound.is_free() && !self.ending.ignore_eos {
            self.bound = Bound::Turn(Form { choice: ToolChoice::None, ..Form::default() });
        }
    }

    /// Choice 0 samples with the seed itself, so that it is the same whatever `n` is.
    pub fn sampling(&self, seed: u64, choice: usize) -> Sampling {
        let seed = if choice == 0 { seed } else { mix(seed ^ mix(choice as u64)) };
        Sampling { seed, ..self.choosing.clone() }
    }

    /// Every id that the client named must be that of a token, and so must be what it counts of them.
    pub fn check_tokens(&self, tokenizer: &Tokenizer) -> Result<()> {
        for (token, _) in &self.choosing.logit_bias {
            check_token(tokenizer, || format!("logit_bias.{token}"), *token)?;
        }
        for (at, token) in self.ending.tokens.iter().enumerate() {
            check_token(tokenizer, || format!("stop_token_ids[{at}]"), *token)?;
        }
        sampling::check_top_k(self.choosing.top_k, tokenizer.vocab_size())
    }
}

pub fn check_token(tokenizer: &Tokenizer, path: impl FnOnce() -> String, token: TokenId) -> Result<()> {
    match tokenizer.decode_bytes(token) {
        Some(_) => Ok(()),
        None => Err(Node { path: path(), value: json!(token) }.unexpected("the id of a token of this model")),
    }
}

fn priority(node: Node) -> Result<i32> {
    let priority = node.value.as_i64().and_then(|priority| i32::try_from(priority).ok());
    priority.ok_or_else(|| node.unexpected("a whole number of 32 bits"))
}

fn salt(node: Node) -> Result<u64> {
    let empty = node.invalid("a salt must not be empty");
    let text = node.string()?;
    if text.is_empty() {
        return Err(empty);
    }
    let hash = blake3::hash(text.as_bytes());
    let (first, _) = hash.as_bytes().split_first_chunk().expect("32 bytes");
    Ok(u64::from_le_bytes(*first))
}

/// OpenAI's seeds are signed; the bits are what counts.
fn seed(node: Node) -> Result<u64> {
    let signed = node.value.as_i64().map(i64::cast_unsigned);
    signed.or_else(|| node.value.as_u64()).ok_or_else(|| node.unexpected("a whole number of 64 bits"))
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<(bool, bool)> {
    let Some(node) = fields.take("stream_options") else {
        return Ok((false, false));
    };
    if !stream {
        return Err(node.invalid("only with \"stream\": true"));
    }
    let mut options = node.object()?;
    let include_usage = options.take("include_usage").map_or(Ok(false), Node::bool)?;
    let continuous = options.take("continuous_usage_stats").map_or(Ok(false), Node::bool)?;
    // It would only make chunks longer.
    options.take("include_obfuscation").map(Node::bool).transpose()?;
    options.finish()?;
    Ok((include_usage, include_usage && continuous))
}

/// The newer name wins where a client sends both.
fn tokens_max(fields: &mut Fields) -> Result<Option<usize>> {
    let count = |node: Node| node.count(1..=u64::MAX);
    let old = fields.take("max_tokens").map(count).transpose()?;
    let new = fields.take("max_completion_tokens").map(count).transpose()?;
    Ok(new.or(old))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(body: Value) -> Result<Options> {
        Options::read(&mut Node::body(body).object().unwrap())
    }

    #[test]
    fn defaults_are_those_of_the_api() {
        let options = read(json!({})).unwrap();
        let Sampling { temperature, top_p, .. } = options.choosing;
        assert_eq!((temperature, top_p, options.choices), (1.0, 1.0, 1));
        assert_eq!((options.seed, options.tokens_max, options.stream), (None, None, false));
    }

    #[test]
    fn choice_0_keeps_the_seed_and_others_differ() {
        let options = read(json!({"seed": -1, "n": 3})).unwrap();
        let seeds: Vec<u64> = (0..3).map(|choice| options.sampling(u64::MAX, choice).seed).collect();
        assert_eq!((options.seed, seeds[0]), (Some(u64::MAX), u64::MAX));
        assert!(seeds[1] != seeds[0] && seeds[2] != seeds[1] && seeds[2] != seeds[0]);
    }

    #[test]
    fn salts_part_and_priorities_are_whole() {
        let of = |text: &str| read(json!({"cache_salt": text})).map(|options| options.salt);
        assert!(of("a") == of("a") && of("a") != of("b") && of("a") != Ok(0));
        assert_eq!(of("").unwrap_err().to_string(), "cache_salt: a salt must not be empty");
        assert_eq!(read(json!({"priority": -3})).unwrap().priority, Some(-3));
        assert!(read(json!({"priority": 1e10})).is_err());
    }
}
