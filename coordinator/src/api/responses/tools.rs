//! `tools`, `tool_choice` and `parallel_tool_calls`: functions only. Tools that OpenAI runs itself are refused
//! by name; there is nothing here to run them.

use serde_json::{Value, json};

use crate::api::fields::{Fields, Node, Result};
use crate::api::neutral::{self, Neutral, supported_word};
use crate::harmony::FunctionTool;

#[derive(Clone, Debug, PartialEq)]
pub struct Tools {
    /// Which the model is told of: none if the client forbids calls. What it does not know it cannot call.
    pub offered: Vec<FunctionTool>,
    /// As the answer repeats them.
    pub echo: Value,
    pub choice_echo: Value,
}

/// OpenAI's limit.
const TOOLS_MAX: usize = 128;

const KINDS_NOT_SUPPORTED: &[&str] = &[
    "apply_patch",
    "code_interpreter",
    "computer",
    "computer_use_preview",
    "custom",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "namespace",
    "programmatic_tool_calling",
    "shell",
    "tool_search",
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
];

const FUNCTION: &[(&str, Neutral)] = &[
    ("allowed_callers", Neutral::Unset),
    ("async", Neutral::Bool(false)),
    ("defer_loading", Neutral::Bool(false)),
    ("output_schema", Neutral::Unset),
    ("strict", Neutral::Bool(false)),
];

pub fn read(fields: &mut Fields) -> Result<Tools> {
    let tools = fields.take("tools").map_or(Ok(Vec::new()), |node| node.array_of(TOOLS_MAX, "tools"))?;
    let tools: Vec<FunctionTool> = tools.into_iter().map(tool).collect::<Result<_>>()?;
    let echo = tools.iter().map(echo).collect();
    // A harmony message holds one call, so calls are never parallel; with true they need not be.
    fields.take("parallel_tool_calls").map(Node::bool).transpose()?;
    let choice = fields.take("tool_choice").map_or(Ok("auto"), choice)?;
    let offered = if choice == "none" { Vec::new() } else { tools };
    Ok(Tools { offered, echo, choice_echo: json!(choice) })
}

fn tool(node: Node) -> Result<FunctionTool> {
    let mut fields = node.object()?;
    supported_word(fields.require("type")?, &["function"], KINDS_NOT_SUPPORTED)?;
    let name = fields.require("name")?.string()?;
    let description = fields.take("description").map_or(Ok(String::new()), Node::string)?;
    let parameters = fields.take("parameters").map(schema).transpose()?;
    neutral::take(&mut fields, FUNCTION)?;
    fields.finish()?;
    Ok(FunctionTool { name, description, parameters })
}

fn schema(node: Node) -> Result<Value> {
    if node.value.is_object() { Ok(node.value) } else { Err(node.unexpected("a JSON schema, an object")) }
}

fn choice(node: Node) -> Result<&'static str> {
    if node.value.is_object() {
        return Err(node.not_supported("\"auto\" or \"none\""));
    }
    supported_word(node, &["auto", "none"], &["required"])
}

fn echo(tool: &FunctionTool) -> Value {
    json!({
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": false,
    })
}
