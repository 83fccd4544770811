//! JSON read field by field, so that every complaint names the path of what is wrong, what was expected
//! and what was found, and no field is passed over: what nobody asked for is an error in `finish`.
//!
//! serde's derive would stop at a line and column, and would take unknown fields in silence.

use std::fmt;
use std::ops::RangeInclusive;

use flotilla_shared::TokenId;
use serde_json::{Map, Value};

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// `messages[2].content[0].type`; empty for the body itself.
    pub path: String,
    pub problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    Missing,
    /// It is missing, as is what could stand in its place.
    Absent(&'static str),
    Unknown,
    Unexpected {
        expected: String,
        found: String,
    },
    /// A known field whose value asks for what this server cannot do.
    NotSupported {
        found: String,
        accepted: String,
    },
    Invalid(String),
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "the body" } else { &self.path };
        match &self.problem {
            Problem::Missing => write!(f, "{path}: required, but missing"),
            Problem::Absent(either) => write!(f, "{path}: {either}, is required, but missing"),
            Problem::Unknown => write!(f, "{path}: no parameter of this name is known"),
            Problem::Unexpected { expected, found } => {
                write!(f, "{path}: expected {expected}, found {found}")
            }
            Problem::NotSupported { found, accepted } => {
                write!(f, "{path}: {found} is not supported yet; accepted is {accepted}")
            }
            Problem::Invalid(what) => write!(f, "{path}: {what}"),
        }
    }
}

impl std::error::Error for FieldError {}

pub type Result<T> = std::result::Result<T, FieldError>;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    pub path: String,
    pub value: Value,
}

/// An object whose fields are taken out one by one.
#[derive(Debug)]
pub struct Fields {
    path: String,
    left: Map<String, Value>,
}

impl Node {
    pub fn body(value: Value) -> Node {
        Node { path: String::new(), value }
    }

    pub fn string(self) -> Result<String> {
        match self.value {
            Value::String(text) => Ok(text),
            _ => Err(self.unexpected("a string")),
        }
    }

    pub fn bool(self) -> Result<bool> {
        self.value.as_bool().ok_or_else(|| self.unexpected("true or false"))
    }

    pub fn number(self, range: RangeInclusive<f64>) -> Result<f64> {
        let expected = || format!("a number from {} to {}", range.start(), range.end());
        self.value.as_f64().filter(|number| range.contains(number)).ok_or_else(|| self.unexpected(expected()))
    }

    pub fn count(self, range: RangeInclusive<u64>) -> Result<usize> {
        let expected = || match *range.end() {
            u64::MAX => format!("a whole number of at least {}", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        self.value
            .as_u64()
            .filter(|count| range.contains(count))
            .and_then(|count| usize::try_from(count).ok())
            .ok_or_else(|| self.unexpected(expected()))
    }

    /// One of `words`.
    pub fn word(self, words: &[&'static str]) -> Result<&'static str> {
        let found = self.value.as_str().and_then(|text| words.iter().find(|word| **word == text));
        found.copied().ok_or_else(|| self.unexpected(alternatives(words)))
    }

    pub fn array(self) -> Result<Vec<Node>> {
        match self.value {
            Value::Array(items) => Ok(nodes(&self.path, items)),
            _ => Err(self.unexpected("an array")),
        }
    }

    /// An array of what `read` takes. A million of them cost no paths: only of a wrong one is there a node.
    pub fn list<T>(&self, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>> {
        let Value::Array(items) = &self.value else {
            return Err(self.unexpected("an array"));
        };
        let one = |(at, value): (usize, &Value)| {
            let wrong = || Node { path: format!("{}[{at}]", self.path), value: value.clone() };
            read(value).ok_or_else(|| wrong().unexpected(expected))
        };
        items.iter().enumerate().map(one).collect()
    }

    /// An array of ids, whether or not there are tokens of these ids.
    pub fn token_ids(&self) -> Result<Vec<TokenId>> {
        let id = |value: &Value| value.as_u64().and_then(|id| TokenId::try_from(id).ok());
        self.list("a whole number from 0 to 4294967295", id)
    }

    /// How many an array has; none of what is none.
    pub fn len(&self) -> usize {
        self.value.as_array().map_or(0, Vec::len)
    }

    /// An array of at most so many `what`.
    pub fn array_of(self, max: usize, what: &str) -> Result<Vec<Node>> {
        self.at_most(max, what)?;
        self.array()
    }

    pub fn at_most(&self, max: usize, what: &str) -> Result<()> {
        match self.len() {
            len if len > max => Err(self.invalid(format!("at most {max} {what}, found {len}"))),
            _ => Ok(()),
        }
    }

    pub fn object(self) -> Result<Fields> {
        match self.value {
            Value::Object(left) => Ok(Fields { path: self.path, left }),
            _ => Err(self.unexpected("an object")),
        }
    }

    pub fn unexpected(&self, expected: impl Into<String>) -> FieldError {
        let problem = Problem::Unexpected { expected: expected.into(), found: describe(&self.value) };
        FieldError { path: self.path.clone(), problem }
    }

    pub fn not_supported(&self, accepted: impl Into<String>) -> FieldError {
        let problem = Problem::NotSupported { found: describe(&self.value), accepted: accepted.into() };
        FieldError { path: self.path.clone(), problem }
    }

    pub fn invalid(&self, what: impl Into<String>) -> FieldError {
        FieldError { path: self.path.clone(), problem: Problem::Invalid(what.into()) }
    }
}

impl Fields {
    pub fn has(&self, name: &str) -> bool {
        self.left.get(name).is_some_and(|value| !value.is_null())
    }

    /// None where the field is missing or null, which OpenAI's clients send for "not set".
    pub fn take(&mut self, name: &str) -> Option<Node> {
        let value = self.left.remove(name).filter(|value| !value.is_null())?;
        Some(Node { path: self.path_of(name), value })
    }

    pub fn require(&mut self, name: &str) -> Result<Node> {
        self.take(name).ok_or_else(|| FieldError { path: self.path_of(name), problem: Problem::Missing })
    }

    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// For objects whose names are data: all that is left, `null` too.
    pub fn into_entries(self) -> Vec<(String, Node)> {
        let Fields { path, left } = self;
        let path = |name: &String| if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        left.into_iter().map(|(name, value)| (name.clone(), Node { path: path(&name), value })).collect()
    }

    /// What is left, as an object again.
    pub fn into_value(self) -> Value {
        Value::Object(self.left)
    }

    /// Everything that may be here has been taken.
    pub fn finish(self) -> Result<()> {
        match self.left.iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(FieldError { path: self.path_of(name), problem: Problem::Unknown }),
            None => Ok(()),
        }
    }
}

fn nodes(path: &str, items: Vec<Value>) -> Vec<Node> {
    let node = |(index, value)| Node { path: format!("{path}[{index}]"), value };
    items.into_iter().enumerate().map(node).collect()
}

fn alternatives(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    quoted.join(" or ")
}

/// The kind of a value, and the value itself where it is short.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.len() <= 40 => format!("the string {text:?}"),
        Value::String(_) => "a string".to_owned(),
        Value::Array(items) if items.is_empty() => "an empty array".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Node::body(value).object().unwrap()
    }

    #[test]
    fn complaints_name_path_expected_and_found() {
        let mut body = fields(json!({"messages": [{}, {"role": 7}], "n": 9, "kind": "odd", "x": 1}));
        let messages = body.take("messages").unwrap().array().unwrap();
        let role = messages[1].clone().object().unwrap().take("role").unwrap();
        assert_eq!(
            role.string().unwrap_err().to_string(),
            "messages[1].role: expected a string, found the number 7"
        );
        let missing = messages[0].clone().object().unwrap().require("role").unwrap_err();
        assert_eq!(missing.to_string(), "messages[0].role: required, but missing");
        let n = body.take("n").unwrap().count(1..=8).unwrap_err();
        assert_eq!(n.to_string(), "n: expected a whole number from 1 to 8, found the number 9");
        let kind = body.take("kind").unwrap().word(&["low", "high"]).unwrap_err();
        assert_eq!(kind.to_string(), "kind: expected \"low\" or \"high\", found the string \"odd\"");
        assert_eq!(body.finish().unwrap_err().to_string(), "x: no parameter of this name is known");
    }

    #[test]
    fn of_a_list_the_wrong_one_is_named() {
        let body = json!({"tokens": [1, 2, -1, 4], "no": 7});
        let node = |name| fields(body.clone()).take(name).unwrap();
        let error = node("tokens").token_ids().unwrap_err().to_string();
        assert_eq!(error, "tokens[2]: expected a whole number from 0 to 4294967295, found the number -1");
        assert_eq!(
            node("no").token_ids().unwrap_err().to_string(),
            "no: expected an array, found the number 7"
        );
        assert!(node("tokens").at_most(4, "tokens").is_ok() && node("tokens").at_most(3, "tokens").is_err());
    }

    #[test]
    fn null_is_not_set() {
        let mut body = fields(json!({"stop": null, "other": null}));
        assert!(body.take("stop").is_none());
        assert_eq!(body.finish(), Ok(()));
    }
}
