//! Answers to a step that are none.

use crate::faked::{TOKEN, formation, outcome, ready_worker, sampled};
use flotilla_coordinator::fleet::{After, Fleet, Progress};
use flotilla_coordinator::group::Group;
use flotilla_proto::wire::{self, from_worker};
use flotilla_shared::step::SequenceWork;
use flotilla_shared::{Epoch, SequenceId, StepId, StepPlan};
use tokio::sync::watch;

/// What a worker answers the second step with, and what is said of it.
type Spoilt = (fn(wire::StepPlan) -> Vec<from_worker::Message>, &'static str);

/// Messages that are late, early, doubled, of another epoch or of another kind: none is taken for an answer.
#[tokio::test]
async fn what_is_no_answer_to_the_step_that_is_due_ends_the_group() {
    let answers: [Spoilt; 6] = [
        (|plan| old(plan, |outcome| outcome.epoch -= 1), "step 1 of epoch 2, where step 1 of epoch 3 is due"),
        (|plan| old(plan, |outcome| outcome.step -= 1), "step 0 of epoch 3, where step 1 of epoch 3 is due"),
        (|plan| old(plan, |outcome| outcome.step += 1), "step 2 of epoch 3, where step 1 of epoch 3 is due"),
        (
            |plan| match plan.step {
                // The one of the step before comes again.
                1 => [sampled(plan.clone()), sampled(plan)].concat(),
                _ => sampled(plan),
            },
            "step 0 of epoch 3, where step 1 of epoch 3 is due",
        ),
        (
            |plan| match plan.step {
                1 => sampled(plan),
                _ => {
                    vec![from_worker::Message::Ready(wire::Ready { epoch: plan.epoch, ..Default::default() })]
                }
            },
            "something else than its outcome",
        ),
        (
            |plan| match plan.step {
                1 => sampled(plan),
                _ => vec![from_worker::Message::Released(wire::Released { epoch: 2, held: None })],
            },
            "something else than its outcome",
        ),
    ];
    for (answer, words) in answers {
        let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
        let _steps = ready_worker(&fleet, answer).await;
        let progress = watch::Sender::new(Progress::Ready);
        let mut group = fleet.form(Epoch(3), &formation(), After::Nothing, &progress).await.unwrap();
        let work = vec![SequenceWork { sequence: SequenceId(1), tokens: vec![6], ..Default::default() }];
        group.send(&StepPlan { epoch: Epoch(3), step: StepId(1), work, ..Default::default() }).unwrap();
        let error = group.outcome().await.expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
        // It is let go like any other, and serves in the next group.
        drop(group);
        fleet.form(Epoch(4), &formation(), After::Nothing, &progress).await.unwrap();
    }
}

/// The first step is answered as it should be.
fn old(plan: wire::StepPlan, spoil: fn(&mut wire::StepOutcome)) -> Vec<from_worker::Message> {
    let first = plan.step == 1;
    let mut outcome = outcome(plan);
    if !first {
        spoil(&mut outcome);
    }
    vec![from_worker::Message::Outcome(outcome)]
}
