//! Guesses change nothing but the number of steps: with the golden model on the CPU, on one rank and on two,
//! decoding by guesses gives the tokens of decoding one by one.

use flotilla_engine::backend::cpu::CpuSettings;
use flotilla_engine::collective::{ThreadsCollective, threads};
use flotilla_engine::weights::{Checkpoint, RankWeights, WeightSink, WeightSource};
use flotilla_shared::sampling::mix;
use flotilla_shared::step::{Admission, SequenceWork};
use flotilla_shared::{
    Assignment, BlockId, Epoch, KvBlocks, Plan, Rank, Sampling, SequenceId, StepId, StepPlan, TokenId,
    WeightOrigin, WeightsId,
};
use flotilla_worker::device::on_cpu;
use std::path::Path;
use std::sync::Arc;

const TOKENS: usize = 40;
const KV_BLOCKS: u32 = 4;

fn prompt(vocab: usize) -> Vec<TokenId> {
    (0..19).map(|i| (mix(i) % vocab as u64) as TokenId).collect()
}

/// Every rank decodes on its own, and all must agree. `truth`: what to guess from; none for one by one.
fn decode(ranks: usize, sampling: &Sampling, truth: &[TokenId]) -> (Vec<TokenId>, usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/smoke");
    let checkpoint = Arc::new(Checkpoint::open(&folder).unwrap());
    let members = threads::group(ranks).into_iter().enumerate();
    let threads: Vec<_> = members
        .map(|(rank, member)| {
            let (checkpoint, sampling, truth) = (checkpoint.clone(), sampling.clone(), truth.to_vec());
            std::thread::spawn(move || decode_on(&checkpoint, ranks, rank, member, &sampling, &truth))
        })
        .collect();
    let mut decoded: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let first = decoded.swap_remove(0);
    assert!(decoded.iter().all(|other| *other == first), "ranks decoded differently");
    first
}

/// The tokens, and how many steps they took.
fn decode_on(
    checkpoint: &Checkpoint,
    ranks: usize,
    rank: usize,
    member: ThreadsCollective,
    sampling: &Sampling,
    truth: &[TokenId],
) -> (Vec<TokenId>, usize) {
    let spec = checkpoint.spec().clone();
    let assignment = Assignment {
        epoch: Epoch(1),
        rank: Rank(rank as u16),
        plan: Plan::with_shares(&spec, &vec![1.0; ranks]),
        weights: WeightOrigin::Stream,
        weights_id: WeightsId([0; 32]),
        kv_blocks: KvBlocks::plain(KV_BLOCKS),
        step_tokens_max: 32,
        sampleable: vec![0..spec.vocab as TokenId],
        peers: vec![String::new(); ranks],
        links: Default::default(),
        group_key: [0; 32],
        spec: spec.clone(),
    };
    let mut weights = RankWeights::new(&spec, &assignment.plan, assignment.rank).unwrap();
    weights.load_from(checkpoint, &mut |_, _| {}).unwrap();
    let mut executor = on_cpu(&CpuSettings::default(), &assignment, weights, member);

    let prompt = prompt(spec.vocab);
    let blocks: Vec<BlockId> = (0..KV_BLOCKS).map(BlockId).collect();
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
        let plan = StepPlan {
            epoch: Epoch(1),
            step: StepId(steps as u64),
            admit: if steps == 1 { vec![admission] } else { vec![] },
            work: vec![work.clone()],
            ..StepPlan::default()
        };
        let sampled = executor.execute(&plan).unwrap().sampled;
        tokens.extend(sampled.iter().map(|sampled| sampled.token));
        let guesses = guesses(truth, tokens.len(), spec.vocab);
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
    for sampling in [Sampling::GREEDY, warm] {
        let (one_by_one, steps) = decode(1, &sampling, &[]);
        assert_eq!(steps, TOKENS);
        for ranks in [1, 2] {
            let (guessed, fewer) = decode(ranks, &sampling, &one_by_one);
            assert_eq!(guessed, one_by_one, "{ranks} ranks, {sampling:?}");
            assert!(fewer < TOKENS * 3 / 4, "{fewer} steps");
        }
    }
}
