//! The object `response`, as it stands at the beginning of an answer and at its end.

use serde_json::{Map, Value, json};

use super::item::Item;
use crate::api::Api;
use crate::api::body::Room;
use crate::api::error::ApiError;
use crate::api::generate::Usage;

/// What stands in every version of one response.
pub struct Envelope {
    pub id: String,
    created: u64,
    model: String,
    echo: Echo,
}

/// What a response says of its request. As text, and with room for it: it is held to the answer's end, and schemas of tools
/// may be of megabytes.
pub struct Echo {
    json: Vec<u8>,
    _room: Room,
}

impl Echo {
    /// `room`: of the request's body.
    pub fn new(echo: &Map<String, Value>, mut room: Room) -> Echo {
        let json = serde_json::to_vec(echo).expect("a map of values is JSON");
        room.keep(json.len());
        Echo { json, _room: room }
    }

    fn read(&self) -> Map<String, Value> {
        serde_json::from_slice(&self.json).expect("it was written here")
    }
}

/// How far a response is.
#[derive(Clone, Debug)]
pub enum Standing {
    InProgress,
    Completed,
    /// The tokens ran out: those that the client allowed, or those of the context.
    Incomplete,
    Failed(ApiError),
}

impl Envelope {
    pub fn new(api: &Api, echo: Echo) -> Envelope {
        Envelope {
            id: api.ids.name("resp_"),
            created: (api.settings.unix_seconds)(),
            model: api.settings.model_name.clone(),
            echo,
        }
    }

    pub fn body(&self, standing: &Standing, output: &[Item], usage: Option<Usage>) -> Value {
        let mut body = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": standing.status(),
            "error": standing.error(),
            "incomplete_details": standing.incomplete_details(),
            "model": self.model,
            "output": output.iter().map(Item::to_json).collect::<Vec<_>>(),
            "usage": usage.map(usage_json),
        });
        if let Value::Object(body) = &mut body {
            body.extend(self.echo.read());
        }
        body
    }
}

impl Standing {
    /// The event that ends a stream, or begins it.
    pub fn event(&self) -> &'static str {
        match self {
            Self::InProgress => "response.in_progress",
            Self::Completed => "response.completed",
            Self::Incomplete => "response.incomplete",
            Self::Failed(_) => "response.failed",
        }
    }

    fn status(&self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed(_) => "failed",
        }
    }

    /// The codes of OpenAI are few; what happened is in the message.
    fn error(&self) -> Value {
        match self {
            Self::Failed(error) => json!({"code": "server_error", "message": error.to_string()}),
            Self::InProgress | Self::Completed | Self::Incomplete => Value::Null,
        }
    }

    fn incomplete_details(&self) -> Value {
        match self {
            Self::Incomplete => json!({"reason": "max_output_tokens"}),
            Self::InProgress | Self::Completed | Self::Failed(_) => Value::Null,
        }
    }
}

/// What is written to the cache costs nothing here and is not counted; clients expect the number.
fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}
