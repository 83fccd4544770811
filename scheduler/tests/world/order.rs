//! In which order those who wait must be let in, as far as the world knows it: all but the shares of clients, and whether
//! one fits. Who does not fit holds up all behind it, so nobody behind it is let in.

use super::{Client, World};
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{SequenceId, StepPlan, TokenId};

impl World {
    /// Nobody who could come stands before one who is let in. Before the workers hear of the plan.
    pub(super) fn check_order(&mut self, plan: &StepPlan) {
        let let_in: Vec<SequenceId> = plan.admit.iter().map(|admission| admission.sequence).collect();
        let left = || self.clients.keys().filter(|id| self.waits(id, plan) && !let_in.contains(id));
        for (at, first) in let_in.iter().enumerate().filter(|_| self.on_trial.is_none()) {
            for other in let_in[at + 1..].iter().chain(left()) {
                let goes_before = self.clients[other].goes_before(&self.clients[first]);
                assert!(!goes_before || self.cannot_come(other, plan), "{first} let in before {other}");
            }
        }
        for id in &let_in {
            self.clients.get_mut(id).expect("a client that was let in").ran = true;
        }
    }

    fn waits(&self, id: &SequenceId, plan: &StepPlan) -> bool {
        self.clients[id].end.is_none() && !self.runs(id, plan)
    }

    fn runs(&self, id: &SequenceId, plan: &StepPlan) -> bool {
        let workers = self.workers.as_ref().expect("a step for a group that exists");
        workers.held.contains_key(id) && !plan.release.contains(id)
    }

    /// Its mask is being made, or another who runs may be computing what it begins with.
    fn cannot_come(&self, id: &SequenceId, plan: &StepPlan) -> bool {
        let begins = |id| self.clients[id].tokens().take(BLOCK_TOKENS).collect::<Vec<_>>();
        let is_let_in = |id: &SequenceId| plan.admit.iter().any(|admission| admission.sequence == *id);
        let others = self.clients.keys().filter(|other| *other != id);
        let mut running = others.filter(|other| self.runs(other, plan) || is_let_in(other));
        let awaits = self.settings.prefix_cache && running.any(|other| begins(other) == begins(id));
        self.masks_due.contains(id) || awaits
    }
}

impl Client {
    /// Whether it must: between new ones of two clients their shares decide.
    fn goes_before(&self, other: &Client) -> bool {
        let kind = |it: &Client| (it.request.priority, !it.ran);
        let is_queue = self.ran || self.request.client == other.request.client;
        kind(self) < kind(other) || kind(self) == kind(other) && is_queue && self.arrival < other.arrival
    }

    fn tokens(&self) -> impl Iterator<Item = TokenId> {
        self.request.prompt.iter().chain(&self.emitted).copied()
    }
}
