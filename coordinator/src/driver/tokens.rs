//! The tokens of one sequence, from its client's side.

use std::task::{Context, Poll};

use flotilla_shared::SequenceId;
use tokio::sync::mpsc;

use super::handle::{Command, Failure, TokenEvent};
use super::rescue::WeakReplicas;

/// The tokens of one sequence as they come. Dropping it cancels the sequence.
pub struct TokenStream {
    pub(super) events: mpsc::UnboundedReceiver<TokenEvent>,
    pub(super) sequence: SequenceId,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) replicas: WeakReplicas,
    /// It has ended, or never began.
    pub(super) done: bool,
}

impl TokenStream {
    pub async fn next(&mut self) -> TokenEvent {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<TokenEvent> {
        self.events.poll_recv(context).map(|event| {
            let event = event.unwrap_or(TokenEvent::Failed(Failure::Stopped));
            self.done |= !matches!(event, TokenEvent::Token { .. });
            event
        })
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        // Wherever it is on its way to, nobody listens.
        self.events.close();
        if !self.done {
            // The driver may be gone already, and the sequence with it.
            let _ = self.commands.send(Command::Cancel(self.sequence));
            // Wherever it has moved to. Others know nothing of it.
            for driver in self.replicas.all() {
                let _ = driver.send(Command::Cancel(self.sequence));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_scheduler::Rejection;

    use super::super::handle::{DriverHandle, Generation, Readiness, Refusal};
    use super::super::record::Recorder;
    use super::super::{Stats, now};
    use super::*;

    /// Many are refused where much is to be done.
    #[tokio::test]
    async fn a_refused_one_is_not_cancelled_and_one_that_is_left_is() {
        let (commands_in, mut commands) = mpsc::unbounded_channel();
        let readiness = tokio::sync::watch::channel(Readiness::Stopped).1;
        let stats = tokio::sync::watch::channel(Stats::default()).1;
        let figures = (stats, Recorder::new(now()));
        let driver = DriverHandle::new(
            commands_in,
            readiness,
            figures,
            WeakReplicas::default(),
            Default::default(),
            true,
        );
        let refusal = Refusal::Rejected(Rejection::QueueFull { waiting_max: 1 });
        for (answer, cancels) in [(Err(refusal), 0), (Ok(()), 1)] {
            let driver_of_client = driver.clone();
            let client = tokio::spawn(async move {
                drop(driver_of_client.submit(Generation::default()).await);
            });
            let Some(Command::Submit(submission)) = commands.recv().await else { panic!("it was submitted") };
            submission.admission.send(answer).unwrap();
            client.await.unwrap();
            assert_eq!(std::iter::from_fn(|| commands.try_recv().ok()).count(), cancels);
        }
    }
}
