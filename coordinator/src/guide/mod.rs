//! What keeps an answer to a form: which tokens may come next in one sequence.
//!
//! A client says the form (`Form`): a JSON schema, a regular expression or a grammar for the answer, tools
//! whose arguments must follow their schemas, a call that must be made. `Guides` makes a `Pattern` of it, once
//! for a request, and the pattern gives each of its sequences a `Guide`. A form binds only the bodies of
//! messages and what a header may say; the model thinks freely before.
//!
//! Nothing here samples, and nothing knows of HTTP: errors carry the path of the parameter, as the client
//! wrote it.

mod at_least;
mod body;
mod compiler;
mod form;
mod headers;
mod lax;
mod nullable;
mod progress;
mod shelf;
mod turn;
mod vocabulary;
mod walk;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use flotilla_shared::TokenId;
use flotilla_shared::step::TokenMask;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::harmony::Harmony;
use at_least::AtLeast;
use compiler::Compiler;
pub use form::{Fault, Form, FormError, Grammar, Source, ToolChoice, ToolForm};
use progress::{Progress, watched};
use shelf::Shelf;
pub use turn::Pattern;
use turn::Wanted;

/// Forms that are compiled at once; each takes a processor for some milliseconds. One that was given up keeps
/// its place until it ends: llguidance cannot be interrupted, but has limits of its own.
const COMPILING_MAX: usize = 2;
/// Long forms among them, which may take seconds: a short one need not wait behind these.
const COMPILING_LONG_MAX: usize = COMPILING_MAX - 1;
/// So long in source is a short form at most.
const SHORT_BYTES_MAX: usize = 8 << 10;
/// So long a form waits for a place among them.
const PLACE_WAIT: Duration = Duration::from_secs(30);
/// So long one form may take. llguidance's limits are met sooner on any machine that is not overrun.
pub const COMPILE_TIME_MAX: Duration = Duration::from_secs(5);
/// Rules name each other by the thousand, and llguidance compiles them by recursion. All that the tests have
/// tried was compiled in 24 MiB (2026-11-27, debug build). Pages that are not touched cost nothing.
const COMPILE_STACK_BYTES: usize = 96 << 20;

/// Follows one sequence, token by token. The driver asks for a mask before each token is sampled, off the
/// threads that serve.
pub trait Guide: Send {
    /// Takes in a token that was generated.
    fn advance(&mut self, token: TokenId);

    /// The tokens that may come next; `None`: all of them. Never an empty one.
    fn mask(&mut self) -> Result<Option<TokenMask>, Exhausted>;

    /// Whether no token should be sampled without its mask: here a form binds the text. Where none does tokens may be sampled
    /// ahead, and held against the mask when they come: a model seldom says what it may not.
    fn binds(&self) -> bool {
        true
    }
}

/// The form could not be followed any further, with half of the answer said: what comes next would take more
/// than its limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Exhausted {
    pub what: String,
}

/// Makes patterns over one vocabulary. Cheap to clone; one per server.
#[derive(Clone)]
pub struct Guides {
    shared: Arc<Shared>,
}

struct Shared {
    harmony: Harmony,
    /// Made for the first form: it takes a while, and a server may never need it.
    compiler: OnceLock<Compiler>,
    shelf: Mutex<Shelf>,
    compiling: Arc<Semaphore>,
    compiling_long: Arc<Semaphore>,
    /// Every token that has a piece; made when it is first asked for.
    pieces: OnceLock<TokenMask>,
    compile_time_max: Duration,
}

impl Guides {
    pub fn new(harmony: Harmony) -> Guides {
        Guides::within(harmony, COMPILE_TIME_MAX)
    }

    /// With another limit on the time that a form may take to be compiled.
    pub fn within(harmony: Harmony, compile_time_max: Duration) -> Guides {
        let shared = Shared {
            harmony,
            compiler: OnceLock::new(),
            shelf: Mutex::default(),
            compiling: Arc::new(Semaphore::new(COMPILING_MAX)),
            compiling_long: Arc::new(Semaphore::new(COMPILING_LONG_MAX)),
            pieces: OnceLock::new(),
            compile_time_max,
        };
        Guides { shared: Arc::new(shared) }
    }

    /// The pattern of a chat's turn, which begins behind `<|start|>assistant`. None: nothing is bound.
    pub async fn turn(&self, form: Form) -> Result<Option<Pattern>, FormError> {
        form.check()?;
        if form.is_free() {
            return Ok(None);
        }
        self.pattern(Wanted::Turn(form)).await.map(Some)
    }

    /// The pattern of raw text: the grammar from its first token on, then `<|endoftext|>`.
    pub async fn text(&self, source: Source) -> Result<Pattern, FormError> {
        source.check()?;
        self.pattern(Wanted::Text(source)).await
    }

    /// An answer of at least so many tokens, none of which is one of `ends`; it may be bound to a form besides.
    pub fn at_least(&self, tokens: usize, ends: &[TokenId], form: Option<Box<dyn Guide>>) -> Box<dyn Guide> {
        let pieces = self.shared.pieces.get_or_init(|| self.shared.harmony.tokenizer().piece_ids().collect());
        Box::new(AtLeast::new(tokens, ends, pieces, form))
    }

    /// What was compiled before waits for no place among those that are being compiled.
    async fn pattern(&self, wanted: Wanted) -> Result<Pattern, FormError> {
        let shared = Arc::clone(&self.shared);
        // Grammars are compared with all on the shelf, and may be long.
        let looked = tokio::task::spawn_blocking(move || (shared.shelved(&wanted), wanted)).await;
        match looked.map_err(|error| FormError::unmade(error.to_string()))? {
            (Some(pattern), _) => Ok(pattern),
            (None, wanted) => self.compile(wanted).await,
        }
    }

    async fn compile(&self, wanted: Wanted) -> Result<Pattern, FormError> {
        let shared = Arc::clone(&self.shared);
        let place = timeout(PLACE_WAIT, shared.place(wanted.source_bytes())).await;
        let place = place.map_err(|_| progress::busy())?;
        let (progress, watch) = watched();
        let work = move || {
            // What all forms share is not on the account of the first.
            shared.compiler();
            let made = shared.compile(&wanted, &progress);
            progress.done(made);
            drop(place);
        };
        let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(COMPILE_STACK_BYTES);
        thread.spawn(work).map_err(|error| FormError::unmade(error.to_string()))?;
        watch.pattern(self.shared.compile_time_max).await
    }
}

impl Shared {
    /// Held until it is dropped. A long form first waits for those of its kind.
    async fn place(&self, source_bytes: usize) -> (Option<OwnedSemaphorePermit>, OwnedSemaphorePermit) {
        let take = async |places: &Arc<Semaphore>| {
            Arc::clone(places).acquire_owned().await.expect("places are never closed")
        };
        let among_long = match source_bytes > SHORT_BYTES_MAX {
            true => Some(take(&self.compiling_long).await),
            false => None,
        };
        (among_long, take(&self.compiling).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;

    fn guides() -> Guides {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/small_tokenizer.json");
        Guides::new(Harmony::new(Arc::new(Tokenizer::from_file(path).unwrap())).unwrap())
    }

    fn answer(grammar: Grammar) -> Form {
        Form { response: Some(Source { path: "x".to_owned(), grammar }), ..Form::default() }
    }

    /// As long as others compile what they like, who asks for an object as always must not wait behind them.
    #[tokio::test]
    async fn what_was_compiled_before_needs_no_place() {
        let guides = guides();
        let object = || answer(Grammar::json_object());
        guides.turn(object()).await.unwrap();
        let _taken = guides.shared.compiling.acquire_many(COMPILING_MAX as u32).await.unwrap();
        assert!(guides.turn(object()).await.unwrap().is_some());
        assert!(guides.text(object().response.unwrap()).await.is_ok());
        let new = guides.turn(answer(Grammar::Choice(vec!["new".to_owned()])));
        assert!(timeout(Duration::from_millis(50), new).await.is_err(), "what is new waits");
    }

    /// Who asks for long forms, many at once, keeps nobody out who asks for a short one.
    #[tokio::test]
    async fn a_short_form_does_not_wait_behind_long_ones() {
        let guides = guides();
        let long = guides.shared.place(SHORT_BYTES_MAX + 1).await;
        let next = timeout(Duration::from_millis(50), guides.shared.place(SHORT_BYTES_MAX + 1)).await;
        assert!(next.is_err(), "one at a time");
        let text = |bytes: usize| answer(Grammar::Choice(vec!["x".repeat(bytes)]));
        assert!(guides.turn(text(9)).await.unwrap().is_some());
        let waits = guides.turn(text(SHORT_BYTES_MAX));
        assert!(timeout(Duration::from_millis(50), waits).await.is_err());
        drop(long);
        assert!(guides.turn(text(SHORT_BYTES_MAX)).await.unwrap().is_some());
    }
}
