//! `tools`, `tool_choice` and `parallel_tool_calls`: what the model is told of, what it may call, and what
//! binds its arguments.
//!
//! A turn makes one call: in harmony a message holds one, and its end is the turn's. So calls are never
//! parallel; `parallel_tool_calls` of true lets a model make several, and it makes one.

use crate::api::fields::{Fields, Node, Result};
use crate::api::form::schema;
use crate::api::neutral::{self, supported_word};
use crate::guide::{ToolChoice, ToolForm};
use crate::harmony::FunctionTool;

/// OpenAI's limit.
pub const TOOLS_MAX: usize = 128;

#[derive(Debug, Default)]
pub struct Tools {
    /// None if the client forbids calls: what the model does not know, it cannot call.
    pub offered: Vec<FunctionTool>,
    pub forms: Vec<ToolForm>,
    pub choice: ToolChoice,
}

pub fn read(fields: &mut Fields) -> Result<Tools> {
    let tools = fields.take("tools").map_or(Ok(Vec::new()), |node| node.array_of(TOOLS_MAX, "tools"))?;
    let tools: Vec<(FunctionTool, ToolForm)> = tools.into_iter().map(tool).collect::<Result<_>>()?;
    let choice = fields.take("tool_choice").map_or(Ok(ToolChoice::Auto), |node| choice(node, named))?;
    fields.take("parallel_tool_calls").map(Node::bool).transpose()?;
    if choice == ToolChoice::None {
        return Ok(Tools { choice, ..Tools::default() });
    }
    let (offered, forms) = tools.into_iter().unzip();
    Ok(Tools { offered, forms, choice })
}

/// `named` reads the choice of one function, which the APIs word differently.
pub fn choice(node: Node, named: fn(Node) -> Result<ToolChoice>) -> Result<ToolChoice> {
    if node.value.is_object() {
        return named(node);
    }
    Ok(match node.word(&["auto", "none", "required"])? {
        "none" => ToolChoice::None,
        "required" => ToolChoice::Required,
        _ => ToolChoice::Auto,
    })
}

fn named(node: Node) -> Result<ToolChoice> {
    let mut fields = node.object()?;
    supported_word(fields.require("type")?, &["function"], &["allowed_tools", "custom"])?;
    let mut function = fields.require("function")?.object()?;
    fields.finish()?;
    let name = function.require("name")?.string()?;
    function.finish()?;
    Ok(ToolChoice::Named(name))
}

fn tool(node: Node) -> Result<(FunctionTool, ToolForm)> {
    let mut fields = node.object()?;
    function_type(&mut fields)?;
    let mut function = fields.require("function")?.object()?;
    neutral::drop_marks(&mut fields);
    fields.finish()?;
    let name = function.require("name")?.string()?;
    let description = function.take("description").map_or(Ok(String::new()), Node::string)?;
    let path = function.path_of("parameters");
    let parameters = function.take("parameters").map(schema).transpose()?;
    let strict = function.take("strict").map_or(Ok(false), Node::bool)?;
    neutral::drop_marks(&mut function);
    function.finish()?;
    let form = ToolForm { name: name.clone(), parameters: parameters.clone(), strict, path };
    Ok((FunctionTool { name, description, parameters }, form))
}

pub fn function_type(fields: &mut Fields) -> Result<()> {
    let kind = fields.take("type").map(|node| supported_word(node, &["function"], &["custom"]));
    kind.transpose().map(drop)
}
