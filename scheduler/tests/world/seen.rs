//! What the scheduler wants, believed only if it can be.

use super::workers::Workers;
use super::{Client, End, World};
use flotilla_scheduler::{Action, FinishReason, Rejection, Trial, Usage};
use flotilla_shared::{SequenceId, StepPlan};

impl World {
    /// Polls until `None`, and believes nothing of it.
    pub fn settle_actions(&mut self) {
        while let Some(action) = self.scheduler.poll() {
            match action {
                Action::Step(plan) => self.see_step(plan),
                Action::Emit { sequence, token, .. } => {
                    let client = self.live(sequence);
                    client.see_token(token);
                    if client.request.guided {
                        self.masks_due.push(sequence);
                    }
                }
                Action::Finish { sequence, reason, usage } => self.see_end(sequence, reason, usage),
                Action::Reject { sequence, reason } => self.see_rejection(sequence, reason),
                Action::Abandon { epoch, fault } => {
                    if epoch == self.epoch() {
                        self.forget_group();
                    }
                    self.faults.push(fault);
                }
            }
        }
        self.capacity_tokens = self.workers.as_ref().map_or(usize::MAX, Workers::capacity_tokens);
        let idle = self.workers.is_some() && self.in_flight.is_empty() && self.masks_due.is_empty();
        assert!(!(idle && self.any_live()), "the group is idle and a client waits");
    }

    fn see_step(&mut self, plan: StepPlan) {
        let steps_max = self.settings.steps_in_flight_max + self.stages - 1;
        assert!(self.in_flight.len() < steps_max, "a step too many in flight");
        let tokens_max = self.settings.tokens_per_step_max;
        assert!(plan.token_count() <= tokens_max, "{} tokens in a step", plan.token_count());
        self.check_who_works(&plan);
        self.check_who_decodes(&plan);
        self.check_order(&plan);
        self.check_trial(&plan);
        let workers = self.workers.as_mut().expect("a step for a group that exists");
        let outcome = workers.run(&plan);
        assert!(workers.held.len() <= self.settings.sequences_max, "too many sequences run");
        self.plans.push(plan.clone());
        self.in_flight.push_back((plan, outcome));
    }

    /// Nobody who has ended, and everybody who decodes: a long prompt holds up nobody's next token. Who is
    /// guided, or guesses, may have to sit out a step; and where there are stages, who decodes waits for its turn.
    fn check_who_works(&self, plan: &StepPlan) {
        let works = |id: &SequenceId| plan.work.iter().any(|work| work.sequence == *id);
        for work in &plan.work {
            assert_eq!(self.clients[&work.sequence].end, None, "{} has ended, and works", work.sequence);
        }
        let is_certain = self.settings.speculation.is_none()
            && (self.stages == 1 || !self.clients.values().any(|client| client.request.guided));
        // A turn comes once a round. One that is moved to another lane may miss it, once more if it is moved again.
        let turns = if self.stages == 1 { 1 } else { 3 * self.stages };
        let before = self.plans.len().checked_sub(turns).filter(|_| is_certain);
        let Some((before, since)) = before.map(|at| self.plans[at..].split_first().expect("one at least"))
        else {
            return;
        };
        let worked = |id: &SequenceId| {
            let is_in = |plan: &StepPlan| {
                plan.release.contains(id) || plan.work.iter().any(|work| work.sequence == *id)
            };
            since.iter().any(is_in)
        };
        for id in before.work.iter().filter(|work| work.sample).map(|work| work.sequence) {
            let client = &self.clients[&id];
            let is_over =
                client.end.is_some() || client.request.guided || worked(&id) || self.has_all_tokens(id);
            assert!(works(&id) || plan.release.contains(&id) || is_over, "the decode of {id} missed a step");
        }
    }

    /// Whoever lacks one row, of a token that is known here, has it: with guesses and masks too. Where steps go round
    /// lanes, some other time.
    fn check_who_decodes(&self, plan: &StepPlan) {
        let workers = self.workers.as_ref().expect("a step for a group that exists");
        let running = workers.held.iter().filter(|(id, _)| !plan.release.contains(id) && self.stages == 1);
        for (id, held) in running {
            let client = &self.clients[id];
            let mut in_flight = self.in_flight.iter().flat_map(|(plan, _)| &plan.work);
            let is_known = !in_flight.any(|work| work.sequence == *id) && !self.masks_due.contains(id);
            let lacks_one = client.request.prompt.len() + client.emitted.len() == held.length + 1;
            let is_due = client.end.is_none() && is_known && lacks_one;
            let works = plan.work.iter().any(|work| work.sequence == *id);
            assert!(works || !is_due, "{id} lacks one row, and has none");
        }
    }

    /// Whether the last token that it may have is sampled, known here or not.
    fn has_all_tokens(&self, id: SequenceId) -> bool {
        let (request, workers) = (&self.clients[&id].request, self.workers.as_ref().expect("a group"));
        let length = workers.held[&id].length + 1;
        let length_max = workers.capacity_tokens().min(self.settings.context_max);
        length - request.prompt.len() >= request.tokens_max || length >= length_max
    }

    fn live(&mut self, sequence: SequenceId) -> &mut Client {
        let client = self.clients.get_mut(&sequence).expect("a word on a known sequence");
        assert_eq!(client.end, None, "a word on {sequence} after its last");
        client
    }

    fn see_end(&mut self, sequence: SequenceId, reason: FinishReason, usage: Usage) {
        let (context_max, now) = (self.settings.context_max, self.now);
        let capacity_tokens = self.capacity_tokens;
        let client = self.live(sequence);
        let tokens = client.request.prompt.len() + client.emitted.len();
        let Usage { prompt_tokens, completion_tokens, cached_tokens, queued } = usage;
        assert!(queued <= now, "{sequence} waited before the beginning");
        assert_eq!(prompt_tokens, client.request.prompt.len());
        assert_eq!(completion_tokens, client.emitted.len());
        assert!(cached_tokens < prompt_tokens.max(1), "a token at least is computed");
        match reason {
            FinishReason::Deadline => {
                assert!(
                    client.request.deadline.is_some_and(|deadline| deadline <= now),
                    "{sequence} had time"
                );
            }
            FinishReason::Cancelled => assert!(client.cancelled, "{sequence} was not cancelled"),
            FinishReason::StopToken(token) => {
                assert!(client.request.stop_tokens.contains(&token));
                assert_eq!(client.emitted.last(), Some(&token), "the stop token is emitted too");
                assert_eq!(client.emitted, client.expected);
            }
            FinishReason::Length => {
                let complete = client.emitted == client.expected
                    && (client.emitted.len() == client.request.tokens_max || tokens == context_max);
                assert!(complete || tokens >= capacity_tokens, "{sequence} ended by length after {tokens}");
            }
        }
        client.end = Some(End::Finished(reason, usage));
        self.on_trial.take_if(|trial| trial.sequence == sequence);
    }

    fn see_rejection(&mut self, sequence: SequenceId, reason: Rejection) {
        if reason != Rejection::DuplicateSequence {
            let client = self.live(sequence);
            assert!(client.emitted.is_empty());
            client.end = Some(End::Rejected);
        }
        self.rejections.push((sequence, reason));
    }

    fn check_trial(&self, plan: &StepPlan) {
        let Some(Trial { sequence: tried, alone }) = self.on_trial else { return };
        assert!(plan.admit.iter().all(|it| it.sequence == tried), "let in beside {tried}, on trial");
        let is_alone = plan.work.iter().all(|work| work.sequence == tried);
        assert!(is_alone || !alone, "others work beside {tried}, which is to be alone");
    }
}
