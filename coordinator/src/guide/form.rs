//! The form that a client asks for, in words that no API has of its own: chat completions and responses
//! both fill these in. What can be told without compiling is checked here.

use serde_json::Value;

/// Longest text of one grammar or schema. OpenAI's largest schemas, by its limits, are of this order.
const SOURCE_BYTES_MAX: usize = 64 << 10;
/// Parentheses in parentheses of a grammar, and the words of a choice.
const NESTING_MAX: usize = 128;
const CHOICES_MAX: usize = 1024;
/// Tools whose arguments are bound. OpenAI's limit.
const TOOLS_MAX: usize = 128;

/// What an answer is bound to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Form {
    /// Of the message on final; none: it is free.
    pub response: Option<Source>,
    /// Those that may be called: a tool that is not here is not called by a turn with a guide.
    pub tools: Vec<ToolForm>,
    pub choice: ToolChoice,
}

/// A grammar, and which parameter brought it.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// `response_format.json_schema.schema`, as errors name it.
    pub path: String,
    pub grammar: Grammar,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// A JSON value by its schema. `strict`: a schema with words that cannot be enforced is refused; else they
    /// are passed over.
    Json {
        schema: Value,
        strict: bool,
    },
    Regex(String),
    /// In llguidance's kind of Lark.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct ToolForm {
    pub name: String,
    /// A JSON schema; none: a function without arguments.
    pub parameters: Option<Value>,
    /// Its arguments follow the schema wherever it is called. Else they do so only where a call is forced.
    pub strict: bool,
    /// `tools[0].function.parameters`
    pub path: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum ToolChoice {
    #[default]
    Auto,
    None,
    /// The turn ends with a call.
    Required,
    /// The turn ends with a call of this function.
    Named(String),
}

/// Why a form cannot be kept to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {what}")]
pub struct FormError {
    /// Of the parameter that is at fault; empty if none is.
    pub path: String,
    pub what: String,
}

impl FormError {
    pub(super) fn new(path: &str, what: impl Into<String>) -> FormError {
        FormError { path: path.to_owned(), what: what.into() }
    }

    /// A fault of the server's own.
    pub(super) fn unmade(what: String) -> FormError {
        FormError { path: String::new(), what: format!("the grammar could not be compiled: {what}") }
    }
}

impl Grammar {
    /// Any JSON object.
    pub fn json_object() -> Grammar {
        Grammar::Json { schema: serde_json::json!({"type": "object"}), strict: true }
    }
}

impl Form {
    /// Nothing is bound: no guide is needed, and the sequence may run ahead of the coordinator.
    pub fn is_free(&self) -> bool {
        let strict = self.choice == ToolChoice::Auto && self.tools.iter().any(|tool| tool.strict);
        self.response.is_none() && !self.must_call() && !strict
    }

    /// The turn may end with nothing but a call.
    pub fn must_call(&self) -> bool {
        matches!(self.choice, ToolChoice::Required | ToolChoice::Named(_))
    }

    /// The tools that may be called in this turn, and their places.
    pub(super) fn callable(&self) -> impl Iterator<Item = (usize, &ToolForm)> {
        self.tools.iter().enumerate().filter(|(_, tool)| match &self.choice {
            ToolChoice::Auto | ToolChoice::Required => true,
            ToolChoice::None => false,
            ToolChoice::Named(name) => tool.name == *name,
        })
    }

    /// What can be told without compiling.
    pub fn check(&self) -> Result<(), FormError> {
        if self.must_call() && self.callable().next().is_none() {
            let what = match &self.choice {
                ToolChoice::Named(name) => format!("{name:?} is none of the tools"),
                _ => "a call is required, but there are no tools".to_owned(),
            };
            return Err(FormError::new("tool_choice", what));
        }
        if !self.is_free() && self.tools.len() > TOOLS_MAX {
            return Err(FormError::new("tools", format!("at most {TOOLS_MAX} of them with a bound form")));
        }
        self.response.iter().try_for_each(Source::check)
    }
}

impl Source {
    pub fn check(&self) -> Result<(), FormError> {
        self.grammar.check().map_err(|what| FormError::new(&self.path, what))
    }
}

impl Grammar {
    /// Bounds on what compiling may cost. llguidance has its own on what comes of it (`compiler.rs`).
    pub(super) fn check(&self) -> Result<(), String> {
        let bytes = self.byte_count();
        if bytes > SOURCE_BYTES_MAX {
            return Err(format!("it has {bytes} bytes, of at most {SOURCE_BYTES_MAX}"));
        }
        match self {
            Grammar::Json { schema, .. } => check_schema(schema),
            Grammar::Regex(text) | Grammar::Lark(text) if nesting(text) > NESTING_MAX => {
                Err(format!("it nests deeper than {NESTING_MAX} parentheses"))
            }
            Grammar::Regex(text) | Grammar::Lark(text) if text.trim().is_empty() => {
                Err("it is empty".to_owned())
            }
            Grammar::Lark(text) if sets_temperature(text) => {
                Err("it sets a temperature, which is a parameter of the request".to_owned())
            }
            Grammar::Choice(texts) => check_choice(texts),
            Grammar::Regex(_) | Grammar::Lark(_) => Ok(()),
        }
    }

    fn byte_count(&self) -> usize {
        match self {
            Grammar::Json { schema, .. } => schema.to_string().len(),
            Grammar::Regex(text) | Grammar::Lark(text) => text.len(),
            Grammar::Choice(texts) => texts.iter().map(String::len).sum(),
        }
    }
}

fn check_schema(schema: &Value) -> Result<(), String> {
    if !schema.is_object() {
        return Err("a JSON schema is an object".to_owned());
    }
    // llguidance's switches, which are ours to set.
    if schema.get("x-guidance").is_some() {
        return Err("x-guidance is no word of a schema here".to_owned());
    }
    Ok(())
}

fn check_choice(texts: &[String]) -> Result<(), String> {
    match texts {
        [] => Err("a choice needs at least one text".to_owned()),
        _ if texts.len() > CHOICES_MAX => {
            Err(format!("it has {} texts, of at most {CHOICES_MAX}", texts.len()))
        }
        _ if texts.iter().any(String::is_empty) => Err("a text to choose must not be empty".to_owned()),
        _ => Ok(()),
    }
}

/// An upper bound: brackets in quoted text count as well.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// llguidance lets a rule have its own (`word[temperature=0.5]: …`), and leaves it to the server to obey.
fn sets_temperature(grammar: &str) -> bool {
    grammar.match_indices("temperature").any(|(at, word)| {
        let before = grammar[..at].trim_end();
        let behind = grammar[at + word.len()..].trim_start();
        before.ends_with(['[', ',']) && behind.starts_with('=')
    })
}
