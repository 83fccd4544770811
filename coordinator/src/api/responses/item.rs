//! The items of which a conversation consists in the Responses API: messages, reasoning, calls and their
//! outputs. They come in with requests, go out in answers and lie in the store in between, all as one type,
//! so that whatever a client was sent it can send back.
//!
//! How they are read from a request is `input.rs`, what the model is told of them `conversation.rs`.

use serde_json::{Value, json};

use crate::harmony::Role;

/// What `encrypted_content` begins with that this server wrote; the text of the reasoning follows. It is no secret,
/// and is not hidden: it stands in the item's content. But clients such as Codex send nothing else back.
pub const CARRIED: &str = "flotilla1:";

#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Empty where a client gave none; whoever shows the item names it first.
    pub id: String,
    pub status: Status,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Message {
        role: Role,
        text: String,
        phase: Option<Phase>,
        logprobs: Vec<Value>,
    },
    Reasoning {
        text: String,
        /// It is to stand in `encrypted_content` as well.
        carried: bool,
    },
    /// Of a function that may stand in a namespace.
    Call {
        call_id: String,
        namespace: Option<String>,
        name: String,
        arguments: String,
    },
    CallOutput {
        call_id: String,
        output: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    InProgress,
    Completed,
    /// The answer ended within this item.
    Incomplete,
}

/// What a client may say of an assistant's message: that it stands before calls, or that it is the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Commentary,
    FinalAnswer,
}

impl Status {
    pub const WORDS: &'static [&'static str] = &["in_progress", "completed", "incomplete"];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
        }
    }
}

impl Item {
    pub fn new(id: String, kind: Kind) -> Item {
        Item { id, status: Status::Completed, kind }
    }

    pub fn user(text: String) -> Item {
        let kind = Kind::Message { role: Role::User, text, phase: None, logprobs: Vec::new() };
        Item::new(String::new(), kind)
    }

    pub fn is_reply(&self) -> bool {
        match &self.kind {
            Kind::Message { role, .. } => *role == Role::Assistant,
            Kind::Reasoning { .. } | Kind::Call { .. } => true,
            Kind::CallOutput { .. } => false,
        }
    }

    pub fn is_call(&self) -> bool {
        matches!(self.kind, Kind::Call { .. })
    }

    /// By which an item's id begins that this server gives.
    pub fn id_prefix(&self) -> &'static str {
        match &self.kind {
            Kind::Message { .. } => "msg_",
            Kind::Reasoning { .. } => "rs_",
            Kind::Call { .. } => "fc_",
            Kind::CallOutput { .. } => "fco_",
        }
    }

    pub fn to_json(&self) -> Value {
        self.json(self.part().into_iter().collect())
    }

    /// As the item looks when it is announced: none of its content has come.
    pub fn begun_json(&self) -> Value {
        self.json(Vec::new())
    }

    fn json(&self, content: Vec<Value>) -> Value {
        let (id, status) = (&self.id, self.status.as_str());
        match &self.kind {
            Kind::Message { role, .. } => json!({
                "id": id,
                "type": "message",
                "status": status,
                "role": role.as_str(),
                "content": content,
            }),
            // A summary would have to be written by a model; what was thought is told as it stands.
            Kind::Reasoning { text, carried } => json!({
                "id": id,
                "type": "reasoning",
                "status": status,
                "summary": [],
                "content": content,
                "encrypted_content": (*carried && !content.is_empty()).then(|| format!("{CARRIED}{text}")),
            }),
            Kind::Call { call_id, namespace, name, arguments } => {
                let mut call = json!({
                    "id": id,
                    "type": "function_call",
                    "status": status,
                    "call_id": call_id,
                    "name": name,
                    "arguments": arguments,
                });
                if let Some(namespace) = namespace {
                    call["namespace"] = json!(namespace);
                }
                call
            }
            Kind::CallOutput { call_id, output } => json!({
                "id": id,
                "type": "function_call_output",
                "status": status,
                "call_id": call_id,
                "output": output,
            }),
        }
    }

    /// The one part of an item's content. None: this kind of item has no parts.
    pub fn part(&self) -> Option<Value> {
        match &self.kind {
            Kind::Message { role: Role::Assistant, text, logprobs, .. } => Some(json!({
                "type": "output_text",
                "annotations": [],
                "logprobs": logprobs,
                "text": text,
            })),
            Kind::Message { text, .. } => Some(json!({"type": "input_text", "text": text})),
            Kind::Reasoning { text, .. } => Some(json!({"type": "reasoning_text", "text": text})),
            Kind::Call { .. } | Kind::CallOutput { .. } => None,
        }
    }

    /// For the store: a stored response says them in its body, and nobody reads them twice.
    pub fn without_logprobs(&self) -> Item {
        let mut item = self.clone();
        if let Kind::Message { logprobs, .. } = &mut item.kind {
            *logprobs = Vec::new();
        }
        item
    }

    /// What the item takes in memory, without its log-probabilities.
    pub fn bytes(&self) -> usize {
        let texts = match &self.kind {
            Kind::Message { text, .. } | Kind::Reasoning { text, .. } => text.len(),
            Kind::Call { call_id, namespace, name, arguments } => {
                let namespace = namespace.as_ref().map_or(0, String::len);
                call_id.len() + namespace + name.len() + arguments.len()
            }
            Kind::CallOutput { call_id, output } => call_id.len() + output.len(),
        };
        size_of::<Item>() + self.id.len() + texts
    }
}
