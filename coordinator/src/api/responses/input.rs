//! `input` as items: a text, or messages, reasoning, calls, outputs of calls, and references to items that
//! are stored. What this server sent is read in full; what it cannot tell the model is refused by name.

use serde_json::Value;

use super::item::{CARRIED, Item, Kind, Phase, Status};
use crate::api::fields::{FieldError, Fields, Node, Problem, Result};
use crate::api::neutral::{self, Neutral, supported_word};
use crate::harmony::Role;

/// Items of a request. Each becomes a message with tokens of its own; what is longer is no conversation.
const ITEMS_MAX: usize = 4096;
/// Of one item.
const PARTS_MAX: usize = 1024;

/// One entry of `input`.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    Item(Item),
    /// To an item that an earlier response holds.
    Reference {
        path: String,
        id: String,
    },
}

const KINDS: &[&str] = &["message", "reasoning", "function_call", "function_call_output", "item_reference"];
/// For tools that this server does not have, and for histories that it does not cut.
const KINDS_NOT_SUPPORTED: &[&str] = &[
    "additional_tools",
    "apply_patch_call",
    "apply_patch_call_output",
    "code_interpreter_call",
    "compaction",
    "compaction_trigger",
    "computer_call",
    "computer_call_output",
    "configuration_update",
    "custom_tool_call",
    "custom_tool_call_output",
    "file_search_call",
    "image_generation_call",
    "local_shell_call",
    "local_shell_call_output",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "mcp_list_tools",
    "program",
    "program_output",
    "shell_call",
    "shell_call_output",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
];
const PARTS_NOT_SUPPORTED: &[&str] = &["input_image", "input_file", "input_audio", "computer_screenshot"];

/// Of calls and of their outputs.
const CALL: &[(&str, Neutral)] = &[("async", Neutral::Bool(false)), ("caller", Neutral::Unset)];

pub fn read(node: Node) -> Result<Vec<Entry>> {
    match &node.value {
        Value::String(_) => Ok(vec![Entry::Item(Item::user(node.string()?))]),
        Value::Array(_) => node.array_of(ITEMS_MAX, "items")?.into_iter().map(entry).collect(),
        _ => Err(node.unexpected("a string or an array of items")),
    }
}

fn entry(node: Node) -> Result<Entry> {
    let path = node.path.clone();
    let mut fields = node.object()?;
    let kind = kind(&mut fields)?;
    if kind == "item_reference" {
        let id = fields.require("id")?.string()?;
        fields.finish()?;
        return Ok(Entry::Reference { path, id });
    }
    let id = fields.take("id").map_or(Ok(String::new()), Node::string)?;
    let status = fields.take("status").map_or(Ok(Status::Completed), status)?;
    let kind = match kind {
        "message" => message(&mut fields)?,
        "reasoning" => reasoning(&mut fields)?,
        "function_call" => call(&mut fields)?,
        _ => call_output(&mut fields)?,
    };
    fields.finish()?;
    Ok(Entry::Item(Item { id, status, kind }))
}

/// Messages and references may leave their type out.
fn kind(fields: &mut Fields) -> Result<&'static str> {
    match fields.take("type") {
        Some(node) => supported_word(node, KINDS, KINDS_NOT_SUPPORTED),
        None if fields.has("role") => Ok("message"),
        None if fields.has("id") => Ok("item_reference"),
        None => Err(FieldError { path: fields.path_of("type"), problem: Problem::Missing }),
    }
}

fn status(node: Node) -> Result<Status> {
    Ok(match node.word(Status::WORDS)? {
        "in_progress" => Status::InProgress,
        "incomplete" => Status::Incomplete,
        _ => Status::Completed,
    })
}

fn message(fields: &mut Fields) -> Result<Kind> {
    let role = match fields.require("role")?.word(&["user", "assistant", "system", "developer"])? {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "system" => Role::System,
        _ => Role::Developer,
    };
    let parts: &[&str] = if role == Role::Assistant { &["output_text", "refusal"] } else { &["input_text"] };
    let text = text(fields.require("content")?, parts)?;
    let phase = fields.take("phase").filter(|_| role == Role::Assistant).map(phase).transpose()?;
    Ok(Kind::Message { role, text, phase, logprobs: Vec::new() })
}

fn phase(node: Node) -> Result<Phase> {
    Ok(match node.word(&["commentary", "final_answer"])? {
        "commentary" => Phase::Commentary,
        _ => Phase::FinalAnswer,
    })
}

/// Its content is what the model thought, or what this server wrote into `encrypted_content`. Where there is neither, a
/// summary must do; what others encrypted was thought elsewhere and cannot be read.
fn reasoning(fields: &mut Fields) -> Result<Kind> {
    let content = fields.take("content").map_or(Ok(String::new()), |node| lines(node, "reasoning_text"))?;
    let summary = fields.take("summary").map_or(Ok(String::new()), |node| lines(node, "summary_text"))?;
    // An empty one is none.
    let encrypted = fields.take("encrypted_content").filter(|node| node.value != "");
    let carried = encrypted.as_ref().and_then(|node| node.value.as_str()?.strip_prefix(CARRIED));
    let said = [Some(&*content), carried, Some(&*summary)].into_iter().flatten();
    let text = said.into_iter().find(|text| !text.is_empty()).unwrap_or_default().to_owned();
    match &encrypted {
        Some(node) if text.is_empty() && carried.is_none() => {
            Err(node.not_supported("what this server wrote, or null, with the reasoning in content"))
        }
        Some(_) | None => Ok(Kind::Reasoning { text, carried: false }),
    }
}

fn lines(node: Node, kind: &'static str) -> Result<String> {
    let lines: Vec<String> = node
        .array_of(PARTS_MAX, "parts")?
        .into_iter()
        .map(|node| part(node, &[kind]))
        .collect::<Result<_>>()?;
    Ok(lines.join("\n"))
}

fn call(fields: &mut Fields) -> Result<Kind> {
    let call_id = fields.require("call_id")?.string()?;
    let namespace = namespace(fields)?;
    let name = fields.require("name")?.string()?;
    let arguments = fields.require("arguments")?.string()?;
    neutral::drop_added(fields);
    neutral::take(fields, CALL)?;
    Ok(Kind::Call { call_id, namespace, name, arguments })
}

fn namespace(fields: &mut Fields) -> Result<Option<String>> {
    let namespace = fields.take("namespace").map(Node::string).transpose()?;
    Ok(namespace.filter(|name| !name.is_empty()))
}

fn call_output(fields: &mut Fields) -> Result<Kind> {
    let call_id = fields.require("call_id")?.string()?;
    let output = text(fields.require("output")?, &["input_text"])?;
    // The name stands in the call; some clients repeat it.
    fields.take("name").map(Node::string).transpose()?;
    namespace(fields)?;
    neutral::take(fields, CALL)?;
    Ok(Kind::CallOutput { call_id, output })
}

/// A string, or parts of text that are joined.
fn text(node: Node, kinds: &[&'static str]) -> Result<String> {
    match &node.value {
        Value::String(_) => node.string(),
        Value::Array(_) => {
            node.array_of(PARTS_MAX, "parts")?.into_iter().map(|node| part(node, kinds)).collect()
        }
        _ => Err(node.unexpected("a string or an array of text parts")),
    }
}

fn part(node: Node, kinds: &[&'static str]) -> Result<String> {
    let mut fields = node.object()?;
    let kind = supported_word(fields.require("type")?, kinds, PARTS_NOT_SUPPORTED)?;
    let text = fields.require(if kind == "refusal" { "refusal" } else { "text" })?.string()?;
    // Servers send these, and clients send them back.
    fields.take("logprobs");
    neutral::drop_added(&mut fields);
    neutral::drop_marks(&mut fields);
    fields.finish()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn one(value: Value) -> Result<Entry> {
        read(Node { path: "input".to_owned(), value: json!([value]) }).map(|mut entries| entries.remove(0))
    }

    #[test]
    fn what_is_sent_can_be_sent_back() {
        let message = |role| Kind::Message { role, text: "Hi".into(), phase: None, logprobs: Vec::new() };
        for kind in [
            message(Role::User),
            message(Role::Assistant),
            message(Role::Developer),
            Kind::Reasoning { text: "Well.".into(), carried: false },
            Kind::Call { call_id: "1".into(), namespace: None, name: "f".into(), arguments: "{}".into() },
            Kind::Call {
                call_id: "2".into(),
                namespace: Some("n".into()),
                name: "f".into(),
                arguments: "{}".into(),
            },
            Kind::CallOutput { call_id: "call_1".into(), output: "7".into() },
        ] {
            let item = Item { id: "x_1".into(), status: Status::Incomplete, kind };
            assert_eq!(one(item.to_json()), Ok(Entry::Item(item)));
        }
    }

    #[test]
    fn types_may_be_left_out_where_the_rest_tells() {
        let Ok(Entry::Item(item)) = one(json!({"role": "user", "content": "Hi"})) else { panic!() };
        assert_eq!(item, Item::user("Hi".into()));
        let reference = Entry::Reference { path: "input[0]".into(), id: "msg_1".into() };
        assert_eq!(one(json!({"id": "msg_1"})), Ok(reference));
        assert_eq!(one(json!({})).unwrap_err().to_string(), "input[0].type: required, but missing");
    }

    #[test]
    fn reasoning_is_read_where_it_stands_in_the_clear() {
        let said = |value| match one(value) {
            Ok(Entry::Item(Item { kind: Kind::Reasoning { text, .. }, .. })) => text,
            other => panic!("{other:?}"),
        };
        let summary = json!([{"type": "summary_text", "text": "short"}]);
        let content =
            json!([{"type": "reasoning_text", "text": "a"}, {"type": "reasoning_text", "text": "b"}]);
        assert_eq!(said(json!({"type": "reasoning", "summary": summary, "content": content})), "a\nb");
        assert_eq!(
            said(json!({"type": "reasoning", "summary": summary, "encrypted_content": "xyz"})),
            "short"
        );
        let carried = json!({"type": "reasoning", "summary": summary, "content": [], "encrypted_content": "flotilla1:c"});
        assert_eq!(said(carried), "c");
        assert_eq!(said(json!({"type": "reasoning", "summary": [], "encrypted_content": "flotilla1:"})), "");
        let sealed =
            one(json!({"type": "reasoning", "summary": [], "encrypted_content": "xyz"})).unwrap_err();
        assert_eq!(sealed.path, "input[0].encrypted_content");
    }
}
