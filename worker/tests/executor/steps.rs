//! What is obeyed, and what is refused before anything is computed.

use crate::echo::{VOCAB, executor, ids, one_hot, plan, work};
use flotilla_shared::step::{Admission, SequenceWork};
use flotilla_shared::{BlockId, Epoch, Sampling, SequenceId, StepId, StepPlan};
use flotilla_worker::StepError;

#[test]
fn two_sequences_step_together_and_go_on() {
    let mut executor = executor();
    let first = plan(1, &[7, 9], vec![work(7, 0, &[1, 2, 3], &[0]), work(9, 0, &[5], &[1])]);
    let sampled = executor.execute(&first).unwrap().sampled;
    let tokens: Vec<_> = sampled.iter().map(|s| (s.sequence.0, s.token)).collect();
    assert_eq!(tokens, [(7, 3 + 2), (9, 5)]);

    let next = plan(2, &[], vec![work(9, 1, &[10], &[]), work(7, 3, &[20], &[])]);
    let tokens: Vec<_> = executor.execute(&next).unwrap().sampled.iter().map(|s| s.token).collect();
    assert_eq!(tokens, [10 + 1, 20 + 3]);

    let mut after = plan(3, &[7], vec![work(7, 0, &[4], &[0])]);
    after.release = vec![SequenceId(7)];
    assert_eq!(executor.execute(&after).unwrap().sampled[0].token, 4);
}

/// What the window has left behind is dropped; its blocks come back under other positions, while full layers
/// keep everything.
#[test]
fn a_window_table_loses_its_head_as_the_sequence_grows() {
    let mut executor = executor();
    let mut step = |number, admit: &[u64], position, rows: usize, blocks: &[u32], window: &[u32], gone| {
        let blocks = SequenceWork { window_blocks: ids(window), ..work(1, position, &vec![0; rows], blocks) };
        let work = SequenceWork { window_gone: gone, ..blocks };
        executor.execute(&plan(number, admit, vec![work])).map(|_| ())
    };
    step(1, &[1], 0, 35, &[3, 1, 0], &[2, 0, 1], 0).unwrap();
    // The row at 35 sees 16 to 35.
    step(2, &[], 35, 13, &[], &[], 1).unwrap();
    step(3, &[], 48, 8, &[2], &[2], 1).unwrap();
    let error = step(4, &[], 56, 1, &[], &[], 0).unwrap_err().to_string();
    assert!(error.contains("0 window blocks are gone, 1 were before"), "{error}");
    let found = &executor.backend().tables;
    let full = ids(&[3, 1, 0]);
    let all = ids(&[3, 1, 0, 2]);
    let expected = [(full.clone(), 0, ids(&[2, 0, 1])), (full, 1, ids(&[0, 1])), (all, 1, ids(&[0, 1, 2]))];
    assert_eq!(found[..], expected);
}

/// A prefix that is in the cache: the first work brings all of its full blocks, and the window blocks that are
/// still seen.
#[test]
fn a_sequence_may_begin_behind_a_cached_prefix() {
    let mut executor = executor();
    let mut first = plan(1, &[1], vec![work(1, 48, &[9, 10], &[2, 1, 0, 3])]);
    first.admit[0].cached = 48;
    (first.work[0].window_gone, first.work[0].window_blocks) = (1, ids(&[1, 0, 2]));
    assert_eq!(executor.execute(&first).unwrap().sampled[0].token, (10 + 49) % VOCAB as u32);
    executor.execute(&plan(2, &[], vec![SequenceWork { window_gone: 1, ..work(1, 50, &[1], &[]) }])).unwrap();
    let table = (ids(&[2, 1, 0, 3]), 1, ids(&[1, 0, 2]));
    assert_eq!(executor.backend().tables, [table.clone(), table]);
}

#[test]
fn captured_rows_come_with_logits_and_routing_beside_sampled_ones() {
    let mut executor = executor();
    let captured = SequenceWork { sample: false, capture: true, ..work(1, 0, &[8, 9], &[0]) };
    let outcome = executor.execute(&plan(1, &[1, 2], vec![captured, work(2, 0, &[3, 4], &[1])])).unwrap();
    assert_eq!(outcome.sampled.len(), 1);
    assert_eq!(outcome.sampled[0].token, 4 + 1);
    let rows: Vec<_> = outcome.captured.iter().map(|row| (row.position, row.logits.clone())).collect();
    assert_eq!(rows, [(0, one_hot(8)), (1, one_hot(10))]);
    assert_eq!(outcome.captured[1].experts, vec![1; 24]);
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    type Case = (&'static str, fn(&mut StepPlan));
    let cases: [Case; 18] = [
        ("stale step: expected step 2 of epoch 1, got step 5", |p| p.step = StepId(5)),
        ("got step 2 of epoch 3", |p| p.epoch = Epoch(3)),
        ("step has 41 rows, at most 40", |p| p.work[0].tokens = vec![0; 41]),
        ("sequence 8 is not held here", |p| p.work[0].sequence = SequenceId(8)),
        ("sequence 8 is not held here", |p| p.release.push(SequenceId(8))),
        ("sequence 7 is held here already", |p| {
            p.admit.push(Admission { sequence: SequenceId(7), ..Admission::default() });
        }),
        ("work without tokens", |p| p.work[0].tokens.clear()),
        ("rows begin at position 4, 3 are in the cache", |p| p.work[0].position = 4),
        ("sequence 7 is held here already, or has two works", |p| p.work.push(work(7, 4, &[1], &[]))),
        ("sequence 9: 3 positions are said to be in the cache, not whole blocks", |p| {
            p.admit.push(Admission { sequence: SequenceId(9), cached: 3, ..Admission::default() });
        }),
        ("its table has 1 blocks, 2 are needed", |p| p.work[0].tokens = vec![0; 14]),
        ("its window table has 1 blocks, 2 are needed", |p| {
            (p.work[0].tokens, p.work[0].blocks) = (vec![0; 14], ids(&[1]));
        }),
        ("sequence 7: block 4 is past the 4 held", |p| p.work[0].blocks.push(BlockId(4))),
        ("window block 3 is past the 3 held", |p| p.work[0].window_blocks.push(BlockId(3))),
        ("1 window blocks are gone, position 0 is still seen", |p| p.work[0].window_gone = 1),
        ("1 window blocks are gone, position 13 is still seen", |p| {
            // The row at position 32 sees 13 to 32.
            p.admit.push(Admission { sequence: SequenceId(9), cached: 32, ..Admission::default() });
            p.work[0] = SequenceWork { window_gone: 1, ..work(9, 32, &[1], &[1, 2]) };
        }),
        ("its table has 1 blocks, 3 are needed", |p| {
            p.admit.push(Admission { sequence: SequenceId(9), cached: 32, ..Admission::default() });
            p.work[0] = work(9, 32, &[1], &[1]);
        }),
        ("token 64 is past the vocabulary of 64", |p| p.work[0].tokens = vec![64]),
    ];
    for (words, spoil) in cases {
        let mut executor = executor();
        executor.execute(&plan(1, &[7], vec![work(7, 0, &[1, 2, 3], &[0])])).unwrap();
        let mut next = plan(2, &[], vec![work(7, 3, &[4], &[])]);
        spoil(&mut next);
        let error = executor.execute(&next).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn the_context_ends_where_the_model_says() {
    let mut executor = executor();
    let first = SequenceWork { window_blocks: ids(&[0, 1, 2]), ..work(1, 0, &[0; 40], &[0, 1, 2, 3]) };
    executor.execute(&plan(1, &[1], vec![first])).unwrap();
    let second = SequenceWork { window_gone: 1, window_blocks: ids(&[0]), ..work(1, 40, &[0; 24], &[]) };
    executor.execute(&plan(2, &[], vec![second])).unwrap();
    let third = SequenceWork { window_gone: 1, ..work(1, 64, &[0], &[]) };
    let error = executor.execute(&plan(3, &[], vec![third])).unwrap_err();
    assert!(error.to_string().contains("reach position 65, the context ends at 64"), "{error}");
}

#[test]
fn logits_that_are_no_numbers_are_an_error_not_a_token() {
    let mut executor = executor();
    let mut nothing_allowed = plan(1, &[1], vec![work(1, 0, &[1], &[0])]);
    nothing_allowed.admit[0].sampling = Sampling { temperature: f32::NAN, ..Sampling::GREEDY };
    let error = executor.execute(&nothing_allowed).unwrap_err();
    assert!(matches!(error, StepError::NoToken(SequenceId(1))), "{error}");
}
