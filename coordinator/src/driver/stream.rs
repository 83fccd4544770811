//! Who listens to a sequence, from the driver's side.

use tokio::sync::mpsc;
use tracing::Span;

use super::handle::{Admission, Refusal, TokenEvent};
use crate::traces::Context;

pub struct Stream {
    pub events: mpsc::UnboundedSender<TokenEvent>,
    /// Taken once the scheduler has accepted or rejected the sequence.
    pub admission: Option<Admission>,
    /// The request that it is of, if that is traced.
    pub trace: Option<Context>,
    /// What is logged of it bears the request's id.
    pub span: Span,
}

impl Stream {
    /// A client that no longer listens has a cancellation under way.
    pub fn say(&self, event: TokenEvent) {
        let _ = self.events.send(event);
    }

    /// Whether nobody listens any more.
    pub fn is_left(&self) -> bool {
        self.events.is_closed()
    }

    pub fn answer(&mut self, answer: Result<(), Refusal>) {
        if let Some(admission) = self.admission.take() {
            let _ = admission.send(answer);
        }
    }
}
