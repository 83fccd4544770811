//! `POST /v1/completions`: a prompt is continued as it stands, without harmony. Special tokens are
//! recognised in its text, so that a client may write harmony itself.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use flotilla_shared::TokenId;
use serde_json::{Value, json};

use super::answer::{Answer, Envelope, Wording};
use super::error::ApiError;
use super::fields::{self, Node};
use super::generate::{Ended, check_prompt, generate};
use super::log::RequestLog;
use super::options::Options;
use super::reader::{Delta, Reader, TextReader};
use super::{Api, body, neutral};

/// Prompts in one request.
const PROMPTS_MAX: usize = 64;
/// The default of OpenAI's API and of vLLM.
const TOKENS_MAX_DEFAULT: usize = 16;

pub async fn complete(
    State(api): State<Arc<Api>>,
    Extension(log): Extension<RequestLog>,
    request: axum::extract::Request,
) -> Result<Response, ApiError> {
    let body = body::read_json(request.into_body(), api.settings.limits.body).await?;
    let (options, prompts) = read(body)?;
    api.check_model(options.model.as_deref())?;
    let prompts = encode(&api, prompts).await?;
    for prompt in &prompts {
        check_prompt(&api, prompt)?;
    }
    let tokenizer = api.harmony.tokenizer();
    let reader =
        || -> Box<dyn Reader> { Box::new(TextReader::new(Arc::clone(tokenizer), options.stops.clone())) };
    let tokens_max = options.tokens_max.unwrap_or(TOKENS_MAX_DEFAULT);
    let updates = generate(&api, &log, &options, &prompts, tokens_max, reader).await?;
    let envelope = Envelope::new(&api, "cmpl-");
    let choice_count = prompts.len() * options.choices;
    Answer { wording: TextWording, envelope, updates, choice_count, options, log }.respond(&api).await
}

enum Prompt {
    Text(String),
    Tokens { path: String, tokens: Vec<TokenId> },
}

fn read(body: Value) -> fields::Result<(Options, Vec<Prompt>)> {
    let mut fields = Node::body(body).object()?;
    let prompts = prompts(fields.require("prompt")?)?;
    let options = Options::read(&mut fields)?;
    neutral::take_completions(&mut fields)?;
    fields.finish()?;
    Ok((options, prompts))
}

/// A string, token ids, or an array of either.
fn prompts(node: Node) -> fields::Result<Vec<Prompt>> {
    let expected = "a string, an array of strings, or an array of token ids";
    match &node.value {
        Value::String(_) => Ok(vec![prompt(node)?]),
        Value::Array(items) if items.is_empty() => Err(node.unexpected(expected)),
        Value::Array(items) if items[0].is_number() => Ok(vec![prompt(node)?]),
        Value::Array(items) if items.len() > PROMPTS_MAX => {
            Err(node.invalid(format!("at most {PROMPTS_MAX} prompts, found {}", items.len())))
        }
        Value::Array(_) => node.array()?.into_iter().map(prompt).collect(),
        _ => Err(node.unexpected(expected)),
    }
}

fn prompt(node: Node) -> fields::Result<Prompt> {
    let empty = node.invalid("a prompt must not be empty");
    match &node.value {
        Value::String(text) if text.is_empty() => Err(empty),
        Value::Array(tokens) if tokens.is_empty() => Err(empty),
        Value::String(_) => node.string().map(Prompt::Text),
        Value::Array(_) => {
            let path = node.path.clone();
            let token = |node: Node| node.count(0..=u64::from(u32::MAX)).map(|token| token as TokenId);
            let tokens = node.array()?.into_iter().map(token).collect::<fields::Result<_>>()?;
            Ok(Prompt::Tokens { path, tokens })
        }
        _ => Err(node.unexpected("a string or an array of token ids")),
    }
}

/// Off the threads that serve streams: a prompt of megabytes takes a while to encode.
async fn encode(api: &Arc<Api>, prompts: Vec<Prompt>) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let api = Arc::clone(api);
    let encode = move || prompts.into_iter().map(|prompt| encode_one(&api, prompt)).collect();
    tokio::task::spawn_blocking(encode).await.map_err(|error| ApiError::Internal(error.to_string()))?
}

fn encode_one(api: &Api, prompt: Prompt) -> Result<Vec<TokenId>, ApiError> {
    let tokenizer = api.harmony.tokenizer();
    match prompt {
        Prompt::Text(text) => Ok(tokenizer.encode_special(&text)),
        Prompt::Tokens { path, tokens } => {
            match tokens.iter().position(|token| tokenizer.decode_bytes(*token).is_none()) {
                Some(at) => {
                    let node = Node { path: format!("{path}[{at}]"), value: json!(tokens[at]) };
                    Err(node.unexpected("the id of a token of this model").into())
                }
                None => Ok(tokens),
            }
        }
    }
}

struct TextWording;

impl Wording for TextWording {
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";

    fn choice(&self, index: usize, deltas: Vec<Delta>, ended: Ended) -> Value {
        let text: String = deltas.into_iter().map(text).collect();
        entry(index, text, Some(ended.finish.as_str()))
    }

    fn opening(&self, _index: usize) -> Option<Value> {
        None
    }

    fn delta(&self, index: usize, delta: Delta) -> Value {
        entry(index, text(delta), None)
    }

    fn closing(&self, index: usize, ended: Ended) -> Value {
        entry(index, String::new(), Some(ended.finish.as_str()))
    }
}

fn text(delta: Delta) -> String {
    match delta {
        Delta::Content(text) => text,
        Delta::Reasoning(_) | Delta::Call { .. } | Delta::Arguments { .. } => {
            unreachable!("raw text has neither reasoning nor calls")
        }
    }
}

fn entry(index: usize, text: String, finish_reason: Option<&str>) -> Value {
    json!({"index": index, "text": text, "logprobs": null, "finish_reason": finish_reason})
}
