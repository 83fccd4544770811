//! What a group leaves on a CPU is what the next one needs: every byte comes back, and only what is not there is fetched.

use crate::small;
use flotilla_engine::backend::cpu::kernels::Isa;
use flotilla_engine::backend::cpu::{CpuBackend, CpuSettings, CpuWeights, DenseWidth};
use flotilla_engine::weights::{Kept, Need, RankWeights, WeightSink, WeightSource};
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{Assignment, Epoch, KvBlocks, Plan, Rank, TensorSlice, WeightOrigin, WeightsId};
use std::sync::Arc;

/// A rank's weights after a group that computed with them.
fn left_by(plan: &Plan, rank: u16, settings: &CpuSettings) -> CpuWeights {
    let spec = small::spec();
    let mut weights = RankWeights::new(&spec, plan, Rank(rank)).unwrap();
    weights.load_from(&small::synthetic(), &mut |_, _| {}).unwrap();
    let assignment = Assignment {
        epoch: Epoch(1),
        rank: Rank(rank),
        plan: plan.clone(),
        weights: WeightOrigin::Stream,
        weights_id: WeightsId([0; 32]),
        kv_blocks: KvBlocks::plain(2),
        step_tokens_max: 4,
        logit_rows_max: 64,
        sampleable: vec![0..spec.vocab as u32],
        peers: vec![String::new(); plan.rank_count()],
        links: Default::default(),
        group_key: [0; 32],
        holders: Vec::new(),
        lends: false,
        spec,
    };
    let weights = CpuBackend::new(settings, &assignment, weights).into_weights();
    Arc::into_inner(weights).expect("nobody else has them")
}

fn read(part: &TensorSlice) -> Vec<u8> {
    let mut bytes = vec![0; part.bytes()];
    small::synthetic().read(part, 0, &mut bytes).unwrap();
    bytes
}

/// Fills what `wanted` needs from what is kept and, for the rest, from the source; returns what the rest is.
fn refill(mut kept: CpuWeights, wanted: Vec<TensorSlice>) -> u64 {
    let needs = Need::of(&wanted, &kept.kept());
    let mut weights = RankWeights::for_slices(wanted).unwrap();
    for (index, need) in needs.iter().enumerate() {
        let lacking: Vec<Vec<u8>> = need.lacking.iter().map(read).collect();
        need.fill(&mut weights, index, Some(&kept), &lacking, &mut |_, _| {}).unwrap();
        kept.forget(need.slice.tensor);
    }
    weights.tensors().for_each(|held| assert_eq!(held.bytes(), read(held.slice()), "{}", held.slice()));
    needs.iter().map(Need::lacking_bytes).sum()
}

#[test]
fn a_change_of_plan_fetches_what_is_not_kept() {
    let spec = small::spec();
    let plans = [&[1.0][..], &[1.0, 1.0], &[2.0, 1.0, 1.0], &[1.0, 3.0]]
        .map(|shares| Plan::with_shares(&spec, shares));
    for isa in Isa::available() {
        let settings = CpuSettings { isa: Some(isa), threads: 2, ..CpuSettings::default() };
        for from in &plans {
            for to in &plans {
                let (old, new) = (from.rank_count() as u16 - 1, to.rank_count() as u16 - 1);
                let (held, wanted) = (from.slices(&spec, Rank(old)), to.slices(&spec, Rank(new)));
                let common =
                    wanted.iter().filter_map(|slice| held.iter().find_map(|held| slice.common(held)));
                let common: u64 = common.map(|part| part.bytes() as u64).sum();
                let lacking = to.bytes(&spec, Rank(new)).weights() - common;
                assert_eq!(refill(left_by(from, old, &settings), wanted), lacking);
            }
        }
    }
}

/// Rounded weights are not the model's any more.
#[test]
fn what_was_rounded_is_not_kept() {
    let plan = Plan::with_shares(&small::spec(), &[1.0]);
    let kept = left_by(&plan, 0, &CpuSettings { dense: DenseWidth::Int8, ..CpuSettings::default() });
    let has = |tensor| kept.kept().iter().any(|slice| slice.tensor == tensor);
    assert!(!has(TensorId::Unembed) && !has(TensorId::Layer(0, LayerTensor::QWeight)));
    assert!(has(TensorId::Embed) && has(TensorId::Layer(1, LayerTensor::GateUpBlocks)));
    refill(kept, plan.slices(&small::spec(), Rank(0)));
}

#[test]
fn parts_are_read_back_from_any_byte_on() {
    let spec = small::spec();
    let plan = Plan::with_shares(&spec, &[1.0, 2.0]);
    let kept = left_by(&plan, 1, &CpuSettings::default());
    for held in kept.kept() {
        let mut part = held.clone();
        part.ranges
            .iter_mut()
            .filter(|range| range.len() > 2)
            .for_each(|range| *range = range.start + 1..range.end - 1);
        let expected = read(&part);
        for offset in [0, 1, expected.len() / 2, expected.len() - 1] {
            let mut out = vec![0; expected.len() - offset];
            kept.read_back(&part, offset, &mut out).unwrap();
            assert_eq!(out, expected[offset..], "{part} from {offset}");
        }
    }
}

/// As peers do: each reads forward, and finds the expert of another in the room that it takes.
#[test]
fn many_read_back_at_once() {
    let spec = small::spec();
    let kept = left_by(&Plan::with_shares(&spec, &[1.0, 1.0]), 0, &CpuSettings::default());
    let held = kept.kept();
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let (kept, held) = (&kept, &held);
            scope.spawn(move || {
                for at in 0..held.len() {
                    let slice = &held[(at + reader * 3) % held.len()];
                    let expected = read(slice);
                    let mut out = vec![0; expected.len()];
                    let middle = out.len() / 2;
                    kept.read_back(slice, 0, &mut out[..middle]).unwrap();
                    kept.read_back(slice, middle, &mut out[middle..]).unwrap();
                    assert!(out == expected, "{slice} to reader {reader}");
                }
            });
        }
    });
}

/// Of weights that are on their way, a part can be read as soon as all of it came, and not before.
#[test]
fn what_has_come_can_be_read_before_the_rest() {
    let (spec, source) = (small::spec(), small::synthetic());
    let wanted = Plan::with_shares(&spec, &[1.0]).slices(&spec, Rank(0));
    // A rank of two lacks parts of what comes.
    let parts = Plan::with_shares(&spec, &[1.0, 1.0]).slices(&spec, Rank(1));
    let mut weights = RankWeights::for_slices(wanted.clone()).unwrap();
    let part_of = |slice: &TensorSlice| parts.iter().find(|part| part.tensor == slice.tensor);
    for (index, slice) in wanted.iter().enumerate() {
        let Some(part) = part_of(slice) else { continue };
        let mut out = vec![0; part.bytes()];
        let half = slice.bytes() / 2;
        for range in [half..slice.bytes(), 0..half] {
            assert!(!weights.read_filled(part, 0, &mut out) || range.start == 0, "{part} is not all there");
            let write = &mut |bytes: &mut [u8]| source.read(slice, range.start, bytes);
            weights.fill(index, range.clone(), write).unwrap();
        }
        assert!(weights.read_filled(part, 0, &mut out) && out == read(part), "{part}");
    }
    // More than is held is not there.
    let narrow = RankWeights::for_slices(parts).unwrap();
    let wide = wanted.iter().find(|slice| slice.tensor == TensorId::Embed).expect("the first has it");
    assert!(!narrow.read_filled(wide, 0, &mut [0]));
}
