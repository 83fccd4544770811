//! `POST /tokenize` and `POST /detokenize`, as vLLM has them: what a prompt or a chat is in tokens, and
//! back. Just what a completion of the same request would run on.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use flotilla_shared::TokenId;
use serde_json::{Value, json};

use super::Api;
use super::chat::{self, ChatRequest};
use super::encoding::at_desk;
use super::error::ApiError;
use super::fields::{FieldError, Fields, Node, Problem, Result};
use super::options::check_token;

/// More than any context holds.
const TOKENS_MAX: usize = 1 << 20;

pub async fn tokenize(
    State(api): State<Arc<Api>>,
    request: Request,
) -> std::result::Result<Json<Value>, ApiError> {
    let (body, _room) = api.bodies.read_json(request.into_body()).await?;
    let mut fields = Node::body(body).object()?;
    let strings = fields.take("return_token_strs").map_or(Ok(false), Node::bool)?;
    let tokens = match fields.take("prompt") {
        Some(prompt) => encode(&api, prompt.string()?, fields).await?,
        None if !fields.has("messages") => {
            let problem = Problem::Absent("a prompt, or the messages of a chat");
            return Err(FieldError { path: "prompt".to_owned(), problem }.into());
        }
        None => {
            // A chat's special tokens are the format's, whatever is said of them.
            fields.take("add_special_tokens");
            let ChatRequest { options, chat } = ChatRequest::read(fields.into_value())?;
            api.check_model(options.model.as_deref())?;
            chat::render(&api, chat).await?
        }
    };
    let tokenizer = api.harmony.tokenizer();
    let strings = strings.then(|| tokens.iter().map(|token| tokenizer.decode(&[*token])).collect::<Vec<_>>());
    Ok(Json(json!({
        "count": tokens.len(),
        "max_model_len": api.settings.context_tokens_max,
        "tokens": tokens,
        "token_strs": strings,
    })))
}

async fn encode(
    api: &Arc<Api>,
    text: String,
    mut fields: Fields,
) -> std::result::Result<Vec<TokenId>, ApiError> {
    let model = fields.take("model").map(Node::string).transpose()?;
    // gpt-oss adds none to a prompt, so both answers are the same.
    fields.take("add_special_tokens").map(Node::bool).transpose()?;
    fields.finish()?;
    api.check_model(model.as_deref())?;
    at_desk(api, move |api| Ok(api.harmony.tokenizer().encode_special(&text))).await
}

pub async fn detokenize(
    State(api): State<Arc<Api>>,
    request: Request,
) -> std::result::Result<Json<Value>, ApiError> {
    let (body, _room) = api.bodies.read_json(request.into_body()).await?;
    let mut fields = Node::body(body).object()?;
    let model = fields.take("model").map(Node::string).transpose()?;
    let nodes = fields.require("tokens")?.array_of(TOKENS_MAX, "tokens")?;
    fields.finish()?;
    api.check_model(model.as_deref())?;
    let token = |(at, node): (usize, Node)| -> Result<TokenId> {
        let token = node.count(0..=u32::MAX.into())? as TokenId;
        check_token(api.harmony.tokenizer(), || format!("tokens[{at}]"), token).map(|()| token)
    };
    let tokens = nodes.into_iter().enumerate().map(token).collect::<Result<Vec<_>>>()?;
    Ok(Json(json!({"prompt": api.harmony.tokenizer().decode(&tokens)})))
}
