//! What chat and raw completions have in common: how to sample, how much, how many, when to stop, and
//! in which form to answer.

use flotilla_shared::Sampling;
use flotilla_shared::sampling::mix;
use serde_json::Value;

use super::fields::{Fields, Node, Result};

pub const CHOICES_MAX: u64 = 8;
const STOPS_MAX: usize = 4;
/// Of temperatures that are not 0. Logits divided by less leave the range of f32; vLLM's bound.
const TEMPERATURE_MIN: f32 = 0.01;

#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// None: whatever is served.
    pub model: Option<String>,
    pub temperature: f32,
    pub top_p: f32,
    pub seed: Option<u64>,
    /// Choices for each prompt.
    pub choices: usize,
    pub stops: Vec<String>,
    pub tokens_max: Option<usize>,
    pub stream: bool,
    /// In a stream, usage comes as a last chunk of its own.
    pub include_usage: bool,
    /// In a stream, every chunk carries the usage so far (vLLM's).
    pub continuous_usage: bool,
}

impl Options {
    pub fn read(fields: &mut Fields) -> Result<Options> {
        let model = fields.take("model").map(Node::string).transpose()?;
        let temperature = number(fields, "temperature", 2.0)?;
        let top_p = number(fields, "top_p", 1.0)?;
        let seed = fields.take("seed").map(seed).transpose()?;
        let choices = fields.take("n").map_or(Ok(1), |node| node.count(1..=CHOICES_MAX))?;
        let stops = fields.take("stop").map_or(Ok(Vec::new()), stops)?;
        let stream = fields.take("stream").map_or(Ok(false), Node::bool)?;
        let (include_usage, continuous_usage) = stream_options(fields, stream)?;
        let tokens_max = tokens_max(fields)?;
        Ok(Options {
            model,
            temperature,
            top_p,
            seed,
            choices,
            stops,
            tokens_max,
            stream,
            include_usage,
            continuous_usage,
        })
    }

    /// Choice 0 samples with the seed itself, so that it is the same whatever `n` is.
    pub fn sampling(&self, seed: u64, choice: usize) -> Sampling {
        let seed = if choice == 0 { seed } else { mix(seed ^ mix(choice as u64)) };
        let temperature = if self.temperature == 0.0 { 0.0 } else { self.temperature.max(TEMPERATURE_MIN) };
        // At 0 the likeliest token alone is kept; a sum of 0 would be reached by none.
        let top_p = self.top_p.max(f32::MIN_POSITIVE);
        Sampling { temperature, top_p, seed, ..Sampling::GREEDY }
    }
}

/// From 0 to `max`, and 1 where it is not set.
fn number(fields: &mut Fields, name: &str, max: f64) -> Result<f32> {
    fields.take(name).map_or(Ok(1.0), |node| node.number(0.0..=max)).map(|number| number as f32)
}

/// OpenAI's seeds are signed; the bits are what counts.
fn seed(node: Node) -> Result<u64> {
    let signed = node.value.as_i64().map(i64::cast_unsigned);
    signed.or_else(|| node.value.as_u64()).ok_or_else(|| node.unexpected("a whole number of 64 bits"))
}

fn stops(node: Node) -> Result<Vec<String>> {
    let nodes = match &node.value {
        Value::String(_) => vec![node],
        Value::Array(stops) if stops.len() > STOPS_MAX => {
            return Err(node.invalid(format!("at most {STOPS_MAX} stop strings, found {}", stops.len())));
        }
        Value::Array(_) => node.array()?,
        _ => return Err(node.unexpected("a string or an array of strings")),
    };
    nodes.into_iter().map(stop).collect()
}

fn stop(node: Node) -> Result<String> {
    let empty = node.invalid("a stop string must not be empty");
    let text = node.string()?;
    if text.is_empty() { Err(empty) } else { Ok(text) }
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
    if let Some(node) = options.take("include_obfuscation").filter(|node| node.value != Value::Bool(false)) {
        return Err(node.not_supported("false"));
    }
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
    use serde_json::json;

    fn read(body: Value) -> Result<Options> {
        Options::read(&mut Node::body(body).object().unwrap())
    }

    #[test]
    fn defaults_are_those_of_the_api() {
        let options = read(json!({})).unwrap();
        assert_eq!((options.temperature, options.top_p, options.choices), (1.0, 1.0, 1));
        assert_eq!((options.seed, options.tokens_max, options.stream), (None, None, false));
    }

    #[test]
    fn extremes_can_be_computed_with() {
        let sampling = read(json!({"temperature": 1e-40, "top_p": 0})).unwrap().sampling(1, 0);
        assert_eq!(sampling.temperature, TEMPERATURE_MIN);
        assert!(sampling.top_p > 0.0);
        assert!(read(json!({"temperature": 0})).unwrap().sampling(1, 0).is_greedy());
    }

    #[test]
    fn choice_0_keeps_the_seed_and_others_differ() {
        let options = read(json!({"seed": -1, "n": 3})).unwrap();
        let seeds: Vec<u64> = (0..3).map(|choice| options.sampling(u64::MAX, choice).seed).collect();
        assert_eq!((options.seed, seeds[0]), (Some(u64::MAX), u64::MAX));
        assert!(seeds[1] != seeds[0] && seeds[2] != seeds[1] && seeds[2] != seeds[0]);
    }
}
