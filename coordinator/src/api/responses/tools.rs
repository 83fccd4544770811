//! `tools`, `tool_choice` and `parallel_tool_calls`: functions only. Tools that OpenAI runs itself are left out:
//! there is nothing here to run them, and no model has to call what is only offered. A call of one cannot be
//! required. Tools of other kinds that a client would run are refused by name.
//!
//! A namespace holds functions, such as all those of one MCP server. The model knows each as a function of its own,
//! `namespace.function`, and a client hears of its call in two words. Harmony has one namespace for a client's functions, and
//! a place for its description, where that of each namespace stands.
//!
//! A function whose loading is deferred would be found by a tool search. There is none, and the model sees it at once:
//! else it could never be called.
//!
//! A function is bound to its schema where its client says `strict`, and not where it says nothing.

use serde_json::{Value, json};

use crate::api::chat::tools::{Choice, TOOLS_MAX, among, choice};
use crate::api::fields::{FieldError, Fields, Node, Problem, Result};
use crate::api::form::schema;
use crate::api::neutral::{self, Neutral, supported_word};
use crate::guide::{ToolChoice, ToolForm};
use crate::harmony::FunctionTool;
use crate::harmony::chat::is_name;

#[derive(Clone, Debug, PartialEq)]
pub struct Tools {
    /// Which the model is told of, also where it may not call them: the prompt begins as in the turns before.
    pub offered: Vec<FunctionTool>,
    /// Of those that it may call.
    pub forms: Vec<ToolForm>,
    pub choice: ToolChoice,
    /// The client forbids calls.
    pub forbidden: bool,
    /// Those of `namespace.function`.
    pub namespaces: Vec<String>,
    /// Of all of these that have one.
    pub description: Option<String>,
    /// As the answer repeats them.
    pub echo: Value,
    pub choice_echo: Value,
}

/// Run by OpenAI.
const HOSTED: &[&str] = &[
    "code_interpreter",
    "file_search",
    "image_generation",
    "mcp",
    "tool_search",
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
];

const KINDS_NOT_SUPPORTED: &[&str] = &[
    "apply_patch",
    "computer",
    "computer_use_preview",
    "custom",
    "local_shell",
    "programmatic_tool_calling",
    "shell",
];

const CHOICES_NOT_SUPPORTED: &[&str] = &[
    "apply_patch",
    "code_interpreter",
    "computer",
    "computer_use_preview",
    "custom",
    "file_search",
    "image_generation",
    "mcp",
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
    ("output_schema", Neutral::Unset),
];

pub fn read(fields: &mut Fields) -> Result<Tools> {
    let tools = fields.take("tools").map_or(Ok(Vec::new()), |node| node.array_of(TOOLS_MAX, "tools"))?;
    let mut reader = Reader::default();
    tools.into_iter().filter(|node| !is_hosted(node)).try_for_each(|node| reader.read(node))?;
    let Reader { tools, namespaces, descriptions, echo } = reader;
    let description = (!descriptions.is_empty()).then(|| descriptions.join("\n"));
    // A harmony message holds one call, so calls are never parallel; with true they need not be.
    fields.take("parallel_tool_calls").map(Node::bool).transpose()?;
    let choice = choice(fields, named)?;
    let choice_echo = choice_echo(&choice);
    let (offered, forms) = tools.into_iter().unzip();
    let (forms, choice, forbidden) = choice.settle(forms)?;
    Ok(Tools { offered, forms, choice, forbidden, namespaces, description, echo: echo.into(), choice_echo })
}

/// In namespaces. OpenAI counts those as one tool each.
const FUNCTIONS_MAX: usize = 1024;

#[derive(Default)]
struct Reader {
    tools: Vec<(FunctionTool, ToolForm)>,
    namespaces: Vec<String>,
    /// `namespace: description`
    descriptions: Vec<String>,
    echo: Vec<Value>,
}

impl Reader {
    fn read(&mut self, node: Node) -> Result<()> {
        let echo =
            if node.value["type"] == "namespace" { self.namespace(node)? } else { self.tool(node, None)? };
        self.echo.push(echo);
        Ok(())
    }

    fn namespace(&mut self, node: Node) -> Result<Value> {
        let path = node.path.clone();
        let mut fields = node.object()?;
        fields.take("type");
        let name = fields.require("name")?.string()?;
        if !is_name(&name) {
            let what = format!("{name:?} is no name of a namespace\nhint: letters, digits, '_', '-' and '.'");
            return Err(FieldError { path: format!("{path}.name"), problem: Problem::Invalid(what) });
        }
        let description = fields.take("description").map_or(Ok(String::new()), Node::string)?;
        let tools = fields.require("tools")?.array_of(FUNCTIONS_MAX, "tools")?;
        fields.finish()?;
        let functions_before = self.tools.len();
        let functions = tools.into_iter().filter(|node| !is_hosted(node));
        let echo = functions.map(|node| self.tool(node, Some(&name))).collect::<Result<Vec<_>>>()?;
        if !description.is_empty() && functions_before < self.tools.len() {
            self.descriptions.push(format!("{name}: {description}"));
        }
        let echo = json!({"type": "namespace", "name": name, "description": description, "tools": echo});
        self.namespaces.push(name);
        Ok(echo)
    }

    /// Its echo.
    fn tool(&mut self, node: Node, namespace: Option<&str>) -> Result<Value> {
        let tools_path = node.path.clone();
        let is_deferred = node.value["defer_loading"] == true;
        let (mut tool, mut form) = tool(node)?;
        let mut echo = echo(&tool, &form);
        if is_deferred {
            echo["defer_loading"] = true.into();
        }
        let is_named = is_name(&tool.name);
        tool.name = full_name(namespace, &tool.name);
        form.name.clone_from(&tool.name);
        let wrong = |what: &str| {
            let what = format!("{:?} {what}", tool.name);
            Err(FieldError { path: format!("{tools_path}.name"), problem: Problem::Invalid(what) })
        };
        match () {
            () if !is_named || !is_name(&tool.name) => wrong("is no function name"),
            () if self.tools.iter().any(|(earlier, _)| earlier.name == tool.name) => {
                wrong("is given to an earlier tool, too")
            }
            () if self.tools.len() == FUNCTIONS_MAX => wrong("is one tool too many"),
            () => {
                self.tools.push((tool, form));
                Ok(echo)
            }
        }
    }
}

/// As the model knows a function.
pub fn full_name(namespace: Option<&str>, name: &str) -> String {
    namespace
        .filter(|namespace| !namespace.is_empty())
        .map_or(name.to_owned(), |namespace| format!("{namespace}.{name}"))
}

/// As its client does: the namespace, and the function.
pub fn split_name(namespaces: &[String], name: String) -> (Option<String>, String) {
    let within = |namespace: &String| {
        let function = name.strip_prefix(namespace)?.strip_prefix('.')?;
        Some((Some(namespace.clone()), function.to_owned()))
    };
    namespaces.iter().find_map(within).unwrap_or((None, name))
}

fn is_hosted(node: &Node) -> bool {
    node.value["type"].as_str().is_some_and(|kind| HOSTED.contains(&kind))
}

fn tool(node: Node) -> Result<(FunctionTool, ToolForm)> {
    let mut fields = node.object()?;
    supported_word(fields.require("type")?, &["function"], KINDS_NOT_SUPPORTED)?;
    let name = fields.require("name")?.string()?;
    let description = fields.take("description").map_or(Ok(String::new()), Node::string)?;
    let path = fields.path_of("parameters");
    let parameters = fields.take("parameters").map(schema).transpose()?;
    let strict = fields.take("strict").map_or(Ok(false), Node::bool)?;
    fields.take("defer_loading").map(Node::bool).transpose()?;
    neutral::take(&mut fields, FUNCTION)?;
    neutral::drop_marks(&mut fields);
    fields.finish()?;
    let form = ToolForm { name: name.clone(), parameters: parameters.clone(), strict, path };
    Ok((FunctionTool { name, description, parameters }, form))
}

fn named(node: Node) -> Result<Choice> {
    if node.value["type"] == "allowed_tools" {
        let mut fields = node.object()?;
        fields.take("type");
        return among(fields, |node| if is_hosted(&node) { Ok(None) } else { function_name(node).map(Some) });
    }
    function_name(node).map(|name| Choice::One(ToolChoice::Named(name)))
}

fn function_name(node: Node) -> Result<String> {
    let mut fields = node.object()?;
    supported_word(fields.require("type")?, &["function"], CHOICES_NOT_SUPPORTED)?;
    let name = fields.require("name")?.string()?;
    let namespace = fields.take("namespace").map(Node::string).transpose()?;
    fields.finish()?;
    Ok(full_name(namespace.as_deref(), &name))
}

fn choice_echo(choice: &Choice) -> Value {
    let function = |name: &String| json!({"type": "function", "name": name});
    match choice {
        Choice::One(ToolChoice::Auto | ToolChoice::Only) => json!("auto"),
        Choice::One(ToolChoice::None) => json!("none"),
        Choice::One(ToolChoice::Required) => json!("required"),
        Choice::One(ToolChoice::Named(name)) => function(name),
        Choice::Among { names, required } => {
            let mode = if *required { "required" } else { "auto" };
            json!({"type": "allowed_tools", "mode": mode, "tools": names.iter().map(function).collect::<Vec<_>>()})
        }
    }
}

fn echo(tool: &FunctionTool, form: &ToolForm) -> Value {
    json!({
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": form.strict,
    })
}
