//! What a rank says of its own time: exchanges are counted, one by one, and times are parts of the whole.

use crate::group::{EPOCH, Group, Kind, checkpoint};
use flotilla_engine::weights::WeightSource;
use flotilla_shared::step::{Admission, SequenceWork};
use flotilla_shared::{BlockId, Plan, Sampling, SequenceId, StepId, StepPlan};
use std::time::Instant;

fn step(number: u64) -> StepPlan {
    let admission = Admission { sequence: SequenceId(1), sampling: Sampling::GREEDY, ..Admission::default() };
    let blocks = if number == 1 { vec![BlockId(0)] } else { Vec::new() };
    let work = SequenceWork {
        sequence: SequenceId(1),
        position: number as u32 - 1,
        tokens: vec![5],
        window_blocks: blocks.clone(),
        blocks,
        sample: true,
        ..SequenceWork::default()
    };
    StepPlan {
        epoch: EPOCH,
        step: StepId(number),
        admit: if number == 1 { vec![admission] } else { Vec::new() },
        work: vec![work],
        ..StepPlan::default()
    }
}

#[test]
fn each_rank_counts_its_exchanges_and_what_they_took() {
    let checkpoint = checkpoint();
    let spec = checkpoint.spec();
    for kind in [Kind::Threads, Kind::Tcp, Kind::Shm] {
        let group = Group::start(kind, &Plan::with_shares(spec, &[1.0; 2]));
        for number in 1..=3 {
            let start = Instant::now();
            group.send(&step(number));
            let answers = group.answers();
            let whole_us = start.elapsed().as_micros() as u64;
            for answer in answers {
                // The embedding, two of each layer, and the candidates.
                assert_eq!(answer.times.exchanges as usize, 2 + 2 * spec.layer_count(), "{kind:?}");
                let times = answer.times.collective_us.zip(answer.times.sample_us);
                let (collective, sample) = times.expect("a processor measures both");
                assert!(collective + sample <= whole_us, "{collective} and {sample} of {whole_us}");
            }
        }
    }
}

#[test]
fn one_rank_alone_exchanges_with_nobody_and_chooses_all_the_same() {
    let checkpoint = checkpoint();
    let group = Group::start(Kind::Threads, &Plan::with_shares(checkpoint.spec(), &[1.0]));
    group.send(&step(1));
    let times = group.answers()[0].times;
    assert!(times.collective_us.is_some() && times.sample_us.is_some(), "{times:?}");
}
