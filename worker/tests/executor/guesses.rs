//! Tokens that the coordinator does not know: those that stand for the one sampled last, guesses at the next,
//! and what penalties and masks make of them. A row's logits have their peak at (token + position) mod V.

use crate::echo::{VOCAB, executor, one_hot, plan, work};
use flotilla_shared::step::{Admission, Logprobs, SequenceWork};
use flotilla_shared::{Sampling, SequenceId, StepOutcome, StepPlan};
use flotilla_worker::StepError;

/// What a step sampled.
fn tokens(executed: Result<StepOutcome, StepError>) -> Vec<u32> {
    executed.unwrap().sampled.iter().map(|sampled| sampled.token).collect()
}

#[test]
fn a_token_ahead_is_the_one_that_was_sampled_last() {
    let mut executor = executor();
    assert_eq!(tokens(executor.execute(&plan(1, &[1], vec![work(1, 0, &[5, 6], &[0])]))), [7]);
    // What stands in its place is not looked at.
    let ahead = |position| SequenceWork { ahead: true, ..work(1, position, &[9999], &[]) };
    assert_eq!(tokens(executor.execute(&plan(2, &[], vec![ahead(2)]))), [7 + 2]);
    assert_eq!(tokens(executor.execute(&plan(3, &[], vec![ahead(3)]))), [9 + 3]);
}

#[test]
fn nothing_is_ahead_where_nothing_was_sampled_last() {
    let mut executor = executor();
    let silent = SequenceWork { sample: false, ..work(1, 3, &[8], &[]) };
    executor.execute(&plan(1, &[1], vec![work(1, 0, &[5, 6, 7], &[0])])).unwrap();
    executor.execute(&plan(2, &[], vec![silent])).unwrap();
    let ahead = SequenceWork { ahead: true, ..work(1, 4, &[0], &[]) };
    let error = executor.execute(&plan(3, &[], vec![ahead])).unwrap_err().to_string();
    assert!(error.contains("sequence 1: no token was sampled for its rows to begin with"), "{error}");
}

/// Guesses that are right are kept with one token more; from the first wrong one on they are forgotten, and the next
/// rows are stored over theirs.
#[test]
fn guesses_are_kept_up_to_the_first_that_is_wrong() {
    let mut executor = executor();
    // 3 at 0 → 3 at 1 → 4 at 2 → 6 at 3 → 9 at 4 → 13 at 5 → 18
    executor.execute(&plan(1, &[1], vec![work(1, 0, &[3], &[0])])).unwrap();
    let guess = |position, tokens: &[u32], drafts| SequenceWork { drafts, ..work(1, position, tokens, &[]) };
    let other = work(2, 0, &[20, 21], &[1]);
    let both = plan(2, &[2], vec![guess(1, &[3, 4, 6, 10], 3), other]);
    let sampled = executor.execute(&both).unwrap().sampled;
    let sampled: Vec<_> = sampled.iter().map(|sampled| (sampled.sequence.0, sampled.token)).collect();
    assert_eq!(sampled, [(1, 4), (1, 6), (1, 9), (2, 22)]);
    // The last one known is 9, at position 4; the coordinator need not know it.
    let ahead = SequenceWork { ahead: true, ..guess(4, &[0, 13, 18], 2) };
    assert_eq!(tokens(executor.execute(&plan(3, &[], vec![ahead]))), [13, 18, 24]);
    assert_eq!(tokens(executor.execute(&plan(4, &[], vec![guess(7, &[24, 1], 1)]))), [31]);
    assert_eq!(tokens(executor.execute(&plan(5, &[], vec![work(1, 8, &[31], &[])]))), [39]);
}

#[test]
fn guesses_that_cannot_be_judged_are_refused() {
    type Case = (&'static str, fn(&mut StepPlan));
    let cases: [Case; 4] = [
        ("2 of 2 tokens are guesses, and none is known", |p| p.work[0].drafts = 2),
        ("1 of 2 tokens are guesses, and nothing is sampled", |p| p.work[0].sample = false),
        ("1 of 2 tokens are guesses, under a mask", |p| p.work[0].mask = Some([1].into_iter().collect())),
        ("1 of 2 tokens are guesses, under penalties", |p| p.admit[0].sampling.presence_penalty = 1.0),
    ];
    for (words, spoil) in cases {
        let mut guessing = plan(1, &[1], vec![SequenceWork { drafts: 1, ..work(1, 0, &[1, 2], &[0]) }]);
        spoil(&mut guessing);
        let error = executor().execute(&guessing).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn a_mask_holds_for_its_step_alone() {
    let mut executor = executor();
    let masked = SequenceWork { mask: Some([9, 40].into_iter().collect()), ..work(1, 0, &[5], &[0]) };
    // All that is allowed is equally unlikely.
    assert_eq!(tokens(executor.execute(&plan(1, &[1], vec![masked]))), [9]);
    assert_eq!(tokens(executor.execute(&plan(2, &[], vec![work(1, 1, &[9], &[])]))), [10]);
    let nothing = SequenceWork { mask: Some([VOCAB as u32].into_iter().collect()), ..work(1, 2, &[1], &[]) };
    let error = executor.execute(&plan(3, &[], vec![nothing])).unwrap_err().to_string();
    assert!(error.contains("the mask allows no token"), "{error}");
}

/// The peak of 1 is lost to penalties on what was in the context, and on what is sampled later.
#[test]
fn penalties_count_the_context_and_then_what_is_sampled() {
    let mut executor = executor();
    let mut first = plan(1, &[1], vec![work(1, 0, &[5], &[0])]);
    first.admit[0].sampling = Sampling { frequency_penalty: 0.6, ..Sampling::GREEDY };
    // 5 stands twice; it was generated once, which does not take all of its peak.
    (first.admit[0].context, first.admit[0].generated) = (vec![5, 5], 1);
    assert_eq!(tokens(executor.execute(&first)), [5]);
    // 4 at 1 has its peak at 5 as well: now that has −0.2 left, and the lowest of the others wins.
    assert_eq!(tokens(executor.execute(&plan(2, &[], vec![work(1, 1, &[4], &[])]))), [0]);
    // Held by sequence: the same again in another, without a context.
    let mut other = plan(3, &[2], vec![work(2, 0, &[5], &[1])]);
    other.admit[0].sampling = first.admit[0].sampling.clone();
    assert_eq!(tokens(executor.execute(&other)), [5]);
}

#[test]
fn logprobs_come_with_the_tokens_that_ask_for_them() {
    let mut executor = executor();
    let mut asking = plan(1, &[1, 2], vec![work(1, 0, &[5], &[0]), work(2, 0, &[6], &[1])]);
    let sampling = Sampling { logprobs: Some(1), ..Sampling::GREEDY };
    asking.admit[0] = Admission { sequence: SequenceId(1), sampling, ..Admission::default() };
    let sampled = executor.execute(&asking).unwrap().sampled;
    let total: f64 = one_hot(0).iter().map(|logit| f64::from(*logit).exp()).sum();
    let Some(Logprobs { chosen, top }) = &sampled[0].logprobs else { panic!("{sampled:?}") };
    assert!(
        (f64::from(*chosen) - (1.0 - total.ln())).abs() < 1e-6 && top[..] == [(5, *chosen)],
        "{sampled:?}"
    );
    assert_eq!(sampled[1].logprobs, None);
}
