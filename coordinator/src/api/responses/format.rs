//! `text`: the form to which an answer is bound, and what the model is told of it.

use serde_json::{Value, json};

use crate::api::fields::{Node, Result};
use crate::api::form::json_schema;
use crate::api::neutral::{self, Neutral, supported_word};
use crate::guide::{Grammar, Source};
use crate::harmony::ResponseFormat;

#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    pub bound: Option<Source>,
    pub told: Option<ResponseFormat>,
    /// As the answer repeats it.
    pub echo: Value,
}

impl Default for Text {
    fn default() -> Text {
        Text::new(None, None, json!({"type": "text"}))
    }
}

impl Text {
    fn new(bound: Option<Source>, told: Option<ResponseFormat>, format: Value) -> Text {
        Text { bound, told, echo: json!({"format": format, "verbosity": "medium"}) }
    }
}

pub fn read(node: Node) -> Result<Text> {
    let mut fields = node.object()?;
    let text = fields.take("format").map_or(Ok(Text::default()), format)?;
    neutral::take(&mut fields, &[("verbosity", Neutral::Words(&["medium"]))])?;
    fields.finish()?;
    Ok(text)
}

/// What chats call `response_format`, without a level in between.
fn format(node: Node) -> Result<Text> {
    let (path, echo) = (node.path.clone(), node.value.clone());
    let mut fields = node.object()?;
    let kinds = &["text", "json_object", "json_schema"];
    let text = match supported_word(fields.require("type")?, kinds, &["grammar", "python"])? {
        "text" => Text::default(),
        "json_object" => Text::new(Some(Source { path, grammar: Grammar::json_object() }), None, echo),
        _ => {
            let (bound, told) = json_schema(&mut fields)?;
            Text::new(Some(bound), Some(told), echo)
        }
    };
    fields.finish()?;
    Ok(text)
}
