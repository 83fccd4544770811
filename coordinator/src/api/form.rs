//! The parameters that bind an answer to a form, as chats, responses and raw completions write them:
//! OpenAI's JSON schemas, and vLLM's `structured_outputs` with its older names.

use serde_json::Value;

use super::Api;
use super::error::ApiError;
use super::fields::{FieldError, Fields, Node, Problem, Result};
use super::neutral::supported_word;
use crate::guide::{Fault, Form, FormError, Grammar, Pattern, Source};
use crate::harmony::ResponseFormat;

/// What the sequences of a request are bound to.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Bound {
    #[default]
    Free,
    /// A turn in harmony.
    Turn(Form),
    /// Raw text.
    Text(Source),
}

impl Bound {
    /// Compiles what has to be, off the threads that serve.
    pub async fn pattern(&self, api: &Api) -> std::result::Result<Option<Pattern>, ApiError> {
        let pattern = match self {
            Bound::Free => Ok(None),
            Bound::Turn(form) => api.guides.turn(form.clone()).await,
            Bound::Text(source) => api.guides.text(source.clone()).await.map(Some),
        };
        pattern.map_err(ApiError::from)
    }

    /// What can be told without compiling, also of what is too large: before it is shown to the model.
    pub fn check_limits(&self) -> std::result::Result<(), ApiError> {
        self.checked().map_err(ApiError::from)
    }

    fn checked(&self) -> std::result::Result<(), FormError> {
        match self {
            Bound::Free => Ok(()),
            Bound::Turn(form) => form.check(),
            Bound::Text(source) => source.check(),
        }
    }

    /// Of it, what is not written as it should be.
    pub fn check(&self) -> Result<()> {
        match self.checked() {
            Err(FormError { path, what, fault: Fault::Malformed }) => {
                Err(FieldError { path, problem: Problem::Invalid(what) })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Without the schemas that bind nothing: a request holds its form to its end, and they may be of megabytes.
    pub fn without_unbound(self) -> Bound {
        match self {
            Bound::Turn(form) if form.is_free() => Bound::Free,
            Bound::Turn(form) => Bound::Turn(form.without_unbound()),
            Bound::Free | Bound::Text(_) => self,
        }
    }

    /// See [`Form::only_forbids`].
    pub fn only_forbids(&self) -> bool {
        match self {
            Bound::Turn(form) => form.only_forbids(),
            Bound::Free | Bound::Text(_) => false,
        }
    }

    pub fn is_free(&self) -> bool {
        match self {
            Bound::Free => true,
            Bound::Turn(form) => form.is_free(),
            Bound::Text(_) => false,
        }
    }
}

/// Chat's `response_format`: what binds the answer, and what the prompt says of it.
pub fn response_format(node: Node) -> Result<(Option<Source>, Option<ResponseFormat>)> {
    let path = node.path.clone();
    let mut fields = node.object()?;
    let kinds = &["text", "json_object", "json_schema"];
    let read = match supported_word(fields.require("type")?, kinds, &["grammar", "python", "structural_tag"])?
    {
        "text" => (None, None),
        "json_object" => match fields.take("schema") {
            Some(node) => {
                let (source, format) = object_schema(node)?;
                (Some(source), Some(format))
            }
            None => (Some(Source { path, grammar: Grammar::json_object() }), None),
        },
        _ => {
            let mut named = fields.require("json_schema")?.object()?;
            let (source, format) = json_schema(&mut named)?;
            named.finish()?;
            (Some(source), Some(format))
        }
    };
    fields.finish()?;
    Ok(read)
}

/// llama.cpp's way to say a schema. It has no name, which the model is to be told.
fn object_schema(node: Node) -> Result<(Source, ResponseFormat)> {
    let path = node.path.clone();
    let schema = schema(node)?;
    let grammar = Grammar::Json { schema: schema.clone(), strict: false };
    Ok((Source { path, grammar }, ResponseFormat { name: "response".to_owned(), description: None, schema }))
}

/// The fields `name`, `description`, `schema` and `strict`. Without a schema, it is any JSON object.
pub fn json_schema(fields: &mut Fields) -> Result<(Source, ResponseFormat)> {
    let name = fields.require("name")?;
    if !name.value.as_str().is_some_and(is_name) {
        return Err(name.unexpected("a name of 1 to 64 letters, digits, '_' and '-'"));
    }
    let name = name.string()?;
    let description = fields.take("description").map(Node::string).transpose()?;
    let strict = fields.take("strict").map_or(Ok(false), Node::bool)?;
    let path = fields.path_of("schema");
    let schema = fields.take("schema").map_or_else(|| Ok(serde_json::json!({"type": "object"})), schema)?;
    let grammar = Grammar::Json { schema: schema.clone(), strict };
    Ok((Source { path, grammar }, ResponseFormat { name, description, schema }))
}

pub fn schema(node: Node) -> Result<Value> {
    if node.value.is_object() { Ok(node.value) } else { Err(node.unexpected("a JSON schema, an object")) }
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

/// vLLM's `structured_outputs`, or one of the names that it had for it before.
pub fn structured_outputs(fields: &mut Fields) -> Result<Option<Source>> {
    let mut found = match fields.take("structured_outputs") {
        Some(node) => {
            let mut inner = node.object()?;
            let found = sources(&mut inner, "")?;
            refuse(&mut inner, &["structural_tag", "whitespace_pattern"])?;
            for name in ["disable_any_whitespace", "disable_additional_properties"] {
                if let Some(node) = inner.take(name).filter(|node| node.value != Value::Bool(false)) {
                    return Err(node.not_supported("false"));
                }
            }
            inner.finish()?;
            found
        }
        None => Vec::new(),
    };
    found.extend(sources(fields, "guided_")?);
    refuse(fields, &["guided_decoding_backend", "guided_whitespace_pattern", "structural_tag"])?;
    one_of(found)
}

/// At most one form binds an answer.
pub fn one_of(found: Vec<Source>) -> Result<Option<Source>> {
    match &found[..] {
        [first, second, ..] => {
            let what = format!("{} binds the answer already", first.path);
            Err(FieldError { path: second.path.clone(), problem: Problem::Invalid(what) })
        }
        _ => Ok(found.into_iter().next()),
    }
}

fn refuse(fields: &mut Fields, names: &[&str]) -> Result<()> {
    names.iter().try_for_each(|name| match fields.take(name) {
        Some(node) => Err(node.not_supported("null")),
        None => Ok(()),
    })
}

/// None: the parameter asks for nothing.
type Reader = fn(Node) -> Result<Option<Grammar>>;

fn sources(fields: &mut Fields, prefix: &str) -> Result<Vec<Source>> {
    let readers: [(&str, Reader); 5] = [
        ("json", |node| json(node).map(Some)),
        ("json_object", |node| Ok(node.bool()?.then(Grammar::json_object))),
        ("regex", |node| node.string().map(Grammar::Regex).map(Some)),
        ("choice", |node| choice(node).map(Some)),
        ("grammar", |node| node.string().map(Grammar::Lark).map(Some)),
    ];
    let mut found = Vec::new();
    for (name, read) in readers {
        let Some(node) = fields.take(&format!("{prefix}{name}")) else { continue };
        let path = node.path.clone();
        found.extend(read(node)?.map(|grammar| Source { path, grammar }));
    }
    Ok(found)
}

/// A schema, or its text.
fn json(node: Node) -> Result<Grammar> {
    let schema = match node.value.as_str().map(serde_json::from_str) {
        None => schema(node)?,
        Some(Ok(schema)) => self::schema(Node { path: node.path, value: schema })?,
        Some(Err(error)) => return Err(node.invalid(format!("not JSON: {error}"))),
    };
    Ok(Grammar::Json { schema, strict: true })
}

fn choice(node: Node) -> Result<Grammar> {
    node.list("a string", |text| text.as_str().map(str::to_owned)).map(Grammar::Choice)
}
