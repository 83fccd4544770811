//! The form that a client asks for, in words that no API has of its own: chat completions and responses
//! both fill these in. What can be told without compiling is checked here.

use std::borrow::Cow;

use serde_json::Value;

/// Longest text of one grammar or schema. OpenAI's largest schemas, by its limits, are of this order.
const SOURCE_BYTES_MAX: usize = 64 << 10;
/// Of all grammars of one request that must be kept to: what is compiled of them is held until its end. As a prompt, which
/// most of them are as well, half of a full context.
const FORM_BYTES_MAX: usize = 256 << 10;
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
    /// Arguments of a tool that is not strict: JSON by its schema as far as that can be followed, and else any
    /// object. Nobody asked for more.
    Arguments(Value),
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
    /// As `Auto`, and the model is told of other tools, which it may not call now.
    Only,
    /// The model knows of functions, and may call none.
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
    pub fault: Fault,
    pub what: String,
}

/// What kind of reason it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not written as a form is.
    Malformed,
    /// It is well written, and would take more than its limit of time, states or bytes.
    TooComplex,
    /// It is well written, and no text is of this form.
    Unsatisfiable,
    /// Too many are being compiled.
    Busy,
    /// The server's own.
    Server,
}

/// A [`FormError`] that does not know yet of which parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub fault: Fault,
    pub what: String,
}

impl Complaint {
    pub fn malformed(what: impl Into<String>) -> Complaint {
        Complaint { fault: Fault::Malformed, what: what.into() }
    }

    pub fn too_complex(what: impl Into<String>) -> Complaint {
        Complaint { fault: Fault::TooComplex, what: what.into() }
    }

    /// Nobody waits for it any more.
    pub fn given_up() -> Complaint {
        Complaint { fault: Fault::Server, what: "nobody waits for it".to_owned() }
    }

    pub(super) fn of(self, path: &str) -> FormError {
        FormError { path: path.to_owned(), fault: self.fault, what: self.what }
    }
}

impl FormError {
    /// A fault of the server's own.
    pub(super) fn unmade(what: String) -> FormError {
        let what = format!("the grammar could not be compiled: {what}");
        FormError { path: String::new(), fault: Fault::Server, what }
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
        let strict = self.tools.iter().any(|tool| tool.strict);
        self.response.is_none() && self.choice == ToolChoice::Auto && !strict
    }

    /// No text is bound, and no call must be made: a turn that does nothing odd is as it is without a guide.
    pub fn only_forbids(&self) -> bool {
        self.response.is_none() && !self.must_call() && self.bound().next().is_none()
    }

    /// The turn may end with nothing but a call.
    pub fn must_call(&self) -> bool {
        matches!(self.choice, ToolChoice::Required | ToolChoice::Named(_))
    }

    /// The tools that may be called in this turn, and their places.
    pub(super) fn callable(&self) -> impl Iterator<Item = (usize, &ToolForm)> {
        self.tools.iter().enumerate().filter(|(_, tool)| match &self.choice {
            ToolChoice::Auto | ToolChoice::Only | ToolChoice::Required => true,
            ToolChoice::None => false,
            ToolChoice::Named(name) => tool.name == *name,
        })
    }

    /// Those whose arguments are kept to their schema.
    pub(super) fn bound(&self) -> impl Iterator<Item = (usize, &ToolForm)> {
        self.callable().filter(|(_, tool)| tool.strict || self.must_call())
    }

    /// Without the schemas of all other tools. Where arguments are bound that are not strict, and there is more of their
    /// schemas than a request may bind, those of the last ones are any object.
    pub fn without_unbound(mut self) -> Form {
        let bound: Vec<usize> = self.bound().map(|(place, _)| place).collect();
        let strict: usize = self.strict().map(|(_, bytes)| bytes).sum();
        let mut left = FORM_BYTES_MAX.saturating_sub(strict);
        for (place, tool) in self.tools.iter_mut().enumerate() {
            if !bound.contains(&place) {
                tool.parameters = None;
            } else if !tool.strict {
                match left.checked_sub(tool.source_bytes()) {
                    Some(rest) => left = rest,
                    None => tool.parameters = Some(serde_json::json!({"type": "object"})),
                }
            }
        }
        self
    }

    /// The path and the bytes of each grammar that must be kept to.
    fn strict(&self) -> impl Iterator<Item = (&str, usize)> {
        let response =
            self.response.iter().map(|source| (source.path.as_str(), source.grammar.source().len()));
        let tools = self.bound().filter(|(_, tool)| tool.strict);
        response.chain(tools.map(|(_, tool)| (tool.path.as_str(), tool.source_bytes())))
    }

    /// Of all that is compiled for it.
    pub(super) fn source_bytes(&self) -> usize {
        let response = self.response.as_ref().map_or(0, |source| source.grammar.source().len());
        response + self.bound().map(|(_, tool)| tool.source_bytes()).sum::<usize>()
    }

    /// What can be told without compiling.
    pub fn check(&self) -> Result<(), FormError> {
        if self.must_call() && self.callable().next().is_none() {
            let what = match &self.choice {
                ToolChoice::Named(name) => format!("{name:?} is none of the tools"),
                _ => "a call is required, but there are no tools".to_owned(),
            };
            return Err(Complaint::malformed(what).of("tool_choice"));
        }
        if !self.is_free() && self.tools.len() > TOOLS_MAX {
            let what = format!("at most {TOOLS_MAX} of them with a bound form");
            return Err(Complaint::malformed(what).of("tools"));
        }
        self.response.iter().try_for_each(Source::check)?;
        self.check_bytes()
    }

    fn check_bytes(&self) -> Result<(), FormError> {
        let mut all = 0;
        self.strict().try_for_each(|(path, bytes)| {
            all += bytes;
            if all <= FORM_BYTES_MAX {
                return Ok(());
            }
            let what = format!("with the forms before it, it has {all} bytes, of at most {FORM_BYTES_MAX}");
            Err(Complaint::too_complex(what).of(path))
        })
    }
}

impl ToolForm {
    fn source_bytes(&self) -> usize {
        self.parameters.as_ref().map_or(0, |schema| schema.to_string().len())
    }
}

impl Source {
    pub fn check(&self) -> Result<(), FormError> {
        self.grammar.check().map_err(|complaint| complaint.of(&self.path))
    }
}

impl Grammar {
    /// Bounds on what compiling may cost. llguidance has its own on what comes of it (`compiler.rs`).
    pub(super) fn check(&self) -> Result<(), Complaint> {
        let bytes = self.source().len();
        if bytes > SOURCE_BYTES_MAX {
            let what = format!("it has {bytes} bytes, of at most {SOURCE_BYTES_MAX}");
            return Err(Complaint::too_complex(what));
        }
        match self {
            Grammar::Json { schema, .. } | Grammar::Arguments(schema) => check_schema(schema),
            Grammar::Regex(text) | Grammar::Lark(text) if nesting(text) > NESTING_MAX => {
                Err(Complaint::too_complex(format!("it nests deeper than {NESTING_MAX} parentheses")))
            }
            Grammar::Regex(text) | Grammar::Lark(text) if text.trim().is_empty() => {
                Err(Complaint::malformed("it is empty"))
            }
            Grammar::Lark(text) if sets_temperature(text) => {
                Err(Complaint::malformed("it sets a temperature, which is a parameter of the request"))
            }
            Grammar::Choice(texts) => check_choice(texts),
            Grammar::Regex(_) | Grammar::Lark(_) => Ok(()),
        }
    }

    /// What tells it from others. In schemas the order of words counts: an answer's keys come in it.
    pub(super) fn key(&self) -> blake3::Hash {
        let kind = match self {
            Grammar::Json { strict: false, .. } => 0,
            Grammar::Json { strict: true, .. } => 1,
            Grammar::Arguments(_) => 2,
            Grammar::Regex(_) => 3,
            Grammar::Lark(_) => 4,
            Grammar::Choice(_) => 5,
        };
        blake3::Hasher::new().update(&[kind]).update(self.source().as_bytes()).finalize()
    }

    /// Its text.
    pub(super) fn source(&self) -> Cow<'_, str> {
        match self {
            Grammar::Json { schema, .. } | Grammar::Arguments(schema) => schema.to_string().into(),
            Grammar::Regex(text) | Grammar::Lark(text) => text.into(),
            Grammar::Choice(texts) => Value::from(&texts[..]).to_string().into(),
        }
    }
}

fn check_schema(schema: &Value) -> Result<(), Complaint> {
    if !schema.is_object() {
        return Err(Complaint::malformed("a JSON schema is an object"));
    }
    // llguidance's switches, which are ours to set.
    if schema.get("x-guidance").is_some() {
        return Err(Complaint::malformed("x-guidance is no word of a schema here"));
    }
    Ok(())
}

fn check_choice(texts: &[String]) -> Result<(), Complaint> {
    match texts {
        [] => Err(Complaint::malformed("a choice needs at least one text")),
        _ if texts.len() > CHOICES_MAX => {
            let what = format!("it has {} texts, of at most {CHOICES_MAX}", texts.len());
            Err(Complaint::too_complex(what))
        }
        _ if texts.iter().any(String::is_empty) => {
            Err(Complaint::malformed("a text to choose must not be empty"))
        }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tool(name: &str, strict: bool, bytes: usize) -> ToolForm {
        let parameters = Some(json!({"type": "object", "description": "x".repeat(bytes)}));
        ToolForm { name: name.to_owned(), parameters, strict, path: format!("{name}.parameters") }
    }

    #[test]
    fn schemas_that_bind_nothing_are_let_go() {
        let left = |choice| {
            let tools = vec![tool("a", true, 9), tool("b", false, 9)];
            let form = Form { tools, choice, ..Form::default() };
            form.without_unbound().tools.into_iter().map(|tool| tool.parameters.is_some()).collect::<Vec<_>>()
        };
        assert_eq!(left(ToolChoice::Auto), [true, false]);
        assert_eq!(left(ToolChoice::Required), [true, true]);
        assert_eq!(left(ToolChoice::Named("b".to_owned())), [false, true]);
    }

    #[test]
    fn all_that_must_be_kept_to_has_one_limit() {
        let third = FORM_BYTES_MAX / 3;
        let form = |strict: [bool; 4], choice| {
            let tools =
                ["a", "b", "c", "d"].iter().zip(strict).map(|(name, strict)| tool(name, strict, third));
            Form { tools: tools.collect(), choice, ..Form::default() }
        };
        let error = form([true; 4], ToolChoice::Auto).check().unwrap_err();
        assert_eq!((error.path.as_str(), error.fault), ("c.parameters", Fault::TooComplex), "{error}");
        assert_eq!(form([true, false, true, false], ToolChoice::Auto).check(), Ok(()));
        assert_eq!(form([true; 4], ToolChoice::Named("b".to_owned())).check(), Ok(()));

        // Nobody asked for more than a call of those that are not strict.
        let form = form([false, false, true, false], ToolChoice::Required);
        assert_eq!(form.check(), Ok(()));
        let tools = form.without_unbound().tools;
        let any_object = json!({"type": "object"});
        let are_any: Vec<bool> =
            tools.iter().map(|tool| tool.parameters == Some(any_object.clone())).collect();
        assert_eq!(are_any, [false, true, false, true]);
    }
}
