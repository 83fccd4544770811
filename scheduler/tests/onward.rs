//! A sequence that goes on from what another generated: its prompt has those tokens, and they count as generated.

use flotilla_scheduler::{Action, Event, FinishReason, Request, Scheduler, Settings, Usage};
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, KvBlocks, Sampling, SequenceId, StepOutcome};
use std::time::Duration;

const NOW: Duration = Duration::ZERO;

#[test]
fn what_was_said_counts_for_penalties_limit_and_usage() {
    let mut scheduler = Scheduler::new(Settings::default()).unwrap();
    let kv_blocks = KvBlocks::plain(100);
    scheduler.handle(NOW, Event::GroupFormed { epoch: Epoch(1), kv_blocks, stages: 1 });
    let sampling = Sampling { presence_penalty: 1.0, ..Sampling::default() };
    let sequence = SequenceId(1);
    let prompt = vec![1, 2, 3, 4, 5];
    let request = Request {
        sequence,
        prompt: prompt.clone(),
        said: Some(2),
        sampling,
        tokens_max: 3,
        ..Request::default()
    };
    scheduler.handle(NOW, Event::Arrived(request));
    let Some(Action::Step(plan)) = scheduler.poll() else { panic!("a step") };
    assert_eq!((&plan.admit[0].context, plan.admit[0].generated), (&prompt, 2));
    let sampled = vec![Sampled { sequence, token: 6, logprobs: None }];
    let outcome = StepOutcome { epoch: plan.epoch, step: plan.step, sampled, ..StepOutcome::default() };
    scheduler.handle(NOW, Event::Stepped(outcome));
    let ended = std::iter::from_fn(|| scheduler.poll()).find_map(|action| match action {
        Action::Finish { reason, usage, .. } => Some((reason, usage)),
        _ => None,
    });
    let usage = Usage { prompt_tokens: 3, completion_tokens: 3, ..Usage::default() };
    assert_eq!(ended, Some((FinishReason::Length, usage)));
}

/// The queue is full, and the one that waits came before.
#[test]
fn what_goes_on_does_not_wait_behind_those_that_never_ran() {
    let mut scheduler = Scheduler::new(Settings { waiting_max: 1, ..Settings::default() }).unwrap();
    let arrive = |scheduler: &mut Scheduler, sequence, said| {
        let prompt = vec![sequence as u32; 5];
        let request =
            Request { sequence: SequenceId(sequence), prompt, said, tokens_max: 9, ..Request::default() };
        scheduler.handle(NOW, Event::Arrived(request));
    };
    [(1, None), (2, Some(0)), (3, None)]
        .into_iter()
        .for_each(|(sequence, said)| arrive(&mut scheduler, sequence, said));
    assert!(matches!(scheduler.poll(), Some(Action::Reject { sequence: SequenceId(3), .. })));
    scheduler.handle(NOW, Event::GroupFormed { epoch: Epoch(1), kv_blocks: KvBlocks::plain(100), stages: 1 });
    let Some(Action::Step(plan)) = scheduler.poll() else { panic!("a step") };
    let order: Vec<u64> = plan.admit.iter().map(|admission| admission.sequence.0).collect();
    assert_eq!(order, [2, 1]);
}
