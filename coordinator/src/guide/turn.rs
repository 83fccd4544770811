//! One turn of the assistant under a form: messages of thought as many as it likes, then one message that
//! ends the turn, an answer or a call, whose text is bound where the form says so. Where a call must be made
//! there is one thought at most and no preamble: a model that would not call puts it off for ever.

use std::sync::{Arc, MutexGuard};

use flotilla_shared::TokenId;
use flotilla_shared::step::TokenMask;

use super::body::Body;
use super::compiler::{Compiled, Compiler};
use super::form::{Form, FormError, Grammar, Source, ToolForm};
use super::headers::{Headers, Message, OPENING, Place};
use super::shelf::Shelf;
use super::vocabulary::Vocabulary;
use super::{Exhausted, Guide, Progress, Shared};

/// What all sequences of one request are bound to.
#[derive(Clone)]
pub struct Pattern {
    plan: Arc<Plan>,
}

struct Plan {
    vocabulary: Arc<Vocabulary>,
    /// None: raw text, all of it the answer.
    headers: Option<Headers>,
    /// Those behind a thought, where they are others.
    behind_thought: Option<Headers>,
    answer: Option<Arc<Compiled>>,
    /// By the place of the tool in the form; none: its arguments are free.
    calls: Vec<Option<Arc<Compiled>>>,
}

/// What a pattern is made of.
pub(super) enum Wanted {
    Turn(Form),
    Text(Source),
}

impl Shared {
    /// Of what was compiled before. None: something of it was not.
    pub(super) fn shelved(&self, wanted: &Wanted) -> Option<Pattern> {
        // Without a compiler there is nothing on the shelf.
        self.compiler.get()?;
        self.pattern(wanted, |source| self.shelf().get(&source.grammar).ok_or(())).ok()
    }

    pub(super) fn compile(&self, wanted: &Wanted, progress: &Progress) -> Result<Pattern, FormError> {
        self.pattern(wanted, |source| self.compiled(source, progress))
    }

    fn pattern<E>(
        &self,
        wanted: &Wanted,
        find: impl FnMut(&Source) -> Result<Arc<Compiled>, E>,
    ) -> Result<Pattern, E> {
        let plan = match wanted {
            Wanted::Turn(form) => self.turn(form, find)?,
            Wanted::Text(source) => self.text(source, find)?,
        };
        Ok(Pattern { plan: Arc::new(plan) })
    }

    fn turn<E>(
        &self,
        form: &Form,
        mut find: impl FnMut(&Source) -> Result<Arc<Compiled>, E>,
    ) -> Result<Plan, E> {
        let answer = form.response.as_ref().map(&mut find).transpose()?;
        let mut calls = vec![None; form.tools.len()];
        for (place, tool) in form.bound() {
            calls[place] = Some(find(&arguments(tool))?);
        }
        let vocabulary = Arc::clone(&self.compiler().vocabulary);
        let headers = Some(headers(&vocabulary, form));
        let behind_thought = form.must_call().then(|| call_headers(&vocabulary, form));
        Ok(Plan { vocabulary, headers, behind_thought, answer, calls })
    }

    fn text<E>(
        &self,
        source: &Source,
        mut find: impl FnMut(&Source) -> Result<Arc<Compiled>, E>,
    ) -> Result<Plan, E> {
        let answer = Some(find(source)?);
        let vocabulary = Arc::clone(&self.compiler().vocabulary);
        Ok(Plan { vocabulary, headers: None, behind_thought: None, answer, calls: Vec::new() })
    }

    pub(super) fn compiler(&self) -> &Compiler {
        self.compiler.get_or_init(|| Compiler::new(Vocabulary::new(&self.harmony)))
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().expect("nothing panics while it is held")
    }

    fn compiled(&self, source: &Source, progress: &Progress) -> Result<Arc<Compiled>, FormError> {
        progress.begin(&source.path)?;
        if let Some(compiled) = self.shelf().get(&source.grammar) {
            return Ok(compiled);
        }
        let compiled = self.compiler().compile(&source.grammar, &|| progress.is_awaited());
        let compiled = Arc::new(compiled.map_err(|complaint| complaint.of(&source.path))?);
        self.shelf().put(&source.grammar, Arc::clone(&compiled));
        Ok(compiled)
    }
}

impl Wanted {
    /// Of what is compiled for it, if nothing of it was before.
    pub(super) fn source_bytes(&self) -> usize {
        match self {
            Wanted::Turn(form) => form.source_bytes(),
            Wanted::Text(source) => source.grammar.source().len(),
        }
    }
}

/// A function without parameters takes `{}`.
fn arguments(tool: &ToolForm) -> Source {
    let none = || serde_json::json!({"type": "object", "properties": {}, "additionalProperties": false});
    let schema = tool.parameters.clone().unwrap_or_else(none);
    let grammar = match tool.strict {
        true => Grammar::Json { schema, strict: true },
        false => Grammar::Arguments(schema),
    };
    Source { path: tool.path.clone(), grammar }
}

fn call_headers(vocabulary: &Vocabulary, form: &Form) -> Headers {
    let mut headers = Headers::new(vocabulary);
    for (place, tool) in form.callable() {
        headers.allow_call(vocabulary, place, &tool.name);
    }
    headers
}

/// Preambles are left out where the answer has a form: clients read both as one text.
fn headers(vocabulary: &Vocabulary, form: &Form) -> Headers {
    let mut headers = call_headers(vocabulary, form);
    headers.allow_reasoning(vocabulary);
    if !form.must_call() {
        if form.response.is_none() && form.callable().next().is_some() {
            headers.allow_preamble(vocabulary);
        }
        let json = |source: &Source| matches!(source.grammar, Grammar::Json { .. });
        headers.allow_answer(vocabulary, form.response.as_ref().is_some_and(json));
    }
    headers
}

impl Pattern {
    /// One for each sequence, at its beginning.
    pub fn guide(&self) -> Box<dyn Guide> {
        let plan = Arc::clone(&self.plan);
        let phase = match &plan.headers {
            Some(_) => Phase::Header { place: OPENING, thought: false },
            None => plan.text(plan.answer.as_ref(), plan.vocabulary.special.end_of_text),
        };
        Box::new(Turn { plan, phase })
    }
}

struct Turn {
    plan: Arc<Plan>,
    phase: Phase,
}

enum Phase {
    Header {
        place: Place,
        /// Behind a thought.
        thought: bool,
    },
    /// Text that nothing binds, up to the token that ends it.
    Free {
        closing: TokenId,
        mask: TokenMask,
    },
    Bound(Box<Body>),
    Over,
}

impl Guide for Turn {
    fn advance(&mut self, token: TokenId) {
        let next = match &mut self.phase {
            Phase::Header { place, thought } => Some(self.plan.behind_header(*place, *thought, token)),
            Phase::Free { closing, .. } => (token == *closing).then(|| self.plan.behind_message(token)),
            Phase::Bound(body) if token == body.closing() => Some(Phase::Over),
            Phase::Bound(body) => {
                body.advance(token);
                None
            }
            Phase::Over => None,
        };
        if let Some(next) = next {
            self.phase = next;
        }
    }

    fn mask(&mut self) -> Result<Option<TokenMask>, Exhausted> {
        Ok(Some(match &mut self.phase {
            Phase::Header { place, thought } => match self.plan.headers(*thought) {
                Some(headers) => headers.mask(*place),
                None => return Ok(None),
            },
            Phase::Free { mask, .. } => mask.clone(),
            Phase::Bound(body) => body.mask()?,
            Phase::Over => TokenMask::from_iter([self.plan.vocabulary.special.return_]),
        }))
    }

    fn binds(&self) -> bool {
        matches!(self.phase, Phase::Bound(_))
    }
}

impl Plan {
    fn headers(&self, thought: bool) -> Option<&Headers> {
        self.behind_thought.as_ref().filter(|_| thought).or(self.headers.as_ref())
    }

    fn behind_header(&self, place: Place, thought: bool, token: TokenId) -> Phase {
        let Some((headers, place)) =
            self.headers(thought).and_then(|headers| Some((headers, headers.step(place, token)?)))
        else {
            tracing::warn!(token, "a token left the headers that the form allows; the turn ends here");
            return Phase::Over;
        };
        let special = &self.vocabulary.special;
        match headers.opens(place) {
            None => Phase::Header { place, thought },
            Some(Message::Reasoning | Message::Preamble) => self.text(None, special.end),
            Some(Message::Answer) => self.text(self.answer.as_ref(), special.return_),
            Some(Message::Call(tool)) => self.text(self.calls[tool].as_ref(), special.call),
        }
    }

    fn text(&self, grammar: Option<&Arc<Compiled>>, closing: TokenId) -> Phase {
        match grammar {
            Some(grammar) => {
                let vocabulary = Arc::clone(&self.vocabulary);
                Phase::Bound(Box::new(Body::new(grammar.start(), vocabulary, closing)))
            }
            None => Phase::Free { closing, mask: self.vocabulary.text_and(closing) },
        }
    }

    /// Behind a free message that `closing` ended.
    fn behind_message(&self, closing: TokenId) -> Phase {
        match self.headers(true) {
            Some(headers) if closing == self.vocabulary.special.end => {
                Phase::Header { place: headers.next(), thought: true }
            }
            Some(_) | None => Phase::Over,
        }
    }
}
