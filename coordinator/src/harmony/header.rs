//! The header of a message that a model writes, read with forbearance: whatever stands there, some
//! message comes out of it.
//!
//! Models put the recipient behind the role or behind the channel, leave out `<|constrain|>`, the
//! channel or `<|message|>`, or repeat the role. The one thing that is never guessed is a tool call out
//! of stray words: a recipient needs its `to=`, or at least the namespace `functions.`.

use super::chat::{FUNCTION_NAME_MAX, is_name_char};
use super::{Channel, ContentType, FUNCTIONS, Message, Role};
use super::{Content, parse::Lane};
use crate::tokenizer::TextStream;

/// What a message says of itself before its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub author: Role,
    pub name: Option<String>,
    pub recipient: Option<String>,
    pub channel: Option<Channel>,
    pub content_type: Option<ContentType>,
}

impl Default for Header {
    fn default() -> Self {
        Self { author: Role::Assistant, name: None, recipient: None, channel: None, content_type: None }
    }
}

impl Header {
    /// For whom the message's text is.
    pub fn lane(&self) -> Lane {
        match (&self.channel, self.recipient.as_deref()) {
            _ if self.author != Role::Assistant => Lane::Foreign,
            (_, Some("assistant")) => Lane::Foreign,
            (_, Some(recipient)) if recipient != "all" && recipient != "user" => Lane::Call,
            (Some(Channel::Analysis), _) => Lane::Reasoning,
            (Some(Channel::Commentary), _) => Lane::Preamble,
            // Without a channel, or with one nobody knows, it is better shown than lost.
            (Some(Channel::Final | Channel::Other(_)) | None, _) => Lane::Answer,
        }
    }

    /// The function called, without its namespace; built-in tools keep theirs (`browser.search`).
    pub fn function(&self) -> Option<&str> {
        let recipient = self.recipient.as_deref().filter(|_| self.lane() == Lane::Call)?;
        Some(function_name(recipient).unwrap_or(recipient))
    }

    pub(super) fn into_message(self, text: String) -> Message {
        let Self { author, name, recipient, channel, content_type } = self;
        Message { author, name, recipient, channel, content_type, content: Content::Text(text) }
    }
}

/// As much of a recipient as can be a name. What a model glued to it would be sent back by the client with the
/// call, and is no name of a function in any request. None: that is nobody.
fn named(recipient: &str) -> Option<String> {
    let (function, prefix) = match function_name(recipient) {
        Some(function) => (function, recipient.len() - function.len()),
        None => (recipient, 0),
    };
    let end = function.find(|c| !is_name_char(c)).unwrap_or(function.len()).min(FUNCTION_NAME_MAX);
    (end > 0).then(|| recipient[..prefix + end].to_owned())
}

fn function_name(word: &str) -> Option<&str> {
    word.strip_prefix(FUNCTIONS)?.strip_prefix('.')
}

/// A header as it grows, cut where its special tokens stand.
#[derive(Debug, Default)]
pub(super) struct HeaderText {
    /// False for the first one, whose role the prompt gave.
    names_author: bool,
    pub(super) tokens: usize,
    pub(super) stream: TextStream,
    lead: String,
    channel: Option<String>,
    constrain: Option<String>,
    part: Part,
}

#[derive(Clone, Copy, Debug, Default)]
enum Part {
    #[default]
    Lead,
    Channel,
    Constrain,
}

impl HeaderText {
    /// A header after `<|start|>`, which begins with the author.
    pub(super) fn with_author() -> Self {
        Self { names_author: true, ..Self::default() }
    }

    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        self.tokens += 1;
        let text = self.stream.push_bytes(bytes);
        self.current().push_str(&text);
    }

    /// `<|channel|>`. Said twice, the later one counts.
    pub(super) fn begin_channel(&mut self) {
        self.finish_part();
        self.part = Part::Channel;
        self.channel = Some(String::new());
    }

    pub(super) fn begin_constrain(&mut self) {
        self.finish_part();
        self.part = Part::Constrain;
        self.constrain = Some(String::new());
    }

    pub(super) fn is_blank(&self) -> bool {
        self.lead.trim().is_empty() && self.channel.is_none() && self.constrain.is_none()
    }

    /// Text that began where a header should have: a model that forgot the format altogether.
    pub(super) fn looks_like_text(&self) -> bool {
        let lead = self.lead.trim_start();
        let recipient = lead.starts_with("to=") || "to=".starts_with(lead);
        !self.names_author && self.channel.is_none() && self.constrain.is_none() && !recipient
    }

    /// The header of a message whose `<|message|>` has come.
    pub(super) fn into_header(mut self) -> Header {
        self.finish_part();
        let mut words = Words::default();
        let mut lead = self.lead.split_whitespace().peekable();
        words.author = lead.next_if(|word| self.names_author || *word == "assistant").and_then(|word| {
            let author = author(word);
            if author.is_none() {
                words.take(word);
            }
            author
        });
        lead.for_each(|word| words.take(word));
        let mut channel = self.channel.as_deref().unwrap_or_default().split_whitespace();
        let (channel_name, glued) = channel.next().map_or(("", ""), split_channel);
        words.take(glued);
        channel.for_each(|word| words.take(word));
        let mut constrain = self.constrain.as_deref().unwrap_or_default().split_whitespace();
        let constrained =
            constrain.next().map(|format| ContentType { format: format.into(), constrained: true });
        constrain.for_each(|word| words.take(word));
        words.into_header(channel_name, constrained)
    }

    /// The header and the text of a message whose `<|message|>` never came. Less is read as header
    /// here: a channel, a `to=`, a constrained format; the rest may be the answer.
    pub(super) fn into_header_and_text(self) -> (Header, String) {
        let mut lead = self.lead.trim_start();
        if self.names_author {
            lead = lead.strip_prefix("assistant").unwrap_or(lead);
        }
        let (lead_recipient, lead) = split_recipient(lead);
        let channel = self.channel.as_deref().unwrap_or_default().trim_start();
        let (channel, rest) = channel.split_at(channel.find(char::is_whitespace).unwrap_or(channel.len()));
        let (channel_recipient, rest) = split_recipient(rest);
        let constrain = self.constrain.as_deref().unwrap_or_default();
        let format_end = constrain.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(constrain.len());
        let (format, constrained) = constrain.split_at(format_end);
        let header = Header {
            recipient: lead_recipient.or(channel_recipient),
            channel: named_channel(channel),
            content_type: (!format.is_empty())
                .then(|| ContentType { format: format.into(), constrained: true }),
            ..Header::default()
        };
        (header, [lead, rest, constrained].concat())
    }

    fn current(&mut self) -> &mut String {
        match self.part {
            Part::Lead => &mut self.lead,
            Part::Channel => self.channel.get_or_insert_default(),
            Part::Constrain => self.constrain.get_or_insert_default(),
        }
    }

    fn finish_part(&mut self) {
        let rest = self.stream.finish();
        self.current().push_str(&rest);
    }
}

/// The words of a header that stand in no fixed place.
#[derive(Default)]
struct Words {
    author: Option<(Role, Option<String>)>,
    recipient: Option<String>,
    /// `to=` came alone: the next word is the recipient.
    recipient_follows: bool,
    format: Option<String>,
}

impl Words {
    fn take(&mut self, word: &str) {
        let recipient = match word.strip_prefix("to=") {
            Some("") => return self.recipient_follows = true,
            Some(recipient) => Some(recipient),
            None => (self.recipient_follows || function_name(word).is_some()).then_some(word),
        };
        self.recipient_follows &= word.is_empty();
        match recipient {
            Some(recipient) => self.recipient = self.recipient.take().or_else(|| named(recipient)),
            None if word.is_empty() => {}
            None => self.format = Some(word.to_owned()),
        }
    }

    fn into_header(self, channel: &str, constrained: Option<ContentType>) -> Header {
        let (author, name) = self.author.unwrap_or((Role::Assistant, None));
        let unconstrained = self.format.map(|format| ContentType { format, constrained: false });
        Header {
            author,
            name,
            recipient: self.recipient,
            channel: named_channel(channel),
            content_type: constrained.or(unconstrained),
        }
    }
}

fn author(word: &str) -> Option<(Role, Option<String>)> {
    if function_name(word).is_some() {
        return Some((Role::Tool, Some(word.to_owned())));
    }
    let (role, name) = match word.split_once(':') {
        Some((role, name)) => (role, Some(name.to_owned())),
        None => (word, None),
    };
    let roles = [Role::System, Role::Developer, Role::User, Role::Assistant, Role::Tool];
    roles.into_iter().find(|known| known.as_str() == role).map(|role| (role, name))
}

fn named_channel(name: &str) -> Option<Channel> {
    (!name.is_empty()).then(|| Channel::from_name(name))
}

/// `commentaryto=functions.f` has been seen: the blank between is one token that can be missed.
fn split_channel(word: &str) -> (&str, &str) {
    match word.find("to=") {
        Some(at) if at > 0 => word.split_at(at),
        _ => (word, ""),
    }
}

/// `to=functions.f {"x": 1}` → the recipient and what stands behind it.
fn split_recipient(text: &str) -> (Option<String>, &str) {
    let text = text.trim_start();
    let Some(rest) = text.strip_prefix("to=") else {
        return (None, text);
    };
    let end = rest.find(|c: char| c.is_whitespace() || c == '{').unwrap_or(rest.len());
    let (recipient, rest) = rest.split_at(end);
    (named(recipient), rest.trim_start())
}
