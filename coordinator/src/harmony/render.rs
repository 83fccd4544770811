//! A conversation as the token ids that a model reads.
//!
//! `<|start|>` author [` to=`recipient] [`<|channel|>`channel] [` `content type] `<|message|>` content,
//! then `<|call|>` behind an assistant's message to a tool and `<|end|>` behind all others.

use super::{
    Channel, Content, Conversation, DeveloperContent, FUNCTIONS, Harmony, Message, ResponseFormat, Role,
    SystemContent, ToolNamespace, tools,
};

/// What becomes of the reasoning of turns that are over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PastAnalysis {
    /// As the format guide asks: an answer in the final channel ends a turn, and the reasoning that led
    /// to it is not shown again. Reasoning behind the last answer stays, or the model would forget
    /// why it called the tool whose result it now reads.
    ///
    /// The published library, in version 0.0.8, drops less: nothing at all unless the assistant's last
    /// message is an answer, and then only what stands before the *first* answer, so that a third turn
    /// still reads the reasoning of the second. The guide is followed here.
    #[default]
    Drop,
    Keep,
}

impl Harmony {
    /// The conversation so far, and `<|start|>assistant` for the model to go on from.
    pub fn render_for_completion(&self, conversation: &Conversation, past: PastAnalysis) -> Vec<u32> {
        let mut ids = self.render(conversation, past);
        ids.push(self.special.start);
        self.text(Role::Assistant.as_str(), &mut ids);
        ids
    }

    /// What opens a final message behind `turn`, the tokens of the assistant's turn so far without the one that
    /// ended it. A message that is open is closed.
    pub fn final_header(&self, turn: &[u32]) -> Vec<u32> {
        let mut ids = Vec::new();
        // At its beginning the prompt has said so already.
        if let Some(last) = turn.last() {
            ids.extend((*last != self.special.end).then_some(self.special.end));
            ids.push(self.special.start);
            self.text(Role::Assistant.as_str(), &mut ids);
        }
        ids.push(self.special.channel);
        self.text(Channel::Final.as_str(), &mut ids);
        ids.push(self.special.message);
        ids
    }

    pub fn render(&self, conversation: &Conversation, past: PastAnalysis) -> Vec<u32> {
        let answered = match past {
            PastAnalysis::Drop => answered_messages(conversation),
            PastAnalysis::Keep => 0,
        };
        let functions = has_functions(conversation);
        let mut ids = Vec::new();
        for (index, message) in conversation.messages.iter().enumerate() {
            if index >= answered || !message.is_on(&Channel::Analysis) {
                self.render_message(message, functions, &mut ids);
            }
        }
        ids
    }

    /// As `render`, but a final answer at the end closes with `<|return|>`, as a model is to close it.
    pub fn render_for_training(&self, conversation: &Conversation, past: PastAnalysis) -> Vec<u32> {
        let mut ids = self.render(conversation, past);
        let answer = |message: &Message| message.author == Role::Assistant && message.is_on(&Channel::Final);
        if let (Some(end), true) = (ids.last_mut(), conversation.messages.last().is_some_and(answer)) {
            *end = self.special.return_;
        }
        ids
    }

    fn render_message(&self, message: &Message, functions: bool, ids: &mut Vec<u32>) {
        ids.push(self.special.start);
        self.render_header(message, ids);
        ids.push(self.special.message);
        self.text(&content_text(&message.content, functions), ids);
        ids.push(match (message.author, &message.recipient) {
            (Role::Assistant, Some(_)) => self.special.call,
            _ => self.special.end,
        });
    }

    /// The parts are encoded one by one: joined first, they could give other tokens.
    fn render_header(&self, message: &Message, ids: &mut Vec<u32>) {
        match (message.author, &message.name) {
            (Role::Tool, Some(name)) => self.text(name, ids),
            (role, None) => self.text(role.as_str(), ids),
            (role, Some(name)) => {
                self.text(role.as_str(), ids);
                self.text(&format!(":{name}"), ids);
            }
        }
        if let Some(recipient) = message.recipient.as_deref().filter(|recipient| *recipient != "all") {
            self.text(&format!(" to={recipient}"), ids);
        }
        if let Some(channel) = &message.channel {
            ids.push(self.special.channel);
            self.text(channel.as_str(), ids);
        }
        self.render_content_type(message, ids);
    }

    fn render_content_type(&self, message: &Message, ids: &mut Vec<u32>) {
        match &message.content_type {
            None => {}
            Some(kind) if kind.constrained => {
                self.text(" ", ids);
                ids.push(self.special.constrain);
                self.text(&kind.format, ids);
            }
            Some(kind) => self.text(&format!(" {}", kind.format), ids),
        }
    }

    fn text(&self, text: &str, ids: &mut Vec<u32>) {
        self.tokenizer.encode_plain_into(text, ids);
    }
}

/// How many messages belong to turns that have their answer: those up to the last one on final.
fn answered_messages(conversation: &Conversation) -> usize {
    conversation.messages.iter().rposition(|message| message.is_on(&Channel::Final)).unwrap_or(0)
}

fn has_functions(conversation: &Conversation) -> bool {
    conversation.messages.iter().any(|message| match &message.content {
        Content::Developer(developer) => !developer.tools.is_empty(),
        Content::System(_) | Content::Text(_) => false,
    })
}

fn content_text(content: &Content, functions: bool) -> std::borrow::Cow<'_, str> {
    match content {
        Content::System(system) => system_text(system, functions).into(),
        Content::Developer(developer) => developer_text(developer).into(),
        Content::Text(text) => text.into(),
    }
}

fn system_text(system: &SystemContent, functions: bool) -> String {
    let mut about = format!("{}\nKnowledge cutoff: {}", system.identity, system.knowledge_cutoff);
    if let Some(date) = &system.current_date {
        about.push_str("\nCurrent date: ");
        about.push_str(date);
    }
    let mut sections = vec![about, format!("Reasoning: {}", system.effort.as_str())];
    if !system.tools.is_empty() {
        sections.push(tools::section(&system.tools));
    }
    if !system.valid_channels.is_empty() {
        sections.push(channels_text(system, functions));
    }
    sections.join("\n\n")
}

fn channels_text(system: &SystemContent, functions: bool) -> String {
    let names: Vec<&str> = system.valid_channels.iter().map(Channel::as_str).collect();
    let names = names.join(", ");
    let mut text = format!("# Valid channels: {names}. Channel must be included for every message.");
    if functions {
        text.push_str("\nCalls to these tools must go to the commentary channel: 'functions'.");
    }
    text
}

fn developer_text(developer: &DeveloperContent) -> String {
    let mut sections = Vec::new();
    if let Some(instructions) = &developer.instructions {
        sections.push(format!("# Instructions\n\n{instructions}"));
    }
    if !developer.tools.is_empty() {
        let (name, description) = (FUNCTIONS.to_owned(), developer.tools_description.clone());
        let tools = developer.tools.clone();
        sections.push(tools::section(&[ToolNamespace { name, description, tools }]));
    }
    sections.extend(developer.response_format.as_ref().map(response_format_text));
    sections.join("\n\n")
}

/// As the format guide writes it, at the end of the developer's message. The library has no words for it.
fn response_format_text(format: &ResponseFormat) -> String {
    let description = format.description.as_deref().unwrap_or_default();
    let description: String = description.lines().map(|line| format!("// {line}\n")).collect();
    format!("# Response Formats\n\n## {}\n\n{description}{}", format.name, format.schema)
}
