//! `tools`, `tool_choice` and `parallel_tool_calls`: what the model is told of, what it may call, and what
//! binds its arguments.
//!
//! A turn makes one call: in harmony a message holds one, and its end is the turn's. So calls are never
//! parallel; `parallel_tool_calls` of true lets a model make several, and it makes one.

use crate::api::fields::{FieldError, Fields, Node, Problem, Result};
use crate::api::form::schema;
use crate::api::neutral::{self, supported_word};
use crate::guide::{ToolChoice, ToolForm};
use crate::harmony::FunctionTool;

/// OpenAI's limit.
pub const TOOLS_MAX: usize = 128;

#[derive(Debug, Default)]
pub struct Tools {
    /// Which the model is told of, also where it may not call them: the prompt begins as in the turns before.
    pub offered: Vec<FunctionTool>,
    /// Of those that it may call.
    pub forms: Vec<ToolForm>,
    pub choice: ToolChoice,
    /// The client forbids calls.
    pub forbidden: bool,
}

/// What `tool_choice` says.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    One(ToolChoice),
    /// As `auto` or `required`, among these.
    Among {
        names: Vec<String>,
        required: bool,
    },
}

pub fn read(fields: &mut Fields) -> Result<Tools> {
    let tools = fields.take("tools").map_or(Ok(Vec::new()), |node| node.array_of(TOOLS_MAX, "tools"))?;
    let tools: Vec<(FunctionTool, ToolForm)> = tools.into_iter().map(tool).collect::<Result<_>>()?;
    let choice = choice(fields, named)?;
    fields.take("parallel_tool_calls").map(Node::bool).transpose()?;
    let (offered, forms) = tools.into_iter().unzip();
    let (forms, choice, forbidden) = choice.settle(forms)?;
    Ok(Tools { offered, forms, choice, forbidden })
}

impl Choice {
    /// The tools that may be called, how one is chosen, and whether calls are forbidden.
    pub fn settle(self, mut forms: Vec<ToolForm>) -> Result<(Vec<ToolForm>, ToolChoice, bool)> {
        match self {
            Choice::One(ToolChoice::None) => Ok((Vec::new(), ToolChoice::Auto, true)),
            Choice::One(choice) => Ok((forms, choice, false)),
            Choice::Among { names, required } => {
                if let Some(name) = names.iter().find(|name| forms.iter().all(|form| form.name != **name)) {
                    let what = format!("{name:?} is none of the tools");
                    return Err(FieldError {
                        path: "tool_choice".to_owned(),
                        problem: Problem::Invalid(what),
                    });
                }
                forms.retain(|form| names.contains(&form.name));
                let choice = if required { ToolChoice::Required } else { ToolChoice::Only };
                let forbidden = forms.is_empty() && !required;
                Ok((forms, if forbidden { ToolChoice::Auto } else { choice }, forbidden))
            }
        }
    }
}

/// `named` reads a choice by names, which the APIs word differently.
pub fn choice(fields: &mut Fields, named: fn(Node) -> Result<Choice>) -> Result<Choice> {
    match fields.take("tool_choice") {
        None => Ok(Choice::One(ToolChoice::Auto)),
        Some(node) if node.value.is_object() => named(node),
        Some(node) => word(node).map(Choice::One),
    }
}

fn word(node: Node) -> Result<ToolChoice> {
    Ok(match node.word(&["auto", "none", "required"])? {
        "none" => ToolChoice::None,
        "required" => ToolChoice::Required,
        _ => ToolChoice::Auto,
    })
}

/// `name` reads one of the tools that are allowed; none: a tool that is left out.
pub fn among(mut fields: Fields, name: fn(Node) -> Result<Option<String>>) -> Result<Choice> {
    let required = fields.require("mode")?.word(&["auto", "required"])? == "required";
    let tools = fields.require("tools")?.array_of(TOOLS_MAX, "tools")?;
    fields.finish()?;
    let names: Vec<Option<String>> = tools.into_iter().map(name).collect::<Result<_>>()?;
    Ok(Choice::Among { names: names.into_iter().flatten().collect(), required })
}

fn named(node: Node) -> Result<Choice> {
    if node.value["type"] == "allowed_tools" {
        let mut fields = node.object()?;
        fields.take("type");
        let allowed = fields.require("allowed_tools")?.object()?;
        fields.finish()?;
        return among(allowed, |node| function_name(node).map(Some));
    }
    function_name(node).map(|name| Choice::One(ToolChoice::Named(name)))
}

fn function_name(node: Node) -> Result<String> {
    let mut fields = node.object()?;
    supported_word(fields.require("type")?, &["function"], &["custom"])?;
    let mut function = fields.require("function")?.object()?;
    fields.finish()?;
    let name = function.require("name")?.string()?;
    function.finish()?;
    Ok(name)
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
