//! `POST /v1/completions`: a prompt is continued as it stands, without harmony. Special tokens are
//! recognised in its text, so that a client may write harmony itself.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use flotilla_shared::TokenId;
use serde_json::{Value, json};

use super::answer::{Answer, Envelope, Wording};
use super::body::Received;
use super::encoding::at_desk;
use super::error::ApiError;
use super::fields::{self, Node};
use super::form::{self, Bound};
use super::generate::{Ended, check_prompt, check_text, generate};
use super::log::RequestLog;
use super::logprobs::{self, Likelihood};
use super::options::{Options, check_token};
use super::reader::{Delta, Reader, TextReader};
use super::{Api, neutral, sampling};
use crate::tokenizer::Tokenizer;

/// Prompts in one request.
const PROMPTS_MAX: usize = 64;
/// The default of OpenAI's API and of vLLM.
const TOKENS_MAX_DEFAULT: usize = 16;

pub async fn complete(
    State(api): State<Arc<Api>>,
    Extension(log): Extension<RequestLog>,
    request: axum::extract::Request,
) -> Result<Response, ApiError> {
    let tokenizer = Arc::clone(api.harmony.tokenizer());
    let body = api.bodies.read(request.into_body()).await?;
    let Ready { options, prompts, echoes, show_specials } =
        at_desk(&api, body.len(), move |api| ready(api, body)).await?;
    let reader = || -> Box<dyn Reader> {
        let tokenizer = Arc::clone(&tokenizer);
        Box::new(TextReader::new(tokenizer, &options.ending, &api.stop_tokens, show_specials))
    };
    let tokens_max = options.tokens_max.unwrap_or(TOKENS_MAX_DEFAULT);
    let updates = generate(&api, &log, &options, &prompts, tokens_max, reader).await?;
    let envelope = Envelope::new(&api, "cmpl-");
    let choice_count = prompts.len() * options.choices;
    let wording = TextWording {
        tokenizer: Arc::clone(&tokenizer),
        logprobs: options.choosing.logprobs.is_some(),
        echoes,
        choices: options.choices,
    };
    Answer { wording, envelope, updates, choice_count, options, log }.respond(&api).await
}

/// What a body becomes.
struct Ready {
    options: Options,
    prompts: Vec<Vec<TokenId>>,
    /// The prompts as `echo` gives them back, if it does.
    echoes: Vec<String>,
    show_specials: bool,
}

fn ready(api: &Api, body: Received) -> Result<Ready, ApiError> {
    let (body, _room) = body.json()?;
    let Request { options, prompts, echo, show_specials } = read(body, api.settings.context_tokens_max)?;
    api.check_model(options.model.as_deref())?;
    let echoed = if echo { &prompts[..] } else { &[] };
    let echoes = echoed.iter().map(|prompt| prompt.text(api.harmony.tokenizer())).collect();
    let prompts = prompts.into_iter().map(|prompt| encode(api, prompt)).collect::<Result<Vec<_>, _>>()?;
    Ok(Ready { options, prompts, echoes, show_specials })
}

enum Prompt {
    Text(String),
    Tokens { path: String, tokens: Vec<TokenId> },
}

impl Prompt {
    /// As `echo` gives it back.
    fn text(&self, tokenizer: &Tokenizer) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Tokens { tokens, .. } => tokenizer.decode(tokens),
        }
    }
}

pub(super) struct Request {
    options: Options,
    prompts: Vec<Prompt>,
    /// The prompt is given back before its continuation.
    echo: bool,
    /// Special tokens are part of the text, by their names (vLLM's `skip_special_tokens: false`).
    show_specials: bool,
}

pub(super) fn read(body: Value, context_tokens_max: usize) -> Result<Request, ApiError> {
    let mut fields = Node::body(body).object()?;
    let prompts = prompts(fields.require("prompt")?, context_tokens_max)?;
    let mut options = Options::read(&mut fields)?;
    options.choosing.logprobs = sampling::text_logprobs(&mut fields)?;
    if let Some(source) = form::structured_outputs(&mut fields)? {
        options.bind(Bound::Text(source))?;
    }
    let echo = fields.take("echo");
    let show_specials = !fields.take("skip_special_tokens").map_or(Ok(true), Node::bool)?;
    neutral::take_completions(&mut fields)?;
    fields.finish()?;
    let echo = echo.map_or(Ok(false), |node| echo_of(node, options.choosing.logprobs.is_some()))?;
    Ok(Request { options, prompts, echo, show_specials })
}

/// The likelihoods of a prompt's own tokens are not computed, and columns that begin behind the prompt would
/// be mistaken for them.
fn echo_of(node: Node, logprobs: bool) -> fields::Result<bool> {
    let with_logprobs = node.not_supported("false, where logprobs are asked for");
    if node.bool()? { if logprobs { Err(with_logprobs) } else { Ok(true) } } else { Ok(false) }
}

/// A string, token ids, or an array of either.
fn prompts(node: Node, context_tokens_max: usize) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a string, an array of strings, or an array of token ids";
    let one = |node| prompt(node, context_tokens_max);
    match &node.value {
        Value::String(_) => Ok(vec![one(node)?]),
        Value::Array(items) if items.is_empty() => Err(node.unexpected(expected).into()),
        Value::Array(items) if items[0].is_number() => Ok(vec![one(node)?]),
        Value::Array(_) => node.array_of(PROMPTS_MAX, "prompts")?.into_iter().map(one).collect(),
        _ => Err(node.unexpected(expected).into()),
    }
}

fn prompt(node: Node, context_tokens_max: usize) -> Result<Prompt, ApiError> {
    let empty = || node.invalid("a prompt must not be empty");
    match &node.value {
        Value::String(text) if text.is_empty() => Err(empty().into()),
        Value::Array(tokens) if tokens.is_empty() => Err(empty().into()),
        Value::String(_) => Ok(Prompt::Text(node.string()?)),
        Value::Array(tokens) if tokens.len() >= context_tokens_max => {
            Err(ApiError::ContextLength { prompt_tokens: tokens.len(), context_tokens_max })
        }
        Value::Array(_) => Ok(Prompt::Tokens { tokens: node.token_ids()?, path: node.path }),
        _ => Err(node.unexpected("a string or an array of token ids").into()),
    }
}

fn encode(api: &Api, prompt: Prompt) -> Result<Vec<TokenId>, ApiError> {
    let tokenizer = api.harmony.tokenizer();
    let tokens = match prompt {
        Prompt::Text(text) => {
            check_text(api, text.len())?;
            tokenizer.encode_special(&text)
        }
        Prompt::Tokens { path, tokens } => {
            for (at, token) in tokens.iter().enumerate() {
                check_token(tokenizer, || format!("{path}[{at}]"), *token)?;
            }
            tokens
        }
    };
    check_prompt(api, &tokens)?;
    Ok(tokens)
}

struct TextWording {
    tokenizer: Arc<Tokenizer>,
    /// Whether the client asked for logprobs.
    logprobs: bool,
    /// The prompts, where they are given back; else none.
    echoes: Vec<String>,
    /// Of each prompt.
    choices: usize,
}

impl Wording for TextWording {
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";

    fn choice(&self, index: usize, deltas: Vec<Delta>, ended: Ended) -> Value {
        let mut text = self.echo(index).unwrap_or_default().to_owned();
        let mut likelihoods = Vec::new();
        for delta in deltas {
            let (more, logprobs) = content(delta);
            text.push_str(&more);
            likelihoods.extend(logprobs);
        }
        self.entry(index, text, &likelihoods, Some(ended.finish.as_str()))
    }

    fn opening(&self, index: usize) -> Option<Value> {
        self.echo(index).map(|echo| self.entry(index, echo.to_owned(), &[], None))
    }

    fn delta(&self, index: usize, delta: Delta) -> Value {
        let (text, likelihoods) = content(delta);
        self.entry(index, text, &likelihoods, None)
    }

    fn closing(&self, index: usize, ended: Ended) -> Value {
        self.entry(index, String::new(), &[], Some(ended.finish.as_str()))
    }
}

impl TextWording {
    fn echo(&self, index: usize) -> Option<&str> {
        self.echoes.get(index / self.choices).map(String::as_str)
    }

    fn entry(&self, index: usize, text: String, likelihoods: &[Likelihood], finish: Option<&str>) -> Value {
        let asked = self.logprobs && (finish.is_none() || !text.is_empty());
        let logprobs = if asked { logprobs::text(&self.tokenizer, likelihoods) } else { Value::Null };
        json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
    }
}

fn content(delta: Delta) -> (String, Vec<Likelihood>) {
    match delta {
        Delta::Content { text, logprobs } => (text, logprobs),
        Delta::Reasoning(_) | Delta::Call { .. } | Delta::Arguments { .. } => {
            unreachable!("raw text has neither reasoning nor calls")
        }
    }
}
