//! A model that knows nothing: it says what a test wants where the guide lets it, or whatever chance picks.

use std::sync::{Arc, LazyLock};

use flotilla_coordinator::guide::{Form, FormError, Grammar, Guide, Guides, Pattern, Source, ToolForm};
use flotilla_coordinator::harmony::Harmony;
use flotilla_coordinator::harmony::parse::Reply;
use flotilla_coordinator::tokenizer::Tokenizer;
use flotilla_shared::TokenId;
use flotilla_shared::sampling::mix;
use flotilla_shared::step::TokenMask;
use serde_json::Value;

pub static HARMONY: LazyLock<Harmony> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/small_tokenizer.json");
    Harmony::new(Arc::new(Tokenizer::from_file(path).unwrap())).unwrap()
});
pub static GUIDES: LazyLock<Guides> = LazyLock::new(|| Guides::new(HARMONY.clone()));

pub fn tokenizer() -> &'static Tokenizer {
    HARMONY.tokenizer()
}

pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

pub fn pattern(form: Form) -> Pattern {
    run(GUIDES.turn(form)).expect("a form that can be kept to").expect("something is bound")
}

pub fn refusal(form: Form) -> FormError {
    run(GUIDES.turn(form)).err().expect("a form that cannot be kept to")
}

pub fn source(grammar: Grammar) -> Source {
    Source { path: "response_format".to_owned(), grammar }
}

pub fn answer(grammar: Grammar) -> Form {
    Form { response: Some(source(grammar)), ..Form::default() }
}

pub fn json(schema: Value) -> Grammar {
    Grammar::Json { schema, strict: true }
}

pub fn tool(name: &str, parameters: Value) -> ToolForm {
    let path = "tools[0].function.parameters".to_owned();
    ToolForm { name: name.to_owned(), parameters: Some(parameters), strict: false, path }
}

/// The tokens that a mask allows. Each must have a piece, and there must be some.
pub fn allowed(mask: &TokenMask) -> Vec<TokenId> {
    let ids: Vec<TokenId> = (0..mask.words().len() as u32 * 32).filter(|id| mask.allows(*id)).collect();
    assert!(!ids.is_empty(), "a mask that allows nothing");
    assert!(ids.iter().all(|id| tokenizer().decode_bytes(*id).is_some()), "an id without a piece");
    ids
}

/// Allowed tokens as text, for tests of places where they are few.
pub fn choices(guide: &mut dyn Guide) -> Vec<String> {
    let mask = guide.mask().expect("it goes on").expect("something is bound");
    allowed(&mask).into_iter().map(|id| tokenizer().decode(&[id])).collect()
}

/// Says `text`, which must be allowed token by token as the tokenizer spells it.
#[track_caller]
pub fn say(guide: &mut dyn Guide, text: &str) {
    for token in tokenizer().encode_special(text) {
        let mask = guide.mask().expect("it goes on").expect("something is bound");
        assert!(mask.allows(token), "{:?} of {text:?} is not allowed", tokenizer().decode(&[token]));
        guide.advance(token);
    }
}

/// Whether `text` may come next, as the tokenizer spells it, from here on. The guide is not used up: `again`
/// brings it to the same place.
pub fn may_say(again: impl Fn() -> Box<dyn Guide>, text: &str) -> bool {
    let mut guide = again();
    tokenizer().encode_special(text).into_iter().all(|token| {
        let allows = guide.mask().expect("it goes on").is_none_or(|mask| mask.allows(token));
        guide.advance(token);
        allows
    })
}

/// Picks among allowed tokens by chance. From `hurry` tokens on it takes special tokens and what closes a
/// JSON value where it can, as a model does that wants to come to an end.
pub struct Chance {
    pub seed: u64,
    pub hurry: usize,
}

/// Far more than a hurried model needs for any form here.
const TOKENS_MAX: usize = 3000;

impl Chance {
    /// The tokens up to and with the one that stops.
    pub fn write(&mut self, guide: &mut dyn Guide) -> Vec<TokenId> {
        let mut tokens = Vec::new();
        loop {
            let mask = guide.mask().expect("it goes on").expect("something is bound");
            let token = self.pick(&allowed(&mask), tokens.len() >= self.hurry);
            guide.advance(token);
            tokens.push(token);
            if self.stops(token) {
                return tokens;
            }
            assert!(tokens.len() < TOKENS_MAX, "no end: {:?}", tokenizer().decode(&tokens));
        }
    }

    /// Some tokens of it, or fewer if it stops or becomes too much.
    pub fn some(&mut self, guide: &mut dyn Guide, count: usize) {
        for written in 0..count {
            let Ok(mask) = guide.mask() else { return };
            let token = self.pick(&allowed(&mask.expect("something is bound")), written >= self.hurry);
            guide.advance(token);
            if self.stops(token) {
                return;
            }
        }
    }

    fn stops(&self, token: TokenId) -> bool {
        let special = HARMONY.special();
        [special.return_, special.call, special.end_of_text].contains(&token)
    }

    fn pick(&mut self, among: &[TokenId], hurried: bool) -> TokenId {
        self.seed = mix(self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15));
        let at = |among: &[TokenId]| among[(self.seed % among.len() as u64) as usize];
        if !hurried {
            return at(among);
        }
        let last = among.iter().filter(|id| self.stops(**id)).copied().collect::<Vec<_>>();
        let ends: Vec<TokenId> = among.iter().filter(|id| tokenizer().is_special(**id)).copied().collect();
        let closes =
            |id: &&TokenId| matches!(tokenizer().decode_bytes(**id), Some([b'}' | b']' | b'"' | b'/']));
        let closes: Vec<TokenId> = among.iter().filter(closes).copied().collect();
        // Chance now and then, or a hurried model could go round in circles.
        match [last, ends, closes].into_iter().find(|tokens| !tokens.is_empty()) {
            Some(tokens) if self.seed >> 32 & 7 != 0 => at(&tokens),
            _ => at(among),
        }
    }
}

/// What a client would make of these tokens.
pub fn reply(tokens: &[TokenId]) -> Reply {
    let mut parser = HARMONY.parser();
    for token in tokens {
        parser.push(*token);
    }
    parser.into_reply()
}
