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
    let request =
        Request { sequence, prompt: prompt.clone(), said: 2, sampling, tokens_max: 3, ..Request::default() };
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
