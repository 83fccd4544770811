//! Guesses change nothing but the number of steps: with the golden model on the CPU, on one rank, on two, and in
//! stages, decoding by guesses gives the tokens of decoding one by one.

use crate::group::{EPOCH, Group, Kind, checkpoint};
use flotilla_engine::weights::WeightSource;
use flotilla_shared::plan::StageCut;
use flotilla_shared::sampling::mix;
use flotilla_shared::step::{Admission, SequenceWork};
use flotilla_shared::{BlockId, Plan, Sampling, SequenceId, StepId, StepPlan, TokenId};

const TOKENS: usize = 40;
const BLOCKS: u32 = 4;

fn prompt(vocab: usize) -> Vec<TokenId> {
    (0..19).map(|i| (mix(i) % vocab as u64) as TokenId).collect()
}

/// The tokens, and how many steps they took. `truth`: what to guess from; none for one by one.
fn decode(plan: &Plan, sampling: &Sampling, truth: &[TokenId], vocab: usize) -> (Vec<TokenId>, usize) {
    let group = Group::start(Kind::Threads, plan);
    let prompt = prompt(vocab);
    let blocks: Vec<BlockId> = (0..BLOCKS).map(BlockId).collect();
    let mut work = SequenceWork {
        sequence: SequenceId(1),
        tokens: prompt.clone(),
        window_blocks: blocks.clone(),
        blocks,
        sample: true,
        ..SequenceWork::default()
    };
    let (mut tokens, mut steps) = (Vec::new(), 0);
    while tokens.len() < TOKENS {
        steps += 1;
        let admission =
            Admission { sequence: SequenceId(1), sampling: sampling.clone(), ..Admission::default() };
        group.send(&StepPlan {
            epoch: EPOCH,
            step: StepId(steps as u64),
            admit: if steps == 1 { vec![admission] } else { vec![] },
            work: vec![work.clone()],
            ..StepPlan::default()
        });
        tokens.extend(group.sampled().iter().map(|sampled| sampled.token));
        let guesses = guesses(truth, tokens.len(), vocab);
        work = SequenceWork {
            sequence: SequenceId(1),
            position: (prompt.len() + tokens.len() - 1) as u32,
            drafts: guesses.len() as u32,
            // The executor knows it; a guess stands for the token that it is.
            tokens: [vec![0], guesses].concat(),
            ahead: true,
            sample: true,
            ..SequenceWork::default()
        };
    }
    tokens.truncate(TOKENS);
    (tokens, steps)
}

/// Up to four of the tokens that come next, some of them wrong.
fn guesses(truth: &[TokenId], from: usize, vocab: usize) -> Vec<TokenId> {
    let count = if truth.is_empty() { 0 } else { from % 5 };
    let guess = |at: usize| match (truth.get(at), mix(at as u64) % 4) {
        (Some(token), 1..) => *token,
        (token, _) => (token.unwrap_or(&0) + 1) % vocab as TokenId,
    };
    (from..from + count).map(guess).collect()
}

#[test]
fn guesses_change_nothing_but_the_number_of_steps() {
    let warm = Sampling { temperature: 1.0, top_p: 0.9, seed: 4, ..Sampling::GREEDY };
    let checkpoint = checkpoint();
    let (spec, vocab) = (checkpoint.spec(), checkpoint.spec().vocab);
    let stages = [(1, 1), (2, 2), (1, 1)].map(|(layers, ranks)| StageCut::even(layers, &vec![1.0; ranks]));
    for sampling in [Sampling::GREEDY, warm] {
        let one = Plan::with_shares(spec, &[1.0]);
        let (one_by_one, steps) = decode(&one, &sampling, &[], vocab);
        assert_eq!(steps, TOKENS);
        for plan in [one, Plan::with_shares(spec, &[1.0; 2]), Plan::with_stages(spec, &stages)] {
            let (guessed, fewer) = decode(&plan, &sampling, &one_by_one, vocab);
            assert_eq!(guessed, one_by_one, "{plan:?}, {sampling:?}");
            assert!(fewer < TOKENS * 3 / 4, "{fewer} steps");
        }
    }
}
