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
use super::generate::{check_prompt, check_text, generate};
use super::log::RequestLog;
use super::reader::{ChatReader, Reader};
use crate::harmony::chat::{Chat, ChatMessage, conversation};
use crate::harmony::render::PastAnalysis;
pub use request::ChatRequest;
use request::chat_error;
use wording::ChatWording;

pub async fn complete(
    State(api): State<Arc<Api>>,
    Extension(log): Extension<RequestLog>,
    request: axum::extract::Request,
) -> Result<Response, ApiError> {
    let body = api.bodies.read(request.into_body()).await?;
    let (options, hears_calls, prompt) = at_desk(&api, body.len(), move |api| {
        let (body, _room) = body.json()?;
        let ChatRequest { options, chat, hears_calls } = ChatRequest::read(body)?;
        api.check_model(options.model.as_deref())?;
        options.bound.check_limits()?;
        check_text(api, text_bytes(&chat))?;
        let prompt = render(api, chat)?;
        check_prompt(api, &prompt)?;
        Ok((options, hears_calls, prompt))
    })
    .await?;
    let reader =
        || -> Box<dyn Reader> { Box::new(ChatReader::new(&api.harmony, &options.ending, hears_calls)) };
    let tokens_max = options.tokens_max.unwrap_or(usize::MAX);
    let updates = generate(&api, &log, &options, &[prompt], tokens_max, reader).await?;
    let envelope = Envelope::new(&api, "chatcmpl-");
    let wording = ChatWording { api: Arc::clone(&api), logprobs: options.choosing.logprobs.is_some() };
    Answer { wording, envelope, updates, choice_count: options.choices, options, log }.respond(&api).await
}

/// Of what is shown to the model whatever else there is: the thoughts of turns that are over are left out.
pub fn text_bytes(chat: &Chat) -> usize {
    let bytes = |message: &ChatMessage| match message {
        ChatMessage::System { content }
        | ChatMessage::Developer { content }
        | ChatMessage::User { content, .. }
        | ChatMessage::Tool { content, .. } => content.len(),
        ChatMessage::Assistant { .. } => 0,
    };
    chat.messages.iter().map(bytes).sum()
}

/// The prompt that a chat becomes. It takes a while.
pub fn render(api: &Api, mut chat: Chat) -> Result<Vec<TokenId>, ApiError> {
    chat.current_date = Some((api.settings.current_date)());
    let conversation = conversation(&chat).map_err(chat_error)?;
    Ok(api.harmony.render_for_completion(&conversation, PastAnalysis::default()))
}
