//! The guides of the sequences that have one. After a token its guide goes to a thread that may take its
//! time, and comes back with the mask of the next token. Those of one step go together; the scheduler waits
//! a little for all of them, so that the sequences stay together. What the masks mean is the guides' business.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use flotilla_shared::step::TokenMask;
use flotilla_shared::{SequenceId, StepPlan, TokenId};
use tokio::sync::mpsc;
use tracing::Span;

use crate::guide::{Exhausted, Guide};

/// A guide and the mask of the next token.
pub struct Ready {
    pub guide: Box<dyn Guide>,
    pub mask: Option<TokenMask>,
    /// Of the request that it serves: what is logged of it is told there.
    pub span: Span,
}

impl Ready {
    /// Takes its time: not for the threads that serve.
    pub fn prepare(mut guide: Box<dyn Guide>, span: Span) -> Result<Ready, Exhausted> {
        let mask = span.in_scope(|| guide.mask())?;
        Ok(Ready { guide, mask, span })
    }
}

/// One that came back.
pub struct Guided {
    pub sequence: SequenceId,
    /// None: the guide panicked.
    ready: Option<Result<Ready, Exhausted>>,
}

/// Guides that take in a token at once.
const SIDE_BY_SIDE: usize = 4;

type Leaving = (SequenceId, (Box<dyn Guide>, Span), TokenId);

fn advanced((sequence, (mut guide, span), token): Leaving) -> Guided {
    let advance = AssertUnwindSafe(|| {
        span.in_scope(|| guide.advance(token));
        Ready::prepare(guide, span)
    });
    // A mistake in one guide is no reason for the others not to come back.
    Guided { sequence, ready: catch_unwind(advance).ok() }
}

/// What became of a guide that came back.
pub enum Settled {
    /// The mask is there.
    Ready,
    /// The sequence cannot go on: by a mistake, or because its form is too much.
    Lost,
    Exhausted(Exhausted),
    /// The sequence has ended meanwhile.
    Ended,
}

pub struct Guides {
    /// `None` while it is away.
    guides: BTreeMap<SequenceId, Option<Ready>>,
    /// To set out, with the token that was sampled.
    leaving: Vec<Leaving>,
    back_in: mpsc::UnboundedSender<Guided>,
    back: mpsc::UnboundedReceiver<Guided>,
}

impl Guides {
    pub fn new() -> Guides {
        let (back_in, back) = mpsc::unbounded_channel();
        Guides { guides: BTreeMap::new(), leaving: Vec::new(), back_in, back }
    }

    pub fn begin(&mut self, sequence: SequenceId, ready: Ready) {
        self.guides.insert(sequence, Some(ready));
    }

    pub fn is_away(&self, sequence: SequenceId) -> bool {
        matches!(self.guides.get(&sequence), Some(None))
    }

    /// The guide of a sequence that goes elsewhere, if it has one.
    pub fn take(&mut self, sequence: SequenceId) -> Option<Ready> {
        self.guides.remove(&sequence).flatten()
    }

    pub fn end(&mut self, sequence: SequenceId) {
        self.guides.remove(&sequence);
    }

    /// Puts the masks into a step that samples for these sequences.
    pub fn mask(&self, plan: &mut StepPlan) {
        if self.guides.is_empty() {
            return;
        }
        for work in plan.work.iter_mut().filter(|work| work.sample) {
            if let Some(Some(ready)) = self.guides.get(&work.sequence) {
                work.mask = ready.mask.clone();
            }
        }
    }

    /// The guide of a sequence, if it has one, is to take in a token.
    pub fn advance(&mut self, sequence: SequenceId, token: TokenId) {
        if let Some(ready) = self.guides.get_mut(&sequence).and_then(Option::take) {
            self.leaving.push((sequence, (ready.guide, ready.span), token));
        }
    }

    /// All that take in a token go at once, a few side by side, and come back one by one.
    pub fn set_out(&mut self) {
        let mut leaving = std::mem::take(&mut self.leaving);
        let share = leaving.len().div_ceil(SIDE_BY_SIDE);
        while !leaving.is_empty() {
            let (own, back) = (leaving.split_off(leaving.len().saturating_sub(share)), self.back_in.clone());
            tokio::task::spawn_blocking(move || {
                // The driver may be gone meanwhile.
                own.into_iter().for_each(|leaving| _ = back.send(advanced(leaving)));
            });
        }
    }

    /// The next that comes back. May be dropped and asked for again.
    pub async fn come_back(&mut self) -> Guided {
        self.back.recv().await.expect("a sender is held here")
    }

    pub fn settle(&mut self, guided: Guided) -> Settled {
        match (self.guides.get_mut(&guided.sequence), guided.ready) {
            (None, _) => Settled::Ended,
            (Some(_), None) => Settled::Lost,
            (Some(_), Some(Err(exhausted))) => Settled::Exhausted(exhausted),
            (Some(place), Some(Ok(ready))) => {
                *place = Some(ready);
                Settled::Ready
            }
        }
    }
}
