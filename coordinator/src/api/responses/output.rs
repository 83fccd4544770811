//! An answer as the items that it consists of, and as the events by which a stream tells of them. Both are
//! made at once, so that a whole answer and a stream always say the same.
//!
//! Text of one kind is one item, until another kind comes: reasoning, a message, a call. The events of the
//! response itself, around these, are in `answer.rs`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::item::{Item, Kind, Status};
use super::tools::split_name;
use crate::api::Api;
use crate::api::logprobs;
use crate::api::reader::Delta;
use crate::harmony::Role;

/// What a stream tells. `type` and `sequence_number` are not in its fields yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: &'static str,
    pub fields: Value,
}

pub struct Output {
    api: Arc<Api>,
    namespaces: Vec<String>,
    carries_thoughts: bool,
    /// Complete, or cut.
    items: Vec<Item>,
    /// The one that is being written.
    open: Option<Item>,
    events: Vec<Event>,
}

impl Output {
    pub fn new(api: Arc<Api>, namespaces: Vec<String>, carries_thoughts: bool) -> Output {
        Output { api, namespaces, carries_thoughts, items: Vec::new(), open: None, events: Vec::new() }
    }

    pub fn push(&mut self, delta: Delta) {
        match delta {
            Delta::Reasoning(text) => {
                let kind = Kind::Reasoning { text: String::new(), carried: self.carries_thoughts };
                self.write(kind, "response.reasoning_text.delta", text, Value::Null);
            }
            Delta::Content { text, logprobs } => {
                let mut logprobs = logprobs::chat(self.api.harmony.tokenizer(), &logprobs);
                self.write(message(), "response.output_text.delta", text, logprobs["content"].take());
            }
            Delta::Call { name, .. } => {
                let call_id = self.api.ids.name("call_");
                let (namespace, name) = split_name(&self.namespaces, name);
                self.begin(Kind::Call { call_id, namespace, name, arguments: String::new() });
            }
            Delta::Arguments { text, .. } => {
                self.extend("response.function_call_arguments.delta", text, Value::Null);
            }
        }
    }

    /// The answer ended; `status` is that of the item which was being written.
    pub fn finish(&mut self, status: Status) {
        let Some(mut item) = self.open.take() else { return };
        item.status = status;
        match (&item.kind, item.part()) {
            (Kind::Message { text, logprobs, .. }, Some(part)) => {
                let done = json!({"text": text, "logprobs": logprobs});
                self.tell_part(&item, "response.output_text.done", done);
                self.tell_part(&item, "response.content_part.done", json!({"part": part}));
            }
            (Kind::Reasoning { text, .. }, Some(part)) => {
                self.tell_part(&item, "response.reasoning_text.done", json!({"text": text}));
                self.tell_part(&item, "response.content_part.done", json!({"part": part}));
            }
            (Kind::Call { name, arguments, .. }, _) => {
                let done = json!({"name": name, "arguments": arguments});
                self.tell_item(&item, "response.function_call_arguments.done", done);
            }
            _ => {}
        }
        self.tell("response.output_item.done", json!({"item": item.to_json()}));
        self.items.push(item);
    }

    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// What there is to tell since this was last asked.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn write(&mut self, kind: Kind, event: &'static str, text: String, logprobs: Value) {
        let goes_on = |open: &Item| std::mem::discriminant(&open.kind) == std::mem::discriminant(&kind);
        if self.open.as_ref().is_some_and(goes_on) {
            return self.extend(event, text, logprobs);
        }
        // The reader sets texts of one kind apart by a line's end, and here they are items of their own.
        let follows = self.items.iter().any(goes_on);
        let text = match text.strip_prefix('\n') {
            Some(rest) if follows => rest.to_owned(),
            _ => text,
        };
        self.begin(kind);
        self.extend(event, text, logprobs);
    }

    fn begin(&mut self, kind: Kind) {
        self.finish(Status::Completed);
        let mut item = Item { id: String::new(), status: Status::InProgress, kind };
        item.id = self.api.ids.name(item.id_prefix());
        self.tell("response.output_item.added", json!({"item": item.begun_json()}));
        if let Some(part) = item.part() {
            self.tell_part(&item, "response.content_part.added", json!({"part": part}));
        }
        self.open = Some(item);
    }

    fn extend(&mut self, event: &'static str, text: String, logprobs: Value) {
        if text.is_empty() {
            return;
        }
        let Some(mut item) = self.open.take() else { return };
        let mut delta = json!({"delta": text});
        match &mut item.kind {
            Kind::Message { text: said, logprobs: likely, .. } => {
                said.push_str(&text);
                likely.extend(logprobs.as_array().into_iter().flatten().cloned());
                delta["logprobs"] = logprobs;
                self.tell_part(&item, event, delta);
            }
            Kind::Reasoning { text: thought, .. } => {
                thought.push_str(&text);
                self.tell_part(&item, event, delta);
            }
            Kind::Call { arguments, .. } => {
                arguments.push_str(&text);
                self.tell_item(&item, event, delta);
            }
            Kind::CallOutput { .. } => unreachable!("only clients answer calls"),
        }
        self.open = Some(item);
    }

    fn tell_part(&mut self, item: &Item, name: &'static str, mut fields: Value) {
        fields["content_index"] = json!(0);
        self.tell_item(item, name, fields);
    }

    fn tell_item(&mut self, item: &Item, name: &'static str, mut fields: Value) {
        fields["item_id"] = json!(item.id);
        self.tell(name, fields);
    }

    fn tell(&mut self, name: &'static str, mut fields: Value) {
        fields["output_index"] = json!(self.items.len());
        self.events.push(Event { name, fields });
    }
}

fn message() -> Kind {
    Kind::Message { role: Role::Assistant, text: String::new(), phase: None, logprobs: Vec::new() }
}
