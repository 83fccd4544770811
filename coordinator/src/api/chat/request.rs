//! The body of `/v1/chat/completions` as a conversation and options.

use serde_json::Value;

use super::tools::{self, Tools, function_type};
use crate::api::effort::effort as effort_word;
use crate::api::fields::{FieldError, Fields, Node, Problem, Result};
use crate::api::form::{self, Bound};
use crate::api::neutral;
use crate::api::options::Options;
use crate::api::sampling;
use crate::guide::Form;
use crate::harmony::Effort;
use crate::harmony::chat::{Chat, ChatCall, ChatError, ChatMessage};

/// Long conversations have hundreds; each message costs several tokens of the context in any case.
const MESSAGES_MAX: usize = 4096;
/// Of one message.
const PARTS_MAX: usize = 1024;
const CALLS_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    pub options: Options,
    /// Its date is not set yet.
    pub chat: Chat,
    /// The client would answer calls.
    pub hears_calls: bool,
}

impl ChatRequest {
    pub fn read(body: Value) -> Result<ChatRequest> {
        let mut fields = Node::body(body).object()?;
        let messages = fields.require("messages")?.array_of(MESSAGES_MAX, "messages")?;
        let messages: Vec<ChatMessage> = messages.into_iter().map(message).collect::<Result<_>>()?;
        let mut options = Options::read(&mut fields)?;
        options.choosing.logprobs = sampling::chat_logprobs(&mut fields)?;
        let effort = effort(&mut fields)?;
        let Tools { offered: tools, forms, choice, forbidden } = tools::read(&mut fields)?;
        let format = fields.take("response_format").map(form::response_format).transpose()?;
        let (response, response_format) = format.unwrap_or_default();
        let response =
            form::one_of(response.into_iter().chain(form::structured_outputs(&mut fields)?).collect())?;
        options.bind(Bound::Turn(Form { response, tools: forms, choice }))?;
        let hears_calls = !tools.is_empty() && !forbidden;
        if !hears_calls && (!tools.is_empty() || messages.iter().any(calls)) {
            options.forbid_calls();
        }
        neutral::take_chat(&mut fields)?;
        fields.finish()?;
        let chat = Chat { messages, tools, effort, response_format, ..Chat::default() };
        Ok(ChatRequest { options, chat, hears_calls })
    }
}

fn calls(message: &ChatMessage) -> bool {
    matches!(message, ChatMessage::Assistant { calls, .. } if !calls.is_empty())
}

/// By its own name, or by the one that vLLM hands to templates.
fn effort(fields: &mut Fields) -> Result<Effort> {
    let named = fields.take("reasoning_effort").map(effort_word).transpose()?;
    let templated = fields.take("chat_template_kwargs").map(template_effort).transpose()?;
    Ok(named.or(templated.flatten()).unwrap_or_default())
}

fn template_effort(node: Node) -> Result<Option<Effort>> {
    let not_supported = node.not_supported("nothing but reasoning_effort in it");
    let Ok(mut kwargs) = node.object() else { return Err(not_supported) };
    let effort = kwargs.take("reasoning_effort").map(effort_word).transpose()?;
    kwargs.finish().map_err(|_| not_supported)?;
    Ok(effort)
}

fn message(node: Node) -> Result<ChatMessage> {
    let mut fields = node.object()?;
    let roles = &["system", "developer", "user", "assistant", "tool"];
    let role = neutral::supported_word(fields.require("role")?, roles, &["function"])?;
    let message = match role {
        "system" => ChatMessage::System { content: named_text(&mut fields)? },
        "developer" => ChatMessage::Developer { content: named_text(&mut fields)? },
        "user" => user(&mut fields)?,
        "assistant" => assistant(&mut fields)?,
        _ => tool_result(&mut fields)?,
    };
    neutral::drop_marks(&mut fields);
    fields.finish()?;
    Ok(message)
}

/// Instructions all go into one message, which has no room for the name of who gave them.
fn named_text(fields: &mut Fields) -> Result<String> {
    fields.take("name").map(Node::string).transpose()?;
    text(fields.require("content")?, &["text"])
}

fn user(fields: &mut Fields) -> Result<ChatMessage> {
    let name = fields.take("name").map(Node::string).transpose()?;
    Ok(ChatMessage::User { content: text(fields.require("content")?, &["text"])?, name })
}

fn assistant(fields: &mut Fields) -> Result<ChatMessage> {
    fields.take("name").map(Node::string).transpose()?;
    let content = fields.take("content").map(|node| text(node, &["text", "refusal"])).transpose()?;
    let refusal = fields.take("refusal").map(Node::string).transpose()?;
    let reasoning = reasoning(fields)?;
    for name in ["audio", "function_call"] {
        if let Some(node) = fields.take(name) {
            return Err(node.not_supported("null"));
        }
    }
    neutral::drop_added(fields);
    let calls = fields.take("tool_calls").map_or(Ok(Vec::new()), |node| node.array_of(CALLS_MAX, "calls"))?;
    let calls: Vec<ChatCall> = calls.into_iter().map(call).collect::<Result<_>>()?;
    let content = content.or(refusal);
    if content.is_none() && calls.is_empty() && reasoning.is_none() {
        return Err(FieldError { path: fields.path_of("content"), problem: Problem::Missing });
    }
    Ok(ChatMessage::Assistant { content, reasoning, calls })
}

/// Both names are in use, and clients send back what they were sent: both, and the same; or one of them empty.
fn reasoning(fields: &mut Fields) -> Result<Option<String>> {
    let reasoning = fields.take("reasoning").map(Node::string).transpose()?;
    let reasoning_content = fields.take("reasoning_content").map(Node::string).transpose()?;
    Ok(reasoning.filter(|text| !text.is_empty()).or(reasoning_content))
}

fn call(node: Node) -> Result<ChatCall> {
    let mut fields = node.object()?;
    let id = fields.require("id")?.string()?;
    function_type(&mut fields)?;
    // Of chunks, which some clients keep.
    fields.take("index");
    neutral::drop_added(&mut fields);
    let mut function = fields.require("function")?.object()?;
    fields.finish()?;
    let name = function.require("name")?.string()?;
    let arguments = function.require("arguments")?.string()?;
    neutral::drop_added(&mut function);
    function.finish()?;
    Ok(ChatCall { id, function: name, arguments })
}

fn tool_result(fields: &mut Fields) -> Result<ChatMessage> {
    // The name stands in the call; some clients repeat it.
    fields.take("name").map(Node::string).transpose()?;
    let call_id = fields.require("tool_call_id")?.string()?;
    // A function that has nothing to say is sent as null.
    let content = fields.take("content").map_or(Ok(String::new()), |node| text(node, &["text"]))?;
    Ok(ChatMessage::Tool { call_id, content })
}

/// A string, or parts of text that are joined.
fn text(node: Node, kinds: &[&'static str]) -> Result<String> {
    match &node.value {
        Value::String(_) => node.string(),
        Value::Array(_) => {
            node.array_of(PARTS_MAX, "parts")?.into_iter().map(|part| text_part(part, kinds)).collect()
        }
        _ => Err(node.unexpected("a string or an array of text parts")),
    }
}

fn text_part(node: Node, kinds: &[&'static str]) -> Result<String> {
    let mut fields = node.object()?;
    let known = &["image_url", "input_audio", "file", "refusal"];
    let kind = neutral::supported_word(fields.require("type")?, kinds, known)?;
    let text = fields.require(kind)?.string()?;
    neutral::drop_marks(&mut fields);
    fields.finish()?;
    Ok(text)
}

/// What harmony has to say against a conversation, at its place in the body.
pub fn chat_error(error: ChatError) -> FieldError {
    let path = match &error {
        ChatError::NoMessages => "messages".to_owned(),
        ChatError::UnknownCall { message, .. } => format!("messages[{message}].tool_call_id"),
        ChatError::CalledName { message, call, .. } => {
            format!("messages[{message}].tool_calls[{call}].function.name")
        }
        ChatError::ToolName { tool, .. } | ChatError::DuplicateTool { tool, .. } => {
            format!("tools[{tool}].function.name")
        }
        ChatError::UserName { message, .. } => format!("messages[{message}].name"),
    };
    let said = error.to_string();
    let what = said.strip_prefix(&path).unwrap_or(&said).trim_start().to_owned();
    FieldError { path, problem: Problem::Invalid(what) }
}
