//! Weights on a card that are cut anew: what is there of the new cut keeps its bytes in its new place, and with what lacks
//! they are the weights that a load from the beginning brings, from any cut to any other, also after loads that were broken
//! off.

use crate::support::{self, TestCard};
use flotilla_engine::backend::cuda::CudaWeights;
use flotilla_engine::weights::{FILL_BYTES, Kept, Need, Synthetic, WeightSink, WeightSource};
use flotilla_shared::plan::{Placement, StageCut};
use flotilla_shared::sampling::mix;
use flotilla_shared::{ModelSpec, Plan, Rank, TensorSlice};
use std::ops::Range;
use std::sync::LazyLock;

/// Its longest slice is more than is filled at once, and cuts of it have runs of some bytes and of some KiB.
fn spec() -> ModelSpec {
    let mut spec = ModelSpec::published("gpt-oss-20b").unwrap();
    (spec.hidden, spec.intermediate, spec.vocab, spec.experts) = (96, 2880, 503, 32);
    (spec.q_heads, spec.kv_heads, spec.head_dim) = (16, 8, 4);
    spec.layers.truncate(3);
    spec
}

fn source() -> &'static Synthetic {
    static SOURCE: LazyLock<Synthetic> = LazyLock::new(|| Synthetic::new(spec(), 7));
    &SOURCE
}

fn read(part: &TensorSlice) -> Vec<u8> {
    let mut bytes = vec![0; part.bytes()];
    source().read(part, 0, &mut bytes).unwrap();
    bytes
}

/// A rank's slices by a plan: so many layers in each stage, and the shares of its ranks.
struct Cut(&'static [(usize, Placement, &'static [f64])], u16);

impl Cut {
    fn slices(&self) -> Vec<TensorSlice> {
        let stage = |(layers, placement, shares): &(usize, Placement, &[f64])| StageCut {
            placement: *placement,
            ..StageCut::even(*layers, shares)
        };
        let stages: Vec<_> = self.0.iter().map(stage).collect();
        Plan::with_stages(&spec(), &stages).slices(&spec(), Rank(self.1))
    }
}

const CUTS: [Cut; 11] = [
    Cut(&[(3, Placement::Slices, &[1.0])], 0),
    Cut(&[(3, Placement::Slices, &[1.0; 2])], 0),
    Cut(&[(3, Placement::Slices, &[1.0; 2])], 1),
    Cut(&[(3, Placement::Slices, &[1.0; 3])], 0),
    Cut(&[(3, Placement::Slices, &[1.0; 3])], 1),
    Cut(&[(3, Placement::Slices, &[5.0, 1.0, 2.0])], 2),
    // Norms alone.
    Cut(&[(3, Placement::Slices, &[1.0, 0.0])], 1),
    Cut(&[(3, Placement::Whole, &[1.0; 3])], 1),
    Cut(&[(1, Placement::Slices, &[1.0]), (2, Placement::Slices, &[1.0; 2])], 0),
    Cut(&[(1, Placement::Slices, &[1.0]), (2, Placement::Slices, &[1.0; 2])], 2),
    Cut(&[(2, Placement::Slices, &[1.0; 2]), (1, Placement::Whole, &[1.0; 2])], 1),
];

/// Of each slice that lacks something, all that lacks, as a worker's load does it; up to slice number `end`.
fn complete(weights: &mut CudaWeights, end: usize) {
    let needs = Need::of(weights.slices(), &weights.kept());
    for (index, need) in needs.iter().enumerate().take(end) {
        let lacking: Vec<Vec<u8>> = need.lacking.iter().map(read).collect();
        need.fill(weights, index, None, &lacking, &mut |_, _| {}).unwrap();
    }
}

/// What is there is what `wanted` has of `before`, and nothing else.
fn expect_kept(weights: &CudaWeights, before: &[TensorSlice], wanted: &[TensorSlice], name: &str) {
    let common = |slice: &TensorSlice| before.iter().find_map(|held| slice.common(held));
    let expected: Vec<TensorSlice> = wanted.iter().filter_map(common).collect();
    assert_eq!(weights.kept(), expected, "{name}");
}

/// What is not wanted of the first slices that have such, as it is there.
fn expect_copied(weights: &CudaWeights, wanted: &[TensorSlice], name: &str) {
    let beyond = |slice: &TensorSlice| match wanted.iter().find(|wanted| wanted.tensor == slice.tensor) {
        Some(wanted) => slice.without(wanted).pop(),
        None => Some(slice.clone()),
    };
    let parts: Vec<_> = weights.slices().iter().filter_map(beyond).take(4).collect();
    let copy = weights.copied(parts.clone()).unwrap();
    assert_eq!(copy.kept(), parts, "{name}");
    for part in &parts {
        assert!(copy.get(part.tensor).unwrap().bytes() == read(part), "{name}: {part}");
    }
}

fn expect_whole(mut weights: CudaWeights, wanted: &[TensorSlice], name: &str) -> CudaWeights {
    weights.finish().unwrap();
    assert!(weights.is_whole() && weights.kept() == wanted, "{name}");
    let reader = weights.reader().unwrap();
    for slice in wanted {
        let mut found = vec![0; slice.bytes()];
        reader.read_back(slice, 0, &mut found).unwrap();
        assert!(found == read(slice), "{name}: {slice}");
    }
    weights
}

#[test]
fn any_cut_is_made_of_any_other_and_what_lacks() {
    for TestCard { card, .. } in support::cards() {
        assert!(CUTS[0].slices().iter().any(|slice| slice.bytes() > FILL_BYTES));
        for (from, old) in CUTS.iter().enumerate() {
            for (to, new) in CUTS.iter().enumerate() {
                let (name, held, wanted) = (format!("cut {from} to {to}"), old.slices(), new.slices());
                let mut weights = CudaWeights::new(&card, held.clone()).unwrap();
                weights.load_from(source(), &mut |_, _| {}).unwrap();
                expect_copied(&weights, &wanted, &name);
                let mut weights = weights.recut(wanted.clone()).unwrap();
                expect_kept(&weights, &held, &wanted, &name);
                assert!(!weights.is_whole(), "{name}");
                complete(&mut weights, usize::MAX);
                expect_whole(weights, &wanted, &name);
            }
        }
    }
}

/// From cut to cut, as groups are lost while they form: most loads are broken off somewhere.
#[test]
fn what_a_broken_load_has_brought_and_kept_is_kept() {
    const SEED: u64 = 11;
    let mut random = SEED;
    let mut next = |n: usize| {
        random += 1;
        (mix(random << 20) >> 33) as usize % n
    };
    for TestCard { card, .. } in support::cards() {
        let mut weights = CudaWeights::new(&card, CUTS[0].slices()).unwrap();
        let (mut held, mut kept_bytes) = (Vec::new(), 0);
        for round in 0..30 {
            let (to, name) = (next(CUTS.len()), format!("round {round} of seed {SEED}"));
            let wanted = CUTS[to].slices();
            weights = weights.recut(wanted.clone()).unwrap();
            expect_kept(&weights, &held, &wanted, &name);
            kept_bytes += weights.kept().iter().map(TensorSlice::bytes).sum::<usize>();
            let end = next(wanted.len() + wanted.len() / 3);
            complete(&mut weights, end);
            held = weights.kept();
            assert!(wanted.iter().take(end).all(|slice| held.contains(slice)), "{name}");
            if end >= wanted.len() {
                weights = expect_whole(weights, &wanted, &name);
            }
        }
        assert!(kept_bytes > 0);
        complete(&mut weights, usize::MAX);
        let wanted = weights.slices().to_vec();
        if !weights.is_whole() {
            expect_whole(weights, &wanted, "at the end");
        }
    }
}

/// A part of a slice that came of itself is not there: only what came before it.
#[test]
fn a_slice_of_which_a_part_came_is_not_there() {
    for TestCard { card, .. } in support::cards() {
        let slices = CUTS[1].slices();
        let mut weights = CudaWeights::new(&card, slices.clone()).unwrap();
        let half = slices[0].bytes() / 2;
        let fill = |weights: &mut CudaWeights, range: Range<usize>| {
            weights.fill(0, range, &mut |_| Ok(())).unwrap();
        };
        fill(&mut weights, half..slices[0].bytes());
        assert!(weights.kept().is_empty());
        fill(&mut weights, 0..half);
        assert_eq!(weights.kept(), &slices[..1]);
    }
}
