//! From updates to an answer: one body, or a stream of events. Either way the response is stored, if the
//! client did not forbid it, before its end is told.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::http::header::CONTENT_TYPE;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use flotilla_scheduler::ClientId;
use futures::stream::{Stream, StreamExt, unfold};
use serde_json::{Value, json};

use super::body::{Envelope, Standing};
use super::item::{Item, Status};
use super::output::{Event, Output};
use super::store::{Finished, Turn};
use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::generate::{Ended, Finish, Update, Updates, Usage};
use crate::api::log::RequestLog;

/// One response in the making.
pub struct Answer {
    pub api: Arc<Api>,
    pub envelope: Envelope,
    pub output: Output,
    pub updates: Updates,
    pub log: RequestLog,
    /// None: the client wants nothing kept.
    pub keep: Option<Keep>,
}

/// What is to be stored beside the answer.
pub struct Keep {
    pub client: ClientId,
    pub previous: Vec<Arc<Turn>>,
    pub input: Vec<Item>,
}

impl Answer {
    pub async fn whole(mut self) -> Result<Response, ApiError> {
        while let Some((_, update)) = self.updates.next().await {
            match update {
                Update::Delta { delta, .. } => {
                    self.output.push(delta);
                    self.output.take_events();
                }
                Update::Ended(ended) => {
                    let body: Arc<str> = self.end(ended).1.to_string().into();
                    self.store(&body);
                    return Ok(json_response(&body));
                }
                Update::Failed(error) => return Err(error),
            }
        }
        Err(ApiError::Internal("an answer without an end".to_owned()))
    }

    pub fn stream(self) -> Response {
        let keep_alive = KeepAlive::new().interval(self.api.settings.limits.keep_alive);
        Sse::new(events(self)).keep_alive(keep_alive).into_response()
    }

    fn end(&mut self, ended: Ended) -> (Standing, Value) {
        let (standing, status) = match ended.finish {
            Finish::Length => (Standing::Incomplete, Status::Incomplete),
            Finish::Stop | Finish::ToolCalls => (Standing::Completed, Status::Completed),
        };
        self.output.finish(status);
        self.log.note(|facts| facts.complete = true);
        let body = self.envelope.body(&standing, self.output.items(), Some(ended.usage));
        (standing, body)
    }

    fn store(&mut self, body: &Arc<str>) {
        let Some(Keep { client, previous, input }) = self.keep.take() else { return };
        let finished = Finished {
            id: self.envelope.id.clone(),
            client,
            body: Arc::clone(body),
            previous,
            input,
            output: self.output.items().iter().map(Item::without_logprobs).collect(),
        };
        if !self.api.responses.insert(finished) {
            let _span = self.log.span().enter();
            tracing::warn!(response = self.envelope.id, bytes = body.len(), "no room to store a response");
        }
    }
}

/// A stored response's body, word for word.
pub fn json_response(body: &str) -> Response {
    ([(CONTENT_TYPE, "application/json")], body.to_owned()).into_response()
}

fn events(answer: Answer) -> impl Stream<Item = Result<SseEvent, Infallible>> + Send {
    let usage = Usage::default();
    let mut teller = Teller { answer, usage, told: 0, ready: VecDeque::new(), over: false };
    teller.open();
    unfold(teller, |mut teller| async { teller.next().await.map(|event| (Ok(event), teller)) })
}

/// The state of a stream.
struct Teller {
    answer: Answer,
    usage: Usage,
    /// Events so far: the number of the next.
    told: usize,
    ready: VecDeque<SseEvent>,
    over: bool,
}

impl Teller {
    fn open(&mut self) {
        let begun = json!({"response": self.answer.envelope.body(&Standing::InProgress, &[], None)});
        self.tell(Event { name: "response.created", fields: begun.clone() });
        self.tell(Event { name: Standing::InProgress.event(), fields: begun });
    }

    async fn next(&mut self) -> Option<SseEvent> {
        while self.ready.is_empty() {
            if self.over {
                return None;
            }
            match self.answer.updates.next().await {
                Some((_, update)) => self.on_update(update),
                None => self.over = true,
            }
        }
        self.ready.pop_front()
    }

    fn on_update(&mut self, update: Update) {
        match update {
            Update::Delta { delta, usage } => {
                self.usage = usage;
                self.answer.output.push(delta);
                self.tell_output();
            }
            Update::Ended(ended) => {
                let (standing, body) = self.answer.end(ended);
                self.tell_output();
                self.answer.store(&body.to_string().into());
                self.close(&standing, body);
            }
            Update::Failed(error) => self.fail(error),
        }
    }

    /// The status went out long ago, so the error comes as an event, and the response as far as it came. It is
    /// not stored: there is nothing to go on from.
    fn fail(&mut self, error: ApiError) {
        self.answer.log.note_error(&error);
        self.answer.output.finish(Status::Incomplete);
        self.tell_output();
        let mut fields = error.to_json()["error"].take();
        if let Value::Object(fields) = &mut fields {
            fields.remove("type");
        }
        self.tell(Event { name: "error", fields });
        let standing = Standing::Failed(error);
        let body = self.answer.envelope.body(&standing, self.answer.output.items(), Some(self.usage));
        self.close(&standing, body);
    }

    fn close(&mut self, standing: &Standing, body: Value) {
        self.tell(Event { name: standing.event(), fields: json!({"response": body}) });
        self.over = true;
    }

    fn tell_output(&mut self) {
        for event in self.answer.output.take_events() {
            self.tell(event);
        }
    }

    fn tell(&mut self, event: Event) {
        let mut data = json!({"type": event.name, "sequence_number": self.told});
        if let (Value::Object(data), Value::Object(fields)) = (&mut data, event.fields) {
            data.extend(fields);
        }
        self.told += 1;
        self.ready.push_back(SseEvent::default().event(event.name).data(data.to_string()));
    }
}
