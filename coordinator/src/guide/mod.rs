//! What keeps an answer to a form: which tokens may come next in one sequence.
//!
//! A client says the form (`Form`): a JSON schema, a regular expression or a grammar for the answer, tools
//! whose arguments must follow their schemas, a call that must be made. `Guides` makes a `Pattern` of it, once
//! for a request, and the pattern gives each of its sequences a `Guide`. A form binds only the bodies of
//! messages and what a header may say; the model thinks freely before.
//!
//! Nothing here samples, and nothing knows of HTTP: errors carry the path of the parameter, as the client
//! wrote it.

mod body;
mod compiler;
mod form;
mod headers;
mod shelf;
mod turn;
mod vocabulary;

use std::sync::{Arc, Mutex, OnceLock};

use flotilla_shared::TokenId;
use flotilla_shared::step::TokenMask;
use tokio::sync::{Semaphore, oneshot};

use crate::harmony::Harmony;
use compiler::Compiler;
pub use form::{Form, FormError, Grammar, Source, ToolChoice, ToolForm};
use shelf::Shelf;
pub use turn::Pattern;

/// Grammars that are compiled at once; each takes a processor for some milliseconds.
const COMPILING_MAX: usize = 2;
/// Rules name each other by the thousand, and llguidance compiles them by recursion. All that the tests have
/// tried was compiled in 24 MiB (2026-11-27, debug build). Pages that are not touched cost nothing.
const COMPILE_STACK_BYTES: usize = 96 << 20;

/// Follows one sequence, token by token. The driver asks for a mask before each token is sampled, off the
/// threads that serve.
pub trait Guide: Send {
    /// Takes in a token that was generated.
    fn advance(&mut self, token: TokenId);

    /// The tokens that may come next; `None`: all of them. Never an empty one.
    fn mask(&mut self) -> Option<TokenMask>;
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
}

impl Guides {
    pub fn new(harmony: Harmony) -> Guides {
        let shared = Shared {
            harmony,
            compiler: OnceLock::new(),
            shelf: Mutex::default(),
            compiling: Arc::new(Semaphore::new(COMPILING_MAX)),
        };
        Guides { shared: Arc::new(shared) }
    }

    /// The pattern of a chat's turn, which begins behind `<|start|>assistant`. None: nothing is bound.
    pub async fn turn(&self, form: Form) -> Result<Option<Pattern>, FormError> {
        form.check()?;
        if form.is_free() {
            return Ok(None);
        }
        self.off_thread(move |shared| shared.turn(&form)).await.map(Some)
    }

    /// The pattern of raw text: the grammar from its first token on, then `<|endoftext|>`.
    pub async fn text(&self, source: Source) -> Result<Pattern, FormError> {
        source.check()?;
        self.off_thread(move |shared| shared.text(&source)).await
    }

    async fn off_thread(
        &self,
        make: impl FnOnce(&Shared) -> Result<Pattern, FormError> + Send + 'static,
    ) -> Result<Pattern, FormError> {
        let shared = Arc::clone(&self.shared);
        let permit = Arc::clone(&shared.compiling).acquire_owned().await.expect("it is never closed");
        let (done, made) = oneshot::channel();
        let work = move || {
            let _permit = permit;
            // The request may be gone by now.
            let _ = done.send(make(&shared));
        };
        let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(COMPILE_STACK_BYTES);
        thread.spawn(work).map_err(|error| FormError::unmade(error.to_string()))?;
        made.await.unwrap_or_else(|_| Err(FormError::unmade("its thread ended".to_owned())))
    }
}
