//! A span that is over, as OpenTelemetry has it.

use super::context::{Context, SpanId};

#[derive(Clone, Debug)]
pub struct Span {
    pub name: String,
    pub context: Context,
    pub parent: Option<SpanId>,
    pub kind: Kind,
    /// Of the request that it answers; empty on others.
    pub state: String,
    pub start_unix_ns: u64,
    pub end_unix_ns: u64,
    pub attributes: Vec<(&'static str, Value)>,
    /// Moments within it.
    pub events: Vec<(u64, &'static str)>,
    /// Others that it worked for.
    pub links: Vec<Context>,
    /// In words, if it failed.
    pub error: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Internal = 1,
    Server = 2,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Count(u64),
    Number(f64),
}

impl Span {
    /// Within another.
    pub fn within(parent: Context, name: &str, (start_unix_ns, end_unix_ns): (u64, u64)) -> Span {
        Span {
            name: name.to_owned(),
            context: Context::below(parent.trace),
            parent: Some(parent.span),
            kind: Kind::Internal,
            state: String::new(),
            start_unix_ns,
            end_unix_ns: end_unix_ns.max(start_unix_ns),
            attributes: Vec::new(),
            events: Vec::new(),
            links: Vec::new(),
            error: None,
        }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Span {
        self.attributes.push((name, value.into()));
        self
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Value {
        Value::Count(count as u64)
    }
}

impl From<u64> for Value {
    fn from(count: u64) -> Value {
        Value::Count(count)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Value {
        Value::Number(number)
    }
}
