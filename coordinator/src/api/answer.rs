//! What chat and raw completions have in common when they answer: the envelope around choices, usage,
//! and the way from updates to one body or to a stream of server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::Json;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{Stream, StreamExt, unfold};
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use super::generate::{Ended, Update, Updates, Usage, total};
use super::log::RequestLog;
use super::options::Options;
use super::reader::Delta;

/// What stands in every object that answers one request.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub id: String,
    pub created: u64,
    pub model: String,
    pub fingerprint: String,
}

impl Envelope {
    pub fn new(api: &Api, id_prefix: &str) -> Envelope {
        Envelope {
            id: api.ids.name(id_prefix),
            created: (api.settings.unix_seconds)(),
            model: api.settings.model_name.clone(),
            fingerprint: api.settings.fingerprint.clone(),
        }
    }

    pub fn wrap(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

/// How an API words its answers.
pub trait Wording: Send + 'static {
    /// The `object` of a whole answer.
    const OBJECT: &'static str;
    /// The `object` of a chunk.
    const CHUNK_OBJECT: &'static str;

    /// The entry of a whole answer's `choices`, from everything that came of that choice.
    fn choice(&self, index: usize, deltas: Vec<Delta>, ended: Ended) -> Value;

    /// The entry of a chunk's `choices`, before the first delta of a choice. None: no such chunk.
    fn opening(&self, index: usize) -> Option<Value>;

    fn delta(&self, index: usize, delta: Delta) -> Value;

    fn closing(&self, index: usize, ended: Ended) -> Value;
}

/// One request's answer in the making.
pub struct Answer<W> {
    pub wording: W,
    pub envelope: Envelope,
    pub updates: Updates,
    pub choice_count: usize,
    pub options: Options,
    pub log: RequestLog,
}

impl<W: Wording> Answer<W> {
    pub async fn respond(self, api: &Api) -> Result<Response, ApiError> {
        if !self.options.stream {
            return Ok(Json(self.whole().await?).into_response());
        }
        let keep_alive = KeepAlive::new().interval(api.settings.limits.keep_alive);
        Ok(Sse::new(self.events()).keep_alive(keep_alive).into_response())
    }

    async fn whole(mut self) -> Result<Value, ApiError> {
        let mut deltas = vec![Vec::new(); self.choice_count];
        let mut ended = vec![None; self.choice_count];
        while let Some((index, update)) = self.updates.next().await {
            match update {
                Update::Delta { delta, .. } => deltas[index].push(delta),
                Update::Ended(end) => ended[index] = Some(end),
                Update::Failed(error) => return Err(error),
            }
        }
        let ends: Vec<Ended> = ended.into_iter().flatten().collect();
        let usages: Vec<_> = ends.iter().map(|end| Some(end.usage)).collect();
        let parts = deltas.into_iter().zip(&ends).enumerate();
        let choices = parts.map(|(index, (deltas, end))| self.wording.choice(index, deltas, *end)).collect();
        let mut body = self.envelope.wrap(W::OBJECT, choices);
        body["usage"] = usage_json(total(&usages, self.options.choices));
        self.log.note(|facts| facts.complete = true);
        Ok(body)
    }

    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> + Send {
        let chunks = Chunks {
            usages: vec![None; self.choice_count],
            opened: vec![false; self.choice_count],
            ready: VecDeque::new(),
            over: false,
            answer: self,
        };
        unfold(chunks, |mut chunks| async {
            let data = chunks.next().await?;
            Some((Ok(Event::default().data(data)), chunks))
        })
    }
}

/// The state of a stream: which choices have begun, and how much each has used.
struct Chunks<W> {
    answer: Answer<W>,
    usages: Vec<Option<Usage>>,
    opened: Vec<bool>,
    ready: VecDeque<String>,
    over: bool,
}

impl<W: Wording> Chunks<W> {
    async fn next(&mut self) -> Option<String> {
        while self.ready.is_empty() {
            if self.over {
                return None;
            }
            match self.answer.updates.next().await {
                Some((_, Update::Failed(error))) => self.fail(error),
                Some((index, update)) => self.on_update(index, update),
                None => self.finish(),
            }
        }
        self.ready.pop_front()
    }

    fn on_update(&mut self, index: usize, update: Update) {
        if !std::mem::replace(&mut self.opened[index], true)
            && let Some(opening) = self.answer.wording.opening(index)
        {
            self.usages[index] = at_opening(&update);
            self.chunk(opening);
        }
        match update {
            Update::Delta { delta, usage } => {
                self.usages[index] = Some(usage);
                self.chunk(self.answer.wording.delta(index, delta));
            }
            Update::Ended(ended) => {
                self.usages[index] = Some(ended.usage);
                self.chunk(self.answer.wording.closing(index, ended));
            }
            Update::Failed(_) => unreachable!("a failure ends the stream"),
        }
    }

    fn chunk(&mut self, choice: Value) {
        let mut chunk = self.answer.envelope.wrap(W::CHUNK_OBJECT, vec![choice]);
        if self.answer.options.continuous_usage {
            chunk["usage"] = usage_json(self.usage());
        } else if self.answer.options.include_usage {
            chunk["usage"] = Value::Null;
        }
        self.ready.push_back(chunk.to_string());
    }

    fn usage(&self) -> Usage {
        total(&self.usages, self.answer.options.choices)
    }

    fn finish(&mut self) {
        if self.answer.options.include_usage {
            let mut chunk = self.answer.envelope.wrap(W::CHUNK_OBJECT, Vec::new());
            chunk["usage"] = usage_json(self.usage());
            self.ready.push_back(chunk.to_string());
        }
        self.answer.log.note(|facts| facts.complete = true);
        self.end();
    }

    /// The status went out long ago, so the error comes as an event.
    fn fail(&mut self, error: ApiError) {
        self.answer.log.note_error(&error);
        self.ready.push_back(error.to_json().to_string());
        self.end();
    }

    fn end(&mut self) {
        self.ready.push_back("[DONE]".to_owned());
        self.over = true;
    }
}

/// What a choice has used when it begins: its prompt.
fn at_opening(update: &Update) -> Option<Usage> {
    let usage = match update {
        Update::Delta { usage, .. } | Update::Ended(Ended { usage, .. }) => *usage,
        Update::Failed(_) => return None,
    };
    Some(Usage { completion_tokens: 0, reasoning_tokens: 0, ..usage })
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    })
}
