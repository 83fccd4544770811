//! One sequence's tokens as what a client sees of them: reasoning, content, calls. A stream sends these
//! deltas one by one and a whole answer is their sum, so that both always say the same.

use std::sync::Arc;

use flotilla_shared::TokenId;

use super::stop::StopStrings;
use crate::harmony::parse::{Event, Lane, Parser};
use crate::tokenizer::{TextStream, Tokenizer};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    Reasoning(String),
    Content(String),
    /// A call begins; its arguments follow.
    Call {
        call: usize,
        name: String,
    },
    Arguments {
        call: usize,
        text: String,
    },
}

/// What reads a sequence's tokens.
pub trait Reader: Send {
    fn push(&mut self, token: TokenId) -> Vec<Delta>;

    /// The tokens ended. What was held back comes out.
    fn finish(&mut self) -> Vec<Delta>;

    /// A stop string came: nothing of interest can follow. (Of stop tokens the scheduler knows.)
    fn done(&self) -> bool;

    fn reasoning_tokens(&self) -> usize {
        0
    }

    /// Calls that the client is to answer.
    fn calls(&self) -> usize {
        0
    }
}

/// Raw text, special tokens left out.
pub struct TextReader {
    tokenizer: Arc<Tokenizer>,
    text: TextStream,
    stops: StopStrings,
}

impl TextReader {
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Vec<String>) -> TextReader {
        TextReader { tokenizer, text: TextStream::default(), stops: StopStrings::new(stops) }
    }
}

impl Reader for TextReader {
    fn push(&mut self, token: TokenId) -> Vec<Delta> {
        if self.tokenizer.is_special(token) {
            return Vec::new();
        }
        let text = self.text.push(&self.tokenizer, token);
        content(self.stops.push(&text))
    }

    fn finish(&mut self) -> Vec<Delta> {
        let mut text = self.stops.push(&self.text.finish());
        text.push_str(&self.stops.finish());
        content(text)
    }

    fn done(&self) -> bool {
        self.stops.hit()
    }
}

/// A harmony reply: analysis is reasoning; preambles and the answer are content; calls are calls if the
/// client offered tools. If it did not, it could not answer one, and what the model wrote is reasoning.
pub struct ChatReader {
    parser: Parser,
    /// In the content only: what a model thinks, or hands to a tool, is not what `stop` speaks of.
    stops: StopStrings,
    offered_tools: bool,
    calls: usize,
    /// The call that is being written has no arguments yet.
    call_is_bare: bool,
    content_lane: Option<Lane>,
    reasoning_tokens: usize,
}

impl ChatReader {
    pub fn new(parser: Parser, stops: Vec<String>, offered_tools: bool) -> ChatReader {
        ChatReader {
            parser,
            stops: StopStrings::new(stops),
            offered_tools,
            calls: 0,
            call_is_bare: false,
            content_lane: None,
            reasoning_tokens: 0,
        }
    }

    fn on_event(&mut self, event: Event) -> Vec<Delta> {
        match event {
            Event::Header(header) => match header.function().filter(|_| self.offered_tools) {
                Some(name) => self.begin_call(name.to_owned()),
                None => Vec::new(),
            },
            Event::Text { lane: Lane::Reasoning, text } => vec![Delta::Reasoning(text)],
            Event::Text { lane: lane @ (Lane::Preamble | Lane::Answer), text } => {
                self.on_content(lane, &text)
            }
            Event::Text { lane: Lane::Call, text } if self.offered_tools => vec![self.arguments(text)],
            Event::Text { lane: Lane::Call, text } => vec![Delta::Reasoning(text)],
            Event::Text { lane: Lane::Foreign, .. } => Vec::new(),
            // Clients parse the arguments as JSON, and an empty text is none.
            Event::End if self.call_is_bare => vec![self.arguments("{}".to_owned())],
            Event::End | Event::Stop(_) => Vec::new(),
        }
    }

    fn begin_call(&mut self, name: String) -> Vec<Delta> {
        self.calls += 1;
        self.call_is_bare = true;
        vec![Delta::Call { call: self.calls - 1, name }]
    }

    fn arguments(&mut self, text: String) -> Delta {
        self.call_is_bare = false;
        Delta::Arguments { call: self.calls - 1, text }
    }

    /// An answer behind a preamble begins a line of its own.
    fn on_content(&mut self, lane: Lane, text: &str) -> Vec<Delta> {
        let separator = if self.content_lane.is_some_and(|last| last != lane) { "\n" } else { "" };
        self.content_lane = Some(lane);
        content(self.stops.push(&format!("{separator}{text}")))
    }

    fn is_reasoning(&self) -> bool {
        self.parser.header().is_some_and(|header| header.lane() == Lane::Reasoning)
    }

    fn on_events(&mut self, events: Vec<Event>) -> Vec<Delta> {
        events.into_iter().flat_map(|event| self.on_event(event)).collect()
    }
}

impl Reader for ChatReader {
    fn push(&mut self, token: TokenId) -> Vec<Delta> {
        let was_reasoning = self.is_reasoning();
        let events = self.parser.push(token);
        self.reasoning_tokens += usize::from(was_reasoning && self.is_reasoning());
        self.on_events(events)
    }

    fn finish(&mut self) -> Vec<Delta> {
        let events = self.parser.finish();
        let mut deltas = self.on_events(events);
        deltas.extend(content(self.stops.finish()));
        deltas
    }

    fn done(&self) -> bool {
        self.stops.hit()
    }

    fn reasoning_tokens(&self) -> usize {
        self.reasoning_tokens
    }

    fn calls(&self) -> usize {
        self.calls
    }
}

fn content(text: String) -> Vec<Delta> {
    if text.is_empty() { Vec::new() } else { vec![Delta::Content(text)] }
}
