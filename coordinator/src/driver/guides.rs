//! The guides of the sequences that have one. After a token its guide goes to a thread that may take its
//! time, and comes back with the mask of the next token. Those of one step go together; the scheduler waits
//! a little for all of them, so that the sequences stay together. What the masks mean is the guides' business.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

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

    /// All that take in a token go at once, a few side by side, and come back one by one. None waits behind a slow one
    /// while another thread is free.
    pub fn set_out(&mut self) {
        let leaving = std::mem::take(&mut self.leaving);
        let threads = leaving.len().min(SIDE_BY_SIDE);
        let queue = Arc::new(Mutex::new(leaving.into_iter()));
        for _ in 0..threads {
            let (queue, back) = (queue.clone(), self.back_in.clone());
            let next = move || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            tokio::task::spawn_blocking(move || {
                while let Some(leaving) = next() {
                    // The driver may be gone meanwhile.
                    let _ = back.send(advanced(leaving));
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    const COUNT: usize = 8;

    /// Says that it took in its token; or waits until all others have said so.
    enum Told {
        Quick(Sender<()>),
        Slow(Receiver<()>),
    }

    impl Guide for Told {
        fn advance(&mut self, _: TokenId) {
            match self {
                Told::Quick(said) => said.send(()).expect("the slow one listens"),
                Told::Slow(said) => (1..COUNT).for_each(|_| {
                    said.recv_timeout(Duration::from_secs(20)).expect("nobody waits behind this one");
                }),
            }
        }

        fn mask(&mut self) -> Result<Option<TokenMask>, Exhausted> {
            Ok(None)
        }
    }

    #[tokio::test]
    async fn a_slow_one_holds_up_no_other() {
        for slow in [0, 3, COUNT - 1] {
            let mut guides = Guides::new();
            let (said_in, said) = channel();
            let mut said = Some(said);
            for at in 0..COUNT {
                let told = match said.take_if(|_| at == slow) {
                    Some(said) => Told::Slow(said),
                    None => Told::Quick(said_in.clone()),
                };
                let guide = Box::new(told) as Box<dyn Guide>;
                guides.begin(SequenceId(at as u64), Ready { guide, mask: None, span: Span::none() });
                guides.advance(SequenceId(at as u64), 1);
            }
            guides.set_out();
            for _ in 0..COUNT {
                let guided = guides.come_back().await;
                assert!(matches!(guides.settle(guided), Settled::Ready), "the slow one is the {slow}th");
            }
        }
    }
}
