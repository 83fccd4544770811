//! `POST /tokenize` and `POST /detokenize`, as vLLM has them: what a prompt or a chat is in tokens, and
//! back. Just what a completion of the same request would run on. All of it is done at a desk, from the body's JSON
//! to the answer's: both may be long.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use flotilla_shared::TokenId;
use serde_json::{Value, json};

use super::Api;
use super::body::Received;
use super::chat::{self, ChatRequest};
use super::encoding::at_desk;
use super::error::ApiError;
use super::fields::{FieldError, Fields, Node, Problem};
use super::options::check_token;

/// More than any context holds.
const TOKENS_MAX: usize = 1 << 20;

pub async fn tokenize(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let body = api.bodies.read(request.into_body()).await?;
    at_desk(&api, body.len(), move |api| tokens_of(api, body)).await
}

fn tokens_of(api: &Api, body: Received) -> Result<Response, ApiError> {
    let (body, _room) = body.json()?;
    let mut fields = Node::body(body).object()?;
    let strings = fields.take("return_token_strs").map_or(Ok(false), Node::bool)?;
    let tokens = match fields.take("prompt") {
        Some(prompt) => encode(api, &prompt.string()?, fields)?,
        None if !fields.has("messages") => {
            let problem = Problem::Absent("a prompt, or the messages of a chat");
            return Err(FieldError { path: "prompt".to_owned(), problem }.into());
        }
        None => {
            // A chat's special tokens are the format's, whatever is said of them.
            fields.take("add_special_tokens");
            let ChatRequest { options, chat, .. } = ChatRequest::read(fields.into_value())?;
            api.check_model(options.model.as_deref())?;
            chat::render(api, chat)?
        }
    };
    let tokenizer = api.harmony.tokenizer();
    let strings = strings.then(|| tokens.iter().map(|token| tokenizer.decode(&[*token])).collect::<Vec<_>>());
    let answer = json!({
        "count": tokens.len(),
        "max_model_len": api.settings.context_tokens_max,
        "tokens": tokens,
        "token_strs": strings,
    });
    Ok(Json(answer).into_response())
}

fn encode(api: &Api, text: &str, mut fields: Fields) -> Result<Vec<TokenId>, ApiError> {
    let model = fields.take("model").map(Node::string).transpose()?;
    // gpt-oss adds none to a prompt, so both answers are the same.
    fields.take("add_special_tokens").map(Node::bool).transpose()?;
    fields.finish()?;
    api.check_model(model.as_deref())?;
    Ok(api.harmony.tokenizer().encode_special(text))
}

pub async fn detokenize(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let body = api.bodies.read(request.into_body()).await?;
    at_desk(&api, body.len(), move |api| text_of(api, body)).await
}

fn text_of(api: &Api, body: Received) -> Result<Response, ApiError> {
    let (body, _room) = body.json()?;
    let mut fields = Node::body(body).object()?;
    let model = fields.take("model").map(Node::string).transpose()?;
    let tokens = fields.require("tokens")?;
    tokens.at_most(TOKENS_MAX, "tokens")?;
    fields.finish()?;
    api.check_model(model.as_deref())?;
    let tokens = tokens.token_ids()?;
    for (at, token) in tokens.iter().enumerate() {
        check_token(api.harmony.tokenizer(), || format!("tokens[{at}]"), *token)?;
    }
    let text: Value = json!({"prompt": api.harmony.tokenizer().decode(&tokens)});
    Ok(Json(text).into_response())
}
