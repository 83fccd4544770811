//! One sequence's tokens as what a client sees of them: reasoning, content, calls. A stream sends these
//! deltas one by one and a whole answer is their sum, so that both always say the same.

use std::sync::Arc;

use flotilla_shared::TokenId;
use flotilla_shared::step::Logprobs;

use super::content::Content;
use super::ending::Ending;
use super::logprobs::Likelihood;
use crate::harmony::Harmony;
use crate::harmony::parse::{Event, Lane, Parser};
use crate::tokenizer::{TextStream, Tokenizer};

#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    Reasoning(String),
    /// With the likelihoods of the tokens whose text begins here, where they were asked for.
    Content {
        text: String,
        logprobs: Vec<Likelihood>,
    },
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
    fn push(&mut self, token: TokenId, logprobs: Option<Logprobs>) -> Vec<Delta>;

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

    /// All that came is thought, of a model that has yet to answer.
    fn only_thought(&self) -> bool {
        false
    }

    /// The tokens that come next are of an answer: the model was made to go on.
    fn open_answer(&mut self) {}
}

/// Raw text.
pub struct TextReader {
    tokenizer: Arc<Tokenizer>,
    text: TextStream,
    content: Content,
    show_specials: bool,
    /// Tokens that end the answer and are no part of it.
    silent: Vec<TokenId>,
}

impl TextReader {
    /// `eos`: the model's own stop tokens.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        ending: &Ending,
        eos: &[TokenId],
        show_specials: bool,
    ) -> TextReader {
        let silent = if ending.include { Vec::new() } else { ending.stop_tokens(eos) };
        let content = Content::new(ending);
        TextReader { tokenizer, text: TextStream::default(), content, show_specials, silent }
    }
}

impl Reader for TextReader {
    fn push(&mut self, token: TokenId, logprobs: Option<Logprobs>) -> Vec<Delta> {
        self.content.count();
        let hidden = self.tokenizer.is_special(token) && !self.show_specials;
        if hidden || self.silent.contains(&token) {
            return Vec::new();
        }
        self.content.expect(token, logprobs);
        let text = self.text.push(&self.tokenizer, token);
        self.content.push(&text).into_iter().collect()
    }

    fn finish(&mut self) -> Vec<Delta> {
        let last = self.content.push(&self.text.finish());
        last.into_iter().chain(self.content.finish()).collect()
    }

    fn done(&self) -> bool {
        self.content.is_over()
    }
}

/// A harmony reply: analysis is reasoning; preambles and the answer are content; calls are calls if the
/// client would answer them. If it would not, what the model wrote is reasoning.
pub struct ChatReader {
    tokenizer: Arc<Tokenizer>,
    parser: Parser,
    /// What a model thinks, or hands to a tool, is not what `stop` and `logprobs` speak of.
    content: Content,
    /// Text tokens that end the answer and are no part of it.
    silent: Vec<TokenId>,
    /// Tokens of a header with their logprobs: without a message it turns out to be content.
    header: Vec<(TokenId, Logprobs)>,
    hears_calls: bool,
    calls: usize,
    /// The call that is being written has no arguments yet.
    call_is_bare: bool,
    content_lane: Option<Lane>,
    only_thought: bool,
    reasoning_tokens: usize,
}

impl ChatReader {
    pub fn new(harmony: &Harmony, ending: &Ending, hears_calls: bool) -> ChatReader {
        ChatReader {
            tokenizer: Arc::clone(harmony.tokenizer()),
            parser: harmony.parser(),
            content: Content::new(ending),
            silent: if ending.include { Vec::new() } else { ending.tokens.clone() },
            header: Vec::new(),
            hears_calls,
            calls: 0,
            call_is_bare: false,
            content_lane: None,
            only_thought: true,
            reasoning_tokens: 0,
        }
    }

    fn on_event(&mut self, event: Event) -> Vec<Delta> {
        match event {
            Event::Header(header) => {
                // A call that nobody hears is no answer either.
                let unheard = header.lane() == Lane::Call && !self.hears_calls;
                self.only_thought &= header.lane() == Lane::Reasoning || unheard;
                match header.function().filter(|_| self.hears_calls) {
                    Some(name) => self.begin_call(name.to_owned()),
                    None => Vec::new(),
                }
            }
            Event::Text { lane: Lane::Reasoning, text } => vec![Delta::Reasoning(text)],
            Event::Text { lane: lane @ (Lane::Preamble | Lane::Answer), text } => {
                self.on_content(lane, &text)
            }
            Event::Text { lane: Lane::Call, text } if self.hears_calls => vec![self.arguments(text)],
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
        for (token, logprobs) in std::mem::take(&mut self.header) {
            self.content.expect(token, Some(logprobs));
        }
        let separator = if self.content_lane.is_some_and(|last| last != lane) { "\n" } else { "" };
        self.content_lane = Some(lane);
        self.content.push(&format!("{separator}{text}")).into_iter().collect()
    }

    /// Of the message that is being written.
    fn lane(&self) -> Option<Lane> {
        self.parser.header().map(|header| header.lane())
    }

    /// Puts a text token where its text will turn up. Reasoning and calls are not content, and clients
    /// that join the tokens of `logprobs` expect the content: preambles and answer.
    fn expect(&mut self, token: TokenId, logprobs: Option<Logprobs>) {
        match self.lane() {
            Some(Lane::Preamble | Lane::Answer) => self.content.expect(token, logprobs),
            None => self.header.extend(logprobs.map(|logprobs| (token, logprobs))),
            Some(Lane::Reasoning | Lane::Call | Lane::Foreign) => {}
        }
    }

    fn on_events(&mut self, events: Vec<Event>) -> Vec<Delta> {
        if let [Event::Header(_)] = events.as_slice() {
            // It was a header, and nothing else.
            self.header.clear();
        }
        events.into_iter().flat_map(|event| self.on_event(event)).collect()
    }
}

impl Reader for ChatReader {
    fn push(&mut self, token: TokenId, logprobs: Option<Logprobs>) -> Vec<Delta> {
        self.content.count();
        if self.silent.contains(&token) {
            return Vec::new();
        }
        if !self.tokenizer.is_special(token) {
            self.expect(token, logprobs);
        }
        let was_reasoning = self.lane() == Some(Lane::Reasoning);
        let events = self.parser.push(token);
        let is_reasoning = self.lane() == Some(Lane::Reasoning);
        self.reasoning_tokens += usize::from(was_reasoning && is_reasoning);
        self.on_events(events)
    }

    fn finish(&mut self) -> Vec<Delta> {
        let events = self.parser.finish();
        let mut deltas = self.on_events(events);
        deltas.extend(self.content.finish());
        deltas
    }

    fn done(&self) -> bool {
        self.content.is_over()
    }

    fn reasoning_tokens(&self) -> usize {
        self.reasoning_tokens
    }

    fn calls(&self) -> usize {
        self.calls
    }

    fn only_thought(&self) -> bool {
        self.only_thought
    }

    fn open_answer(&mut self) {
        // A header, which says nothing by itself.
        let events = self.parser.open_answer();
        self.on_events(events);
    }
}
