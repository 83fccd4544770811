//! Harmony, the message format that gpt-oss models were trained on: what a conversation is, how it
//! becomes token ids, and how the ids that a model answers become messages again.
//!
//! Special tokens exist here as ids only, looked up by name in the tokenizer at start. Text that came
//! from a client never turns into one, whatever it says. Nothing here knows of HTTP or of time.

pub mod chat;
mod header;
pub mod parse;
mod plain;
pub mod render;
pub mod tools;

use std::sync::Arc;

use serde_json::Value;

use crate::tokenizer::Tokenizer;

/// The format over one vocabulary. Cheap to clone; one per server.
#[derive(Clone)]
pub struct Harmony {
    tokenizer: Arc<Tokenizer>,
    special: SpecialTokens,
}

impl Harmony {
    pub fn new(tokenizer: Arc<Tokenizer>) -> Result<Self, MissingSpecialToken> {
        let special = SpecialTokens::find(&tokenizer)?;
        Ok(Self { tokenizer, special })
    }

    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }
}

/// The ids that give a conversation its structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    pub start: u32,
    pub end: u32,
    pub message: u32,
    pub channel: u32,
    pub constrain: u32,
    pub return_: u32,
    pub call: u32,
    pub end_of_text: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the tokenizer has no special token {name}, without which no conversation can be written\n\
     hint: serve a gpt-oss model with the tokenizer.json published with it"
)]
pub struct MissingSpecialToken {
    pub name: &'static str,
}

impl SpecialTokens {
    pub fn find(tokenizer: &Tokenizer) -> Result<Self, MissingSpecialToken> {
        let id = |name| tokenizer.special(name).ok_or(MissingSpecialToken { name });
        Ok(Self {
            start: id("<|start|>")?,
            end: id("<|end|>")?,
            message: id("<|message|>")?,
            channel: id("<|channel|>")?,
            constrain: id("<|constrain|>")?,
            return_: id("<|return|>")?,
            call: id("<|call|>")?,
            end_of_text: id("<|endoftext|>")?,
        })
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub messages: Vec<Message>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub author: Role,
    /// A tool's full name (`functions.f`); for others an optional name behind the role.
    pub name: Option<String>,
    pub recipient: Option<String>,
    pub channel: Option<Channel>,
    pub content_type: Option<ContentType>,
    pub content: Content,
}

impl Message {
    pub fn new(author: Role, content: Content) -> Self {
        Self { author, name: None, recipient: None, channel: None, content_type: None, content }
    }

    pub fn text(author: Role, text: impl Into<String>) -> Self {
        Self::new(author, Content::Text(text.into()))
    }

    pub fn assistant(channel: Channel, text: impl Into<String>) -> Self {
        Self { channel: Some(channel), ..Self::text(Role::Assistant, text) }
    }

    /// The assistant calls `functions.{function}`; `arguments` is JSON text.
    pub fn call(function: &str, arguments: impl Into<String>) -> Self {
        Self {
            recipient: Some(format!("{FUNCTIONS}.{function}")),
            content_type: Some(ContentType { format: "json".into(), constrained: true }),
            ..Self::assistant(Channel::Commentary, arguments)
        }
    }

    /// What `functions.{function}` answers to the assistant.
    pub fn tool_result(function: &str, result: impl Into<String>) -> Self {
        Self {
            name: Some(format!("{FUNCTIONS}.{function}")),
            recipient: Some("assistant".into()),
            channel: Some(Channel::Commentary),
            ..Self::text(Role::Tool, result)
        }
    }

    fn is_on(&self, channel: &Channel) -> bool {
        self.channel.as_ref() == Some(channel)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// To whom a message of the assistant speaks. Other holds whatever else a model wrote there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    Analysis,
    Commentary,
    Final,
    Other(String),
}

impl Channel {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Analysis => "analysis",
            Self::Commentary => "commentary",
            Self::Final => "final",
            Self::Other(name) => name,
        }
    }

    pub fn from_name(name: &str) -> Self {
        match name {
            "analysis" => Self::Analysis,
            "commentary" => Self::Commentary,
            "final" => Self::Final,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// `json`, or `<|constrain|>json`, by which a model promises the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentType {
    pub format: String,
    pub constrained: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    System(SystemContent),
    Developer(DeveloperContent),
    Text(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct SystemContent {
    pub identity: String,
    pub knowledge_cutoff: String,
    /// `2025-06-28`; the line is left out where there is none.
    pub current_date: Option<String>,
    pub effort: Effort,
    /// Built-in tools, `browser` and `python`; a client's functions stand in the developer's message.
    pub tools: Vec<ToolNamespace>,
    pub valid_channels: Vec<Channel>,
}

impl Default for SystemContent {
    /// What the models were trained with; the format guide asks to leave the identity as it is.
    fn default() -> Self {
        Self {
            identity: "You are ChatGPT, a large language model trained by OpenAI.".into(),
            knowledge_cutoff: "2024-06".into(),
            current_date: None,
            effort: Effort::default(),
            tools: Vec::new(),
            valid_channels: vec![Channel::Analysis, Channel::Commentary, Channel::Final],
        }
    }
}

/// How long the model may think before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    Low,
    #[default]
    Medium,
    High,
}

impl Effort {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeveloperContent {
    /// What an API calls the system prompt.
    pub instructions: Option<String>,
    pub tools: Vec<FunctionTool>,
    /// What they are together.
    pub tools_description: Option<String>,
    pub response_format: Option<ResponseFormat>,
}

/// What the model is told of the form of its answer. Telling binds nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseFormat {
    pub name: String,
    pub description: Option<String>,
    /// A JSON schema.
    pub schema: Value,
}

/// A function that a client offers; the model sees it as `functions.{name}`.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionTool {
    pub name: String,
    pub description: String,
    /// A JSON schema. None: a function without arguments.
    pub parameters: Option<Value>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ToolNamespace {
    pub name: String,
    pub description: Option<String>,
    pub tools: Vec<FunctionTool>,
}

/// The namespace of a client's functions.
pub const FUNCTIONS: &str = "functions";
