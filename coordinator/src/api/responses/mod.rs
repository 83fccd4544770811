//! `POST /v1/responses` and what belongs to it: the newer of OpenAI's APIs, in which an answer is a list of
//! items and the server may remember a conversation. The way to the model is that of a chat; what differs is
//! how requests are read, how answers are worded, and that responses are kept for a while (`store.rs`).

mod answer;
mod body;
mod conversation;
mod format;
mod input;
mod item;
mod listing;
mod output;
pub(super) mod request;
mod store;
mod tools;

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use flotilla_scheduler::ClientId;
use flotilla_shared::TokenId;
use serde_json::{Value, json};

use super::Api;
use super::body::{Received, SHORT_BYTES_MAX};
use super::chat::text_bytes;
use super::encoding::at_desk;
use super::error::ApiError;
use super::fields::{FieldError, Node, Problem};
use super::generate::{check_prompt, check_text, generate};
use super::log::RequestLog;
use super::options::Options;
use super::reader::{ChatReader, Reader};
use crate::harmony::chat::{Chat, conversation as chat_conversation};
use crate::harmony::render::PastAnalysis;
use answer::{Answer, Keep};
use body::{Echo, Envelope};
use input::Entry;
use item::Item;
use output::Output;
use request::ResponsesRequest;
pub use store::{Store, StoreLimits};
use store::{Stored, Turn};

/// What is done with responses that are there.
pub fn stored_routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/responses/{id}", get(retrieve).delete(delete))
        .route("/v1/responses/{id}/cancel", post(cancel))
        .route("/v1/responses/{id}/input_items", get(input_items))
}

pub async fn create(
    State(api): State<Arc<Api>>,
    Extension(log): Extension<RequestLog>,
    request: axum::extract::Request,
) -> Result<Response, ApiError> {
    let body = api.bodies.read(request.into_body()).await?;
    let (client, body_bytes) = (log.client(), body.len());
    // As values a long body takes much, and must not wait for another desk as such; a short one may refer to much.
    let asked = at_desk(&api, body_bytes, move |api| {
        let asked = Asked::read(api, client, body)?;
        if body_bytes > SHORT_BYTES_MAX {
            asked.render(api).map(Box::new).map(Step::Done)
        } else {
            Ok(Step::Asked(Box::new(asked)))
        }
    });
    let Rendered { options, prompt, hears_calls, carries_thoughts, namespaces, echo, keep } =
        match asked.await? {
            Step::Done(rendered) => *rendered,
            Step::Asked(asked) => at_desk(&api, asked.told.bytes(), move |api| asked.render(api)).await?,
        };
    let reader =
        || -> Box<dyn Reader> { Box::new(ChatReader::new(&api.harmony, &options.ending, hears_calls)) };
    let tokens_max = options.tokens_max.unwrap_or(usize::MAX);
    let updates = generate(&api, &log, &options, &[prompt], tokens_max, reader).await?;
    let envelope = Envelope::new(&api, echo);
    let output = Output::new(Arc::clone(&api), namespaces, carries_thoughts);
    let answer = Answer { api, envelope, output, updates, log, keep };
    if options.stream { Ok(answer.stream()) } else { answer.whole().await }
}

/// A request, and what it refers to.
struct Asked {
    options: Options,
    chat: Chat,
    hears_calls: bool,
    carries_thoughts: bool,
    namespaces: Vec<String>,
    told: Told,
    echo: Echo,
    /// For whom the response is kept, and to whom alone it is shown.
    kept_for: Option<ClientId>,
}

struct Rendered {
    options: Options,
    prompt: Vec<TokenId>,
    hears_calls: bool,
    carries_thoughts: bool,
    namespaces: Vec<String>,
    echo: Echo,
    keep: Option<Keep>,
}

enum Step {
    Asked(Box<Asked>),
    Done(Box<Rendered>),
}

impl Asked {
    fn read(api: &Api, client: ClientId, body: Received) -> Result<Asked, ApiError> {
        let (body, room) = body.json()?;
        let ResponsesRequest {
            mut options,
            instructions,
            input,
            previous,
            store,
            chat,
            hears_calls,
            carries_thoughts,
            namespaces,
            echo,
        } = ResponsesRequest::read(body)?;
        api.check_model(options.model.as_deref())?;
        options.bound.check_limits()?;
        let previous = previous_turns(api, client, previous.as_deref())?;
        let input = resolve(api, client, input)?;
        let told = Told { instructions, previous, input };
        if !hears_calls && (!chat.tools.is_empty() || told.items().into_iter().any(Item::is_call)) {
            options.forbid_calls();
        }
        let echo = Echo::new(&echo, room);
        let kept_for = store.then_some(client);
        Ok(Asked { options, chat, hears_calls, carries_thoughts, namespaces, told, echo, kept_for })
    }

    fn render(self, api: &Api) -> Result<Rendered, ApiError> {
        let Asked { options, chat, hears_calls, carries_thoughts, namespaces, told, echo, kept_for } = self;
        let prompt = render(api, chat, &told)?;
        let Told { previous, input, .. } = told;
        let keep = kept_for.map(|client| Keep { client, previous, input });
        Ok(Rendered { options, prompt, hears_calls, carries_thoughts, namespaces, echo, keep })
    }
}

fn previous_turns(api: &Api, client: ClientId, id: Option<&str>) -> Result<Vec<Arc<Turn>>, ApiError> {
    match id {
        None => Ok(Vec::new()),
        Some(id) => api
            .responses
            .get(client, id)
            .map(|stored| stored.turns)
            .ok_or_else(|| ApiError::PreviousNotFound { id: id.to_owned() }),
    }
}

/// Names what has no name yet, and looks up what is referred to.
fn resolve(api: &Api, client: ClientId, input: Vec<Entry>) -> Result<Vec<Item>, ApiError> {
    // A reference is short, and what it stands for is not: together they are held to what a body may have.
    let mut bytes_left = api.settings.limits.body.bytes_max;
    let mut resolve = |entry| -> Result<Item, ApiError> {
        match entry {
            Entry::Item(mut item) => {
                if item.id.is_empty() {
                    item.id = api.ids.name(item.id_prefix());
                }
                Ok(item)
            }
            Entry::Reference { path, id } => {
                let item = api.responses.item(client, &id).ok_or(ApiError::ItemNotFound { path, id })?;
                let bytes_max = api.settings.limits.body.bytes_max;
                bytes_left =
                    bytes_left.checked_sub(item.bytes()).ok_or(ApiError::BodyTooLarge { bytes_max })?;
                Ok(item)
            }
        }
    };
    let items: Vec<Item> = input.into_iter().map(&mut resolve).collect::<Result<_, _>>()?;
    match conversation::stray_commentary(&items) {
        Some(index) => {
            let node = Node { path: format!("input[{index}].phase"), value: json!("commentary") };
            Err(node.not_supported("\"commentary\" before a function_call").into())
        }
        None => Ok(items),
    }
}

/// What the model is to be told beside tools.
struct Told {
    instructions: Option<String>,
    previous: Vec<Arc<Turn>>,
    input: Vec<Item>,
}

impl Told {
    /// What there is to be made into tokens, beside tools.
    fn bytes(&self) -> usize {
        let instructions = self.instructions.as_ref().map_or(0, String::len);
        instructions + self.items().iter().map(|item| item.bytes()).sum::<usize>()
    }

    fn items(&self) -> Vec<&Item> {
        self.previous.iter().flat_map(|turn| turn.items()).chain(&self.input).collect()
    }
}

fn render(api: &Api, mut chat: Chat, told: &Told) -> Result<Vec<TokenId>, ApiError> {
    chat.current_date = Some((api.settings.current_date)());
    chat.messages = conversation::messages(told.instructions.as_deref(), &told.items());
    check_text(api, text_bytes(&chat))?;
    let conversation =
        chat_conversation(&chat).map_err(|error| conversation::conversation_error(error, &told.input))?;
    let prompt = api.harmony.render_for_completion(&conversation, PastAnalysis::default());
    check_prompt(api, &prompt)?;
    Ok(prompt)
}

async fn retrieve(
    State(api): State<Arc<Api>>,
    Extension(log): Extension<RequestLog>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let stored = stored(&api, &log, &id)?;
    listing::neutral_parameters(query.as_deref())?;
    Ok(answer::json_response(&stored.body))
}

async fn delete(
    State(api): State<Arc<Api>>,
    Extension(log): Extension<RequestLog>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if !api.responses.remove(log.client(), &id) {
        return Err(ApiError::ResponseNotFound { id });
    }
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}

/// Responses are made while their client waits, and end when it leaves.
async fn cancel(
    State(api): State<Arc<Api>>,
    Extension(log): Extension<RequestLog>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    stored(&api, &log, &id)?;
    let what = format!(
        "{id:?} was not made in the background, and only such a response can be cancelled\n\
         hint: to end a response that is being made, close its connection"
    );
    Err(FieldError { path: "response_id".to_owned(), problem: Problem::Invalid(what) }.into())
}

async fn input_items(
    State(api): State<Arc<Api>>,
    Extension(log): Extension<RequestLog>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let stored = stored(&api, &log, &id)?;
    Ok(Json(listing::list(&stored, query.as_deref())?))
}

fn stored(api: &Api, log: &RequestLog, id: &str) -> Result<Stored, ApiError> {
    api.responses.get(log.client(), id).ok_or_else(|| ApiError::ResponseNotFound { id: id.to_owned() })
}
