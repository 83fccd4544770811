//! The body of `POST /v1/responses`: what the model is to be told, how it is to answer, and what the answer
//! repeats of the request. Every parameter that OpenAI documents is read here or refused by name.

use flotilla_shared::sampling::TOP_LOGPROBS_MAX;
use serde_json::{Map, Value, json};

use super::format::{self, Text};
use super::input::{self, Entry};
use super::tools;
use crate::api::effort::effort;
use crate::api::fields::{FieldError, Fields, Node, Problem, Result};
use crate::api::form::{self, Bound};
use crate::api::neutral::{self, Neutral, supported_word};
use crate::api::options::Options;
use crate::guide::Form;
use crate::harmony::Effort;
use crate::harmony::chat::Chat;

#[derive(Clone, Debug, PartialEq)]
pub struct ResponsesRequest {
    pub options: Options,
    pub instructions: Option<String>,
    pub input: Vec<Entry>,
    pub previous: Option<String>,
    pub store: bool,
    /// Without its messages, and without its date.
    pub chat: Chat,
    /// The client would answer calls.
    pub hears_calls: bool,
    /// Reasoning is to stand in `encrypted_content` as well.
    pub carries_thoughts: bool,
    /// Of functions that the client knows by two words.
    pub namespaces: Vec<String>,
    /// What stands in the answer as it stood in the request, with defaults where it did not.
    pub echo: Map<String, Value>,
}

const NEUTRAL: &[(&str, Neutral)] = &[
    ("access_programs", Neutral::Unset),
    ("background", Neutral::Bool(false)),
    ("background_options", Neutral::Empty),
    // Codex's: who asks.
    ("client_metadata", Neutral::Always),
    ("context_management", Neutral::Empty),
    ("conversation", Neutral::Unset),
    ("image", Neutral::Empty),
    ("moderation", Neutral::Unset),
    ("prompt", Neutral::Unset),
    ("prompt_cache_options", Neutral::Empty),
    ("prompt_cache_retention", Neutral::Always),
    ("truncation", Neutral::Words(&["disabled"])),
    // Of chats, and read with their options.
    ("n", Neutral::Numbers(&[1.0])),
];

/// Repeated as they came, and what stands there otherwise.
const ECHOED: &[(&str, Value)] = &[
    ("instructions", Value::Null),
    ("max_output_tokens", Value::Null),
    ("max_tool_calls", Value::Null),
    ("parallel_tool_calls", Value::Bool(true)),
    ("previous_response_id", Value::Null),
    ("prompt_cache_key", Value::Null),
    ("safety_identifier", Value::Null),
    ("store", Value::Bool(true)),
    ("user", Value::Null),
];

impl ResponsesRequest {
    pub fn read(body: Value) -> Result<ResponsesRequest> {
        let mut echo = echo(&body);
        let mut fields = Node::body(body).object()?;
        let input = fields.take("input").map_or(Ok(Vec::new()), input::read)?;
        let instructions = fields.take("instructions").map(Node::string).transpose()?;
        let previous = fields.take("previous_response_id").map(Node::string).transpose()?;
        if input.is_empty() && previous.is_none() {
            return Err(FieldError { path: "input".to_owned(), problem: Problem::Missing });
        }
        let store = fields.take("store").map_or(Ok(true), Node::bool)?;
        let effort = fields.take("reasoning").map_or(Ok(Effort::default()), reasoning)?;
        let tools = tools::read(&mut fields)?;
        let text = fields.take("text").map_or(Ok(Text::default()), format::read)?;
        let included = fields.take("include").map_or(Ok(Included::default()), include)?;
        let logprobs = logprobs(&mut fields, included)?;
        harmless(&mut fields)?;
        let mut options = options(&mut fields)?;
        options.choosing.logprobs = logprobs;
        let bound: Vec<_> = text.bound.into_iter().chain(form::structured_outputs(&mut fields)?).collect();
        let (forms, choice) = (tools.forms.clone(), tools.choice.clone());
        options.bind(Bound::Turn(Form { response: form::one_of(bound)?, tools: forms, choice }))?;
        fields.finish()?;
        echo.insert("reasoning".to_owned(), json!({"effort": effort.as_str(), "summary": null}));
        echo.insert("text".to_owned(), text.echo);
        echo.insert("tools".to_owned(), tools.echo.clone());
        echo.insert("tool_choice".to_owned(), tools.choice_echo.clone());
        let chat = Chat {
            tools: tools.offered,
            tools_description: tools.description,
            effort,
            response_format: text.told,
            ..Chat::default()
        };
        let namespaces = tools.namespaces;
        let hears_calls = !chat.tools.is_empty() && !tools.forbidden;
        Ok(ResponsesRequest {
            options,
            instructions,
            input,
            previous,
            store,
            chat,
            hears_calls,
            carries_thoughts: included.thoughts,
            namespaces,
            echo,
        })
    }
}

/// What changes no answer of this server, or only at values that are refused.
fn harmless(fields: &mut Fields) -> Result<()> {
    fields.take("metadata").map(metadata).transpose()?;
    // Of tools that the server runs; it runs none.
    fields.take("max_tool_calls").map(|node| node.count(1..=u64::MAX)).transpose()?;
    for name in ["user", "safety_identifier", "prompt_cache_key"] {
        fields.take(name).map(Node::string).transpose()?;
    }
    neutral::take(fields, NEUTRAL)?;
    neutral::take(fields, neutral::RESPONSES)?;
    neutral::take(fields, neutral::BOTH)
}

fn echo(body: &Value) -> Map<String, Value> {
    let asked = |name: &str, default: Value| match body.get(name) {
        None | Some(Value::Null) => default,
        Some(value) => value.clone(),
    };
    let mut echo: Map<String, Value> =
        ECHOED.iter().map(|(name, default)| ((*name).to_owned(), asked(name, default.clone()))).collect();
    echo.insert("metadata".to_owned(), asked("metadata", json!({})));
    echo.insert("temperature".to_owned(), asked("temperature", json!(1.0)));
    echo.insert("top_p".to_owned(), asked("top_p", json!(1.0)));
    echo.insert("top_logprobs".to_owned(), asked("top_logprobs", json!(0)));
    echo.insert("service_tier".to_owned(), json!("default"));
    echo.insert("truncation".to_owned(), json!("disabled"));
    echo.insert("background".to_owned(), json!(false));
    echo
}

/// Sampling and streams by the names of the chat API, so that what vLLM has beyond OpenAI's works here too;
/// the number of tokens goes by another name.
fn options(fields: &mut Fields) -> Result<Options> {
    for name in ["max_tokens", "max_completion_tokens"] {
        if let Some(node) = fields.take(name) {
            return Err(node.invalid("this API calls it max_output_tokens"));
        }
    }
    let tokens_max = fields.take("max_output_tokens").map(|node| node.count(1..=u64::MAX)).transpose()?;
    let stream_options = fields.take("stream_options");
    let options = Options::read(fields)?;
    stream_options.map(|node| check_stream_options(node, options.stream)).transpose()?;
    Ok(Options { tokens_max, ..options })
}

fn check_stream_options(node: Node, stream: bool) -> Result<()> {
    if !stream {
        return Err(node.invalid("only with \"stream\": true"));
    }
    let mut fields = node.object()?;
    fields.take("include_obfuscation").map(Node::bool).transpose()?;
    fields.finish()
}

/// No summary is made: what was thought is told in full, which is more than any of them would tell.
fn reasoning(node: Node) -> Result<Effort> {
    let mut fields = node.object()?;
    let effort = fields.take("effort").map_or(Ok(Effort::default()), effort)?;
    for name in ["summary", "generate_summary"] {
        let summary = fields.take(name);
        summary.map(|node| node.word(&["auto", "concise", "detailed"])).transpose()?;
    }
    // As harmony has it: a turn's reasoning is shown again until its answer.
    let context = fields.take("context");
    context.map(|node| supported_word(node, &["auto", "current_turn"], &["all_turns"])).transpose()?;
    neutral::take(&mut fields, &[("mode", Neutral::Words(&["standard"]))])?;
    fields.finish()?;
    Ok(effort)
}

/// How many of the likeliest tokens are to be told beside each of the answer's. None: not even that one.
fn logprobs(fields: &mut Fields, included: Included) -> Result<Option<u8>> {
    let wanted = included.logprobs;
    let Some(top) = fields.take("top_logprobs") else {
        return Ok(wanted.then_some(0));
    };
    let without = top.invalid(format!("only with \"{LOGPROBS}\" in include"));
    let top = top.count(0..=TOP_LOGPROBS_MAX.into())? as u8;
    if wanted || top == 0 { Ok(wanted.then_some(top)) } else { Err(without) }
}

/// There are eight.
const INCLUDED_MAX: usize = 64;
/// Of tools and inputs that this server does not have.
pub const NOT_INCLUDED: &[&str] = &[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
];
pub const LOGPROBS: &str = "message.output_text.logprobs";
pub const THOUGHTS: &str = "reasoning.encrypted_content";

/// What an answer is to have beside itself.
#[derive(Clone, Copy, Default)]
struct Included {
    logprobs: bool,
    thoughts: bool,
}

fn include(node: Node) -> Result<Included> {
    let mut included = Included::default();
    for node in node.array_of(INCLUDED_MAX, "things to include")? {
        match supported_word(node, &[LOGPROBS, THOUGHTS], NOT_INCLUDED)? {
            LOGPROBS => included.logprobs = true,
            _ => included.thoughts = true,
        }
    }
    Ok(included)
}

/// OpenAI's limits.
fn metadata(node: Node) -> Result<()> {
    const PAIRS_MAX: usize = 16;
    const KEY_MAX: usize = 64;
    const VALUE_MAX: usize = 512;
    let Value::Object(pairs) = &node.value else {
        return Err(node.unexpected("an object of strings"));
    };
    let fits = |key: &str, value: &Value| {
        let value = value.as_str().map(|text| text.chars().count());
        key.chars().count() <= KEY_MAX && value.is_some_and(|length| length <= VALUE_MAX)
    };
    if pairs.len() > PAIRS_MAX || !pairs.iter().all(|(key, value)| fits(key, value)) {
        return Err(node.invalid(format!(
            "at most {PAIRS_MAX} pairs of a key of {KEY_MAX} characters and a string of {VALUE_MAX}"
        )));
    }
    Ok(())
}
