//! The headers that a turn may write, token by token, and which kind of message each opens. A header is
//! spelled as the renderer spells it, so that a model reads what it was trained on.

use std::collections::BTreeMap;

use flotilla_shared::TokenId;
use flotilla_shared::step::TokenMask;

use super::vocabulary::Vocabulary;
use crate::harmony::{Channel, FUNCTIONS, Role};

/// What a header opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Reasoning,
    Preamble,
    Answer,
    /// Of the tool at this place in the form.
    Call(usize),
}

/// A place between two tokens of a header.
pub type Place = usize;

/// Behind `<|start|>assistant`.
pub const OPENING: Place = 0;

/// A tree of tokens.
pub struct Headers {
    nodes: Vec<Node>,
    /// Where a message behind another begins: before `<|start|>assistant`.
    next: Place,
}

#[derive(Default)]
struct Node {
    steps: BTreeMap<TokenId, Place>,
    /// The header is complete: its text follows.
    opens: Option<Message>,
}

impl Headers {
    pub fn new(vocabulary: &Vocabulary) -> Headers {
        let mut headers = Headers { nodes: vec![Node::default()], next: OPENING };
        let start = [vec![vocabulary.special.start], vocabulary.encode(Role::Assistant.as_str())].concat();
        for token in start.into_iter().rev() {
            headers.nodes.push(Node { steps: BTreeMap::from([(token, headers.next)]), opens: None });
            headers.next = headers.nodes.len() - 1;
        }
        headers
    }

    pub fn allow_reasoning(&mut self, vocabulary: &Vocabulary) {
        self.allow(vocabulary, &Spelling::on(Channel::Analysis), Message::Reasoning);
    }

    pub fn allow_preamble(&mut self, vocabulary: &Vocabulary) {
        self.allow(vocabulary, &Spelling::on(Channel::Commentary), Message::Preamble);
    }

    /// `json`: models say so of a final message that follows a schema.
    pub fn allow_answer(&mut self, vocabulary: &Vocabulary, json: bool) {
        let plain = Spelling::on(Channel::Final);
        self.allow(vocabulary, &plain, Message::Answer);
        if json {
            self.allow(vocabulary, &Spelling { json: Json::Apart, ..plain }, Message::Answer);
        }
    }

    /// The recipient stands before the channel, as rendered, or behind it, as models write as well; and what
    /// they say of JSON differs.
    pub fn allow_call(&mut self, vocabulary: &Vocabulary, tool: usize, name: &str) {
        let recipient = format!(" to={FUNCTIONS}.{name}");
        for json in [Json::Apart, Json::Close, Json::Word, Json::Unsaid] {
            let call = Spelling { json, ..Spelling::on(Channel::Commentary) };
            let first = Spelling { before: recipient.clone(), ..call.clone() };
            self.allow(vocabulary, &first, Message::Call(tool));
            self.allow(vocabulary, &Spelling { behind: recipient.clone(), ..call }, Message::Call(tool));
        }
    }

    fn allow(&mut self, vocabulary: &Vocabulary, spelling: &Spelling, message: Message) {
        let mut place = OPENING;
        for token in spelling.tokens(vocabulary) {
            let fresh = self.nodes.len();
            place = *self.nodes[place].steps.entry(token).or_insert(fresh);
            if place == fresh {
                self.nodes.push(Node::default());
            }
        }
        self.nodes[place].opens = Some(message);
    }

    pub fn next(&self) -> Place {
        self.next
    }

    /// None: the token is of no header that is allowed.
    pub fn step(&self, place: Place, token: TokenId) -> Option<Place> {
        self.nodes[place].steps.get(&token).copied()
    }

    pub fn opens(&self, place: Place) -> Option<Message> {
        self.nodes[place].opens
    }

    pub fn mask(&self, place: Place) -> TokenMask {
        self.nodes[place].steps.keys().copied().collect()
    }
}

/// A header's parts in their order, which are encoded one by one as the renderer does.
#[derive(Clone)]
struct Spelling {
    /// A recipient before the channel, or behind it; or empty.
    before: String,
    channel: Channel,
    behind: String,
    json: Json,
}

/// How a header says that its text is JSON.
#[derive(Clone, Copy)]
enum Json {
    Unsaid,
    /// ` json`
    Word,
    /// ` <|constrain|>json`, as rendered.
    Apart,
    /// `<|constrain|>json`
    Close,
}

impl Spelling {
    fn on(channel: Channel) -> Spelling {
        Spelling { before: String::new(), channel, behind: String::new(), json: Json::Unsaid }
    }

    fn tokens(&self, vocabulary: &Vocabulary) -> Vec<TokenId> {
        let special = &vocabulary.special;
        let constrained = || [vec![special.constrain], vocabulary.encode("json")].concat();
        let mut tokens = vocabulary.encode(&self.before);
        tokens.push(special.channel);
        tokens.extend(vocabulary.encode(self.channel.as_str()));
        tokens.extend(vocabulary.encode(&self.behind));
        match self.json {
            Json::Unsaid => {}
            Json::Word => tokens.extend(vocabulary.encode(" json")),
            Json::Apart => tokens.extend([vocabulary.encode(" "), constrained()].concat()),
            Json::Close => tokens.extend(constrained()),
        }
        tokens.push(special.message);
        tokens
    }
}
