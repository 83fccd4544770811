//! What the ranks hold is the model: together all of it, each element as often as the plan says.

use crate::small;
use flotilla_engine::weights::{RankWeights, WeightSink, WeightSource};
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{Plan, Rank, TensorSlice};

fn load(plan: &Plan, rank: usize) -> RankWeights {
    let (source, spec) = (small::synthetic(), small::spec());
    let mut weights = RankWeights::new(&spec, plan, Rank(rank as u16)).unwrap();
    let mut last = (0, 0);
    weights.load_from(&source, &mut |done, total| last = (done, total)).unwrap();
    assert_eq!(last, (weights.bytes_held(), weights.bytes_held()));
    assert_eq!(plan.bytes(&spec, Rank(rank as u16)).weights(), weights.bytes_held());
    weights
}

/// Lays a rank's slice over the whole tensor, element by element.
fn lay(whole: &mut [Option<u8>], slice: &TensorSlice, bytes: &[u8], replicated: bool) {
    let element = slice.tensor.dtype().bytes();
    let places = slice.runs(&slice.tensor.shape(&small::spec()));
    let places = places.flat_map(|run| run.start * element..run.end * element);
    for (place, &byte) in places.zip(bytes) {
        let before = whole[place].replace(byte);
        assert!(
            before.is_none() || replicated && before == Some(byte),
            "{slice}: byte {place} is held twice"
        );
    }
}

#[test]
fn the_parts_of_1_to_8_ranks_make_the_whole() {
    let (source, spec) = (small::synthetic(), small::spec());
    for ranks in 1..=8 {
        let shares: Vec<f64> = (0..ranks).map(|rank| 1.0 + 0.3 * rank as f64).collect();
        let plan = Plan::with_shares(&spec, &shares);
        let held: Vec<RankWeights> = (0..ranks).map(|rank| load(&plan, rank)).collect();
        for tensor in TensorId::all(&spec) {
            let slice = TensorSlice::whole(tensor, &spec);
            let (mut expected, mut whole) = (vec![0; slice.bytes()], vec![None; slice.bytes()]);
            source.read(&slice, 0, &mut expected).unwrap();
            for part in held.iter().filter_map(|weights| weights.get(tensor)) {
                lay(&mut whole, part.slice(), part.bytes(), tensor.replicated());
            }
            let whole: Option<Vec<u8>> = whole.into_iter().collect();
            assert_eq!(whole.as_ref(), Some(&expected), "{tensor} over {ranks} ranks");
        }
    }
}

#[test]
fn buffers_are_aligned_and_typed_and_can_be_taken() {
    let spec = small::spec();
    let plan = Plan::with_shares(&spec, &[1.0, 1.0]);
    let mut weights = load(&plan, 0);
    assert!(weights.slices().eq(&plan.slices(&spec, Rank(0))));
    for tensor in weights.tensors() {
        assert_eq!(tensor.bytes().as_ptr() as usize % 64, 0, "{}", tensor.slice());
        assert_eq!(tensor.bytes().len(), tensor.slice().bytes());
    }
    let norm = weights.get(TensorId::FinalNorm).unwrap();
    assert_eq!(norm.shape(), [64]);
    assert_eq!(norm.as_u16()[3].to_le_bytes(), norm.bytes()[6..8]);
    assert!(norm.as_bf16().iter().all(|w| (-1.0..3.0).contains(&w.to_f32())));

    let blocks = TensorId::Layer(1, LayerTensor::DownBlocks);
    let index = weights.slices().iter().position(|slice| slice.tensor == blocks).unwrap();
    let change = |out: &mut [u8]| {
        out.copy_from_slice(&[0xab]);
        Ok(())
    };
    weights.fill(index, 5..6, &mut { change }).unwrap();
    assert_eq!(weights.get(blocks).unwrap().bytes()[5], 0xab);
    let before = weights.bytes_held();
    let taken = weights.take(blocks).unwrap();
    assert_eq!(weights.bytes_held(), before - taken.bytes().len() as u64);
    assert!(weights.get(blocks).is_none() && weights.take(blocks).is_none());
    assert!(weights.tensors().all(|held| held.tensor() != blocks));
    // The second rank has no output bias: the first adds it.
    assert!(load(&plan, 1).get(TensorId::Layer(0, LayerTensor::OBias)).is_none());
}
