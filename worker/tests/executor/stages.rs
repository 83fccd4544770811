//! Whatever the plan, the tokens are those of one rank: the golden model in one to three stages, of one to three ranks
//! each, by slices of experts and by whole ones, over every kind of link. Steps are sent without waiting for what
//! comes of them, as a scheduler that keeps all stages busy would: so tokens pass from the last stage to the first.

use crate::group::{EPOCH, Group, Kind, checkpoint};
use flotilla_engine::weights::WeightSource;
use flotilla_shared::plan::{Placement, StageCut};
use flotilla_shared::sampling::mix;
use flotilla_shared::step::{Admission, SequenceWork};
use flotilla_shared::{BlockId, Plan, Sampling, SequenceId, StepId, StepPlan, TokenId};
use std::collections::BTreeMap;

const SEQUENCES: u64 = 3;
const PROMPT: usize = 25;
const TOKENS: usize = 12;
/// Of each sequence, in both pools.
const BLOCKS: u32 = 3;

fn sampling(sequence: u64) -> Sampling {
    let seeded = Sampling { seed: sequence, ..Sampling::GREEDY };
    match sequence {
        1 => Sampling { temperature: 1.0, top_p: 0.9, ..seeded },
        2 => Sampling { frequency_penalty: 0.7, ..seeded },
        _ => seeded,
    }
}

fn prompt(sequence: u64, vocab: usize) -> Vec<TokenId> {
    (0..PROMPT as u64).map(|i| (mix(sequence << 32 | i) % vocab as u64) as TokenId).collect()
}

fn work(sequence: u64, position: usize, tokens: Vec<TokenId>) -> SequenceWork {
    let sequence = SequenceId(sequence);
    SequenceWork { sequence, position: position as u32, tokens, ..SequenceWork::default() }
}

/// What each step does: prompts in two chunks, of which the second samples; then rows of one sequence after the
/// other, each of which begins with a token that nobody here knows.
fn works(vocab: usize) -> Vec<SequenceWork> {
    let blocks = |sequence: u64| {
        let first = sequence as u32 * BLOCKS;
        (first..first + BLOCKS).map(BlockId).collect::<Vec<_>>()
    };
    let prompts = (0..SEQUENCES).flat_map(|sequence| {
        let (begin, end) = (prompt(sequence, vocab)[..14].to_vec(), prompt(sequence, vocab)[14..].to_vec());
        let begin = work(sequence, 0, begin);
        let begin = SequenceWork { blocks: blocks(sequence), window_blocks: blocks(sequence), ..begin };
        [begin, SequenceWork { sample: true, ..work(sequence, 14, end) }]
    });
    let decodes = (0..TOKENS - 1).flat_map(|token| {
        let ahead = move |sequence| work(sequence, PROMPT + token, vec![0]);
        (0..SEQUENCES).map(ahead).map(|work| SequenceWork { ahead: true, sample: true, ..work })
    });
    prompts.chain(decodes).collect()
}

/// The tokens of each sequence.
fn generate(kind: Kind, plan: &Plan, vocab: usize) -> BTreeMap<u64, Vec<TokenId>> {
    let group = Group::start(kind, plan);
    let works = works(vocab);
    for (at, work) in works.iter().enumerate() {
        let sampling = sampling(work.sequence.0);
        let context = if sampling.has_penalties() { prompt(work.sequence.0, vocab) } else { vec![] };
        let admission = Admission { sequence: work.sequence, sampling, context, ..Admission::default() };
        let admit = if work.position == 0 { vec![admission] } else { vec![] };
        let (step, work) = (StepId(at as u64 + 1), vec![work.clone()]);
        group.send(&StepPlan { epoch: EPOCH, step, admit, work, ..StepPlan::default() });
    }
    let mut tokens: BTreeMap<u64, Vec<TokenId>> = BTreeMap::new();
    for _ in works {
        for sampled in group.sampled() {
            tokens.entry(sampled.sequence.0).or_default().push(sampled.token);
        }
    }
    tokens
}

/// Layers and shares of each stage.
fn cut(plan: &[(usize, &[f64])], placement: Placement) -> Vec<StageCut> {
    let stage =
        |(layers, shares): &(usize, &[f64])| StageCut { placement, ..StageCut::even(*layers, shares) };
    plan.iter().map(stage).collect()
}

/// Uneven in layers, in ranks and in shares; some ranks own no head, some no part of the vocabulary.
const PLANS: [&[(usize, &[f64])]; 7] = [
    &[(4, &[2.0, 1.0, 1.0])],
    &[(1, &[1.0]), (3, &[1.0])],
    &[(3, &[1.0, 3.0]), (1, &[1.0])],
    &[(2, &[1.0]), (2, &[1.0, 0.0, 2.0])],
    &[(2, &[1.0, 1.0]), (2, &[5.0, 1.0])],
    &[(1, &[1.0]), (2, &[1.0, 1.0, 1.0]), (1, &[2.0, 1.0])],
    &[(1, &[1.0, 2.0, 3.0]), (1, &[1.0]), (2, &[1.0, 1.0])],
];

fn check(kind: Kind) {
    let checkpoint = checkpoint();
    let (spec, vocab) = (checkpoint.spec(), checkpoint.spec().vocab);
    let expected = generate(Kind::Threads, &Plan::with_shares(spec, &[1.0]), vocab);
    assert!(expected.len() == SEQUENCES as usize && expected.values().all(|tokens| tokens.len() == TOKENS));
    for plan in PLANS {
        for placement in [Placement::Slices, Placement::Whole] {
            let plan = Plan::with_stages(spec, &cut(plan, placement));
            assert_eq!(generate(kind, &plan, vocab), expected, "{kind:?}, {plan:?}");
        }
    }
}

#[test]
fn every_plan_gives_the_tokens_of_one_rank_over_threads() {
    check(Kind::Threads);
}

#[test]
fn every_plan_gives_the_tokens_of_one_rank_over_tcp() {
    check(Kind::Tcp);
}

#[test]
fn every_plan_gives_the_tokens_of_one_rank_over_memory() {
    check(Kind::Shm);
}
