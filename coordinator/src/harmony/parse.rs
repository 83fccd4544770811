//! The tokens a model answers, read one by one: what they are to whom, as they come.
//!
//! A parser belongs to one request and begins right behind the prompt's `<|start|>assistant`. It never
//! fails: a model may write anything, and a client is better served with an odd message than with an
//! error. Where the published library refuses or shows the name of a stray special token as text, this
//! one goes on, and special tokens never reach a client as text:
//!
//! - `<|start|>` or `<|channel|>` inside a text ends that message and begins the next header;
//! - other special tokens inside a text are passed over, as are ids that have no piece;
//! - text without any header is an answer, and a header cut by a stop still makes a message;
//! - bare words in a header are never a recipient: `json` alone is a content type, where the library
//!   would call a tool of that name;
//! - after a stop nothing more is read.

use std::mem;
use std::sync::Arc;

use super::chat::FUNCTION_NAME_MAX;
pub use super::header::Header;
use super::header::HeaderText;
use super::{Channel, Harmony, Message, SpecialTokens};
use crate::tokenizer::{TextStream, Tokenizer};

/// Beyond this a header is no header, and what it holds is given out as text: an answer that forgot the
/// format shall neither stay silent nor be held without a limit. The longest function name fits, though
/// each of its characters be a token, with the words around it.
const HEADER_TOKENS_MAX: usize = FUNCTION_NAME_MAX + 64;

/// Stands between two messages of one lane, as each lane is handed to the client as one text.
const MESSAGE_SEPARATOR: &str = "\n";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A header is complete; the texts up to the next End are its message.
    Header(Header),
    /// Whole characters, in order. All texts of a lane, joined, are that lane of the reply.
    Text { lane: Lane, text: String },
    /// The message is complete.
    End,
    /// The model is done; tokens after this one are not read.
    Stop(Stop),
}

/// For whom a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// On analysis: the chain of thought.
    Reasoning,
    /// On commentary and to nobody: what the model tells the user before it calls tools.
    Preamble,
    /// On final.
    Answer,
    /// The arguments of a tool call.
    Call,
    /// A message that only others may write, such as a tool's result the model made up. Not to be shown.
    Foreign,
}

/// Why the model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Return,
    Call,
    EndOfText,
}

/// All that a model answered to one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    pub messages: Vec<Message>,
    pub reasoning: String,
    pub preamble: String,
    pub answer: String,
    pub calls: Vec<Call>,
    /// None: cut off before the model was done, its last message perhaps in the middle.
    pub stop: Option<Stop>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The function without its namespace; a built-in tool keeps its own (`browser.search`).
    pub name: String,
    /// As the model wrote them: JSON mostly, but not by force.
    pub arguments: String,
}

pub struct Parser {
    tokenizer: Arc<Tokenizer>,
    special: SpecialTokens,
    state: State,
    reply: Reply,
}

enum State {
    Header(HeaderText),
    Content(OpenMessage),
    Done,
}

struct OpenMessage {
    header: Header,
    lane: Lane,
    text: String,
    stream: TextStream,
}

/// What a token is to the format.
enum Mark {
    Start,
    Channel,
    Constrain,
    Message,
    End,
    Stop(Stop),
    Text,
    Stray,
}

impl Harmony {
    /// A parser for the tokens behind `render_for_completion`.
    pub fn parser(&self) -> Parser {
        Parser {
            tokenizer: Arc::clone(&self.tokenizer),
            special: self.special,
            state: State::Header(HeaderText::default()),
            reply: Reply::default(),
        }
    }
}

impl Parser {
    pub fn push(&mut self, id: u32) -> Vec<Event> {
        let mut events = Vec::new();
        match self.mark(id) {
            _ if matches!(self.state, State::Done) => {}
            Mark::Text => self.on_text(id, &mut events),
            Mark::Start => self.on_start(&mut events),
            Mark::Channel => self.on_channel(&mut events),
            Mark::Constrain => self.on_constrain(),
            Mark::Message => self.on_message(&mut events),
            Mark::End => self.on_end(&mut events),
            Mark::Stop(stop) => self.on_stop(stop, &mut events),
            Mark::Stray => {}
        }
        events
    }

    /// Behind a stop the turn goes on, with a message on final whose header is not told token by token.
    pub fn open_answer(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let header = Header { channel: Some(Channel::Final), ..Header::default() };
        self.state = State::Content(open(header, TextStream::default(), &mut events));
        self.reply.stop = None;
        events
    }

    /// No more tokens come: what was held back, and the end of a message that was cut.
    pub fn finish(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        match mem::replace(&mut self.state, State::Done) {
            State::Header(header) if header.looks_like_text() => {
                let message = self.open_headerless(header, &mut events);
                self.close(message, &mut events);
            }
            State::Content(message) => self.close(message, &mut events),
            State::Header(_) | State::Done => {}
        }
        events
    }

    pub fn into_reply(mut self) -> Reply {
        self.finish();
        self.reply
    }

    /// The header of the message whose text is coming, if one is.
    pub fn header(&self) -> Option<&Header> {
        match &self.state {
            State::Content(message) => Some(&message.header),
            State::Header(_) | State::Done => None,
        }
    }

    pub fn stop(&self) -> Option<Stop> {
        self.reply.stop
    }

    fn mark(&self, id: u32) -> Mark {
        let special = &self.special;
        match id {
            _ if id == special.start => Mark::Start,
            _ if id == special.channel => Mark::Channel,
            _ if id == special.constrain => Mark::Constrain,
            _ if id == special.message => Mark::Message,
            _ if id == special.end => Mark::End,
            _ if id == special.return_ => Mark::Stop(Stop::Return),
            _ if id == special.call => Mark::Stop(Stop::Call),
            _ if id == special.end_of_text => Mark::Stop(Stop::EndOfText),
            _ if self.tokenizer.is_special(id) => Mark::Stray,
            _ => Mark::Text,
        }
    }

    fn on_text(&mut self, id: u32, events: &mut Vec<Event>) {
        let bytes = self.tokenizer.decode_bytes(id).unwrap_or_default();
        match &mut self.state {
            State::Header(header) => {
                header.push_bytes(bytes);
                if header.tokens > HEADER_TOKENS_MAX {
                    self.give_up_header(events);
                }
            }
            State::Content(message) => {
                let text = message.stream.push_bytes(bytes);
                self.reply.extend(message, text, events);
            }
            State::Done => {}
        }
    }

    /// A header that `<|start|>` breaks off is dropped: nothing says what it was to become.
    fn on_start(&mut self, events: &mut Vec<Event>) {
        let next = State::Header(HeaderText::with_author());
        if let State::Content(message) = mem::replace(&mut self.state, next) {
            self.close(message, events);
        }
    }

    fn on_channel(&mut self, events: &mut Vec<Event>) {
        if matches!(self.state, State::Content(_)) {
            self.on_end(events);
        }
        if let State::Header(header) = &mut self.state {
            header.begin_channel();
        }
    }

    fn on_constrain(&mut self) {
        if let State::Header(header) = &mut self.state {
            header.begin_constrain();
        }
    }

    fn on_message(&mut self, events: &mut Vec<Event>) {
        if let State::Header(header) = &mut self.state {
            let header = mem::take(header).into_header();
            self.state = State::Content(open(header, TextStream::default(), events));
        }
    }

    fn on_end(&mut self, events: &mut Vec<Event>) {
        let next = State::Header(HeaderText::with_author());
        match mem::replace(&mut self.state, next) {
            State::Content(message) => self.close(message, events),
            State::Header(header) if !header.is_blank() => {
                let message = self.open_headerless(header, events);
                self.close(message, events);
            }
            State::Header(_) | State::Done => {}
        }
    }

    fn on_stop(&mut self, stop: Stop, events: &mut Vec<Event>) {
        self.on_end(events);
        self.state = State::Done;
        self.reply.stop = Some(stop);
        events.push(Event::Stop(stop));
    }

    fn give_up_header(&mut self, events: &mut Vec<Event>) {
        if let State::Header(header) = &mut self.state {
            let header = mem::take(header);
            self.state = State::Content(self.open_headerless(header, events));
        }
    }

    fn open_headerless(&mut self, mut header: HeaderText, events: &mut Vec<Event>) -> OpenMessage {
        let stream = mem::take(&mut header.stream);
        let (header, text) = header.into_header_and_text();
        let mut message = open(header, stream, events);
        self.reply.extend(&mut message, text, events);
        message
    }

    fn close(&mut self, mut message: OpenMessage, events: &mut Vec<Event>) {
        let rest = message.stream.finish();
        self.reply.extend(&mut message, rest, events);
        if let Some(function) = message.header.function() {
            let call = Call { name: function.to_owned(), arguments: message.text.clone() };
            self.reply.calls.push(call);
        }
        self.reply.messages.push(message.header.into_message(message.text));
        events.push(Event::End);
    }
}

fn open(header: Header, stream: TextStream, events: &mut Vec<Event>) -> OpenMessage {
    events.push(Event::Header(header.clone()));
    OpenMessage { lane: header.lane(), header, text: String::new(), stream }
}

impl Reply {
    fn extend(&mut self, message: &mut OpenMessage, text: String, events: &mut Vec<Event>) {
        if text.is_empty() {
            return;
        }
        let lane = message.lane;
        if let Some(joined) = self.lane_mut(lane) {
            if message.text.is_empty() && !joined.is_empty() {
                joined.push_str(MESSAGE_SEPARATOR);
                events.push(Event::Text { lane, text: MESSAGE_SEPARATOR.to_owned() });
            }
            joined.push_str(&text);
        }
        message.text.push_str(&text);
        events.push(Event::Text { lane, text });
    }

    fn lane_mut(&mut self, lane: Lane) -> Option<&mut String> {
        match lane {
            Lane::Reasoning => Some(&mut self.reasoning),
            Lane::Preamble => Some(&mut self.preamble),
            Lane::Answer => Some(&mut self.answer),
            Lane::Call | Lane::Foreign => None,
        }
    }
}
