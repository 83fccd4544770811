//! `POST /v1/chat/completions`: messages in, a message out, in between harmony.

pub(super) mod request;
pub(super) mod tools;
mod wording;

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use flotilla_shared::TokenId;

use super::Api;
use super::answer::{Answer, Envelope};
use super::encoding::at_desk;
use super::error::ApiError;
use super::generate::{check_prompt, generate};
use super::log::RequestLog;
use super::reader::{ChatReader, Reader};
use crate::harmony::chat::{Chat, conversation};
use crate::harmony::render::PastAnalysis;
pub use request::ChatRequest;
use request::chat_error;
use wording::ChatWording;

pub async fn complete(
    State(api): State<Arc<Api>>,
    Extension(log): Extension<RequestLog>,
    request: axum::extract::Request,
) -> Result<Response, ApiError> {
    let (body, room) = api.bodies.read_json(request.into_body()).await?;
    let ChatRequest { options, chat } = ChatRequest::read(body)?;
    api.check_model(options.model.as_deref())?;
    options.bound.check_limits()?;
    let offered_tools = !chat.tools.is_empty();
    let prompt = render(&api, chat).await?;
    drop(room);
    check_prompt(&api, &prompt)?;
    let reader =
        || -> Box<dyn Reader> { Box::new(ChatReader::new(&api.harmony, &options.ending, offered_tools)) };
    let tokens_max = options.tokens_max.unwrap_or(usize::MAX);
    let updates = generate(&api, &log, &options, &[prompt], tokens_max, reader).await?;
    let envelope = Envelope::new(&api, "chatcmpl-");
    let wording = ChatWording { api: Arc::clone(&api), logprobs: options.choosing.logprobs.is_some() };
    Answer { wording, envelope, updates, choice_count: options.choices, options, log }.respond(&api).await
}

/// The prompt that a chat becomes.
pub async fn render(api: &Arc<Api>, mut chat: Chat) -> Result<Vec<TokenId>, ApiError> {
    chat.current_date = Some((api.settings.current_date)());
    at_desk(api, move |api| {
        let conversation = conversation(&chat).map_err(chat_error)?;
        Ok(api.harmony.render_for_completion(&conversation, PastAnalysis::default()))
    })
    .await
}
